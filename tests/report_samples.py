"""Finished runs with chosen rates, for tests of what is shown of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from autotune.facts import GpuFacts, MachineFacts, WorkloadFacts
from autotune.outcome import Interval, Kept, Outcome, Verdict, Worth
from autotune.recipe.scaling import scale_recipe
from autotune.settings import Settings
from autotune.trial import Block, Failure, Measurement, Mode, Stage, Trial, TrialSpec

GIB = 2**30

MACHINE = MachineFacts(
    system="Linux",
    cpu_name="AMD EPYC 7763",
    logical_cpus=32,
    usable_cpus=16,
    cpu_quota=16.0,
    memory_bytes=128 * GIB,
    memory_limit_bytes=None,
    memory_available_bytes=100 * GIB,
    shm_free_bytes=64 * GIB,
    nofile_soft=1024,
    nofile_hard=4096,
    start_method="fork",
    python_version="3.11.7",
    torch_version="2.14.1+cu130",
    cuda_version="13.0",
    gpus=(GpuFacts(index=0, name="NVIDIA RTX 4090", memory_bytes=24 * GIB, native_bf16=True),),
)
WORKLOAD = WorkloadFacts(
    model_class="ResNet",
    parameters=11_000_000,
    trainable_parameters=11_000_000,
    device="cuda",
    loss="cross_entropy (inferred)",
    batch_samples=64,
    batch_bytes=38_535_168,
    dataset_class="ImageFolder",
    dataset_samples=50_000,
    optimizer_class="SGD",
    optimizer_family="sgd",
)
YOURS = Settings.from_flat({"batch_size": 64})
WINNER = YOURS.replace(
    num_workers=8,
    prefetch_factor=2,
    persistent_workers=True,
    pin_memory=True,
    non_blocking=True,
    precision="bfloat16",
)


def measured(rate: float, *, wait: float = 0.0, peak: float = 9.1 * GIB, **changes: Any) -> Measurement:
    """Four blocks of one second at `rate` samples/s, `wait` of it spent waiting for the loader."""
    block = Block(steps=10, samples=round(rate), elapsed_s=1.0, wait_s=wait)
    return Measurement(
        blocks=(block,) * 4,
        **{"peak_device_bytes": round(peak), "peak_host_bytes": 3 * GIB, "wall_s": 6.0, **changes},
    )


def trial(
    number: int,
    settings: Settings,
    result: Measurement | Failure,
    *,
    stage: Stage = "joint",
    mode: Mode = "full",
    pair: int | None = None,
    reason: str = "",
) -> Trial:
    """A trial that gave `result`."""
    spec = TrialSpec(settings=settings, stage=stage, mode=mode, pair=pair, reason=reason)
    if isinstance(result, Failure):
        return Trial(number=number, spec=spec, failure=result)
    return Trial(number=number, spec=spec, measurement=result)


def finals(
    start: int, yours: Settings, other: Settings, rates: tuple[float, float], pairs: int = 5
) -> tuple[Trial, ...]:
    """Pairs of *yours* and `other` at these rates."""
    found = []
    for pair in range(pairs):
        found.append(trial(start + 2 * pair, yours, measured(rates[0], wait=0.61), stage="final", pair=pair))
        fast = measured(rates[1], wait=0.04, peak=7.9 * GIB)
        found.append(trial(start + 2 * pair + 1, other, fast, stage="final", pair=pair))
    return tuple(found)


OUT_OF_MEMORY = Failure(
    kind="oom_device",
    message="CUDA ran out of memory at batch size 512.",
    hint="use a smaller batch",
)
SEARCH = (
    trial(0, YOURS, measured(415, wait=0.61), stage="yours"),
    trial(1, YOURS, measured(420), stage="ceiling", mode="loader"),
    trial(2, YOURS, measured(1_070), stage="ceiling", mode="compute"),
    trial(3, WINNER, measured(803, wait=0.03)),
)
WORTH = (
    Worth(knob="num_workers", yours=0, best=8, ratio=Interval(value=1.49, low=1.44, high=1.54)),
    Worth(knob="pin_memory", yours=False, best=True, ratio=Interval(value=1.04, low=0.99, high=1.09)),
    Worth(knob="non_blocking", yours=False, best=True),
    Worth(
        knob="precision", yours="float32", best="bfloat16", ratio=Interval(value=1.21, low=1.18, high=1.25)
    ),
)
KEPT = (
    Kept(knob="batch_size", value=64, why="it changes learning; allow=recipe searches it"),
    Kept(knob="channels_last", value=False, why="the user's own fixed="),
    Kept(knob="cudnn_benchmark", value=False, why="the user's own fixed="),
)


def won(**changes: Any) -> Outcome:
    """A win with everything a report can show."""
    outcome = Outcome(
        machine=MACHINE,
        workload=WORKLOAD,
        name="photos",
        yours=YOURS,
        verdict=Verdict(
            kind="faster",
            winner=WINNER,
            ratio=Interval(value=791 / 412, low=1.88, high=1.96),
            pairs=5,
            sentence="1.92x yours (95 %: 1.88 to 1.96), confirmed in 5 fresh pairs",
        ),
        worth=WORTH,
        kept=KEPT,
        trials=SEARCH + finals(4, YOURS, WINNER, (412, 791)),
        stop_reason="six sampled trials brought no gain",
        elapsed_s=521.0,
        budget_s=600.0,
        study="/data/studies/photos.journal",
    )
    return replace(outcome, **changes)


def kept(**changes: Any) -> Outcome:
    """A run in which nothing beat *yours*."""
    tried = YOURS.replace(num_workers=2, prefetch_factor=2, persistent_workers=True)
    verdict = Verdict(
        kind="kept",
        winner=YOURS,
        ratio=Interval(value=640 / 638, low=0.981, high=1.022),
        pairs=5,
        sentence="yours stays: the best candidate was within noise (1.00x, 95 %: 0.98 to 1.02, 5 pairs)",
    )
    return won(
        **{
            "verdict": verdict,
            "worth": (),
            "trials": SEARCH[:3] + finals(3, YOURS, tried, (638, 640)),
            "stop_reason": "the space is exhausted",
            **changes,
        }
    )


def unsure() -> Outcome:
    """A run whose finals were too noisy."""
    verdict = Verdict(
        kind="unsure",
        winner=YOURS,
        ratio=Interval(value=700 / 638, low=0.91, high=1.32),
        pairs=3,
        sentence="yours stays: 3 pairs are too few to tell (1.10x, 95 %: 0.91 to 1.32, 3 pairs)",
    )
    return won(
        verdict=verdict,
        worth=(),
        trials=SEARCH + finals(4, YOURS, WINNER, (638, 700), pairs=3),
        stop_reason="the budget is used up",
        notes=("Other processes kept 3 CPUs busy for most of the run.",),
    )


def interrupted() -> Outcome:
    """A run that Ctrl-C ended before the finals."""
    verdict = Verdict(kind="incomplete", winner=WINNER)
    return won(verdict=verdict, worth=(), trials=SEARCH, stop_reason="interrupted", elapsed_s=31.0)


def without_loader() -> Outcome:
    """A loop without a DataLoader, on a CPU."""
    yours = Settings()
    winner = yours.replace(cpu_threads=1, fused_optimizer=True)
    workload = replace(
        WORKLOAD, device="cpu", model_class="CharTransformer", dataset_class=None, dataset_samples=None
    )
    return won(
        name="",
        machine=replace(MACHINE, gpus=(), cuda_version=None, logical_cpus=2, usable_cpus=2),
        workload=workload,
        yours=yours,
        verdict=Verdict(
            kind="faster",
            winner=winner,
            ratio=Interval(value=1.05, low=1.003, high=1.097),
            pairs=5,
            sentence="1.050x yours (95 %: 1.003 to 1.097), confirmed in 5 fresh pairs",
        ),
        worth=(
            Worth(knob="cpu_threads", yours=None, best=1, ratio=Interval(value=1.05, low=1.01, high=1.09)),
        ),
        kept=(Kept(knob="num_workers", value=0, why="there is no DataLoader"),),
        trials=(trial(0, yours, measured(100), stage="yours"), *finals(1, yours, winner, (100, 105))),
        study="",
    )


def failing() -> Outcome:
    """A win on the way to which trials failed, with a batch size and so a recipe of its own."""
    big = WINNER.replace(batch_size=128)
    crash = Failure(
        kind="worker_crash",
        message="A DataLoader worker was killed by signal 11 while it loaded sample 17.",
        hint="load that sample alone to see why",
        traceback="Traceback (most recent call last):\n  ...\nRuntimeError: bad jpeg",
        sample_index=17,
    )
    worth = (
        *WORTH,
        Worth(knob="batch_size", yours=64, best=128, ratio=Interval(value=1.08, low=1.05, high=1.11)),
    )
    failed = (
        trial(4, WINNER.replace(batch_size=512), OUT_OF_MEMORY),
        trial(5, WINNER.replace(batch_size=1024), OUT_OF_MEMORY),
        trial(6, WINNER.replace(num_workers=16), crash),
    )
    return won(
        verdict=replace(won().verdict, winner=big),
        worth=worth,
        kept=(),
        epochs=10,
        trials=SEARCH + failed + finals(7, YOURS, big, (412, 791)),
        recipe=scale_recipe(
            replace(
                WORKLOAD,
                learning_rates=(0.1, 0.01),
                weight_decays=(5e-4, 5e-4),
                batch_norm_momenta=(0.1,),
            ),
            128,
            64,
            epochs=10,
        ),
    )
