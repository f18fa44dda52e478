"""What the search goes on with once something fast is out: failing repeats, batches that may not be."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
from batch_worlds import QUIET, SGD, growing, noise
from search_worlds import History, all_the_same, context, fake_runner, run_fake, space_of
from strategies import plain_gpu

from autotune.measure.seam import PilotSpec
from autotune.outcome import Pilot
from autotune.recipe.guard import Numerics
from autotune.recipe.pilot import PilotRecord
from autotune.search.batch import GradientLook
from autotune.search.batch_moves import batch_kept, in_turn, next_batch
from autotune.search.context import PlanContext
from autotune.search.cost import Costs
from autotune.search.decision import EndSearch, Run, TrainBoth
from autotune.search.finals import candidates
from autotune.search.knowledge import Knowledge
from autotune.search.moves import worth_trying_now
from autotune.search.pilot import SHARE, settled
from autotune.search.plan import next_move, sampled
from autotune.search.predict import predictions
from autotune.settings import Settings
from autotune.space.candidates import Space, bundle
from autotune.testing import fake_gradients, fake_pilot
from autotune.trial import Failure, FailureKind, Mode

SPACE = space_of(allow="recipe", **SGD)
YOURS = SPACE.yours
GPU = {"device": "cuda:0", "gpus": (plain_gpu(),), "has_conv2d": True, "image_input": True}


def searching(**changes: object) -> PlanContext:
    return context(SPACE, **{"look": GradientLook(noise=noise(1e6)), **changes})


@pytest.mark.parametrize("kind", ["process_crash", "timeout"])
@pytest.mark.parametrize("spread", [0.0, 0.03])
def test_settings_that_ran_once_and_fail_again_are_not_asked_for_twice(
    kind: FailureKind, spread: float
) -> None:
    """As where a worker leaves memory behind: every repeat would fail, and take the time of all else."""
    ran: Counter[Settings] = Counter()

    def fails(settings: Settings) -> Failure | None:
        if settings.loader.num_workers == 0 or not settings.compute.channels_last:
            return None
        ran[settings] += 1
        return Failure(kind=kind, message="no memory is left") if ran[settings] > 1 else None

    outcome = run_fake(fake_runner(failures=fails, noise=spread, seed=1), 300.0)
    failed = Counter(t.settings for t in outcome.trials if t.failure and t.spec.mode == "full")
    assert failed
    assert max(failed.values()) == 1


def test_settings_whose_last_run_failed_lead_nothing() -> None:
    """Neither the best so far nor a candidate, until they run again."""
    space = space_of()
    flaky, sound = space.settings(num_workers=2), space.settings(num_workers=1)
    history = History().opened(space).ran(sound, 150).ran(sound, 150).ran(flaky, 200).failed(flaky, "timeout")
    know = Knowledge(context(space), history)
    assert know.incumbent == sound
    assert know.race is None
    assert know.doubtful != flaky
    assert candidates(know, Costs(know)) == (sound,)
    again = Knowledge(context(space), history.ran(flaky, 200))
    assert again.incumbent == flaky


def test_a_smaller_largest_batch_holds_for_what_ran_before(tmp_path) -> None:
    """Sizes over it are not measured again when the study goes on, and half as much again has its turn."""
    storage = str(tmp_path / "study.journal")
    for most in (None, 100):
        runner = fake_runner(growing, facts={**SGD, **QUIET}, gradients=fake_gradients(1e6, 64))
        resume = most is not None
        outcome = run_fake(runner, 300.0, allow="recipe", storage=storage, resume=resume, max_batch_size=most)
        assert outcome.best.loader.batch_size == (96 if resume else 512)
    assert {spec.settings.loader.batch_size for spec in runner.specs} == {64, 96}


def test_a_batch_that_no_time_is_left_to_train_in_is_not_built_on() -> None:
    """Twice as much failed its pilot, which took the time: what was piloted, or *yours*, leads instead."""
    failed = Pilot(kind="worse", batch_size=256, reference=64, reason="so it was")
    history = History().opened(SPACE, 2000.0).ran(YOURS.replace(batch_size=128), 4000.0)
    history.ran(YOURS.replace(batch_size=256), 5000.0)
    with_time = settled(searching(pilots=(failed,)), history)
    assert with_time.untrained == frozenset()
    assert Knowledge(with_time, history).incumbent == YOURS.replace(batch_size=128)
    spent = settled(searching(pilots=(failed,), piloted_s=SHARE * 300.0), history)
    assert spent.untrained == frozenset({128})
    assert Knowledge(spent, history).incumbent == YOURS
    assert settled(spent, history) == spent


def on_a_gpu(settings: Settings, mode: Mode) -> float:
    """Larger batches pay, and so do workers and the switches of the step."""
    compute, workers = settings.compute, settings.loader.num_workers
    switches = (
        (1.25 if compute.channels_last else 1.0)
        * (1.15 if compute.fused_optimizer else 1.0)
        * (1.12 if compute.cudnn_benchmark else 1.0)
    )
    rate = growing(settings, mode) * (1.0 if mode == "loader" else switches)
    return rate * (min(1.3, 1 + 0.1 * workers) / 1.4 if mode == "full" else 1.0)


def failing_from(spec: PilotSpec, size: int) -> PilotRecord:
    """A pilot in which batches of `size` and more learn half as well as they are counted for."""
    return fake_pilot(spec, loss_change=0.5 if (spec.settings.loader.batch_size or 0) >= size else 0.0)


@pytest.mark.parametrize("budget_s", [240.0, 600.0])
def test_a_search_whose_larger_batches_fail_finds_what_one_without_them_finds(budget_s: float) -> None:
    """It had gone on from a batch that could be neither trained in nor varied, and ended too early."""
    facts = {**SGD, **GPU, "fused_available": True}
    rates = []
    for allow in ("numerics", "recipe"):
        runner = fake_runner(
            on_a_gpu,
            facts=facts,
            gradients=fake_gradients(1e6, 64),
            pilots=partial(failing_from, size=128),
        )
        rates.append(on_a_gpu(run_fake(runner, budget_s, allow=allow).best, "full"))
    assert rates[1] >= 0.95 * rates[0]


def test_the_model_does_not_aim_at_what_is_out() -> None:
    """Batches that train worse are neither what is to be beaten nor what is proposed."""
    space = space_of(allow="recipe", fused_available=True, **{**SGD, "has_conv2d": True, "image_input": True})
    worse = tuple(
        Pilot(kind="worse", batch_size=size, reference=64, reason="so it was") for size in (128, 96)
    )
    leads = []
    for with_large in (False, True):
        history = History().opened(space, 2000.0, wait=0.0).ran(space.settings(channels_last=True), 2200.0)
        if with_large:
            history.ran(space.settings(batch_size=128, channels_last=True), 4000.0)
        know = Knowledge(context(space, look=GradientLook(noise=noise(1e6)), pilots=worse), history)
        found = predictions(know)
        assert {p.settings.loader.batch_size for p in found} == {64}
        leads.append(next(p.lead for p in found if worth_trying_now(know, p.settings)))
    assert leads[1] == pytest.approx(leads[0], abs=0.1)


def test_half_as_much_again_is_tried_where_twice_does_not_fit_the_queue() -> None:
    """Shared memory for nine batches of 110 samples: the workers stay, and 96 has its turn."""
    mib = 1 << 20
    space = space_of(
        allow="recipe",
        **{**SGD, **GPU, "batch_bytes": 64 * mib, "shm_free_bytes": int(9 * 110 * mib / 0.8)},
        num_workers=2,
        prefetch_factor=4,
        persistent_workers=True,
    )
    know = Knowledge(context(space, look=GradientLook(noise=noise(1e6))), History().opened(space, 2000.0))
    assert not space.legal(space.yours.replace(batch_size=128))
    found = next_batch(know, Costs(know))
    assert found is not None
    assert found.settings == space.yours.replace(batch_size=96)
    assert in_turn(know, 128)


def compiling() -> tuple[Space, Settings, History]:
    """A search whose best so far compiles for most of a minute."""
    facts = {**SGD, **GPU, "compile_fixed": "", "fused_available": True, "leaf_modules": 100}
    space = space_of(allow="recipe", dataset_samples=1_000_000, **facts)
    best = space.settings(compile="reduce-overhead")
    history = History().opened(space, 1000.0).ran(bundle(space), 1010.0)
    plain = space.settings(channels_last=True, fused_optimizer=True, num_workers=3, precision="bfloat16")
    history.ran(plain, 1000.0).ran(best, 2000.0, warmup_s=45.0, wall_s=50.0, wait=0.0)
    return space, best, history


def test_a_wish_that_there_is_no_time_for_does_not_end_the_search() -> None:
    """Twice the batch would be compiled anew: what compiles nothing new goes on, as long as that fits."""
    space, best, history = compiling()
    checked = Numerics(kind="same", reason="same", settings=best, reference=space.yours)
    known = (*all_the_same(space), checked)
    found = {}
    for remaining_s in (200.0, 150.0, 60.0):
        ctx = context(space, numerics=known, remaining_s=remaining_s, look=GradientLook(noise=noise(1e6)))
        found[remaining_s] = next_move(ctx, history)
    roomy, less, short = found.values()
    assert isinstance(roomy, Run)
    assert roomy.spec.settings == best.replace(batch_size=128)
    assert isinstance(less, Run)
    assert less.spec.settings.loader.batch_size == 64
    assert less.spec.settings.compute.compile == "reduce-overhead"
    assert isinstance(short, EndSearch)


def test_what_the_sampler_draws_is_given_the_time_that_it_needs() -> None:
    """Code to be compiled has the patience of any other move, and is not drawn without the room."""
    space, _, history = compiling()
    know = Knowledge(context(space, budget_s=600.0, remaining_s=500.0), history)
    costs = Costs(know)
    drawn = space.settings(compile="default", num_workers=2)
    run = sampled(know, costs, 400.0, drawn)
    assert run is not None
    assert run.spec.settings == drawn
    assert run.spec.stage == "sampled"
    assert run.spec.timeout_s == min(costs.patience_s(run.spec), 400.0) > 100.0
    assert run.spec.give_up_below is not None
    assert sampled(know, costs, 20.0, drawn) is None
    assert sampled(know, costs, 20.0, space.settings(num_workers=2)) is not None
    assert sampled(know, costs, 400.0, space.yours) is None


def test_after_the_search_a_batch_whose_pilot_fits_is_not_hidden_by_one_whose_does_not() -> None:
    """256 was faster, and no time is left to train in it; 128 has the time."""
    failed = Pilot(kind="worse", batch_size=512, reference=64, reason="so it was")
    history = History().opened(SPACE, 2000.0)
    for size, rate in ((128, 4000.0), (256, 5000.0), (512, 5500.0)):
        history.ran(YOURS.replace(batch_size=size), rate)
    for spent_s in range(36):
        ctx = searching(pilots=(failed,), piloted_s=float(spent_s), remaining_s=150.0, search_over="done")
        before = settled(replace(ctx, search_over=""), history)
        if before.untrained == frozenset({256}):
            break
    move = next_move(ctx, history)
    assert isinstance(move, TrainBoth)
    assert move.spec.settings.loader.batch_size == 128


def test_what_would_need_a_process_for_each_final_is_not_tried_without_the_time() -> None:
    """A short budget's finals share a process; cuDNN's search would start one for each of them."""
    space = space_of(device="cuda:0", gpus=(plain_gpu(),), has_conv2d=True, image_input=True, setup_s=7.4)
    best = space.settings(channels_last=True)
    history = History().opened(space, 1000.0).ran(best, 3000.0).ran(best, 3000.0)
    searched = best.replace(cudnn_benchmark=True)
    for remaining_s, tried in ((40.0, False), (400.0, True)):
        know = Knowledge(context(space, budget_s=60.0, remaining_s=remaining_s), history)
        assert not Costs(know).fresh_finals or tried
        assert worth_trying_now(know, searched) == tried
        assert worth_trying_now(know, best.replace(fused_optimizer=True)) == (space.workload.fused_available)


def test_the_sampler_does_not_aim_at_batches_that_are_barred(tmp_path) -> None:
    """Those over a smaller largest batch, when a study goes on, are taught as failures."""
    storage = str(tmp_path / "study.journal")
    for most in (None, 100):
        runner = fake_runner(growing, facts={**SGD, **QUIET}, gradients=fake_gradients(1e6, 64), noise=0.02)
        resume = most is not None
        run_fake(runner, 300.0, allow="recipe", storage=storage, resume=resume, max_batch_size=most)
    drawn = [s for s in runner.specs if s.reason == "proposed by the sampler"]
    assert all((s.settings.loader.batch_size or 0) <= 96 for s in drawn)


def test_a_larger_batch_that_was_given_up_is_told_of() -> None:
    """It has no row in the table of batches, whose rates are whole ones: what was kept says how it ran."""
    larger = YOURS.replace(batch_size=128)
    history = History().opened(SPACE, 2000.0).ran(larger, 2200.0)
    measured = history[-1].measurement
    assert measured is not None
    history[-1] = replace(history[-1], measurement=replace(measured, stopped="gave_up"))
    ctx = searching(look=GradientLook(noise=noise(192.0)))
    (kept,) = batch_kept(Knowledge(ctx, history))
    assert (kept.knob, kept.value) == ("batch_size", 64)
    assert kept.why == "batches of 128 were given up at 2,200 samples/s, each counted as 0.80 of yours"
    assert batch_kept(Knowledge(ctx, history.ran(larger, 2200.0))) == ()
