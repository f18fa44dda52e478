"""What the NVIDIA driver tells without a CUDA context: memory, driver, other processes, power limit.

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
