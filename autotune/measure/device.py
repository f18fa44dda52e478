"""The device to train on, and what its memory and clock say. CPU, CUDA, XPU and MPS behind one face."""

from __future__ import annotations

import contextlib
import gc
from typing import Any

import psutil
import torch
from torch import nn

from autotune.errors import DeviceError
from autotune.measure.nvml import GpuState, GpuWatch


def choose_device(named: str | None, models: list[nn.Module]) -> torch.device:
    """The device named, else where the model is, else the only accelerator, else the CPU.

    Raises:
        DeviceError: for a device that does not exist here, and for several of which none is named.
    """
    if named is not None:
        return _checked(named)
    for model in models:
        for parameter in model.parameters():
            if parameter.device.type not in ("cpu", "meta"):
                return parameter.device
    accelerator = _accelerator()
    if accelerator is None:
        return torch.device("cpu")
    count = torch.accelerator.device_count()
    if count > 1:
        names = ", ".join(f"{accelerator}:{i}" for i in range(count))
        raise DeviceError(
            f"there are {count} accelerators and none is named",
            why=f"{names}; settings are tuned for one of them",
            fix=f'pass device="{accelerator}:0" (or --device {accelerator}:0), or move the model there first',
        )
    return torch.device(accelerator, 0) if accelerator == "cuda" else torch.device(accelerator)


def _accelerator() -> str | None:
    found = torch.accelerator.current_accelerator(check_available=True)
    return None if found is None else found.type


def _checked(named: str) -> torch.device:
    try:
        device = torch.device(named)
    except (RuntimeError, TypeError) as error:
        raise DeviceError(f"`{named}` is no device", why=str(error), fix="name cpu, cuda or cuda:0") from None
    accelerator = _accelerator()
    known = [] if accelerator is None else [accelerator]
    if device.type != "cpu" and device.type not in known:
        raise DeviceError(
            f"there is no `{named}` on this machine",
            why=f"torch {torch.__version__} sees {accelerator or 'no accelerator'} here",
            fix="name cpu, or install a torch build for your accelerator",
        )
    if device.type != "cpu":
        count = torch.accelerator.device_count()
        if device.index is not None and device.index >= count:
            raise DeviceError(
                f"there is no `{named}` on this machine",
                why=f"{count} {device.type} device(s) are visible to this process",
                fix=f"name one of {', '.join(f'{device.type}:{i}' for i in range(count))}, or look at"
                " CUDA_VISIBLE_DEVICES",
            )
        if device.index is None and device.type == "cuda":
            if count > 1:
                return choose_device(None, [])
            return torch.device("cuda", 0)
    return device


class DeviceClock:
    """Synchronising, peak memory and clean-up on one device.

    Synchronise only at the edges of a block: inside, host and device must overlap as they do for the user.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._watch: GpuWatch | None = None
        self._module: Any = getattr(torch, device.type, None) if device.type != "cpu" else None

    def synchronize(self) -> None:
        """Wait until the device has done all its work."""
        if self._module is None:
            return
        if self.device.type == "mps":
            self._module.synchronize()  # the only one without a device to name: there is one
        else:
            self._module.synchronize(self.device)

    def reset(self) -> None:
        """Forget peaks and hand cached memory back, so that one trial does not see the last one's."""
        gc.collect()
        if self._module is None:
            return
        if hasattr(self._module, "empty_cache"):
            self._module.empty_cache()
        if hasattr(self._module, "reset_peak_memory_stats"):
            self._module.reset_peak_memory_stats(self.device)

    def peak_bytes(self) -> int | None:
        """Most memory that the allocator has reserved since `reset`."""
        if self._module is None or not hasattr(self._module, "max_memory_reserved"):
            return None
        return int(self._module.max_memory_reserved(self.device))

    def allocator_retries(self) -> int:
        """How often the allocator had to flush its cache: a hidden synchronisation."""
        if self.device.type != "cuda":
            return 0
        stats = torch.cuda.memory_stats(self.device)
        return int(stats.get("num_alloc_retries", 0)) + int(stats.get("num_ooms", 0))

    def gpu_state(self) -> GpuState | None:
        """Clock, temperature and whether the GPU slows itself down; None without NVML."""
        if self.device.type != "cuda":
            return None
        if self._watch is None:
            uuid = getattr(torch.cuda.get_device_properties(self.device), "uuid", "")
            self._watch = GpuWatch(f"GPU-{uuid}")
        return self._watch.read()


def resident_bytes() -> int | None:
    """Memory held by this process, and by its children beyond what they still share with it."""
    total = 0
    try:
        own = psutil.Process()
        total += own.memory_info().rss
        for child in own.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += child.memory_full_info().uss
    except psutil.Error:
        return None
    return total
