"""The noise scale of one training, as looks at one point of it and over a stretch of it find it.

    python benchmarks/noise_places.py [mnist-sgd mnist-adamw photos-sgd] --seeds 24 --out noise-places.json.gz

Every seed draws weights and data anew and looks at its gradients twice with the product's own probe: all 32
steps of 4 micro-batches after 200 steps of training, and the same number spread over steps 107 to 200. What
a tuner that runs once would say is one of these figures; the truth that it stands for is that of all seeds
together. Prints how far the figures spread, how many intervals hold that truth, and how many lower bounds
are under it. Data: the folder named by AUTOTUNE_DATA.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from accuracy_runs import Job, task_of
from raw_file import RawFile, fill, identity
from torch.nn.functional import cross_entropy

from autotune import Workload
from autotune.codec import decode, encode
from autotune.measure.inprocess import InProcessRunner
from autotune.measure.seam import GradientSpec
from autotune.outcome import NoiseScale
from autotune.recipe.noise_scale import GradientStats, noise_scale

TRAINED, STEPS, APART = 200, 32, 3
WAYS = {
    "at one point": {"warm_steps": TRAINED},
    "over a stretch": {"warm_steps": TRAINED - APART * (STEPS - 1), "apart": APART},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is trained."""

    data: str
    batch_size: int
    lr: float
    optimizer: str


CASES = {
    "mnist-sgd": Case(data="mnist", batch_size=16, lr=0.0125, optimizer="sgd"),
    "mnist-adamw": Case(data="mnist", batch_size=16, lr=0.001, optimizer="adamw"),
    "photos-sgd": Case(data="photos", batch_size=8, lr=0.0025, optimizer="sgd"),
}


def look(case: Case, seed: int, way: str) -> Any:
    """What the probe gives for one seed, as JSON."""
    job = Job(
        data=case.data,
        seed=seed,
        profile="",
        batch_size=case.batch_size,
        epochs=1,
        most_epochs=1,
        target=100.0,
        every=1000,
        samples=None,
        crop=64,
        device="cpu",
        lr=case.lr,
    )
    torch.set_num_threads(1)  # beside another process a second thread costs more than it brings
    task = task_of(job)
    torch.manual_seed(seed)
    adamw = partial(torch.optim.AdamW, lr=case.lr)
    runner = InProcessRunner(
        Workload(
            task.model(),
            task.train,
            loss=cross_entropy,
            optimizer=adamw if case.optimizer == "adamw" else task.optimizer,
            batch_size=case.batch_size,
            device="cpu",
        )
    )
    yours = runner.describe().yours
    spec = GradientSpec(settings=yours, steps=STEPS, seed=seed, window_s=600.0, timeout_s=900.0, **WAYS[way])
    return encode(runner.probe_gradients(spec))


def truth_of(looks: Sequence[GradientStats]) -> float:
    """The noise scale of all seeds' sums together."""
    together = tuple(step for stats in looks for step in stats.steps)
    first = looks[0]
    found = noise_scale(
        GradientStats(micro_samples=first.micro_samples, micro_batches=first.micro_batches, steps=together)
    )
    value = None if found is None else found.value
    assert value is not None, "thousands of micro-batches show a gradient"
    return value


def line(name: str, way: str, looks: Sequence[GradientStats]) -> str:
    """A line of the table."""
    found = [one for stats in looks if (one := noise_scale(stats)) is not None]
    truth = truth_of(looks)
    values = sorted(one.value or float("inf") for one in found)
    inside = sum(_holds(one, truth) for one in found)
    under = sum(one.lower_bound <= truth for one in found)
    bounds = sorted(one.lower_bound for one in found)
    return (
        f"{name:12} {way:15} all {truth:5.0f}  "
        f"one {median(values):5.0f} ({values[0]:.0f} to {values[-1]:.0f})  "
        f"bounds {median(bounds):.0f} ({bounds[0]:.0f} to {bounds[-1]:.0f})  "
        f"inside {inside} of {len(found)}, bound under {under}"
    )


def _holds(one: NoiseScale, truth: float) -> bool:
    return one.low <= truth and (one.high is None or truth <= one.high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("cases", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--seeds", type=int, default=24)
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time; no figure here is a time")
    parser.add_argument("--out", type=Path, default=Path("noise-places.json.gz"), help="raw data")
    args = parser.parse_args()
    raw = RawFile(args.out, identity("noise_places", trained=TRAINED, steps=STEPS, apart=APART))
    work = {
        f"{name}/{way}/{seed}": partial(look, CASES[name], seed, way)
        for name in args.cases
        for seed in range(args.seeds)
        for way in WAYS
    }
    fill(raw, work, jobs=args.jobs)
    for name in args.cases:
        for way in WAYS:
            keys = [f"{name}/{way}/{seed}" for seed in range(args.seeds)]
            print(line(name, way, [decode(GradientStats, raw.values[key]) for key in keys]))


if __name__ == "__main__":
    main()
