"""Intervals for the few noisy numbers a tuning run can afford.

Pure: the bootstrap draws from its own seeded generator, so equal input gives an equal interval.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from functools import lru_cache
from statistics import median

from autotune.outcome import Interval
from autotune.trial import Block

BOOTSTRAP_FROM = 8
"""Pairs from which the bootstrap takes part in `ratio_interval`."""

OUTLIERS_FROM = 6
"""Pairs from which one can be called an outlier."""
FAR_SPREADS = 4.0
"""Robust standard deviations from the median beyond which a pair is an outlier."""
FAR_LOG = 0.05
"""Log ratios nearer to the median than this are none, however close the others lie together."""
_MOST_OUT = 0.3
"""With more than this part far out there is no middle to be far from, and every pair counts."""
_SPREADS_PER_MAD = 1.4826  # of a normal distribution

_LARGEST_LOG = 700.0  # exp() overflows a little above
_LEAST_VARIANCE = 0.25  # of a resample, relative to the data's; see `_bootstrap_t`


def ratio_interval(
    log_ratios: Sequence[float], *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """The mean of paired log ratios as a ratio, with its confidence interval.

    Below `BOOTSTRAP_FROM` pairs this is Student's t interval; from there on the wider of it and the
    studentized bootstrap (symmetric: the quantile of |t|). Both are symmetric in the logarithm, so swapping
    the sides of every pair inverts the interval exactly, and the order of the pairs does not matter.

    Why not the bootstrap alone: with 4 to 6 pairs many resamples hold hardly more than one value and their t
    is wild, and with outliers it covers less. `benchmarks/interval_coverage.py` simulates it: coverage of the
    nominal 95 % and mean half width, for 2 % noise on each side; with outliers, 5 % of the runs are 10 to
    30 % slow besides. Only chance is simulated: no drift, no noise that a pair has in common.

        pairs                     4             5             6             8             10
        normal    this            95.0,  4.1 %  94.9,  3.3 %  95.3,  2.8 %  96.2,  2.5 %  96.4,  2.1 %
        normal    studentized     94.9, 31.3 %  94.7,  5.2 %  94.0,  3.5 %  94.5,  2.5 %  94.7,  2.1 %
        normal    percentile      79.0,  2.2 %  82.8,  2.0 %  84.9,  1.9 %  88.2,  1.7 %  90.1,  1.6 %
        outliers  this            96.5,  8.1 %  96.9,  6.5 %  97.1,  5.6 %  97.8,  5.1 %  98.4,  4.5 %
        outliers  studentized     95.5, 93.9 %  95.6, 14.6 %  93.4,  9.4 %  92.7,  6.7 %  91.6,  5.4 %

    Args:
        log_ratios: one natural logarithm of a ratio for each pair, at least two.
        confidence: the nominal coverage, between 0 and 1.
        resamples: bootstrap draws; 0 leaves Student's t alone, however many pairs there are.
        seed: of the draws.

    Returns:
        value, low and high as ratios; all three equal where the pairs do not differ at all.
    """
    count = len(log_ratios)
    assert count >= 2, "an interval needs at least two pairs"
    # fsum rounds once, so that neither the order nor the sign of the values shows in the last digit
    centre = math.fsum(log_ratios) / count
    deviations = [value - centre for value in log_ratios]
    error = math.sqrt(math.fsum(d * d for d in deviations) / (count - 1) / count)
    half = t_quantile((1 + confidence) / 2, count - 1)
    if count >= BOOTSTRAP_FROM and error > 0 and resamples:
        half = max(half, _bootstrap_t(deviations, confidence, resamples, seed))
    return _around(centre, half * error, confidence)


def typical(log_ratios: Sequence[float]) -> tuple[bool, ...]:
    """For each pair whether it counts, or lies so far from the median that something else was at work.

    By the median of absolute deviations (Iglewicz and Hoaglin, How to Detect and Handle Outliers, 1993),
    with a wide limit, as few pairs estimate it badly. One run in twenty that is 10 to 30 % slow would widen
    the interval of ten pairs to a multiple, and so hide a real gain.

    Args:
        log_ratios: one natural logarithm of a ratio for each pair.
    """
    if len(log_ratios) < OUTLIERS_FROM:
        return (True,) * len(log_ratios)
    middle = median(log_ratios)
    spread = _SPREADS_PER_MAD * median(abs(value - middle) for value in log_ratios)
    limit = max(FAR_SPREADS * spread, FAR_LOG)
    near = tuple(abs(value - middle) <= limit for value in log_ratios)
    return near if near.count(False) <= _MOST_OUT * len(near) else (True,) * len(near)


def rate_interval(blocks: Sequence[Block], *, confidence: float = 0.95) -> Interval:
    """Samples/s of one trial with the interval that its own blocks support.

    The value weighs blocks by their time: all samples over all seconds. The width comes from the blocks'
    residuals around that rate (the ratio estimator's standard error), by Student's t, on a logarithmic scale
    so that the low end stays above zero. It holds within one run only: another run of the same settings
    differs by more, which is what the paired finals are for. One block tells nothing about spread: it gets
    half to twice its rate.

    Args:
        blocks: at least one.
        confidence: the nominal coverage, between 0 and 1.
    """
    assert blocks, "a rate needs at least one block"
    elapsed_s = math.fsum(block.elapsed_s for block in blocks)
    samples = sum(block.samples for block in blocks)
    rate = samples / elapsed_s
    count = len(blocks)
    if count == 1:
        return Interval(value=rate, low=rate / 2, high=rate * 2, confidence=confidence)
    squares = math.fsum((block.samples - rate * block.elapsed_s) ** 2 for block in blocks)
    relative_error = math.sqrt(squares * count / (count - 1)) / samples
    factor = math.exp(min(t_quantile((1 + confidence) / 2, count - 1) * relative_error, _LARGEST_LOG / 2))
    return Interval(value=rate, low=rate / factor, high=rate * factor, confidence=confidence)


@lru_cache(maxsize=256)
def t_quantile(probability: float, df: int) -> float:
    """The value that Student's t with `df` degrees of freedom stays under with `probability`.

    Bisects the closed form of the distribution for whole degrees of freedom (Abramowitz and Stegun, Handbook
    of Mathematical Functions, 26.7.3 and 26.7.4) over the angle atan(t / sqrt(df)), which is bounded.

    Args:
        probability: between 0.5 and 1, both excluded.
        df: at least 1.
    """
    assert 0.5 < probability < 1, "only the upper half has a positive quantile"
    assert df >= 1, "one value has no spread"
    two_sided = 2 * probability - 1
    low, high = 0.0, math.pi / 2
    for _ in range(80):
        middle = (low + high) / 2
        if _t_within(middle, df) < two_sided:
            low = middle
        else:
            high = middle
    return math.sqrt(df) * math.tan(low)


def _t_within(angle: float, df: int) -> float:
    """P(|T| <= sqrt(df) * tan(angle))."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = df % 2
    term = cosine if odd else 1.0
    total = 0.0
    for step in range(odd, df - 1, 2):
        total += term
        term *= cosine * cosine * (step + 1) / (step + 2)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def _bootstrap_t(deviations: Sequence[float], confidence: float, resamples: int, seed: int) -> float:
    """The `confidence` quantile of |t| over resamples of values that are centred on zero.

    A resample that misses the one outlier of the data has nearly no spread and a t of thousands, which says
    nothing about the data. So its standard deviation counts as at least half of the data's.
    """
    # one order for data, shuffled data and data with all signs changed: they must give the same quantile
    data = max(sorted(deviations), sorted(-d for d in deviations))
    count = len(data)
    floor = _LEAST_VARIANCE * math.fsum(d * d for d in data)
    rng = random.Random(seed)
    found = []
    for _ in range(resamples):
        drawn = rng.choices(data, k=count)
        total = sum(drawn)
        squares = max(sum([d * d for d in drawn]) - total * total / count, floor)
        found.append(abs(total) * math.sqrt((count - 1) / (count * squares)))
    found.sort()
    return found[min(math.ceil(confidence * (resamples + 1)), resamples) - 1]


def _around(centre: float, half: float, confidence: float) -> Interval:
    low, high = max(centre - half, -_LARGEST_LOG), min(centre + half, _LARGEST_LOG)
    return Interval(value=math.exp(centre), low=math.exp(low), high=math.exp(high), confidence=confidence)
