"""The recipe's numbers against the papers' rules worked out by hand."""

from __future__ import annotations

import pytest
from strategies import plain_workload

from autotune.errors import UsageError
from autotune.recipe.scaling import scale_recipe, warmup_factor


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


def test_an_optimizer_without_a_rule_is_refused():
    """Lion's learning rate is not guessed: the error names it and says what to do."""
    workload = plain_workload(optimizer_class="Lion", optimizer_family="other")
    with pytest.raises(UsageError, match="Lion") as caught:
        scale_recipe(workload, 128, 32)
    assert caught.value.fix


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
    assert scale_recipe(workload, 64, 32).warmup_samples == 2000 * 64


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


def test_warmup_without_known_learning_rates_leaves_them_alone():
    """Where no learning rate is known, or all are zero, there is no reference to start from."""
    recipe = scale_recipe(plain_workload(learning_rates=(0.0,)), 128, 32)
    assert recipe.warmup_samples > 0
    assert warmup_factor(0, recipe) == 1.0
