"""What a kit leaves in param groups, and so in an optimizer's checkpoints, and on BatchNorm layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from autotune.errors import UsageError

SCALED_FOR = "scaled_for_batch_size"
"""Its numbers are a recipe's for so many samples in a step."""
SCALED_BY = "scaled_by"
"""What that recipe multiplied the learning rate by; not in checkpoints of earlier versions."""
SCHEDULED = "scheduled_samples"
"""Samples that the schedule of its learning rate has counted."""
FULL = "scheduled_lr"
"""The learning rate that the present one is a part of, while a schedule has it so.

`initial_lr` is torch's, and what schedulers of the user's own compute from.
"""
MARKS = (SCALED_FOR, SCALED_BY, SCHEDULED, FULL)
AFRESH = "make model and optimizer anew, with your own numbers, or tune with those that they have now"
"""What to do about numbers that another recipe has left."""


def scaled_already(
    marks: Mapping[str, Any], what: str, *, reference: int, size: int, factor: float = 1.0
) -> bool:
    """Whether numbers are what a recipe makes of them; False where it is to be applied to what they are.

    Args:
        marks: a param group, or the attributes of a layer.
        what: the numbers, in the plural.
        reference: samples in a step that the recipe begins with.
        size: samples in a step that it is for.
        factor: what it multiplies by.

    Raises:
        UsageError: for numbers that another recipe has left elsewhere than where this one begins.
    """
    found, by = marks.get(SCALED_FOR), marks.get(SCALED_BY, factor)
    if found == size and math.isclose(by, factor, rel_tol=1e-6):
        return True
    if found in (None, reference):
        return False
    raise UsageError(
        f"{what} are another recipe's already",
        why=f"they are for {found} samples in a step, times {by:.4g}; this one goes from {reference} to "
        f"{size}, times {factor:.4g}",
        fix=AFRESH,
    )
