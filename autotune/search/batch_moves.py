"""Larger batches: when gradients are looked at, which sizes are tried, and what they add up to. Pure."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from autotune.facts import WorkloadFacts
from autotune.measure.seam import GradientSpec
from autotune.outcome import BatchChoice, Interval, Kept, Verdict
from autotune.recipe.goodput import BatchRate, batch_caps, choose_batch
from autotune.recipe.noise_scale import LEAST_STEPS
from autotune.search.checking import uncheckable
from autotune.search.compiling import too_dear
from autotune.search.context import PlanContext
from autotune.search.cost import Costs
from autotune.search.host_room import overfull
from autotune.search.knowledge import Knowledge
from autotune.search.lessons import would_fail
from autotune.search.parts import describe_change
from autotune.search.pilot import unaffordable
from autotune.settings import Settings
from autotune.space.candidates import neighbours
from autotune.space.rules import violations
from autotune.trial import TrialSpec

LOOK_SHARE = 0.12
"""Looking at gradients takes at most this part of the budget, and `ROOM_SHARE` of the search's own rest."""
ROOM_SHARE = 0.35
WARM_STEPS = 400
"""Training steps of a look at the gradients. The first `UNSEEN` of them pass before, as at the very start the
noise scale is far smaller than later; the others lie between the steps that are looked at."""
UNSEEN = 0.5
WARM_RUN = 0.25
"""They are at most this part of the user's own run, where its length is known."""
WARM_SHARE = 0.4
"""They are at most this part of all steps of a look."""
STEPS = 32
MICRO_BATCHES = 4
_OTHER_STEPS = 16
"""What it takes to tell a mean from a sum, in batches: eight are seen whole and in halves."""
_SLOWER = 1.5
"""Times the step of *yours*: it is in float32, and every gradient is added up beside it."""


def searched(ctx: PlanContext) -> bool:
    """Whether the batch size may change at all."""
    return "batch_size" in ctx.space.names and ctx.space.yours.loader.batch_size is not None


def gathered(ctx: PlanContext) -> bool:
    """Whether steps of the optimizer keep their samples: other batches then need no look and no rule."""
    return ctx.space.workload.step_samples is not None


def begun(know: Knowledge) -> bool:
    """Whether other batches have had their turn: then they are settings like any other."""
    if gathered(know.ctx):
        return True
    return know.ctx.look is not None or any(changed(know.ctx, settings) for settings in know.full)


def changed(ctx: PlanContext, settings: Settings) -> bool:
    """Whether these settings have another batch size than *yours*, by our choice."""
    return searched(ctx) and settings.loader.batch_size != ctx.space.yours.loader.batch_size


def caps(ctx: PlanContext, batch_size: int) -> tuple[str, ...]:
    """Why this size is not tried, in words; empty where it may be."""
    if gathered(ctx):
        over = ctx.max_batch_size is not None and batch_size > ctx.max_batch_size
        return (f"{batch_size} is over max_batch_size={ctx.max_batch_size}",) if over else ()
    refused = () if ctx.look is None or not ctx.look.refused else (ctx.look.refused,)
    noise = None if ctx.look is None else ctx.look.noise
    return refused + batch_caps(
        batch_size,
        noise,
        _facts(ctx),
        objective=ctx.objective,
        max_batch_size=ctx.max_batch_size,
        epochs=ctx.epochs,
    )


def permitted(know: Knowledge, settings: Settings) -> bool:
    """Whether nothing speaks against the batch size of these settings."""
    size = settings.loader.batch_size
    if size is None or not changed(know.ctx, settings):
        return True
    return not caps(know.ctx, size) and in_turn(know, size)


def in_turn(know: Knowledge, size: int) -> bool:
    """Whether a size is one to try: those between two doublings are where the larger of the two is out.

    What ran once stays, whatever becomes of the larger one: the search builds on it.
    """
    double = know.ctx.space.stood_in_for(size)
    if double is None or any(settings.loader.batch_size == size for settings in know.full):
        return True
    if caps(know.ctx, double) or _misfits(know, double):
        return True
    larger = know.incumbent.replace(batch_size=double)
    ran = [settings for settings in know.full if settings.loader.batch_size == double]
    if ran:  # one that was slower is not out: less of the same would hardly be faster
        # Where its pilot failed, what is left is trained first: it may fail as well.
        worse = know.trains_worse(larger) and not know.unpiloted(know.incumbent)
        return worse or all(map(know.no_room, ran))
    return bool(_held_back(know, double) or would_fail(larger, know.history))


def _misfits(know: Knowledge, size: int) -> tuple[str, ...]:
    """Why this size does not go with the rest of the incumbent, such as a queue that fills the memory."""
    space, flat = know.ctx.space, know.incumbent.flat()
    larger = space.settings(**{**{name: flat[name] for name in space.names}, "batch_size": size})
    return violations(larger, space.machine, space.workload, yours=know.yours)


def next_look(know: Knowledge, room_s: float) -> GradientSpec | None:
    """How to look at the gradients; None where they were seen, no larger batch is open, or time is short."""
    ctx = know.ctx
    if ctx.look is not None or gathered(ctx) or not _open_sizes(know):
        return None
    latest = know.latest(know.yours)
    step_s = max(_SLOWER * latest.step_s, 1e-6)
    allowed_s = min(LOOK_SHARE * ctx.budget_s, ROOM_SHARE * room_s)
    batches = int(allowed_s / step_s) - _OTHER_STEPS
    warm, apart, steps = _lengths(ctx, batches)
    if steps < LEAST_STEPS:
        return None
    return GradientSpec(
        settings=know.incumbent.replace(batch_size=know.yours.loader.batch_size, compile=None),
        micro_batches=MICRO_BATCHES,
        steps=steps,
        warm_steps=warm,
        apart=apart,
        window_s=allowed_s,
        # A process may have to be brought up again, and workers are started twice.
        timeout_s=min(2 * allowed_s + ctx.space.workload.setup_s + 2 * latest.startup_s + 8.0, room_s),
        seed=ctx.seed,
    )


def _lengths(ctx: PlanContext, batches: int) -> tuple[int, int, int]:
    """Steps before the first look, between two looks, and looks, where there is time for so many batches."""
    batches -= ctx.warm or 0
    training = min(WARM_STEPS, int(WARM_SHARE * batches), _part_of_run(ctx))
    if ctx.warm is not None:
        training = int((1 - UNSEEN) * training)  # the others are those that the user asked for
    steps = min(STEPS, (batches - training) // MICRO_BATCHES)
    if steps < LEAST_STEPS:
        steps = min(LEAST_STEPS, batches // MICRO_BATCHES)
        training = min(max(0, batches - steps * MICRO_BATCHES), _part_of_run(ctx))
    between = training if ctx.warm is not None else (1 - UNSEEN) * training
    apart = round(between / max(1, steps - 1))
    return (training - apart * (steps - 1) if ctx.warm is None else ctx.warm), apart, steps


def _part_of_run(ctx: PlanContext) -> int:
    """The most training steps of a look, by the length of the user's own run."""
    own, samples = ctx.space.yours.loader.batch_size, ctx.space.workload.dataset_samples
    if not (ctx.epochs and samples and own):
        return WARM_STEPS
    return int(WARM_RUN * ctx.epochs * samples / own)


def next_batch(know: Knowledge, costs: Costs) -> TrialSpec | None:
    """The next size up from the incumbent's, where it is open and untried; None otherwise.

    That is twice as large, or half as much again where twice is out, as by what a sample would teach.
    A size that lost ends the climb, since the next one starts from where it would have won.
    """
    if not searched(know.ctx):
        return None
    incumbent = know.incumbent
    for _, settings in neighbours(know.ctx.space, incumbent, "recipe"):
        larger = (settings.loader.batch_size or 0) > (incumbent.loader.batch_size or 0)
        if larger and worth_trying(know, settings) and not too_dear(know, settings):
            why = "fewer to a step" if gathered(know.ctx) else "learning rate to go with it"
            reason = f"{describe_change(incumbent, settings)}, {why}"
            return costs.search_spec(settings, "joint", reason)
    return None


def worth_trying(know: Knowledge, settings: Settings) -> bool:
    """Whether `settings` are worth a full trial: legal, new, not bound to fail and not bound to lose."""
    return (
        settings not in know.full
        and know.ctx.space.legal(settings)
        and permitted(know, settings)
        and not would_fail(settings, know.history)
        and not know.trains_worse(settings)
        and not unaffordable(know, settings)
        and not uncheckable(know, settings)
        and not overfull(know, settings)
        and know.bound(settings) * know.ctx.weight(settings) >= know.rate(know.incumbent)
    )


def batch_choice(know: Knowledge, winner: Settings) -> BatchChoice | None:
    """The table of the batch sizes that ran, with the winner's marked; None where only one did.

    Where steps keep their samples there is no such table: a sample teaches as much in each batch.
    What is recommended is what won the finals: rates of the search led to them, and count no further.
    """
    ctx = know.ctx
    if not searched(ctx) or gathered(ctx) or len(rates := _batch_rates(know)) < 2:
        return None
    choice = choose_batch(
        rates,
        None if ctx.look is None else ctx.look.noise,
        _facts(ctx),
        objective=ctx.objective,
        max_batch_size=ctx.max_batch_size,
        epochs=ctx.epochs,
    )
    size = winner.loader.batch_size
    if size is None or size not in {row.batch_size for row in choice.rows}:
        return choice
    gains = {rate.batch_size: _objective(know, rate) for rate in rates}
    return dataclasses.replace(
        choice,
        recommended=size,
        gain=gains[size] / gains[choice.reference],
        limited_by=tuple(dict.fromkeys((*choice.limited_by, *_next_caps(know, choice, size)))),
    )


def _next_caps(know: Knowledge, choice: BatchChoice, recommended: int) -> tuple[str, ...]:
    """What kept the next larger size from being tried, where the largest tried was the best.

    Where a larger one was tried and learned too little, that it did.
    """
    failed = [p for p in know.ctx.pilots if p.kind == "worse" and p.batch_size > recommended]
    if failed:
        return tuple(f"{p.in_words()}" for p in failed)
    largest = choice.rows[-1].batch_size
    met = {t.settings.loader.batch_size or 0 for t in know.history if t.spec.stage == "final"}
    if max(met, default=0) > recommended:
        return (f"in the finals batches of {max(met)} were not surely ahead",)
    if recommended != largest:
        return ()
    size = min(_sizes_over(know, largest), default=2 * largest)
    against = caps(know.ctx, size) or tuple(filter(None, [_held_back(know, size)]))
    double = know.ctx.space.stood_in_for(size)
    return against if against or double is None else caps(know.ctx, double)


def _held_back(know: Knowledge, size: int) -> str:
    """Why there is no time or no memory for this batch size; empty where there is both."""
    larger = know.incumbent.replace(batch_size=size)
    return unaffordable(know, larger) or overfull(know, larger)


def _open_sizes(know: Knowledge) -> tuple[int, ...]:
    """The sizes above the user's own that nothing speaks against, as far as is known."""
    ctx, own = know.ctx, know.yours.loader.batch_size
    if not searched(ctx) or own is None:
        return ()
    sizes = _sizes_over(know, own)
    return tuple(size for size in sizes if not caps(ctx, size) and not _held_back(know, size))


def _sizes_over(know: Knowledge, least: int) -> list[int]:
    """The batch sizes above `least` that are ones to try, from the smallest."""
    sizes = (v for v in know.ctx.space.values("batch_size") if isinstance(v, int) and v > least)
    return [size for size in sizes if in_turn(know, size)]


def _facts(ctx: PlanContext) -> WorkloadFacts:
    """The workload with the batch that *yours* asks the loader for."""
    own = ctx.space.yours.loader.batch_size
    return dataclasses.replace(ctx.space.workload, batch_samples=own or ctx.space.workload.batch_samples)


def _batch_rates(know: Knowledge) -> list[BatchRate]:
    """For each batch size the fastest settings, in plain samples/s over the user's run."""
    best: dict[int, Settings] = {}
    for settings in know.full:
        size = settings.loader.batch_size
        if size is None or (settings != know.yours and know.unfit(settings)):
            continue
        if size not in best or know.rate(settings) > know.rate(best[size]):
            best[size] = settings
    return [_batch_rate(know, size, settings) for size, settings in sorted(best.items())]


def _batch_rate(know: Knowledge, size: int, settings: Settings) -> BatchRate:
    rate = know.rate(settings) / know.ctx.weight(settings)
    spread = math.exp(2 * know.noise / math.sqrt(len(know.full[settings])))
    peaks = [
        m.peak_device_bytes if know.ctx.space.workload.accelerated else m.peak_host_bytes
        for m in (t.measurement for t in know.full[settings])
        if m is not None
    ]
    return BatchRate(
        batch_size=size,
        samples_per_s=Interval(value=rate, low=rate / spread, high=rate * spread),
        peak_bytes=max((peak for peak in peaks if peak is not None), default=None),
    )


def _objective(know: Knowledge, rate: BatchRate) -> float:
    return rate.samples_per_s.value * know.ctx.weight(know.yours.replace(batch_size=rate.batch_size))


def counted_in(ctx: PlanContext, verdict: Verdict) -> Verdict:
    """The verdict with a word on what its ratio counts, where the winner has another batch than *yours*."""
    winner = verdict.winner
    size, weight = winner.loader.batch_size, ctx.weight(winner)
    if not changed(ctx, winner):
        if size == ctx.space.yours.loader.batch_size or ctx.space.workload.step_samples is not None:
            return verdict
        said = f"counts samples: what they teach in batches of {size}, which you fixed, was not measured"
    elif gathered(ctx):
        said = f"steps keep {ctx.space.workload.step_samples} samples, gathered from batches of {size}"
    elif ctx.objective == "throughput":
        said = "counts samples, whatever they teach"
    elif ctx.look is None or ctx.look.noise is None:
        said = f"takes a sample to teach as much in batches of {size} as in yours, which was not measured"
    else:
        said = f"counts samples by what they teach: {weight:.2f} of yours in batches of {size}"
    return dataclasses.replace(verdict, sentence=f"{verdict.sentence}; {said}")


def batch_kept(know: Knowledge) -> tuple[Kept, ...]:
    """The batch size among what was kept, where it might have changed and no other ran to its end."""
    why = _why_kept(know)
    return (Kept(knob="batch_size", value=know.yours.loader.batch_size, why=why),) if why else ()


def _why_kept(know: Knowledge) -> str:
    """What spoke against larger batches; empty where one ran to its end, or none was open to choice."""
    ctx, own = know.ctx, know.yours.loader.batch_size
    if ctx.look is not None and ctx.look.refused:
        return ctx.look.refused
    if know.yours not in know.full:
        return ""  # interrupted before anything ran
    if own is None or not searched(ctx) or gathered(ctx):
        return ""
    if tried := [settings for settings in know.full if changed(ctx, settings)]:
        return _why_given_up(know, tried)
    size = min(_sizes_over(know, own), default=None)
    if size is None:
        return ""
    larger = know.incumbent.replace(batch_size=size)
    capped = caps(ctx, size)
    if capped or (held_back := _held_back(know, size)):
        return capped[0] if capped else held_back
    double = know.ctx.space.stood_in_for(size)
    if double is not None and (beyond := caps(ctx, double)):
        return f"{beyond[0]}, and {_why_not_now(know, larger)}"
    return _why_not_now(know, larger)


def _why_given_up(know: Knowledge, tried: Sequence[Settings]) -> str:
    """That the other batches that ran were behind; empty where one ran to its end: it is in the table."""
    if not all(map(know.gave_up, tried)):
        return ""
    best = max(tried, key=know.rate)
    weight = know.ctx.weight(best)
    counted = f", each counted as {weight:.2f} of yours" if weight != 1 else ""
    rate = know.rate(best) / weight
    return f"batches of {best.loader.batch_size} were given up at {rate:,.0f} samples/s{counted}"


def _why_not_now(know: Knowledge, larger: Settings) -> str:
    """Why a larger batch that nothing speaks against was not tried."""
    size = larger.loader.batch_size
    if size is not None and (misfits := _misfits(know, size)):
        return f"batches of {size} do not go with the other settings: {misfits[0]}"
    if would_fail(larger, know.history):
        return f"what failed before says that batches of {size} would fail"
    if know.bound(larger) * know.ctx.weight(larger) < know.rate(know.incumbent):
        return f"at what loader and step reach alone, batches of {size} promise no gain"
    return "the search ended before larger batches had their turn"


def batch_notes(know: Knowledge) -> tuple[str, ...]:
    """Why there is no noise scale behind the batch sizes that were tried, and how far they went for that."""
    ctx = know.ctx
    without = gathered(ctx) or ctx.objective == "throughput"
    if without or not any(changed(ctx, settings) for settings in know.full):
        return ()
    if ctx.look is not None and ctx.look.noise is not None:
        return tuple(f"gradients: {note}" for note in ctx.look.notes)
    after = f" after {ctx.warm:,} warm steps" if ctx.warm else ""
    unseen = f"the budget left no time to look at the gradients{after}"
    why = unseen if ctx.look is None else ctx.look.missing
    return (f"larger batches were tried without a noise scale, so only a little larger: {why}",)
