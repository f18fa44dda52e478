"""Which learning rate suits the user's batch: a plain loop with torch's defaults at each of several.

    python benchmarks/learning_rates.py --data photos --batch-size 32 --rates 0.005 0.01 0.02 0.04

What a larger batch is worth can be told only beside a batch whose own rate is right, so this comes before
`time_to_accuracy.py --lr`. Prints for each rate the mean accuracy of the last looks at the test set and the
samples until their mean came to `--target`; no figure is a time. Data: the folder named by AUTOTUNE_DATA.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean, median

from accuracy_runs import Job, Mark, averaged, first_at, run_fresh, runs_file
from raw_file import fill

from autotune.codec import decode

NEVER = 200.0
"""Percent that no run reaches, so that all go on to their end."""


def line(rate: float, runs: Sequence[Sequence[Mark]], target: float) -> str:
    """A line of the table; `runs` hold averaged marks."""
    ends = [marks[-1].accuracy for marks in runs]
    found = [first_at(marks, target) for marks in runs]
    samples = [math.inf if mark is None else mark.samples for mark in found]
    reached = " ".join(map(told, samples))
    return (
        f"{rate:<8g} {fmean(ends):6.2f} ({min(ends):.2f} to {max(ends):.2f})   "
        f"{told(median(samples))} samples to {target:g} % ({reached})"
    )


def told(samples: float) -> str:
    """Such as `7,440`; a target that was not reached is `never`."""
    return "never" if samples == math.inf else f"{samples:,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", choices=("mnist", "photos"), default="photos")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rates", type=float, nargs="+", required=True)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--samples", type=int, default=2000, help="of an epoch")
    parser.add_argument("--every", type=int, default=400, help="samples between two looks at the test set")
    parser.add_argument("--mean-of", type=int, default=5, help="looks in a row that count as one")
    parser.add_argument("--target", type=float, default=30.0)
    parser.add_argument("--net", default="resnet18", help="what learns the photos, by torchvision's name")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time, of one thread each")
    parser.add_argument("--out", type=Path, default=Path("learning-rates.json.gz"), help="raw data")
    args = parser.parse_args()
    job = Job(
        data=args.data,
        seed=0,
        profile="",
        batch_size=args.batch_size,
        epochs=args.epochs,
        most_epochs=args.epochs,
        target=NEVER,
        every=args.every,
        samples=args.samples,
        crop=64,
        device=args.device,
        net=args.net,
    )
    raw = runs_file(args.out, "learning_rates", job, ("seed", "profile", "lr"))
    work = {
        f"{rate:g}/{seed}": partial(_run, job, rate, seed)
        for seed in range(args.seeds)
        for rate in args.rates
    }
    fill(raw, work, jobs=args.jobs)
    for rate in sorted(args.rates):
        runs = [
            averaged([decode(Mark, mark) for mark in raw.values[f"{rate:g}/{seed}"]], args.mean_of)
            for seed in range(args.seeds)
        ]
        print(line(rate, runs, args.target))


def _run(job: Job, rate: float, seed: int) -> object:
    return run_fresh(replace(job, seed=seed, lr=rate))


if __name__ == "__main__":
    main()
