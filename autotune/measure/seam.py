"""The one seam to the real world: a Runner runs a TrialSpec.

Everything above it is a function of values and is tested without torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from autotune.facts import MachineFacts, WorkloadFacts
from autotune.settings import Settings
from autotune.trial import Failure, Measurement, TrialSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a Runner knows before the first trial."""

    machine: MachineFacts
    workload: WorkloadFacts
    yours: Settings
    """What the user runs today."""
    notes: tuple[str, ...] = ()
    """Things seen on the way that the user should know."""


class Runner(Protocol):
    """Runs trials. Implementations never let an exception of the user's code out of `run`."""

    def describe(self) -> Description:
        """The machine, the workload and *yours*, found by running the user's own settings for a few steps.

        Raises:
            AutotuneError: where the workload cannot be run at all.
        """
        ...

    def run(self, spec: TrialSpec) -> Measurement | Failure:
        """Run `spec`; blocks at most `spec.timeout_s` plus the time to end a process."""
        ...

    def close(self) -> None:
        """End what was started. Safe to call twice."""
        ...
