"""One complete choice of how to train: `Settings`, in torch's own names.

Values only; what is legal on a machine is decided in `autotune.space`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Precision = Literal["float32", "tf32", "bfloat16", "float16"]
HALF_WIDTH: tuple[Precision, ...] = ("bfloat16", "float16")
CompileMode = Literal["default", "reduce-overhead", "max-autotune"]
KnobValue = int | bool | str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderSettings:
    """What is handed to `torch.utils.data.DataLoader`."""

    batch_size: int | None = None
    """Samples in a batch; None where the dataset or an own batch sampler makes the batches."""
    num_workers: int = 0
    """Worker processes; 0 loads in the training process."""
    prefetch_factor: int | None = None
    """Batches each worker prepares ahead; None without workers."""
    persistent_workers: bool = False
    """Whether workers live on from epoch to epoch."""
    pin_memory: bool = False
    """Whether batches are copied to page-locked memory before the transfer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferSettings:
    """How a batch goes to the device."""

    non_blocking: bool = False
    """Whether the copy may run beside the host's next work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeSettings:
    """How a step is computed."""

    precision: Precision = "float32"
    """float32, tf32 (matrix units, float32 storage), or autocast to bfloat16 or float16 (with GradScaler)."""
    cudnn_benchmark: bool = False
    """`torch.backends.cudnn.benchmark`: search convolution algorithms per shape."""
    channels_last: bool = False
    """4-D weights and inputs in NHWC memory order."""
    fused_optimizer: bool = False
    """One kernel for the whole optimizer step (`fused=True`)."""
    cpu_threads: int | None = None
    """`torch.set_num_threads`; None leaves torch's own number (always so on a GPU)."""
    keep_host_memory: bool = False
    """glibc's allocator keeps what is freed for the next step (`mallopt(3)`, M_TRIM_THRESHOLD and
    M_MMAP_THRESHOLD) instead of handing it back to the system; for the life of the process."""
    compile: CompileMode | None = None
    """`torch.compile(mode=...)` of the model's training steps; None runs it as it is written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Loader, transfer and compute together: what one trial runs."""

    loader: LoaderSettings = field(default_factory=LoaderSettings)
    transfer: TransferSettings = field(default_factory=TransferSettings)
    compute: ComputeSettings = field(default_factory=ComputeSettings)

    def flat(self) -> dict[str, KnobValue]:
        """Every knob by its own name, in a fixed order."""
        return {
            name: getattr(getattr(self, group), name) for group, names in GROUPS.items() for name in names
        }

    def replace(self, **changes: KnobValue) -> Settings:
        """A copy with these knobs changed.

        Raises:
            KeyError: for a name that is no knob.
        """
        parts: dict[str, Any] = {}
        for name, value in changes.items():
            parts.setdefault(GROUP_OF[name], {})[name] = value
        groups: dict[str, Any] = {
            group: dataclasses.replace(getattr(self, group), **values) for group, values in parts.items()
        }
        return dataclasses.replace(self, **groups)

    def changed_from(self, other: Settings) -> dict[str, KnobValue]:
        """The knobs in which this differs from `other`, with the values here."""
        theirs = other.flat()
        return {name: value for name, value in self.flat().items() if value != theirs[name]}

    def key(self) -> str:
        """A short text that is equal exactly for equal settings."""
        return ",".join(f"{name}={value}" for name, value in self.flat().items())

    @classmethod
    def from_flat(cls, values: Mapping[str, KnobValue]) -> Settings:
        """The settings with these knobs, the rest at torch's defaults."""
        return cls().replace(**values)


GROUPS: dict[str, tuple[str, ...]] = {
    "loader": tuple(f.name for f in dataclasses.fields(LoaderSettings)),
    "transfer": tuple(f.name for f in dataclasses.fields(TransferSettings)),
    "compute": tuple(f.name for f in dataclasses.fields(ComputeSettings)),
}
GROUP_OF: dict[str, str] = {name: group for group, names in GROUPS.items() for name in names}
