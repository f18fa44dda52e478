"""How real DataLoader workers end, and which failure that is."""

from __future__ import annotations

import os
import signal

import pytest
from torch.utils.data import DataLoader, Dataset

from autotune.measure.classify import classify
from autotune.trial import Failure, FailureKind


class Faulty(Dataset[int]):
    """Samples of which the first does something to its process.

    The first, because nothing is on its way then: what is seen does not depend on who is quicker.
    """

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        if index == 0:
            if self.fault == "raise":
                raise KeyError("label")
            if self.fault == "exit":
                os._exit(3)
            os.kill(os.getpid(), getattr(signal, self.fault))
        return index


def load(fault: str) -> Failure:
    """What comes of an epoch over the faulty dataset."""
    try:
        list(DataLoader(Faulty(fault), num_workers=1))
    except Exception as error:
        return classify(error, phase="loader", oom_killed=False)
    raise AssertionError("the epoch ended well")


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("raise", "user_error"),
        ("exit", "worker_crash"),
        ("SIGKILL", "worker_crash"),
        ("SIGSEGV", "worker_crash"),
        ("SIGBUS", "shm"),
    ],
)
def test_how_workers_end(fault: str, kind: FailureKind) -> None:
    """Each way to end a worker is told apart by what torch raises in the training process."""
    assert load(fault).kind == kind


def test_the_signal_is_named() -> None:
    """What ended the worker is said, although torch's own sentence leaves it out."""
    assert load("SIGSEGV").message == "a DataLoader worker ended: Segmentation fault"


def test_the_dataset_line_is_shown() -> None:
    """The traceback of a worker's error leads to the dataset and through none of torch's files."""
    found = load("raise")
    assert found.message == "KeyError: 'label' (in DataLoader worker process 0)"
    assert 'raise KeyError("label")' in found.traceback
    assert "site-packages/torch/" not in found.traceback
