"""When a changed batch is trained a while beside the user's own, and what is said of it. Pure.

Once for a batch size, whatever else changes with it: as soon as the search would build on it, at the latest
before the finals. What learns less than its samples were counted for is out, larger sizes with it. A size for
which the budget holds no pilot is not tried.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from autotune.measure.seam import PilotSpec
from autotune.recipe.pilot import (
    HELD_SAMPLES,
    LEAST_WARM_STEPS,
    STEPS,
    WARM_STEPS,
    PilotRecord,
    pilot_recipe,
)
from autotune.recipe.scaling import USUAL_EPOCHS
from autotune.search.context import PlanContext
from autotune.search.cost import MIN_PAIRS, Costs
from autotune.search.knowledge import Knowledge
from autotune.search.learning import recipe_of
from autotune.settings import Settings
from autotune.trial import Failure, Trial
from autotune.units import format_duration

SHARE = 0.12
"""All pilots together take at most this part of the budget."""
_EVALUATIONS = (4, 8)
"""Of the held-out samples, in a run of the changed batch and in one of the user's own."""
_FORWARD = 1 / 3
"""Of a step's time, without the backward pass."""
_PATIENCE = 4.0
"""Times what it should take, after which it counts as hung; with `_STARTING_S` for processes and kernels."""
_STARTING_S = 15.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Length:
    """How long a pilot is."""

    steps: int
    warm_steps: int
    runs: int
    """Of the user's own batch."""


_LENGTHS = (
    *(_Length(steps=steps, warm_steps=WARM_STEPS, runs=2) for steps in STEPS),
    _Length(steps=STEPS[-1], warm_steps=LEAST_WARM_STEPS, runs=2),
    _Length(steps=STEPS[-1], warm_steps=LEAST_WARM_STEPS, runs=1),
)
"""From the best to the least that says anything."""


def unaffordable(know: Knowledge, settings: Settings) -> str:
    """Why the budget has no time for a pilot of this batch size; empty where it has, or none is needed."""
    if not know.unpiloted(settings) or know.yours not in know.full:
        return ""
    allowed_s = SHARE * know.ctx.budget_s - know.ctx.piloted_s
    needed_s = _needed_s(know, settings, _LENGTHS[-1])
    if needed_s <= allowed_s:
        return ""
    size, share = settings.loader.batch_size, f"{100 * SHARE:.0f} % of the budget"
    if know.ctx.piloted_s:
        return f"no time is left to train a while in batches of {size}: of {share}, pilots took their part"
    whole_s = needed_s / SHARE
    return (
        f"to train a while in batches of {size} beside yours takes {format_duration(needed_s)}, more than "
        f"{share} (a budget of {format_duration(whole_s)} would do)"
    )


def settled(ctx: PlanContext, history: Sequence[Trial]) -> PlanContext:
    """The context, told which batch sizes can win no more: nobody trained in them, nor is there time for it.

    A size that ran becomes one of these when the pilot of a larger one fails and has taken the time, or in a
    session with a smaller budget than the one in which it ran. Nothing is to be built on it.
    """
    own = ctx.space.yours.loader.batch_size
    sizes = {t.settings.loader.batch_size for t in history if t.measurement is not None} - {own, None}
    if ctx.search_over or not sizes:
        return ctx  # after the search who is unpiloted is out in any case
    know = Knowledge(dataclasses.replace(ctx, untrained=frozenset()), history)
    out = {size for size in sizes if size and unaffordable(know, know.yours.replace(batch_size=size))}
    return dataclasses.replace(know.ctx, untrained=frozenset(out))


def early_pilot(know: Knowledge, room_s: float) -> PilotSpec | None:
    """A pilot of the incumbent's batch, before more is built on it.

    Args:
        know: with an incumbent that was measured.
        room_s: seconds that the search has beside what `reserve_s` sets aside.
    """
    if not know.unpiloted(know.incumbent):
        return None
    return _spec(know, know.incumbent, room_s + reserve_s(know))


def next_pilot(know: Knowledge, costs: Costs, chosen: Sequence[Settings]) -> PilotSpec | None:
    """A pilot of those about to meet *yours* in the finals; None where all are known, or without time.

    Args:
        know: of a search that is over.
        costs: of it.
        chosen: who would meet *yours* if every batch size learned what it is counted for.
    """
    met = {trial.settings for trial in know.history if trial.spec.stage == "final"}
    for settings in chosen:
        if settings not in met and know.unpiloted(settings):
            room_s = know.ctx.remaining_s - MIN_PAIRS * costs.round_s() - costs.edge_s
            spec = _spec(know, settings, room_s)
            if spec is not None:
                return spec
    return None


def reserve_s(know: Knowledge) -> float:
    """Seconds that the search leaves to a pilot of the incumbent's batch, where that is still to come."""
    if not know.unpiloted(know.incumbent) or unaffordable(know, know.incumbent):
        return 0.0
    return _needed_s(know, know.incumbent, _LENGTHS[-1])


def pilot_record_of(spec: PilotSpec, found: PilotRecord | Failure) -> PilotRecord:
    """What a pilot gave; one that failed says nothing of the batch, and does not rule it out."""
    if isinstance(found, PilotRecord):
        return found
    return PilotRecord(
        settings=spec.settings, reference=spec.reference, refused=found.message, wall_s=found.wall_s
    )


def pilot_notes(know: Knowledge, winner: Settings) -> tuple[str, ...]:
    """What the user should know: how the winner's batch learns, and what was left out for how it does."""
    notes = [f"pilot: {found.in_words()}; left out" for found in know.ctx.pilots if found.kind == "worse"]
    found = know.pilot(winner)
    if know.unpiloted(winner):
        notes.append(f"pilot: batches of {winner.loader.batch_size}: nobody has trained in them yet")
    elif found is not None and found.kind == "unknown":
        notes.append(f"pilot: batches of {found.batch_size}: not known how they learn: {found.reason}")
    elif found is not None:
        notes.append(f"pilot: {found.in_words()}")
    return tuple(notes)


def _spec(know: Knowledge, settings: Settings, room_s: float) -> PilotSpec | None:
    """The pilot, shorter where time is short; None where there is time for too little, or no recipe.

    Both sides have the loader, the threads and the arithmetic that the settings have: those are judged apart.
    Nothing is compiled, which would have to be done for either batch size.
    """
    ctx, settings = know.ctx, settings.replace(compile=None)
    noise = None if ctx.look is None else ctx.look.noise
    recipe = recipe_of(ctx.space, settings, epochs=ctx.epochs, noise=noise)
    allowed_s = min(SHARE * ctx.budget_s - ctx.piloted_s, room_s)
    spare_s = allowed_s - _fallback_s(know, settings)
    length = next((each for each in _LENGTHS if _needed_s(know, settings, each) <= spare_s), None)
    if length is not None:
        allowed_s = spare_s
    elif _needed_s(know, settings, _LENGTHS[-1]) <= allowed_s:
        length = _LENGTHS[-1]
    if length is None or recipe is None:
        return None
    length_s = _needed_s(know, settings, dataclasses.replace(length, runs=2))
    samples = ctx.space.workload.dataset_samples
    return PilotSpec(
        settings=settings,
        reference=settings.replace(batch_size=know.yours.loader.batch_size),
        recipe=pilot_recipe(
            recipe,
            length.steps * (settings.loader.batch_size or 1),
            (ctx.epochs or USUAL_EPOCHS) * samples if samples else None,
        ),
        priced=ctx.weight(settings),
        steps=length.steps,
        warm_steps=length.warm_steps,
        window_s=allowed_s,
        timeout_s=min(_PATIENCE * length_s + _STARTING_S, room_s),
        seed=ctx.seed,
    )


def _fallback_s(know: Knowledge, settings: Settings) -> float:
    """Seconds of the shortest pilot of the next smaller size that ran, which follows where this one fails."""
    size = settings.loader.batch_size or 0
    smaller = [s for s in know.full if (s.loader.batch_size or 0) < size and know.unpiloted(s)]
    if not smaller:
        return 0.0
    return _needed_s(know, max(smaller, key=lambda s: s.loader.batch_size or 0), _LENGTHS[-1])


def _needed_s(know: Knowledge, settings: Settings, length: _Length) -> float:
    """Wall seconds of a pilot of such a length; each run starts its workers anew."""
    size, own = settings.loader.batch_size or 1, know.yours.loader.batch_size or 1
    own_s, size_s = _sample_s(know, own), _sample_s(know, size)
    samples = length.steps * size
    held_s = _FORWARD * HELD_SAMPLES * own_s
    evaluations = _EVALUATIONS[0] + length.runs * _EVALUATIONS[1]
    latest = know.latest(_like_the_pilot(know, settings))
    return (
        samples * size_s
        + (length.runs * samples + length.warm_steps * own + HELD_SAMPLES) * own_s
        + evaluations * held_s
        + (length.runs + 3) * latest.startup_s
        + latest.warmup_s
    )


def _like_the_pilot(know: Knowledge, settings: Settings) -> Settings:
    """What ran and is most like a pilot of `settings`, which compiles nothing."""
    likely = (settings.replace(compile=None), know.incumbent.replace(compile=None))
    return next((one for one in likely if one in know.full), know.yours)


def _sample_s(know: Knowledge, size: int) -> float:
    """Seconds of a sample in batches no larger than this, by the fastest that ran; of *yours* without."""
    rates = [
        know.latest(s).samples_per_s
        for s in know.full
        if s == know.yours
        or (s.compute.compile is None and (s.loader.batch_size or 0) <= size and not know.unfit(s))
    ]
    return 1 / max(rates)
