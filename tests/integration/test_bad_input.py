"""Bad input is a clear error: what, why, fix and a code. Never a traceback of ours, never a half answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import workloads as w
from torch import nn
from torch.utils.data import DataLoader, Sampler

import autotune
from autotune.errors import AutotuneError, DatasetError
from autotune.measure import device
from autotune.workload import Workload


class Frozen(w.Net):
    """Nothing to train."""

    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)


class Explodes(w.Net):
    """NaN from the first forward pass."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * float("nan")


class Single(w.Rows):
    """An input without a target."""

    def __getitem__(self, index: int) -> Any:
        return super().__getitem__(index)[0]


def wrong_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Fits floats, and the targets are classes."""
    return nn.functional.mse_loss(output, target)


CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "empty dataset": ("AT-E10", "empty", {"dataset": w.Rows(samples=0)}),
    "fewer samples than a batch": ("AT-E11", "fewer samples", {"dataset": w.Rows(samples=5)}),
    "dataset raises": ("AT-E13", "index 3", {"dataset": w.RaisesAt(3), "shuffle": False}),
    "nothing to train": ("AT-E20", "no trainable parameters", {"model": Frozen()}),
    "nan from the start": ("AT-E22", "before any setting", {"model": Explodes()}),
    "no loss to infer": ("AT-E21", "no loss can be inferred", {"dataset": Single()}),
    "loss does not fit": ("AT-E21", "does not fit", {"loss": wrong_loss}),
    "no such device": ("AT-E31", "cuda:7", {"device": "cuda:7"}),
    "not a model": ("AT-E20", "nn.Module", {"model": 5}),
    "budget too short": ("AT-E30", "budget", {"budget": 0.2}),
    "unknown knob": ("AT-E01", "num_workres", {"fixed": {"num_workres": 2}}),
    "not a duration": ("AT-E01", "duration", {"budget": "soon"}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("runner", ["process", "in_process"])
def test_bad_input_is_said_clearly(case: str, runner: str, tmp_path: Any) -> None:
    """The code, the fact and a way out, in the bench process and in the user's own."""
    code, words, changes = CASES[case]
    options = {
        "model": w.Net(),
        "dataset": w.Rows(),
        "optimizer": w.sgd,
        "batch_size": 16,
        "budget": 20,
        "runner": runner,
        "storage": str(tmp_path / "study.journal"),
        **changes,
    }
    if case == "nothing to train":
        options["optimizer"] = None
    with pytest.raises(AutotuneError) as raised:
        autotune.find_best(options.pop("model"), options.pop("dataset"), **options)
    error = raised.value
    assert error.code == code, error.render()
    assert words in error.render()
    assert error.fix or error.why


def test_a_dataset_that_raises_shows_its_own_traceback(tmp_path: Any) -> None:
    """The detail is the user's traceback, without our frames."""
    with pytest.raises(AutotuneError) as raised:
        autotune.find_best(
            w.Net(), w.RaisesAt(0), optimizer=w.sgd, shuffle=False, budget=20, storage=str(tmp_path / "s")
        )
    assert "sample 0 is broken" in raised.value.detail
    assert "workloads.py" in raised.value.detail
    assert "autotune/measure" not in raised.value.detail


class InOrder(Sampler[Any]):
    """Indices as NumPy has them."""

    def __iter__(self) -> Any:
        return iter(np.arange(256))

    def __len__(self) -> int:
        return 256


def test_a_sample_that_raises_under_a_sampler_of_numpy_indices(tmp_path: Any) -> None:
    """The dataset's failure, with its index: the study could not write it, and the run ended as ours."""
    loader = DataLoader(w.RaisesAt(200), batch_size=16, sampler=InOrder())
    with pytest.raises(DatasetError, match="fails at index 200"):
        autotune.find_best(w.Net(), loader, optimizer=w.sgd, budget=20, storage=str(tmp_path / "s"))


def test_two_accelerators_and_none_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With several devices the user must say which; naming one is enough."""
    monkeypatch.setattr(device, "_accelerator", lambda: "cuda")
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    with pytest.raises(AutotuneError) as raised:
        device.choose_device(None, [w.Net()])
    assert raised.value.code == "AT-E31"
    assert "cuda:0" in raised.value.fix
    assert device.choose_device("cuda:1", [w.Net()]) == torch.device("cuda:1")


@pytest.mark.parametrize(
    "fields",
    [
        {"loss": wrong_loss, "step": wrong_loss},
        {"batch_size": 0},
        {"samples_per_step": True},
        {"dataset": None},
        {"dataset": None, "step": wrong_loss},
        {"loss": 3},
        {"dataset": "/data/photos"},
        {"dataset": Path("photos")},
    ],
)
def test_a_workload_refuses_what_cannot_go_together(fields: dict[str, Any]) -> None:
    """Contradicting or missing arguments are found before anything runs."""
    with pytest.raises(AutotuneError) as raised:
        Workload(**{"model": w.Net(), "dataset": w.Rows(), **fields})
    assert raised.value.code == "AT-E01"
