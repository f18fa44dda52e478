"""Other ways to search the same grid: each gets the same virtual time, and returns the best that it saw.

They are given what helps them: settings that were measured before are answered from memory at no cost, every
one but the rule of thumb starts from *yours*, and none of them pays for proof: there are no finals.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import optuna
from replay import GridSpace, ReplayRunner

from autotune.search.cost import min_blocks, window_s
from autotune.settings import KnobValue, Settings
from autotune.trial import Measurement, TrialSpec

REPEATS = 50
"""Proposals in a row that were measured before, after which a method counts as having converged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A trial as its method saw it."""

    at_s: float
    """When it ended, in seconds since the start."""
    settings: Settings
    rate: float | None
    """Effective samples/s; None when it failed."""


class OutOfTimeError(Exception):
    """The budget is used up."""


class Field:
    """Trials for a method, within a budget.

    Args:
        runner: what runs them; its clock counts.
        space: what may be tried.
        budget_s: virtual seconds for everything, the description included.
    """

    def __init__(self, runner: ReplayRunner, space: GridSpace, budget_s: float) -> None:
        self.runner, self.space, self.budget_s = runner, space, budget_s
        self.seen: list[Seen] = []
        self._known: dict[Settings, float | None] = {}
        self._repeats = 0
        self._started_s = runner.clock()
        runner.describe()

    def measure(self, settings: Settings) -> float | None:
        """Effective samples/s of these settings; None when they fail.

        Raises:
            OutOfTimeError: when the budget is over, nothing is left, or nothing new was asked for in a while.
        """
        self._repeats = self._repeats + 1 if settings in self._known else 0
        if self._repeats > REPEATS or (self._repeats and len(self._known) == len(self.space.recorded)):
            raise OutOfTimeError
        if settings not in self._known:
            self._known[settings] = self._run(settings)
        return self._known[settings]

    def _run(self, settings: Settings) -> float | None:
        facts = self.space.workload
        window = window_s(self.budget_s, facts.step_s)
        blocks = min_blocks(window, facts.step_s, settings.loader.num_workers)
        found = self.runner.run(
            TrialSpec(settings=settings, stage="joint", window_s=window, min_blocks=blocks)
        )
        at_s = self.runner.clock() - self._started_s
        if at_s > self.budget_s:
            raise OutOfTimeError
        measured = isinstance(found, Measurement)
        rate = found.effective_samples_per_s(facts.dataset_samples) if measured else None
        self.seen.append(Seen(at_s=at_s, settings=settings, rate=rate))
        return rate


def best_at(seen: Sequence[Seen], at_s: float, yours: Settings) -> Settings:
    """What a method would return when stopped at `at_s`: the best that it saw, *yours* before anything."""
    ran = [s for s in seen if s.at_s <= at_s and s.rate is not None]
    return max(ran, key=lambda s: s.rate or 0.0).settings if ran else yours


def random_search(field: Field, seed: int) -> None:
    """Every setting of the grid in a random order, none twice."""
    order = sorted(field.space.recorded - {field.space.yours}, key=lambda s: s.key())
    random.Random(seed).shuffle(order)
    for settings in [field.space.yours, *order]:
        field.measure(settings)


def greedy(field: Field, seed: int) -> None:
    """One knob after the other, each to its best value, round after round until nothing gets better."""
    space = field.space
    best, best_rate = space.yours, field.measure(space.yours) or 0.0
    improved = True
    while improved:
        improved = False
        for option in space.options:
            for settings in [_with(space, best, {option.knob: value}) for value in option.values]:
                rate = field.measure(settings) if space.legal(settings) else None
                if rate is not None and rate > best_rate:
                    best, best_rate, improved = settings, rate, True


def _with(space: GridSpace, settings: Settings, changes: dict[str, KnobValue]) -> Settings:
    flat = settings.flat()
    return space.settings(**{name: flat[name] for name in space.names} | changes)


def _study(field: Field, sampler: optuna.samplers.BaseSampler) -> None:
    """An Optuna study in its usual form: one categorical parameter for each knob."""
    space = field.space
    study = optuna.create_study(direction="maximize", sampler=sampler)
    flat = space.yours.flat()
    inside = all(flat[option.knob] in option.values for option in space.options)
    if inside:
        study.enqueue_trial({option.knob: flat[option.knob] for option in space.options})
    while True:
        trial = study.ask()
        values = {o.knob: trial.suggest_categorical(o.knob, o.values) for o in space.options}
        settings = space.settings(**values)
        rate = field.measure(settings) if space.legal(settings) else None
        if rate is None:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(trial, rate)


def tpe(field: Field, seed: int) -> None:
    """Optuna's default sampler; since Optuna 5 that is the joint, multivariate one."""
    _study(field, optuna.samplers.TPESampler(seed=seed))


def tpe_univariate(field: Field, seed: int) -> None:
    """The tree-structured Parzen estimator for each parameter alone."""
    _study(field, optuna.samplers.TPESampler(seed=seed, multivariate=False))


def gaussian_process(field: Field, seed: int) -> None:
    """Optuna's Gaussian process sampler; it needs scipy."""
    _study(field, optuna.samplers.GPSampler(seed=seed))


RIVALS: dict[str, Callable[[Field, int], None]] = {
    "random": random_search,
    "tpe": tpe,
    "tpe-univariate": tpe_univariate,
    "gp": gaussian_process,
    "greedy": greedy,
}


def rule_of_thumb(space: GridSpace) -> Settings:
    """The usual advice, unmeasured: a worker for each CPU, pinned memory, kernel search, half precision."""
    cpus = space.machine.usable_cpus
    wanted: list[tuple[str, KnobValue]] = [
        *(("num_workers", n) for n in space.values("num_workers") if isinstance(n, int) and n <= cpus),
        *((name, True) for name in ("pin_memory", "non_blocking", "cudnn_benchmark")),
        *(("precision", p) for p in ("float16", "bfloat16")),
    ]
    guess = space.start
    for name, value in wanted:
        changed = _with(space, guess, {name: value}) if name in space.names else guess
        if space.legal(changed):
            guess = changed
    return guess
