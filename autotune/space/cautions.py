"""What to know before settings are used in a loop of one's own, without the kit. Pure."""

from __future__ import annotations

from autotune.outcome import Recipe
from autotune.settings import Settings


def cautions(
    settings: Settings, optimizer_class: str | None, recipe: Recipe | None = None
) -> tuple[str, ...]:
    """What the kit takes care of and a plain loop does not, in words; empty where that is nothing.

    A fused SGD takes a step that overflowed in name only, and its first one makes momentum buffers that are
    then never written (seen with torch 2.9 to 2.14).
    """
    said = []
    if recipe is not None and recipe.growth != 1:
        said.append(
            f"batches of {recipe.batch_size} belong to the numbers of their recipe: kit() applies them, and "
            "a plain loop over loader() has to"
        )
    compute = settings.compute
    if not (compute.precision == "float16" and compute.fused_optimizer and optimizer_class == "SGD"):
        return tuple(said)
    said.append(
        "fused SGD with momentum in float16: train with kit(), or leave fused=True out. In a plain loop a "
        "first step that overflows keeps momentum nobody has written, and the loss becomes NaN or the "
        "weights wrong"
    )
    return tuple(said)
