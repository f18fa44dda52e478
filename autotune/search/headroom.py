"""How much of the GPU's memory settings leave free: what training does beside the step needs some. Pure."""

from __future__ import annotations

from autotune.search.knowledge import Knowledge
from autotune.settings import Settings
from autotune.units import format_bytes

LITTLE = 0.05
"""Less than this part of the memory free, and the user is told."""


def headroom_notes(know: Knowledge, winner: Settings) -> tuple[str, ...]:
    """A sentence where `winner` leaves less than `LITTLE` of the GPU's memory free, with the figures."""
    free, peak = know.free_share(winner), know.peak_bytes(winner)
    if free is None or free >= LITTLE or peak is None:
        return ()
    figures = f"reserve {format_bytes(peak)} at their peak and leave {max(free, 0.0) * 100:.1f} %"
    return (f"the settings {figures} of the GPU's memory: validation or a longer sample may not fit",)
