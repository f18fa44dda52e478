"""Whether a saved profile still holds, from what differs and from fresh pairs. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from autotune.outcome import Interval
from autotune.profile.match import Difference
from autotune.profile.schema import Profile
from autotune.search.recheck import Recheck
from autotune.search.verdict import MIN_PAIRS, NOTHING_ABOVE

FreshnessKind = Literal["valid", "stale", "unsure", "unfit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Freshness:
    """What became of a profile.

    valid: its settings still surely beat the ones it was compared with, or are those. stale: most of the gain
    is surely gone (half of its logarithm), or the settings do not run any more. unsure: too few or
    too noisy pairs to tell. unfit: it was measured elsewhere, so nothing was measured here.
    """

    kind: FreshnessKind
    sentence: str
    differences: tuple[Difference, ...] = ()
    ratio: Interval | None = None
    """Measured now, times `weight`: effective samples/s of the profile's settings over the ones replaced."""
    was: Interval | None = None
    """The same when the profile was made."""
    pairs: int = 0
    weight: float = 1.0
    """What a sample counts for under the profile's settings beside the ones they replaced."""


def unfit(differences: Sequence[Difference]) -> bool:
    """Whether anything differs that may make other settings the best here."""
    return any(difference.matters for difference in differences)


def misfit(differences: Sequence[Difference]) -> Freshness:
    """The answer where the profile was measured elsewhere."""
    what = ", ".join(difference.what for difference in differences if difference.matters)
    return Freshness(
        kind="unfit",
        sentence=f"the profile does not fit, as this is not as it was measured: {what}; tune again",
        differences=tuple(differences),
    )


def same(differences: Sequence[Difference]) -> Freshness:
    """The answer for a profile that keeps the user's own settings: there is no gain that could be lost."""
    return Freshness(
        kind="valid",
        sentence="the profile keeps your own settings, so there was nothing to measure",
        differences=tuple(differences),
    )


def freshness(profile: Profile, found: Recheck, differences: Sequence[Difference] = ()) -> Freshness:
    """The answer from fresh pairs of the profile's settings and those that they replaced.

    Args:
        profile: what was saved.
        found: the fresh pairs.
        differences: what differs here, none of it of weight.
    """
    # Where nothing won, the ratio in the file is that of a candidate which is not in it.
    was = profile.measured.ratio if profile.measured.verdict == "faster" else None
    now, weight = found.verdict.ratio, profile.measured.weight(profile.settings)
    kind, sentence = _answer(found, now, was)
    if weight != 1 and now is not None:
        sentence += f"; samples counted by what they teach: {weight:.2f} of yours"
    return Freshness(
        kind=kind,
        sentence=sentence,
        differences=tuple(differences),
        ratio=now,
        was=was,
        pairs=found.verdict.pairs,
        weight=weight,
    )


def _answer(found: Recheck, now: Interval | None, was: Interval | None) -> tuple[FreshnessKind, str]:
    if found.failure is not None:
        return "stale", f"the profile's settings do not run any more: {found.failure.message}"
    if now is None:
        return "unsure", "there was no time to compare; give a larger --budget"
    figures = _figures(now, was, found.verdict.pairs)
    if found.verdict.kind == "faster":
        return "valid", f"still faster than the settings it replaced: {figures}"
    if now.low > 1:
        return "unsure", f"something else disturbed most runs: {figures}; try again when it is quiet"
    if now.high < 1:
        return "stale", f"slower by now than the settings it replaced: {figures}; tune again"
    if now.high < max(NOTHING_ABOVE, math.sqrt(was.value) if was is not None else 0.0):
        return "stale", f"the gain is gone: {figures}; tune again"
    if found.verdict.pairs < MIN_PAIRS:
        return "unsure", f"too few pairs to tell: {figures}; give a larger --budget"
    return "unsure", f"too noisy to tell: {figures}; give a larger --budget or a quieter machine"


def _figures(now: Interval, was: Interval | None, pairs: int) -> str:
    text = f"{now.value:.2f}x ({now.low:.3f} to {now.high:.3f}, {pairs} pairs)"
    return text if was is None else f"{text}, was {was.value:.2f}x"
