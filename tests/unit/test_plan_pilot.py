"""Larger batches trained a while beside the user's own: when, what follows, and what the user is told."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from batch_worlds import noise
from search_worlds import History, acceptable, context, fake_runner, run_fake, space_of

from autotune.measure.seam import PilotSpec
from autotune.outcome import Outcome, Pilot
from autotune.recipe.pilot import STEPS, WARM_STEPS, PilotRecord
from autotune.search.batch import GradientLook
from autotune.search.batch_moves import next_look
from autotune.search.context import PlanContext
from autotune.search.cost import Costs
from autotune.search.decision import Run, TrainBoth
from autotune.search.engine import _incomplete
from autotune.search.finals import candidates
from autotune.search.finals import judged as verdict_of
from autotune.search.knowledge import Knowledge
from autotune.search.pilot import SHARE, early_pilot, pilot_notes, reserve_s, unaffordable
from autotune.search.plan import next_move
from autotune.settings import Settings
from autotune.space.candidates import bundle
from autotune.testing import FakeRunner, fake_gradients, fake_pilot
from autotune.trial import Failure, Mode

SGD = {"learning_rates": (0.1,), "weight_decays": (0.0,), "step_s": 0.06}
SPACE = space_of(allow="recipe", **SGD)
YOURS = SPACE.yours
NOISE = noise(1e4)
LARGEST = 512


def known(kind: str, size: int) -> Pilot:
    """What a pilot of this size gave."""
    return Pilot(kind=kind, batch_size=size, reference=64, reason=f"so it was {kind}")  # type: ignore[arg-type]


def searching(**changes: object) -> PlanContext:
    return context(SPACE, **{"look": GradientLook(noise=NOISE), **changes})


def finals(**changes: object) -> PlanContext:
    return searching(**{"search_over": "done", "remaining_s": 250.0, **changes})


def ahead(*sizes: int, rate: float = 4000.0) -> History:
    """The usual advice brought nothing; each of these batch sizes ran, the last the fastest."""
    history = History().opened(SPACE, 2000.0).ran(bundle(SPACE), 1500.0)
    for number, size in enumerate(sizes):
        settings = YOURS.replace(batch_size=size)
        history.ran(settings, rate * 1.3**number).ran(settings, rate * 1.3**number)
    return history


def test_the_batch_is_piloted_when_no_larger_one_is_left_to_try() -> None:
    """In the search, before more is built on it, with its recipe and what its samples are counted for."""
    ctx, history = searching(), ahead(128, 256, LARGEST)
    move = next_move(ctx, history)
    assert isinstance(move, TrainBoth)
    spec = move.spec
    assert spec.settings == YOURS.replace(batch_size=LARGEST)
    assert spec.reference == YOURS
    assert spec.recipe.learning_rates[0] > 0.4
    assert spec.recipe.warmup_samples <= 0.1 * spec.steps * LARGEST
    assert spec.priced == pytest.approx(ctx.weight(spec.settings))
    assert (spec.steps, spec.warm_steps) == (STEPS[3], WARM_STEPS)
    after = next_move(searching(pilots=(known("same", LARGEST),)), history)
    assert not isinstance(after, TrainBoth)


def test_a_batch_that_fails_is_out_and_larger_ones_with_it() -> None:
    """The next smaller one is the best then, and has a pilot of its own."""
    failed = searching(pilots=(known("worse", 256),))
    history = ahead(128, 256, LARGEST)
    know = Knowledge(failed, history)
    assert know.incumbent == YOURS.replace(batch_size=128)
    assert [know.trains_worse(YOURS.replace(batch_size=size)) for size in (64, 128, 256, LARGEST)] == [
        False,
        False,
        True,
        True,
    ]
    assert not acceptable(failed, history, SPACE.settings(batch_size=256, num_workers=1))
    move = next_move(failed, history)
    assert isinstance(move, TrainBoth)
    assert move.spec.settings.loader.batch_size == 128


def test_half_as_much_again_follows_a_batch_that_learns_where_twice_did_not() -> None:
    """First the smaller one is trained in; where it passes, what lies between the two is tried."""
    both = searching(pilots=(known("worse", 256), known("same", 128)))
    move = next_move(both, ahead(128, 256))
    assert isinstance(move, Run)
    assert move.spec.settings.loader.batch_size == 192


def test_before_the_finals_who_has_no_pilot_gets_one_or_stays_out() -> None:
    """A batch that nobody trained in wins nothing, and a smaller one that was is a candidate."""
    history = ahead(128, 256)
    move = next_move(finals(), history)
    assert isinstance(move, TrainBoth)
    assert move.spec.settings.loader.batch_size == 256
    late = finals(remaining_s=8.0, budget_s=30.0)
    know = Knowledge(late, history)
    assert not isinstance(next_move(late, history), TrainBoth)
    assert candidates(know, Costs(know)) == ()
    assert verdict_of(know, Costs(know)).sentence == (
        "yours stays: no time was left to train a while in the batch size that was faster"
    )
    some = finals(pilots=(known("same", 128),), remaining_s=40.0, piloted_s=36.0)
    assert Knowledge(some, history).incumbent.loader.batch_size == 128


def test_a_candidate_in_its_finals_has_no_pilot_any_more() -> None:
    """What it won would have to be judged again."""
    larger = YOURS.replace(batch_size=128)
    history = ahead(128).ran(YOURS, 2000, "final", pair=0).ran(larger, 4000, "final", pair=0)
    ctx = finals(pilots=(known("same", 128),))
    assert isinstance(next_move(ctx, history), Run)


def test_pilots_take_a_small_part_of_the_budget() -> None:
    """Shorter ones where time is short; then none, and the size is not tried at all."""
    history = ahead(128)
    larger = YOURS.replace(batch_size=128)
    asked = []
    for budget_s in (300.0, 120.0, 80.0, 20.0):
        know = Knowledge(searching(budget_s=budget_s), history)
        spec = early_pilot(know, 0.9 * budget_s)
        asked.append(None if spec is None else spec.steps)
        assert (reserve_s(know) > 0) == (spec is not None)
        assert bool(unaffordable(know, larger)) == (spec is None)
        assert spec is None or spec.window_s <= SHARE * budget_s
    assert asked[0] == STEPS[0]
    assert asked[-1] is None
    assert [steps for steps in asked if steps] == sorted((s for s in asked if s), reverse=True)


def test_what_pilots_took_is_taken_off_their_part() -> None:
    """A second one finds no time left, and the words say so."""
    know = Knowledge(searching(piloted_s=SHARE * 300.0), ahead(128))
    assert early_pilot(know, 200.0) is None
    why = unaffordable(know, YOURS.replace(batch_size=128))
    assert why.startswith("no time is left to train a while in batches of 128")


def test_without_time_for_a_pilot_nobody_looks_at_gradients() -> None:
    """They are looked at for the sake of larger batches alone."""
    history = History().opened(SPACE, 2000.0)
    for budget_s, looks in ((100.0, True), (40.0, False)):
        know = Knowledge(context(SPACE, budget_s=budget_s), history)
        assert (next_look(know, 0.9 * budget_s) is not None) == looks


def test_throughput_alone_and_a_fixed_batch_need_no_pilot() -> None:
    """Whoever asks for samples a second whatever they teach, or for a batch size, has it."""
    larger = YOURS.replace(batch_size=128)
    assert Knowledge(searching(), ahead(128)).unpiloted(larger)
    assert not Knowledge(searching(objective="throughput"), ahead(128)).unpiloted(larger)
    pinned = space_of(allow="recipe", fixed={"batch_size": 128}, **SGD)
    know = Knowledge(context(pinned), History().ran(pinned.yours, 100.0, "yours"))
    assert not know.unpiloted(pinned.start)


def test_an_interrupt_hands_out_no_batch_that_nobody_trained_in() -> None:
    """The best so far is then the best of those with the user's own batch."""
    history = ahead(128).ran(YOURS.replace(num_workers=2, prefetch_factor=2), 3000.0)
    cut = _incomplete(Knowledge(searching(), history))
    assert cut.winner.loader.batch_size == 64
    assert cut.winner.loader.num_workers == 2
    trained = _incomplete(Knowledge(searching(pilots=(known("same", 128),)), history))
    assert trained.winner.loader.batch_size == 128


def test_a_batch_of_an_earlier_session_can_be_ruled_out_by_this_one() -> None:
    """By a smaller limit, and by gradients that refuse any other batch, whatever the objective."""
    larger = YOURS.replace(batch_size=128)
    refused = GradientLook(refused="the loss is summed over the batch")
    for changes in ({"max_batch_size": 100}, {"look": refused}, {"look": refused, "objective": "throughput"}):
        assert Knowledge(searching(**changes), ahead(128)).ruled_out(larger)
        assert Knowledge(searching(**changes), ahead(128)).incumbent.loader.batch_size == 64
    assert not Knowledge(searching(max_batch_size=128), ahead(128)).ruled_out(larger)


def test_the_notes_tell_what_was_seen() -> None:
    """Of the winner, and of what was left out; that nobody trained in it, where the run was cut short."""
    larger = YOURS.replace(batch_size=128)

    def notes(*pilots: Pilot) -> tuple[str, ...]:
        return pilot_notes(Knowledge(searching(pilots=pilots), ahead(128)), larger)

    assert notes(known("same", 128)) == ("pilot: batches of 128: so it was same",)
    assert notes(known("unknown", 128)) == (
        "pilot: batches of 128: not known how they learn: so it was unknown",
    )
    assert notes(known("worse", 256), known("same", 128))[0] == (
        "pilot: batches of 256: so it was worse; left out"
    )
    assert notes() == ("pilot: batches of 128: nobody has trained in them yet",)


def growing(settings: Settings, mode: Mode) -> float:
    """A device whose every step costs 0.05 s beside its samples, so that large batches pay."""
    size = settings.loader.batch_size or 1
    return (1 if mode == "full" else 3) * size / (0.05 + size / 4000)


def tuned(
    pilots: Callable[[PilotSpec], PilotRecord | Failure], budget_s: float = 600.0, **options: object
) -> tuple[Outcome, FakeRunner]:
    """A whole run in that world, and its runner."""
    runner = fake_runner(
        growing,
        facts={**SGD, "has_conv2d": False, "image_input": False},
        gradients=fake_gradients(1e6, 64),
        pilots=pilots,
    )
    return run_fake(runner, budget_s, allow="recipe", **options), runner


def up_to(largest: int) -> Callable[[PilotSpec], PilotRecord]:
    """Batches beyond this one learn 40 % less than they are counted for."""
    return lambda spec: fake_pilot(
        spec, loss_change=0.4 if (spec.settings.loader.batch_size or 0) > largest else 0.0
    )


def test_the_winner_was_piloted_and_the_report_says_so() -> None:
    """Once for each size, within its part of the budget, and kept in the outcome."""
    outcome, runner = tuned(fake_pilot)
    assert outcome.best.loader.batch_size == LARGEST
    sizes = [spec.settings.loader.batch_size for spec in runner.piloted]
    assert sizes == [LARGEST]
    assert [pilot.kind for pilot in outcome.pilots] == ["same"]
    assert outcome.pilots[0].wall_s <= 1.2 * SHARE * 600.0
    assert "pilot: batches of 512: learns what its samples are counted for" in "\n".join(outcome.notes)


def test_a_batch_that_learns_less_does_not_win() -> None:
    """The note and the table say why it is not larger."""
    outcome, _ = tuned(up_to(64))
    assert outcome.best.loader.batch_size == 64
    assert any("40 % above what its samples are counted for" in note for note in outcome.notes)
    assert outcome.batch is not None
    assert outcome.recipe is None
    assert any("40 % above" in cap for cap in outcome.batch.limited_by)


def test_a_pilot_that_fails_rules_nobody_out() -> None:
    """It is made once, and a note says why nothing is known."""
    outcome, runner = tuned(lambda spec: Failure(kind="timeout", message="no end after 9 s"))
    assert outcome.best.loader.batch_size == LARGEST
    assert "pilot: batches of 512: not known how they learn: no end after 9 s" in outcome.notes
    assert len(runner.piloted) == 1


def test_a_resumed_run_knows_what_was_piloted(tmp_path) -> None:
    """It is not made again, and what failed stays out."""
    storage = str(tmp_path / "study.journal")
    first, runner = tuned(up_to(64), storage=storage)
    assert runner.piloted
    failed = {spec.settings.loader.batch_size for spec in runner.piloted}
    again, runner = tuned(fake_pilot, storage=storage, resume=True)
    assert not failed & {spec.settings.loader.batch_size for spec in runner.piloted}
    assert first.pilots[0] in again.pilots


def test_a_short_budget_keeps_the_batch_and_says_why() -> None:
    """No trial is spent on what nobody could train in."""
    outcome, runner = tuned(fake_pilot, 60.0)
    assert runner.piloted == []
    assert {t.settings.loader.batch_size for t in outcome.trials} == {64}
    why = [kept.why for kept in outcome.kept if kept.knob == "batch_size"]
    assert len(why) == 1
    assert "more than 12 % of the budget" in why[0]
