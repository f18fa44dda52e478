"""Laws of the recipe: what scaling the batch size may and may not do to the learning rate."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from profile_samples import sample_profile
from strategies import plain_workload, workloads
from torch.utils.data import BatchSampler

from autotune.facts import WorkloadFacts
from autotune.outcome import NoiseScale, Recipe
from autotune.profile.yaml_io import dumps, loads
from autotune.recipe.scaling import scale_recipe
from autotune.recipe.schedule import SampleSchedule, decay_factor, schedule_factor, warmup_factor

BATCHES = st.integers(1, 8192)
EPOCHS = st.none() | st.integers(1, 300)

NOISES = st.builds(
    NoiseScale,
    value=st.none(),
    low=st.just(0.0),
    high=st.none(),
    lower_bound=st.floats(0, 1e9),
    micro_samples=st.just(1),
    micro_batches=st.just(4),
    steps=st.just(32),
    skipped=st.just(0),
    at=st.just("initial weights"),
)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """The recipe of a random workload of a family that a rule is known for."""
    groups = draw(st.integers(1, 3))
    decays = st.floats(1e-6, 1)
    workload = dataclasses.replace(
        draw(workloads()),
        optimizer_family=draw(st.sampled_from(("sgd", "adam"))),
        learning_rates=tuple(draw(st.floats(1e-6, 10)) for _ in range(groups)),
        weight_decays=tuple(draw(decays) for _ in range(groups)),
        decoupled_weight_decay=draw(st.booleans()),
        beta2s=tuple(draw(st.floats(0.5, 0.9999)) for _ in range(groups)),
        batch_norm_momenta=tuple(draw(st.lists(st.floats(0.001, 1), max_size=2))),
        dataset_samples=draw(st.none() | st.integers(1, 2_000_000)),
        dropped_samples=draw(st.none() | st.integers(0, 8191)),
    )
    epochs = draw(EPOCHS)
    known = epochs is not None and workload.dataset_samples is not None
    return scale_recipe(
        workload,
        draw(BATCHES),
        draw(BATCHES),
        epochs=epochs,
        noise=draw(st.none() | NOISES),
        decay=draw(st.sampled_from((None, "cosine", "polynomial", "wsd"))) if known else None,
    )


@given(workloads(), BATCHES, EPOCHS)
def test_the_same_batch_size_changes_nothing(workload, batch_size, epochs):
    """With k = 1 every optimizer, known or not, keeps its learning rates, without a warmup."""
    workload = dataclasses.replace(workload, weight_decays=(0.1,), beta2s=(0.99,), batch_norm_momenta=(0.1,))
    recipe = scale_recipe(workload, batch_size, batch_size, epochs=epochs)
    assert recipe == Recipe(
        batch_size=batch_size,
        reference_batch_size=batch_size,
        learning_rates=workload.learning_rates,
        reference_learning_rates=workload.learning_rates,
        lr_rule="unchanged",
    )
    assert all(SampleSchedule(recipe=recipe)(step) == 1.0 for step in (0, 1, 10**6))


@given(recipes())
def test_the_ratios_between_param_groups_are_kept(recipe):
    """All param groups are multiplied by the same factor."""
    factors = [new / old for new, old in zip(recipe.learning_rates, recipe.reference_learning_rates)]
    assert factors == pytest.approx(factors[:1] * len(factors))
    decays = [new / old for new, old in zip(recipe.weight_decays, recipe.reference_weight_decays)]
    assert decays == pytest.approx(decays[:1] * len(decays))


@given(recipes())
def test_weights_decay_by_as_much_for_each_sample(recipe):
    """Where weight decay follows the rule, lr * wd a sample is what it was."""
    if recipe.weight_decay_rule.startswith("wd"):
        rates = zip(recipe.learning_rates, recipe.weight_decays)
        reference = zip(recipe.reference_learning_rates, recipe.reference_weight_decays)
        for (lr, wd), (old_lr, old_wd) in zip(rates, reference):
            assert lr * wd / recipe.growth == pytest.approx(old_lr * old_wd)


@given(recipes())
def test_averages_forget_as_many_samples(recipe):
    """beta2 and BatchNorm's momentum have the half-life in samples that they had, beta2's floor aside."""
    for new, old in zip(recipe.beta2s, recipe.reference_beta2s):
        assert new == pytest.approx(max(old**recipe.growth, min(old, 0.9)))
        assert 0 < new < 1
    for new, old in zip(recipe.batch_norm_momenta, recipe.reference_batch_norm_momenta):
        assert 1 - new == pytest.approx((1 - old) ** recipe.growth, abs=1e-12)


@given(recipes())
def test_a_recipe_survives_being_written(recipe):
    """Through YAML, in a profile, it comes back as it was."""
    profile = dataclasses.replace(sample_profile(), recipe=recipe)
    assert loads(dumps(profile)).recipe == recipe


@given(recipes())
def test_a_larger_batch_never_lowers_the_learning_rate(recipe):
    """The learning rate moves with the batch size, and by no more than it."""
    k = recipe.batch_size / recipe.reference_batch_size
    for new, old in zip(recipe.learning_rates, recipe.reference_learning_rates):
        assert min(1.0, k) * 0.999 <= new / old <= max(1.0, k) * 1.001
        assert recipe.lr_rule


@given(recipes(), st.integers(0, 10**8), st.integers(0, 10**8))
def test_warmup_rises_from_its_start_and_stays_at_one(recipe, one, other):
    """Monotone in samples, from the user's own rate to exactly 1."""
    early, late = sorted((one, other))
    assert warmup_factor(early, recipe) <= warmup_factor(late, recipe) <= 1.0
    assert warmup_factor(recipe.warmup_samples, recipe) == 1.0
    if recipe.warmup_samples:
        reference = recipe.reference_learning_rates[0] / recipe.learning_rates[0]
        assert warmup_factor(0, recipe) == pytest.approx(reference)


@given(recipes(), st.integers(1, 4096), st.integers(0, 10**6))
def test_a_schedule_knows_samples_only(recipe, times, steps):
    """After as many samples, in whatever batches they came, the rate is the same part of its full height."""
    single = dataclasses.replace(recipe, batch_size=1)
    batched = dataclasses.replace(recipe, batch_size=times)
    samples = steps * times
    assert SampleSchedule(recipe=batched)(steps) == SampleSchedule(recipe=single)(samples)
    assert SampleSchedule(recipe=single)(samples) == schedule_factor(samples, recipe)
    assert 0.0 <= schedule_factor(samples, recipe) <= 1.0


@st.composite
def epochs_of_data(draw: st.DrawFn) -> tuple[int, bool, WorkloadFacts]:
    """The length of a dataset, whether the rest of an epoch is dropped, and what a survey says of both."""
    samples, own, drop_last = draw(st.integers(1, 100_000)), draw(BATCHES), draw(st.booleans())
    own = min(own, samples)
    left = samples % own if drop_last else None
    facts = plain_workload(dataset_samples=samples - (left or 0), dropped_samples=left)
    return samples, drop_last, facts


@given(
    epochs_of_data(), BATCHES, BATCHES, st.integers(1, 100), st.sampled_from(("cosine", "polynomial", "wsd"))
)
def test_a_decay_ends_with_the_run_whatever_the_batch(data, batch_size, other, epochs, shape):
    """The first step at its end would be the one after the last, in as many steps as torch has batches.

    So in samples its end differs between batches by the rounding of an epoch to whole batches, and by nothing
    else; as a function of the part of the run it is the same.
    """
    samples, drop_last, workload = data
    decays = []
    for size in (min(batch_size, samples), min(other, samples)):
        decay = scale_recipe(workload, size, 1, epochs=epochs, decay=shape).decay
        assert decay is not None
        steps = epochs * len(BatchSampler(range(samples), size, drop_last))
        assert decay.samples == steps * size
        assert decay_factor((steps - 1) * size, decay) > decay.end
        assert decay_factor(steps * size, decay) == pytest.approx(decay.end, abs=1e-12)
        rounding = decay.samples - epochs * samples
        assert -epochs * size < rounding <= 0 if drop_last else 0 <= rounding < epochs * size
        decays.append(dataclasses.replace(decay, samples=1))
    assert decays[0] == decays[1]


@given(epochs_of_data(), st.sampled_from((1, 2, 4, 8)), st.integers(1, 100))
def test_a_decay_over_gathered_batches_ends_with_their_last_step(data, gather, epochs):
    """What makes up no step in an epoch goes into the next one's first; the run's last few are lost."""
    samples, drop_last, workload = data
    workload = dataclasses.replace(workload, step_samples=64)
    size = 64 // gather
    decay = scale_recipe(workload, size, 64, epochs=epochs, decay="cosine", keep_effective=True).decay
    assert decay is not None
    steps = epochs * len(BatchSampler(range(samples), size, drop_last)) // gather
    if steps:
        assert steps * 64 <= decay.samples < (steps + 1) * 64
        assert decay_factor((steps - 1) * 64, decay) > 0


@given(recipes(), st.sampled_from((1, 2, 4, 8)), st.sampled_from((1, 2, 4, 8)))
def test_a_step_that_keeps_its_samples_keeps_its_numbers(recipe, gather, own_gather):
    """However many batches it is gathered from: k is 1, and only what a forward pass sees may change."""
    batch_size = 8 * own_gather
    workload = plain_workload(
        optimizer_family="adam" if recipe.beta2s else "sgd",
        learning_rates=recipe.reference_learning_rates,
        weight_decays=tuple(0.1 for _ in recipe.reference_learning_rates),
        beta2s=recipe.reference_beta2s,
        batch_norm_momenta=(0.1,),
        step_samples=64,
    )
    kept = scale_recipe(workload, 64 // gather, batch_size, keep_effective=True)
    assert (kept.growth, kept.step_samples, kept.reference_step_samples) == (1.0, 64, 64)
    assert kept.learning_rates == kept.reference_learning_rates
    assert (kept.weight_decays, kept.beta2s, kept.warmup_samples, kept.ema_power) == ((), (), 0, 1.0)
    assert bool(kept.batch_norm_momenta) == (64 // gather != batch_size)
    assert (kept.accumulation_steps, kept.reference_accumulation_steps) == (gather, 64 // batch_size)
    profile = dataclasses.replace(sample_profile(), recipe=kept)
    assert loads(dumps(profile)).recipe == kept


@given(workloads(), BATCHES, st.integers(2, 8), st.integers(1, 300))
def test_warmup_takes_a_tenth_of_the_run_at_most(workload, reference, k, epochs):
    """However large the batch, the run mostly learns at its own learning rate."""
    workload = dataclasses.replace(workload, optimizer_family="sgd")
    recipe = scale_recipe(workload, reference * k, reference, epochs=epochs)
    if workload.dataset_samples:
        assert recipe.warmup_samples <= 0.1 * epochs * workload.dataset_samples
