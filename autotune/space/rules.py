"""Which settings go together: one spelling for each behaviour, and why some cannot be drawn."""

from __future__ import annotations

from dataclasses import dataclass

from autotune.facts import GpuFacts, MachineFacts, WorkloadFacts
from autotune.settings import GROUPS, HALF_WIDTH, CompileMode, Precision, Settings
from autotune.units import format_bytes

DEFAULT_PREFETCH = 2
"""What torch's DataLoader takes for `prefetch_factor` when there are workers and none is given."""
MAX_WORKERS = 64
"""More workers than this wait for the one process that collects their batches."""
MEMORY_SHARE = 0.8
"""Part of free memory or /dev/shm that batches in flight may fill; the rest is the step's own."""
WORKER_BYTES = {"fork": 64 << 20}
SPAWNED_WORKER_BYTES = 320 << 20
"""Memory of its own that a worker takes: 11 MiB seen when forked with an empty dataset, 41 MiB after an epoch
of reading Python objects, and 283 MiB where it starts afresh and imports torch."""
WORKER_FILES = 4
"""File descriptors the training process holds for each worker: pipes and the process handle."""
BATCH_FILES = 4
"""Descriptors a batch in flight holds, one for each tensor; four tensors are taken as usual."""
RESERVED_FILES = 128
"""Descriptors left to the user's own files, sockets and the device driver."""
PRECISION_RANK: dict[Precision, int] = {"float32": 0, "tf32": 1, "bfloat16": 2, "float16": 3}
COMPILE_RANK: dict[CompileMode, int] = {"default": 0, "reduce-overhead": 1, "max-autotune": 2}
GRAPH_MODES: tuple[CompileMode, ...] = ("reduce-overhead", "max-autotune")
"""Modes of `torch.compile` that replay a step as one CUDA graph; on a CPU they do what `default` does."""
TF32_CAPABILITY = (8, 0)
COMPILE_CAPABILITY = (7, 0)
"""What Triton makes kernels for."""


def device_type(workload: WorkloadFacts) -> str:
    """`cuda` for `cuda:1`."""
    return workload.device.split(":")[0]


def accelerator(machine: MachineFacts, workload: WorkloadFacts) -> GpuFacts | None:
    """The device that the workload trains on; None on the CPU or where it is not described."""
    if not workload.accelerated:
        return None
    _, _, index = workload.device.partition(":")
    wanted = int(index) if index.isdigit() else 0
    return next((gpu for gpu in machine.gpus if gpu.index == wanted), None)


def can_pin(workload: WorkloadFacts) -> bool:
    """Whether page-locked memory helps: MPS has none, and without a device it is one more copy."""
    return device_type(workload) in ("cuda", "xpu")


def runs_in(precision: Precision, machine: MachineFacts, workload: WorkloadFacts) -> bool:
    """Whether the hardware computes in `precision` without emulating it."""
    gpu, device = accelerator(machine, workload), device_type(workload)
    if precision == "tf32":
        return device == "cuda" and gpu is not None and gpu.capability >= TF32_CAPABILITY
    if precision == "bfloat16":
        return machine.cpu_native_bf16 if device == "cpu" else gpu is not None and gpu.native_bf16
    return precision == "float32" or device == "cuda"


def workers_kept(workload: WorkloadFacts) -> str:
    """Why the number of workers has to stay as it is; empty where it may change."""
    if not workload.has_loader:
        return "there is no DataLoader"
    if workload.iterable and not workload.sharded:
        return (
            "the dataset does not divide its samples among workers: every sample would come once per worker"
        )
    return workload.workers_fixed


def transfer_kept(workload: WorkloadFacts) -> str:
    """Why pinning and background copies do not apply; empty where they do.

    On MPS torch pins nothing, and a background copy may still be reading when the host reuses the memory.
    """
    if not workload.has_loader:
        return "there is no DataLoader"
    return "" if can_pin(workload) else "needs a CUDA or XPU device"


def channels_last_kept(workload: WorkloadFacts) -> str:
    """Why the memory order does not matter; empty where it may."""
    if not workload.has_conv2d:
        return "the model has no 2-D convolution"
    return "" if workload.image_input else "no 4-D tensor goes into the model"


def cudnn_kept(workload: WorkloadFacts) -> str:
    """Why cuDNN's search does not apply; empty where it does."""
    if device_type(workload) != "cuda":
        return "needs a CUDA device"
    if workload.deterministic:
        return "you asked for deterministic algorithms"
    return "" if workload.has_conv2d else "the model has no 2-D convolution"


def host_memory_kept(machine: MachineFacts, workload: WorkloadFacts) -> str:
    """Why the allocator of the process is left as it is; empty where it can be told to keep what is freed."""
    return "the model does not run on the CPU" if workload.accelerated else machine.host_memory_fixed


def compile_kept(machine: MachineFacts, workload: WorkloadFacts) -> str:
    """Why the model is not compiled; empty where it can be."""
    if workload.compiled or machine.compile_fixed:
        return "the model is compiled already" if workload.compiled else machine.compile_fixed
    device, gpu = device_type(workload), accelerator(machine, workload)
    if device not in ("cpu", "cuda"):
        return f"compiling is tried on CPUs and CUDA devices only, not on {device}"
    # None is told of AMD's GPUs.
    if device == "cuda" and (gpu is None or (gpu.capability and gpu.capability < COMPILE_CAPABILITY)):
        return "the GPU is too old for Triton, which makes the kernels"
    return ""


def graphs_kept(workload: WorkloadFacts) -> str:
    """Why steps are not replayed as a CUDA graph; empty where they can be.

    A graph writes to the same memory in every replay: gradients that are still to be added to, and results of
    one model called several times in a step, would be overwritten.
    """
    if device_type(workload) != "cuda":
        return "needs a CUDA device"
    if workload.step_samples is not None:
        return "gradients of several batches are gathered"
    return "train_step may call the model several times" if workload.loss == "train_step" else ""


def canonical(
    settings: Settings, machine: MachineFacts, workload: WorkloadFacts, *, keep_persistent: bool = False
) -> Settings:
    """The one spelling of what `settings` do on this machine; a second time changes nothing.

    Without workers there is nothing to prefetch and nobody to persist; with them the prefetch factor is
    written out. Switches that do nothing here are off. `persistent_workers` is not searched but follows: on
    with workers, which then start once instead of every epoch, unless the workload says that this changes
    what is trained on, or `keep_persistent` asks to leave it as it is: *yours* is spelled that way.
    """
    loader = settings.loader
    if loader.num_workers == 0:
        settings = settings.replace(prefetch_factor=None, persistent_workers=False)
    else:
        leave = keep_persistent or workload.persistent_fixed
        settings = settings.replace(
            prefetch_factor=loader.prefetch_factor or DEFAULT_PREFETCH,
            persistent_workers=loader.persistent_workers if leave else True,
        )
    if not can_pin(workload):
        settings = settings.replace(pin_memory=False)
    if not workload.accelerated:
        settings = settings.replace(non_blocking=False)
    else:
        settings = settings.replace(cpu_threads=None)
    if device_type(workload) != "cuda":
        settings = settings.replace(cudnn_benchmark=False)
        if settings.compute.compile in GRAPH_MODES:
            settings = settings.replace(compile="default")
    if workload.accelerated:
        settings = settings.replace(keep_host_memory=False)
    return settings


def violations(
    settings: Settings, machine: MachineFacts, workload: WorkloadFacts, *, yours: Settings | None = None
) -> tuple[str, ...]:
    """Why these settings cannot be drawn, a clause for each reason; empty for legal ones.

    What *yours* already does is known to run, so it is not held against others: neither a switch that is set
    as in `yours` nor a need for memory or files that is no greater.
    """
    return (
        *_loader_violations(settings, workload, yours),
        *_resource_violations(settings, machine, workload, yours),
        *_transfer_violations(settings, workload, yours),
        *_compute_violations(settings, machine, workload, yours),
    )


def _loader_violations(settings: Settings, workload: WorkloadFacts, yours: Settings | None) -> list[str]:
    loader, found = settings.loader, []
    if loader.num_workers == 0 and loader.prefetch_factor is not None:
        found.append("prefetch_factor needs workers")
    if loader.num_workers == 0 and loader.persistent_workers:
        found.append("persistent_workers needs workers")
    known_workers = yours.loader.num_workers if yours else 0
    if loader.num_workers != known_workers and (kept := workers_kept(workload)):
        found.append(f"num_workers cannot change: {kept}")
    if yours is None:
        return found
    if loader.persistent_workers and not yours.loader.persistent_workers and workload.persistent_fixed:
        found.append(f"persistent_workers cannot be switched on: {workload.persistent_fixed}")
    if loader.batch_size != yours.loader.batch_size and (kept := batch_size_kept(workload, yours)):
        found.append(f"batch_size cannot change: {kept}")
    return found


def batch_size_kept(workload: WorkloadFacts, yours: Settings) -> str:
    """Why the batch size has to stay as it is; empty where it may change."""
    if not workload.has_loader:
        return "there is no DataLoader"
    if workload.batch_size_fixed:
        return workload.batch_size_fixed
    return "the dataset or its sampler makes the batches" if yours.loader.batch_size is None else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Needs:
    """What the loader takes from the machine."""

    shm_bytes: int
    host_bytes: int
    files: int
    workers: int
    batch: int


def _needs(settings: Settings, machine: MachineFacts, workload: WorkloadFacts) -> _Needs:
    loader = settings.loader
    per_sample = workload.batch_bytes / max(1, workload.batch_samples)
    batch_bytes = per_sample * loader.batch_size if loader.batch_size else workload.batch_bytes
    # The loop holds one batch while the workers keep their queue full.
    in_flight = loader.num_workers * (loader.prefetch_factor or DEFAULT_PREFETCH) + 1
    shared = int(in_flight * batch_bytes) if loader.num_workers else 0
    pinned = shared if loader.pin_memory else 0
    own = WORKER_BYTES.get(machine.start_method, SPAWNED_WORKER_BYTES)
    return _Needs(
        shm_bytes=shared,
        host_bytes=shared + pinned + loader.num_workers * own,
        files=loader.num_workers * WORKER_FILES + in_flight * BATCH_FILES if loader.num_workers else 0,
        workers=loader.num_workers,
        batch=loader.batch_size or 0,
    )


def _resource_violations(
    settings: Settings, machine: MachineFacts, workload: WorkloadFacts, yours: Settings | None
) -> list[str]:
    need = _needs(settings, machine, workload)
    known = _needs(yours or Settings(), machine, workload)
    found = []
    if need.workers > max(MAX_WORKERS, known.workers):
        found.append(f"{need.workers} workers are more than {MAX_WORKERS}")
    shm = machine.shm_free_bytes
    if shm is not None and need.shm_bytes > max(MEMORY_SHARE * shm, known.shm_bytes):
        found.append(
            f"batches in flight need {format_bytes(need.shm_bytes)} of {format_bytes(shm)} in /dev/shm"
        )
    memory = min(machine.memory_available_bytes, machine.memory_limit_bytes or machine.memory_available_bytes)
    if need.host_bytes > max(MEMORY_SHARE * memory, known.host_bytes):
        found.append(
            f"workers and batches need {format_bytes(need.host_bytes)} of {format_bytes(memory)} of memory"
        )
    files = machine.nofile_soft
    if files is not None and files >= 0 and need.files > max(files - RESERVED_FILES, known.files):
        found.append(f"workers need about {need.files} file descriptors, of {files} allowed")
    if need.batch > max(workload.dataset_samples or need.batch, known.batch):
        found.append(f"batch_size {need.batch} is more than the dataset's {workload.dataset_samples} samples")
    return found


def _transfer_violations(settings: Settings, workload: WorkloadFacts, yours: Settings | None) -> list[str]:
    kept = transfer_kept(workload)
    if not kept:
        return []
    found = []
    if settings.loader.pin_memory and not (yours and yours.loader.pin_memory):
        found.append(f"pin_memory does not apply: {kept}")
    if settings.transfer.non_blocking and not (yours and yours.transfer.non_blocking):
        found.append(f"non_blocking does not apply: {kept}")
    return found


def _compute_violations(
    settings: Settings, machine: MachineFacts, workload: WorkloadFacts, yours: Settings | None
) -> list[str]:
    wanted, known = settings.compute, yours.compute if yours else None
    found = []
    if wanted.precision != (known.precision if known else "float32"):
        found += _precision_violations(wanted.precision, machine, workload)
    if wanted.cudnn_benchmark and not (known and known.cudnn_benchmark) and (why := cudnn_kept(workload)):
        found.append(f"cudnn_benchmark does not apply: {why}")
    if wanted.channels_last and not (known and known.channels_last) and (why := channels_last_kept(workload)):
        found.append(f"channels_last does not apply: {why}")
    if wanted.fused_optimizer and not workload.fused_available and not (known and known.fused_optimizer):
        found.append("fused_optimizer: this optimizer has no fused kernel here")
    if wanted.cpu_threads is not None and wanted.cpu_threads != (known.cpu_threads if known else None):
        found += _thread_violations(wanted.cpu_threads, machine, workload)
    newly_kept = wanted.keep_host_memory and not (known and known.keep_host_memory)
    if newly_kept and (why := host_memory_kept(machine, workload)):
        found.append(f"keep_host_memory does not apply: {why}")
    if wanted.compile is not None and wanted.compile != (known.compile if known else None):
        found += _compile_violations(wanted.compile, machine, workload)
    return found


def _compile_violations(mode: CompileMode, machine: MachineFacts, workload: WorkloadFacts) -> list[str]:
    if why := compile_kept(machine, workload):
        return [f"compile does not apply: {why}"]
    why = graphs_kept(workload) if mode in GRAPH_MODES else ""
    return [f"compile cannot be {mode}: {why}"] if why else []


def _precision_violations(precision: Precision, machine: MachineFacts, workload: WorkloadFacts) -> list[str]:
    found = []
    if precision in HALF_WIDTH and workload.autocast_fixed:
        found.append(f"precision cannot be {precision}: {workload.autocast_fixed}")
    if not runs_in(precision, machine, workload):
        found.append(f"{workload.device} does not compute in {precision}")
    return found


def _thread_violations(threads: int, machine: MachineFacts, workload: WorkloadFacts) -> list[str]:
    if workload.accelerated:
        return ["cpu_threads needs a model that runs on the CPU"]
    if threads > machine.usable_cpus:
        return [f"{threads} threads are more than the {machine.usable_cpus} usable CPUs"]
    return []


def needs_own_process(before: Settings, after: Settings) -> bool:
    """Whether the step of `after` cannot be measured in a process that has run the step of `before`.

    A process keeps cuDNN's plan for a shape, whether it was searched for or guessed: switching the search on
    or off later changes nothing (seen on torch 2.11). And an allocator that was told to keep memory does so
    for good.
    """
    switched = before.compute.cudnn_benchmark != after.compute.cudnn_benchmark
    return switched or (before.compute.keep_host_memory and not after.compute.keep_host_memory)


def simplicity(settings: Settings) -> tuple[int, ...]:
    """A sort key for ties: smaller is simpler and cheaper, equal only for equal settings.

    In this order: a smaller batch (it changes learning least), plain rounding, nothing compiled, fewer
    compute switches, fewer workers, fewer batches ahead, no pinning, no background copy.
    """
    flat, loader, compute = settings.flat(), settings.loader, settings.compute
    plain = Settings().compute
    rounding = [name for name in GROUPS["compute"] if name != "keep_host_memory"]  # which changes no number
    switched = sum(getattr(compute, name) != getattr(plain, name) for name in rounding)
    return (
        loader.batch_size or 0,
        int(switched > 0),
        0 if compute.compile is None else 1 + COMPILE_RANK[compute.compile],
        PRECISION_RANK[compute.precision],
        switched,
        loader.num_workers,
        loader.prefetch_factor or 0,
        int(loader.pin_memory),
        int(settings.transfer.non_blocking),
        int(loader.persistent_workers),
        *(
            int(flat[name] or 0)
            for name in (
                "cpu_threads",
                "channels_last",
                "cudnn_benchmark",
                "fused_optimizer",
                "keep_host_memory",
            )
        ),
    )
