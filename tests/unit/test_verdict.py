"""Who wins, who does not, and in which words."""

from __future__ import annotations

import math
from typing import Any

import pytest
from finals_trials import YOURS, failed, finals, measured, workers

from autotune.outcome import Verdict
from autotune.search.verdict import counted_pairs, decided, judge, pairs
from autotune.search.worth import leave_one_out, worth_of
from autotune.settings import Settings
from autotune.trial import Trial

TWO, FOUR, EIGHT = workers(2), workers(4), workers(8)
STEADY = (100.0, 101.0, 99.0, 100.0, 102.0)


def scaled(factor: float, rates: tuple[float, ...] = STEADY, wobble: float = 0.01) -> tuple[float, ...]:
    """The rates times a factor, alternately a little more and a little less."""
    return tuple(rate * factor * (1 + wobble * (-1) ** i) for i, rate in enumerate(rates))


def verdict(candidates: list[Settings], trials: tuple[Trial, ...], **options: Any) -> Verdict:
    """The verdict without an epoch length, fewer workers being simpler."""
    return judge(
        YOURS,
        candidates,
        trials,
        samples=None,
        epochs=None,
        simpler=lambda s: (s.loader.num_workers,),
        **options,
    )


def stop(candidates: list[Settings], trials: tuple[Trial, ...]) -> bool:
    """Whether the finals may stop."""
    return decided(YOURS, candidates, trials, samples=None, epochs=None)


def test_pairs_are_matched_by_number_and_need_both_sides() -> None:
    """A pair counts when both sides were measured in it, whatever the order of the trials."""
    trials = (
        measured(FOUR, 200, pair=1),
        measured(YOURS, 100, pair=0),
        measured(YOURS, 80, pair=1),
        failed(YOURS, pair=2),
        measured(FOUR, 300, pair=2),
        measured(FOUR, 150, pair=0),
        measured(FOUR, 150, pair=3),
    )
    found = pairs(YOURS, FOUR, trials, samples=None, epochs=None)
    assert [math.exp(x) for x in found] == pytest.approx([1.5, 2.5])


def test_trials_outside_of_the_finals_do_not_count() -> None:
    """The search's own trials and those of another stage never enter a comparison."""
    trials = (
        *finals({YOURS: (100,), FOUR: (110,)}),
        *finals({YOURS: (100, 100), FOUR: (900, 900)}, stage="worth"),
        measured(FOUR, 900, pair=None, stage="joint"),
    )
    assert pairs(YOURS, FOUR, trials, samples=None, epochs=None) == pytest.approx([math.log(1.1)])


def test_a_start_that_costs_much_counts_in_a_short_run() -> None:
    """With epoch length and epochs known, the ratio is that of the whole run and not the steady one."""
    trials = finals({YOURS: (100,), FOUR: (200,)})
    steady = pairs(YOURS, FOUR, trials, samples=None, epochs=None)
    short = pairs(YOURS, FOUR, trials, samples=100, epochs=1)
    assert steady == pytest.approx([math.log(2)])
    assert short == pytest.approx([math.log(1.5 / 1.0)])


def test_a_clear_gain_wins() -> None:
    """Five pairs at about 1.9 times yours make a winner, told with ratio, interval and pairs."""
    found = verdict([FOUR], finals({YOURS: STEADY, FOUR: scaled(1.9)}))
    assert (found.kind, found.winner, found.pairs) == ("faster", FOUR, 5)
    assert found.ratio is not None
    assert found.ratio.confidence == 0.95
    assert 1.8 < found.ratio.low < found.ratio.value < found.ratio.high < 2.0
    assert found.sentence == "1.90x yours (95 %: 1.88 to 1.93), confirmed in 5 fresh pairs"


def test_three_pairs_win_nothing() -> None:
    """However large and steady the gain, fewer than four pairs leave yours in place, unsure."""
    found = verdict([FOUR], finals({YOURS: STEADY[:3], FOUR: scaled(3.0, STEADY[:3])}))
    assert (found.kind, found.winner, found.pairs) == ("unsure", YOURS, 3)
    assert found.sentence == "yours stays: 3 pairs are too few to tell (3.01x so far)"


def test_equal_settings_within_narrow_noise_are_kept() -> None:
    """Ratios around 1 with little noise keep yours and say that it was noise."""
    found = verdict([FOUR], finals({YOURS: STEADY, FOUR: scaled(1.0, wobble=0.005)}))
    assert (found.kind, found.winner) == ("kept", YOURS)
    assert found.sentence == (
        "yours stays: the best candidate was within noise (1.00x, 95 %: 0.99 to 1.01, 5 pairs)"
    )


def test_an_end_of_the_interval_is_never_shown_as_one() -> None:
    """A low end just above 1 is told with a third decimal, so that a narrow win does not read as none."""
    found = verdict([FOUR], finals({YOURS: STEADY, FOUR: scaled(1.0085, wobble=0.0038)}))
    assert found.kind == "faster"
    assert "(95 %: 1.004 to 1.01" in found.sentence


def test_a_slower_candidate_keeps_yours() -> None:
    """A candidate that is surely slower is called slower, not noise."""
    found = verdict([FOUR], finals({YOURS: STEADY, FOUR: scaled(0.8)}))
    assert (found.kind, found.winner) == ("kept", YOURS)
    assert "the best candidate was slower (0.80x" in found.sentence


def test_noise_that_hides_a_gain_is_unsure() -> None:
    """An interval that holds both loss and gain keeps yours but does not call it settled."""
    found = verdict([FOUR], finals({YOURS: STEADY, FOUR: (150, 80, 120, 95, 140)}))
    assert (found.kind, found.winner) == ("unsure", YOURS)
    assert found.sentence.startswith("yours stays: the finals were too noisy to tell (1.1")


def test_a_win_takes_more_than_the_interval_that_is_shown() -> None:
    """An interval just above 1 at 95 % is no win yet: looking at several and more than once costs error."""
    found = verdict([FOUR], finals({YOURS: STEADY, FOUR: scaled(1.05, wobble=0.03)}))
    assert found.ratio is not None
    assert found.ratio.low > 1
    assert (found.kind, found.winner) == ("unsure", YOURS)


TEN = (100.0, 101.0, 99.0, 100.0, 102.0, 98.0, 100.0, 101.0, 99.0, 100.0)


def test_one_pair_that_something_else_spoiled_does_not_hide_a_gain() -> None:
    """A run that was a quarter slow is left out: the others decide, and are the pairs that are told."""
    spoiled = (*scaled(1.05, TEN)[:3], 0.75 * TEN[3], *scaled(1.05, TEN)[4:])
    trials = finals({YOURS: TEN, FOUR: spoiled})
    found = verdict([FOUR], trials)
    assert (found.kind, found.winner, found.pairs) == ("faster", FOUR, 9)
    assert found.ratio is not None
    assert found.ratio.value == pytest.approx(1.05, abs=0.005)
    counted = counted_pairs(YOURS, FOUR, trials, samples=None, epochs=None)
    assert counted == (0, 1, 2, 4, 5, 6, 7, 8, 9)


def test_leaving_a_pair_out_has_its_price() -> None:
    """The same nine pairs are less sure when they are what was left of ten."""
    rates = scaled(1.05, TEN, wobble=0.0415)
    nine = finals({YOURS: TEN[:9], FOUR: rates[:9]})
    ten = finals({YOURS: TEN, FOUR: (*rates[:9], 60.0)})
    alone, left = verdict([FOUR], nine), verdict([FOUR], ten)
    assert alone.ratio is not None
    assert left.ratio is not None
    assert alone.ratio.value == left.ratio.value
    assert left.ratio.low < alone.ratio.low
    assert (alone.kind, left.kind) == ("faster", "unsure")


def test_among_ties_the_simpler_wins() -> None:
    """Of two winners that cannot be told apart pair by pair, the one with the smaller key is taken."""
    trials = finals({YOURS: STEADY, TWO: scaled(1.5), EIGHT: scaled(1.505, wobble=-0.01)})
    assert verdict([EIGHT, TWO], trials).winner == TWO


def test_a_surely_faster_winner_beats_a_simpler_one() -> None:
    """Of two winners of which one is faster in every pair by far, the faster is taken."""
    trials = finals({YOURS: STEADY, TWO: scaled(1.5), EIGHT: scaled(1.8)})
    assert verdict([TWO, EIGHT], trials).winner == EIGHT


def test_one_failure_in_the_finals_disqualifies() -> None:
    """A candidate that failed once cannot win, and the next one is judged as if it were alone."""
    trials = (*finals({YOURS: STEADY, TWO: scaled(1.5), EIGHT: scaled(1.8)}), failed(EIGHT, pair=5))
    found = verdict([EIGHT, TWO], trials)
    assert found == verdict([TWO], trials)
    assert (found.kind, found.winner) == ("faster", TWO)


def test_a_failure_outside_of_the_finals_does_not_disqualify() -> None:
    """Only what happens in the finals counts there."""
    trials = (*finals({YOURS: STEADY, FOUR: scaled(1.5)}), failed(FOUR, stage="joint"))
    assert verdict([FOUR], trials).winner == FOUR


def test_nothing_left_to_compare_keeps_yours() -> None:
    """No candidates, failed candidates and finals that never ran are told apart."""
    none = verdict([YOURS], finals({YOURS: STEADY}))
    all_failed = verdict([FOUR], (failed(FOUR, pair=0),))
    no_time = verdict([FOUR], ())
    assert [v.kind for v in (none, all_failed, no_time)] == ["kept", "kept", "unsure"]
    assert all(v.winner == YOURS and v.ratio is None and v.pairs == 0 for v in (none, all_failed, no_time))
    assert [v.sentence for v in (none, all_failed, no_time)] == [
        "yours stays: nothing was faster in the search",
        "yours stays: each of the others failed in the finals",
        "yours stays: there was no time for the finals",
    ]


def test_a_gain_below_what_is_asked_does_not_win() -> None:
    """What asks more of the user wins only with the ratio that is its price; the words say why it did not."""
    trials = finals({YOURS: STEADY, FOUR: scaled(1.1, wobble=0.002)})
    assert verdict([FOUR], trials).kind == "faster"
    refused = verdict([FOUR], trials, price=lambda settings: 1.2)
    assert (refused.kind, refused.winner) == ("kept", YOURS)
    assert "too small for what it asks" in refused.sentence
    assert verdict([FOUR], trials, price=lambda settings: 1.05).winner == FOUR


def test_a_dearer_winner_must_beat_the_cheaper_one_by_its_price() -> None:
    """Surely faster is not enough against a winner that asks less of the user."""
    trials = finals({YOURS: STEADY, FOUR: scaled(1.1, wobble=0.001), EIGHT: scaled(1.12, wobble=0.0015)})
    assert verdict([FOUR, EIGHT], trials).winner == EIGHT
    assert verdict([FOUR, EIGHT], trials, price=lambda s: 1.03 if s == EIGHT else 1.0).winner == FOUR
    assert verdict([FOUR, EIGHT], trials, price=lambda s: 1.03).winner == EIGHT


def test_weights_shift_every_pair_alike() -> None:
    """A candidate whose samples teach half as much is half as fast, in the verdict as in each pair."""
    trials = finals({YOURS: STEADY, FOUR: scaled(3.0, wobble=0.002)})
    half = {"weight": lambda settings: 0.5 if settings == FOUR else 1.0}
    plain, weighed = verdict([FOUR], trials), verdict([FOUR], trials, **half)
    assert weighed.ratio.value == pytest.approx(plain.ratio.value / 2)
    assert weighed.ratio.high == pytest.approx(plain.ratio.high / 2)
    assert verdict([FOUR], trials, weight=lambda s: 0.2 if s == FOUR else 1.0).winner == YOURS


def test_more_candidates_make_each_interval_wider() -> None:
    """Asking of three candidates costs width, so that the best of many does not win by luck."""
    trials = finals({YOURS: STEADY, TWO: scaled(1.1), FOUR: scaled(1.09), EIGHT: scaled(1.08)})
    alone, among = verdict([TWO], trials).ratio, verdict([TWO, FOUR, EIGHT], trials).ratio
    assert alone is not None
    assert among is not None
    assert among.high - among.low > 1.2 * (alone.high - alone.low)


@pytest.mark.parametrize(("count", "expected"), [(4, False), (5, True), (6, False), (7, False), (8, True)])
def test_finals_stop_early_only_at_the_looks(count: int, expected: bool) -> None:
    """A clear and steady gain stops the finals after 5 or 8 pairs and at no other number."""
    rates = (100.0, 101.0, 99.0, 100.0, 102.0, 100.0, 98.0, 101.0)[:count]
    assert stop([FOUR], finals({YOURS: rates, FOUR: scaled(1.9, rates)})) is expected


def test_a_pair_in_progress_does_not_count_as_a_look() -> None:
    """A sixth pair of which one side is measured leaves the look at five as it was."""
    trials = finals({YOURS: STEADY, FOUR: scaled(1.9)})
    started = (*trials, measured(YOURS, 1e-3, pair=5))
    assert stop([FOUR], trials)
    assert stop([FOUR], started)


def test_finals_go_on_while_the_gain_is_not_fine_enough() -> None:
    """A sure gain with a wide interval, and noise around 1, both ask for more pairs."""
    assert not stop([FOUR], finals({YOURS: STEADY, FOUR: scaled(1.5, wobble=0.12)}))
    assert not stop([FOUR], finals({YOURS: STEADY, FOUR: scaled(1.0, wobble=0.05)}))


def test_finals_stop_when_hopeless() -> None:
    """They end when each candidate is surely no faster, or failed; one that may be faster goes on."""
    slow = finals({YOURS: STEADY, TWO: scaled(0.9), FOUR: scaled(0.8)})
    assert stop([TWO, FOUR], slow)
    assert stop([FOUR], (failed(FOUR, pair=0),))
    assert not stop([TWO, FOUR], finals({YOURS: STEADY, TWO: scaled(0.9), FOUR: scaled(1.0, wobble=0.05)}))


def test_leave_one_out_sets_back_each_changed_knob() -> None:
    """One entry for each change, without those that canonicalising makes equal to the winner or to yours."""
    winner = YOURS.replace(num_workers=4, prefetch_factor=4, pin_memory=True, channels_last=True)

    def canonical(settings: Settings) -> Settings:
        if settings.loader.num_workers == 0:
            return settings.replace(prefetch_factor=None)
        return settings if settings.loader.prefetch_factor else settings.replace(prefetch_factor=2)

    assert leave_one_out(winner, YOURS, canonical) == (
        ("num_workers", winner.replace(num_workers=0, prefetch_factor=None)),
        ("prefetch_factor", winner.replace(prefetch_factor=2)),
        ("pin_memory", winner.replace(pin_memory=False)),
        ("channels_last", winner.replace(channels_last=False)),
    )
    assert leave_one_out(workers(4), YOURS, lambda s: s) == ()
    assert leave_one_out(winner, YOURS, lambda s: winner) == ()


def test_worth_is_the_winner_over_the_winner_without() -> None:
    """The ratio comes from the pairs of stage worth, with the knob's values in yours and in the winner."""
    winner, without = FOUR.replace(pin_memory=True), FOUR
    trials = (
        *finals({without: (100, 102, 99), winner: (120, 122, 119)}, stage="worth"),
        *finals({without: (1, 1, 1), winner: (9, 9, 9)}),
    )
    found = worth_of("pin_memory", winner, without, trials, yours=YOURS, samples=None, epochs=None)
    assert (found.knob, found.yours, found.best) == ("pin_memory", False, True)
    assert found.ratio is not None
    assert found.ratio.value == pytest.approx(1.2, abs=0.005)
    assert found.ratio.low < 1.2 < found.ratio.high


def test_worth_without_two_pairs_is_not_known() -> None:
    """One pair has no spread, so there is no figure rather than a bare one."""
    trials = finals({FOUR: (100,), EIGHT: (120,)}, stage="worth")
    found = worth_of("num_workers", EIGHT, FOUR, trials, yours=YOURS, samples=None, epochs=None)
    assert found.ratio is None
