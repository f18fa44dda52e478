"""A profile with something in every field, and the run it comes from."""

from __future__ import annotations

from autotune.facts import GpuFacts, MachineFacts, WorkloadFacts
from autotune.outcome import (
    BatchChoice,
    BatchRow,
    Interval,
    Kept,
    NoiseScale,
    Outcome,
    Recipe,
    Verdict,
    Worth,
)
from autotune.profile.schema import Profile, profile_of
from autotune.settings import Settings
from autotune.trial import Block, Failure, Measurement, Stage, Trial, TrialSpec

YOURS = Settings.from_flat({"batch_size": 64})
BEST = YOURS.replace(
    num_workers=8, prefetch_factor=4, persistent_workers=True, pin_memory=True, precision="bfloat16"
)
GIB = 2**30

MACHINE = MachineFacts(
    system="Linux",
    cpu_name="AMD Ryzen 9 7950X",
    logical_cpus=32,
    usable_cpus=16,
    cpu_quota=16.0,
    memory_bytes=128 * GIB,
    memory_limit_bytes=64 * GIB,
    memory_available_bytes=40 * GIB,
    shm_free_bytes=8 * GIB,
    nofile_soft=1024,
    nofile_hard=4096,
    start_method="fork",
    python_version="3.11.7",
    torch_version="2.14.1+cu126",
    cuda_version="12.6",
    gpus=(
        GpuFacts(index=0, name="NVIDIA GeForce RTX 4090", memory_bytes=24 * GIB, driver="560.35.03"),
        GpuFacts(index=1, name="NVIDIA T4", memory_bytes=16 * GIB, driver="560.35.03"),
    ),
)
WORKLOAD = WorkloadFacts(
    model_class="ResNet",
    parameters=25_557_032,
    trainable_parameters=25_557_032,
    device="cuda:0",
    loss="cross_entropy (inferred)",
    batch_samples=64,
    batch_bytes=64 * 3 * 224 * 224 * 4,
    dataset_class="ImageFolder",
    dataset_samples=100_000,
    optimizer_class="SGD",
)


def measurement(
    samples_per_s: float, *, wait_share: float = 0.0, peak_device_bytes: int | None = None
) -> Measurement:
    """Four blocks of one second."""
    block = Block(steps=10, samples=int(samples_per_s), elapsed_s=1.0, wait_s=wait_share)
    return Measurement(
        blocks=(block,) * 4, peak_device_bytes=peak_device_bytes, peak_host_bytes=3 * GIB, wall_s=6.0
    )


def trial(
    number: int,
    settings: Settings,
    stage: Stage,
    outcome: Measurement | Failure,
    pair: int | None = None,
) -> Trial:
    """A trial of these settings that came out so."""
    spec = TrialSpec(settings=settings, stage=stage, pair=pair)
    if isinstance(outcome, Failure):
        return Trial(number=number, spec=spec, failure=outcome)
    return Trial(number=number, spec=spec, measurement=outcome)


def _trials() -> tuple[Trial, ...]:
    oom = Failure(kind="oom_device", message="out of memory", hint="use a smaller batch")
    search = [
        trial(0, YOURS, "yours", measurement(500)),
        trial(1, BEST, "joint", measurement(9000, peak_device_bytes=20 * GIB)),
        trial(2, BEST.replace(precision="float32"), "joint", oom),
    ]
    finals = []
    for pair, (slow, fast) in enumerate([(400, 800), (412, 791), (420, 780)]):
        first = measurement(slow, wait_share=0.61, peak_device_bytes=9 * GIB)
        second = measurement(fast, wait_share=0.02, peak_device_bytes=8 * GIB)
        finals += [
            trial(3 + 2 * pair, YOURS, "final", first, pair),
            trial(4 + 2 * pair, BEST, "final", second, pair),
        ]
    return (*search, *finals)


def interval(value: float, low: float, high: float) -> Interval:
    """At 95 %."""
    return Interval(value=value, low=low, high=high)


NOISE = NoiseScale(
    value=81.23456789,
    low=60.5,
    high=104.25,
    lower_bound=64.0,
    micro_samples=64,
    micro_batches=4,
    steps=32,
    skipped=1,
    at="after 100 warm steps",
)
BATCHES = BatchChoice(
    rows=(
        BatchRow(
            batch_size=64,
            samples_per_s=interval(790.0, 780.0, 800.0),
            peak_bytes=8 * GIB,
            efficiency=1.0,
            goodput=790.0,
            epochs_to_match=1.0,
            samples_to_match=100_000,
            steps=1563,
        ),
        BatchRow(
            batch_size=128,
            samples_per_s=interval(900.0, 890.0, 911.1111111),
            peak_bytes=15 * GIB,
            efficiency=2 / 3,
            goodput=600.0,
            epochs_to_match=1.5,
            samples_to_match=150_000,
            steps=782,
            caps=("in batches of 128 a sample teaches too little",),
        ),
    ),
    reference=64,
    recommended=64,
    max_throughput=128,
    objective="goodput",
    gain=1.0,
    verified=True,
    limited_by=(),
)

OUTCOME = Outcome(
    machine=MACHINE,
    workload=WORKLOAD,
    name="resnet50 on photos",
    yours=YOURS,
    verdict=Verdict(
        kind="faster",
        winner=BEST,
        ratio=interval(1.9234567, 1.881, 1.962),
        pairs=3,
        sentence="1.92x yours (95 %: 1.88 to 1.96), confirmed in 3 fresh pairs",
    ),
    worth=(
        Worth(knob="num_workers", yours=0, best=8, ratio=interval(1.49, 1.44, 1.54)),
        Worth(knob="pin_memory", yours=False, best=True, ratio=interval(1.02, 0.994, 1.05)),
        Worth(knob="precision", yours="float32", best="bfloat16"),
    ),
    kept=(Kept(knob="cpu_threads", value=None, why="steps run on a GPU"),),
    trials=_trials(),
    recipe=Recipe(
        batch_size=64,
        reference_batch_size=64,
        learning_rates=(0.1, 0.00001),
        reference_learning_rates=(0.1, 0.00001),
        lr_rule="unchanged",
    ),
    batch=BATCHES,
    noise=NOISE,
    stop_reason="nothing left to try",
    notes=("no", "GPU clock fell 9 % during trials 1-2"),
    elapsed_s=281.4567891,
    budget_s=300.0,
)


def sample_profile() -> Profile:
    """The profile of `OUTCOME`."""
    return profile_of(OUTCOME, created="2026-11-23T10:00:00+00:00", version="0.1.0")
