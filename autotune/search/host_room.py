"""Whether the machine's memory holds a larger batch, where steps run in it. Pure.

A GPU that is full costs one trial. A machine that is full swaps, or ends processes, also those of the user.
"""

from __future__ import annotations

from autotune.search.knowledge import Knowledge
from autotune.settings import Settings
from autotune.units import format_bytes

FULL = 0.9
"""Of the memory that was free at the start: no batch is tried that is expected to need more."""


def overfull(know: Knowledge, settings: Settings) -> str:
    """Why there is no room for the batch of these settings; empty where there is, or nothing is known of it.

    By a line through the peaks of the two largest batches that ran; by one alone as if all of it grew with
    the batch, which is too much and so on the safe side.
    """
    size, peaks = settings.loader.batch_size, _peaks(know)
    if know.ctx.space.workload.accelerated or size is None or not peaks or size <= max(peaks):
        return ""
    expected, room = _expected(peaks, size), know.ctx.space.machine.memory_available_bytes
    if expected <= FULL * room:
        return ""
    needs, had = format_bytes(expected), format_bytes(room)
    return f"batches of {size} are expected to take {needs} of memory, and {had} was free at the start"


def _peaks(know: Knowledge) -> dict[int, int]:
    """The most memory that any trial took, by its batch size."""
    peaks: dict[int, int] = {}
    for trial in know.history:
        size = trial.settings.loader.batch_size
        peak = None if trial.measurement is None else trial.measurement.peak_host_bytes
        if size is not None and peak is not None and trial.spec.mode == "full":
            peaks[size] = max(peak, peaks.get(size, 0))
    return peaks


def _expected(peaks: dict[int, int], size: int) -> int:
    *smaller, largest = sorted(peaks)
    peak = peaks[largest]
    slope = peak / largest
    if smaller:
        slope = max(0.0, (peak - peaks[smaller[-1]]) / (largest - smaller[-1]))
    return round(peak + slope * (size - largest))
