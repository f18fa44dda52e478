"""Laws of the noise scale: what it may depend on, and what it finds where the truth is known."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from autotune.outcome import NoiseScale
from autotune.recipe.noise_scale import GradientStats, GradientStep, noise_scale

SIZES = st.integers(1, 512)
GROUPS = st.integers(2, 16)
SUMS = st.floats(1e-6, 1e6)
SHARES = st.just(0.0) | st.floats(1e-200, 1.0)
"""Nearer to zero, powers of two are no longer exact."""


def step(mean_of_squares: float, square_of_mean: float) -> GradientStep:
    """One step's sums."""
    return GradientStep(mean_of_squares=mean_of_squares, square_of_mean=square_of_mean)


@st.composite
def stats(draw: st.DrawFn) -> GradientStats:
    """Sums as gradients can give them: the square of a mean is no more than the mean of the squares."""
    groups = draw(GROUPS)
    sums = draw(st.lists(st.tuples(SUMS, SHARES), min_size=8, max_size=24))
    steps = tuple(step(square, share * square) for square, share in sums)
    return GradientStats(micro_samples=draw(SIZES), micro_batches=groups, steps=steps)


def gaussian(*, phi: float, b: int, groups: int, steps: int, directions: int, seed: int) -> GradientStats:
    """Sums of gradients with |G|^2 = 1 and a covariance of trace phi, equal in all directions."""
    rng = random.Random(seed)
    spread = math.sqrt(phi / directions / b)
    found = []
    for _ in range(steps):
        drawn = [[rng.gauss(0, spread) for _ in range(directions)] for _ in range(groups)]
        for gradient in drawn:
            gradient[0] += 1.0
        mean = [sum(column) / groups for column in zip(*drawn)]
        squares = [sum(x * x for x in gradient) for gradient in drawn]
        found.append(step(sum(squares) / groups, sum(x * x for x in mean)))
    return GradientStats(micro_samples=b, micro_batches=groups, steps=tuple(found))


@given(stats(), st.integers(-20, 20))
def test_a_loss_times_a_constant_has_the_same_noise_scale(given_stats, exponent):
    """All sums times the same factor cancel out; powers of two do so exactly."""
    factor = 4.0**exponent
    scaled = GradientStats(
        micro_samples=given_stats.micro_samples,
        micro_batches=given_stats.micro_batches,
        steps=tuple(step(s.mean_of_squares * factor, s.square_of_mean * factor) for s in given_stats.steps),
    )
    assert noise_scale(scaled) == noise_scale(given_stats)


NEARLY_STILL = GradientStats(
    micro_samples=1, micro_batches=2, steps=(step(1.0, 0.0),) * 7 + (step(5.0, 2.5e-323),)
)
"""Noise over the mean gradient's square is more than a float holds."""


@example(NEARLY_STILL)
@given(stats())
def test_the_ends_enclose_the_value(given_stats):
    """From 0 to the lower end, the lower bound and the upper end; value and upper end are open together."""
    found = noise_scale(given_stats)
    assert found is not None
    assert 0.0 <= found.low <= found.lower_bound < math.inf
    assert (found.value is None) == (found.high is None)
    assert found.high is None or found.lower_bound <= found.high


@given(st.floats(0.1, 1e5), SIZES, GROUPS, st.integers(8, 40))
def test_the_sums_that_truth_gives_give_the_truth_back(phi, b, groups, steps):
    """Whatever b and K: with S = phi and |G|^2 = 1 the expected sums give phi, without an interval."""
    exact = step(1 + phi / b, 1 + phi / (b * groups))
    found = noise_scale(GradientStats(micro_samples=b, micro_batches=groups, steps=(exact,) * steps))
    assert found is not None
    assert found.value == pytest.approx(phi, rel=1e-6)
    assert (found.low, found.high, found.lower_bound) == pytest.approx((found.value,) * 3)


@given(st.sampled_from((4.0, 32.0, 200.0)), st.sampled_from(((8, 8), (16, 4), (32, 4))), st.integers(0, 2))
def test_gaussian_gradients_of_a_known_noise_scale(phi, sizes, seed):
    """48 steps in 40 directions come within 45 %, however the samples are grouped."""
    b, groups = sizes
    found = noise_scale(gaussian(phi=phi, b=b, groups=groups, steps=48, directions=40, seed=seed))
    assert found is not None
    assert found.value == pytest.approx(phi, rel=0.45)
    assert found.lower_bound < 1.45 * phi


@given(stats(), st.lists(st.sampled_from((math.nan, math.inf)), min_size=1, max_size=5), st.randoms())
def test_steps_that_are_not_finite_are_left_out_and_counted(given_stats, bad, rng):
    """Wherever they stand, the rest gives what it gives alone."""
    steps = list(given_stats.steps)
    positions = [rng.randint(0, len(steps)) for _ in bad]
    for position, value in zip(sorted(positions, reverse=True), bad):
        steps.insert(position, step(value, 1.0))
    mixed = GradientStats(
        micro_samples=given_stats.micro_samples, micro_batches=given_stats.micro_batches, steps=tuple(steps)
    )
    found, alone = noise_scale(mixed), noise_scale(given_stats)
    assert isinstance(found, NoiseScale)
    assert isinstance(alone, NoiseScale)
    assert found.skipped == len(bad)
    assert (found.value, found.low, found.steps) == (alone.value, alone.low, alone.steps)
