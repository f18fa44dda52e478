"""Two settings measured against each other again, in half a minute: pairs as in the finals, no search."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from autotune.measure.seam import Description, Runner
from autotune.outcome import Verdict
from autotune.search.compiling import AGAIN
from autotune.search.cost import MARGIN, least_warm_s, min_blocks
from autotune.search.faults import baseline_error
from autotune.search.listener import Listener
from autotune.search.verdict import Weight, alike, decided, judge, unless_disturbed
from autotune.settings import Settings
from autotune.space.rules import simplicity
from autotune.trial import Failure, Measurement, Trial, TrialSpec

PAIRS = 5
"""Pairs that the window is cut for."""
MAX_PAIRS = 8
MIN_WINDOW_S = 0.5
"""Timed seconds of a run, below which blocks are too short to mean anything."""
MAX_WINDOW_S = 3.0
_FRESH_WINDOW_S = 1.0
"""Runs get processes of their own where that leaves them as many timed seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recheck:
    """What the pairs showed."""

    verdict: Verdict
    """Of the finals' rules: `faster` when the other settings surely beat *yours*."""
    trials: tuple[Trial, ...]
    failure: Failure | None = None
    """Why the other settings gave nothing, where they failed."""
    elapsed_s: float = 0.0
    interrupted: bool = False


def recheck(
    runner: Runner,
    description: Description,
    other: Settings,
    listener: Listener,
    *,
    budget_s: float,
    epochs: int | None = None,
    weight: Weight = alike,
    clock: Callable[[], float] = time.monotonic,
) -> Recheck:
    """Measure `other` against `description.yours` in alternating order until decided or out of time.

    The first run is not counted: it warms the page cache, and shows what a run costs. An interrupt (Ctrl-C)
    ends the pairs, and what they showed is judged.

    Args:
        runner: what runs the trials; it has described the workload already.
        description: with the settings to compare with as `yours`.
        other: the settings whose gain is in question.
        listener: told of each trial.
        budget_s: wall seconds for all of it.
        epochs: length of the user's run, None where unknown.
        weight: what a sample counts for under settings, as in the ratio that was found before.
        clock: seconds, monotonic.

    Raises:
        AutotuneError: where *yours* does not run.
    """
    comparison = _Comparison(runner, description, other, listener, budget_s, epochs, weight, clock)
    interrupted = False
    try:
        comparison.run()
    except KeyboardInterrupt:
        interrupted = True
    return replace(comparison.result(), interrupted=interrupted)


@dataclass(slots=True)
class _Comparison:
    runner: Runner
    description: Description
    other: Settings
    listener: Listener
    budget_s: float
    epochs: int | None
    weight: Weight
    clock: Callable[[], float]
    started_s: float = 0.0
    trials: list[Trial] = field(default_factory=list)
    failure: Failure | None = None

    def __post_init__(self) -> None:
        self.started_s = self.clock()

    @property
    def yours(self) -> Settings:
        return self.description.yours

    @property
    def left_s(self) -> float:
        return self.budget_s - (self.clock() - self.started_s)

    def run(self) -> None:
        """The run that does not count, then pairs."""
        window_s = _within_limits(self.budget_s / (4 * PAIRS))
        first = self._measure(self._spec(self.other, window_s, "warms up; not counted"))
        if first is None:
            return
        template = self._template(first)
        start_s = self.description.workload.setup_s if template.fresh_process else 0.0
        compiling_s = self._compiling_s(first)
        plain_s = start_s + first.wall_s - compiling_s
        cost_s = {self.yours: plain_s, self.other: plain_s + AGAIN * compiling_s}
        for pair in range(MAX_PAIRS):
            if MARGIN * sum(cost_s.values()) > self.left_s:
                return
            sides = (self.yours, self.other) if pair % 2 == 0 else (self.other, self.yours)
            for settings in sides:
                spec = replace(template, settings=settings, pair=pair, reason=f"pair {pair + 1}")
                found = self._measure(spec)
                if found is None:
                    return
                cost_s[settings] = found.wall_s
            if self._decided():
                return

    def _template(self, first: Measurement) -> TrialSpec:
        """How the pairs run: fresh processes where time allows them, windows that fill the budget."""
        setup_s = self.description.workload.setup_s
        once_s = (1 - AGAIN) * self._compiling_s(first)
        beside_s = max(first.wall_s - first.elapsed_s - once_s, 0.0)
        share_s = self.left_s / (2 * PAIRS * MARGIN)
        fresh = share_s - beside_s - setup_s >= _FRESH_WINDOW_S
        window_s = _within_limits(share_s - beside_s - (setup_s if fresh else 0.0))
        return replace(self._spec(self.other, window_s, ""), fresh_process=fresh)

    def _compiling_s(self, first: Measurement) -> float:
        """What compiling took in the first run, most of which is on disk then; 0 where nothing was."""
        return first.warmup_s if self.other.compute.compile is not None else 0.0

    def _spec(self, settings: Settings, window_s: float, reason: str) -> TrialSpec:
        workers = settings.loader.num_workers
        return TrialSpec(
            settings=settings,
            stage="final",
            reason=reason,
            window_s=window_s,
            least_warm_s=least_warm_s(self.description.workload),
            min_blocks=min_blocks(window_s, self.description.workload.step_s, workers),
        )

    def _measure(self, spec: TrialSpec) -> Measurement | None:
        """The run's measurement; None where there is none, and nothing more to do."""
        if self.left_s <= 0:
            return None
        spec = replace(spec, timeout_s=self.left_s)
        number = len(self.trials)
        self.listener.trial_started(number, spec, self.left_s)
        before_s = self.clock()
        found = self.runner.run(spec)
        found = replace(found, wall_s=max(found.wall_s, self.clock() - before_s))
        if isinstance(found, Failure):
            self._failed(number, spec, found)
            return None
        trial = Trial(number=number, spec=spec, measurement=found)
        self.trials.append(trial)
        self.listener.trial_finished(trial, None, False, self.left_s)
        return found

    def _failed(self, number: int, spec: TrialSpec, failure: Failure) -> None:
        if failure.kind == "timeout":  # the time that was left is over, which says nothing of the settings
            return
        if spec.settings == self.yours:
            raise baseline_error(failure)
        trial = Trial(number=number, spec=spec, failure=failure)
        self.trials.append(trial)
        self.failure = failure
        self.listener.trial_finished(trial, None, False, self.left_s)

    def _decided(self) -> bool:
        samples = self.description.workload.dataset_samples
        return decided(
            self.yours, (self.other,), self.trials, samples=samples, epochs=self.epochs, weight=self.weight
        )

    def result(self) -> Recheck:
        """What is known so far."""
        verdict = judge(
            self.yours,
            (self.other,),
            self.trials,
            samples=self.description.workload.dataset_samples,
            epochs=self.epochs,
            simpler=simplicity,
            weight=self.weight,
        )
        return Recheck(
            verdict=unless_disturbed(verdict, self.yours, self.trials),
            trials=tuple(self.trials),
            failure=self.failure,
            elapsed_s=self.clock() - self.started_s,
        )


def _within_limits(window_s: float) -> float:
    return min(max(window_s, MIN_WINDOW_S), MAX_WINDOW_S)
