"""From which block on the rate of a trial is steady. Pure.

The first blocks of a trial may run at another rate than the rest: the allocator still grows, caches are cold,
a clock has not settled. They are found as a change of level near the start, marked `transient` and left out
of rates; they stay in the trial.

The rule is a change-point test, repeated on what is left (binary segmentation: Scott and Knott, Biometrics
30, 1974) and confined to the first half of the blocks, since what most of them agree on is the steady state.
Each split into a head and a tail of at least two blocks is tried, and the clearest one is cut when the two
mean log rates differ by `MIN_CHANGE`, and by more than noise explains: Student's t on the residuals of both
parts at `ERROR`, shared among the splits (Bonferroni). Four blocks say too little of their own noise, so that
of `PRIOR_BLOCKS` others with `PRIOR_NOISE` counts in, as a conjugate prior would have it.

Simulated, with normal noise from block to block (3,000 series each):

    noise                        1 %     2 %     5 %
    false cut, 4 blocks        0.0 %   0.2 %     8 %
    false cut, 8 blocks        0.0 %   0.4 %     4 %
    first of 4 is 10 % slow     98 %    68 %    31 %     found
    first 2 of 6 10 % slow     100 %    95 %    37 %     found
    first of 4 is 20 % slow    100 %   100 %    74 %     found

Blocks that something else disturbed neither make a change nor hide one: they are passed over.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from autotune.measure.stats import t_quantile
from autotune.trial import TRANSIENT, Block

MIN_CHANGE = 0.05
"""A smaller change (log rate) over few blocks moves the rate of a trial less than its noise does."""
ERROR = 0.01
"""Probability of a cut where nothing changed and the noise is as the residuals say."""
PRIOR_NOISE = 0.015
"""Spread (log rate) from block to block, as seen on quiet machines."""
PRIOR_BLOCKS = 3
LEAST_LEFT = 2
"""Blocks that a cut leaves at least."""


def mark_transient(blocks: Sequence[Block]) -> tuple[Block, ...]:
    """The same blocks, those before the steady state marked."""
    clean = [index for index, block in enumerate(blocks) if block.samples and not block.disturbed]
    start = steady_from([blocks[index].samples_per_s for index in clean])
    first = clean[start] if start else 0
    return tuple(
        replace(block, marks=(*block.marks, TRANSIENT)) if index < first else block
        for index, block in enumerate(blocks)
    )


def steady_from(rates: Sequence[float]) -> int:
    """The index of the first rate of the steady state; 0 where nothing shows that the start was otherwise.

    Args:
        rates: samples/s of blocks in the order they ran, all above zero.
    """
    logs = [math.log(rate) for rate in rates]
    last = len(logs) // 2
    start = 0
    while cut := _first_cut(logs[start:], last - start):
        start += cut
    return start


def _first_cut(logs: Sequence[float], last: int) -> int:
    """Where the clearest change among the first `last` values is; 0 where none is clear."""
    splits = range(1, min(last, len(logs) - LEAST_LEFT) + 1)
    if not splits:
        return 0
    clearest, change, cut = max((*_clarity(logs, split), split) for split in splits)
    freedom = len(logs) - 2 + PRIOR_BLOCKS
    critical = t_quantile(1 - ERROR / len(splits) / 2, freedom)
    return cut if change >= MIN_CHANGE and clearest > critical else 0


def _clarity(logs: Sequence[float], split: int) -> tuple[float, float]:
    """Student's t of the difference between the two parts, and that difference."""
    head, tail = logs[:split], logs[split:]
    centres = [math.fsum(part) / len(part) for part in (head, tail)]
    squares = math.fsum(
        (value - centre) ** 2 for part, centre in zip((head, tail), centres) for value in part
    )
    freedom = len(logs) - 2 + PRIOR_BLOCKS
    noise = math.sqrt((squares + PRIOR_BLOCKS * PRIOR_NOISE**2) / freedom)
    change = abs(centres[0] - centres[1])
    return change / (noise * math.sqrt(1 / len(head) + 1 / len(tail))), change
