"""What each changed setting of the winner brings, by runs without it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from autotune.measure.stats import ratio_interval
from autotune.outcome import Worth
from autotune.search.verdict import CONFIDENCE, Weight, alike, pairs
from autotune.settings import Settings
from autotune.trial import Trial


def leave_one_out(
    winner: Settings, yours: Settings, canonical: Callable[[Settings], Settings]
) -> tuple[tuple[str, Settings], ...]:
    """For each knob that the winner changed: its name, and the winner with that knob as in *yours*.

    Settings that `canonical` turns into the winner or into *yours* are left out: the first changes nothing,
    the second is what the finals compared already.
    """
    theirs = yours.flat()
    without = (
        (knob, canonical(winner.replace(**{knob: theirs[knob]}))) for knob in winner.changed_from(yours)
    )
    return tuple((knob, settings) for knob, settings in without if settings not in (winner, yours))


def worth_of(
    knob: str,
    winner: Settings,
    without: Settings,
    trials: Sequence[Trial],
    *,
    yours: Settings,
    samples: int | None,
    epochs: int | None,
    weight: Weight = alike,
) -> Worth:
    """What `knob` brings: effective samples/s of the winner over the winner without it.

    From the pairs of stage `worth`; `ratio` is None with fewer than two of them.
    """
    ratios = pairs(without, winner, trials, samples=samples, epochs=epochs, stage="worth", weight=weight)
    return Worth(
        knob=knob,
        yours=yours.flat()[knob],
        best=winner.flat()[knob],
        ratio=ratio_interval(ratios, confidence=CONFIDENCE) if len(ratios) >= 2 else None,
    )
