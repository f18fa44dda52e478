"""What a GPU says of itself beside each block, by a fake driver."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from autotune.measure.device import DeviceClock
from autotune.measure.feed import HeldFeed
from autotune.measure.nvml import GpuState, GpuWatch
from autotune.measure.timing import BlockTimer


class Driver(ModuleType):
    """Stands for `pynvml` with one GPU; `reasons` is what slows its clock."""

    NVML_CLOCK_SM = 1
    NVML_TEMPERATURE_GPU = 0

    def __init__(self, reasons: int = 0, *, old: bool = False) -> None:
        super().__init__("pynvml")
        name = (
            "nvmlDeviceGetCurrentClocksThrottleReasons" if old else "nvmlDeviceGetCurrentClocksEventReasons"
        )
        setattr(self, name, lambda handle: reasons)

    def nvmlInit(self) -> None:
        """Nothing to do."""

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid != "GPU-1":
            raise RuntimeError("not found")
        return uuid

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:
        return 1410

    def nvmlDeviceGetTemperature(self, handle: str, kind: int) -> int:
        return 63


def watch(monkeypatch: pytest.MonkeyPatch, driver: Any, uuid: str = "GPU-1") -> GpuState | None:
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    return GpuWatch(uuid).read()


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    ("reasons", "slowed"),
    [(0x0, False), (0x1, False), (0x4, False), (0x8, True), (0x20, True), (0x40, True), (0x84, True)],
    ids=["none", "idle", "power cap", "hardware", "warm", "hot", "power brake"],
)
def test_heat_and_missing_power_slow_a_gpu(
    monkeypatch: pytest.MonkeyPatch, reasons: int, slowed: bool, old: bool
) -> None:
    """Idling and the power cap do not count: both are the same in the user's training."""
    found = watch(monkeypatch, Driver(reasons, old=old))
    assert found == GpuState(mhz=1410, celsius=63, slowed=slowed)


def test_what_the_driver_does_not_tell_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A board without a thermometer still tells its clock."""
    driver = Driver()
    monkeypatch.delattr(Driver, "nvmlDeviceGetTemperature")
    assert watch(monkeypatch, driver) == GpuState(mhz=1410, celsius=None, slowed=False)


def test_without_package_or_gpu_there_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither is an error, and a CPU is not asked at all."""
    assert watch(monkeypatch, None) is None
    assert watch(monkeypatch, Driver(), "GPU-2") is None
    assert DeviceClock(torch.device("cpu")).gpu_state() is None


def test_a_block_bears_what_the_gpu_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clock and temperature are kept, and a GPU that slowed itself marks the block as disturbed."""
    clock = DeviceClock(torch.device("cpu"))
    monkeypatch.setattr(clock, "gpu_state", lambda: GpuState(mhz=900, celsius=91, slowed=True))
    block = BlockTimer(lambda batch: None, HeldFeed(None, 8), clock, 0, float("inf")).block(2, 60.0)
    assert (block.gpu_mhz, block.gpu_celsius) == (900, 91)
    assert "throttled" in block.marks
    assert block.disturbed
