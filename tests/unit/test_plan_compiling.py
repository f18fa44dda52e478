"""When the search compiles: what it is expected to cost, and where there is no room for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from search_worlds import History, context, space_of

from autotune.facts import GpuFacts
from autotune.recipe.guard import Numerics
from autotune.search.compiling import (
    AGAIN,
    AUTOTUNED,
    PATIENCE,
    affordable,
    compile_kept,
    compile_notes,
    first_s,
    next_s,
    pays_back,
    too_dear,
)
from autotune.search.cost import Costs
from autotune.search.decision import Run
from autotune.search.engine import TuneOptions, tune
from autotune.search.finals import next_worth
from autotune.search.knowledge import Knowledge
from autotune.search.lessons import would_fail
from autotune.search.listener import SilentListener
from autotune.search.moves import next_compiled, worth_trying_now
from autotune.search.parts import _compute_variants
from autotune.search.pilot import unaffordable
from autotune.search.plan import next_move
from autotune.search.recheck import recheck
from autotune.settings import Settings
from autotune.space.candidates import Space, bundle, neighbours
from autotune.testing import FakeRunner, fake_description
from autotune.trial import Mode, Trial, TrialSpec

GPU = GpuFacts(index=0, name="H100", memory_bytes=80 << 30, capability=(9, 0), native_bf16=True)
ABLE: dict[str, Any] = {"compile_fixed": "", "leaf_modules": 35}


def know_of(space: Space, history: History, **changes: object) -> Knowledge:
    return Knowledge(context(space, **changes), history)


def test_the_first_time_is_guessed_by_the_models_size() -> None:
    """Ten seconds, and 0.3 for each leaf module; choosing among many kernels takes a multiple."""
    space = space_of(**ABLE)
    know = know_of(space, History().opened(space))
    assert first_s(know, "default") == pytest.approx(20.5)
    assert first_s(know, "max-autotune") == pytest.approx(20.5 * AUTOTUNED)


def test_what_compiling_took_is_expected_of_other_settings_and_modes() -> None:
    """Other workers and another optimizer step need nothing new; another number of threads and mode do."""
    space = space_of(**ABLE)
    compiled = space.settings(compile="default")
    history = History().opened(space).ran(compiled, 200, warmup_s=50.0, wall_s=53.0)
    know = know_of(space, history)
    assert next_s(know, space.yours) == 0.0
    assert next_s(know, compiled) == pytest.approx(AGAIN * 50.0)
    assert next_s(know, space.settings(compile="default", num_workers=2)) == pytest.approx(AGAIN * 50.0)
    assert next_s(know, compiled.replace(fused_optimizer=True)) == pytest.approx(AGAIN * 50.0)
    assert next_s(know, space.settings(compile="default", cpu_threads=2)) == pytest.approx(50.0)
    assert first_s(know, "reduce-overhead") == pytest.approx(50.0)


def test_later_times_are_known_once_one_was_seen() -> None:
    """The first one, with nothing on disk, says no more about the next."""
    space = space_of(**ABLE)
    compiled = space.settings(compile="default")
    history = History().opened(space)
    for seconds in (50.0, 6.0, 7.0, 9.0):
        history.ran(compiled, 200, warmup_s=seconds, wall_s=seconds + 3)
    assert next_s(know_of(space, history), compiled) == pytest.approx(7.0)
    costs = Costs(know_of(space, history))
    assert costs.overhead_s(compiled, "full") < 10.0
    assert costs.overhead_s(space.settings(num_workers=2), "full") < 5.0


def test_a_compilation_that_ran_out_of_time_is_known_to_be_long() -> None:
    """It took at least as long as the trial lasted, and other settings are not expected to be quicker."""
    space = space_of(**ABLE)
    history = History().opened(space).failed(space.settings(compile="default"), "timeout")
    history[-1] = replace_wall(history[-1], 100.0)
    know = know_of(space, history)
    assert first_s(know, "default") == pytest.approx(100.0)
    assert too_dear(know, space.settings(compile="default", cpu_threads=2))


def replace_wall(trial: Trial, seconds: float) -> Trial:
    assert trial.failure is not None
    return replace(trial, failure=replace(trial.failure, wall_s=seconds))


def test_a_short_budget_has_no_room_for_it() -> None:
    """In a minute nothing is compiled, in five minutes it is tried; the report says why not."""
    space = space_of(**ABLE)
    compiled = space.settings(compile="default")
    short = know_of(space, History().opened(space), budget_s=60.0, remaining_s=50.0)
    long = know_of(space, History().opened(space), budget_s=300.0, remaining_s=280.0)
    assert not worth_trying_now(short, compiled)
    assert worth_trying_now(long, compiled)
    (kept,) = compile_kept(short)
    assert kept.knob == "compile"
    assert kept.why.startswith("compiling is expected to take about 20.5 s, and ")
    assert "more than the budget had room for" in kept.why
    assert compile_kept(long) == ()


def test_time_that_the_finals_took_is_no_reason() -> None:
    """What was left when *yours* had run says whether there was room; nobody is sent to a larger budget."""
    space = space_of(**ABLE)
    history = History().opened(space).ran(space.settings(num_workers=2), 150, wall_s=200.0)
    late = know_of(space, history, remaining_s=20.0, search_over="the ceilings leave nothing to gain")
    assert too_dear(late, space.settings(compile="default"))
    assert compile_kept(late) == ()


def test_what_the_user_fixed_is_compiled_in_any_case() -> None:
    """However short the budget: it is what they asked for."""
    space = space_of(fixed={"compile": "default"}, **ABLE)
    ctx = context(space, budget_s=60.0, remaining_s=50.0)
    move = next_move(ctx, History().opened(space))
    assert isinstance(move, Run)
    assert move.spec.settings == space.start
    assert space.start.compute.compile == "default"


def test_a_first_compilation_is_waited_for() -> None:
    """Although the one seen was quick: it may have been on disk from an earlier run."""
    space = space_of(**ABLE)
    compiled = space.settings(compile="default")
    history = History().opened(space).ran(compiled, 200, warmup_s=3.0)
    costs = Costs(know_of(space, history))
    new = costs.search_spec(compiled.replace(cpu_threads=2), "joint", "")
    assert costs.patience_s(new) >= PATIENCE * 20.5
    assert costs.patience_s(costs.search_spec(compiled, "joint", "")) < PATIENCE * 20.5


def test_a_pilot_is_not_priced_with_what_it_does_not_compile() -> None:
    """Nothing is compiled in it, however long the incumbent took."""
    space = space_of(allow="recipe", **ABLE)
    compiled = space.settings(compile="default")
    larger = compiled.replace(batch_size=128)
    history = History().opened(space, 5000).ran(compiled, 9000, warmup_s=47.0, wall_s=50.0)
    assert unaffordable(know_of(space, history), larger) == ""


def test_a_pilot_is_priced_where_yours_is_compiled() -> None:
    """As a description may say it is: then *yours* is all that is known of the step."""
    space = space_of(allow="recipe", compile="default", **ABLE)
    know = know_of(space, History().opened(space, 5000))
    assert unaffordable(know, space.yours.replace(batch_size=128)) == ""


def test_a_model_that_does_not_compile_is_not_tried_in_every_way() -> None:
    """One failure speaks for all that compiles, unless something did."""
    space = space_of(device="cuda:0", gpus=(GPU,), **ABLE)
    failing = space.settings(compile="reduce-overhead", num_workers=2)
    history = History().opened(space).failed(failing, "compile_error")
    assert would_fail(space.settings(compile="default"), history)
    assert not would_fail(space.settings(num_workers=2), history)
    history.ran(space.settings(compile="default"), 200)
    assert not would_fail(space.settings(compile="default", num_workers=4), history)
    assert would_fail(space.settings(compile="reduce-overhead"), history)


def test_half_the_width_that_does_not_compile_says_nothing_of_the_full_one() -> None:
    """An operation may have no kernel for it; in float32 it is the code itself."""
    space = space_of(device="cuda:0", gpus=(GPU,), **ABLE)
    narrow = space.settings(compile="reduce-overhead", precision="bfloat16")
    history = History().opened(space).failed(narrow, "compile_error")
    assert would_fail(narrow.replace(compile="default", num_workers=2), history)
    assert not would_fail(narrow.replace(precision="float32"), history)
    history.failed(narrow.replace(precision="float32"), "compile_error")
    assert would_fail(narrow.replace(precision="float16"), history)


@pytest.mark.parametrize(("left_s", "dear"), [(3.1, False), (2.9, True)])
def test_the_first_time_may_take_a_third_of_the_time_that_is_left(left_s: float, dear: bool) -> None:
    """With the later times of a second look and the finals two thirds."""
    space = space_of(**ABLE)
    compiled = space.settings(compile="default")
    know = know_of(space, History().opened(space), remaining_s=left_s * 20.5)
    assert bool(too_dear(know, compiled)) == dear


def test_a_graph_that_did_not_fit_says_nothing_of_steps_one_by_one() -> None:
    """It keeps the memory of a whole step for itself; what is held in as wide numbers without it may fit."""
    space = space_of(device="cuda:0", gpus=(GPU,), allow="recipe", **ABLE)
    graph = space.settings(compile="reduce-overhead", batch_size=128)
    history = History().opened(space).failed(graph, "oom_device")
    assert would_fail(graph.replace(batch_size=256), history)
    assert not would_fail(graph.replace(compile=None), history)


def test_worth_is_not_measured_where_it_would_have_to_compile() -> None:
    """The winner without its precision compiles for the first time, which the winner has behind it."""
    space = space_of(device="cuda:0", gpus=(GPU,), **ABLE)
    winner = space.settings(compile="default", precision="bfloat16", num_workers=2)
    history = History().opened(space)
    for pair in range(5):
        history.ran(space.yours, 100, "final", pair=pair, fresh=True)
        history.ran(winner, 300, "final", pair=pair, fresh=True, warmup_s=6.0)
    know = know_of(space, history, search_over="nothing new was left to try", numerics=same(winner, space))
    asked = []
    for _ in range(12):
        spec = next_worth(know, Costs(know))
        if spec is None:
            break
        asked.append(spec.settings)
        history.ran(spec.settings, 200, "worth", pair=spec.pair, warmup_s=6.0)
        know = know_of(space, history, search_over=know.ctx.search_over, numerics=know.ctx.numerics)
    assert winner.replace(compile=None) in asked
    assert not any(s.compute.compile and s.compute.precision != "bfloat16" for s in asked)


def test_what_trains_worse_compiled_is_tried_as_it_is_written() -> None:
    """Code that nobody has read is suspected before a precision is; all else may be right about it."""
    space = space_of(device="cuda:0", gpus=(GPU,), **ABLE)
    harmful = space.settings(compile="default", precision="bfloat16")
    history = History().opened(space).ran(harmful, 300, warmup_s=20.0)
    worse = Numerics(kind="worse", reason="losses", settings=harmful, reference=space.yours)
    move = next_move(context(space, numerics=(worse,)), history)
    assert isinstance(move, Run)
    assert move.spec.settings == harmful.replace(compile=None)
    assert move.spec.reason == "the fastest, not compiled"


def test_a_profile_that_compiles_is_checked_in_a_minute() -> None:
    """The first run compiles for 20 s; the pairs are priced with what comes from disk."""
    runner = Compiles(lambda settings, mode: 500.0 if settings.compute.compile else 400.0)
    told = runner.describe()
    other = told.yours.replace(compile="default")
    found = recheck(runner, told, other, SilentListener(), budget_s=60.0, clock=runner.clock)
    assert sum(trial.spec.pair is not None for trial in found.trials) >= 8
    assert found.verdict.kind == "faster"


def same(winner: Settings, space: Space) -> tuple[Numerics, ...]:
    return (Numerics(kind="same", reason="same", settings=winner, reference=space.yours),)


def test_a_short_training_does_not_pay_it_back() -> None:
    """50,000 samples at 100/s are 8 minutes an epoch; at 2,000/s 25 seconds, of which 20.5 are too many."""
    space = space_of(**ABLE)
    compiled = space.settings(compile="default")
    slow = know_of(space, History().opened(space, 100.0), epochs=1)
    quick = know_of(space, History().opened(space, 2000.0), epochs=1)
    assert too_dear(slow, compiled) == ""
    assert too_dear(quick, compiled) == "compiling is expected to take about 20.5 s of a training of 25.0 s"
    assert too_dear(know_of(space, History().opened(space, 2000.0), epochs=100), compiled) == ""


def test_a_gain_must_save_what_compiling_takes() -> None:
    """Of a training of 500 s a gain of 2 % saves 10 s, and compiling takes 20.5."""
    space = space_of(**ABLE)
    compiled = space.settings(compile="default")
    know = know_of(space, History().opened(space), epochs=1)
    assert not pays_back(know, compiled, 0.02)
    assert pays_back(know, compiled, 0.05)
    assert pays_back(know, space.settings(num_workers=2), 0.0)
    assert pays_back(know_of(space, History().opened(space)), compiled, 0.02)


def test_the_sampler_is_left_its_other_knobs() -> None:
    """Where nothing is to be compiled, what it draws is tried without."""
    space = space_of(**ABLE)
    values = {name: space.values(name)[-1] for name in space.names}
    short = know_of(space, History().opened(space), budget_s=60.0, remaining_s=50.0)
    assert affordable(short, values) == {**values, "compile": None}
    assert affordable(know_of(space, History().opened(space)), values) == values


def test_what_won_before_is_tried_uncompiled_where_compiling_is_too_dear() -> None:
    """All else that made it fast is as good a guess in a minute."""
    space = space_of(**ABLE)
    won = space.settings(compile="default", cpu_threads=2)
    for remaining_s, wanted in ((280.0, won), (50.0, won.replace(compile=None))):
        ctx = context(space, budget_s=remaining_s + 10, remaining_s=remaining_s, first=(won,))
        move = next_move(ctx, History().opened(space))
        assert isinstance(move, Run)
        assert move.spec.settings == wanted


def test_compiling_is_a_move_of_its_own() -> None:
    """Not part of the first guess, and not of the partial trials: it takes longer than any of those."""
    space = space_of(**ABLE)
    assert bundle(space).compute.compile is None
    moves = neighbours(space, space.yours, "compute")
    assert ("compile", space.yours.replace(compile="default")) in moves
    back = neighbours(space, space.yours.replace(compile="default"), "compute")
    assert ("compile", space.yours) in back
    know = know_of(space, History().opened(space))
    assert not any(settings.compute.compile for settings in _compute_variants(know))


def test_on_a_device_compiling_comes_before_larger_batches() -> None:
    """Once, in the mode that launches a step at once; on a CPU it is a move like any other."""
    space = space_of(device="cuda:0", gpus=(GPU,), has_conv2d=True, image_input=True, allow="recipe", **ABLE)
    assert space.values("compile") == (None, "default", "reduce-overhead", "max-autotune")
    history = History().opened(space, wait=0.01)
    know = know_of(space, history)
    spec = next_compiled(know, Costs(know), ("compute",))
    assert spec is not None
    assert spec.settings == space.yours.replace(compile="reduce-overhead")
    assert next_compiled(know, Costs(know), ("loader",)) is None
    history.ran(spec.settings, 200, warmup_s=20.0)
    know = know_of(space, history)
    assert next_compiled(know, Costs(know), ("compute",)) is None
    on_cpu = space_of(**ABLE)
    know = know_of(on_cpu, History().opened(on_cpu))
    assert next_compiled(know, Costs(know), ("compute",)) is None


def test_the_winner_says_what_compiling_it_took() -> None:
    """The first time, and later ones."""
    space = space_of(**ABLE)
    compiled = space.settings(compile="default")
    history = History().opened(space).ran(compiled, 200, warmup_s=50.0)
    assert compile_notes(know_of(space, history), space.yours) == ()
    assert compile_notes(know_of(space, history), compiled) == ("compiling took 50.0 s the first time",)
    history.ran(compiled, 200, warmup_s=6.0)
    (note,) = compile_notes(know_of(space, history), compiled)
    assert note == "compiling took 50.0 s the first time, and 6.00 s once torch had it on disk"


def test_a_search_finds_what_compiling_brings() -> None:
    """A step that is a third faster compiled wins, and is compared step by step before it does."""

    def rate(settings: Settings, mode: Mode) -> float:
        return 400.0 * (1.3 if settings.compute.compile else 1.0) * (1 if mode == "full" else 2)

    runner = Compiles(rate, description=fake_description(**ABLE))
    found = tune(runner, TuneOptions(budget_s=300.0), SilentListener(), clock=runner.clock)
    assert found.best.compute.compile == "default"
    assert any(note.startswith("numerics: compiled (default)") for note in found.notes)
    assert any(note.startswith("compiling took 20.0 s the first time") for note in found.notes)


class Compiles(FakeRunner):
    """Compiling takes 20 s, and 4 s from disk."""

    def __init__(self, *args: Any, **changes: Any) -> None:
        super().__init__(*args, **changes)
        self.compiled: set[Settings] = set()

    def run(self, spec: TrialSpec) -> Any:
        found = super().run(spec)
        if spec.settings.compute.compile is None or spec.mode == "loader":
            return found
        seconds = 4.0 if spec.settings in self.compiled else 20.0
        self.compiled.add(spec.settings)
        self.clock.advance(seconds)
        return replace(found, warmup_s=seconds, wall_s=found.wall_s + seconds)
