"""A lead seen once may be luck: what the plan does so that the finals get who is truly ahead."""

from __future__ import annotations

from search_worlds import History, context, space_of

from autotune.search.plan import EndSearch, Run, next_move
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
    """Set aside for finals that nobody would enter, time would be lost to the search."""
    space = space_of()
    long = History().opened(space)
    for _ in range(30):
        long.ran(space.yours, 100)
    ahead = History(long).ran(space.settings(num_workers=2), 130).ran(space.settings(num_workers=2), 130)
    left = context(space, remaining_s=60.0)
    assert isinstance(next_move(left, ahead), EndSearch)
    assert isinstance(next_move(left, long), Run)
