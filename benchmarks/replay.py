"""A Runner that answers from a recorded grid, on a clock that only it moves.

    grid = read_grid(Path("benchmarks/data/mnist.jsonl.gz"))
    clock = FakeClock()
    runner = ReplayRunner(grid, seed=1, clock=clock)
    with confined(grid):
        outcome = tune(runner, options(grid, 60.0), SilentListener(), clock=clock)

What is real: the blocks, the starts, the failures, and how runs of the same settings differ. A trial draws
one of the recorded runs and then blocks of that run, so that its spread from run to run is the machine's, and
the product's own rule decides when it has seen enough. What is not: runs are drawn independently, although a
real machine that drifts does so slowly, so pairs that run one after the other differ by more here than there.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

from grids import Grid

from autotune.errors import UsageError
from autotune.measure.seam import Description, GradientSpec, NumericsSpec, PilotSpec
from autotune.measure.timing import BlockTimer, measure_blocks
from autotune.outcome import Kept
from autotune.recipe.guard import NumericsRecord
from autotune.recipe.pilot import PilotRecord
from autotune.search.engine import TuneOptions
from autotune.settings import KnobValue, Settings
from autotune.space.candidates import Space, build_space
from autotune.space.rules import needs_own_process
from autotune.testing import FakeClock
from autotune.trial import TRANSIENT, Block, Failure, Measurement, Mode, Trial, TrialSpec

DESCRIBING_STEPS = 3
"""Steps of *yours* that a description takes."""
EDGE_STEPS = 4
"""Steps beside one for each worker on either side of the end of an epoch."""
_SURVIVED = ("user_error", "non_finite", "pickle")
"""Failures after which the bench process goes on."""


class OffGridError(UsageError):
    """Settings were asked for that the grid does not hold."""


class RecordedTimer(BlockTimer):
    """Times blocks by drawing from those of one recorded run.

    The blocks before the steady state come first, as they were; the others are drawn with replacement, and a
    block that is longer than they are is put together from several.

    Args:
        run: the recorded run.
        workers: blocks are multiples of so many steps.
        draw: where chance comes from.
        left_s: seconds until the trial's deadline.
    """

    def __init__(self, run: Measurement, workers: int, draw: random.Random, left_s: float) -> None:
        # Nothing is timed here, so the parts that time are left out.
        self._workers, self._left_s, self._spent_s = max(1, workers), left_s, 0.0
        self._head = [block for block in run.blocks if TRANSIENT in block.marks]
        self._steady = [block for block in run.blocks if TRANSIENT not in block.marks] or list(run.blocks)
        self._draw = draw

    def block(self, steps: int, at_most_s: float) -> Block:
        """A block of so many steps, or of the fewer that fit into `at_most_s`."""
        taken: list[tuple[Block, int]] = []
        done, elapsed_s = 0, 0.0
        while done < steps and (not taken or elapsed_s <= at_most_s or done % self._workers):
            source = self._head.pop(0) if self._head else self._draw.choice(self._steady)
            count = min(steps - done, source.steps)
            taken.append((source, count))
            done += count
            elapsed_s += count * source.elapsed_s / source.steps
        self._spent_s += elapsed_s
        return _joined(taken)

    def now_s(self) -> float:
        """The recorded seconds that were drawn: no real time passes here."""
        return self._spent_s

    def has_time_for(self, seconds: float) -> bool:
        """Whether so much can be run before the deadline."""
        return self._spent_s + seconds < self._left_s


def _joined(parts: Sequence[tuple[Block, int]]) -> Block:
    """One block of these steps of recorded blocks."""
    weights = [count * block.elapsed_s / block.steps for block, count in parts]
    marks = dict.fromkeys(mark for block, _ in parts for mark in block.marks if mark != TRANSIENT)
    last = parts[-1][0]
    return Block(
        steps=sum(count for _, count in parts),
        samples=sum(round(count * block.samples / block.steps) for block, count in parts),
        elapsed_s=sum(weights),
        wait_s=sum(count * block.wait_s / block.steps for block, count in parts),
        foreign_cpus=_mean([block.foreign_cpus for block, _ in parts], weights),
        waited_share=_mean([block.waited_share for block, _ in parts], weights),
        gpu_mhz=last.gpu_mhz,
        gpu_celsius=last.gpu_celsius,
        marks=tuple(marks),
    )


def _mean(values: Sequence[float | None], weights: Sequence[float]) -> float | None:
    """The weighted mean; None where one of the values is not known."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return sum(value * weight for value, weight in zip(known, weights)) / sum(weights)


class ReplayRunner:
    """A Runner whose measurements come from a recorded grid.

    Args:
        grid: what was recorded.
        seed: of the draws: with the number of the call it decides what a trial gives.
        clock: moved by what each trial would have cost, processes included; a new one when absent.
    """

    def __init__(self, grid: Grid, *, seed: int = 0, clock: FakeClock | None = None) -> None:
        self.clock = clock or FakeClock()
        self._description = grid.header.description
        self._runs: dict[tuple[Any, ...], list[Trial]] = {}
        for trial in grid.trials:
            self._runs.setdefault(_key(trial.spec.mode, trial.settings), []).append(trial)
        self._seed, self._calls = seed, 0
        self._described = self._alive = self._used = False
        self._last_step: Settings | None = None

    def describe(self) -> Description:
        """The description of the grid; the first time costs a process and a few steps."""
        if not self._described:
            facts = self._description.workload
            self.clock.advance(facts.setup_s + DESCRIBING_STEPS * facts.step_s)
            self._described = self._alive = True
            self._last_step = self._description.yours
        return self._description

    def run(self, spec: TrialSpec) -> Measurement | Failure:
        """One of the recorded runs of these settings, for as long as `spec` asks.

        Raises:
            OffGridError: when there is none.
        """
        runs = self._runs.get(_key(spec.mode, spec.settings))
        if not runs:
            raise OffGridError(
                "the grid does not hold these settings",
                why=f"nothing was recorded in mode {spec.mode} of {spec.settings.key()}",
                fix="keep the search within the grid: `with confined(grid):`",
            )
        draw = random.Random(f"{self._seed}/{self._calls}")
        self._calls += 1
        recorded = draw.choice(runs)
        setup_s, first = self._process(spec)
        if recorded.measurement is None:
            assert recorded.failure is not None, "a trial has one outcome"
            outcome: Measurement | Failure = recorded.failure
        else:
            outcome = _replayed(recorded.measurement, spec, draw, _warmup_s(runs, recorded, first=first))
        return self._ended(dataclasses.replace(outcome, wall_s=setup_s + outcome.wall_s), spec)

    def probe_gradients(self, spec: GradientSpec) -> Failure:
        """Nothing is known of gradients; the time of the steps is taken all the same."""
        steps = spec.warm_steps + spec.apart * (spec.steps - 1) + spec.steps * spec.micro_batches
        wall_s = min(steps * self._description.workload.step_s, spec.timeout_s)
        self.clock.advance(wall_s)
        return Failure(kind="timeout", message="a grid holds times alone", wall_s=wall_s)

    def compare_numerics(self, spec: NumericsSpec) -> NumericsRecord:
        """Nothing is known of losses and gradients; the time of the steps is taken all the same."""
        wall_s = 3 * (spec.steps + 1) * self._description.workload.step_s
        self.clock.advance(wall_s)
        refused = "a grid holds times alone"
        return NumericsRecord(
            settings=spec.settings, reference=spec.reference, refused=refused, wall_s=wall_s
        )

    def pilot(self, spec: PilotSpec) -> PilotRecord:
        """Nothing is known of losses; the time of the steps is taken all the same."""
        samples = spec.steps * (spec.settings.loader.batch_size or 1)
        own = self._description.workload.batch_samples
        wall_s = (spec.warm_steps + 3 * samples / own) * self._description.workload.step_s
        self.clock.advance(wall_s)
        refused = "a grid holds times alone"
        return PilotRecord(settings=spec.settings, reference=spec.reference, refused=refused, wall_s=wall_s)

    def close(self) -> None:
        """Nothing was started."""

    def _process(self, spec: TrialSpec) -> tuple[float, bool]:
        """Seconds to start a process for this trial where it needs one, and whether it is the first in it."""
        steps = spec.mode != "loader"
        unlike = steps and self._last_step is not None and needs_own_process(self._last_step, spec.settings)
        if (spec.fresh_process and self._used) or unlike:
            self._alive = False
        starts = not self._alive
        self._alive = self._used = True
        if starts or steps:
            self._last_step = spec.settings if steps else None
        return (self._description.workload.setup_s if starts else 0.0), starts

    def _ended(self, outcome: Measurement | Failure, spec: TrialSpec) -> Measurement | Failure:
        if outcome.wall_s > spec.timeout_s:
            message = f"no end after {spec.timeout_s:.0f} s"
            outcome = Failure(kind="timeout", message=message, wall_s=spec.timeout_s)
        if isinstance(outcome, Failure) and outcome.kind not in _SURVIVED:
            self._alive = False
        self.clock.advance(outcome.wall_s)
        return outcome


def _key(mode: Mode, settings: Settings) -> tuple[Any, ...]:
    """What a run in this mode depends on: one side alone does not use the other's knobs."""
    if mode == "loader":
        return mode, settings.loader
    if mode == "compute":
        return mode, settings.compute, settings.loader.batch_size
    return mode, settings


def _warmup_s(runs: Sequence[Trial], recorded: Trial, *, first: bool) -> float:
    """Seconds of warm-up: in a new process the longest seen of these settings, which was the first."""
    measured = [t.measurement.warmup_s for t in runs if t.measurement is not None]
    assert recorded.measurement is not None, "only what was measured warmed up"
    return max(measured) if first else recorded.measurement.warmup_s


def _replayed(run: Measurement, spec: TrialSpec, draw: random.Random, warmup_s: float) -> Measurement:
    workers = 0 if spec.mode == "compute" else spec.settings.loader.num_workers
    beside_s = max(run.wall_s - run.elapsed_s - run.warmup_s, run.startup_s)
    beside_s += max(warmup_s, spec.least_warm_s)
    if spec.epoch_edge:  # as `TailFeed` does it: workers start twice, for a few steps each
        beside_s += 2 * (run.startup_s + (EDGE_STEPS + workers) * run.step_s)
    timer = RecordedTimer(run, workers, draw, spec.timeout_s - beside_s)
    blocks, stopped = measure_blocks(timer, spec, run.step_s)
    timed_s = sum(block.elapsed_s for block in blocks)
    return dataclasses.replace(
        run, blocks=blocks, stopped=stopped, warmup_s=warmup_s, wall_s=beside_s + timed_s
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GridSpace(Space):
    """A Space that ends where the grid does."""

    recorded: frozenset[Settings] = frozenset()

    def legal(self, settings: Settings) -> bool:
        """Whether these settings are in the space and were measured."""
        return settings in self.recorded and Space.legal(self, settings)


def confine(space: Space, grid: Grid) -> GridSpace:
    """The part of `space` that the grid holds: its axes are what is searched, the rest is kept."""
    axes = {axis.knob: axis.values for axis in grid.header.axes}
    options = []
    kept = list(space.kept)
    for option in space.options:
        values = tuple(value for value in option.values if value in axes.get(option.knob, ()))
        # As in `build_space`: None alone leaves nothing to choose.
        if len([v for v in values if v is not None or option.knob == "cpu_threads"]) >= 2:
            options.append(dataclasses.replace(option, values=values))
        else:
            value = space.start.flat()[option.knob]
            kept.append(Kept(knob=option.knob, value=value, why="the grid holds one value"))
    return GridSpace(
        machine=space.machine,
        workload=space.workload,
        yours=space.yours,
        start=space.start,
        options=tuple(options),
        kept=tuple(kept),
        fixed=space.fixed,
        recorded=frozenset(t.settings for t in grid.trials if t.spec.mode == "full"),
    )


def fixed_of(grid: Grid) -> Mapping[str, KnobValue]:
    """The knobs that all settings of the grid but *yours* share, where that is not what *yours* has."""
    flat = grid.header.description.yours.flat()
    return {
        a.knob: a.values[0] for a in grid.header.axes if len(a.values) == 1 and a.values[0] != flat[a.knob]
    }


def space_of(grid: Grid) -> GridSpace:
    """What may be tried on a replayed grid."""
    seen = grid.header.description
    space = build_space(seen.machine, seen.workload, seen.yours, allow="recipe", fixed=fixed_of(grid))
    return confine(space, grid)


def options(grid: Grid, budget_s: float, seed: int = 0) -> TuneOptions:
    """How to tune within a grid, which knows of speed alone."""
    return TuneOptions(
        budget_s=budget_s, allow="recipe", objective="throughput", fixed=fixed_of(grid), seed=seed
    )


@contextmanager
def confined(grid: Grid) -> Iterator[None]:
    """Within it, `tune` searches what the grid holds and nothing else; all the rest of it is as it is."""
    with mock.patch("autotune.search.engine.build_space", return_value=space_of(grid)):
        yield
