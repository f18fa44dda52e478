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

Both noise and drift are weighed in absolute sizes. Were drift measured in units of the noise, settings whose
runs fall into two groups a factor of 1.6 apart (seen on a shared machine) would be taken for a machine that
became that much slower, and the lucky run would stay the best.

The table was measured with drift in units of the noise. In absolute sizes, seven searches of each, what is
behind is 0.16 % (steady), 0.36 % (slower) and 0.19 % (faster), and 0.04, 0.64 and 0.80 % without it.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

STEADY_WEIGHT = 0.5
"""Belief, before anything is seen, that the machine keeps its speed."""
WANDER = (0.015, 0.03, 0.06, 0.12)
"""Standard deviations (log) of the change from the first repeat to the last, where there is one."""
NOISES = (0.0075, 0.015, 0.03, 0.06, 0.12, 0.24)
"""Run-to-run spreads (log) that are weighed."""
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
        right = bisect_left(self.knots_s, now_s)
        if right == len(self.knots_s):
            return self.log_speeds[-1]
        left_s, right_s = self.knots_s[right - 1 : right + 1]
        left, then = self.log_speeds[right - 1 : right + 1]
        return left + (then - left) * (now_s - left_s) / (right_s - left_s)


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
    seen = contrasts @ np.array([run.log_rate for run in repeated])
    span_s = knots[-1] - knots[0]
    since = np.array([(run.at_s - knots[0]) / span_s for run in repeated])
    # what the drift alone would make of each contrast: with itself, and with the speed at each knot
    half = contrasts @ np.minimum.outer(since, since)
    at_knots = half[:, np.searchsorted(since, [(knot - knots[0]) / span_s for knot in knots])]
    own, axes = np.linalg.eigh(half @ contrasts.T)
    own, turned = np.maximum(own, 0.0), axes.T @ seen
    share = (1 - STEADY_WEIGHT) / len(WANDER)
    beliefs = {0.0: math.log(STEADY_WEIGHT), **dict.fromkeys(WANDER, math.log(share))}
    logs, speeds = [], []
    for noise in NOISES:
        for wander, belief in beliefs.items():
            variances = wander**2 * own + noise**2
            evidence = -0.5 * float(np.sum(np.log(variances) + turned**2 / variances))
            logs.append(belief + _log_prior(noise) + evidence)
            speeds.append(wander**2 * (axes @ (turned / variances)) @ at_knots)
    weights = np.exp(np.array(logs) - max(logs))
    weights /= weights.sum()
    steady = weights[:: len(beliefs)].sum()
    log_speeds = tuple(map(float, weights @ np.array(speeds)))
    return Drift(knots_s=knots, log_speeds=log_speeds, steady=float(steady))


def _log_prior(noise: float) -> float:
    """Log belief in a spread from run to run, up to a constant: worth `PRIOR_RUNS` runs of `PRIOR_NOISE`."""
    return -PRIOR_RUNS * (math.log(noise) + 0.5 * (PRIOR_NOISE / noise) ** 2)


def _contrasts(repeated: Sequence[Run]) -> Array:
    """Orthonormal rows over the runs, each a run of some settings less the mean of their runs before it."""
    where: dict[Hashable, list[int]] = {}
    rows = []
    for index, run in enumerate(repeated):
        before = where.setdefault(run.settings, [])
        if before:
            row = np.zeros(len(repeated))
            row[before] = -1 / len(before)
            row[index] = 1.0
            rows.append(row / math.sqrt(1 + 1 / len(before)))
        before.append(index)
    return np.array(rows)
