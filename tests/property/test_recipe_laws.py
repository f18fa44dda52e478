"""Laws of the recipe: what scaling the batch size may and may not do to the learning rate."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import workloads

from autotune.outcome import Recipe
from autotune.recipe.scaling import scale_recipe, warmup_factor

BATCHES = st.integers(1, 8192)
EPOCHS = st.none() | st.integers(1, 300)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """The recipe of a random workload of a family that a rule is known for."""
    workload = dataclasses.replace(draw(workloads()), optimizer_family=draw(st.sampled_from(("sgd", "adam"))))
    return scale_recipe(workload, draw(BATCHES), draw(BATCHES), epochs=draw(EPOCHS))


@given(workloads(), BATCHES, EPOCHS)
def test_the_same_batch_size_changes_nothing(workload, batch_size, epochs):
    """With k = 1 every optimizer, known or not, keeps its learning rates, without a warmup."""
    recipe = scale_recipe(workload, batch_size, batch_size, epochs=epochs)
    assert recipe.learning_rates == recipe.reference_learning_rates == workload.learning_rates
    assert (recipe.lr_rule, recipe.warmup_samples) == ("unchanged", 0)


@given(recipes())
def test_the_ratios_between_param_groups_are_kept(recipe):
    """All param groups are multiplied by the same factor."""
    factors = [new / old for new, old in zip(recipe.learning_rates, recipe.reference_learning_rates)]
    assert factors == pytest.approx(factors[:1] * len(factors))


@given(recipes())
def test_a_larger_batch_never_lowers_the_learning_rate(recipe):
    """The learning rate moves with the batch size, and by no more than it."""
    k = recipe.batch_size / recipe.reference_batch_size
    for new, old in zip(recipe.learning_rates, recipe.reference_learning_rates):
        assert min(1.0, k) * 0.999 <= new / old <= max(1.0, k) * 1.001


@given(recipes(), st.integers(0, 10**8), st.integers(0, 10**8))
def test_warmup_rises_from_the_reference_and_stays_at_one(recipe, one, other):
    """Monotone in samples, from reference over own learning rate to exactly 1 at the end of the warmup."""
    early, late = sorted((one, other))
    assert warmup_factor(early, recipe) <= warmup_factor(late, recipe) <= 1.0
    assert warmup_factor(recipe.warmup_samples, recipe) == 1.0
    if recipe.warmup_samples and recipe.learning_rates:
        start = recipe.reference_learning_rates[0] / recipe.learning_rates[0]
        assert warmup_factor(0, recipe) == pytest.approx(start)


@given(recipes(), BATCHES, st.integers(0, 10**8))
def test_warmup_knows_samples_only(recipe, batch_size, samples_seen):
    """The factor after so many samples does not ask how large the batches were."""
    relabelled = dataclasses.replace(recipe, batch_size=batch_size)
    assert warmup_factor(samples_seen, relabelled) == warmup_factor(samples_seen, recipe)


@given(workloads(), BATCHES, st.integers(2, 8), st.integers(1, 300))
def test_warmup_takes_a_tenth_of_the_run_at_most(workload, reference, k, epochs):
    """However large the batch, the run mostly learns at its own learning rate."""
    workload = dataclasses.replace(workload, optimizer_family="sgd")
    recipe = scale_recipe(workload, reference * k, reference, epochs=epochs)
    if workload.dataset_samples:
        assert recipe.warmup_samples <= 0.1 * epochs * workload.dataset_samples
