"""Laws of comparing batch sizes, over random noise scales, sizes and pairs."""

from __future__ import annotations

import math

import pytest
from batch_worlds import noise
from finals_trials import YOURS, finals, workers
from hypothesis import given
from hypothesis import strategies as st

from autotune.search.batch import GradientLook, teaches
from autotune.search.verdict import pairs
from autotune.settings import Settings

scales = st.floats(min_value=0.0, max_value=1e9)
sizes = st.integers(min_value=1, max_value=1 << 16)


def look_at(samples: float) -> GradientLook:
    """A look that found this noise scale."""
    return GradientLook(noise=noise(samples))


def batch(size: int) -> Settings:
    """Settings with this batch alone."""
    return Settings().replace(batch_size=size)


@given(noise=scales, own=sizes, sizes=st.lists(sizes, min_size=2, max_size=2))
def test_the_larger_the_batch_the_less_a_sample_teaches(noise: float, own: int, sizes: list[int]) -> None:
    """Never more than its share of steps loses, and never less than keeping the number of steps would."""
    small, large = sorted(sizes)
    weights = [teaches(batch(size), batch(own), look_at(noise), "goodput") for size in (small, large)]
    assert weights[0] >= weights[1] * (1 - 1e-12)
    assert weights[1] * large >= weights[0] * small * (1 - 1e-12)


@given(noise=scales, more=scales, own=sizes, growth=st.integers(min_value=1, max_value=64))
def test_a_larger_noise_scale_takes_less_from_larger_batches(
    noise: float, more: float, own: int, growth: int
) -> None:
    """The lower bound is the careful end: what is decided by it holds for every larger noise scale."""
    low, high = sorted((noise, more))
    weights = [teaches(batch(growth * own), batch(own), look_at(n), "goodput") for n in (low, high)]
    assert weights[0] <= weights[1] * (1 + 1e-12) <= 1 + 1e-9


@given(
    rates=st.lists(st.floats(min_value=1.0, max_value=1e4), min_size=1, max_size=6),
    weight=st.floats(min_value=0.01, max_value=1.0),
)
def test_a_weight_moves_each_pair_by_its_logarithm(rates: list[float], weight: float) -> None:
    """On the candidate's side it adds, on the other it takes away."""
    four = workers(4)
    trials = finals({YOURS: [100.0] * len(rates), four: rates})
    plain = pairs(YOURS, four, trials, samples=None, epochs=None)
    ours = pairs(
        YOURS, four, trials, samples=None, epochs=None, weight=lambda s: weight if s == four else 1.0
    )
    theirs = pairs(
        YOURS, four, trials, samples=None, epochs=None, weight=lambda s: weight if s == YOURS else 1.0
    )
    assert ours == pytest.approx([p + math.log(weight) for p in plain])
    assert theirs == pytest.approx([p - math.log(weight) for p in plain])
