"""How honest the intervals are, by simulation.

    python benchmarks/interval_coverage.py [SCALE]

Prints one line per case, in under a minute; SCALE multiplies the number of simulated runs. The figures in the
docstring of `autotune.measure.stats` are those of SCALE 10; `known_truth.py` plays whole verdicts.

A run's rate has log-normal noise; with outliers, 5 % of the runs are 10 to 30 % slow, as when another process
wakes up. Both sides of a pair suffer alike, so the true ratio is known.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable

import numpy as np

from autotune.measure.stats import ratio_interval

RUN_NOISE = 0.02
Method = Callable[[np.ndarray, np.random.Generator], tuple[float, float]]


def log_rates(
    rng: np.random.Generator, shape: tuple[int, ...], noise: float = RUN_NOISE, *, outliers: bool
) -> np.ndarray:
    rates = rng.normal(0, noise, shape)
    if outliers:
        rates -= (rng.random(shape) < 0.05) * np.log1p(rng.uniform(0.1, 0.3, shape))
    return rates


def ours(data: np.ndarray, _: np.random.Generator) -> tuple[float, float]:
    found = ratio_interval(list(data))
    return math.log(found.low), math.log(found.high)


def studentized(data: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    count, error = len(data), data.std(ddof=1) / math.sqrt(len(data))
    drawn = rng.choice(data, (1000, count))
    spread = drawn.std(axis=1, ddof=1) / math.sqrt(count)
    kept = spread > 1e-9 * error
    low, high = np.quantile((drawn.mean(axis=1) - data.mean())[kept] / spread[kept], (0.025, 0.975))
    return float(data.mean() - high * error), float(data.mean() - low * error)


def percentile(data: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    low, high = np.quantile(rng.choice(data, (1000, len(data))).mean(axis=1), (0.025, 0.975))
    return float(low), float(high)


def coverage(name: str, method: Method, pairs: int, runs: int, *, outliers: bool) -> None:
    rng = np.random.default_rng(pairs)
    covered, widths = 0, []
    for _ in range(runs):
        yours, other = log_rates(rng, (2, pairs), outliers=outliers)
        low, high = method(other - yours, rng)
        covered += low <= 0 <= high
        widths.append(high - low)
    kind = "outliers" if outliers else "normal"
    print(
        f"coverage  {name:<12} {kind:<9} {pairs:>2} pairs  {covered / runs:6.1%} of 95 %"
        f"  half width {np.mean(widths) / 2:6.1%} mean {np.median(widths) / 2:6.1%} median",
        flush=True,
    )


def main(scale: float) -> None:
    started = time.perf_counter()
    for outliers in (False, True):
        for pairs in (4, 5, 6, 8, 10):
            coverage("this", ours, pairs, round(scale * (2000 if pairs < 8 else 600)), outliers=outliers)
            coverage("studentized", studentized, pairs, round(scale * 600), outliers=outliers)
            coverage("percentile", percentile, pairs, round(scale * 600), outliers=outliers)
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 1.0)
