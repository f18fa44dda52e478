"""Samples that training took to a loss, and what they say beside a prediction: figures and table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from autotune.recipe.goodput import efficiency


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Loss on the held-out data at one point of a run."""

    samples: int
    loss: float


def smoothed(marks: Sequence[Mark]) -> list[Mark]:
    """Each mark but the first and the last with the mean loss of itself and its two neighbours."""
    return [
        Mark(samples=here.samples, loss=(before.loss + here.loss + after.loss) / 3)
        for before, here, after in zip(marks, marks[1:], marks[2:])
    ]


def samples_to(marks: Sequence[Mark], target: float) -> float:
    """Samples at which the smoothed loss came down to the target, between two marks by the straight line.

    At a steady learning rate the loss goes up and down, the more so the smaller the batch: the first single
    mark at the target would come early, by luck. Infinite where it never came down.
    """
    before: Mark | None = None
    for mark in smoothed(marks):
        if mark.loss <= target:
            if before is None:
                return float(mark.samples)
            part = (before.loss - target) / (before.loss - mark.loss)
            return before.samples + part * (mark.samples - before.samples)
        before = mark
    return math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One batch size under one seed."""

    growth: int
    noise: float | None
    """Estimate of phi in samples; None where it has no upper end."""
    bound: float
    """Lower bound of phi."""
    reference: int
    """M0, the user's own batch."""
    own_samples: float
    """Samples to the target with M0."""
    samples: float
    """The same with this batch; infinite where it was not reached."""

    @property
    def measured(self) -> float:
        """What a sample taught, relative to M0; 0 where the target was not reached."""
        return self.own_samples / self.samples

    @property
    def predicted(self) -> float:
        """The same by the estimate of phi; 1 where it has no upper end."""
        if self.noise is None:
            return 1.0
        return efficiency(self.growth * self.reference, self.reference, self.noise)

    @property
    def counted_on(self) -> float:
        """The same by its lower bound."""
        return efficiency(self.growth * self.reference, self.reference, self.bound)


HEAD = (
    f"{'k':>3} {'M':>6} {'phi':>7} {'bound':>7} {'by phi':>7} {'by bound':>9} "
    f"{'measured':>22} {'/ by phi':>9} {'/ by bound':>11}  seeds"
)


def line_of(seen: Sequence[Seen]) -> str:
    """One line of the table: medians over the seeds of a batch size."""
    one = seen[0]
    measured = [s.measured for s in seen]
    by_phi, by_bound = median(s.predicted for s in seen), median(s.counted_on for s in seen)
    middle = median(measured)
    noises = [math.inf if s.noise is None else s.noise for s in seen]
    spread = f"{middle:.2f} ({min(measured):.2f} to {max(measured):.2f})"
    return (
        f"{one.growth:>3} {one.growth * one.reference:>6} {median(noises):>7.0f} "
        f"{median(s.bound for s in seen):>7.0f} {by_phi:>7.2f} {by_bound:>9.2f} "
        f"{spread:>22} {middle / by_phi:>9.2f} {middle / by_bound:>11.2f}  {len(seen)}"
    )


def table(title: str, found: Sequence[Seen]) -> str:
    """A line for each batch size."""
    growths = sorted({seen.growth for seen in found})
    lines = [line_of([seen for seen in found if seen.growth == growth]) for growth in growths]
    return "\n".join([title, HEAD, *lines])
