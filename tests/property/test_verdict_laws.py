"""Laws of the verdict, over arbitrary finals."""

from __future__ import annotations

import math

import pytest
from finals_trials import YOURS, failed, finals, workers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from autotune.outcome import Verdict
from autotune.search.verdict import MIN_PAIRS, decided, judge
from autotune.settings import Settings
from autotune.trial import Trial

CANDIDATES = [workers(count) for count in (1, 2, 3)]
RATES = st.floats(20, 2000)
Field = dict[Settings, list[float]]


@st.composite
def fields(draw: st.DrawFn) -> Field:
    """Yours and one to three candidates, each with a level of its own and noise around it."""
    count = draw(st.integers(0, 9))
    noise = draw(st.sampled_from((0.0, 0.003, 0.03, 0.3)))
    field: Field = {}
    for settings_ in [YOURS, *CANDIDATES[: draw(st.integers(1, 3))]]:
        level = draw(st.one_of(st.just(100.0), st.floats(80, 130), RATES))
        field[settings_] = [level * math.exp(noise * draw(st.floats(-1, 1))) for _ in range(count)]
    return field


def verdict(candidates: list[Settings], trials: tuple[Trial, ...], samples: int | None = None) -> Verdict:
    """The verdict, fewer workers being simpler."""
    return judge(
        YOURS,
        candidates,
        trials,
        samples=samples,
        epochs=None if samples is None else 3,
        simpler=lambda s: (s.loader.num_workers,),
    )


@settings(deadline=None)
@given(fields(), st.lists(st.tuples(st.sampled_from(CANDIDATES), st.integers(0, 9)), max_size=2))
def test_the_winner_is_yours_or_measured_in_the_finals(
    field: Field, failures: list[tuple[Settings, int]]
) -> None:
    """Nobody wins without enough pairs, a sure gain and a clean record; otherwise yours stays."""
    trials = (*finals(field), *(failed(s, pair=pair) for s, pair in failures))
    found = verdict(CANDIDATES, trials)
    if found.kind == "faster":
        ran = [t for t in trials if t.settings == found.winner]
        assert found.winner in CANDIDATES
        assert found.winner not in {s for s, _ in failures}
        assert sum(t.measurement is not None for t in ran) >= found.pairs >= MIN_PAIRS
        assert found.ratio is not None
        assert found.ratio.low > 1
    else:
        assert found.winner == YOURS
        assert found.kind in ("kept", "unsure")


@settings(deadline=None)
@given(fields(), st.randoms(use_true_random=False))
def test_the_order_of_trials_and_candidates_does_not_matter(field: Field, random) -> None:
    """Shuffled finals and candidates give the very same verdict, and the same answer on stopping."""
    trials, candidates = list(finals(field)), list(field)
    shuffled, mixed = list(trials), list(candidates)
    random.shuffle(shuffled)
    random.shuffle(mixed)
    assert verdict(mixed, tuple(shuffled)) == verdict(candidates, tuple(trials))
    assert decided(YOURS, mixed, shuffled, samples=None, epochs=None) == decided(
        YOURS, candidates, trials, samples=None, epochs=None
    )


LOST_BUT_FOR_A_TIE = {
    YOURS: [135.0, 135.0, 100.0],
    CANDIDATES[0]: [100.0, 100.0, 99.99999999999999],
    CANDIDATES[1]: [100.0, 100.0, 100.0],
}
"""Whether the first candidate ties in its last pair or loses it is rounding."""


@example(LOST_BUT_FOR_A_TIE, 1e-3, None)
@settings(deadline=None)
@given(fields(), st.sampled_from((1e-3, 0.1, 7.0, 60.0, 1000.0)), st.sampled_from((None, 50_000)))
def test_the_unit_of_time_does_not_matter(field: Field, unit: float, samples: int | None) -> None:
    """With every duration in another unit the same settings win by the same ratio."""
    found = verdict(list(field), finals(field), samples)
    other = verdict(list(field), finals(field, time_unit=unit), samples)
    assert (other.kind, other.winner, other.pairs) == (found.kind, found.winner, found.pairs)
    if found.ratio is not None:
        assert other.ratio is not None
        for name in ("value", "low", "high"):
            assert getattr(other.ratio, name) == pytest.approx(getattr(found.ratio, name), rel=1e-6)


@settings(deadline=None)
@given(fields(), st.data())
def test_a_candidate_that_loses_every_pair_never_changes_the_winner(
    field: Field, data: st.DataObject
) -> None:
    """Adding a candidate that is slower than yours in every pair changes neither winner nor its interval."""
    loser = workers(16)
    slower = [rate * data.draw(st.floats(0.05, 0.999)) for rate in field[YOURS]]
    found = verdict(list(field), finals(field))
    among = verdict([*field, loser], finals({**field, loser: slower}))
    assert among.winner == found.winner
    if found.kind == "faster":
        assert among == found


@settings(deadline=None)
@given(st.lists(RATES, min_size=1, max_size=10), st.integers(1, 3), st.floats(0.1, 10))
def test_when_all_ratios_are_one_yours_stays(rates: list[float], count: int, unit: float) -> None:
    """Candidates that are exactly as fast as yours in every pair never win, in no unit of time."""
    candidates = CANDIDATES[:count]
    trials = finals(dict.fromkeys((YOURS, *candidates), rates), time_unit=unit)
    found = verdict(candidates, trials, 50_000)
    assert found.winner == YOURS
    assert found.kind == ("kept" if len(rates) >= 2 else "unsure")


@settings(deadline=None)
@given(fields())
def test_the_interval_shown_is_that_of_the_swapped_comparison_inverted(field: Field) -> None:
    """With yours and the only candidate exchanged, the ratio and both ends are inverted."""
    one, rates = CANDIDATES[0], field[YOURS]
    theirs = finals({YOURS: rates, one: field[one]})
    found, swapped = verdict([one], theirs), verdict([one], finals({YOURS: field[one], one: rates}))
    assert (found.ratio is None) == (swapped.ratio is None)
    assert not (found.kind == swapped.kind == "faster")
    if found.ratio is not None and swapped.ratio is not None:
        assert swapped.ratio.value == pytest.approx(1 / found.ratio.value)
        assert swapped.ratio.low == pytest.approx(1 / found.ratio.high)
        assert swapped.ratio.high == pytest.approx(1 / found.ratio.low)
