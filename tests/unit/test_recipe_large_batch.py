"""When LARS and LAMB are offered, and with which numbers."""

from __future__ import annotations

import pytest
from strategies import plain_workload

from autotune.errors import UsageError
from autotune.recipe.large_batch import large_batch_recipe
from autotune.recipe.scaling import scale_recipe

TRANSFORMER = plain_workload(
    optimizer_class="AdamW",
    optimizer_family="adam",
    has_conv2d=False,
    has_attention=True,
    dataset_samples=10_000_000,
    decoupled_weight_decay=True,
)
CONVNET = plain_workload(dataset_samples=1_281_167)


@pytest.mark.parametrize(
    ("workload", "batch_size", "reference", "offered"),
    [
        (CONVNET, 8192, 256, "LARS"),
        (CONVNET, 8191, 256, None),
        (TRANSFORMER, 4096, 256, "LAMB"),
        (TRANSFORMER, 4096, 512, None),  # 8 times the user's
        (TRANSFORMER, 2048, 64, None),
        (CONVNET, 8192, 8192, None),  # nothing changed
        (plain_workload(has_conv2d=False), 16384, 256, None),
    ],
)
def test_they_are_offered_for_very_large_batches_alone(workload, batch_size, reference, offered):
    """LARS to SGD on convolutions from 8192 on, LAMB to AdamW on attention from 4096 and 16 times on."""
    offer = scale_recipe(workload, batch_size, reference, epochs=10).large_batch
    assert (offer.optimizer if offer else None) == offered


def test_lars_has_the_numbers_of_a_run_that_converged():
    """The nearest MLPerf point, its warmup in samples, a decay of power 2, and a plain word of caution."""
    offer = scale_recipe(CONVNET, 30_000, 256, epochs=60).large_batch
    assert offer is not None
    assert (offer.learning_rate, offer.momentum) == (21.2, 0.94)
    assert offer.warmup_samples == 626 * 30_000
    assert offer.decay is not None
    assert (offer.decay.shape, offer.decay.power) == ("polynomial", 2.0)
    assert offer.decay.samples == 60 * 43 * 30_000  # 1,281,167 samples are 42 batches and a part of one
    assert offer.decay.end * offer.learning_rate == pytest.approx(1e-4)
    assert "validation run" in offer.rule


@pytest.mark.parametrize(
    ("batch_size", "epochs", "steps"),
    [(8_192, 5, 782), (13_056, 9, 883), (32_768, 16, 626), (65_536, 31, 606)],
)
def test_lars_warms_up_for_as_many_steps_as_the_reference(batch_size, epochs, steps):
    """The reference counts epochs of ImageNet, in steps of its own batch, whatever the dataset is here."""
    assert steps == round(epochs * 1_281_167 / batch_size)
    for samples in (1_281_167, 10_000_000):
        workload = plain_workload(dataset_samples=samples)
        offer = scale_recipe(workload, batch_size, 256, epochs=200).large_batch
        assert offer is not None
        assert offer.warmup_samples == steps * batch_size


def test_lamb_scales_from_bert():
    """5e-3 and a fifth of the run at 32768, by root and linearly; without a known run nothing decays."""
    offer = scale_recipe(TRANSFORMER, 8192, 256, epochs=2).large_batch
    assert offer is not None
    assert offer.learning_rate == pytest.approx(2.5e-3)
    assert offer.warmup_samples == int(0.05 * 20_000_000)
    assert offer.decay is not None
    assert offer.decay.samples == 2 * 1221 * 8192
    unknown = scale_recipe(TRANSFORMER, 8192, 256).large_batch
    assert unknown is not None
    assert unknown.decay is None
    assert unknown.warmup_samples == pytest.approx(2000 * 8192, rel=1e-3)


def test_a_warmup_takes_a_quarter_of_a_short_run_at_most():
    """However many steps the reference took."""
    offer = scale_recipe(CONVNET, 8192, 256, epochs=1).large_batch
    assert offer is not None
    assert offer.warmup_samples == 1_281_167 // 4


def test_the_offers_own_recipe_scales_nothing_else():
    """Its rate and schedule are its own; what belongs to the user's optimizer is not carried over."""
    recipe = scale_recipe(CONVNET, 8192, 256, epochs=60)
    offer, own = large_batch_recipe(recipe)
    assert own.learning_rates == own.reference_learning_rates == (offer.learning_rate,)
    assert (own.warmup_samples, own.decay) == (offer.warmup_samples, offer.decay)
    assert own.weight_decays == own.beta2s == ()


def test_what_is_not_offered_is_refused():
    """The user who asks for it is told why."""
    for recipe in (None, scale_recipe(CONVNET, 512, 256)):
        with pytest.raises(UsageError, match="no optimizer for large batches"):
            large_batch_recipe(recipe)
