"""Where the steady state begins, on series whose truth is known."""

from __future__ import annotations

import math
import random

import pytest

from autotune.measure.steady import mark_transient, steady_from
from autotune.trial import Block


def series(shape: list[float], count: int, noise: float, rng: random.Random) -> list[float]:
    """`count` rates around 1000, the first of them scaled by `shape`."""
    factors = [*shape, *[1.0] * (count - len(shape))]
    return [1000 * factor * math.exp(rng.gauss(0, noise)) for factor in factors]


def found_in(shape: list[float], count: int, noise: float, runs: int = 400) -> float:
    """In which part of so many series a transient was found."""
    rng = random.Random(count)
    return sum(steady_from(series(shape, count, noise, rng)) > 0 for _ in range(runs)) / runs


@pytest.mark.parametrize("count", [4, 6, 8, 12, 20])
@pytest.mark.parametrize(("noise", "at_most"), [(0.005, 0.0), (0.01, 0.005), (0.02, 0.015), (0.05, 0.12)])
def test_noise_alone_is_rarely_cut(count: int, noise: float, at_most: float) -> None:
    """Where nothing changed, a trial keeps all of its blocks."""
    assert found_in([], count, noise) <= at_most


@pytest.mark.parametrize("count", [4, 6, 8, 12])
@pytest.mark.parametrize("slow", [[0.9], [0.9, 0.9], [1.12]])
def test_a_tenth_over_one_block_is_found(count: int, slow: list[float]) -> None:
    """At one percent of noise, slow or fast."""
    assert found_in(slow, count, 0.01) >= 0.95


@pytest.mark.parametrize(
    ("rates", "start"),
    [
        ([100.0, 100.0, 100.0, 100.0], 0),
        ([50.0, 100.0, 101.0, 99.0], 1),
        ([60.0, 61.0, 100.0, 101.0, 99.0, 100.0], 2),
        ([40.0, 70.0, 90.0, 100.0, 101.0, 100.0, 99.0, 100.0], 3),
        ([100.0, 101.0, 99.0, 100.0, 70.0, 71.0], 0),
        ([96.0, 100.0, 101.0, 100.0], 0),
        ([50.0, 100.0], 0),
        ([100.0], 0),
    ],
    ids=["flat", "first block", "two blocks", "growth", "late step", "small", "two in all", "one in all"],
)
def test_the_cut_is_where_the_rate_settles(rates: list[float], start: int) -> None:
    """A slow head goes, growth goes step by step; a late change, a small one and short series stay."""
    assert steady_from(rates) == start


def blocks_at(rates: list[float], marks: dict[int, tuple[str, ...]]) -> list[Block]:
    return [
        Block(steps=4, samples=round(rate), elapsed_s=1.0, wait_s=0.0, marks=marks.get(index, ()))
        for index, rate in enumerate(rates)
    ]


def test_marks_are_added_and_nothing_is_lost() -> None:
    """Blocks before the steady state are marked beside what they bear already; figures stay as they were."""
    blocks = blocks_at([500.0, 1000.0, 1010.0, 990.0], {0: ("epoch_edge",)})
    found = mark_transient(blocks)
    assert [block.marks for block in found] == [("epoch_edge", "transient"), (), (), ()]
    assert [block.samples for block in found] == [block.samples for block in blocks]


def test_a_neighbour_in_the_second_half_does_not_condemn_the_first() -> None:
    """Disturbed blocks are passed over, so what was quiet stays."""
    blocks = blocks_at([1000.0, 1000.0, 600.0, 590.0], {2: ("busy_machine",), 3: ("busy_machine",)})
    assert mark_transient(blocks) == tuple(blocks)


def test_a_disturbed_first_block_does_not_count_as_a_transient() -> None:
    """It is left out for its own reason."""
    blocks = blocks_at([600.0, 1000.0, 1000.0, 1000.0], {0: ("busy_machine",)})
    assert mark_transient(blocks) == tuple(blocks)
