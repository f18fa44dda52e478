"""How long comparing steps with *yours* takes, and which precision the budget has no time to compare. Pure.

A precision that nobody compared is not offered, so where the budget holds no comparison it is not tried.
"""

from __future__ import annotations

from collections.abc import Mapping

from autotune.outcome import Kept
from autotune.recipe.guard import LEAST_STEPS, STEPS
from autotune.search.compiling import later_s, next_s
from autotune.search.knowledge import Knowledge
from autotune.settings import KnobValue, Settings
from autotune.units import format_duration

SHARE = 0.08
"""A comparison takes at most this part of the budget."""
LEAST_SHARE = 0.15
"""One of `LEAST_STEPS`, without which a precision is not offered, may take this part."""


def steps_within(know: Knowledge, settings: Settings, room_s: float) -> tuple[int, float]:
    """As many steps as there is time for, and the seconds that they may take; none without enough time."""
    for steps, share in ((STEPS, SHARE), (LEAST_STEPS, LEAST_SHARE)):
        allowed_s = min(share * know.ctx.budget_s, room_s)
        if needed_s(know, settings, steps, runs=2) <= allowed_s:
            return steps, allowed_s
    return 0, 0.0


def needed_s(know: Knowledge, settings: Settings, steps: int, *, runs: int) -> float:
    """Wall seconds of so many runs, all but one of the reference; each begins with a look at the gradient."""
    ours = know.latest(know.yours)
    theirs = know.latest(settings) if settings in know.full else ours
    batch, own = settings.loader.batch_size, know.yours.loader.batch_size
    larger = batch / own if batch and own and settings in know.full else 1.0
    # In the user's own batches; in those of the settings where they are compiled for these.
    compiled = settings.compute.compile is not None
    theirs_s, ours_s = (
        (theirs.step_s, ours.step_s * larger) if compiled else (theirs.step_s / larger, ours.step_s)
    )
    # What is drawn ahead is waited for here, and only once.
    step_s = theirs_s + (runs - 1) * ours_s
    warmup_s = next_s(know, settings) if compiled else theirs.warmup_s
    return (steps + 1) * step_s + warmup_s + ours.warmup_s + theirs.startup_s


def uncheckable(know: Knowledge, settings: Settings) -> str:
    """Why the budget has no time to compare the steps of this precision; empty where it has, or need not."""
    if know.yours not in know.full or not know.unchecked(settings):
        return ""
    alone = know.yours.replace(precision=settings.compute.precision)
    # What is compiled has run by then.
    least_s = needed_s(know, alone, LEAST_STEPS, runs=2) + later_s(know, settings)
    if least_s <= LEAST_SHARE * know.ctx.budget_s:
        return ""
    return (
        f"to compare {LEAST_STEPS} steps in {settings.compute.precision} with yours takes "
        f"{format_duration(least_s)}, more than {100 * LEAST_SHARE:.0f} % of the budget (a budget of "
        f"{format_duration(least_s / LEAST_SHARE)} would do)"
    )


def checkable(know: Knowledge, values: Mapping[str, KnobValue]) -> dict[str, KnobValue]:
    """What the sampler drew, in the user's own precision where the drawn one could not be compared."""
    kept = uncheckable(know, know.ctx.space.settings(**values))
    own = {"precision": know.ctx.space.start.compute.precision} if kept and "precision" in values else {}
    return {**values, **own}


def precision_kept(know: Knowledge) -> tuple[Kept, ...]:
    """That there was no time to compare another precision; nothing where there was, or one was tried."""
    start = know.ctx.space.start
    if "precision" not in know.ctx.space.names or not know.full:
        return ()
    own = start.compute.precision
    if any(trial.settings.compute.precision != own for trial in know.history):
        return ()
    others = [value for value in know.ctx.space.values("precision") if value != own]
    reasons = [uncheckable(know, start.replace(precision=value)) for value in others]
    return (Kept(knob="precision", value=own, why=reasons[0]),) if reasons and all(reasons) else ()
