"""When the worth shows that a setting of the winner costs speed, the winner without it joins the finals."""

from __future__ import annotations

from search_worlds import History, context, space_of

from autotune.search.cost import MAX_PAIRS, MIN_PAIRS, Costs
from autotune.search.finals import CHALLENGE_PAIRS, challenge_of, judged
from autotune.search.knowledge import Knowledge
from autotune.search.plan import Finish, Run, next_move
from autotune.settings import Settings
from autotune.space.candidates import Space

WIN, LEAN = 150.0, 190.0


def winner_of(space: Space) -> Settings:
    return space.settings(num_workers=2, cpu_threads=2)


def lean_of(space: Space) -> Settings:
    """The winner without its workers."""
    return space.settings(cpu_threads=2)


def after_worth(space: Space, lean_rate: float) -> History:
    """Finals that the winner won, and a worth in which it ran without its workers at `lean_rate`."""
    winner, lean, threadless = winner_of(space), lean_of(space), space.settings(num_workers=2)
    history = History().opened(space).ran(winner, WIN).ran(winner, WIN)
    for pair in range(MAX_PAIRS):
        wobble = 1 + 0.004 * (pair % 3)
        history.ran(space.yours, 100 * wobble, "final", pair=pair)
        history.ran(winner, WIN / wobble, "final", pair=pair)
    for pair in range(3):
        wobble = 1 + 0.004 * pair
        history.ran(winner, WIN * wobble, "worth", pair=pair)
        history.ran(lean, lean_rate / wobble, "worth", pair=pair)
        history.ran(threadless, 120 * wobble, "worth", pair=pair)
    return history


def played(
    space: Space, history: History, lean_rate: float, remaining_s: float = 250.0
) -> list[tuple[int, Settings]]:
    """Go on to the end; gives the pairs and settings of the finals that the plan still asks for."""
    asked = []
    for _ in range(100):
        move = next_move(context(space, search_over="done", remaining_s=remaining_s), history)
        if isinstance(move, Finish):
            return asked
        assert isinstance(move, Run)
        settings, pair = move.spec.settings, move.spec.pair
        if move.spec.pair is not None and move.spec.stage == "final":
            asked.append((pair or 0, settings))
        rate = {space.yours: 100.0, winner_of(space): WIN, lean_of(space): lean_rate}.get(settings, 120.0)
        wobble = 1 + 0.003 * ((pair or 0) % 2)
        history.ran(settings, rate * wobble, move.spec.stage, pair=pair, edge=move.spec.epoch_edge)
    raise AssertionError("the plan does not end")


def test_a_setting_that_costs_speed_is_challenged_and_loses_its_place() -> None:
    """All three meet in fresh pairs, and the faster settings are returned with the figure of those pairs."""
    space = space_of()
    history = after_worth(space, LEAN)
    asked = played(space, history, LEAN)
    assert {settings for _, settings in asked} == {space.yours, winner_of(space), lean_of(space)}
    assert {pair for pair, _ in asked} == set(range(MAX_PAIRS, MAX_PAIRS + CHALLENGE_PAIRS))
    know = Knowledge(context(space), history)
    verdict = judged(know, Costs(know))
    assert (verdict.kind, verdict.winner, verdict.pairs) == ("faster", lean_of(space), CHALLENGE_PAIRS)


def test_settings_that_earn_their_place_are_not_challenged() -> None:
    """With every worth above 1 the finals stay as they are."""
    space = space_of()
    assert played(space, after_worth(space, 110.0), 110.0) == []


def test_a_challenger_that_is_not_faster_after_all_does_not_win() -> None:
    """What three pairs of the worth seemed to show does not outweigh the challenge."""
    space = space_of()
    history = after_worth(space, LEAN)
    played(space, history, 105.0)
    know = Knowledge(context(space), history)
    assert judged(know, Costs(know)).winner == winner_of(space)


def test_a_challenge_without_the_time_for_it_is_not_begun() -> None:
    """Fewer pairs than a win needs would change nothing."""
    space = space_of()
    history = after_worth(space, LEAN)
    know = Knowledge(context(space), history)
    assert challenge_of(know, Costs(know)) is not None
    round_s = Costs(know).round_s()
    assert played(space, history, LEAN, remaining_s=round_s * (MIN_PAIRS - 2)) == []
