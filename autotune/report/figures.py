"""The numbers of a report, each computed from trials that ran. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autotune.outcome import Outcome
from autotune.report.rows import Side
from autotune.search.verdict import counted_pairs
from autotune.settings import Settings
from autotune.trial import Failure, FailureKind, Measurement, Trial


@dataclass(frozen=True, slots=True, kw_only=True)
class Failures:
    """All trials that failed in the same way."""

    kind: FailureKind
    count: int
    first: Failure


def sides(outcome: Outcome, settings: Settings) -> tuple[Side | None, Side | None]:
    """*Yours* and `settings`, from their common pairs in the finals, else from all their full trials.

    Pairs alone make the two rates comparable: both sides then saw the machine in the same minutes. Those
    that the verdict left out as outliers are left out here too, so the quotient is the verdict's ratio.
    """
    mine, theirs = _by_pair(outcome, outcome.yours), _by_pair(outcome, settings)
    samples, epochs = outcome.workload.dataset_samples, outcome.epochs
    common = counted_pairs(outcome.yours, settings, outcome.trials, samples=samples, epochs=epochs)
    if common:
        return (
            _side(outcome, [mine[pair] for pair in common], final=True),
            _side(outcome, [theirs[pair] for pair in common], final=True),
        )
    return (
        _side(outcome, _full(outcome, outcome.yours), final=False),
        _side(outcome, _full(outcome, settings), final=False),
    )


def rival(outcome: Outcome) -> Settings | None:
    """The settings that came nearest to beating *yours* in the finals; None where the finals had none.

    Where the verdict carries a ratio, the rival is the one that it speaks of.
    """
    ratios: dict[Settings, float] = {}
    for trial in outcome.trials:
        if trial.spec.stage == "final" and trial.settings != outcome.yours and trial.settings not in ratios:
            yours, theirs = sides(outcome, trial.settings)
            if yours and theirs and theirs.final:
                weight = outcome.weight(trial.settings)
                ratios[trial.settings] = weight * theirs.samples_per_s / yours.samples_per_s
    if not ratios:
        return None
    told = outcome.verdict.ratio
    if told is None:
        return max(ratios, key=lambda settings: ratios[settings])
    value = told.value
    return min(ratios, key=lambda settings: abs(math.log(ratios[settings] / value)))


def break_even_s(outcome: Outcome) -> float | None:
    """Seconds of training with the winner after which it has saved what the tuning took; None without one.

    In t seconds the winner does what takes *yours* t * ratio, so that is elapsed_s / (ratio - 1).
    """
    ratio = outcome.verdict.ratio
    if outcome.verdict.kind != "faster" or ratio is None or not outcome.elapsed_s:
        return None
    return outcome.elapsed_s / (ratio.value - 1)


def failures(trials: Sequence[Trial]) -> tuple[Failures, ...]:
    """The failed trials by kind, the most frequent first."""
    by_kind: dict[FailureKind, list[Failure]] = {}
    for trial in trials:
        if trial.failure is not None:
            by_kind.setdefault(trial.failure.kind, []).append(trial.failure)
    groups = [Failures(kind=kind, count=len(found), first=found[0]) for kind, found in by_kind.items()]
    return tuple(sorted(groups, key=lambda group: (-group.count, group.kind)))


def _by_pair(outcome: Outcome, settings: Settings) -> dict[int, Measurement]:
    return {
        trial.spec.pair: trial.measurement
        for trial in outcome.finals(settings)
        if trial.spec.pair is not None and trial.measurement is not None
    }


def _full(outcome: Outcome, settings: Settings) -> list[Measurement]:
    return [
        trial.measurement
        for trial in outcome.trials
        if trial.settings == settings and trial.spec.mode == "full" and trial.measurement is not None
    ]


def _side(outcome: Outcome, found: list[Measurement], *, final: bool) -> Side | None:
    if not found:
        return None
    samples, epochs = outcome.workload.dataset_samples, outcome.epochs
    rates = [math.log(m.effective_samples_per_s(samples, epochs)) for m in found]
    peaks = [m.peak_device_bytes if outcome.workload.accelerated else m.peak_host_bytes for m in found]
    elapsed_s = sum(m.elapsed_s for m in found)
    return Side(
        samples_per_s=math.exp(math.fsum(rates) / len(rates)),
        wait_share=sum(m.wait_share * m.elapsed_s for m in found) / elapsed_s,
        peak_bytes=max((peak for peak in peaks if peak is not None), default=None),
        trials=len(found),
        final=final,
    )
