"""What the plan can decide."""

from __future__ import annotations

from dataclasses import dataclass

from autotune.measure.seam import GradientSpec, NumericsSpec, PilotSpec
from autotune.trial import TrialSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Run this next."""

    spec: TrialSpec
    capped: bool = False
    """Whether the budget sets the timeout: reaching it then says nothing about the settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Ask the sampler for settings that `plan.sampled` makes a run of, and run them."""

    room_s: float
    """Seconds that the run may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LookAtGradients:
    """Look at the user's gradients: what is found becomes `PlanContext.look`."""

    spec: GradientSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckNumerics:
    """Compare steps: the judgement joins `PlanContext.numerics`."""

    spec: NumericsSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainBoth:
    """Train a changed batch beside the user's own: the judgement joins `PlanContext.pilots`."""

    spec: PilotSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class EndSearch:
    """Go on to the finals: `reason` becomes `PlanContext.search_over`."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """Nothing is left to do."""


Move = Run | Sample | LookAtGradients | CheckNumerics | TrainBoth | EndSearch | Finish
