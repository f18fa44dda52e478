"""How the machine's own speed changed while the search ran, from settings that ran more than once. Pure.

The log rate of a run is taken as the sum of what its settings give, of the machine's speed at that moment,
and of noise. The speed is a Brownian motion: it wanders, and the further apart two runs are the more it may
have changed. How fast it wanders is not known, so several answers are weighed by how well they explain the
repeats, and one of them is: not at all, with half of the weight from the start. While repeats differ by no
more than noise explains, that answer keeps its weight and the estimate stays near nothing; after a real
drift it loses it.

The estimate is the best linear prediction (kriging) with free effects of the settings: differences between
repeats of the same settings are all it sees, so no settings' own rate can be mistaken for a drift.

`benchmarks/drift.py` plays searches of ten fake minutes on machines with known gains (run noise 1 %, the
drift over the 140 s of the search, 40 of each). How far the settings that the search ends with are in truth
behind the best that it ran, and what they gain over *yours*:

                        with it            without
    steady              0.26 %, 15.06 %    0.27 %, 15.03 %    gain higher by  0.02 +- 0.17 %
    10 % slower         0.45 %, 14.65 %    0.74 %, 14.24 %    gain higher by  0.41 +- 0.18 %
    10 % lost at once   0.71 %, 14.56 %    1.41 %, 13.07 %    gain higher by  1.49 +- 0.56 %
    10 % faster         0.26 %, 15.22 %    0.34 %, 15.44 %    gain higher by -0.22 +- 0.23 %

Measuring the incumbent again in place of *yours* does as well (10 % slower: 0.38 %, 14.70 %), and the repeats
that races leave, without a run for this sake, give much of it (0.50 %, 14.43 %).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

STEADY_WEIGHT = 0.5
"""Belief, before anything is seen, that the machine keeps its speed."""
WANDER = (1.0, 4.0, 16.0, 64.0)
"""Variances of the change from the first repeat to the last, in variances of the noise.

With noise of 1.5 % these are changes of 1.5, 3, 6 and 12 %.
"""
PRIOR_NOISE = 0.015
"""Run-to-run spread (log) assumed before anything was repeated, worth `PRIOR_RUNS` repeats."""
PRIOR_RUNS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run, as the drift sees it."""

    settings: Hashable
    """Whatever is equal exactly for equal settings."""
    at_s: float
    """When, on a clock of its own."""
    log_rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """The machine's log speed over time, relative to its start."""

    knots_s: tuple[float, ...] = ()
    """When the repeated settings ran, in rising order."""
    log_speeds: tuple[float, ...] = ()
    """The estimate at each of them."""
    steady: float = 1.0
    """Probability that the speed did not change."""

    def at(self, now_s: float) -> float:
        """Log speed at `now_s`: straight between two runs, kept after the last, as for a Brownian motion."""
        if not self.knots_s:
            return 0.0
        if now_s <= self.knots_s[0]:
            return self.log_speeds[0]
        points = list(zip(self.knots_s, self.log_speeds))
        for (left_s, left), (right_s, right) in pairwise(points):
            if now_s <= right_s:
                return left + (right - left) * (now_s - left_s) / (right_s - left_s)
        return self.log_speeds[-1]


def estimate(runs: Sequence[Run]) -> Drift:
    """The drift that the repeats among `runs` show; none where nothing ran twice."""
    return _estimate(tuple(runs))


@lru_cache(maxsize=64)
def _estimate(runs: tuple[Run, ...]) -> Drift:
    groups: dict[Hashable, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.settings, []).append(run)
    repeated = sorted((r for g in groups.values() if len(g) > 1 for r in g), key=lambda run: run.at_s)
    knots = tuple(dict.fromkeys(run.at_s for run in repeated))
    if len(knots) < 2:
        return Drift()
    contrasts = _contrasts(repeated)
    seen = [sum(c * run.log_rate for c, run in zip(row, repeated)) for row in contrasts]
    span_s = knots[-1] - knots[0]
    since = [(run.at_s - knots[0]) / span_s for run in repeated]
    # what the drift alone would make of each contrast: with itself, and with the speed at each knot
    brown = [[min(a, b) for b in since] for a in since]
    half = [[sum(c * k for c, k in zip(row, column)) for column in brown] for row in contrasts]
    within = [[sum(h * c for h, c in zip(row, other)) for other in contrasts] for row in half]
    places = [since.index((knot - knots[0]) / span_s) for knot in knots]
    at_knots = [[row[place] for place in places] for row in half]
    answers = [_answer(seen, within, at_knots, wander) for wander in (0.0, *WANDER)]
    share = (1 - STEADY_WEIGHT) / len(WANDER)
    beliefs = [STEADY_WEIGHT, *[share] * len(WANDER)]
    logs = [math.log(belief) + evidence for belief, (evidence, _) in zip(beliefs, answers)]
    weights = [math.exp(log - max(logs)) for log in logs]
    speeds = [
        sum(w * speed[i] for w, (_, speed) in zip(weights, answers)) / sum(weights) for i in range(len(knots))
    ]
    return Drift(knots_s=knots, log_speeds=tuple(speeds), steady=weights[0] / sum(weights))


def _contrasts(repeated: Sequence[Run]) -> list[list[float]]:
    """Orthonormal rows over the runs, each a run of some settings less the mean of their runs before it."""
    where: dict[Hashable, list[int]] = {}
    rows = []
    for index, run in enumerate(repeated):
        before = where.setdefault(run.settings, [])
        if before:
            row = [0.0] * len(repeated)
            size = math.sqrt(1 + 1 / len(before))
            row[index] = 1 / size
            for earlier in before:
                row[earlier] = -1 / (len(before) * size)
            rows.append(row)
        before.append(index)
    return rows


def _answer(
    seen: Sequence[float],
    within: Sequence[Sequence[float]],
    at_knots: Sequence[Sequence[float]],
    wander: float,
) -> tuple[float, list[float]]:
    """Log evidence for a machine that wanders so much, and its log speed at each knot then.

    The noise is integrated out, with `PRIOR_RUNS` runs' worth of `PRIOR_NOISE` (an inverse gamma prior).
    """
    size = len(seen)
    covariance = [[wander * within[i][j] + (i == j) for j in range(size)] for i in range(size)]
    solved, log_determinant = _solve(covariance, seen)
    misfit = sum(s * z for s, z in zip(solved, seen))
    freedom = PRIOR_RUNS + size
    evidence = -0.5 * log_determinant - 0.5 * freedom * math.log(PRIOR_RUNS * PRIOR_NOISE**2 + misfit)
    knots = len(at_knots[0])
    return evidence, [wander * sum(solved[i] * at_knots[i][k] for i in range(size)) for k in range(knots)]


def _solve(matrix: Sequence[Sequence[float]], right: Sequence[float]) -> tuple[list[float], float]:
    """The solution for a positive definite matrix, and the log of its determinant (Cholesky)."""
    size = len(right)
    lower: list[list[float]] = []
    for i in range(size):
        row: list[float] = []
        for j in range(i + 1):
            rest = matrix[i][j] - sum(row[k] * (lower[j][k] if j < i else row[k]) for k in range(j))
            row.append(math.sqrt(rest) if i == j else rest / lower[j][j])
        lower.append(row)
    forward: list[float] = []
    for i in range(size):
        forward.append((right[i] - sum(lower[i][k] * forward[k] for k in range(i))) / lower[i][i])
    found = [0.0] * size
    for i in reversed(range(size)):
        found[i] = (forward[i] - sum(lower[k][i] * found[k] for k in range(i + 1, size))) / lower[i][i]
    return found, 2 * sum(math.log(lower[i][i]) for i in range(size))
