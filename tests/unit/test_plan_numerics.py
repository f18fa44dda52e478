"""Steps compared with *yours*: when, what follows, and what the user is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from search_worlds import History, acceptable, context, fake_runner, run_fake, space_of
from strategies import plain_gpu

from autotune.measure.seam import NumericsSpec
from autotune.recipe.guard import CHECKED, LEAST_STEPS, STEPS, Numerics, NumericsRecord, judge_numerics
from autotune.search.checking import LEAST_SHARE, SHARE, needed_s, precision_kept, uncheckable
from autotune.search.compiling import later_s
from autotune.search.context import PlanContext
from autotune.search.cost import Costs
from autotune.search.decision import CheckNumerics, Finish, Run
from autotune.search.finals import candidates
from autotune.search.finals import judged as verdict_of
from autotune.search.guard import early_check, guard_notes, next_check, reserve_s
from autotune.search.knowledge import Knowledge
from autotune.search.plan import next_move
from autotune.settings import Settings
from autotune.testing import fake_numerics
from autotune.trial import Failure, Mode

GPU = {
    "device": "cuda",
    "gpus": (plain_gpu(),),
    "fused_available": True,
    "image_input": True,
    "has_conv2d": True,
}
SPACE = space_of(**GPU)
YOURS = SPACE.yours
BF16 = YOURS.replace(precision="bfloat16")
TF32 = YOURS.replace(precision="tf32")


def judged(settings: Settings, loss_change: float = 0.0) -> Numerics:
    """What comparing these settings gave."""
    return judge_numerics(
        fake_numerics(NumericsSpec(settings=settings, reference=YOURS), loss_change=loss_change)
    )


def searching(**changes: object) -> PlanContext:
    return context(SPACE, **{"numerics": (), **changes})


def finals(**changes: object) -> PlanContext:
    return searching(**{"search_over": "done", "remaining_s": 250.0, **changes})


def ahead(*settings: Settings) -> History:
    """Each of these ran, one faster than the other, the last the fastest."""
    history = History().opened(SPACE)
    for number, each in enumerate(settings):
        history.ran(each, 150.0 + 20 * number).ran(each, 150.0 + 20 * number)
    return history


def asked_for(ctx: PlanContext, history: History) -> NumericsSpec | None:
    """The comparison of those who would be candidates if every precision trained the same."""
    before = Knowledge(replace(ctx, search_over=""), history)
    know = Knowledge(ctx, history)
    return next_check(know, Costs(know), candidates(before, Costs(before)))


def test_another_precision_is_checked_before_more_is_built_on_it() -> None:
    """In the search, against the same settings with the user's own arithmetic; then it goes on."""
    move = next_move(searching(), ahead(BF16.replace(num_workers=2)))
    assert isinstance(move, CheckNumerics)
    assert move.spec.settings.compute.precision == "bfloat16"
    assert move.spec.reference == YOURS.replace(num_workers=2)
    assert move.spec.steps == STEPS
    after = next_move(searching(numerics=(judged(BF16),)), ahead(BF16.replace(num_workers=2)))
    assert not isinstance(after, CheckNumerics)


def test_what_only_adds_up_in_another_order_is_not_compared() -> None:
    """Another memory order or optimizer kernel in the same format goes straight into the finals."""
    for settings in (YOURS.replace(channels_last=True), YOURS.replace(num_workers=2)):
        move = next_move(finals(), ahead(settings))
        assert isinstance(move, Run)
        assert move.spec.stage == "final"
    for settings in (TF32.replace(channels_last=True), TF32.replace(compile="default")):
        move = next_move(finals(), ahead(settings))
        assert isinstance(move, CheckNumerics)
        compared = set(move.spec.settings.changed_from(move.spec.reference))
        assert compared == set(CHECKED) & set(settings.changed_from(YOURS))


def test_a_candidate_that_trains_worse_leaves_its_place_to_the_next() -> None:
    """It is no incumbent, meets nobody, and is not tried again with other workers."""
    ctx, history = finals(numerics=(judged(BF16, 0.12),)), ahead(TF32, BF16)
    assert Knowledge(replace(ctx, search_over=""), history).incumbent == TF32
    move = next_move(ctx, history)
    assert isinstance(move, CheckNumerics)
    assert move.spec.settings == TF32
    assert not acceptable(ctx, history, SPACE.settings(precision="bfloat16", num_workers=2))
    assert acceptable(ctx, history, SPACE.settings(channels_last=True, num_workers=2))


def test_what_rounds_too_coarsely_is_tried_in_your_own_precision() -> None:
    """The workers that were found with it are not lost, and are measured once."""
    history = ahead(BF16, BF16.replace(num_workers=2, prefetch_factor=2, persistent_workers=True))
    ctx = searching(numerics=(judged(BF16, 0.12),))
    move = next_move(ctx, history)
    assert isinstance(move, Run)
    assert move.spec.settings == SPACE.settings(num_workers=2)
    assert move.spec.settings.compute.precision == YOURS.compute.precision
    after = next_move(ctx, history.ran(move.spec.settings, 160.0))
    assert isinstance(after, Run)
    assert after.spec.settings != move.spec.settings


def test_what_is_known_of_a_precision_holds_whatever_else_changes() -> None:
    """And says nothing of another precision, or of settings that keep it."""
    know = Knowledge(searching(numerics=(judged(BF16, 0.12),)), ahead(BF16))
    asked = (BF16, BF16.replace(num_workers=2, channels_last=True), TF32, YOURS.replace(num_workers=2))
    assert [know.trains_worse(s) for s in asked] == [True, True, False, False]


def test_it_takes_a_small_part_of_the_budget_or_is_left_out() -> None:
    """With fewer steps, and a larger part, where that is all there is time for; else a note says so."""
    history = ahead(TF32)
    know = Knowledge(finals(), history)
    enough_s = (STEPS + 1.5) * (know.latest(YOURS).step_s + know.latest(TF32).step_s) / SHARE
    for budget_s, steps in (
        (enough_s, STEPS),
        (0.9 * enough_s, LEAST_STEPS),
        (0.3 * enough_s, LEAST_STEPS),
        (0.2 * enough_s, None),
    ):
        know = Knowledge(finals(budget_s=budget_s), history)
        spec = asked_for(know.ctx, history)
        assert (spec and spec.steps) == steps
        during = Knowledge(searching(budget_s=budget_s), history)
        assert (reserve_s(during) > 0) == (steps is not None)
    assert guard_notes(know, TF32) == ("numerics: tf32: not checked: no time was left",)
    assert early_check(Knowledge(searching(), ahead(BF16)), 0.1) is None


def test_the_fewest_pairs_come_before_it() -> None:
    """Where the time that is left holds no more than those, it is left out."""
    history = ahead(TF32)
    know = Knowledge(finals(remaining_s=60.0, numerics=(judged(TF32),)), history)
    pairs_s = 4 * Costs(know).round_s() + Costs(know).edge_s
    for remaining_s, made in ((pairs_s + 15.0, True), (pairs_s + 1.0, False)):
        assert (asked_for(finals(remaining_s=remaining_s), history) is not None) == made


def test_a_precision_that_nobody_compared_is_not_offered() -> None:
    """Neither met in the finals nor chosen; what keeps *yours* may be, and sentence and note say why."""
    ctx, history = finals(budget_s=20.0), ahead(YOURS.replace(num_workers=2), BF16)
    move = next_move(ctx, history)
    assert isinstance(move, Run)
    assert move.spec.stage == "final"
    assert all(
        s.compute.precision == "float32"
        for s in candidates(Knowledge(ctx, history), Costs(Knowledge(ctx, history)))
    )
    know = Knowledge(ctx, ahead(BF16))
    assert isinstance(next_move(ctx, ahead(BF16)), Finish)
    verdict = verdict_of(know, Costs(know))
    assert (verdict.kind, verdict.winner) == ("unsure", YOURS)
    assert (
        verdict.sentence == "yours stays: no time was left to compare the steps of what was faster with yours"
    )
    assert guard_notes(know, YOURS) == ("numerics: bfloat16: not checked: no time was left; left out",)


def test_a_precision_that_could_not_be_compared_is_not_tried() -> None:
    """The report names the budget that would do; what the user fixed is not up to a comparison."""
    history = History().opened(SPACE)
    know = Knowledge(searching(), history)
    least_s = needed_s(know, BF16, LEAST_STEPS, runs=2) / LEAST_SHARE
    assert uncheckable(Knowledge(searching(budget_s=1.01 * least_s), history), BF16) == ""
    short = Knowledge(searching(budget_s=0.9 * least_s), history)
    assert "bfloat16 with yours takes" in uncheckable(short, BF16.replace(num_workers=2))
    assert not acceptable(short.ctx, history, BF16)
    (kept,) = precision_kept(short)
    assert (kept.knob, kept.value) == ("precision", "float32")
    assert "more than 15 % of the budget (a budget of" in kept.why
    assert precision_kept(know) == ()
    fixed = space_of(fixed={"precision": "bfloat16"}, **GPU)
    know = Knowledge(context(fixed, numerics=(), budget_s=0.1 * least_s), History().opened(fixed))
    assert uncheckable(know, fixed.start) == ""
    assert not know.unchecked(fixed.start)


def test_compiled_half_width_needs_time_to_be_compiled_for_the_comparison() -> None:
    """A budget that just compares bfloat16 is too short for it compiled, read from disk by then."""
    history = History().opened(SPACE)
    least_s = needed_s(Knowledge(searching(), history), BF16, LEAST_STEPS, runs=2) / LEAST_SHARE
    know = Knowledge(searching(budget_s=1.01 * least_s), history)
    compiled = BF16.replace(compile="default")
    assert uncheckable(know, BF16) == ""
    assert "bfloat16 with yours takes" in uncheckable(know, compiled)
    longer = Knowledge(searching(budget_s=1.01 * least_s + later_s(know, compiled) / LEAST_SHARE), history)
    assert uncheckable(longer, compiled) == ""


def test_what_is_known_of_a_precision_holds_for_it_compiled() -> None:
    """Compiling is checked apart, and offered with a note where there was no time for that."""
    know = Knowledge(finals(numerics=(judged(BF16),)), ahead(BF16))
    assert not know.unchecked(BF16.replace(compile="default"))
    assert know.unchecked(TF32.replace(compile="default"))
    assert not know.unchecked(YOURS.replace(compile="default"))


def test_what_trains_worse_does_not_win_by_being_compiled() -> None:
    """A precision that was compared and found too coarse says nothing good of what is compiled for it."""
    compiled = BF16.replace(compile="default")
    know = Knowledge(finals(numerics=(judged(BF16, 0.12),)), ahead(compiled))
    assert know.unchecked(compiled)
    assert candidates(know, Costs(know)) == ()
    assert not Knowledge(finals(numerics=(judged(compiled),)), ahead(compiled)).unchecked(compiled)
    said = guard_notes(know, YOURS)
    assert said[0].startswith("numerics: bfloat16: the loss after")
    assert said[1] == "numerics: bfloat16, compiled (default): not checked: no time was left; left out"


def test_a_candidate_in_its_finals_is_not_checked_any_more() -> None:
    """What it won would have to be judged again."""
    compiled = YOURS.replace(compile="default")
    history = ahead(compiled)
    assert isinstance(next_move(finals(), history), CheckNumerics)
    history.ran(YOURS, 100, "final", pair=0).ran(compiled, 150, "final", pair=0)
    assert isinstance(next_move(finals(), history), Run)


def fast_on_tensor_cores(settings: Settings, mode: Mode) -> float:
    """bfloat16 twice as fast, tf32 and two workers some."""
    faster = {"float32": 1.0, "tf32": 1.3, "bfloat16": 2.0, "float16": 1.9}[settings.compute.precision]
    workers = 1.2 if settings.loader.num_workers >= 2 else 1.0
    return 400.0 * faster * (workers if mode == "full" else 3.0)


def tuned(
    numerics: Callable[[NumericsSpec], NumericsRecord | Failure], budget_s: float = 300.0, **options: object
):
    """A whole run in that world, and its runner."""
    runner = fake_runner(fast_on_tensor_cores, noise=0.005, facts=GPU, numerics=numerics)
    return run_fake(runner, budget_s, **options), runner


def harmful(spec: NumericsSpec) -> NumericsRecord:
    """Sixteen bits change the loss by 12 %."""
    half = spec.settings.compute.precision in ("bfloat16", "float16")
    return fake_numerics(spec, loss_change=0.12 if half else 0.0)


def test_the_winner_is_checked_and_the_report_says_so() -> None:
    """One comparison for each arithmetic, before any of its finals."""
    outcome, runner = tuned(fake_numerics)
    assert outcome.best.compute.precision == "bfloat16"
    assert "numerics: bfloat16" in "\n".join(outcome.notes)
    assert f"same as float32 over {STEPS} steps (loss within 0 %, gradients' cosine 1.0000)" in "\n".join(
        outcome.notes
    )
    asked = [frozenset(s.settings.changed_from(s.reference).items()) for s in runner.compared]
    assert len(asked) == len(set(asked))


def test_what_trains_worse_does_not_win() -> None:
    """The fastest that trains the same does, and a note says what was left out and why."""
    outcome, _ = tuned(harmful)
    assert outcome.verdict.kind == "faster"
    assert outcome.best.compute.precision == "tf32"
    half = {t.settings.compute.precision for t in outcome.trials if t.spec.stage == "final"}
    assert half <= {"float32", "tf32"}
    assert (
        "numerics: bfloat16: the loss after 32 steps was 12 % above float32's (limit 1 %); left out"
        in outcome.notes
    )


def test_yours_stays_where_all_that_is_faster_trains_worse() -> None:
    """The sentence does not claim that nothing was faster."""
    ctx = finals(numerics=(judged(BF16, 0.12),))
    assert isinstance(next_move(ctx, ahead(BF16)), Finish)
    know = Knowledge(ctx, ahead(BF16))
    verdict = verdict_of(know, Costs(know))
    assert (verdict.kind, verdict.sentence) == (
        "kept",
        "yours stays: what was faster does not train the same",
    )


def test_a_comparison_that_fails_rules_nobody_out() -> None:
    """It is made once, and a note says why nothing is known."""
    outcome, runner = tuned(lambda spec: Failure(kind="timeout", message="no end after 9 s"))
    assert outcome.best.compute.precision == "bfloat16"
    assert any(note.endswith(": not checked: no end after 9 s") for note in outcome.notes)
    asked = [frozenset(s.settings.changed_from(s.reference).items()) for s in runner.compared]
    assert len(asked) == len(set(asked))


def test_a_resumed_run_knows_what_was_compared(tmp_path) -> None:
    """It is not made again, and what failed stays out."""
    storage = str(tmp_path / "study.journal")
    first, runner = tuned(harmful, storage=storage)
    assert runner.compared
    again, runner = tuned(fake_numerics, storage=storage, resume=True)
    assert not any(s.settings.compute.precision == "bfloat16" for s in runner.compared)
    assert again.best.compute.precision == first.best.compute.precision == "tf32"
