"""When gradients are looked at for the noise scale, for how long, and what becomes of the answers."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from batch_worlds import QUIET, SGD, growing, noise
from search_worlds import History, context, fake_runner, run_fake, space_of

from autotune.codec import decode, encode
from autotune.errors import StudyError
from autotune.recipe.noise_scale import GradientStats
from autotune.search.batch import GradientLook, look_of
from autotune.search.batch_moves import next_look
from autotune.search.decision import LookAtGradients
from autotune.search.knowledge import Knowledge
from autotune.search.plan import next_move
from autotune.testing import fake_gradients
from autotune.trial import Failure


@pytest.mark.parametrize(("epochs", "warm"), [(None, 400), (40, 400), (4, 312)])
def test_gradients_are_looked_at_within_the_users_own_run(epochs: int | None, warm: int) -> None:
    """Later ones are noisier, and most of a run is late: but no later than a quarter of it."""
    space = space_of(allow="recipe", **{**SGD, **QUIET, "dataset_samples": 20_000})
    ctx = context(space, budget_s=3000.0, remaining_s=2900.0, epochs=epochs)
    spec = next_look(Knowledge(ctx, History().opened(space)), 2500.0)
    assert spec is not None
    assert spec.warm_steps + spec.apart * (spec.steps - 1) == warm


def test_gradients_are_looked_at_over_the_second_half_of_the_training() -> None:
    """At one point they say little: as many training steps as fit lie between two that are looked at."""
    space = space_of(allow="recipe", **{**SGD, **QUIET, "dataset_samples": 20_000})
    ctx = context(space, budget_s=3000.0, remaining_s=2900.0)
    spec = next_look(Knowledge(ctx, History().opened(space)), 2500.0)
    assert spec is not None
    assert (spec.warm_steps, spec.apart, spec.steps) == (214, 6, 32)


@pytest.mark.parametrize(
    ("warm", "budget_s", "lengths"),
    [
        (0, 3000.0, (0, 6, 32)),
        (1000, 3000.0, (1000, 6, 32)),
        (1000, 300.0, None),
        (150, 1500.0, (150, 5, 32)),
    ],
)
def test_warm_steps_are_as_many_as_asked_for(warm: int, budget_s: float, lengths: tuple | None) -> None:
    """0 looks from the weights as they are, as of a checkpoint; without time for them there is no look."""
    space = space_of(allow="recipe", **{**SGD, **QUIET})
    ctx = context(space, budget_s=budget_s, remaining_s=budget_s, warm=warm)
    spec = next_look(Knowledge(ctx, History().opened(space)), budget_s)
    assert (None if spec is None else (spec.warm_steps, spec.apart, spec.steps)) == lengths


def test_a_look_that_comes_too_late_is_told() -> None:
    """The report says why there is no noise scale, and that the batch went no further for that."""
    runner = fake_runner(growing, facts={**SGD, **QUIET})
    runner.gradients = fake_gradients(1e6, 64)
    outcome = run_fake(runner, 300.0, allow="recipe", warm=100_000)
    assert outcome.noise is None
    assert outcome.best.loader.batch_size == 256
    assert any("no time to look at the gradients after 100,000 warm steps" in note for note in outcome.notes)


def test_gradients_are_looked_at_once_and_within_their_share() -> None:
    """In a run of five minutes no longer than 12 % of it, and never again."""
    asked = []
    inner = fake_gradients(1e6, 64)
    runner = fake_runner(growing, facts={**SGD, **QUIET})
    runner.gradients = lambda spec: (asked.append(spec), inner(spec))[1]
    outcome = run_fake(runner, 300.0, allow="recipe")
    assert len(asked) == 1
    assert asked[0].window_s <= 0.12 * 300.0
    assert (asked[0].warm_steps, asked[0].apart, asked[0].steps) == (76, 2, 32)
    assert asked[0].settings.loader.batch_size == 64
    assert outcome.elapsed_s <= 300.0


def test_slow_steps_get_fewer_or_no_look() -> None:
    """Few steps are taken where the budget holds few, and none where not even those fit."""
    space = space_of(allow="recipe", **SGD)

    def look(budget_s: float):
        history = History().opened(space, 1000.0)
        return next_look(Knowledge(context(space, budget_s=budget_s), history), 200.0)

    long, short, hopeless = look(300.0), look(120.0), look(60.0)
    assert long is not None
    assert short is not None
    assert long.steps > short.steps >= 8
    assert long.warm_steps > short.warm_steps
    assert hopeless is None


@pytest.mark.parametrize("own", [6, 10, 50, 150])
def test_adam_looks_at_gradients_whatever_its_batch(own: int) -> None:
    """Without a noise scale Adam's batch at most doubles, and sizes that are rounded stay within that."""
    facts = {"optimizer_class": "AdamW", "optimizer_family": "adam", "batch_samples": own, "batch_size": own}
    space = space_of(allow="recipe", **facts)
    know = Knowledge(context(space), History().opened(space, 100.0 * own))
    assert next_look(know, 200.0) is not None


def test_what_could_not_be_seen_of_the_gradients_is_told() -> None:
    """Where another batch ran on the strength of the figure; an old study has no such notes."""
    gradients = fake_gradients(1e6, 64)
    runner = fake_runner(growing, facts={**SGD, **QUIET}, gradients=gradients)
    seen = runner.gradients
    runner.gradients = lambda spec: replace(seen(spec), notes=("the mean was not seen",))
    outcome = run_fake(runner, 300.0, allow="recipe")
    assert "gradients: the mean was not seen" in outcome.notes
    assert decode(GradientLook, {"noise": None, "refused": "", "missing": ""}).notes == ()


def test_what_looking_gave_is_kept_in_the_study(tmp_path) -> None:
    """A resumed run compares batches by the same noise scale, and does not look again."""
    storage = str(tmp_path / "run.journal")
    runner = fake_runner(growing, facts={**SGD, **QUIET}, gradients=fake_gradients(600.0, 64))
    first = run_fake(runner, 120.0, allow="recipe", storage=storage)
    again = fake_runner(growing, facts={**SGD, **QUIET})
    again.gradients = lambda spec: pytest.fail("gradients were asked for again")
    second = run_fake(again, 120.0, allow="recipe", storage=storage, resume=True)
    assert first.noise is not None
    assert second.noise == first.noise


def test_a_look_that_there_was_no_time_for_is_taken_when_the_study_goes_on(tmp_path) -> None:
    """Else a short first session would bound the batch for good."""
    storage = str(tmp_path / "run.journal")
    runner = fake_runner(growing, facts={**SGD, **QUIET})
    runner.gradients = lambda spec: Failure(kind="timeout", message="no end after 9 s")
    first = run_fake(runner, 120.0, allow="recipe", storage=storage)
    runner = fake_runner(growing, facts={**SGD, **QUIET}, gradients=fake_gradients(600.0, 64))
    second = run_fake(runner, 120.0, allow="recipe", storage=storage, resume=True)
    assert first.noise is None
    assert second.noise is not None


def test_another_look_at_the_gradients_is_another_study(tmp_path) -> None:
    """After other warm steps; where nobody looks at them it is the same."""
    storage = str(tmp_path / "run.journal")
    runner = fake_runner(growing, facts={**SGD, **QUIET}, gradients=fake_gradients(600.0, 64))
    run_fake(runner, 60.0, allow="recipe", storage=storage, warm=0)
    with pytest.raises(StudyError, match="warm was 0"):
        run_fake(runner, 60.0, allow="recipe", storage=storage, resume=True)
    storage = str(tmp_path / "kept.journal")
    run_fake(runner, 60.0, allow="numerics", storage=storage, warm=0)
    run_fake(runner, 60.0, allow="numerics", storage=storage, resume=True)


ANOTHER_TRAINING = [{"learning_rates": (1.0,)}, {"weight_decays": (0.1,)}, {"loss": "mse_loss"}]


@pytest.mark.parametrize("changed", ANOTHER_TRAINING)
def test_what_was_seen_of_another_training_does_not_count(tmp_path, changed: dict) -> None:
    """Noise scale and pilots hold for a loss and its rates; where nothing is judged by them, trials count."""
    for allow in ("recipe", "exact"):
        storage = str(tmp_path / f"{allow}.journal")
        made = [
            fake_runner(growing, facts={**SGD, **QUIET, **facts}, gradients=fake_gradients(600.0, 64))
            for facts in ({}, changed)
        ]
        run_fake(made[0], 60.0, allow=allow, storage=storage)
        if allow == "exact":
            run_fake(made[1], 60.0, allow=allow, storage=storage, resume=True)
            continue
        with pytest.raises(StudyError, match=f"{next(iter(changed))} was"):
            run_fake(made[1], 60.0, allow=allow, storage=storage, resume=True)


def test_answers_of_a_runner_become_a_look() -> None:
    """A refusal or diverged gradients keep the batch; no time or memory leaves the trusted rules."""
    refused = look_of(GradientStats(micro_samples=64, micro_batches=4, refused="so"))
    diverged = look_of(Failure(kind="non_finite", message="NaN"))
    late = look_of(Failure(kind="timeout", message="late"))
    few = look_of(GradientStats(micro_samples=64, micro_batches=4))
    assert refused == GradientLook(refused="so")
    assert "NaN" in diverged.refused
    assert late == GradientLook(missing="late")
    assert few.missing
    assert not few.refused
    look = GradientLook(noise=noise(100.0))
    assert decode(GradientLook, json.loads(json.dumps(encode(look)))) == look


def test_the_first_move_after_the_usual_advice_is_a_look() -> None:
    """The plan asks for it itself, and says how."""
    space = space_of(allow="recipe", usable_cpus=1, **SGD)
    history = History().opened(space, 2000.0)
    seen = []
    for _ in range(20):
        move = next_move(context(space), history)
        seen.append(move)
        if isinstance(move, LookAtGradients):
            break
        history.ran(move.spec.settings, 1800.0, move.spec.stage, move.spec.mode, wall_s=3.0)  # type: ignore[union-attr]
    assert isinstance(seen[-1], LookAtGradients)


def test_a_run_without_leave_to_change_learning_looks_at_nothing() -> None:
    """With `allow="numerics"` no gradients are asked for."""
    runner = fake_runner(growing, facts={**SGD, **QUIET})
    runner.gradients = lambda spec: pytest.fail("gradients were asked for")
    assert run_fake(runner, 120.0).noise is None
