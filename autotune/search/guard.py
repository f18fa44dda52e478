"""When settings with other arithmetic are compared with *yours* step by step, and what is said of it. Pure.

Once for each change of precision or of what is compiled, whatever else changes with it: as soon as the search
would build on it, at the latest before the finals. What trains worse is out.
"""

from __future__ import annotations

from autotune.measure.seam import NumericsSpec
from autotune.recipe.guard import CHECKED, LEAST_STEPS, STEPS, NumericsRecord, changes, label
from autotune.search.compiling import next_s
from autotune.search.cost import MIN_PAIRS, Costs
from autotune.search.finals import candidates, finals_of
from autotune.search.knowledge import Knowledge
from autotune.settings import Settings
from autotune.trial import Failure

SHARE = 0.08
"""A comparison takes at most this part of the budget."""
_PATIENCE = 4.0
"""Times what it should take, after which it counts as hung; with `_STARTING_S` for processes and kernels."""
_STARTING_S = 15.0


def early_check(know: Knowledge, room_s: float) -> NumericsSpec | None:
    """A comparison of the incumbent's precision, before more is built on it."""
    incumbent = know.incumbent
    if not changes(incumbent, know.yours):
        return None
    return _spec(know, incumbent, room_s) if _unknown(know, incumbent) else None


def next_check(know: Knowledge, costs: Costs) -> NumericsSpec | None:
    """A comparison of those about to meet *yours* in the finals; None where all are known, or without time.

    Once a candidate has begun its finals it is too late: what it won would have to be judged again.
    """
    met = {trial.settings for trial in finals_of(know)}
    for settings in candidates(know, costs):
        if settings not in met and _unknown(know, settings):
            spec = _spec(know, settings, know.ctx.remaining_s - MIN_PAIRS * costs.round_s() - costs.edge_s)
            if spec is not None:
                return spec
    return None


def record_of(spec: NumericsSpec, found: NumericsRecord | Failure) -> NumericsRecord:
    """What a comparison gave; one that failed says nothing of the settings, and does not rule them out."""
    if isinstance(found, NumericsRecord):
        return found
    return NumericsRecord(
        settings=spec.settings, reference=spec.reference, refused=found.message, wall_s=found.wall_s
    )


def reserve_s(know: Knowledge) -> float:
    """Seconds that the search leaves to the comparison of the incumbent, where that is still to come."""
    if not _unknown(know, know.incumbent):
        return 0.0
    steps = _steps(know, know.incumbent, SHARE * know.ctx.budget_s)
    return _needed_s(know, know.incumbent, steps, runs=2) if steps else 0.0


def guard_notes(know: Knowledge, winner: Settings) -> tuple[str, ...]:
    """What the user should know: how the winner's arithmetic compares, and what was left out for its own."""
    worse = [found for found in know.ctx.numerics if found.kind == "worse"]
    notes = [f"numerics: {found.in_words()}; left out" for found in worse]
    if not changes(winner, know.yours):
        return tuple(notes)
    found = know.numerics(winner)
    if found is None:
        notes.append(f"numerics: {label(winner, know.yours)}: not checked: no time was left")
    elif found.kind == "unknown":
        notes.append(f"numerics: {label(winner, know.yours)}: not checked: {found.reason}")
    else:
        notes.append(f"numerics: {found.in_words()}")
    return tuple(notes)


def _unknown(know: Knowledge, settings: Settings) -> bool:
    return bool(changes(settings, know.yours)) and know.numerics(settings) is None


def _spec(know: Knowledge, settings: Settings, room_s: float) -> NumericsSpec | None:
    """The comparison, with fewer steps where time is short; None where there is time for too few.

    Both sides have the loader, the threads and the choice of kernels that the settings have: what they do to
    rounding is not asked.
    """
    allowed_s = min(SHARE * know.ctx.budget_s, room_s)
    steps = _steps(know, settings, allowed_s)
    if not steps:
        return None
    yours = know.yours.flat()
    return NumericsSpec(
        settings=settings,
        reference=settings.replace(**{name: yours[name] for name in CHECKED}),
        steps=steps,
        window_s=allowed_s,
        timeout_s=min(_PATIENCE * _needed_s(know, settings, steps, runs=3) + _STARTING_S, room_s),
        seed=know.ctx.seed,
    )


def _steps(know: Knowledge, settings: Settings, allowed_s: float) -> int:
    """As many steps as there is time for; 0 where those are too few."""
    return next((n for n in (STEPS, LEAST_STEPS) if _needed_s(know, settings, n, runs=2) <= allowed_s), 0)


def _needed_s(know: Knowledge, settings: Settings, steps: int, *, runs: int) -> float:
    """Wall seconds of so many runs, all but one of the reference; each begins with a look at the gradient."""
    theirs, ours = know.latest(settings), know.latest(know.yours)
    batch, own = settings.loader.batch_size, know.yours.loader.batch_size
    larger = batch / own if batch and own else 1.0
    # In the user's own batches; in those of the settings where they are compiled for these.
    compiled = settings.compute.compile is not None
    theirs_s, ours_s = (
        (theirs.step_s, ours.step_s * larger) if compiled else (theirs.step_s / larger, ours.step_s)
    )
    # What is drawn ahead is waited for here, and only once.
    step_s = theirs_s + (runs - 1) * ours_s
    warmup_s = next_s(know, settings) if compiled else theirs.warmup_s
    return (steps + 1) * step_s + warmup_s + ours.warmup_s + theirs.startup_s
