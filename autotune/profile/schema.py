"""What a saved profile holds: the answer, what proves it, and where it was found.

Schema history; a reader must go on reading every number in this list:
    1  autotune 0.1.0: settings, recipe, measured, machine, workload.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from autotune.codec import decode, encode
from autotune.facts import GpuFacts, MachineFacts, WorkloadFacts
from autotune.outcome import BatchChoice, Interval, Kept, NoiseScale, Outcome, Recipe, VerdictKind, Worth
from autotune.search.batch import GradientLook, teaches
from autotune.search.verdict import counted_pairs
from autotune.settings import Settings
from autotune.trial import Measurement

T = TypeVar("T")

SCHEMA = 1
_DIGITS = 6
"""Significant digits kept of a measured figure: far below its noise, and readable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """What one of the two compared settings measured."""

    samples_per_s: float | None = None
    """Geometric mean of the runs' effective rates, starts included; None without an unbiased run."""
    runs: int = 0
    """How many runs that is the mean of."""
    wait_share: float | None = None
    """Part of the timed seconds in which steps waited for the loader, 0 to 1."""
    peak_device_bytes: int | None = None
    peak_host_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The proof. Figures come from the finals, never from the search that led to them."""

    verdict: VerdictKind
    sentence: str
    ratio: Interval | None
    """Effective samples/s of `best` over `yours`; None without finals.

    Times `weight` where `best` has another batch size: it is then no quotient of the two rates.
    Where *yours* stays, it is the best candidate's over `yours`, and that candidate is not in the profile.
    """
    pairs: int
    """Paired comparisons behind `ratio`."""
    yours: Side
    best: Side
    yours_settings: Settings
    """What the user ran before."""
    worth: tuple[Worth, ...] = ()
    kept: tuple[Kept, ...] = ()
    trials: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    """Failed trials by kind."""
    epochs: int | None = None
    """Epochs over which start-up was spread; None for a long run."""
    elapsed_s: float = 0.0
    budget_s: float = 0.0
    stop_reason: str = ""
    notes: tuple[str, ...] = ()
    batch: BatchChoice | None = None
    """The batch sizes that ran, and what each is worth; None where only one did."""
    noise: NoiseScale | None = None
    """Of the user's own gradients; None where they were not looked at, or showed none."""

    def weight(self, settings: Settings) -> float:
        """What a sample counts for under `settings` beside one under `yours_settings`, as in `ratio`."""
        if self.batch is None:
            return 1.0
        look = GradientLook(noise=self.noise)
        return teaches(settings, self.yours_settings, look, self.batch.objective)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSummary:
    """One accelerator, as far as a profile depends on it."""

    index: int
    name: str
    memory_bytes: int
    driver: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSummary:
    """The machine, as far as a profile depends on it."""

    system: str
    cpu_name: str
    usable_cpus: int
    memory_bytes: int
    """Host memory that the process may use: the machine's, or its cgroup limit where that is less."""
    torch_version: str
    cuda_version: str | None
    python_version: str
    start_method: str
    """How DataLoader workers start: fork, forkserver or spawn."""
    gpus: tuple[GpuSummary, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadSummary:
    """The workload, as far as a profile depends on it."""

    model_class: str
    parameters: int
    dataset_class: str | None
    dataset_samples: int | None
    device: str
    batch_samples: int
    """Samples in the user's own step, before anything was changed."""
    optimizer_class: str | None
    loss: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A saved answer: what `autotune.yaml` holds."""

    schema: int
    autotune_version: str
    created: str
    """When, as ISO 8601 text."""
    name: str
    settings: Settings
    """The settings to train with."""
    recipe: Recipe | None
    measured: Measured
    machine: MachineSummary
    workload: WorkloadSummary


def profile_of(outcome: Outcome, *, created: str, version: str) -> Profile:
    """The profile of what a run found.

    Args:
        outcome: the run.
        created: when it ended, as ISO 8601 text.
        version: of the autotune that ran it.
    """
    return Profile(
        schema=SCHEMA,
        autotune_version=version,
        created=created,
        name=outcome.name,
        settings=outcome.best,
        recipe=outcome.recipe,
        measured=_measured(outcome),
        machine=summary_of_machine(outcome.machine),
        workload=summary_of_workload(outcome.workload),
    )


def summary_of_machine(machine: MachineFacts) -> MachineSummary:
    """The part of the facts that a profile keeps."""
    return MachineSummary(
        system=machine.system,
        cpu_name=machine.cpu_name,
        usable_cpus=machine.usable_cpus,
        memory_bytes=min(machine.memory_bytes, machine.memory_limit_bytes or machine.memory_bytes),
        torch_version=machine.torch_version,
        cuda_version=machine.cuda_version,
        python_version=machine.python_version,
        start_method=machine.start_method,
        gpus=tuple(_gpu(gpu) for gpu in machine.gpus),
    )


def summary_of_workload(workload: WorkloadFacts) -> WorkloadSummary:
    """The part of the facts that a profile keeps."""
    return WorkloadSummary(
        model_class=workload.model_class,
        parameters=workload.parameters,
        dataset_class=workload.dataset_class,
        dataset_samples=workload.dataset_samples,
        device=workload.device,
        batch_samples=workload.batch_samples,
        optimizer_class=workload.optimizer_class,
        loss=workload.loss,
    )


def _gpu(gpu: GpuFacts) -> GpuSummary:
    return GpuSummary(index=gpu.index, name=gpu.name, memory_bytes=gpu.memory_bytes, driver=gpu.driver)


def _measured(outcome: Outcome) -> Measured:
    verdict = outcome.verdict
    failures = Counter(trial.failure.kind for trial in outcome.trials if trial.failure is not None)
    return Measured(
        verdict=verdict.kind,
        sentence=verdict.sentence,
        ratio=_rounded(verdict.ratio),
        pairs=verdict.pairs,
        yours=_side(outcome, outcome.yours),
        best=_side(outcome, verdict.winner),
        yours_settings=outcome.yours,
        worth=tuple(replace(worth, ratio=_rounded(worth.ratio)) for worth in outcome.worth),
        kept=outcome.kept,
        trials=len(outcome.trials),
        failures=dict(sorted(failures.items())),
        epochs=outcome.epochs,
        elapsed_s=_round(outcome.elapsed_s),
        budget_s=_round(outcome.budget_s),
        stop_reason=outcome.stop_reason,
        notes=outcome.notes,
        batch=_readable(BatchChoice, outcome.batch),
        noise=_readable(NoiseScale, outcome.noise),
    )


def _side(outcome: Outcome, settings: Settings) -> Side:
    runs = _unbiased(outcome, settings)
    if not runs:
        return Side()
    samples = outcome.workload.dataset_samples
    # The geometric mean, so that best over yours is the very ratio that the pairs give.
    logs = [math.log(run.effective_samples_per_s(samples, outcome.epochs)) for run in runs]
    timed_s = sum(run.elapsed_s for run in runs)
    return Side(
        samples_per_s=_round(math.exp(math.fsum(logs) / len(logs))),
        runs=len(runs),
        wait_share=_round(sum(run.wait_share * run.elapsed_s for run in runs) / timed_s),
        peak_device_bytes=max((r.peak_device_bytes for r in runs if r.peak_device_bytes), default=None),
        peak_host_bytes=max((r.peak_host_bytes for r in runs if r.peak_host_bytes), default=None),
    )


def _unbiased(outcome: Outcome, settings: Settings) -> list[Measurement]:
    """The finals runs of these settings that the ratio is made of; for *yours* without, the baseline's.

    The baseline is measured because it is the user's, not because it came out well, so its figures are
    not inflated by being chosen. Those of a search trial are.
    """
    samples, epochs = outcome.workload.dataset_samples, outcome.epochs
    counted = counted_pairs(outcome.yours, outcome.best, outcome.trials, samples=samples, epochs=epochs)
    finals = [
        trial.measurement
        for trial in outcome.finals(settings)
        if trial.measurement is not None and (not counted or trial.spec.pair in counted)
    ]
    if finals or settings != outcome.yours:
        return finals
    return [
        trial.measurement
        for trial in outcome.trials
        if trial.spec.stage == "yours" and trial.settings == settings and trial.measurement is not None
    ]


def _rounded(interval: Interval | None) -> Interval | None:
    if interval is None:
        return None
    return replace(
        interval, value=_round(interval.value), low=_round(interval.low), high=_round(interval.high)
    )


def _readable(cls: type[T], value: T | None) -> T | None:
    """The value with every figure in it rounded."""
    return None if value is None else decode(cls, _all_rounded(encode(value)))


def _all_rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _all_rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_all_rounded(item) for item in value]
    return _round(value) if isinstance(value, float) else value


def _round(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
