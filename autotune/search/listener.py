"""Who wants to hear how a run goes: progress on a terminal, lines in a log, nothing at all."""

from __future__ import annotations

from typing import Protocol

from autotune.measure.seam import Description
from autotune.outcome import Kept, Outcome
from autotune.trial import Trial, TrialSpec


class Listener(Protocol):
    """Told of each event as it happens. Must not raise; must return quickly."""

    def started(self, description: Description, kept: tuple[Kept, ...], budget_s: float) -> None:
        """The workload is described, the space is built."""
        ...

    def stage(self, text: str) -> None:
        """A new part of the work begins; `text` is one phrase, such as `the data ceiling`."""
        ...

    def trial_started(self, number: int, spec: TrialSpec, remaining_s: float) -> None:
        """A trial begins."""
        ...

    def trial_finished(self, trial: Trial, ratio: float | None, best: bool, remaining_s: float) -> None:
        """A trial ended. `ratio` is its effective rate over *yours*, None where they cannot be compared."""
        ...

    def finished(self, outcome: Outcome) -> None:
        """The run is over."""
        ...


class SilentListener:
    """Hears and says nothing."""

    def started(self, description: Description, kept: tuple[Kept, ...], budget_s: float) -> None:
        """Nothing."""

    def stage(self, text: str) -> None:
        """Nothing."""

    def trial_started(self, number: int, spec: TrialSpec, remaining_s: float) -> None:
        """Nothing."""

    def trial_finished(self, trial: Trial, ratio: float | None, best: bool, remaining_s: float) -> None:
        """Nothing."""

    def finished(self, outcome: Outcome) -> None:
        """Nothing."""
