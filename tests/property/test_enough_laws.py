"""Laws of comparing a trial that goes on with a rate, over arbitrary blocks."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from autotune.measure.enough import LEAST_BLOCKS, compared, rate_so_far
from autotune.trial import DISTURBANCES, Block

BLOCKS = st.lists(
    st.builds(
        Block,
        steps=st.integers(1, 9),
        samples=st.integers(0, 4096),
        elapsed_s=st.floats(1e-3, 60),
        wait_s=st.just(0.0),
        marks=st.sampled_from(((), (), (), ("epoch_edge",), *((mark,) for mark in DISTURBANCES))),
    ),
    max_size=12,
)
ORDER = {"below": 0, "open": 1, "near": 1, "above": 2}


@given(BLOCKS)
def test_the_rate_lies_in_its_interval_and_among_the_blocks(blocks: list[Block]) -> None:
    """Whatever ran, the value is a mean of blocks that count, and its interval holds it."""
    found = rate_so_far(blocks)
    rates = [block.samples_per_s for block in blocks if block.samples and not block.disturbed]
    assert (found is None) == (len(rates) < LEAST_BLOCKS)
    if found is not None:
        assert found.low < found.value < found.high
        assert min(rates) * (1 - 1e-9) <= found.value <= max(rates) * (1 + 1e-9)


@given(BLOCKS, st.floats(0.1, 1e6), st.floats(1.0, 100.0))
def test_a_higher_rate_is_never_easier_to_beat(blocks: list[Block], rate: float, factor: float) -> None:
    """What is surely below stays so beside a higher rate, and what is surely above beside a lower one."""
    assert ORDER[compared(blocks, rate * factor)] <= ORDER[compared(blocks, rate)]


@given(BLOCKS, st.floats(0.1, 1e6))
def test_an_answer_agrees_with_the_rate(blocks: list[Block], rate: float) -> None:
    """Nothing is surely on one side of a rate while its blocks that count average to the other side."""
    found = rate_so_far(blocks)
    answer = compared(blocks, rate)
    if found is None:
        assert answer == "open"
    elif answer == "below":
        assert found.high < rate


@given(BLOCKS, st.sampled_from((0.5, 2.0, 1024.0)))
def test_the_unit_of_the_rate_does_not_matter(blocks: list[Block], factor: float) -> None:
    """Rates in another unit have the same interval in that unit."""
    found = rate_so_far(blocks)
    assume(found is not None)
    again = rate_so_far([_scaled(block, factor) for block in blocks])
    assert found is not None
    assert again is not None
    assert again.value == pytest.approx(found.value * factor)
    assert math.log(again.high / again.low) == pytest.approx(math.log(found.high / found.low))


def _scaled(block: Block, factor: float) -> Block:
    return Block(
        steps=block.steps,
        samples=block.samples,
        elapsed_s=block.elapsed_s / factor,
        wait_s=0.0,
        marks=block.marks,
    )
