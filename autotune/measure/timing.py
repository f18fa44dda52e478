"""The timed loop: warm-up on a held batch, a cold queue, then blocks with one synchronisation at each end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from autotune.measure import compiling
from autotune.measure.device import DeviceClock
from autotune.measure.enough import Answer, compared
from autotune.measure.feed import Feed, LoaderFeed
from autotune.measure.load import LoadMeter
from autotune.measure.memory import MemoryMeter
from autotune.measure.steady import mark_transient
from autotune.trial import Block, Measurement, Stopped, TrialSpec, steady_blocks

Step = Callable[[Any], torch.Tensor | None]

_LONG_BLOCK = 2.0
"""A block may overrun by this factor: a bad guess of the step's length must not cost minutes."""
_SLOW_WINDOW = 3.0
"""A window may overrun by this factor to complete its blocks; then two are enough."""
_ROOM = 3.0
"""Past its window a trial goes on only while so many further blocks would fit before its deadline."""

_BY_A_NEIGHBOUR = 20.0
"""A neighbour slows no step by more: one whose threads wait for one without a CPU was slowed tenfold."""


class DivergedError(Exception):
    """The loss became NaN or infinite while a setting was measured."""


class OutOfTimeError(Exception):
    """A trial ran past its timeout. The bench process is ended from outside when it hangs in one step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmUp:
    """What the steps before the timed ones showed."""

    elapsed_s: float
    """Seconds until the step time had settled."""
    steps: int
    """Steps run in `elapsed_s`."""
    step_s: float
    """Seconds of the last step."""
    first_loss: float | None


def warm_up(
    step: Step,
    batch: Any,
    clock: DeviceClock,
    *,
    deadline: float,
    at_most_s: float = 5.0,
    least_s: float = 0.0,
) -> WarmUp:
    """Run steps on one held batch until the step time has settled: kernels chosen, memory allocated.

    Args:
        at_most_s: without settling.
        least_s: with steps that go on after it has settled, for clocks that rise with load. They are no part
            of `elapsed_s`: training pays them with steps of its own.

    Raises:
        OutOfTimeError: at `deadline`, a reading of `time.perf_counter`.
    """
    started = time.perf_counter()
    first: float | None = None
    best = last = math.inf
    for count in range(1, 7):
        before = in_time(deadline)
        loss = step(batch)
        clock.synchronize()
        last = time.perf_counter() - before
        if first is None and isinstance(loss, torch.Tensor) and loss.numel() == 1:
            first = float(loss)
        settled = last <= 1.15 * best
        best = min(best, last)
        if (count >= 2 and settled) or (count >= 2 and time.perf_counter() - started > at_most_s):
            break
    settled_s = time.perf_counter() - started
    while time.perf_counter() - started < least_s:
        before = in_time(deadline)
        step(batch)
        clock.synchronize()
        last = time.perf_counter() - before
    return WarmUp(elapsed_s=settled_s, steps=count, step_s=last, first_loss=first)


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """The first steps after a start of the loader, one for each worker."""

    steps: int
    elapsed_s: float


class BlockTimer:
    """Times blocks of steps of a feed into a step function."""

    def __init__(
        self, step: Step | None, feed: Feed, clock: DeviceClock, num_workers: int, deadline: float
    ) -> None:
        self._deadline = deadline
        self._step = step
        self._feed = feed
        self._clock = clock
        self._workers = max(1, num_workers)
        self._load = LoadMeter()
        self.memory = MemoryMeter()
        self.last_loss: float | None = None
        self.first_round = Round(steps=0, elapsed_s=0.0)
        """What `discard` began with."""

    def round(self, at_most_s: float) -> Round:
        """A step for each worker, or as many as begin within `at_most_s` and one at least."""
        started = time.perf_counter()
        done = 0
        while done < self._workers and (done == 0 or time.perf_counter() - started < at_most_s):
            self._one()
            done += 1
        self._clock.synchronize()
        return Round(steps=done, elapsed_s=time.perf_counter() - started)

    def discard(self, at_most_s: float) -> float:
        """Steps that fill the pipeline: two for each worker, and all that is in flight if time allows.

        Returns:
            Seconds of a step, as seen, its batch included.
        """
        # Apart from the others: the first batch came with the start, and costs nothing here.
        self.first_round = self.round(at_most_s)
        wanted = max(self._workers, self._feed.in_flight - self._workers)
        started = time.perf_counter()
        done = 0
        while done < wanted:
            for _ in range(self._workers):
                self._one()
                done += 1
            if time.perf_counter() - started > at_most_s:
                break
        self._clock.synchronize()
        return (time.perf_counter() - started) / done

    def block(self, steps: int, at_most_s: float) -> Block:
        """A block of so many steps, or of the fewer that fit into `at_most_s`.

        Raises:
            DivergedError, OutOfTimeError
        """
        retries, compiled = self._clock.allocator_retries(), compiling.compilations()
        epochs, restarted = self._feed.epochs, len(self._feed.restarts_s)
        self._load.start()
        samples, wait_s, loss = 0, 0.0, None
        started = time.perf_counter()
        for done in range(steps):
            before = in_time(self._deadline)
            if before - started > at_most_s and done % self._workers == 0:
                steps = done
                break
            batch, count = self._feed.next()
            wait_s += time.perf_counter() - before
            samples += count
            if self._step is not None:
                loss = self._step(batch)
        self._clock.synchronize()
        elapsed_s = time.perf_counter() - started
        away_s = sum(self._feed.restarts_s[restarted:])
        gpu = self._clock.gpu_state()
        loss_value = finite(loss)
        self.last_loss = self.last_loss if loss_value is None else loss_value
        load = self._load.stop()
        self.memory.sample()
        return Block(
            steps=steps,
            samples=samples,
            elapsed_s=max(elapsed_s - away_s, 1e-9),
            wait_s=max(wait_s - away_s, 0.0),
            foreign_cpus=load.foreign_cpus,
            waited_share=load.waited_share,
            gpu_mhz=gpu.mhz if gpu is not None else None,
            gpu_celsius=gpu.celsius if gpu is not None else None,
            marks=_marks(
                retried=self._clock.allocator_retries() > retries,
                compiled=compiling.compilations() > compiled,
                busy=load.busy,
                throttled=gpu is not None and gpu.slowed,
                restarted=self._feed.epochs > epochs,
            ),
        )

    def steps_per_block(self, step_s: float, block_s: float) -> int:
        """Steps that take about `block_s`, a multiple of the workers: they deliver in bursts of that many."""
        return max(1, math.ceil(block_s / max(step_s, 1e-9) / self._workers)) * self._workers

    def now_s(self) -> float:
        """The clock that blocks and the deadline go by."""
        return time.perf_counter()

    def has_time_for(self, seconds: float) -> bool:
        """Whether so much can be run before the deadline."""
        return self.now_s() + seconds < self._deadline

    def _one(self) -> None:
        in_time(self._deadline)
        batch, _ = self._feed.next()
        if self._step is not None:
            self._step(batch)


def finite(loss: Any) -> float | None:
    """The loss as a number, which waits for the device; None for what is no single number.

    Raises:
        DivergedError: where it is NaN or infinite.
    """
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        return None
    value = float(loss)
    if not math.isfinite(value):
        raise DivergedError(f"the loss became {value}")
    return value


def in_time(deadline: float) -> float:
    """The reading of `time.perf_counter` now.

    Raises:
        OutOfTimeError: when it is past `deadline`.
    """
    now = time.perf_counter()
    if now > deadline:
        raise OutOfTimeError
    return now


def _marks(*, retried: bool, compiled: bool, busy: bool, throttled: bool, restarted: bool) -> tuple[str, ...]:
    named = {
        "alloc_retry": retried,
        "recompiled": compiled,
        "busy_machine": busy,
        "throttled": throttled,
        "epoch_edge": restarted,
    }
    return tuple(name for name, present in named.items() if present)


def measure_blocks(timer: BlockTimer, spec: TrialSpec, step_s: float) -> tuple[tuple[Block, ...], Stopped]:
    """Blocks until what the trial was run for is known.

    Without `compare_with` that takes one window, unless two blocks show that this is far behind the
    incumbent. With it the trial ends as soon as it is surely below (`measure/enough.py`), and goes on past
    its window, up to `window_cap_s` and while there is time, as long as that is open.
    """
    block_s = spec.window_s / spec.min_blocks
    steps = timer.steps_per_block(step_s, block_s)
    least = spec.give_up_below or 0.0
    cap_s = max(spec.window_s, spec.window_cap_s or 0.0)
    blocks: list[Block] = []
    elapsed_s, began_s = 0.0, timer.now_s()
    while True:
        block = timer.block(steps, _LONG_BLOCK * block_s)
        blocks.append(block)
        elapsed_s += block.elapsed_s
        spent_s = timer.now_s() - began_s  # with the restarts of a short stream, which blocks leave out
        if not block_s / 2 <= block.elapsed_s <= 2 * block_s:  # the guess of a step's length was wrong
            steps = timer.steps_per_block(block.elapsed_s / block.steps, block_s)
        if _far_behind(blocks, least):
            return tuple(blocks), "gave_up"
        answer: Answer = "near" if spec.compare_with is None else compared(blocks, spec.compare_with)
        if answer == "below":
            return mark_transient(blocks), "gave_up"
        goes_on = answer == "open" and spent_s < cap_s and timer.has_time_for(_ROOM * block.elapsed_s)
        if not goes_on and _window_is_over(len(blocks), elapsed_s, spent_s, spec):
            return mark_transient(blocks), "window"


def _far_behind(blocks: Sequence[Block], least: float) -> bool:
    """By two blocks that nothing disturbed, as a neighbour's burst makes the fastest settings look slow.

    By any two where they are so far behind that no neighbour explains it.
    """

    def slow(some: Sequence[Block], limit: float) -> bool:
        return len(some) >= 2 and sum(b.samples for b in some) / sum(b.elapsed_s for b in some) < limit

    return slow([b for b in blocks if not b.disturbed], least) or slow(blocks, least / _BY_A_NEIGHBOUR)


def _window_is_over(blocks: int, elapsed_s: float, spent_s: float, spec: TrialSpec) -> bool:
    if blocks >= spec.min_blocks and elapsed_s >= spec.window_s:
        return True
    return blocks >= 2 and spent_s >= _SLOW_WINDOW * spec.window_s


def excess_start_s(first_batch_s: float, blocks: tuple[Block, ...]) -> float:
    """What a start costs beyond the wait that every steady step has anyway."""
    steady = steady_blocks(blocks)
    mean_wait_s = sum(b.wait_s for b in steady) / sum(b.steps for b in steady)
    return max(0.0, first_batch_s - mean_wait_s)


def excess_round_s(first_batch_s: float, first: Round, blocks: tuple[Block, ...]) -> float:
    """What a start costs beyond as many steady steps, by the steps after it.

    Workers that start together deliver their first batches together: after a long wait for the first one
    come steps that do not wait at all, so that the first step alone would tell too much.
    """
    steady = steady_blocks(blocks)
    step_s = sum(b.elapsed_s for b in steady) / sum(b.steps for b in steady)
    return max(0.0, first_batch_s + first.elapsed_s - first.steps * step_s)


def time_restart(
    timer: BlockTimer, feed: LoaderFeed, blocks: tuple[Block, ...], *, at_most_s: float, settled: bool
) -> float:
    """Seconds that the start of a further epoch costs, the end of the workers before it included.

    Workers that are started anew are started as they were for this trial: from a process whose memory is
    warm. Where they are forked, that memory is copied piece by piece as the next step writes to it, which can
    cost more than all the rest. So the trial's own start says it, and no other one is needed.

    Args:
        timer: after its blocks.
        feed: of the same trial.
        blocks: all that were measured.
        at_most_s: seconds for steps after a restart.
        settled: whether the trial is to go on for that at all. If not, ends cost nothing, and a restart of
            workers that live on as much as their start.
    """
    startup_s = excess_start_s(feed.first_batch_s, blocks)
    if not feed.in_flight:
        return startup_s
    # Batches in flight have to be taken first: not at the price of the whole trial's running out of time.
    elapsed_s, steps = sum(b.elapsed_s for b in blocks), sum(b.steps for b in blocks)
    drain_s = feed.in_flight * elapsed_s / steps
    closing_s = feed.end_epoch() if settled and timer.has_time_for(2 * drain_s) else None
    if not feed.settings.persistent_workers:
        return (closing_s or 0.0) + excess_round_s(feed.first_batch_s, timer.first_round, blocks)
    if closing_s is None:
        return startup_s
    return excess_round_s(feed.begin_epoch(), timer.round(at_most_s), blocks)


def measurement(
    blocks: tuple[Block, ...],
    stopped: Stopped,
    *,
    timer: BlockTimer,
    clock: DeviceClock,
    warm: WarmUp | None,
    startup_s: float,
    restart_s: float,
    wall_s: float,
) -> Measurement:
    """The values of one trial put together."""
    return Measurement(
        blocks=blocks,
        stopped=stopped,
        warmup_s=warm.elapsed_s if warm is not None else 0.0,
        warmup_steps=warm.steps if warm is not None else 0,
        startup_s=startup_s,
        restart_s=restart_s,
        peak_device_bytes=clock.peak_bytes(),
        peak_host_bytes=timer.memory.peak_bytes,
        first_loss=warm.first_loss if warm is not None else None,
        last_loss=timer.last_loss,
        wall_s=wall_s,
    )
