"""What the trials measured: pooled rates, how much runs differ, and bounds by each side alone. Pure."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from functools import cached_property
from typing import Literal

from autotune.measure.stats import rate_interval
from autotune.search.context import PlanContext
from autotune.search.drift import PRIOR_NOISE, PRIOR_RUNS, Drift, Run, estimate
from autotune.settings import ComputeSettings, LoaderSettings, Settings
from autotune.space.rules import accelerator
from autotune.trial import Measurement, Trial

NO_ROOM = 0.01
"""Settings that leave less than this part of the GPU's memory free do not win over others."""

_SEARCH = ("yours", "joint", "sampled")


class Rates:
    """The rates of a history: the search's, and each side's alone. Finals and worth tell of costs only."""

    def __init__(self, ctx: PlanContext, history: Sequence[Trial]) -> None:
        self.ctx = ctx
        self.yours = ctx.space.yours
        self.history = tuple(history)
        self.samples = ctx.space.workload.dataset_samples
        self.failures = tuple(t for t in history if t.failure is not None)
        self.full: dict[Settings, list[Trial]] = {}
        """Search trials that measured the real step, by settings, in the order of their first run."""
        self._broken: set[Settings] = set()
        """Settings whose last full trial of the search failed."""
        self.loader_rates: dict[LoaderSettings, float] = {}
        """Batches alone, samples/s: no full trial with this loader can be faster."""
        self.compute_rates: dict[tuple[ComputeSettings, int | None], float] = {}
        """The step alone, samples/s, by compute settings and batch size: a bound in the same way."""
        self._alone: dict[Hashable, list[Trial]] = {}
        """Trials of one side alone, by what that side depends on."""
        self._effective: dict[int, float] = {}
        self._log_rates: dict[Settings, list[float]] = {}
        self._middle_s: dict[int, float] = {}
        """When each trial ran, by its number: seconds of trials before it, and half of its own."""
        self._end_s = 0.0
        self._peaks: dict[Settings, int] = {}
        """The most device memory that any trial of these settings reserved, where it was seen."""
        for trial in history:
            self._take(trial)
        self.drift = self._drift()
        self.noise = self._noise()

    def _take(self, trial: Trial) -> None:
        outcome = trial.measurement or trial.failure
        cost_s = outcome.wall_s if outcome is not None else 0.0
        self._middle_s[trial.number] = self._end_s + cost_s / 2
        self._end_s += cost_s
        in_full = trial.spec.mode == "full" and trial.spec.stage in _SEARCH
        if trial.measurement is None:
            self._broken |= {trial.settings} if in_full else set()
            return
        peak = trial.measurement.peak_device_bytes
        if peak is not None:
            self._peaks[trial.settings] = max(peak, self._peaks.get(trial.settings, 0))
        rate = trial.measurement.samples_per_s
        loader, compute = trial.settings.loader, trial.settings.compute
        if trial.spec.mode == "loader":
            self.loader_rates[loader] = max(rate, self.loader_rates.get(loader, 0.0))
            self._alone.setdefault(loader, []).append(trial)
        elif trial.spec.mode == "compute":
            key = (compute, loader.batch_size)
            self.compute_rates[key] = max(rate, self.compute_rates.get(key, 0.0))
            self._alone.setdefault(key, []).append(trial)
        elif in_full:
            self._broken.discard(trial.settings)
            self.full.setdefault(trial.settings, []).append(trial)

    def _noise(self) -> float:
        squares, freedom = PRIOR_RUNS * PRIOR_NOISE**2, PRIOR_RUNS
        for settings in self.full:
            logs = self._logs(settings)
            mean = sum(logs) / len(logs)
            squares += sum((x - mean) ** 2 for x in logs)
            freedom += len(logs) - 1
        return math.sqrt(squares / freedom)

    def _drift(self) -> Drift:
        runs = [
            Run(settings=number, at_s=self._middle_s[trial.number], log_rate=math.log(self.effective(trial)))
            for number, settings in enumerate(self.full)
            for trial in self._counted(settings)
        ]
        return estimate(runs)

    def _counted(self, settings: Settings) -> list[Trial]:
        """The runs that count: the undisturbed ones, all where there are none."""
        trials = self.full[settings]
        return [trial for trial in trials if not is_disturbed(trial)] or trials

    def _logs(self, settings: Settings) -> list[float]:
        if settings not in self._log_rates:
            self._log_rates[settings] = [math.log(self.comparable(t)) for t in self._counted(settings)]
        return self._log_rates[settings]

    def comparable(self, trial: Trial) -> float:
        """The objective as it would have been at the machine's first speed, to compare across the search."""
        return self.effective(trial) / math.exp(self.drift.at(self._middle_s[trial.number]))

    def effective(self, trial: Trial) -> float:
        """The objective: samples/s over the user's run, starts included, in samples of *yours*' own batch.

        The trial must have measured. A sample of another batch counts by what it teaches.
        """
        assert trial.measurement is not None
        if trial.number not in self._effective:
            rate = trial.measurement.effective_samples_per_s(self.samples, self.ctx.epochs)
            self._effective[trial.number] = rate * self.ctx.weight(trial.settings)
        return self._effective[trial.number]

    def rate(self, settings: Settings) -> float:
        """Effective samples/s of measured settings at the machine's first speed, the mean over repeats."""
        logs = self._logs(settings)
        return math.exp(sum(logs) / len(logs))

    def latest(self, settings: Settings) -> Measurement:
        """The last search measurement of these settings' real step."""
        measurement = self.full[settings][-1].measurement
        assert measurement is not None
        return measurement

    def pace(self, settings: Settings) -> float:
        """Effective samples/s of measured settings at the speed that the machine has now."""
        return self.rate(settings) * math.exp(self.drift.at(self._end_s))

    def surely_behind(self, settings: Settings) -> float:
        """The rate at which a run shows its settings to be behind these: their pace less a standard error.

        A rate within a trial says nothing of how much two runs of the same settings differ.
        """
        error = self.noise * math.sqrt(1 + 1 / len(self._logs(settings)))
        return self.pace(settings) * math.exp(-error)

    def lead(self, challenger: Settings, incumbent: Settings) -> tuple[float, float]:
        """Log ratio of the challenger over the incumbent, and its standard error."""
        runs = [len(self._logs(s)) for s in (challenger, incumbent)]
        return (
            math.log(self.rate(challenger) / self.rate(incumbent)),
            self.noise * math.sqrt(sum(1 / n for n in runs)),
        )

    def gave_up(self, settings: Settings) -> bool:
        """Whether these settings ran, and no run of them was measured to the end."""
        runs = self.full.get(settings, [])
        return bool(runs) and all(
            t.measurement is not None and t.measurement.stopped == "gave_up" for t in runs
        )

    def broken(self, settings: Settings) -> bool:
        """Whether these settings failed when they ran last: a whole training with them may as well."""
        return settings in self._broken

    def peak_bytes(self, settings: Settings) -> int | None:
        """The most device memory that any run of these settings reserved; None where it was not seen."""
        return self._peaks.get(settings)

    def free_share(self, settings: Settings) -> float | None:
        """Part of the GPU's memory that these settings left free at their peak; None where not known."""
        gpu = accelerator(self.ctx.space.machine, self.ctx.space.workload)
        peak = self.peak_bytes(settings) if gpu is not None else None
        return None if gpu is None or peak is None else 1 - peak / gpu.memory_bytes

    def no_room(self, settings: Settings) -> bool:
        """Whether these settings leave the GPU next to no memory where *yours* does not."""
        free, yours = self.free_share(settings), self.free_share(self.yours)
        return free is not None and free < NO_ROOM and (yours is None or yours >= NO_ROOM)

    def bound(self, settings: Settings) -> float:
        """Plain samples/s that these settings surely cannot pass, by what each side did alone, or infinite.

        The upper ends of the intervals count, at the machine's first speed, with two standard errors of how
        runs differ.
        """
        sides = (settings.loader, (settings.compute, settings.loader.batch_size))
        return min(self._highs.get(side, math.inf) for side in sides) * math.exp(2 * self.noise)

    @cached_property
    def _highs(self) -> dict[Hashable, float]:
        found = {}
        for side, trials in self._alone.items():
            measured = [(trial, trial.measurement) for trial in trials if trial.measurement is not None]
            found[side] = max(
                rate_interval(m.steady).high / math.exp(self.drift.at(self._middle_s[t.number]))
                for t, m in measured
            )
        return found

    def partial(self, mode: Literal["loader", "compute"], settings: Settings) -> float | None:
        """Samples/s of one side of `settings` alone: 0 when it failed, None when it was not tried."""
        known = (
            self.loader_rates.get(settings.loader)
            if mode == "loader"
            else self.compute_rates.get((settings.compute, settings.loader.batch_size))
        )
        if known is None and any(t.settings == settings and t.spec.mode == mode for t in self.failures):
            return 0.0
        return known


def is_disturbed(trial: Trial) -> bool:
    """Whether something else disturbed what it measured."""
    return trial.measurement is not None and trial.measurement.disturbed
