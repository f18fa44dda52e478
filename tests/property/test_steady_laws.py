"""Laws of the steady state, over arbitrary series of rates."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.measure.steady import LEAST_LEFT, mark_transient, steady_from
from autotune.trial import DISTURBANCES, TRANSIENT, Block, Measurement

RATES = st.lists(st.floats(0.1, 1e6), min_size=1, max_size=24)
BLOCKS = st.lists(
    st.builds(
        Block,
        steps=st.integers(1, 9),
        samples=st.integers(0, 4096),
        elapsed_s=st.floats(1e-3, 60),
        wait_s=st.just(0.0),
        marks=st.sampled_from(((), (DISTURBANCES[0],), (DISTURBANCES[1], "epoch_edge"), ("epoch_edge",))),
    ),
    min_size=1,
    max_size=12,
)


@given(RATES)
def test_at_most_half_is_cut_and_two_are_left(rates: list[float]) -> None:
    """However wild the series, most of it counts."""
    start = steady_from(rates)
    assert 0 <= start <= len(rates) // 2
    assert start == 0 or len(rates) - start >= LEAST_LEFT


@given(st.lists(st.floats(10, 1000), min_size=1, max_size=24), st.sampled_from((0.125, 0.5, 4.0, 1024.0)))
def test_the_unit_of_the_rate_does_not_matter(rates: list[float], factor: float) -> None:
    """Rates in another unit are cut at the same place, up to what rounding decides."""
    start, scaled = steady_from(rates), steady_from([rate * factor for rate in rates])
    nudged = {steady_from([rate * (1 + sign * 1e-9 * i) for i, rate in enumerate(rates)]) for sign in (1, -1)}
    assert scaled == start or scaled in nudged or len(nudged) > 1


@given(st.floats(0.1, 1e6), st.integers(1, 24))
def test_a_constant_rate_is_steady_from_the_start(rate: float, count: int) -> None:
    """Nothing is cut where nothing changes."""
    assert steady_from([rate] * count) == 0


@given(BLOCKS)
def test_marking_keeps_every_block_and_marks_a_head(blocks: list[Block]) -> None:
    """Marked ones come first, all figures stay, and marking what is left again finds the same head."""
    found = mark_transient(blocks)
    heads = [TRANSIENT in block.marks for block in found]
    assert heads == sorted(heads, reverse=True)
    assert [(b.steps, b.samples, b.elapsed_s) for b in found] == [
        (b.steps, b.samples, b.elapsed_s) for b in blocks
    ]
    assert sum(heads) < len(blocks)


@given(BLOCKS)
def test_rates_lie_between_the_slowest_and_the_fastest_steady_block(blocks: list[Block]) -> None:
    """Whatever is left out, the steady rate is a mean of blocks that ran."""
    found = Measurement(blocks=mark_transient(blocks))
    rates = [block.samples_per_s for block in found.steady]
    assert found.steady
    assert min(rates) * (1 - 1e-9) <= found.samples_per_s <= max(rates) * (1 + 1e-9)
    again = sum(b.samples for b in found.steady) / math.fsum(b.elapsed_s for b in found.steady)
    assert found.samples_per_s == pytest.approx(again)
