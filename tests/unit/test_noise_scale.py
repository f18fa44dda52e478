"""The noise scale at its edges: nothing but noise, no noise at all, too little to say anything."""

from __future__ import annotations

import pytest

from autotune.recipe.noise_scale import LEAST_STEPS, GradientStats, GradientStep, noise_scale


def stats(*sums: tuple[float, float], times: int = 16, **changes: object) -> GradientStats:
    """Steps with these sums again and again, of 4 micro-batches with 32 samples each."""
    steps = tuple(GradientStep(mean_of_squares=square, square_of_mean=mean) for square, mean in sums * times)
    given = {"micro_samples": 32, "micro_batches": 4, "steps": steps} | changes
    return GradientStats(**given)


def test_one_step_by_hand() -> None:
    """L = 3, T = 1.5, K = 4, b = 32: G2 = (6 - 3) / 3 = 1 and S = 32 * 4 * 1.5 / 3 = 64."""
    found = noise_scale(stats((3.0, 1.5)))
    assert found is not None
    assert found.value == pytest.approx(64.0)


def test_sums_are_pooled_and_ratios_are_not_averaged() -> None:
    """A step with S = 64, G2 = 1 and one with S = 64, G2 = 3 give 128 / 4; the mean of ratios is 43."""
    found = noise_scale(stats((3.0, 1.5), (5.0, 3.5)))
    assert found is not None
    assert found.value == pytest.approx(32.0)


def test_nothing_but_noise_is_open_above() -> None:
    """|mean|^2 of no more than a K-th of the squares shows no gradient at all: only `at least` is said."""
    found = noise_scale(stats((4.0, 0.9), (4.0, 1.0)))
    assert found is not None
    assert (found.value, found.high) == (None, None)
    # S over T: 32 * 4 * (4 - 0.95) / 3 = 130 over 0.95.
    assert found.lower_bound == pytest.approx(130 / 0.95, rel=0.05)
    assert found.in_words() == f"at least {found.lower_bound:.0f} samples, weights as handed over"


def test_a_gradient_that_may_be_none_is_open_above_too() -> None:
    """Where some resamples find no gradient the upper end is open, though the sums alone give a ratio."""
    found = noise_scale(stats((4.0, 0.2), (4.0, 1.9), (4.0, 0.9), times=4))
    assert found is not None
    assert (found.value, found.high) == (None, None)
    assert 0 < found.lower_bound < 1000


def test_no_noise_is_a_noise_scale_of_zero() -> None:
    """Micro-batches that all give the same gradient, up to rounding, need no averaging."""
    found = noise_scale(stats((2.0, 2.0), (2.0, 2.0000001)))
    assert found is not None
    assert (found.value, found.lower_bound) == (0.0, 0.0)


def test_gradients_of_zero_say_nothing() -> None:
    """Neither noise nor gradient: at least 0 samples, and no error."""
    found = noise_scale(stats((0.0, 0.0)))
    assert found is not None
    assert (found.value, found.lower_bound) == (None, 0.0)


def test_too_few_steps_give_none() -> None:
    """Under the least number of finite steps, and where the gradients were refused, there is no figure."""
    assert noise_scale(stats((3.0, 1.5), times=LEAST_STEPS - 1)) is None
    assert noise_scale(stats((3.0, 1.5), times=LEAST_STEPS)) is not None
    assert noise_scale(stats((3.0, 1.5), (float("nan"), 1.0), times=LEAST_STEPS - 1)) is None
    assert noise_scale(stats((3.0, 1.5), refused="the loss is a sum")) is None


@pytest.mark.parametrize(
    ("changes", "at"),
    [
        ({}, "weights as handed over"),
        ({"warm_steps": 100}, "after 100 warm steps"),
        ({"warm_steps": 100, "apart": 2}, "after 100 to 130 warm steps"),
        ({"apart": 2}, "after 0 to 30 warm steps"),
    ],
)
def test_it_says_where_in_training_it_was_taken(changes: dict[str, object], at: str) -> None:
    """Noise grows during training, so a figure without its place says little."""
    found = noise_scale(stats((3.0, 1.5), **changes))
    assert found is not None
    assert found.at == at
    assert found.in_words().endswith(at)
