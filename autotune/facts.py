"""What the machine and the workload are: measured once, then frozen."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

OptimizerFamily = Literal["sgd", "adam", "other"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFacts:
    """One accelerator."""

    index: int
    name: str
    memory_bytes: int
    free_bytes: int | None = None
    driver: str = ""
    capability: tuple[int, ...] = ()
    """CUDA compute capability, such as (9, 0); empty elsewhere."""
    native_bf16: bool = False
    """Whether bfloat16 runs in hardware, emulation not counted."""
    integrated: bool = False
    """Whether it shares the host's memory."""
    other_processes: int | None = None
    """Compute processes on it that are not this one; None where the driver does not tell."""
    power_limit_w: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineFacts:
    """What bounds a run on this machine."""

    system: str
    cpu_name: str
    logical_cpus: int
    usable_cpus: int
    """What affinity and the cgroup quota leave to this process."""
    cpu_quota: float | None
    """CPUs that the cgroup grants; None without a quota."""
    memory_bytes: int
    memory_limit_bytes: int | None
    """The tightest cgroup limit; None without one."""
    memory_available_bytes: int
    shm_free_bytes: int | None
    """Free space of /dev/shm; None where there is none."""
    nofile_soft: int | None
    nofile_hard: int | None
    start_method: str
    """How DataLoader workers start here: fork, forkserver or spawn."""
    python_version: str
    torch_version: str
    cuda_version: str | None = None
    cudnn_version: int | None = None
    cpu_native_bf16: bool = False
    wsl: bool = False
    host_memory_fixed: str = "its allocator was not looked at"
    """Why the allocator of a process cannot be told to keep what is freed; empty where it can."""
    compile_fixed: str = "its compiler was not looked at"
    """Why torch.compile cannot be used; empty where it can."""
    gpus: tuple[GpuFacts, ...] = ()

    def fingerprint(self) -> str:
        """Twelve hex digits, equal for machines on which the same profile is expected to hold."""
        parts = [self.system, self.cpu_name, str(self.usable_cpus), *(g.name for g in self.gpus)]
        return hashlib.sha256("|".join(parts).encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadFacts:
    """What is tuned, as seen by running it once with the user's own settings."""

    model_class: str
    parameters: int
    trainable_parameters: int
    device: str
    """cpu, cuda, cuda:1, xpu, mps ..."""
    loss: str
    """How the loss is had: `cross_entropy (inferred)`, `step`, `train_step`, a function's name ..."""
    batch_samples: int
    """Samples in the user's own step."""
    batch_bytes: int
    """Bytes of one batch of tensors."""
    step_samples: int | None = None
    """Samples in each step of the optimizer, for which gradients of several batches may be gathered; None
    where a step has one batch."""
    dataset_class: str | None = None
    """None for a loop without a DataLoader."""
    dataset_samples: int | None = None
    """Samples that one epoch of *yours* trains on, those that `drop_last` leaves out not counted; None where
    it is unknown."""
    dropped_samples: int | None = None
    """Those that `drop_last` leaves out of it; None where the last batch of an epoch may be a smaller one."""
    iterable: bool = False
    sharded: bool = True
    """For an IterableDataset: whether it divides its samples among workers."""
    batch_size_fixed: str = ""
    """Why the batch size cannot be changed; empty where it can."""
    persistent_fixed: str = ""
    """Why persistent workers would change what is trained on; empty where they do not."""
    workers_fixed: str = ""
    """Why the number of workers cannot be changed; empty where it can."""
    optimizer_class: str | None = None
    optimizer_family: OptimizerFamily = "other"
    fused_available: bool = False
    has_conv2d: bool = False
    image_input: bool = False
    """Whether a 4-D float tensor goes in, so that channels_last can matter."""
    autocast_fixed: str = ""
    """Why autocast cannot be applied from outside; empty where it can."""
    compiled: bool = False
    """Whether the user has compiled the model, or a part of it."""
    leaf_modules: int = 0
    """Modules of the model without any inside: what compiling takes grows with them."""
    deterministic: bool = False
    """Whether the user asked for deterministic algorithms."""
    learning_rates: tuple[float, ...] = ()
    """One for each param group."""
    weight_decays: tuple[float, ...] = ()
    """One for each param group."""
    decoupled_weight_decay: bool = False
    """Whether weight decay shrinks the weights themselves, as AdamW's does, not through the gradient."""
    beta2s: tuple[float | None, ...] = ()
    """Decay of the second moment, one for each param group: Adam's beta2, RMSprop's alpha; None without."""
    batch_norm_momenta: tuple[float, ...] = ()
    """The different momenta of the model's BatchNorm layers."""
    has_attention: bool = False
    first_loss: float | None = None
    step_s: float = 0.0
    """Seconds of one step as first seen, for planning only."""
    setup_s: float = 0.0
    """Seconds to bring up a bench process with this workload."""

    @property
    def has_loader(self) -> bool:
        """Whether a DataLoader feeds the step."""
        return self.dataset_class is not None

    @property
    def accelerated(self) -> bool:
        """Whether steps run on an accelerator."""
        return not self.device.startswith("cpu")

    def fingerprint(self) -> str:
        """Twelve hex digits, equal for the same model, dataset and step."""
        parts = [
            self.model_class,
            str(self.parameters),
            str(self.dataset_class),
            str(self.batch_samples),
            str(self.optimizer_class),
            self.device.split(":")[0],
        ]
        return hashlib.sha256("|".join(parts).encode()).hexdigest()[:12]
