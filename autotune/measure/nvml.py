"""What the NVIDIA driver tells without a CUDA context: memory, driver, other processes, power, clocks.

Empty without the optional package nvidia-ml-py, without a driver, and for what a driver does not support.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

T = TypeVar("T")

_SLOWED = 0x8 | 0x20 | 0x40 | 0x80
"""Reasons for a low clock that pass: HwSlowdown, SwThermalSlowdown, HwThermalSlowdown, HwPowerBrake.

The power cap (0x4) is left out: where it binds, it binds in the user's training too.
"""

_FIRST_PID_NAMESPACE = 0xEFFFFFFC
"""Inode of the kernel's own PID namespace, fixed by Linux (PROC_PID_INIT_INO)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NvmlGpu:
    """One GPU that CUDA would show to this process."""

    uuid: str
    name: str
    memory_bytes: int | None
    """None where GPU and host share their memory."""
    free_bytes: int | None
    driver: str
    capability: tuple[int, ...]
    other_processes: int | None
    power_limit_w: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuState:
    """How a GPU runs at one moment; None for what the driver does not tell."""

    mhz: int | None
    """Clock of its processors."""
    celsius: int | None
    slowed: bool
    """Whether it slows itself down: heat, or power that is missing."""


class GpuWatch:
    """Reads the state of one GPU, in well under a millisecond.

    Args:
        uuid: as NVML writes it, beginning with `GPU-`. An unknown one is watched without an answer.
    """

    def __init__(self, uuid: str) -> None:
        self._nvml: ModuleType | None = None
        self._handle: Any = None
        try:
            import pynvml

            pynvml.nvmlInit()  # for as long as this process lives: it takes longer than a reading
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            self._nvml = pynvml
        except Exception:  # no package, no driver, no permission: all of them mean nothing to tell
            self._nvml = None

    def read(self) -> GpuState | None:
        """The state now; None where nothing can be told."""
        nvml, handle = self._nvml, self._handle
        if nvml is None:
            return None
        reasons = _ask(lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(handle))
        if reasons is None:  # the name of drivers and packages before 2023
            reasons = _ask(lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))
        return GpuState(
            mhz=_ask(lambda: int(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM))),
            celsius=_ask(lambda: int(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))),
            slowed=bool((reasons or 0) & _SLOWED),
        )


def visible_gpus(own_pids: Collection[int], visible_devices: str | None) -> tuple[NvmlGpu, ...]:
    """The GPUs, in the order that `visible_devices` gives them.

    Args:
        own_pids: processes that are ours and not counted as others.
        visible_devices: the value of CUDA_VISIBLE_DEVICES, None where it is not set.
    """
    try:
        import pynvml
    except ImportError:
        return ()
    try:
        pynvml.nvmlInit()
    except Exception:  # no driver, no library, no permission: all of them mean nothing to tell
        return ()
    try:
        driver = _ask(lambda: _text(pynvml.nvmlSystemGetDriverVersion())) or ""
        handles = _visible_handles(pynvml, visible_devices)
        return tuple(_gpu(pynvml, handle, driver, own_pids) for handle in handles)
    finally:
        _ask(pynvml.nvmlShutdown)


def _gpu(nvml: ModuleType, handle: Any, driver: str, own_pids: Collection[int]) -> NvmlGpu:
    memory = _ask(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
    power_mw = _ask(lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle))
    return NvmlGpu(
        uuid=_uuid(nvml, handle),
        name=_ask(lambda: _text(nvml.nvmlDeviceGetName(handle))) or "NVIDIA GPU",
        memory_bytes=None if memory is None else int(memory.total),
        free_bytes=None if memory is None else int(memory.free),
        driver=driver,
        capability=tuple(_ask(lambda: nvml.nvmlDeviceGetCudaComputeCapability(handle)) or ()),
        other_processes=_other_processes(nvml, handle, own_pids),
        power_limit_w=None if power_mw is None else power_mw / 1000,
    )


def _other_processes(nvml: ModuleType, handle: Any, own_pids: Collection[int]) -> int | None:
    if not _sees_host_pids():
        return None  # the driver numbers processes as the host does, so ours cannot be told from others
    running = _ask(lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle))
    return None if running is None else sum(process.pid not in own_pids for process in running)


def _sees_host_pids() -> bool:
    if not sys.platform.startswith("linux"):
        return True
    try:
        return os.stat(Path("/proc/self/ns/pid")).st_ino == _FIRST_PID_NAMESPACE
    except OSError:
        return False


def _visible_handles(nvml: ModuleType, visible_devices: str | None) -> list[Any]:
    """As CUDA reads the variable: numbers or UUID prefixes, up to the first entry that names no GPU."""
    count = _ask(nvml.nvmlDeviceGetCount) or 0
    every = [_ask(partial(nvml.nvmlDeviceGetHandleByIndex, index)) for index in range(count)]
    if visible_devices is None:
        return [handle for handle in every if handle is not None]
    found: list[Any] = []
    for entry in visible_devices.split(","):
        handle = _handle(nvml, every, entry.strip())
        if handle is None:
            break
        found.append(handle)
    return found


def _handle(nvml: ModuleType, every: list[Any], entry: str) -> Any:
    if entry.isdecimal():
        return every[int(entry)] if int(entry) < len(every) else None
    if entry.startswith("MIG-"):
        return _ask(lambda: nvml.nvmlDeviceGetHandleByUUID(entry))
    if not entry.startswith("GPU-"):
        return None
    matches = [handle for handle in every if handle is not None and _uuid(nvml, handle).startswith(entry)]
    return matches[0] if len(matches) == 1 else None


def _uuid(nvml: ModuleType, handle: Any) -> str:
    return _ask(lambda: _text(nvml.nvmlDeviceGetUUID(handle))) or ""


def _ask(question: Callable[[], T]) -> T | None:
    """The answer, or None: boards, drivers and containers each refuse something else."""
    try:
        return question()
    except Exception:  # NVMLError in its many kinds, and missing symbols of older drivers
        return None


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
