"""Whether looking on is worth its time, in seconds of the user's own training. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autotune.units import format_duration

PROMISING = 3
"""How many of the most promising settings are weighed together: one alone may be luck of the model."""
FLOOR = 0.005
"""An expected gain (log) under this is no reason to look on: a trial cannot tell it from noise."""

LARGE = math.log(1.25)
"""A gain that is looked for within the budget whatever one run saves: later runs have it as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What looking on promises, and what it costs."""

    gains: Sequence[float]
    """Expected improvement (log rate) of the most promising untried settings."""
    cost_s: float
    """Wall seconds to try them."""
    training_s: float | None = None
    """What the user's whole run takes with the best settings so far; None where its length is unknown."""

    @property
    def gain(self) -> float:
        """The most that all of them together can be expected to bring, as a log ratio."""
        return sum(self.gains)

    @property
    def saved_s(self) -> float | None:
        """Seconds of the user's training that this gain saves; None where its length is unknown."""
        return None if self.training_s is None else self.training_s * (1 - math.exp(-self.gain))


def why_stop(outlook: Outlook) -> str:
    """Why looking on is not worth its time, in words; empty where it is.

    With a training of known length it must save more seconds than it costs, or be `LARGE`. A gain that no
    trial could show ends the search in any case; without a known length only that and the budget do.
    """
    if not outlook.gains:
        return ""
    count = len(outlook.gains)
    settings = "most promising settings" if count == 1 else f"{count} most promising settings"
    promise = f"the {settings} left promise {100 * math.expm1(outlook.gain):.1f} %"
    saved_s = outlook.saved_s
    if outlook.gain < FLOOR:
        return f"{promise}, which no trial could tell from noise"
    if saved_s is not None and saved_s < outlook.cost_s and outlook.gain < LARGE:
        saves, costs = (format_duration(s) for s in (saved_s, outlook.cost_s))
        return f"{promise}, {saves} of your training, less than the {costs} that looking costs"
    return ""
