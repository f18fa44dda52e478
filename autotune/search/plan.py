"""What to try next and when to stop: a pure function of the space, the history and the time left.

    yours -> two ceilings -> bundle -> the loader's moves, where the step only waits -> partial trials ->
    their best parts together -> a look at the gradients and larger batches, where learning may change ->
    moves of one knob from the incumbent, on the side that the bottleneck names -> the sampler -> finals ->
    the winner across the end of an epoch -> worth

Settings that change rounding are compared with *yours* step by step before they are built on, or win;
another batch size is trained a while beside the user's own.

Every decision can be replayed: the same history and times give the same moves.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from itertools import islice

from autotune.search import batch_moves
from autotune.search.compiling import next_s, pays_back, too_dear
from autotune.search.context import PlanContext
from autotune.search.cost import MIN_PAIRS, TIME_USED_UP, Costs
from autotune.search.decision import (
    CheckNumerics,
    EndSearch,
    Finish,
    LookAtGradients,
    Move,
    Run,
    Sample,
    TrainBoth,
)
from autotune.search.edge import next_edge
from autotune.search.finals import candidates, next_challenge, next_final, next_worth
from autotune.search.guard import early_check, next_check
from autotune.search.guard import reserve_s as guard_s
from autotune.search.knowledge import Knowledge
from autotune.search.moves import (
    confirm,
    next_compiled,
    next_single,
    open_groups,
    second_look,
    untried,
    worth_trying_now,
)
from autotune.search.parts import next_part, predicted
from autotune.search.pilot import early_pilot, next_pilot, settled
from autotune.search.pilot import reserve_s as pilot_s
from autotune.search.predict import Prediction, predictions
from autotune.search.worthwhile import LARGE, PROMISING, Outlook, why_stop
from autotune.settings import Settings
from autotune.space.candidates import bundle
from autotune.space.knobs import MoveGroup, knob
from autotune.trial import Mode, Trial, TrialSpec

AGAIN_SHARE = 0.1
"""A disturbed run is repeated for at most this part of the time that is left for the search."""
REFERENCE_RUNS = 8
"""Full trials after which *yours* is measured again; half of them where that took `REFERENCE_SHARE`."""
REFERENCE_SHARE = 0.2
"""Part of the whole time for the search."""
REFERENCE_COST = 0.05
"""*Yours* is measured again for at most this part of the time that is left for the search."""
NOISY = 0.03
"""Spread from run to run (log) above which the best so far is confirmed before others are held against it."""
STARVED = 0.75
"""Part of the time that the step waits, above which the loader's moves come before all others."""
IN_VAIN = 6
"""Sampled settings without a gain after which the sampler is stopped."""

_CEILINGS: tuple[tuple[Mode, str], ...] = (
    ("loader", "what the loader alone delivers"),
    ("compute", "what the step alone takes"),
)


def next_move(ctx: PlanContext, history: Sequence[Trial]) -> Move:
    """The next move of a run. *Yours* is asked for until a trial of it measured."""
    ctx = settled(ctx, history)
    know = Knowledge(ctx, history)
    costs = Costs(know)
    if know.yours not in know.full:
        return _timed(costs, Run(spec=_yours(costs)), ctx.remaining_s)
    if not ctx.search_over:
        return _search(know, costs)
    chosen = _if_all_trained_the_same(know, costs)
    pilot = next_pilot(know, costs, chosen)
    if pilot is not None:
        return TrainBoth(spec=pilot)
    check = next_check(know, costs, chosen)
    if check is not None:
        return CheckNumerics(spec=check)
    spec = next_final(know, costs) or next_challenge(know, costs)
    spec = spec or next_edge(know, costs) or next_worth(know, costs)
    if spec is None:
        return Finish()
    return _timed(costs, Run(spec=spec), ctx.remaining_s)


def _if_all_trained_the_same(know: Knowledge, costs: Costs) -> tuple[Settings, ...]:
    """Who would be candidates if every batch size had been trained in, and every precision compared."""
    ctx = settled(dataclasses.replace(know.ctx, search_over=""), know.history)
    return candidates(Knowledge(ctx, know.history), costs)


def needed_s(ctx: PlanContext, history: Sequence[Trial]) -> float:
    """Seconds still needed, once *yours* has run, to find anything at all; 0 with nothing to search."""
    know = Knowledge(ctx, history)
    return Costs(know).least_s if _searchable(ctx) else 0.0


def _searchable(ctx: PlanContext) -> bool:
    return bool(ctx.space.options) or ctx.space.start != ctx.space.yours


def sampled(know: Knowledge, costs: Costs, room_s: float, settings: Settings) -> Run | None:
    """The run of settings that the sampler drew; None where they are not worth it or do not fit the time."""
    if not worth_trying_now(know, settings):
        return None
    spec = costs.search_spec(settings, "sampled", "proposed by the sampler")
    return _timed(costs, Run(spec=spec), room_s) if costs.predicted_s(spec) <= room_s else None


def _yours(costs: Costs) -> TrialSpec:
    know = costs.know
    return TrialSpec(
        settings=know.yours,
        stage="yours",
        reason="what you run today",
        window_s=costs.window_s,
        seed=know.ctx.seed,
    )


def _timed(costs: Costs, move: Run, room_s: float) -> Run:
    """The move with its timeout, within the seconds that it may use."""
    patience_s = costs.patience_s(move.spec)
    spec = dataclasses.replace(move.spec, timeout_s=min(patience_s, room_s))
    if spec.window_cap_s is not None:
        # Going on until it is clear who is ahead must not cost the trial its end.
        spare_s = max(0.0, room_s - costs.predicted_s(move.spec))
        spec = dataclasses.replace(spec, window_cap_s=min(spec.window_cap_s, spec.window_s + spare_s))
    return dataclasses.replace(move, spec=spec, capped=room_s < patience_s)


def _search(know: Knowledge, costs: Costs) -> Move:
    if not _searchable(know.ctx):
        return EndSearch(reason="there was nothing to search")
    room_s = know.ctx.remaining_s - _reserve_s(know, costs) - guard_s(know) - pilot_s(know)
    check = early_check(know, room_s)
    if check is not None:
        return CheckNumerics(spec=check)
    move = _wanted(know, costs, room_s)
    if not isinstance(move, Run):
        return move
    if costs.predicted_s(move.spec) <= room_s:
        return _timed(costs, move, room_s)
    compiling_s = next_s(know, move.spec.settings)
    if 0 < compiling_s < know.ctx.compile_room_s:  # what compiles less may fit
        less = Knowledge(dataclasses.replace(know.ctx, compile_room_s=compiling_s), know.history)
        return _search(less, Costs(less))
    return EndSearch(reason=TIME_USED_UP)


def _reserve_s(know: Knowledge, costs: Costs) -> float:
    """What the search leaves to the finals: the fewest pairs while there is nobody yet to meet *yours*.

    A large lead over *yours* shows in few pairs, and more of it may be near.
    """
    chosen = candidates(know, costs)
    if not chosen:
        return min(costs.reserve_s, MIN_PAIRS * costs.round_s())
    lead, error = know.lead(chosen[0], know.yours)
    return costs.short_reserve_s if lead - 2 * error > LARGE else costs.reserve_s


def _wanted(
    know: Knowledge, costs: Costs, room_s: float
) -> Run | Sample | LookAtGradients | TrainBoth | EndSearch:
    spec = _again(know, costs, room_s) or _ceiling(know, costs, room_s)
    spec = spec or _race(know, costs) or _reference(know, costs, room_s) or _fixed(know, costs)
    spec = spec or _before(know, costs) or _put_back(know, costs)
    if spec is not None:
        return Run(spec=spec)
    groups = open_groups(know)
    if not groups:
        return EndSearch(reason="the ceilings leave nothing to gain")
    spec = _advice(know, costs, groups) or _feed(know, costs, groups)
    spec = spec or next_part(know, costs, room_s, groups) or _parts(know, costs)
    spec = spec or next_compiled(know, costs, groups)
    if spec is not None:
        return Run(spec=spec)
    return _larger_batch(know, costs, room_s) or _look_on(know, costs, room_s, groups)


def _feed(know: Knowledge, costs: Costs, groups: Sequence[MoveGroup]) -> TrialSpec | None:
    """A move of the loader that should win, while the step does little but wait: nothing else brings much."""
    feeding = [group for group in groups if group in ("loader", "transfer")]
    if know.latest(know.incumbent).wait_share < STARVED or not feeding:
        return None
    promising = [prediction for prediction in predictions(know) if prediction.lead > 0]
    spec = next_single(know, costs, feeding, promising)
    expected = {prediction.settings for prediction in promising}
    return spec if spec is not None and spec.settings in expected else None


def _larger_batch(know: Knowledge, costs: Costs, room_s: float) -> Run | LookAtGradients | TrainBoth | None:
    """A look at the gradients, then the next size up from the incumbent's, then a pilot of the last one."""
    look = batch_moves.next_look(know, room_s)
    if look is not None:
        return LookAtGradients(spec=look)
    spec = batch_moves.next_batch(know, costs)
    if spec is not None:
        return Run(spec=spec)
    pilot = early_pilot(know, room_s)
    return TrainBoth(spec=pilot) if pilot is not None else None


def _look_on(
    know: Knowledge, costs: Costs, room_s: float, groups: Sequence[MoveGroup]
) -> Run | Sample | EndSearch:
    """What the model expects most of and the moves of one knob in turn; then the model and the sampler.

    Neither the model nor the order of the moves is right on every machine, so neither is followed alone.
    """
    expected = predictions(know)
    paying = (p for p in expected if pays_back(know, p.settings, p.gain))
    found = tuple(islice((p for p in paying if worth_trying_now(know, p.settings)), PROMISING))
    stop = why_stop(_outlook(know, costs, found))
    in_vain = know.sampled_in_vain >= IN_VAIN
    # Where runs differ by much, what is built on one lucky run is built on nothing.
    if know.noise > NOISY and (again := confirm(know, costs)) is not None:
        return Run(spec=again)
    pick = None if stop or in_vain or not found else _predicted(costs, found[0])
    move = None if stop else next_single(know, costs, groups, expected)
    models_turn = sum(t.spec.mode == "full" for t in know.history) % 2 == 1
    spec = (pick if models_turn and move is not None else None) or move
    spec = spec or confirm(know, costs) or second_look(know, costs)
    if spec is not None:
        return Run(spec=spec)
    if stop or in_vain:
        return EndSearch(reason=stop or f"no gain in {IN_VAIN} sampled settings after a full round of moves")
    if pick is not None and (models_turn or know.ctx.exhausted):
        return Run(spec=pick)
    if know.ctx.exhausted:
        spec = untried(know, costs)
        return EndSearch(reason="nothing new was left to try") if spec is None else Run(spec=spec)
    usual_s = costs.predicted_s(costs.search_spec(know.incumbent, "sampled", ""))
    return Sample(room_s=room_s) if usual_s <= room_s else EndSearch(reason=TIME_USED_UP)


def _outlook(know: Knowledge, costs: Costs, found: Sequence[Prediction]) -> Outlook:
    specs = [_predicted(costs, prediction) for prediction in found]
    epochs, samples = know.ctx.epochs, know.samples
    return Outlook(
        gains=tuple(prediction.gain for prediction in found),
        cost_s=sum(costs.predicted_s(spec) for spec in specs),
        training_s=epochs * samples / know.rate(know.incumbent) if epochs and samples else None,
    )


def _predicted(costs: Costs, prediction: Prediction) -> TrialSpec:
    lead, percent = math.exp(prediction.lead), 100 * prediction.sd
    reason = f"the step-time model expects {lead:.2f}x the best so far, give or take {percent:.0f} %"
    return costs.search_spec(prediction.settings, "sampled", reason)


def _ceiling(know: Knowledge, costs: Costs, room_s: float) -> TrialSpec | None:
    """What each side of *yours* does alone: without a loader there is one side only.

    Good to know, but not at the price of the only trial that a short budget allows.
    """
    if not know.ctx.space.workload.has_loader:
        return None
    full_s = costs.predicted_s(costs.search_spec(know.incumbent, "joint", ""))
    ran = {t.spec.mode for t in know.history if t.spec.stage == "ceiling"}
    left = [(mode, reason) for mode, reason in _CEILINGS if mode not in ran]
    specs = [costs.search_spec(know.yours, "ceiling", reason, mode) for mode, reason in left]
    # One alone may say that nothing is left to gain where both would not: both fit, or none is begun.
    needed_s = sum(costs.predicted_s(spec) for spec in specs) + 2 * full_s
    return specs[0] if specs and needed_s <= room_s else None


def _again(know: Knowledge, costs: Costs, room_s: float) -> TrialSpec | None:
    """One more run of settings that something else disturbed, where it costs little of the time left."""
    if know.again is None:
        return None
    spec = costs.search_spec(know.again, "joint", "disturbed by something else, measured again")
    return spec if costs.predicted_s(spec) <= AGAIN_SHARE * room_s else None


def _race(know: Knowledge, costs: Costs) -> TrialSpec | None:
    if know.race is None:
        return None
    return costs.search_spec(know.race, "joint", "too close to tell, measured again")


def _reference(know: Knowledge, costs: Costs, room_s: float) -> TrialSpec | None:
    """*Yours* again, where it last ran long ago and a run of it costs little of the time left."""
    last = max(i for i, t in enumerate(know.history) if t.settings == know.yours and t.spec.mode == "full")
    since = know.history[last + 1 :]
    runs = sum(t.spec.mode == "full" for t in since)
    searched_s = sum(t.wall_s for t in know.history[know.ctx.earlier :])
    long_ago = sum(t.wall_s for t in since) >= REFERENCE_SHARE * (searched_s + room_s)
    if runs < REFERENCE_RUNS and not (long_ago and runs >= REFERENCE_RUNS / 2):
        return None
    spec = costs.reference_spec()
    return spec if costs.predicted_s(spec) <= REFERENCE_COST * room_s else None


def _fixed(know: Knowledge, costs: Costs) -> TrialSpec | None:
    """What the user fixed is compared with *yours* in any case."""
    start = know.ctx.space.start
    wanted = worth_trying_now(know, start)
    return costs.search_spec(start, "joint", "yours with what you fixed") if wanted else None


def _before(know: Knowledge, costs: Costs) -> TrialSpec | None:
    """What won on the like of this workload before: a guess like any other, compiled where there is room."""
    own = know.yours.compute.compile
    for earlier in know.ctx.first:
        settings = earlier.replace(compile=own) if too_dear(know, earlier) else earlier
        if worth_trying_now(know, settings):
            return costs.search_spec(settings, "joint", "what won here before")
    return None


def _put_back(know: Knowledge, costs: Costs) -> TrialSpec | None:
    """The fastest of what trains worse, with what is to blame as in *yours*: all else may be right."""
    coarse = [s for s in know.full if (found := know.numerics(s)) is not None and found.kind == "worse"]
    if not coarse:
        return None
    fastest, own = max(coarse, key=know.rate), know.yours.compute
    for settings, how in (
        (fastest.replace(compile=own.compile), "not compiled"),
        (fastest.replace(precision=own.precision), "in your own precision"),
        (
            fastest.replace(compile=own.compile, precision=own.precision),
            "in your own precision, not compiled",
        ),
    ):
        if settings != fastest and worth_trying_now(know, settings):
            return costs.search_spec(settings, "joint", f"the fastest, {how}")
    return None


def _advice(know: Knowledge, costs: Costs, groups: Sequence[MoveGroup]) -> TrialSpec | None:
    space = know.ctx.space
    first = bundle(space)
    moved = {knob(name).group for name in first.changed_from(space.start)}
    if moved.isdisjoint(groups) or not worth_trying_now(know, first):
        return None
    return costs.search_spec(first, "joint", "the usual advice for such a machine")


def _parts(know: Knowledge, costs: Costs) -> TrialSpec | None:
    """The best parts together."""
    for settings in predicted(know):
        if worth_trying_now(know, settings):
            return costs.search_spec(settings, "joint", "the best parts together")
    return None
