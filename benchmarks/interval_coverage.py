"""How honest the intervals and the verdict are, by simulation.

    python benchmarks/interval_coverage.py [SCALE]

Prints one line per case, in under a minute; SCALE multiplies the number of simulated runs. The figures in the
docstrings of `autotune.measure.stats` and `autotune.search.verdict` are those of SCALE 10.

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
from autotune.outcome import Interval
from autotune.search.verdict import decided, judge
from autotune.settings import LoaderSettings, Settings
from autotune.trial import Block, Measurement, Trial, TrialSpec

RUN_NOISE = 0.02
MAX_PAIRS = 10
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


def trial(settings: Settings, pair: int, log_rate: float) -> Trial:
    block = Block(steps=1, samples=1, elapsed_s=math.exp(-log_rate), wait_s=0.0)
    spec = TrialSpec(settings=settings, stage="final", pair=pair)
    return Trial(number=0, spec=spec, measurement=Measurement(blocks=(block,)))


def finals(rates: np.ndarray, field: list[Settings], last: int) -> tuple[Interval | None, bool, int]:
    """One whole procedure: pairs until decided or `last`, then the verdict: (ratio, whether a win, pairs)."""
    trials: list[Trial] = []
    for pair in range(last):
        trials += [trial(settings, pair, rate) for settings, rate in zip(field, rates[:, pair])]
        if decided(field[0], field[1:], trials, samples=None, epochs=None):
            break
    found = judge(field[0], field[1:], trials, samples=None, epochs=None, simpler=lambda s: (s.key(),))
    return found.ratio, found.kind == "faster", pair + 1


def procedure(
    candidates: int,
    runs: int,
    *,
    gain: float = 0.0,
    noise: float = RUN_NOISE,
    outliers: bool = False,
    last: int | None = MAX_PAIRS,
) -> None:
    """Candidates equal to one another, each `gain` faster than *yours*; `last` None: a random end."""
    rng = np.random.default_rng(candidates)
    field = [Settings(loader=LoaderSettings(num_workers=n)) for n in range(candidates + 1)]
    wins, used, covered, figures = 0, 0, 0, []
    for _ in range(runs):
        rates = log_rates(rng, (candidates + 1, MAX_PAIRS), noise, outliers=outliers)
        rates[1:] += math.log1p(gain)
        ratio, won, pairs = finals(rates, field, last or int(rng.integers(4, MAX_PAIRS + 1)))
        assert ratio is not None
        wins, used, covered = wins + won, used + pairs, covered + (ratio.low <= 1 + gain <= ratio.high)
        figures.append(math.log(ratio.value))
    kind = "outliers" if outliers else "normal"
    print(
        f"verdict   gain {gain:4.0%}  candidates {candidates}  noise {noise:.1%} {kind:<9}"
        f" up to {last or 'random':>6} pairs  wins {wins / runs:6.1%}  interval covers {covered / runs:6.1%}"
        f"  shown/true {math.exp(np.mean(figures)) / (1 + gain) - 1:+.1%}  pairs used {used / runs:.1f}",
        flush=True,
    )


def main(scale: float) -> None:
    started = time.perf_counter()
    for outliers in (False, True):
        for pairs in (4, 5, 6, 8, 10):
            coverage("this", ours, pairs, round(scale * (2000 if pairs < 8 else 600)), outliers=outliers)
            coverage("studentized", studentized, pairs, round(scale * 600), outliers=outliers)
            coverage("percentile", percentile, pairs, round(scale * 600), outliers=outliers)
    runs = round(scale * 250)
    for candidates in (1, 2, 3):
        procedure(candidates, runs)
    procedure(2, runs, outliers=True)
    procedure(2, runs, noise=0.005)
    procedure(2, runs, last=None)
    procedure(2, runs, last=5)
    for gain in (0.03, 0.05, 0.1):
        procedure(2, runs, gain=gain, last=5)
    for gain in (0.03, 0.05, 0.5):
        procedure(2, runs, gain=gain)
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 1.0)
