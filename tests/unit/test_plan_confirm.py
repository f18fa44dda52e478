"""A lead seen once may be luck: what the plan does so that the finals get who is truly ahead."""

from __future__ import annotations

import dataclasses

from search_worlds import History, context, space_of

from autotune.search.decision import EndSearch, Run
from autotune.search.knowledge import Knowledge
from autotune.search.plan import next_move
from autotune.settings import Settings
from autotune.space.candidates import Space


def tried(
    space: Space, history: History, rates: dict[str, float], limit: int = 80
) -> list[tuple[Settings, str]]:
    """Play on, every other settings at 100 samples/s, until the plan wants the sampler or the finals."""
    asked = []
    for _ in range(limit):
        move = next_move(context(space), history)
        if not isinstance(move, Run):
            break
        asked.append((move.spec.settings, move.spec.reason))
        rate = rates.get(move.spec.settings.key(), 100.0) if move.spec.mode == "full" else 1000.0
        history.ran(move.spec.settings, rate, move.spec.stage, move.spec.mode)
    return asked


def test_the_best_so_far_is_seen_twice_before_the_sampler_is_asked() -> None:
    """One lucky measurement does not carry settings into the finals unseen."""
    space = space_of()
    lucky = space.settings(num_workers=4)
    asked = tried(space, History().opened(space).ran(lucky, 180), {lucky.key(): 110.0})
    again = [settings for settings, reason in asked if reason == "the best so far, measured again"]
    assert lucky in again


def test_each_change_of_the_best_is_taken_back_once() -> None:
    """Four workers that bring nothing beside two threads are found out: one fewer would not show it."""
    space = space_of()
    both = space.settings(num_workers=4, cpu_threads=2)
    alone = space.settings(cpu_threads=2)
    asked = tried(space, History().opened(space).ran(both, 150), {both.key(): 150.0})
    assert alone in [settings for settings, _ in asked]


def test_yours_at_the_top_needs_no_second_look() -> None:
    """With nothing ahead of *yours*, no trial is spent on it."""
    space = space_of()
    asked = tried(space, History().opened(space), {})
    assert not [reason for _, reason in asked if reason == "the best so far, measured again"]


def test_while_nobody_is_ahead_the_search_may_use_more_of_the_time() -> None:
    """Set aside for finals that nobody enters, time would be lost to the search; a small lead needs it."""
    space = space_of()
    long = History().opened(space)
    for _ in range(30):
        long.ran(space.yours, 100)
    ahead = History(long).ran(space.settings(num_workers=2), 110).ran(space.settings(num_workers=2), 110)
    left = context(space, remaining_s=60.0)
    assert isinstance(next_move(left, ahead), EndSearch)
    assert isinstance(next_move(left, long), Run)


def test_who_gave_up_against_a_lucky_run_is_measured_again() -> None:
    """The best once ran at 200, and the next time at 105: who was left at 150 is not out for good."""
    space = space_of()
    lucky, steady = space.settings(num_workers=4), space.settings(num_workers=2)
    history = History().opened(space).ran(lucky, 200).ran(steady, 150)
    measured = dataclasses.replace(history[-1].measurement, stopped="gave_up")
    history[-1] = dataclasses.replace(history[-1], measurement=measured)
    history.ran(lucky, 105)
    know = Knowledge(context(space), history)
    assert know.incumbent == lucky
    assert know.doubtful == steady


def test_who_is_surely_behind_is_not_looked_at_again() -> None:
    """Where runs repeat to a percent, half the speed of the best needs no second look."""
    space = space_of()
    best, slow = space.settings(num_workers=4), space.settings(num_workers=2)
    history = History().opened(space).ran(best, 200).ran(best, 201).ran(slow, 100)
    assert Knowledge(context(space), history).doubtful is None


def test_a_second_look_has_an_end() -> None:
    """Settings level with the best are measured three times at most."""
    space = space_of()
    best, level = space.settings(num_workers=4), space.settings(num_workers=2)
    history = History().opened(space)
    for _ in range(3):
        history.ran(best, 200).ran(level, 200)
    assert Knowledge(context(space), history).doubtful is None


def test_on_a_noisy_machine_the_best_is_confirmed_before_others_meet_it() -> None:
    """Where *yours* ran at 100 and 60, a move that wins is measured again at once; else others are first."""

    def after_a_win(second: float) -> bool:
        space, ahead = space_of(), None
        history = History().opened(space).ran(space.yours, second)
        for _ in range(80):
            move = next_move(context(space), history)
            assert isinstance(move, Run)
            if ahead is not None:
                return move.spec.settings == ahead
            if move.spec.mode == "full" and "->" in move.spec.reason:
                ahead = move.spec.settings
            history.ran(move.spec.settings, 200 if ahead else 80, move.spec.stage, move.spec.mode)
        raise AssertionError("no move of one knob was made")

    assert after_a_win(60)
    assert not after_a_win(100)
