"""The timed loop: what counts as a block, whatever the first guess of a step's length was."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from autotune.measure.device import DeviceClock
from autotune.measure.feed import HeldFeed
from autotune.measure.timing import (
    BlockTimer,
    DivergedError,
    OutOfTimeError,
    Round,
    excess_round_s,
    excess_start_s,
    measure_blocks,
    warm_up,
)
from autotune.settings import Settings
from autotune.trial import Block, TrialSpec

NEVER = float("inf")


class SlowFeed(HeldFeed):
    """Hands its first batch out at once, as a loader does that fetched it while it started."""

    def __init__(self, fetch_s: float) -> None:
        super().__init__(None, 4)
        self.fetch_s, self.fetched = fetch_s, 0

    def next(self) -> tuple[Any, int]:
        if self.fetched:
            time.sleep(self.fetch_s)
        self.fetched += 1
        return None, 4


def timer_of(feed: HeldFeed, step: Any = None, workers: int = 0, deadline: float = NEVER) -> BlockTimer:
    return BlockTimer(step, feed, DeviceClock(torch.device("cpu")), workers, deadline)


def spec(**changes: Any) -> TrialSpec:
    return TrialSpec(**{"settings": Settings(), "stage": "joint", "window_s": 0.08, **changes})


class ShortStream(HeldFeed):
    """A stream of one batch: all time goes into starting it again, which no block counts."""

    def next(self) -> tuple[Any, int]:
        started = time.perf_counter()
        time.sleep(0.01)
        self.epochs += 1
        self.restarts_s.append(time.perf_counter() - started)
        return None, 4


def test_a_window_ends_though_restarts_take_all_of_its_time() -> None:
    """What blocks leave out is spent all the same: the trial must not go on to its deadline."""
    timer = timer_of(ShortStream(None, 4), deadline=time.perf_counter() + 10)
    blocks, stopped = measure_blocks(timer, spec(), 0.01)
    assert stopped == "window"
    assert len(blocks) >= 2


def test_the_batch_that_came_with_the_start_says_nothing_of_a_step() -> None:
    """The step's length is guessed from batches fetched after the first."""
    assert timer_of(SlowFeed(0.01)).discard(1.0) >= 0.009


def test_a_guess_that_was_far_too_short_does_not_make_an_endless_block() -> None:
    """A block ends at twice its length, and holds the steps that it really ran."""
    feed = SlowFeed(0.01)
    block = timer_of(feed).block(10**6, at_most_s=0.05)
    assert block.steps == feed.fetched < 50
    assert block.samples == 4 * block.steps


def test_blocks_are_whole_rounds_of_the_workers() -> None:
    """Workers deliver in bursts, so steps come in multiples of their number, cut short or not."""
    blocks, stopped = measure_blocks(timer_of(SlowFeed(0.002), workers=3), spec(), step_s=1e-6)
    assert stopped == "window"
    assert all(block.steps % 3 == 0 for block in blocks)


def test_a_guess_that_was_too_long_is_mended() -> None:
    """Blocks become longer when the first one shows that steps are quicker than guessed."""
    blocks, _ = measure_blocks(timer_of(SlowFeed(0.0005)), spec(), step_s=0.02)
    assert blocks[0].steps < blocks[-1].steps


def test_far_behind_the_incumbent_two_blocks_are_enough() -> None:
    """Under `give_up_below` the trial stops early and says so."""
    blocks, stopped = measure_blocks(timer_of(SlowFeed(0.002)), spec(give_up_below=1e9), step_s=0.002)
    assert (stopped, len(blocks)) == ("gave_up", 2)


def test_a_loss_that_is_not_finite_ends_the_trial() -> None:
    """NaN at the end of a block is found there."""
    with pytest.raises(DivergedError):
        timer_of(HeldFeed(None, 4), step=lambda batch: torch.tensor(float("nan"))).block(2, NEVER)


def test_past_the_deadline_nothing_goes_on() -> None:
    """Warm-up and blocks end at the deadline, also without a process that could be ended."""
    clock = DeviceClock(torch.device("cpu"))
    with pytest.raises(OutOfTimeError):
        warm_up(lambda batch: torch.zeros(()), None, clock, deadline=0.0)
    with pytest.raises(OutOfTimeError):
        timer_of(HeldFeed(None, 4), deadline=0.0).block(2, NEVER)


def test_warm_up_ends_when_the_step_has_settled() -> None:
    """A first step that is long, as with kernels being chosen, is followed until two are alike."""
    lengths = iter([0.05, 0.002, 0.002, 0.002, 0.002, 0.002])
    ran: list[float] = []

    def step(batch: Any) -> torch.Tensor:
        ran.append(next(lengths))
        time.sleep(ran[-1])
        return torch.tensor(float(len(ran)))

    warm = warm_up(step, None, DeviceClock(torch.device("cpu")), deadline=NEVER)
    assert len(ran) >= 2
    assert warm.step_s < 0.05 < warm.elapsed_s
    assert warm.steps == len(ran)
    assert warm.first_loss == 1.0


def test_warm_up_goes_on_for_as_long_as_asked() -> None:
    """The steps after it has settled are run, and are no cost of the start."""
    ran: list[float] = []

    def step(batch: Any) -> torch.Tensor:
        ran.append(time.perf_counter())
        time.sleep(0.002)
        return torch.tensor(1.0)

    started = time.perf_counter()
    warm = warm_up(step, None, DeviceClock(torch.device("cpu")), deadline=NEVER, least_s=0.2)
    assert time.perf_counter() - started >= 0.2
    assert len(ran) > 6
    assert warm.elapsed_s <= ran[6] - started
    assert warm.steps <= 6


def test_memory_is_looked_at_after_each_block() -> None:
    """Once for each, at its edge."""
    timer = timer_of(HeldFeed(None, 4))
    looked: list[int] = []
    timer.memory.sample = lambda: looked.append(1)  # type: ignore[method-assign]
    for _ in range(3):
        timer.block(2, NEVER)
    assert len(looked) == 3


def test_a_start_costs_what_it_takes_beyond_an_ordinary_wait() -> None:
    """Without workers the first batch takes as long as any other: starting is free."""
    blocks = (Block(steps=10, samples=40, elapsed_s=2.0, wait_s=1.0),)
    assert excess_start_s(0.1, blocks) == 0
    assert excess_start_s(0.6, blocks) == pytest.approx(0.5)


def test_a_start_costs_what_its_first_round_takes_beyond_steady_steps() -> None:
    """Its first batch and its first steps, less as many steady ones; never less than nothing."""
    blocks = (Block(steps=10, samples=40, elapsed_s=2.0, wait_s=1.0),)
    assert excess_round_s(0.25, Round(steps=2, elapsed_s=0.5), blocks) == pytest.approx(0.35)
    assert excess_round_s(0.0, Round(steps=2, elapsed_s=0.1), blocks) == 0


def test_a_round_is_a_step_for_each_worker_while_there_is_time() -> None:
    """At least one, however long it takes; `discard` begins with a round and keeps it."""
    timer = timer_of(SlowFeed(0.001), workers=3)
    timer.discard(1.0)
    assert timer.first_round.steps == 3
    assert timer.first_round.elapsed_s >= 0.002
    assert timer.round(0.0).steps == 1
