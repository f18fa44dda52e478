"""Hypothesis strategies for machines, workloads and settings, as random as real ones can be."""

from __future__ import annotations

import dataclasses

import hypothesis
from hypothesis import strategies as st

from autotune.facts import GpuFacts, MachineFacts, WorkloadFacts
from autotune.settings import ComputeSettings, LoaderSettings, Settings, TransferSettings
from autotune.space.rules import COMPILE_RANK, canonical

# How long an example takes says more about who else is on the machine than about the code.
hypothesis.settings.register_profile(
    "shared", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("shared")

MIB = 1 << 20
GIB = 1 << 30
REASONS = st.sampled_from(("", "", "", "the loader says so"))
PRECISIONS = st.sampled_from(("float32", "tf32", "bfloat16", "float16"))


def plain_machine(**changes: object) -> MachineFacts:
    """A machine with eight CPUs, plenty of everything and no accelerator."""
    plain = MachineFacts(
        system="Linux",
        cpu_name="A CPU",
        logical_cpus=8,
        usable_cpus=8,
        cpu_quota=None,
        memory_bytes=64 * GIB,
        memory_limit_bytes=None,
        memory_available_bytes=48 * GIB,
        shm_free_bytes=32 * GIB,
        nofile_soft=65536,
        nofile_hard=65536,
        start_method="fork",
        python_version="3.11.9",
        torch_version="2.14.1",
    )
    return dataclasses.replace(plain, **changes)


def plain_gpu(**changes: object) -> GpuFacts:
    """A CUDA device with every precision."""
    plain = GpuFacts(index=0, name="A GPU", memory_bytes=80 * GIB, capability=(9, 0), native_bf16=True)
    return dataclasses.replace(plain, **changes)


def plain_workload(**changes: object) -> WorkloadFacts:
    """A convolutional network on images with SGD, on the CPU; nothing is fixed."""
    plain = WorkloadFacts(
        model_class="Net",
        parameters=1000,
        trainable_parameters=1000,
        device="cpu",
        loss="cross_entropy (inferred)",
        batch_samples=32,
        batch_bytes=MIB,
        dataset_class="Photos",
        dataset_samples=50_000,
        optimizer_class="SGD",
        optimizer_family="sgd",
        fused_available=True,
        has_conv2d=True,
        image_input=True,
        learning_rates=(0.1,),
    )
    return dataclasses.replace(plain, **changes)


@st.composite
def settings(draw: st.DrawFn) -> Settings:
    """Settings that torch accepts, on whatever machine."""
    workers = draw(st.integers(0, 20))
    return Settings(
        loader=LoaderSettings(
            batch_size=draw(st.none() | st.integers(1, 512)),
            num_workers=workers,
            prefetch_factor=draw(st.integers(1, 16)) if workers else None,
            persistent_workers=bool(workers) and draw(st.booleans()),
            pin_memory=draw(st.booleans()),
        ),
        transfer=TransferSettings(non_blocking=draw(st.booleans())),
        compute=ComputeSettings(
            precision=draw(PRECISIONS),
            cudnn_benchmark=draw(st.booleans()),
            channels_last=draw(st.booleans()),
            fused_optimizer=draw(st.booleans()),
            cpu_threads=draw(st.none() | st.integers(1, 16)),
            keep_host_memory=draw(st.booleans()),
            compile=draw(st.sampled_from((None, *COMPILE_RANK))),
        ),
    )


@st.composite
def machines(draw: st.DrawFn) -> MachineFacts:
    """Machines from a starved container to a large server, with zero to two accelerators."""
    memory = draw(st.sampled_from((1, 4, 64, 512))) * GIB
    gpus = tuple(
        plain_gpu(
            index=index,
            capability=draw(st.sampled_from(((), (7, 5), (8, 0), (9, 0)))),
            native_bf16=draw(st.booleans()),
        )
        for index in range(draw(st.integers(0, 2)))
    )
    return plain_machine(
        logical_cpus=256,
        usable_cpus=draw(st.integers(1, 8) | st.sampled_from((16, 30, 64, 128))),
        memory_bytes=memory,
        memory_available_bytes=draw(st.integers(memory // 8, memory)),
        memory_limit_bytes=draw(st.none() | st.integers(memory // 8, memory)),
        shm_free_bytes=draw(st.none() | st.sampled_from((0, 64 * MIB, GIB, 64 * GIB))),
        nofile_soft=draw(st.none() | st.sampled_from((-1, 256, 1024, 65536))),
        start_method=draw(st.sampled_from(("fork", "forkserver", "spawn"))),
        cpu_native_bf16=draw(st.booleans()),
        host_memory_fixed=draw(st.sampled_from(("", "needs glibc's allocator"))),
        compile_fixed=draw(st.sampled_from(("", "no C++ compiler"))),
        gpus=gpus,
    )


@st.composite
def workloads(
    draw: st.DrawFn, devices: tuple[str, ...] = ("cpu", "cuda", "cuda:1", "xpu", "mps")
) -> WorkloadFacts:
    """Workloads of every shape that the facts can tell, on one of `devices`."""
    loaded = draw(st.booleans() | st.just(True))
    iterable = loaded and draw(st.booleans())
    return plain_workload(
        device=draw(st.sampled_from(devices)),
        batch_samples=draw(st.integers(1, 512)),
        batch_bytes=draw(st.sampled_from((1000, MIB, 30 * MIB, 300 * MIB))),
        dataset_class="Photos" if loaded else None,
        dataset_samples=draw(st.none() | st.integers(1, 2_000_000)) if loaded else None,
        iterable=iterable,
        sharded=not iterable or draw(st.booleans()),
        batch_size_fixed=draw(REASONS),
        persistent_fixed=draw(REASONS),
        workers_fixed=draw(REASONS),
        autocast_fixed=draw(REASONS),
        optimizer_family=draw(st.sampled_from(("sgd", "adam", "other"))),
        fused_available=draw(st.booleans()),
        has_conv2d=draw(st.booleans()),
        image_input=draw(st.booleans()),
        deterministic=draw(st.booleans()),
        compiled=draw(st.booleans()),
        step_samples=draw(st.none() | st.integers(1, 512)),
        learning_rates=tuple(draw(st.lists(st.floats(1e-6, 10), max_size=3))),
    )


@st.composite
def situations(draw: st.DrawFn) -> tuple[MachineFacts, WorkloadFacts, Settings]:
    """A machine, a workload on it, and what its user runs, which may be more than we would dare to try."""
    machine = draw(machines())
    devices = ("cpu", "mps", *(("cuda", "xpu") if machine.gpus else ()))
    workload = draw(workloads(devices=(*devices, "cuda:1") if len(machine.gpus) > 1 else devices))
    yours = draw(settings())
    if not workload.has_loader:
        yours = dataclasses.replace(yours, loader=LoaderSettings(), transfer=TransferSettings())
    return machine, workload, canonical(yours, machine, workload, keep_persistent=True)
