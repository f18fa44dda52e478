"""Reads the machine: `machine_facts()`. What cannot be read is left empty, never an error."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import platform
from pathlib import Path
from typing import Any

import psutil

from autotune.facts import GpuFacts, MachineFacts
from autotune.measure import host_memory, limits, toolchain
from autotune.measure.nvml import NvmlGpu, visible_gpus


def machine_facts(*, initialise_cuda: bool = True, free_memory: bool = False) -> MachineFacts:
    """What bounds a run on this machine.

    Args:
        initialise_cuda: whether torch may open the CUDA driver in this process, which costs time and device
            memory and makes forked children unable to use CUDA. Without it GPUs are read from the driver's
            management library alone, and there are none where nvidia-ml-py is not installed.
        free_memory: whether torch is asked for what is free on each GPU of which that library does not tell.
            It opens a context on each, which holds hundreds of MiB there for the life of this process.
    """
    import torch

    gpus = _gpus(torch, initialise_cuda=initialise_cuda, free_memory=free_memory)
    memory, limit = psutil.virtual_memory(), limits.memory_limit()
    nofile_soft, nofile_hard = limits.open_file_limits()
    return MachineFacts(
        system=platform.system(),
        cpu_name=cpu_name(),
        logical_cpus=os.cpu_count() or 1,
        usable_cpus=limits.usable_cpus(),
        cpu_quota=limits.cpu_quota(),
        memory_bytes=memory.total,
        memory_limit_bytes=None if limit is None else limit.limit_bytes,
        memory_available_bytes=memory.available if limit is None else min(memory.available, limit.free_bytes),
        shm_free_bytes=limits.shm_free_bytes(),
        nofile_soft=nofile_soft,
        nofile_hard=nofile_hard,
        start_method=start_method(),
        python_version=platform.python_version(),
        torch_version=str(torch.__version__),
        cuda_version=torch.version.cuda,
        cudnn_version=_cudnn_version(torch),
        cpu_native_bf16=cpu_has_native_bf16(),
        wsl="microsoft" in platform.release().lower(),
        host_memory_fixed=host_memory.fixed(),
        compile_fixed=toolchain.compile_fixed(cuda=bool(gpus)),
        gpus=gpus,
    )


def cpu_name(cpuinfo: Path = limits.PROC / "cpuinfo") -> str:
    """The processor as it calls itself, else the architecture."""
    entries = _cpuinfo(cpuinfo)
    name = entries.get("model name") or entries.get("Model") or platform.processor() or platform.machine()
    return " ".join(name.split())


def start_method() -> str:
    """How a DataLoader here starts its workers: as the program has set, else as Python does. Sets nothing."""
    return multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]


def cpu_has_native_bf16(cpuinfo: Path = limits.PROC / "cpuinfo") -> bool:
    """Whether the CPU multiplies bfloat16 in hardware and torch's kernels would use it.

    Both are asked, since oneDNN calls bfloat16 supported on any AVX-512 and then converts, which is slow.
    """
    import torch

    get_capabilities: Any = getattr(torch.cpu, "get_capabilities", dict)  # torch 2.13 and later
    entries = _cpuinfo(cpuinfo)
    features = {name for name, present in get_capabilities().items() if present is True}
    features.update((entries.get("flags") or entries.get("Features") or "").split())
    if not features & {"avx512_bf16", "amx_bf16", "bf16", "sve_bf16"}:
        return False
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):  # a build without oneDNN has no such kernels
        return False


def _cpuinfo(path: Path) -> dict[str, str]:
    """The first processor's entries of /proc/cpuinfo; empty elsewhere."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return {}
    entries: dict[str, str] = {}
    for line in lines:
        key, colon, value = line.partition(":")
        if colon:
            entries.setdefault(key.strip(), value.strip())
    return entries


def _cudnn_version(torch: Any) -> int | None:
    """Asked of the library itself: `torch.backends.cudnn.version()` opens CUDA to check its devices too."""
    try:
        return int(torch._C._cudnn.getVersionInt())
    except (AttributeError, RuntimeError):  # a build without cuDNN, or a library that does not load
        return None


def _gpus(torch: Any, *, initialise_cuda: bool, free_memory: bool = False) -> tuple[GpuFacts, ...]:
    # The driver's library first: once torch has a context of its own, less memory is free.
    known = visible_gpus(_own_pids(), os.environ.get("CUDA_VISIBLE_DEVICES"))
    from_driver = tuple(_from_nvml(index, gpu) for index, gpu in enumerate(known))
    if not initialise_cuda:
        return from_driver
    try:
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    except RuntimeError:
        return from_driver
    found = []
    for index in range(count):
        with contextlib.suppress(RuntimeError):  # one that cannot be used says nothing of the others
            found.append(_from_torch(torch, index, known, free_memory=free_memory))
    # A driver that counts its devices but can open none.
    return tuple(found) if found or not count else from_driver


def _from_torch(torch: Any, index: int, known: tuple[NvmlGpu, ...], *, free_memory: bool) -> GpuFacts:
    found = torch.cuda.get_device_properties(index)
    rocm = torch.version.hip is not None
    # By UUID: CUDA numbers devices by speed, the driver's library by bus address.
    uuid = str(getattr(found, "uuid", ""))
    nvml = next((gpu for gpu in known if uuid and gpu.uuid.removeprefix("GPU-") == uuid), None)
    free_bytes = nvml.free_bytes if nvml is not None else None
    if free_bytes is None and free_memory:
        with contextlib.suppress(RuntimeError):
            free_bytes = torch.cuda.mem_get_info(index)[0]
    return GpuFacts(
        index=index,
        name=found.name,
        memory_bytes=found.total_memory,
        free_bytes=free_bytes,
        driver=nvml.driver if nvml is not None else "",
        capability=() if rocm else (found.major, found.minor),
        native_bf16=rocm or found.major >= 8,
        integrated=bool(getattr(found, "is_integrated", False)),
        other_processes=nvml.other_processes if nvml is not None else None,
        power_limit_w=nvml.power_limit_w if nvml is not None else None,
    )


def _from_nvml(index: int, gpu: NvmlGpu) -> GpuFacts:
    shared = gpu.memory_bytes is None
    return GpuFacts(
        index=index,
        name=gpu.name,
        memory_bytes=psutil.virtual_memory().total if gpu.memory_bytes is None else gpu.memory_bytes,
        free_bytes=gpu.free_bytes,
        driver=gpu.driver,
        capability=gpu.capability,
        native_bf16=gpu.capability >= (8,),
        integrated=shared,
        other_processes=gpu.other_processes,
        power_limit_w=gpu.power_limit_w,
    )


def _own_pids() -> set[int]:
    try:
        return {os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))}
    except psutil.Error:
        return {os.getpid()}
