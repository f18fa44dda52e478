"""When settings with other arithmetic are compared with *yours* step by step, and what is said of it. Pure.

Once for each change of precision or of what is compiled, whatever else changes with it: as soon as the search
would build on it, at the latest before the finals. What trains worse is out.
"""

from __future__ import annotations

from collections.abc import Sequence

from autotune.measure.seam import NumericsSpec
from autotune.recipe.guard import CHECKED, NumericsRecord, changes, label
from autotune.search.checking import needed_s, steps_within
from autotune.search.cost import MIN_PAIRS, Costs
from autotune.search.finals import finals_of
from autotune.search.knowledge import Knowledge
from autotune.settings import Settings
from autotune.trial import Failure

_PATIENCE = 4.0
"""Times what it should take, after which it counts as hung; with `_STARTING_S` for processes and kernels."""
_STARTING_S = 15.0


def early_check(know: Knowledge, room_s: float) -> NumericsSpec | None:
    """A comparison of the incumbent's precision, before more is built on it."""
    incumbent = know.incumbent
    if not changes(incumbent, know.yours):
        return None
    return _spec(know, incumbent, room_s) if _unknown(know, incumbent) else None


def next_check(know: Knowledge, costs: Costs, chosen: Sequence[Settings]) -> NumericsSpec | None:
    """A comparison of those about to meet *yours* in the finals; None where all are known, or without time.

    Once a candidate has begun its finals it is too late: what it won would have to be judged again.

    Args:
        know: of a search that is over.
        costs: of it.
        chosen: who would meet *yours* if every precision trained the same.
    """
    met = {trial.settings for trial in finals_of(know)}
    for settings in chosen:
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
    steps, _ = steps_within(know, know.incumbent, know.ctx.budget_s)
    return needed_s(know, know.incumbent, steps, runs=2) if steps else 0.0


def guard_notes(know: Knowledge, winner: Settings) -> tuple[str, ...]:
    """What the user should know: how the winner's arithmetic compares, and what was left out for its own."""
    worse = [found for found in know.ctx.numerics if found.kind == "worse"]
    notes = [f"numerics: {found.in_words()}; left out" for found in worse]
    best = winner if winner in know.full else know.incumbent  # who won by a challenge had no search trial
    faster = [s for s in know.full if know.unchecked(s) and know.rate(s) > know.rate(best)]
    late = sorted({label(_uncompared(know, s), know.yours) for s in faster})
    notes += [f"numerics: {each}: not checked: no time was left; left out" for each in late]
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


def _uncompared(know: Knowledge, settings: Settings) -> Settings:
    """What there was no time for: their precision, or where that was compared what is compiled for it."""
    plain = settings.replace(compile=know.yours.compute.compile)
    return plain if know.numerics(plain) is None else settings


def _unknown(know: Knowledge, settings: Settings) -> bool:
    return bool(changes(settings, know.yours)) and know.numerics(settings) is None


def _spec(know: Knowledge, settings: Settings, room_s: float) -> NumericsSpec | None:
    """The comparison, with fewer steps where time is short; None where there is time for too few.

    Both sides have the loader, the threads and the choice of kernels that the settings have: what they do to
    rounding is not asked.
    """
    steps, allowed_s = steps_within(know, settings, room_s)
    if not steps:
        return None
    yours = know.yours.flat()
    return NumericsSpec(
        settings=settings,
        reference=settings.replace(**{name: yours[name] for name in CHECKED}),
        steps=steps,
        window_s=allowed_s,
        timeout_s=min(_PATIENCE * needed_s(know, settings, steps, runs=3) + _STARTING_S, room_s),
        seed=know.ctx.seed,
    )
