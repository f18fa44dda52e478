"""When a trial that is compared with a rate has run long enough."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from autotune.measure import timing
from autotune.measure.enough import LEAST_BLOCKS, NARROW, compared, rate_so_far
from autotune.settings import Settings
from autotune.testing import FakeClock
from autotune.trial import Block, TrialSpec


def block(rate: float, marks: tuple[str, ...] = ()) -> Block:
    return Block(steps=4, samples=10**6, elapsed_s=1e6 / rate, wait_s=0.0, marks=marks)


class FakeTimer:
    """Blocks of given rates, on a clock that only they advance."""

    def __init__(self, rates: list[float], clock: FakeClock, deadline: float = math.inf) -> None:
        self.rates, self.clock, self.deadline = iter(rates), clock, deadline

    def steps_per_block(self, step_s: float, block_s: float) -> int:
        return max(1, math.ceil(block_s / step_s))

    def block(self, steps: int, at_most_s: float) -> Block:
        rate = next(self.rates)
        self.clock.advance(steps * 100 / rate)
        return Block(steps=steps, samples=steps * 100, elapsed_s=steps * 100 / rate, wait_s=0.0)

    def now_s(self) -> float:
        return self.clock()

    def has_time_for(self, seconds: float) -> bool:
        return self.clock() + seconds < self.deadline


def ran(rates: list[float], *, deadline: float = math.inf, **asked: Any) -> tuple[int, str, float]:
    """Blocks, why it stopped and the timed seconds, of steps of 100 samples in 0.1 s at 1000 samples/s."""
    clock = FakeClock()
    spec = TrialSpec(**{"settings": Settings(), "stage": "joint", "window_s": 2.0, **asked})
    start = clock()
    timer: Any = FakeTimer(rates, clock, deadline)
    blocks, stopped = timing.measure_blocks(timer, spec, step_s=0.1)
    return len(blocks), stopped, round(clock() - start, 1)


SAME = [1000.0, 996.0, 999.0, 997.0] * 10


def test_surely_below_ends_a_trial_before_its_window() -> None:
    """Three blocks a fifth under the rate to beat are enough, and it says that it gave up."""
    assert ran(SAME, compare_with=1250.0) == (3, "gave_up", 1.5)


def test_surely_above_fills_the_window_and_no_more() -> None:
    """The window is what a rate is worth that will be used."""
    assert ran(SAME, compare_with=800.0, window_cap_s=10.0) == (4, "window", 2.0)


def test_what_is_open_goes_on_up_to_the_cap() -> None:
    """With noise of several percent around the rate to beat, further blocks are run until the cap."""
    noisy = [1000.0, 1060.0, 940.0, 1030.0, 970.0, 1010.0] * 5
    blocks, stopped, elapsed_s = ran(noisy, compare_with=1000.0, window_cap_s=4.0)
    assert stopped == "window"
    assert blocks > 4
    assert 3.9 <= elapsed_s <= 4.5


def test_going_on_ends_with_the_answer() -> None:
    """What is open after the window may be surely below one block later."""
    slower = [1000.0, 1030.0, 960.0, 985.0, *[960.0] * 30]
    blocks, stopped, _ = ran(slower, compare_with=1010.0, window_cap_s=20.0)
    assert stopped == "gave_up"
    assert 4 < blocks < 30


def test_a_difference_too_small_to_matter_ends_it_too() -> None:
    """Once the interval is narrow nothing is gained by knowing on which side of the rate it lies."""
    blocks, stopped, elapsed_s = ran(SAME, compare_with=1000.0, window_cap_s=100.0)
    assert stopped == "window"
    assert 4 < blocks < 20
    assert elapsed_s < 10


def test_without_a_cap_the_window_is_the_cap() -> None:
    """Open or not, the trial ends where it would have ended."""
    assert ran(SAME, compare_with=1000.0) == (4, "window", 2.0)


def test_without_a_rate_to_compare_with_nothing_changes() -> None:
    """A cap alone asks for nothing."""
    assert ran(SAME, window_cap_s=100.0) == (4, "window", 2.0)


def test_nothing_goes_on_into_the_timeout() -> None:
    """Where the deadline is near, what was measured is better than a trial that timed out."""
    clock = FakeClock()
    assert ran(SAME, compare_with=1000.0, window_cap_s=100.0, deadline=clock() + 3.0)[1:] == ("window", 2.0)


def test_disturbed_blocks_say_nothing() -> None:
    """However slow a neighbour made them, three blocks that count are waited for."""
    slow = [block(500.0, marks=("busy_machine",))] * 4
    assert compared([*slow, block(1000.0), block(1001.0)], 1000.0) == "open"
    assert compared([*slow, block(800.0), block(801.0), block(799.0)], 1000.0) == "below"


def test_a_slow_start_alone_is_not_surely_below() -> None:
    """A head that the steady rate leaves behind does not end a trial that is as fast afterwards."""
    assert compared([block(rate) for rate in (700.0, 1001.0, 999.0, 1000.0, 1002.0)], 1000.0) != "below"


def test_a_fast_start_is_not_cut_to_find_the_rest_below() -> None:
    """What is surely below is so with the blocks that a change-point test would cut as well."""
    rates = [1100.0, 990.0, 992.0, 989.0, 991.0]
    assert compared([block(rate) for rate in rates], 1010.0) == "open"


@pytest.mark.parametrize(("noise", "blocks"), [(0.02, 4), (0.02, 12), (0.05, 4), (0.05, 8), (0.05, 12)])
def test_settings_as_fast_are_rarely_given_up(noise: float, blocks: int) -> None:
    """Looking after each block finds at most 2 % of them surely below, up to what 500 trials can tell."""
    rng = random.Random(blocks)
    wrong = 0
    for _ in range(500):
        drawn = [block(1000.0 * math.exp(rng.gauss(0, noise))) for _ in range(blocks)]
        wrong += any(compared(drawn[:n], 1000.0) == "below" for n in range(LEAST_BLOCKS, blocks + 1))
    assert wrong <= 0.03 * 500


def test_few_blocks_that_agree_by_chance_are_not_believed() -> None:
    """Three equal blocks leave the width that their prior noise gives them."""
    found = rate_so_far([block(1000.0)] * LEAST_BLOCKS)
    assert found is not None
    assert found.value == pytest.approx(1000.0)
    assert found.high / found.low > 1 + 2 * NARROW
