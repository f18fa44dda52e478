"""The machine as text: what bounds a training run here, in at most 15 lines of 80 columns."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from autotune.facts import GpuFacts, MachineFacts
from autotune.units import format_bytes

_WIDTH = 80
_LABEL = 11
_NAME = 40
_GPU_KINDS = 3
"""Kinds of GPU that are shown in full, two lines each."""
_LOW_SHM_BYTES = 1 << 30
_FEW_FILES = 4096


def environment_text(facts: MachineFacts, versions: Mapping[str, str]) -> str:
    """What matters of this machine, without a final newline.

    Args:
        facts: the machine.
        versions: of the packages to name, such as `autotune` and `optuna`.
    """
    lines = [
        _line("versions", [*(f"{name} {version}" for name, version in versions.items())]),
        _line("torch", _torch(facts)),
        _line("system", _system(facts)),
        _line("CPU", [_short(facts.cpu_name), _bf16(facts.cpu_native_bf16)]),
        _line("CPUs", [_cpus(facts)]),
        _line("memory", _memory(facts)),
        _line("/dev/shm", _shm(facts)),
        _line("open files", _open_files(facts)),
        _line("workers", [f"start by {facts.start_method}"]),
        *_gpu_lines(facts.gpus),
    ]
    return "\n".join(lines)


def _line(label: str, parts: Iterable[str]) -> str:
    text = f"{label:<{_LABEL}}{', '.join(part for part in parts if part)}".rstrip()
    return text if len(text) <= _WIDTH else text[: _WIDTH - 3] + "..."


def _torch(facts: MachineFacts) -> list[str]:
    cuda = f"CUDA {facts.cuda_version}" if facts.cuda_version else "no CUDA"
    cudnn = f"cuDNN {_cudnn(facts.cudnn_version)}" if facts.cudnn_version else ""
    return [facts.torch_version, cuda, cudnn]


def _system(facts: MachineFacts) -> list[str]:
    compiles = f"no torch.compile: {facts.compile_fixed}" if facts.compile_fixed else "torch.compile"
    return [facts.system + (" (WSL)" if facts.wsl else ""), f"Python {facts.python_version}", compiles]


def _cudnn(number: int) -> str:
    """`9.24.0` from 92400, and `8.9.2` from 8902: the major version's weight grew with 9."""
    weight = 10_000 if number >= 90_000 else 1_000
    return f"{number // weight}.{number % weight // 100}.{number % 100}"


def _cpus(facts: MachineFacts) -> str:
    if facts.usable_cpus >= facts.logical_cpus:
        return f"all {facts.logical_cpus} usable"
    quota = facts.cpu_quota
    by_quota = quota is not None and max(1, math.ceil(quota)) <= facts.usable_cpus
    why = f"cgroup quota of {quota:g}" if by_quota else "CPU affinity"
    return f"{facts.usable_cpus} usable of {facts.logical_cpus}: {why}"


def _memory(facts: MachineFacts) -> list[str]:
    available = (
        f"{format_bytes(facts.memory_available_bytes)} available of {format_bytes(facts.memory_bytes)}"
    )
    if facts.memory_limit_bytes is None:
        return [available]
    return [available, f"cgroup limit {format_bytes(facts.memory_limit_bytes)}"]


def _shm(facts: MachineFacts) -> list[str]:
    if facts.shm_free_bytes is None:
        return ["none"]
    free = f"{format_bytes(facts.shm_free_bytes)} free"
    low = facts.shm_free_bytes < _LOW_SHM_BYTES
    return [free, "warning: under 1 GiB; docker run --shm-size=8g" if low else ""]


def _open_files(facts: MachineFacts) -> list[str]:
    if facts.nofile_soft is None:
        return ["no limit"]
    hard = "no hard limit" if facts.nofile_hard is None else f"hard limit {facts.nofile_hard}"
    return [str(facts.nofile_soft), hard, "warning: few for many workers" * (facts.nofile_soft < _FEW_FILES)]


def _gpu_lines(gpus: tuple[GpuFacts, ...]) -> list[str]:
    if not gpus:
        return [_line("GPU", ["none"])]
    kinds: dict[tuple[object, ...], list[GpuFacts]] = {}
    for gpu in gpus:
        alike = (gpu.name, gpu.memory_bytes, gpu.driver, gpu.capability, gpu.power_limit_w)
        kinds.setdefault(alike, []).append(gpu)
    groups = list(kinds.values())
    shown = groups if len(groups) <= _GPU_KINDS else groups[: _GPU_KINDS - 1]
    lines = [line for group in shown for line in _gpu(group)]
    hidden = sum(len(group) for group in groups) - sum(len(group) for group in shown)
    return [*lines, _line("", [f"and {hidden} more; --json lists them"])] if hidden else lines


def _gpu(alike: list[GpuFacts]) -> list[str]:
    """Two lines on GPUs that are the same but for what is going on on them; the busiest one counts."""
    first = alike[0]
    free = [gpu.free_bytes for gpu in alike if gpu.free_bytes is not None]
    total = format_bytes(first.memory_bytes) + (" shared with the host" if first.integrated else "")
    others = [gpu.other_processes for gpu in alike if gpu.other_processes is not None]
    name = _short(first.name) + (f" x{len(alike)}" if len(alike) > 1 else "")
    return [
        _line(
            f"GPU {_indices(alike)}", [name, f"{format_bytes(min(free))} free of {total}" if free else total]
        ),
        _line(
            "",
            [
                f"driver {first.driver}" if first.driver else "",
                "capability " + ".".join(map(str, first.capability)) if first.capability else "",
                "bf16" if first.native_bf16 else "no bf16",
                _others(max(others)) if others else "processes hidden",
                f"{first.power_limit_w:g} W" if first.power_limit_w is not None else "",
            ],
        ),
    ]


def _indices(gpus: list[GpuFacts]) -> str:
    numbers = [gpu.index for gpu in gpus]
    if len(numbers) > 1 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]}-{numbers[-1]}"
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}..."


def _others(number: int) -> str:
    return f"{number or 'no'} other process{'' if number == 1 else 'es'}"


def _bf16(native: bool) -> str:
    return "native bfloat16" if native else "no native bfloat16"


def _short(name: str) -> str:
    return name if len(name) <= _NAME else name[: _NAME - 3] + "..."
