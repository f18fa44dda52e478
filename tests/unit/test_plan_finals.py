"""The finals and the worth runs: who runs, in which order, and when that ends."""

from __future__ import annotations

import pytest
from search_worlds import History, context, space_of

from autotune.search.cost import TIME_USED_UP, Costs
from autotune.search.decision import Finish
from autotune.search.finals import candidates, judged, ratio_beside, worths
from autotune.search.knowledge import Knowledge
from autotune.search.plan import _reserve_s, next_move

SPACE = space_of(has_conv2d=True, image_input=True)
FAST = SPACE.settings(num_workers=2)
FASTER = SPACE.settings(num_workers=2, channels_last=True)


def searched(**rates):
    """A finished search: *yours* at 100, `fast` and `faster` as given."""
    history = History().opened(SPACE)
    for name, rate in rates.items():
        history.ran({"fast": FAST, "faster": FASTER}[name], rate)
    return history


def play(history, rates, *, remaining_s=280.0, final_s=3.0, failing=()):
    """Run finals and worth until the plan finishes; what ran, in order."""
    ran = []
    while True:
        ctx = context(SPACE, remaining_s=remaining_s, search_over="done")
        move = next_move(ctx, history)
        if isinstance(move, Finish):
            return ran
        spec = move.spec
        ran.append(spec)
        if spec.settings in failing:
            history.failed(spec.settings, "worker_crash", spec.stage, pair=spec.pair)
        else:
            wobble = 1 + 0.002 * (len(ran) % 3)
            rate = rates.get(spec.settings, 100.0) * wobble
            fresh, edge = spec.fresh_process, spec.epoch_edge
            history.ran(spec.settings, rate, spec.stage, pair=spec.pair, fresh=fresh, edge=edge)
        remaining_s -= final_s


def know_of(history):
    """What a history says."""
    return Knowledge(context(SPACE), history)


def test_pairs_turn_around():
    """Even pairs run yours first, odd ones last, so that a drift hits both sides alike."""
    ran = play(searched(faster=200), {FASTER: 200.0})
    finals = [spec for spec in ran if spec.stage == "final" and spec.pair is not None]
    sides = [
        ["yours" if s.settings == SPACE.yours else "other" for s in finals if s.pair == p] for p in (0, 1)
    ]
    assert sides == [["yours", "other"], ["other", "yours"]]
    assert all(spec.fresh_process for spec in finals)
    assert all(spec.give_up_below is None for spec in finals)


def test_finals_end_when_they_are_decided():
    """A clear winner needs five pairs, not ten."""
    ran = play(searched(faster=200), {FASTER: 200.0})
    assert {spec.pair for spec in ran if spec.stage == "final"} - {None} == set(range(5))


def test_finals_time_at_least_as_long_as_the_search():
    """The answer rests on the finals, so they are not shorter than what led there."""
    history = searched(faster=200)
    spec = play(history, {FASTER: 200.0})[0]
    assert spec.window_s >= Costs(know_of(history)).window_s


def test_nobody_meets_yours_without_a_noticeable_lead():
    """Half a percent in the search is not worth the finals; yours is kept, and the sentence says why."""
    history = searched(fast=100.5)
    assert play(history, {}) == []
    verdict = judged(know_of(history), Costs(know_of(history)))
    assert (verdict.kind, verdict.winner) == ("kept", SPACE.yours)
    assert "none of 1 other settings" in verdict.sentence


def test_yours_that_met_nobody_is_kept_for_the_reason_that_ended_the_search():
    """With nothing tried, the sentence says why rather than claim a comparison."""
    know = Knowledge(
        context(SPACE, search_over="the time for the search was used up"), History().opened(SPACE)
    )
    assert judged(know, Costs(know)).sentence == "yours stays: the time for the search was used up"


def test_a_final_is_shown_beside_the_last_final_of_yours():
    """A machine that became half as fast again since the search shows no gain that the pair does not have."""
    history = searched(faster=140)
    history.ran(FASTER, 210.0, "final", pair=0)
    assert ratio_beside(know_of(history), history[-1]) is None
    history.ran(SPACE.yours, 150.0, "final", pair=0).ran(FASTER, 210.0, "final", pair=1)
    assert round(ratio_beside(know_of(history), history[-1]), 6) == 1.4


def test_a_second_candidate_must_be_close():
    """Near ties go to the finals together, one that is far behind does not."""
    near, far = know_of(searched(fast=198, faster=200)), know_of(searched(fast=150, faster=200))
    assert len(candidates(near, Costs(near))) == 2
    assert candidates(far, Costs(far)) == (FASTER,)


def test_a_second_candidate_needs_time():
    """Where five pairs of three do not fit, two meet."""
    know = Knowledge(context(SPACE, remaining_s=45.0), searched(fast=198, faster=200))
    assert len(candidates(know, Costs(know))) == 1


def test_a_candidate_that_fails_is_replaced():
    """The next best meets yours instead, and the one that failed never runs again."""
    history = searched(fast=150, faster=200)
    ran = play(history, {FAST: 150.0}, failing=(FASTER,))
    finals = [spec.settings for spec in ran if spec.stage == "final"]
    assert finals.count(FASTER) == 1
    verdict = judged(know_of(history), Costs(know_of(history)))
    assert (verdict.kind, verdict.winner) == ("faster", FAST)


def test_finals_stop_when_yours_keeps_failing():
    """Without a measured baseline no further pair can tell anything."""
    ran = play(searched(faster=200), {FASTER: 200.0}, failing=(SPACE.yours,))
    assert sum(spec.settings == SPACE.yours for spec in ran) == 2


def test_no_round_is_begun_that_does_not_fit():
    """The budget ends the finals between rounds."""
    ran = play(searched(faster=200), {FASTER: 200.0}, remaining_s=30.0)
    assert [spec.pair for spec in ran if spec.pair is not None] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_worth_leaves_out_each_setting_in_turn():
    """The winner and the winner without each changed setting run three times, back and forth."""
    history = searched(faster=200)
    ran = play(history, {FASTER: 200.0, FAST: 150.0, SPACE.settings(channels_last=True): 130.0})
    runs = [[s.settings for s in ran if s.stage == "worth" and s.pair == p] for p in range(3)]
    assert len(runs[0]) == 3
    assert runs[1] == runs[0][::-1]
    assert runs[2] == runs[0]
    know = know_of(history)
    found = {w.knob: w.ratio.value for w in worths(know, judged(know, Costs(know)))}
    assert 1.3 < found["channels_last"] < 1.36
    assert 1.5 < found["num_workers"] < 1.57


def test_worth_is_shown_of_as_many_settings_as_can_run_twice():
    """One pair shows nothing, so a round is begun with those alone for which there is time for a second."""
    rates = {FASTER: 200.0, FAST: 150.0, SPACE.settings(channels_last=True): 130.0}
    shown = []
    for remaining_s in range(40, 80, 2):
        history = searched(faster=200)
        ran = play(history, rates, remaining_s=remaining_s)
        runs = [[s.settings for s in ran if s.stage == "worth" and s.pair == p] for p in range(2)]
        assert runs[1] == runs[0][::-1]
        know = know_of(history)
        shown.append(sum(w.ratio is not None for w in worths(know, judged(know, Costs(know)))))
        assert shown[-1] == max(len(runs[0]) - 1, 0)
    assert shown == sorted(shown)
    assert set(shown) == {0, 1, 2}


def test_worth_of_a_single_change_is_the_verdict():
    """Where one setting changed, what it brings was measured in the finals."""
    only = SPACE.settings(channels_last=True)
    history = History().opened(SPACE).ran(only, 150)
    ran = play(history, {only: 150.0})
    assert {spec.stage for spec in ran} == {"final"}
    know = know_of(history)
    verdict = judged(know, Costs(know))
    (worth,) = worths(know, verdict)
    assert (worth.knob, worth.ratio) == ("channels_last", verdict.ratio)


def test_worth_is_listed_without_figures_when_time_is_over():
    """Changed settings are named even where nothing was left to measure them alone."""
    history = searched(faster=200)
    play(history, {FASTER: 200.0}, remaining_s=40.0)
    know = know_of(history)
    found = worths(know, judged(know, Costs(know)))
    assert {w.knob: w.ratio for w in found} == {"num_workers": None, "channels_last": None}


def test_a_search_that_had_time_for_next_to_nothing_is_not_sure() -> None:
    """Two other settings do not show that nothing is faster; a search that ended by itself does."""
    space = space_of()
    history = History().opened(space, 100.0)
    for workers in (1, 2):
        history.ran(space.yours.replace(num_workers=workers, prefetch_factor=2), 90.0)
    for reason, kind in ((TIME_USED_UP, "unsure"), ("nothing new was left to try", "kept")):
        know = Knowledge(context(space, search_over=reason, remaining_s=100.0), history)
        verdict = judged(know, Costs(know))
        assert verdict.kind == kind
    assert (
        "time for 2 other settings"
        in judged(Knowledge(context(space, search_over=TIME_USED_UP), history), Costs(know)).sentence
    )


def test_a_large_lead_needs_few_pairs_and_leaves_the_search_more_time() -> None:
    """Nine pairs are set aside for what is a little faster, five for what is twice as fast."""
    for rate, pairs in ((110.0, 9), (200.0, 5)):
        know = Knowledge(context(SPACE), searched(fast=rate))
        costs = Costs(know)
        assert _reserve_s(know, costs) == pytest.approx(pairs * costs.round_s() + costs.edge_s)
