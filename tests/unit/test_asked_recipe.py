"""What the user asks of the recipe, `decay` and `keep_effective`, and what the search hands on to it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from profile_samples import sample_profile
from search_worlds import fake_runner, run_fake, space_of
from strategies import plain_workload

from autotune.api import tune_with
from autotune.cli.check import kept_step
from autotune.errors import StudyError, UsageError
from autotune.outcome import Outcome
from autotune.recipe.rules import gain
from autotune.recipe.scaling import scale_recipe
from autotune.settings import Settings
from autotune.testing import FakeRunner, fake_gradients
from autotune.trial import Mode
from autotune.workload import Workload

SGD = {"learning_rates": (0.1,), "weight_decays": (0.0,), "step_s": 0.06}
QUIET = {"has_conv2d": False, "image_input": False, "usable_cpus": 1}


def growing(settings: Settings, mode: Mode) -> float:
    """A device whose every batch costs 0.05 s beside its samples, so that large ones pay."""
    size = settings.loader.batch_size or 1
    return (1 if mode == "full" else 3) * size / (0.05 + size / 4000)


def shrinking(settings: Settings, mode: Mode) -> float:
    """A machine whose cache holds 16 samples: larger batches leave it, and smaller ones do not fill it."""
    size = settings.loader.batch_size or 1
    return (1 if mode == "full" else 3) * 1000 * min(size / 16, 16 / size) ** 0.3


def runner_of(rate: Any = growing, *, samples: float = 600.0, **facts: object) -> FakeRunner:
    """A quiet machine with these facts, whose gradients have this noise scale."""
    return fake_runner(rate, facts={**SGD, **QUIET, **facts}, gradients=fake_gradients(samples, 64))


def run(rate: Any = growing, *, facts: dict | None = None, **options: object) -> Outcome:
    """A whole run in which learning may change."""
    return run_fake(runner_of(rate, **(facts or {})), 300.0, **{"allow": "recipe", **options})


def test_the_noise_scale_that_was_found_sets_the_learning_rate() -> None:
    """The recipe of the winner has the gain at the lower bound of the run's own noise scale, not k."""
    outcome = run()
    recipe, noise = outcome.recipe, outcome.noise
    assert recipe is not None
    assert noise is not None
    worth = gain(recipe.batch_size, 64, noise.lower_bound)
    assert worth < 0.95 * recipe.batch_size / 64
    assert recipe.learning_rates[0] == pytest.approx(0.1 * worth)
    assert f"at a noise scale of at least {noise.lower_bound:.3g} samples" in recipe.lr_rule
    assert any("clip as often" in note for note in recipe.notes)


@pytest.mark.parametrize("samples", [5.0, 1e6])
def test_a_decay_is_in_the_recipe_whatever_batch_is_chosen(samples: float) -> None:
    """It takes the whole run in samples, batches counted whole, with the user's own as with a larger one."""
    outcome = run_fake(runner_of(samples=samples), 300.0, allow="recipe", decay="cosine", epochs=10)
    assert (outcome.best.loader.batch_size == 64) == (samples == 5.0)
    assert outcome.recipe is not None
    assert outcome.recipe.decay is not None
    size = outcome.recipe.batch_size
    whole = 10 * math.ceil(50_000 / size) * size
    assert (outcome.recipe.decay.shape, outcome.recipe.decay.samples) == ("cosine", whole)


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"dataset_samples": None}, "needs the length of the run"),
        ({"batch_size": None}, "cannot count samples here"),
    ],
)
def test_a_decay_over_an_unknown_run_is_refused_before_anything_is_measured(facts: dict, told: str) -> None:
    """A stream without a length, and a sampler that makes the batches: minutes must not be lost to them."""
    runner = runner_of(**facts)
    with pytest.raises(UsageError, match=told) as raised:
        run_fake(runner, 300.0, decay="wsd", epochs=3)
    assert raised.value.why
    assert raised.value.fix
    assert runner.specs == []


@pytest.mark.parametrize(
    "options", [{"decay": "linear", "epochs": 3}, {"decay": "cosine"}, {"decay": "", "epochs": 3}]
)
def test_a_decay_that_is_none_is_told_at_once(options: dict) -> None:
    """An unknown shape, and no length of the run; before the workload is even looked at."""
    with pytest.raises(UsageError) as raised:
        tune_with(FakeRunner(lambda settings, mode: 1.0), None, **options)
    assert raised.value.why
    assert raised.value.fix


def test_a_smaller_batch_is_gathered_to_the_users_own_step() -> None:
    """Where it is faster it wins without a look at the gradients, a pilot, or another learning rate."""
    outcome = run(shrinking, facts={"step_samples": 64})
    assert outcome.verdict.kind == "faster"
    assert outcome.best.loader.batch_size == 16
    recipe = outcome.recipe
    assert recipe is not None
    assert (recipe.accumulation_steps, recipe.growth, recipe.lr_rule) == (4, 1.0, "unchanged")
    assert recipe.learning_rates == (0.1,)
    assert "steps keep 64 samples, gathered from batches of 16" in outcome.verdict.sentence
    assert (outcome.noise, outcome.batch) == (None, None)
    assert not any("noise scale" in note for note in outcome.notes)
    assert outcome.weight(outcome.best) == 1.0


def test_a_loop_that_gathers_already_may_gather_less() -> None:
    """Batches of 64, four in a step: one batch of 256 is the same step, with a fraction of the overhead."""
    outcome = run(growing, facts={"step_samples": 256})
    assert outcome.best.loader.batch_size == 256
    recipe = outcome.recipe
    assert recipe is not None
    assert (recipe.reference_accumulation_steps, recipe.accumulation_steps) == (4, 1)
    assert (recipe.step_samples, recipe.growth, recipe.warmup_samples) == (256, 1.0, 0)


def test_a_loop_that_gathers_goes_on_doing_so_with_its_own_batch() -> None:
    """The kit has to know of it although nothing changed; without gathering there is no recipe then."""
    outcome = run(lambda settings, mode: 100.0, facts={"step_samples": 256})
    assert outcome.best == outcome.yours
    assert outcome.recipe is not None
    assert outcome.recipe.accumulation_steps == 4
    assert run(lambda settings, mode: 100.0, facts={"step_samples": 64}).recipe is None


@pytest.mark.parametrize("family", ["sgd", "other"])
def test_batches_of_a_kept_step_divide_it(family: str) -> None:
    """By halves from the whole step down to an eighth of yours; no rule of learning is needed for them."""
    space = space_of(allow="recipe", step_samples=192, batch_size=96, optimizer_family=family)
    assert space.values("batch_size") == (12, 24, 48, 96, 192)
    odd = space_of(allow="recipe", step_samples=63, batch_size=63, **SGD)
    assert "batch_size" not in odd.names


def test_the_largest_batch_of_a_kept_step_can_be_bounded() -> None:
    """`max_batch_size` holds there as well."""
    outcome = run(growing, facts={"step_samples": 512}, max_batch_size=128)
    assert max(t.settings.loader.batch_size or 0 for t in outcome.trials) == 128


def test_a_fixed_batch_that_does_not_make_up_the_step_is_refused() -> None:
    """Before anything is measured; one that does is gathered."""
    runner = runner_of(step_samples=64)
    with pytest.raises(UsageError, match="batches of 48 do not make up a step of 64"):
        run_fake(runner, 300.0, fixed={"batch_size": 48})
    assert runner.specs == []
    outcome = run(shrinking, facts={"step_samples": 64}, fixed={"batch_size": 32})
    assert outcome.recipe is not None
    assert outcome.recipe.accumulation_steps == 2


@pytest.mark.parametrize("value", [0, -64, 2.5, "yours", None])
def test_a_step_of_nothing_is_refused(value: Any) -> None:
    """Only True, False and a number of samples say what a step keeps."""
    with pytest.raises(UsageError, match="keep_effective") as raised:
        Workload(object(), [1], keep_effective=value)
    assert raised.value.why
    assert raised.value.fix


@pytest.mark.parametrize(
    "fields",
    [
        {"train_step": lambda kit, batch: None},
        {"dataset": None, "step": lambda model, batch: None, "samples_per_step": 8},
    ],
)
def test_a_step_of_the_users_own_cannot_be_kept_for_them(fields: dict) -> None:
    """Where the loop says itself when the optimizer steps, nobody else can gather for it."""
    with pytest.raises(UsageError, match="cannot go with"):
        Workload(**{"model": object(), "dataset": [1], "keep_effective": True, **fields})


def test_a_study_of_another_step_is_not_gone_on_with(tmp_path: Any) -> None:
    """Trials that gathered gradients are not those that did not."""
    storage = str(tmp_path / "study.journal")
    run(shrinking, facts={"step_samples": 64}, storage=storage)
    with pytest.raises(StudyError):
        run(shrinking, storage=storage, resume=True)


def test_a_check_of_a_profile_gathers_as_the_run_did() -> None:
    """What a step kept is told to whoever measures it again; nothing is, where a step has one batch."""
    profile = sample_profile()
    recipe = scale_recipe(plain_workload(), 16, 64, keep_effective=True)
    assert kept_step(replace(profile, recipe=recipe)) == 64
    assert kept_step(replace(profile, recipe=None)) is False
    assert kept_step(replace(profile, recipe=scale_recipe(plain_workload(), 128, 64))) is False
