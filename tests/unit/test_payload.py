"""Tensors on a device travel as copies, and are on that device again where there is one."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import workloads as w
from torch import nn

from autotune.kit import make_kit
from autotune.measure import flags, payload
from autotune.measure.launcher import default_launcher
from autotune.measure.loaders import parts_of
from autotune.measure.payload import pickle_workload
from autotune.measure.probe import machine_facts
from autotune.measure.process_runner import ProcessRunner
from autotune.measure.session import Session
from autotune.settings import Settings
from autotune.workload import Workload


class OnADevice(torch.Tensor):
    """Says that it is on the fourth GPU; its copies are plain and on the CPU."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda:3")

    def detach(self) -> torch.Tensor:
        return self.as_subclass(torch.Tensor).clone()


class ParameterOnADevice(OnADevice, nn.Parameter):
    """The same, to be trained."""


def far_away() -> torch.Tensor:
    return torch.arange(4.0).as_subclass(OnADevice)


def test_a_tensor_from_a_device_that_is_missing_is_on_the_cpu() -> None:
    """With its values and its flag, as a copy."""
    there = far_away().requires_grad_(True)
    here = pickle.loads(payload._dumps(there))
    assert (type(here), here.device.type, here.requires_grad) == (torch.Tensor, "cpu", True)
    assert torch.equal(here.detach(), torch.arange(4.0))
    assert here.data_ptr() != there.data_ptr()


@pytest.mark.parametrize("parameter", [False, True])
def test_a_tensor_goes_back_to_its_device(monkeypatch: pytest.MonkeyPatch, parameter: bool) -> None:
    """A fourth device of its kind is there: the copy is asked to go to that one, and not to the first."""
    asked: list[Any] = []

    def moved(tensor: torch.Tensor, device: Any) -> torch.Tensor:
        asked.append(device)
        return tensor

    there: Any = ParameterOnADevice(torch.arange(4.0)) if parameter else far_away()
    pickled = payload._dumps(there)
    monkeypatch.setattr(
        torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda")
    )
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 4)
    monkeypatch.setattr(torch.Tensor, "to", moved)
    here = pickle.loads(pickled)
    assert asked == [torch.device("cuda:3")]
    assert isinstance(here, nn.Parameter) is parameter
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 3)
    assert pickle.loads(pickled).device.type == "cpu"
    assert len(asked) == 1


class Noted:
    """Writes down which process unpickled it; a step like any other."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        with self.path.open("a") as file:
            file.write(f"{os.getpid()}\n")

    def __call__(self, model: nn.Module, batch: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])


def test_a_workload_is_unpickled_by_the_bench_alone(tmp_path: Path) -> None:
    """A server that had opened a device could fork nothing that uses it."""
    sent = pickle_workload(Workload(w.Net(), w.Rows(), batch_size=16, step=Noted(tmp_path / "pids")))
    with ProcessRunner(sent, default_launcher(sent)) as runner:
        runner.describe()
        assert runner._bench is not None
        assert (tmp_path / "pids").read_text().split() == [str(runner._bench.pid)]


class Weighted(nn.CrossEntropyLoss):
    """A loss that tells where it was sent."""

    sent: Any = None

    def to(self, device: Any) -> Weighted:  # type: ignore[override]
        self.sent = device
        return self


def test_a_loss_goes_where_the_model_goes() -> None:
    """Its weights have to be where the outputs are, in trials and in the kit."""
    workload = Workload(w.Net(), w.Rows(), batch_size=16, loss=Weighted(), device="cpu")
    Session(workload, parts_of(workload), flags.read_user_flags(), machine_facts)
    assert workload.loss.sent == torch.device("cpu")
    in_kit = Weighted()
    with make_kit(Settings(), None, w.Net(), w.sgd, loss=in_kit, device="cpu"):
        assert in_kit.sent == torch.device("cpu")
