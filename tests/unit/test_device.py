"""Which device is trained on, and that its clock looks at that one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import workloads as w

from autotune.errors import DeviceError
from autotune.measure import device
from autotune.measure.device import DeviceClock, choose_device, resident_bytes

pytestmark = pytest.mark.usefixtures("one_thread")


class Asked:
    """Stands for `torch.cuda` and the like: remembers what was asked of which device."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        def call(where: Any = None) -> int:
            self.calls.append((name, where))
            return 7

        return call


def machine(monkeypatch: pytest.MonkeyPatch, accelerator: str | None, count: int) -> None:
    """A machine with so many of these."""
    monkeypatch.setattr(device, "_accelerator", lambda: accelerator)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)


def living_on(where: str) -> Any:
    """Stands for a model with its parameters there."""
    return SimpleNamespace(parameters=lambda: iter([SimpleNamespace(device=torch.device(where))]))


@pytest.mark.parametrize(
    ("accelerator", "count", "named", "model", "expected"),
    [
        (None, 0, None, "cpu", "cpu"),
        (None, 0, "cpu", "cpu", "cpu"),
        ("cuda", 1, None, "cpu", "cuda:0"),
        ("cuda", 1, "cuda", "cpu", "cuda:0"),
        ("cuda", 1, "cpu", "cuda:0", "cpu"),
        ("cuda", 2, "cuda:1", "cpu", "cuda:1"),
        ("cuda", 2, None, "cuda:1", "cuda:1"),
        ("cuda", 2, "cpu", "cpu", "cpu"),
        ("mps", 1, None, "cpu", "mps"),
        ("mps", 1, None, "meta", "mps"),
    ],
)
def test_the_device_is_named_or_the_models_or_the_only_one(
    monkeypatch: pytest.MonkeyPatch,
    accelerator: str | None,
    count: int,
    named: str | None,
    model: str,
    expected: str,
) -> None:
    """In this order."""
    machine(monkeypatch, accelerator, count)
    assert choose_device(named, [living_on(model)]) == torch.device(expected)


@pytest.mark.parametrize(
    ("accelerator", "count", "named", "said"),
    [
        ("cuda", 2, None, "2 accelerators"),
        ("cuda", 2, "cuda", "2 accelerators"),
        ("cuda", 1, "cuda:3", "no `cuda:3`"),
        (None, 0, "cuda", "no `cuda`"),
        (None, 0, "mps", "no `mps`"),
        ("cuda", 1, "xpu", "no `xpu`"),
        ("cuda", 1, "meta", "no `meta`"),
        (None, 0, "gpu", "`gpu` is no device"),
        (None, 0, "", "`` is no device"),
    ],
)
def test_a_device_that_is_not_here_is_refused(
    monkeypatch: pytest.MonkeyPatch, accelerator: str | None, count: int, named: str | None, said: str
) -> None:
    """With what there is, and what to name instead."""
    machine(monkeypatch, accelerator, count)
    with pytest.raises(DeviceError) as raised:
        choose_device(named, [w.Net()])
    assert said in raised.value.what
    assert raised.value.why
    assert raised.value.fix


def test_a_clock_waits_for_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for the current one, which may be another and idle."""
    clock = DeviceClock(torch.device("cuda:1"))
    asked = Asked()
    monkeypatch.setattr(clock, "_module", asked)
    clock.synchronize()
    assert clock.peak_bytes() == 7
    clock.reset()
    assert dict(asked.calls) == {
        "synchronize": torch.device("cuda:1"),
        "max_memory_reserved": torch.device("cuda:1"),
        "empty_cache": None,
        "reset_peak_memory_stats": torch.device("cuda:1"),
    }


def test_a_clock_of_an_only_device_names_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `torch.mps.synchronize` takes no device."""
    clock = DeviceClock(torch.device("mps"))
    asked = Asked()
    monkeypatch.setattr(clock, "_module", asked)
    clock.synchronize()
    assert asked.calls == [("synchronize", None)]


def test_on_the_cpu_there_is_nothing_to_wait_for() -> None:
    """And nothing that an allocator would tell."""
    clock = DeviceClock(torch.device("cpu"))
    clock.synchronize()
    clock.reset()
    assert clock.peak_bytes() is None
    assert clock.allocator_retries() == 0


def test_resident_memory_grows_with_what_is_held() -> None:
    """By about the size of what was allocated and touched."""
    before = resident_bytes()
    held = torch.ones(64 << 20, dtype=torch.uint8)
    after = resident_bytes()
    assert before is not None
    assert after is not None
    assert after - before > held.numel() // 2
