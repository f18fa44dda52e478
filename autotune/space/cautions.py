"""What to know before settings are used in a loop of one's own, without the kit. Pure."""

from __future__ import annotations

from autotune.settings import Settings


def cautions(settings: Settings, optimizer_class: str | None) -> tuple[str, ...]:
    """What the kit takes care of and a plain loop does not, in words; empty where that is nothing.

    A fused SGD takes a step that overflowed in name only, and its first one makes momentum buffers that are
    then never written (seen with torch 2.9 to 2.14).
    """
    compute = settings.compute
    if not (compute.precision == "float16" and compute.fused_optimizer and optimizer_class == "SGD"):
        return ()
    said = (
        "fused SGD with momentum in float16: train with kit(), or leave fused=True out. In a plain loop a "
        "first step that overflows keeps momentum nobody has written, and the loss becomes NaN or the "
        "weights wrong"
    )
    return (said,)
