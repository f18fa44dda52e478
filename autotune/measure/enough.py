"""Whether a trial has run long enough to be compared with a given rate. Pure.

After each block the interval of the rate is computed anew: Student's t on the logarithms of the blocks'
rates, disturbed ones left out, with the transient and without it. Surely below is what both say. Few blocks
say little of their own noise, so that `PRIOR_BLOCKS` of `PRIOR_NOISE` count in, as a conjugate prior would
have it; more than one would hide the noise of a machine that has much of it.

Looking after each block gives chance many tries. So the interval holds 99.5 %. Simulated with normal noise
from block to block (10,000 trials each), this is how often settings that are exactly as fast as what they
are compared with were said to be surely below it, at one of the looks:

    noise                    1 %     2 %     5 %    10 %
    up to 4 blocks         0.0 %   0.0 %   0.4 %   1.3 %
    up to 6 blocks         0.0 %   0.2 %   0.9 %   1.8 %
    up to 8 blocks         0.0 %   0.4 %   1.1 %   2.1 %
    up to 12 blocks        0.1 %   0.7 %   1.5 %   2.6 %

and how often slower ones were found out (1,000 trials each):

    noise                    1 %     2 %     5 %
    5 % slower, 4 blocks    96 %    48 %    11 %
    5 % slower, 8 blocks   100 %   100 %    43 %
    10 % slower, 4 blocks  100 %    99 %    48 %
    10 % slower, 8 blocks  100 %   100 %    97 %

Only the noise within a trial is in this. Two runs of the same settings differ by more: the rate to compare
with should be lower than that of the settings to beat by as much as that matters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from autotune.measure.stats import t_quantile
from autotune.measure.steady import mark_transient
from autotune.outcome import Interval
from autotune.trial import TRANSIENT, Block

LEAST_BLOCKS = 3
"""Blocks that count before anything is said."""
CONFIDENCE = 0.995
PRIOR_NOISE = 0.02
"""Spread (log rate) from block to block."""
PRIOR_BLOCKS = 1
NARROW = 0.01
"""Half width (log rate) of the interval that needs no further block: what is nearer than this is as good."""

Answer = Literal["below", "above", "near", "open"]
"""below, above: surely so. near: too close for a difference to matter. open: more blocks may tell."""


def rate_so_far(blocks: Sequence[Block]) -> Interval | None:
    """Samples/s of the blocks that nothing disturbed, with its interval; None for fewer than `LEAST_BLOCKS`.

    The value is the geometric mean of the blocks' rates.
    """
    counted = [math.log(block.samples_per_s) for block in blocks if block.samples and not block.disturbed]
    count = len(counted)
    if count < LEAST_BLOCKS:
        return None
    centre = math.fsum(counted) / count
    squares = math.fsum((value - centre) ** 2 for value in counted)
    freedom = count - 1 + PRIOR_BLOCKS
    noise = math.sqrt((squares + PRIOR_BLOCKS * PRIOR_NOISE**2) / freedom)
    half = t_quantile((1 + CONFIDENCE) / 2, freedom) * noise / math.sqrt(count)
    return Interval(
        value=math.exp(centre),
        low=math.exp(centre - half),
        high=math.exp(centre + half),
        confidence=CONFIDENCE,
    )


def compared(blocks: Sequence[Block], rate: float) -> Answer:
    """What the blocks so far say of a trial beside `rate` samples/s.

    Args:
        blocks: all so far, in the order they ran.
        rate: of the settings to beat.
    """
    steady = rate_so_far([block for block in mark_transient(blocks) if TRANSIENT not in block.marks])
    whole = rate_so_far(blocks)
    if steady is None or whole is None:
        return "open"
    # By chance a fast head is cut as well as a slow one, and looking often finds the chance.
    if max(steady.high, whole.high) < rate:
        return "below"
    if steady.low > rate:
        return "above"
    return "near" if math.log(steady.high / steady.low) < 2 * NARROW else "open"
