"""Recipes for tests of the kit, of learning rates that are easy to follow."""

from __future__ import annotations

from typing import Any

from autotune.outcome import Recipe

REFERENCE = 4
"""Samples in a batch of the user's own."""


def recipe(k: int, **changes: Any) -> Recipe:
    """Linear, without a warmup unless asked."""
    plain: dict[str, Any] = {
        "batch_size": k * REFERENCE,
        "reference_batch_size": REFERENCE,
        "learning_rates": (0.1 * k,),
        "reference_learning_rates": (0.1,),
        "lr_rule": "linear",
    }
    return Recipe(**{**plain, **changes})
