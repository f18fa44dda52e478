"""Whether a changed batch learns what its samples were counted for: both ways trained for a while. Pure.

Samples per second are multiplied by what a sample teaches in a batch of M, `priced`: (phi + M0) / (phi + M).
The pilot holds that figure against the user's own model: M with its recipe over so many samples must come as
far as M0 does over `priced` times as many. Over equal samples a larger batch is behind early in training
whatever it is worth later, and the objective has taken that off its rate already.

Both begin at the same weights, those after a few steps of the user's own where there is time: at the very
start a larger batch is worth less than at any later time (see `autotune.recipe.noise_scale`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from autotune.outcome import Pilot, Recipe
from autotune.recipe.scaling import RUN_SHARE
from autotune.settings import Settings

STEPS = (96, 64, 45, 30)
"""Steps of the changed batch, as many as there is time for. Under thirty say nothing."""
WARM_STEPS = 100
"""Steps of the user's own before both begin, as before the gradients are looked at."""
LEAST_WARM_STEPS = 32
HELD_SAMPLES = 512
"""Samples that nobody trains on; at most a tenth of the dataset."""
LEAST_HELD = 64
"""Where there are fewer, the training losses are compared."""
_MARKS = (2 / 3, 7 / 9, 8 / 9, 1.0)
"""Where losses are taken, as parts of the run: the mean of several moves less than the last one."""
SPANS = 6
"""Training losses are averaged over one part in so many of the run."""

LOSS_LIMIT = 0.02
NOISE_FACTOR = 2.0
"""The loss may be higher by so many times the deviation from seed to seed."""
TOO_NOISY = 0.15
"""With a wider limit than this, a loss within it says nothing."""
DIVERGED = 3.0
"""Training losses this many times those at the start.

Both in the mean of a part of the run: a model that is trained already has batches whose loss is many times
that of others.
"""
_LEVEL = 0.0005
"""A change of a loss that is called none."""
_FLAT = 0.1
"""A loss under this part of the first one is compared with that part: it is next to nothing itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PilotRun:
    """What one run showed."""

    losses: tuple[float | None, ...] = ()
    """At the marks; None where it is not finite."""
    priced: tuple[float | None, ...] = ()
    """After `priced` times as many samples as at each mark; of the user's own batch alone."""
    first: float | None = None
    """Mean training loss over the first of `SPANS` parts of the run; None where the step returns none."""
    most: float | None = None
    """The largest of these means."""
    finite: bool = True
    steps: int = 0

    @property
    def complete(self) -> bool:
        """Whether every loss is there."""
        return bool(self.losses) and all(loss is not None for loss in (*self.losses, *self.priced))


@dataclass(frozen=True, slots=True, kw_only=True)
class PilotRecord:
    """Both runs, and the user's own once more with samples in another order and other random numbers."""

    settings: Settings
    reference: Settings
    """The same with the user's own batch size."""
    priced: float = 1.0
    """What a sample is counted for in the changed batch."""
    warm_steps: int = 0
    """Steps of the user's own before all runs."""
    samples: int = 0
    """Of each run."""
    held_samples: int = 0
    """Samples that no run trains on and the losses are of; 0 where they are training losses."""
    first_loss: float | None = None
    """Training loss at the initial weights: the mean of the first part of the warm steps, or of one batch."""
    run: PilotRun = PilotRun()
    reference_run: PilotRun = PilotRun()
    again: PilotRun | None = None
    """None where there was no time for it."""
    refused: str = ""
    """Why nothing was compared; empty where it was."""
    wall_s: float = 0.0


def marks(steps: int, batch_size: int) -> tuple[int, ...]:
    """Samples after which losses are taken, whole batches each."""
    return tuple(batch_size * max(1, round(part * steps)) for part in _MARKS)


def levels(trace: Sequence[tuple[int, float]], samples: int) -> tuple[float, ...]:
    """Mean training loss over each of `SPANS` parts of a run, in order; parts without a loss are left out.

    Args:
        trace: samples before a step, and its loss.
        samples: of the whole run; steps beyond belong to its last part.
    """
    parts: dict[int, list[float]] = {}
    for before, loss in trace:
        parts.setdefault(min(before * SPANS // samples, SPANS - 1), []).append(loss)
    return tuple(_mean(parts[part]) for part in sorted(parts))


def priced_marks(reached: Sequence[int], priced: float, reference: int) -> tuple[int, ...]:
    """Samples of the user's own batch that those are counted for, whole batches each."""
    return tuple(reference * max(1, round(priced * samples / reference)) for samples in reached)


def pilot_recipe(recipe: Recipe, samples: int, run_samples: int | None) -> Recipe:
    """The recipe for a run of so many samples: its warmup takes the same part of it as of the real run.

    Args:
        recipe: of the real run.
        samples: of the pilot.
        run_samples: of the real run; None where its length is unknown.
    """
    share = recipe.warmup_samples / run_samples if run_samples else RUN_SHARE
    return replace(recipe, warmup_samples=min(recipe.warmup_samples, int(share * samples)))


def pilot_of(pilots: Sequence[Pilot], batch_size: int) -> Pilot | None:
    """What is known of this size: by its own pilot, a smaller size that failed, a larger one that did not."""
    own = [found for found in pilots if found.batch_size == batch_size]
    failed = [p for p in pilots if p.kind == "worse" and p.batch_size < batch_size]
    passed = [p for p in pilots if p.kind == "same" and p.batch_size > batch_size]
    return next(iter((*own[-1:], *failed, *passed)), None)


def judge_pilot(record: PilotRecord) -> Pilot:
    """Whether the changed batch comes as far as its samples were counted for, by the limits above.

    A loss that is lower is no fault. Without a second run of the user's own nothing is known of chance, and
    `LOSS_LIMIT` alone holds.
    """
    size, own = record.settings.loader.batch_size, record.reference.loader.batch_size
    found = Pilot(
        kind="unknown",
        batch_size=size or 0,
        reference=own or 0,
        reason=record.refused,
        steps=record.run.steps,
        warm_steps=record.warm_steps,
        samples=record.samples,
        held_samples=record.held_samples,
        priced=record.priced,
        wall_s=record.wall_s,
    )
    if record.refused:
        return found
    theirs = [run for run in (record.reference_run, record.again) if run is not None]
    if not all(run.finite and not _diverged(run, record) for run in theirs):
        return replace(found, reason="your own batch diverges by itself")
    fault = next(_divergence(record), "")
    if fault:
        return replace(found, kind="worse", reason=fault)
    if not (record.run.complete and all(run.complete for run in theirs)):
        return replace(found, reason="the step returns no loss")
    return _compared(record, found, theirs)


def _divergence(record: PilotRecord) -> Iterator[str]:
    run = record.run
    if not run.finite:
        yield f"the loss became NaN or infinite within {run.steps} steps"
    if _diverged(run, record):
        yield f"the loss rose to {run.most:.3g} within {run.steps} steps, from {_start(record):.3g}"


def _start(record: PilotRecord) -> float:
    """Training loss before the runs; without warm steps that of one batch, which may be an easy one."""
    first = record.first_loss
    if not record.warm_steps and record.reference_run.first is not None:
        first = max(first or 0.0, record.reference_run.first)
    return first or 0.0


def _diverged(run: PilotRun, record: PilotRecord) -> bool:
    return run.most is not None and run.most > DIVERGED * _start(record) > 0


def _compared(record: PilotRecord, found: Pilot, theirs: Sequence[PilotRun]) -> Pilot:
    loss = _mean(record.run.losses)
    expected, equal = (
        _mean([_mean(losses) for losses in each])
        for each in ([run.priced for run in theirs], [run.losses for run in theirs])
    )
    size = max(abs(expected), _FLAT * abs(record.first_loss or 0.0))
    change = (loss - expected) / size if size > 0 else 0.0
    deviation = _deviation(theirs)
    limit = LOSS_LIMIT if deviation is None else max(LOSS_LIMIT, NOISE_FACTOR * deviation / size)
    what = "held-out loss" if record.held_samples else "training loss"
    own = f"yours {expected:.3g} after {record.priced:.2f} of the samples, {equal:.3g} after as many"
    reason = f"{what} {loss:.3g} after {record.run.steps} steps; {own}"
    found = replace(
        found, reason=reason, loss=loss, expected=expected, reference_loss=equal, change=change, limit=limit
    )
    if change > limit:
        chance = ", and no time was left to see what chance does" if deviation is None else ""
        over = f"{_percent(change)} above what its samples are counted for (limit {_percent(limit)}{chance})"
        return replace(found, kind="worse", reason=f"{over}: {reason}")
    if limit > TOO_NOISY:
        why = f"chance alone moves the loss by {_percent(limit / NOISE_FACTOR)}"
        where = (
            "level"
            if abs(change) < _LEVEL
            else f"{_percent(abs(change))} {'above' if change > 0 else 'below'}"
        )
        return replace(found, reason=f"{where}, but {why}: {reason}")
    return replace(found, kind="same", reason=f"learns what its samples are counted for: {reason}")


def _deviation(theirs: Sequence[PilotRun]) -> float | None:
    """Standard deviation of the loss from seed to seed, by two runs; None with one alone."""
    if len(theirs) < 2:
        return None
    first, second = ((*run.losses, *run.priced) for run in theirs)
    squares = [(a - b) ** 2 for a, b in zip(first, second) if a is not None and b is not None]
    return math.sqrt(math.fsum(squares) / len(squares) / 2)


def _mean(losses: Sequence[float | None]) -> float:
    known = [loss for loss in losses if loss is not None]
    return math.fsum(known) / len(known)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.0995 else f"{100 * share:.2g} %"
