"""What a history of trials says: pooled rates, bounds, the incumbent, the race that is open. Pure."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from autotune.measure.stats import rate_interval
from autotune.outcome import Objective, Pilot
from autotune.recipe.goodput import LEAST_GAIN
from autotune.recipe.guard import Numerics, known_of
from autotune.recipe.pilot import pilot_of
from autotune.search.batch import GradientLook, teaches
from autotune.search.drift import PRIOR_NOISE, PRIOR_RUNS, Drift, Run, estimate
from autotune.settings import ComputeSettings, LoaderSettings, Settings
from autotune.space.candidates import Space
from autotune.space.rules import accelerator, simplicity
from autotune.trial import Measurement, Trial

MIN_GAIN = 0.005
"""A lead under this (log ratio) is no gain: it is smaller than what a machine drifts in a minute."""
TIE = 0.002
"""Simpler settings take over when they are at most this much behind."""
MAX_REPEATS = 3
"""Measurements of one settings during the search; more say little that the finals do not say better."""
RACE_AHEAD = 1.3
"""A lead of fewer standard errors above `MIN_GAIN` is measured again before it is believed."""
RACE_BEHIND = 0.7
"""The same below; less, because most moves bring nothing, and measuring that again finds nothing."""
LOOKS = 3
"""Runs, before the search ends, of settings that may be ahead of the incumbent after all."""
RACE_LEAD = 0.06
"""A lead beyond this is not measured again, however few the runs."""
NO_ROOM = 0.01
"""Settings that leave less than this part of the GPU's memory free do not win over others."""

_SEARCH = ("yours", "joint", "sampled")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanContext:
    """All that a decision may depend on beside the history."""

    space: Space
    budget_s: float
    remaining_s: float
    """Wall seconds of the budget that are left."""
    epochs: int | None = None
    """Epochs the user will train; None judges one epoch of a long run."""
    seed: int = 0
    max_candidates: int = 2
    """Settings that may meet *yours* in the finals."""
    search_over: str = ""
    """Why the search ended; empty while it goes on."""
    exhausted: bool = False
    """Whether the sampler had nothing new to propose."""
    first: tuple[Settings, ...] = ()
    """What won on the like of this workload before: tried right after the ceilings."""
    earlier: int = 0
    """How many trials at the head of the history come from an earlier session, outside of this budget."""
    objective: Objective = "goodput"
    """What is best across batch sizes."""
    max_batch_size: int | None = None
    warm: int | None = None
    """Training steps before the gradients are looked at, where the user said so."""
    look: GradientLook | None = None
    """What looking at the user's gradients gave; None before."""
    numerics: tuple[Numerics, ...] = ()
    """What comparing steps with *yours* gave, in the order in which they were compared."""
    pilots: tuple[Pilot, ...] = ()
    """What training a while in other batch sizes gave, in that order."""
    piloted_s: float = 0.0
    """Seconds of this session's budget that went into them."""

    def weight(self, settings: Settings) -> float:
        """What a sample teaches under `settings`, relative to *yours*: what rates are multiplied by."""
        return teaches(settings, self.space.yours, self.look, self.objective)


class Knowledge:
    """A history, looked up in the ways that the plan needs. Finals and worth trials tell it of costs only."""

    def __init__(self, ctx: PlanContext, history: Sequence[Trial]) -> None:
        self.ctx = ctx
        self.yours = ctx.space.yours
        self.history = tuple(history)
        self.samples = ctx.space.workload.dataset_samples
        self.failures = tuple(t for t in history if t.failure is not None)
        self.full: dict[Settings, list[Trial]] = {}
        """Search trials that measured the real step, by settings, in the order of their first run."""
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
        for trial in history:
            self._take(trial)
        self.drift = self._drift()
        self.noise = self._noise()

    def _take(self, trial: Trial) -> None:
        outcome = trial.measurement or trial.failure
        cost_s = outcome.wall_s if outcome is not None else 0.0
        self._middle_s[trial.number] = self._end_s + cost_s / 2
        self._end_s += cost_s
        if trial.measurement is None:
            return
        rate = trial.measurement.samples_per_s
        loader, compute = trial.settings.loader, trial.settings.compute
        if trial.spec.mode == "loader":
            self.loader_rates[loader] = max(rate, self.loader_rates.get(loader, 0.0))
            self._alone.setdefault(loader, []).append(trial)
        elif trial.spec.mode == "compute":
            key = (compute, loader.batch_size)
            self.compute_rates[key] = max(rate, self.compute_rates.get(key, 0.0))
            self._alone.setdefault(key, []).append(trial)
        elif trial.spec.stage in _SEARCH:
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
        return [trial for trial in trials if not _disturbed(trial)] or trials

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

    def _least_lead(self, challenger: Settings, incumbent: Settings) -> float:
        """The lead (log ratio) under which nobody changes: a larger batch asks more of the user."""
        larger = (challenger.loader.batch_size or 0) > (incumbent.loader.batch_size or 0)
        return math.log(LEAST_GAIN) if larger and "batch_size" in self.ctx.space.names else MIN_GAIN

    def gave_up(self, settings: Settings) -> bool:
        """Whether these settings ran, and no run of them was measured to the end."""
        runs = self.full.get(settings, [])
        return bool(runs) and all(
            t.measurement is not None and t.measurement.stopped == "gave_up" for t in runs
        )

    def peak_bytes(self, settings: Settings) -> int | None:
        """The most device memory that any run of these settings reserved; None where it was not seen."""
        found = [t.measurement for t in self.history if t.settings == settings and t.measurement is not None]
        return max((m.peak_device_bytes for m in found if m.peak_device_bytes is not None), default=None)

    def free_share(self, settings: Settings) -> float | None:
        """Part of the GPU's memory that these settings left free at their peak; None where not known."""
        gpu = accelerator(self.ctx.space.machine, self.ctx.space.workload)
        peak = self.peak_bytes(settings) if gpu is not None else None
        return None if gpu is None or peak is None else 1 - peak / gpu.memory_bytes

    def no_room(self, settings: Settings) -> bool:
        """Whether these settings leave the GPU next to no memory where *yours* does not."""
        free, yours = self.free_share(settings), self.free_share(self.yours)
        return free is not None and free < NO_ROOM and (yours is None or yours >= NO_ROOM)

    def numerics(self, settings: Settings) -> Numerics | None:
        """How the steps of these settings compare with those of *yours*; None where that is not known."""
        return known_of(self.ctx.numerics, settings, self.yours)

    def pilot(self, settings: Settings) -> Pilot | None:
        """What training a while showed of their batch size; None where that is not known, or not asked."""
        size = settings.loader.batch_size
        return pilot_of(self.ctx.pilots, size) if size and self._batch_matters(settings) else None

    def unpiloted(self, settings: Settings) -> bool:
        """Whether their batch size is another than *yours* and nobody has trained in it yet."""
        return self._batch_matters(settings) and self.pilot(settings) is None

    def _batch_matters(self, settings: Settings) -> bool:
        """Whether it was changed by our choice, with the samples of a step, and what is learned counts."""
        sizes = {settings.loader.batch_size, self.yours.loader.batch_size}
        return (
            len(sizes) == 2
            and None not in sizes
            and "batch_size" in self.ctx.space.names
            and self.ctx.space.workload.step_samples is None  # else the optimizer's steps stay as they are
            and self.ctx.objective != "throughput"
        )

    def unchecked(self, settings: Settings) -> bool:
        """Whether their precision is another by our choice, and nobody compared its steps with *yours*."""
        own, start = self.yours.compute, self.ctx.space.start.compute
        if settings.compute.precision in (own.precision, start.precision):
            return False
        if self.numerics(settings) is not None:
            return False
        # Compiled code of a precision that is fine may go uncompared; of one that is not it may not.
        plain = self.numerics(settings.replace(compile=own.compile))
        return plain is None or plain.kind == "worse"

    def trains_worse(self, settings: Settings) -> bool:
        """Whether their arithmetic, or their batch size, was seen to harm training."""
        found, pilot = self.numerics(settings), self.pilot(settings)
        return any(each is not None and each.kind == "worse" for each in (found, pilot))

    def unfit(self, settings: Settings) -> bool:
        """Whether these settings are no good in any batch size."""
        found = self.numerics(settings)
        harmful = found is not None and found.kind == "worse"
        return harmful or self.gave_up(settings) or self.no_room(settings)

    def ruled_out(self, settings: Settings) -> bool:
        """Whether these settings can be neither the incumbent nor a candidate.

        After the search a batch size that nobody trained in can be neither any more, nor a precision whose
        steps nobody compared.
        """
        unproven = self.unpiloted(settings) or self.unchecked(settings)
        too_late = bool(self.ctx.search_over) and unproven
        return too_late or self._barred(settings) or self.unfit(settings) or self.trains_worse(settings)

    def _barred(self, settings: Settings) -> bool:
        """Whether their batch may not be: it ran in a session before this one, which was asked for less."""
        size, own = settings.loader.batch_size, self.yours.loader.batch_size
        if size is None or size == own or "batch_size" not in self.ctx.space.names:
            return False
        most, look = self.ctx.max_batch_size, self.ctx.look
        return (most is not None and size > most) or (look is not None and bool(look.refused))

    def _climb(self, order: Sequence[Settings]) -> Settings:
        incumbent = order[0]
        for challenger in order[1:]:
            if self.ruled_out(challenger):
                continue
            lead, error = self.lead(challenger, incumbent)
            simpler = simplicity(challenger) < simplicity(incumbent)
            if lead > max(self._least_lead(challenger, incumbent), error) or (simpler and lead > -TIE):
                incumbent = challenger
        return incumbent

    @cached_property
    def incumbent(self) -> Settings:
        """The settings to beat: *yours*, or what beat it beyond noise, or ties with it and is simpler."""
        return self._climb(list(self.full))

    @cached_property
    def race(self) -> Settings | None:
        """What to measure again because the newest settings are too close to the incumbent to tell."""
        order = list(self.full)
        if len(order) < 2 or self.ruled_out(order[-1]):
            return None
        challenger, incumbent = order[-1], self._climb(order[:-1])
        lead, error = self.lead(challenger, incumbent)
        least = self._least_lead(challenger, incumbent)
        too_far = (least - RACE_BEHIND * error, min(least + RACE_AHEAD * error, RACE_LEAD))
        if not too_far[0] < lead < too_far[1]:
            return None
        # A challenger that ran twice and is still not ahead has had its chance.
        if lead < 0 and len(self.full[challenger]) >= 2:
            return None
        last = next(t.settings for t in reversed(self.history) if t.settings in (challenger, incumbent))
        pair = (incumbent, challenger) if last == challenger else (challenger, incumbent)
        return next((s for s in pair if len(self.full[s]) < MAX_REPEATS), None)

    @cached_property
    def doubtful(self) -> Settings | None:
        """Whom to measure again because they may be ahead of the incumbent after all, the likeliest first.

        A lucky run of an incumbent makes those that meet it give up, and an unlucky one hides what is good:
        neither is undone by going on to what is new.
        """
        ahead: dict[Settings, float] = {}
        for settings in self.full:
            out = settings == self.incumbent or self.no_room(settings) or self.trains_worse(settings)
            if not out and len(self.full[settings]) < LOOKS:
                lead, error = self.lead(settings, self.incumbent)
                ahead[settings] = lead + error - self._least_lead(settings, self.incumbent)
        likeliest = max(ahead, key=lambda settings: ahead[settings], default=None)
        if likeliest is None or ahead[likeliest] <= 0:
            return None
        runs = len(self.full[self.incumbent])
        return self.incumbent if runs < LOOKS and runs <= len(self.full[likeliest]) else likeliest

    @property
    def again(self) -> Settings | None:
        """The newest settings, where their only run was disturbed and most runs are not.

        On a machine that is always busy a second run would be as disturbed as the first.
        """
        if not self.full:
            return None
        newest = list(self.full)[-1]
        trials = [trial for runs in self.full.values() for trial in runs]
        if len(self.full[newest]) > 1 or not _disturbed(self.full[newest][0]):
            return None
        disturbed = sum(map(_disturbed, trials))
        return newest if 2 * disturbed <= len(trials) + 1 else None

    @property
    def sampled_in_vain(self) -> int:
        """How many different sampled settings came after the incumbent's first run."""
        since = next((i for i, t in enumerate(self.history) if t.settings == self.incumbent), 0)
        return len({t.settings for t in self.history[since + 1 :] if t.spec.stage == "sampled"})

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


def _disturbed(trial: Trial) -> bool:
    return trial.measurement is not None and trial.measurement.disturbed
