"""The recipe's numbers against the papers' rules worked out by hand."""

from __future__ import annotations

import dataclasses
import math
import pickle

import pytest
from batch_worlds import noise as exactly
from strategies import plain_workload

from autotune.errors import UsageError
from autotune.outcome import Decay, NoiseScale, Recipe
from autotune.recipe.scaling import refusals, scale_recipe
from autotune.recipe.schedule import SampleSchedule, decay_factor, schedule_factor, warmup_factor


def test_sgd_scales_linearly():
    """Four times the batch takes four times the learning rate, and the rule names its source."""
    recipe = scale_recipe(plain_workload(learning_rates=(0.1, 0.01)), 128, 32)
    assert recipe.learning_rates == pytest.approx((0.4, 0.04))
    assert recipe.reference_learning_rates == (0.1, 0.01)
    assert recipe.lr_rule.startswith("linear")
    assert "1706.02677" in recipe.lr_rule


def test_adam_scales_by_the_square_root():
    """Four times the batch takes twice the learning rate for the Adam family."""
    workload = plain_workload(optimizer_class="AdamW", optimizer_family="adam", learning_rates=(1e-3,))
    recipe = scale_recipe(workload, 128, 32)
    assert recipe.learning_rates == pytest.approx((2e-3,))
    assert recipe.lr_rule.startswith("sqrt")
    assert "2205.10287" in recipe.lr_rule


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (
            {"optimizer_class": "Lion", "optimizer_family": "other"},
            "no rule scales the learning rate of Lion",
        ),
        ({"optimizer_class": None, "optimizer_family": "other"}, "no optimizer was given"),
    ],
)
def test_an_optimizer_without_a_rule_keeps_its_numbers(changes, why):
    """Lion's learning rate is not guessed, nor one that nobody gave: a note says why it stays."""
    recipe = scale_recipe(plain_workload(weight_decays=(0.1,), **changes), 128, 32)
    assert recipe.learning_rates == recipe.reference_learning_rates
    assert recipe.weight_decays == (0.1,)
    assert (recipe.warmup_samples, recipe.beta2s) == (0, ())
    assert why in recipe.lr_rule
    assert any(why in note for note in recipe.notes)


def noise(lower_bound: float) -> NoiseScale:
    """A noise scale of which decisions count on so many samples."""
    return exactly(lower_bound, value=2 * lower_bound, high=4 * lower_bound, micro_samples=32)


ADAMW = {
    "optimizer_class": "AdamW",
    "optimizer_family": "adam",
    "learning_rates": (1e-3, 1e-4),
    "weight_decays": (0.1, 0.0),
    "decoupled_weight_decay": True,
    "beta2s": (0.999, None),
}


def test_a_noise_scale_bounds_the_learning_rate():
    """SGD takes the gain k (phi + M0) / (phi + M); Adam the lesser of that and the root of k."""
    gained = scale_recipe(plain_workload(), 128, 32, noise=noise(96.0))
    assert gained.learning_rates == pytest.approx((0.1 * 4 * 128 / 224,))
    assert gained.lr_rule.startswith("gain")
    adam = plain_workload(**ADAMW)
    assert scale_recipe(adam, 128, 32, noise=noise(1e6)).learning_rates == pytest.approx((2e-3, 2e-4))
    low = scale_recipe(adam, 128, 32, noise=noise(32.0))
    assert low.learning_rates[0] == pytest.approx(1e-3 * 4 * 64 / 160)
    assert low.lr_rule.startswith("gain")


def test_without_a_noise_scale_sgd_grows_eightfold_at_most():
    """Beyond, the rate stays at eight times and the rule says why; with one it goes further."""
    recipe = scale_recipe(plain_workload(), 32 * 32, 32)
    assert recipe.learning_rates == pytest.approx((0.8,))
    assert "no further than 8" in recipe.lr_rule
    assert scale_recipe(plain_workload(), 32 * 32, 32, noise=noise(1e9)).learning_rates[0] > 3.1


def test_the_decay_of_weights_is_that_of_the_same_samples():
    """AdamW by the root of k as its rate grows by the root; linear SGD not at all; zero stays zero."""
    assert scale_recipe(plain_workload(**ADAMW), 128, 32).weight_decays == pytest.approx((0.2, 0.0))
    sgd = plain_workload(weight_decays=(5e-4,))
    assert scale_recipe(sgd, 128, 32).weight_decays == pytest.approx((5e-4,))
    assert scale_recipe(sgd, 128, 32, noise=noise(96.0)).weight_decays == pytest.approx((5e-4 * 224 / 128,))


def test_l2_in_adam_is_left_alone():
    """It is divided by the second moment's root as the gradient is; the rule says so."""
    recipe = scale_recipe(plain_workload(**{**ADAMW, "decoupled_weight_decay": False}), 128, 32)
    assert recipe.weight_decays == (0.1, 0.0)
    assert "L2" in recipe.weight_decay_rule


@pytest.mark.parametrize(
    ("own", "k", "expected"), [(0.999, 8, 0.999**8), (0.95, 8, 0.9), (0.8, 2, 0.8), (0.999, 0.5, 0.999**0.5)]
)
def test_beta2_forgets_as_many_samples(own, k, expected):
    """beta2 ** k, not under 0.9 unless it was before."""
    workload = plain_workload(**{**ADAMW, "beta2s": (own,)})
    recipe = scale_recipe(workload, int(32 * k), 32)
    assert recipe.beta2s == pytest.approx((expected,))
    assert recipe.reference_beta2s == (own,)
    assert scale_recipe(plain_workload(beta2s=(own,)), 64, 32).beta2s == ()


def test_averages_over_steps_go_by_samples():
    """BatchNorm's momentum and the power for an average of the weights, each with its rule."""
    recipe = scale_recipe(plain_workload(batch_norm_momenta=(0.1,)), 128, 32)
    assert recipe.batch_norm_momenta == pytest.approx((1 - 0.9**4,))
    assert recipe.ema_power == 4
    assert recipe.batch_norm_rule
    assert recipe.ema_rule


def test_gathered_gradients_keep_the_users_step():
    """Four batches of a quarter make the user's own step: nothing changes but what BatchNorm sees."""
    workload = plain_workload(**ADAMW, batch_norm_momenta=(0.1,))
    recipe = scale_recipe(workload, 8, 32, keep_effective=True)
    assert (recipe.accumulation_steps, recipe.step_samples, recipe.growth) == (4, 32, 1.0)
    assert recipe.learning_rates == workload.learning_rates
    assert (recipe.beta2s, recipe.weight_decays, recipe.warmup_samples) == ((), (), 0)
    assert recipe.batch_norm_momenta == pytest.approx((1 - 0.9**0.25,))
    assert any("BatchNorm takes its statistics from 8 samples" in note for note in recipe.notes)


@pytest.mark.parametrize("batch_size", [12, 64])
def test_what_does_not_make_up_the_users_batch_is_refused(batch_size):
    """Neither 12 nor 64 divides 32."""
    with pytest.raises(UsageError, match="do not make up a step of 32"):
        scale_recipe(plain_workload(), batch_size, 32, keep_effective=True)


def test_short_runs_and_strong_decay_speak_against_a_batch():
    """Under 500 steps, and weight decay of over a tenth in one step; a recipe says so in its notes."""
    short = plain_workload(dataset_samples=10_000)
    recipe = scale_recipe(short, 128, 32, epochs=5)
    assert refusals(recipe, short, epochs=5) == ("391 steps are left of the run, fewer than 500",)
    assert recipe.notes[-1:] == refusals(recipe, short, epochs=5)
    strong = plain_workload(weight_decays=(0.3,))
    assert "weight decay takes 0.12" in refusals(scale_recipe(strong, 128, 32), strong)[0]
    assert refusals(scale_recipe(short, 32, 32, epochs=5), short, epochs=5) == ()


def test_a_run_is_ten_times_its_warmup():
    """A warmup as a hand-written recipe may have it is held against the length of the run."""
    workload = plain_workload(dataset_samples=100_000)
    recipe = dataclasses.replace(scale_recipe(workload, 64, 32, epochs=1), warmup_samples=20_000)
    assert refusals(recipe, workload, epochs=1) == (
        "the run has 1563 steps, under 10 times its warmup of 313",
    )


def test_clipping_is_left_alone_and_its_measure_told():
    """With a noise scale the note says which clips as often: gradients of larger batches are shorter."""
    known = scale_recipe(plain_workload(), 128, 32, noise=noise(96.0)).notes
    assert any("multiplied by 0.66" in note for note in known)  # sqrt((1 + 96/128) / (1 + 96/32))
    assert any("clipping" in note for note in scale_recipe(plain_workload(), 128, 32).notes)


def test_a_decay_takes_the_whole_run():
    """Its length is the run's samples, each batch counted whole; a run of unknown length is refused."""
    recipe = scale_recipe(plain_workload(), 128, 32, epochs=4, decay="cosine")
    assert recipe.decay is not None
    assert recipe.decay.samples == 4 * 391 * 128  # 50,000 samples are 390 batches and a part of one
    with pytest.raises(UsageError, match="length of the run"):
        scale_recipe(plain_workload(), 128, 32, decay="wsd")


@pytest.mark.parametrize(
    ("facts", "batch_size", "epochs", "steps"),
    [
        ({"dataset_samples": 100}, 64, 30, 60),
        ({"dataset_samples": 60}, 32, 100, 200),
        ({"dataset_samples": 1000}, 64, 30, 480),
        ({"dataset_samples": 128}, 64, 30, 60),  # nothing is left over
        ({"dataset_samples": 100, "dropped_samples": 0}, 64, 30, 30),  # yours has batches of 10, 20 or 50
        ({"dataset_samples": 64, "dropped_samples": 36}, 48, 30, 60),
        ({"dataset_samples": 99, "dropped_samples": 1}, 50, 30, 60),  # of the 99 alone there is one batch
    ],
)
@pytest.mark.parametrize("decay", ["cosine", "polynomial", "wsd"])
def test_a_run_learns_to_its_last_step_and_no_further(facts, batch_size, epochs, steps, decay):
    """As many steps as a DataLoader has batches, with and without the last one; then the rate is 0."""
    workload = plain_workload(**facts)
    recipe = scale_recipe(workload, batch_size, batch_size, epochs=epochs, decay=decay)
    schedule = SampleSchedule(recipe=recipe)
    assert min(schedule(step) for step in range(steps)) > 1e-6
    assert schedule(steps) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("decay", "at", "expected"),
    [
        (Decay(shape="cosine", samples=100), 50, 0.5),
        (Decay(shape="cosine", samples=100, end=0.1), 100, 0.1),
        (Decay(shape="polynomial", samples=100, power=2.0), 75, 0.0625),
        (Decay(shape="wsd", samples=100), 79, 1.0),
        (Decay(shape="wsd", samples=100), 85, 1 - math.sqrt(0.25)),
        (Decay(shape="wsd", samples=100, cooldown=0.0), 100, 1.0),
        (Decay(shape="wsd", samples=100), 1000, 0.0),
    ],
)
def test_shapes_of_decay_at_a_point(decay, at, expected):
    """Worked out by hand."""
    assert decay_factor(at, decay) == pytest.approx(expected, abs=1e-12)


def test_a_schedule_goes_to_lambdalr_and_can_be_pickled():
    """By steps it is what it is by samples, warmup and decay joined by the lesser."""
    recipe = scale_recipe(plain_workload(), 128, 32, epochs=4, decay="polynomial")
    schedule = pickle.loads(pickle.dumps(SampleSchedule(recipe=recipe)))
    assert schedule(0) == pytest.approx(0.25)
    for step in (0, 100, 1000, 1563):
        assert schedule(step) == schedule_factor(128 * step, recipe)
    assert schedule(1563) > 0.0
    assert schedule(1564) == 0.0


def bare(**changes: object) -> Recipe:
    """A recipe as earlier profiles have it."""
    plain = Recipe(
        batch_size=64,
        reference_batch_size=16,
        learning_rates=(0.4,),
        reference_learning_rates=(0.1,),
        lr_rule="linear",
        warmup_samples=640,
    )
    return dataclasses.replace(plain, **changes)


def test_a_warmup_without_a_start_begins_at_the_reference():
    """As recipes of earlier profiles, which do not say where it starts."""
    assert warmup_factor(0, bare()) == pytest.approx(0.25)
    assert warmup_factor(0, bare(learning_rates=(0.0,))) == 1.0


@pytest.mark.parametrize(("batch_size", "reference"), [(0, 32), (32, 0), (-1, 32)])
def test_a_batch_without_samples_is_refused(batch_size, reference):
    """Sizes under one raise a usage error, not a division by zero."""
    with pytest.raises(UsageError, match="at least one sample"):
        scale_recipe(plain_workload(), batch_size, reference)


@pytest.mark.parametrize(
    ("samples", "epochs", "expected"),
    [
        (10_000_000, 90, 500 * 128),  # long epochs: the number of steps decides
        (1_000, 90, 5 * 1_000),  # short epochs: five of them
        (50_000, 1, 5_000),  # a short run: a tenth of it
        (50_000, None, 50_000),  # unknown length: one epoch
        (None, None, 500 * 128),  # unknown epoch: steps again
    ],
)
def test_warmup_is_the_least_of_its_bounds(samples, epochs, expected):
    """Steps, epochs and share of the run each bound the warmup of SGD."""
    recipe = scale_recipe(plain_workload(dataset_samples=samples), 128, 32, epochs=epochs)
    assert recipe.warmup_samples == expected


def test_adam_warms_up_for_longer():
    """Adam's second moment needs 2 / (1 - beta2) steps."""
    workload = plain_workload(optimizer_family="adam", dataset_samples=None)
    assert scale_recipe(workload, 256, 32).warmup_samples == 2000 * 256


@pytest.mark.parametrize(
    ("family", "batch_size", "samples", "warmed"),
    [
        ("sgd", 64, None, False),  # twice the rate, by the linear rule
        ("sgd", 128, None, True),
        ("sgd", 128, 30.0, False),  # four times the batch, 1.53 times the rate
        ("adam", 128, None, False),  # twice, by the square root
        ("adam", 160, None, True),
    ],
)
def test_a_rate_that_at_most_doubles_needs_no_warmup(family, batch_size, samples, warmed):
    """It is the learning rate that a warmup is for, not the batch (ADR 0014)."""
    workload = plain_workload(optimizer_family=family)
    scale = None if samples is None else noise(samples)
    recipe = scale_recipe(workload, batch_size, 32, noise=scale)
    assert (recipe.warmup_samples > 0) == warmed
    assert (recipe.learning_rates[0] > 2 * recipe.reference_learning_rates[0]) == warmed


def test_a_smaller_batch_needs_no_warmup():
    """Half the batch takes half the learning rate from the first step."""
    recipe = scale_recipe(plain_workload(), 16, 32)
    assert recipe.learning_rates == pytest.approx((0.05,))
    assert recipe.warmup_samples == 0
    assert warmup_factor(0, recipe) == 1.0


def test_warmup_is_linear_in_samples():
    """Half way through the warmup the factor is half way from a quarter to one."""
    recipe = scale_recipe(plain_workload(), 128, 32)
    assert warmup_factor(0, recipe) == pytest.approx(0.25)
    assert warmup_factor(recipe.warmup_samples // 2, recipe) == pytest.approx(0.625)


def test_adam_warms_up_from_its_own_rate():
    """The user's own run starts at that rate; beta2 ** k forgets sooner: 2 / (1 - beta2) steps of it."""
    recipe = scale_recipe(plain_workload(**ADAMW, dataset_samples=None), 256, 32)
    assert recipe.warmup_start == pytest.approx(1 / math.sqrt(8))
    assert warmup_factor(0, recipe) * recipe.learning_rates[0] == pytest.approx(ADAMW["learning_rates"][0])
    assert recipe.warmup_samples == math.ceil(2 / (1 - 0.999**8)) * 256
