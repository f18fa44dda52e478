"""What other batch sizes are worth: how much a sample teaches in them, and what was learned of that. Pure.

Across batch sizes rates are compared in samples of the user's own batch: samples/s times what a sample
teaches (`autotune.recipe.goodput.efficiency`). A ratio of two such rates is one of times to equal quality.
"""

from __future__ import annotations

from dataclasses import dataclass

from autotune.outcome import NoiseScale, Objective
from autotune.recipe.goodput import efficiency
from autotune.recipe.noise_scale import GradientStats, noise_scale
from autotune.settings import Settings
from autotune.trial import Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientLook:
    """What came of looking at the user's own gradients."""

    noise: NoiseScale | None = None
    refused: str = ""
    """Why the batch size stays whatever else is known; empty where it may change."""
    missing: str = ""
    """Why there is no noise scale; the batch may then change as far as rules are trusted without one."""
    notes: tuple[str, ...] = ()
    """What could not be seen to, or speaks against the figure."""


def look_of(found: GradientStats | Failure) -> GradientLook:
    """What the runner's answer says.

    A refusal is of the workload's making: its loss is a sum, its steps move weights by themselves and the
    like. No rule for the learning rate holds there. Out of time or memory says nothing against a rule.
    """
    if isinstance(found, Failure):
        if found.kind in ("non_finite", "user_error"):
            return GradientLook(refused=f"the gradients could not be looked at: {found.message}")
        return GradientLook(missing=found.message)
    if found.refused:
        return GradientLook(refused=found.refused)
    noise = noise_scale(found)
    if noise is None:
        return GradientLook(missing="too few steps had finite gradients", notes=found.notes)
    return GradientLook(noise=noise, notes=found.notes)


def teaches(settings: Settings, yours: Settings, look: GradientLook | None, objective: Objective) -> float:
    """What a sample teaches under `settings`, relative to *yours*.

    1 for the user's own batch, where no noise scale is known, and where throughput alone was asked for.
    """
    size, reference = settings.loader.batch_size, yours.loader.batch_size
    if objective == "throughput" or size is None or reference is None or size == reference:
        return 1.0
    if look is None or look.noise is None:
        return 1.0
    return efficiency(size, reference, look.noise.lower_bound)
