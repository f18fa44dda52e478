"""What a run that something else slowed does to a verdict, and when the finals look at what they have."""

from __future__ import annotations

import math

import pytest
from finals_trials import YOURS, finals, workers

from autotune.measure.stats import ratio_interval
from autotune.outcome import Verdict
from autotune.search.verdict import counted_pairs, decided, judge
from autotune.trial import Trial

OTHER = workers(2)
WOBBLE = (0.02, -0.02, 0.0, 0.02, -0.02, 0.01, -0.01, 0.02, -0.02, 0.0, 0.02, -0.02, 0.0, 0.01)
"""Log rates about their middle: four robust standard deviations are 12 %."""


def met(log_ratios: list[float]) -> tuple[Trial, ...]:
    """Finals with these pairs."""
    return finals({YOURS: [100.0] * len(log_ratios), OTHER: [100.0 * math.exp(log) for log in log_ratios]})


def verdict(trials: tuple[Trial, ...]) -> Verdict:
    return judge(YOURS, [OTHER], trials, samples=None, epochs=None, simpler=lambda s: (s.loader.num_workers,))


@pytest.mark.parametrize(("slow_by", "out"), [(0.115, 0), (0.135, 1)])
def test_four_robust_deviations_are_far(slow_by: float, out: int) -> None:
    """A pair counts up to four of the others' deviations from the middle, and not beyond."""
    logs = [0.05 + wobble for wobble in WOBBLE]
    logs[9] = 0.05 - slow_by
    counted = counted_pairs(YOURS, OTHER, met(logs), samples=None, epochs=None)
    assert set(range(len(logs))) - set(counted) == ({9} if out else set())


def test_one_slow_run_does_not_hide_a_gain_of_five_percent() -> None:
    """The pair that it spoilt is left out, and the rest are surely faster."""
    logs = [0.05 + wobble for wobble in WOBBLE]
    logs[9] = -0.10
    found = verdict(met(logs))
    assert (found.kind, found.pairs) == ("faster", len(logs) - 1)


def test_what_is_shown_pays_for_the_pair_that_was_left_out() -> None:
    """Its interval is wider than one of the same pairs among which none had been far."""
    logs = [0.05 + wobble for wobble in WOBBLE]
    plain = ratio_interval(logs)
    shown = verdict(met([*logs, -0.30])).ratio
    assert shown is not None
    assert shown.value == pytest.approx(plain.value)
    assert shown.low < plain.low
    assert shown.high > plain.high
    assert shown.confidence == plain.confidence == 0.95


@pytest.mark.parametrize("pairs", range(4, 15))
def test_the_finals_look_three_times(pairs: int) -> None:
    """A gain that is beyond doubt ends them after 5, 8 or 12 pairs, and at no other number."""
    trials = met([0.2 + 0.1 * wobble for wobble in WOBBLE[:pairs]])
    assert decided(YOURS, [OTHER], trials, samples=None, epochs=None) == (pairs in (5, 8, 12))
