"""What the plan may depend on beside the history of trials. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from autotune.outcome import Objective, Pilot
from autotune.recipe.guard import Numerics
from autotune.search.batch import GradientLook, teaches
from autotune.settings import Settings
from autotune.space.candidates import Space


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanContext:
    """All that a decision may depend on beside the history."""

    space: Space
    budget_s: float
    remaining_s: float
    """Wall seconds of the budget that are left."""
    epochs: int | None = None
    """Epochs the user will train; None judges one epoch of a long run."""
    seed: int = 0
    max_candidates: int = 2
    """Settings that may meet *yours* in the finals."""
    search_over: str = ""
    """Why the search ended; empty while it goes on."""
    exhausted: bool = False
    """Whether the sampler had nothing new to propose."""
    first: tuple[Settings, ...] = ()
    """What won on the like of this workload before: tried right after the ceilings."""
    earlier: int = 0
    """How many trials at the head of the history come from an earlier session, outside of this budget."""
    objective: Objective = "goodput"
    """What is best across batch sizes."""
    max_batch_size: int | None = None
    warm: int | None = None
    """Training steps before the gradients are looked at, where the user said so."""
    look: GradientLook | None = None
    """What looking at the user's gradients gave; None before."""
    numerics: tuple[Numerics, ...] = ()
    """What comparing steps with *yours* gave, in the order in which they were compared."""
    pilots: tuple[Pilot, ...] = ()
    """What training a while in other batch sizes gave, in that order."""
    piloted_s: float = 0.0
    """Seconds of this session's budget that went into them."""
    compile_room_s: float = math.inf
    """Compiling that is expected to take as long as this does not fit what is left of the search."""
    untrained: frozenset[int] = frozenset()
    """Batch sizes that ran and that no time is left to train in; see `pilot.settled`."""

    def weight(self, settings: Settings) -> float:
        """What a sample teaches under `settings`, relative to *yours*: what rates are multiplied by."""
        return teaches(settings, self.space.yours, self.look, self.objective)
