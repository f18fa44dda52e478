"""When the worth shows that a setting of the winner costs speed, the winner without it joins the finals."""

from __future__ import annotations

import pytest
from search_worlds import History, context, space_of
from strategies import plain_gpu

from autotune.recipe.guard import Numerics
from autotune.search.cost import MAX_PAIRS, MIN_PAIRS, Costs
from autotune.search.decision import Finish, Run
from autotune.search.finals import CHALLENGE_PAIRS, challenge_of, judged
from autotune.search.guard import guard_notes
from autotune.search.knowledge import Knowledge
from autotune.search.plan import next_move
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


def test_a_challenger_that_the_search_never_ran_wins_beside_what_nobody_compared() -> None:
    """Notes on what was left out compare with the best of the search, where the winner has no rate."""
    space = space_of(has_conv2d=True, image_input=True)
    history = after_worth(space, LEAN)
    uncompared = space.yours.replace(precision="tf32")
    history[3:3] = History().ran(uncompared, 120.0)
    ctx = context(space, search_over="done", numerics=())
    played(space, history, LEAN)
    know = Knowledge(ctx, history)
    winner = judged(know, Costs(know)).winner
    assert winner == lean_of(space)
    assert winner not in know.full
    assert know.unchecked(uncompared)
    assert guard_notes(know, winner) == ()


@pytest.mark.parametrize("judgements", [(), ("worse",)])
def test_what_was_ruled_out_is_no_challenger(judgements: tuple[str, ...]) -> None:
    """The winner without its compiled code may be a precision that trains worse, or that nobody compared."""
    space = space_of(device="cuda:0", gpus=(plain_gpu(),), compile_fixed="")
    coarse = space.settings(precision="bfloat16")
    winner = space.settings(precision="bfloat16", compile="default")
    known = [Numerics(kind="same", reason="", settings=winner, reference=space.yours)]
    known += [Numerics(kind=kind, reason="", settings=coarse, reference=space.yours) for kind in judgements]
    history = History().opened(space).ran(winner, WIN).ran(winner, WIN)
    for pair in range(MAX_PAIRS):
        history.ran(space.yours, 100, "final", pair=pair).ran(winner, WIN, "final", pair=pair)
    for pair in range(3):
        history.ran(winner, WIN, "worth", pair=pair)
        history.ran(winner.replace(compile=None), LEAN, "worth", pair=pair)
    know = Knowledge(context(space, search_over="done", numerics=tuple(known)), history)
    assert judged(know, Costs(know)).winner == winner
    assert challenge_of(know, Costs(know)) is None


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
