"""Laws of the intervals, over arbitrary data."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.measure.stats import rate_interval, ratio_interval, t_quantile, typical
from autotune.trial import Block

LOGS = st.lists(st.floats(-2, 2), min_size=2, max_size=12)
BLOCKS = st.lists(
    st.builds(
        Block,
        steps=st.just(4),
        samples=st.integers(1, 4096),
        elapsed_s=st.floats(1e-3, 60),
        wait_s=st.just(0.0),
    ),
    min_size=1,
    max_size=8,
)


@settings(deadline=None)
@given(LOGS)
def test_a_ratio_interval_contains_its_value(logs: list[float]) -> None:
    """0 < low <= value <= high, all finite, and the value is the mean on the log scale."""
    found = ratio_interval(logs)
    assert 0 < found.low <= found.value <= found.high < math.inf
    assert math.log(found.value) == pytest.approx(math.fsum(logs) / len(logs), abs=1e-9)


@settings(deadline=None)
@given(LOGS)
def test_swapping_the_sides_inverts_the_interval(logs: list[float]) -> None:
    """With yours and the candidate exchanged, value, low and high become 1/value, 1/high and 1/low."""
    found, swapped = ratio_interval(logs), ratio_interval([-x for x in logs])
    assert swapped.value == pytest.approx(1 / found.value, rel=1e-9)
    assert swapped.low == pytest.approx(1 / found.high, rel=1e-9)
    assert swapped.high == pytest.approx(1 / found.low, rel=1e-9)


@settings(deadline=None)
@given(LOGS, st.randoms(use_true_random=False))
def test_the_order_of_pairs_does_not_matter(logs: list[float], random) -> None:
    """Any order of the same pairs gives the very same interval."""
    shuffled = list(logs)
    random.shuffle(shuffled)
    assert ratio_interval(shuffled) == ratio_interval(logs)


@settings(deadline=None)
@given(LOGS, st.floats(-1, 1))
def test_a_common_factor_moves_the_interval_and_nothing_else(logs: list[float], shift: float) -> None:
    """A factor on every ratio multiplies value and both ends by it."""
    found, moved = ratio_interval(logs), ratio_interval([x + shift for x in logs])
    for name in ("value", "low", "high"):
        ratio = math.log(getattr(moved, name)) - math.log(getattr(found, name))
        assert ratio == pytest.approx(shift, abs=1e-6)


@given(LOGS)
def test_outliers_are_few_and_the_same_from_both_sides(logs: list[float]) -> None:
    """Most pairs always count; swapping the sides leaves out the same ones, and order follows the data."""
    found = typical(logs)
    assert len(found) == len(logs)
    assert found.count(False) <= 0.3 * len(logs)
    assert typical([-x for x in logs]) == found
    assert typical(logs[::-1]) == found[::-1]


@given(BLOCKS)
def test_a_rate_interval_contains_its_value(blocks: list[Block]) -> None:
    """0 < low <= value <= high, all finite, and the value is all samples over all seconds."""
    found = rate_interval(blocks)
    assert 0 < found.low <= found.value <= found.high < math.inf
    assert found.value * sum(b.elapsed_s for b in blocks) == pytest.approx(sum(b.samples for b in blocks))


@given(st.integers(1, 200), st.floats(0.51, 0.999), st.floats(0.51, 0.999))
def test_t_quantiles_rise_with_probability_and_fall_with_freedom(df: int, one: float, other: float) -> None:
    """A higher probability never has a smaller quantile; another degree of freedom never a larger one."""
    low, high = sorted((one, other))
    assert t_quantile(low, df) <= t_quantile(high, df)
    assert t_quantile(high, df + 1) <= t_quantile(high, df) * (1 + 1e-9)
