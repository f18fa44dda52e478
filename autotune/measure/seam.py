"""The one seam to the real world: a Runner runs a TrialSpec.

Everything above it is a function of values and is tested without torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from autotune.facts import MachineFacts, WorkloadFacts
from autotune.outcome import Recipe
from autotune.recipe.guard import STEPS, NumericsRecord
from autotune.recipe.noise_scale import GradientStats
from autotune.recipe.pilot import STEPS as PILOT_STEPS
from autotune.recipe.pilot import PilotRecord
from autotune.settings import Settings
from autotune.trial import Failure, Measurement, TrialSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a Runner knows before the first trial."""

    machine: MachineFacts
    workload: WorkloadFacts
    yours: Settings
    """What the user runs today."""
    name: str = ""
    """What the workload calls itself; empty where it does not say."""
    notes: tuple[str, ...] = ()
    """Things seen on the way that the user should know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientSpec:
    """What a Runner is asked to look at: the user's own gradients, over a stretch of training."""

    settings: Settings
    """How to load and to compute, but with the user's own batch size and in float32."""
    micro_batches: int = 4
    """Micro-batches in a step, each of the user's own size; at least 2."""
    steps: int = 32
    """Steps to take sums of."""
    warm_steps: int = 0
    """Steps that the user's optimizer takes before."""
    apart: int = 0
    """Steps that it takes between two of those that sums are taken of; with 0 all are at the same weights."""
    window_s: float = 20.0
    """Seconds from the start after which no further step begins, once there are enough for an interval."""
    timeout_s: float = 120.0
    """Wall seconds after which the bench process is ended."""
    seed: int = 0

    def __post_init__(self) -> None:
        assert self.micro_batches >= 2, "noise shows between micro-batches"
        assert self.steps >= 1, "there is no sum without a step"
        assert self.warm_steps >= 0, "steps are counted from the weights as handed over"
        assert self.apart >= 0, "training does not go back"


@dataclass(frozen=True, slots=True, kw_only=True)
class NumericsSpec:
    """What a Runner is asked to compare: the same steps under two settings, from the same weights."""

    settings: Settings
    reference: Settings
    """The same, but for the knobs whose effect on training is asked for."""
    steps: int = STEPS
    window_s: float = 20.0
    """Seconds after which the reference is not run once more to see how far it differs from itself."""
    timeout_s: float = 120.0
    """Wall seconds after which the bench process is ended."""
    seed: int = 0

    def __post_init__(self) -> None:
        assert self.steps >= 1, "there is nothing to compare without a step"


@dataclass(frozen=True, slots=True, kw_only=True)
class PilotSpec:
    """What a Runner is asked to train for a while: a changed batch with its recipe, and the user's own."""

    settings: Settings
    reference: Settings
    """The same with the user's own batch size."""
    recipe: Recipe
    """Of `settings`' batch, for a run as long as the pilot."""
    priced: float = 1.0
    """What a sample is counted for in the changed batch: its loss is held against that many of yours."""
    steps: int = PILOT_STEPS[0]
    """Of the changed batch; the user's own trains on as many samples."""
    warm_steps: int = 0
    """Steps of the user's own before both."""
    window_s: float = 60.0
    """Seconds after which the user's own is not trained once more to see what chance does."""
    timeout_s: float = 180.0
    """Wall seconds after which the bench process is ended."""
    seed: int = 0

    def __post_init__(self) -> None:
        assert self.steps >= 1, "there is nothing to compare without a step"
        assert self.settings.loader.batch_size, "a batch of a size that can be changed"
        assert self.reference.loader.batch_size, "a batch of a size that can be changed"


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

    def probe_gradients(self, spec: GradientSpec) -> GradientStats | Failure:
        """Sums of the user's own gradients; weights, buffers and random states are put back.

        Gradients that give no noise scale come back as stats with a reason in `refused`.
        """
        ...

    def compare_numerics(self, spec: NumericsSpec) -> NumericsRecord | Failure:
        """The same steps, in the user's own batch size, under both settings; all is put back."""
        ...

    def pilot(self, spec: PilotSpec) -> PilotRecord | Failure:
        """Both batch sizes trained on equal samples from the same weights; all is put back.

        What cannot be trained so comes back as a record with a reason in `refused`.
        """
        ...

    def close(self) -> None:
        """End what was started. Safe to call twice."""
        ...
