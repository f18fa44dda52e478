"""The finals, in which candidates meet *yours* again, and what each setting of the winner is worth. Pure."""

from __future__ import annotations

import math

from autotune.outcome import Verdict, Worth
from autotune.recipe.goodput import LEAST_GAIN
from autotune.search.batch_moves import changed, counted_in
from autotune.search.compiling import is_new
from autotune.search.cost import FINAL_PAIRS, MARGIN, MAX_PAIRS, MIN_PAIRS, TIME_USED_UP, Costs
from autotune.search.knowledge import Knowledge
from autotune.search.verdict import decided, disturbed_search, judge, unless_disturbed
from autotune.search.worth import leave_one_out, worth_of
from autotune.settings import Settings
from autotune.space.rules import simplicity
from autotune.trial import Trial, TrialSpec

NOTICEABLE = 1.01
"""The search must have seen a candidate this many times as fast as *yours*."""
_CLOSE = 0.97
"""A second candidate must come this near to the first one, or it has no chance in the finals."""
_LEAST_KEPT_PAIRS = 5
"""Pairs for which time has to be left when the best with the user's own batch joins one with another."""
FEW = 3
"""Other settings under which a search that ran out of time has not looked."""
_WORTH_PAIRS = 3
CHALLENGE_PAIRS = 6
"""Pairs in which the winner without a setting that costs speed meets the winner and *yours*."""
_BASELINE_STRIKES = 2
"""Failures of *yours* in the finals after which nothing can be compared any more."""


def finals_of(know: Knowledge) -> tuple[Trial, ...]:
    """The finals so far."""
    return tuple(t for t in know.history if t.spec.stage == "final")


def candidates(know: Knowledge, costs: Costs) -> tuple[Settings, ...]:
    """Who meets *yours* in the finals: the incumbent first, then what came near it, as many as time allows.

    Settings that failed in the finals are out. Empty when nothing was noticeably faster than *yours*. Where
    the first has another batch size, the best that keeps the user's meets *yours* as well: it asks less.
    """
    finals = finals_of(know)
    failed = {t.settings for t in finals if t.failure is not None}
    ranked = sorted(know.full, key=lambda settings: (-know.rate(settings), settings.key()))
    order = [
        s
        for s in dict.fromkeys([know.incumbent, *ranked])
        if s not in failed
        and s != know.yours
        and not know.ruled_out(s)
        and know.rate(s) > NOTICEABLE * know.rate(know.yours)
    ]
    time_s = know.ctx.remaining_s + sum(t.measurement.wall_s for t in finals if t.measurement is not None)
    chosen = order[:1]
    if chosen and changed(know.ctx, chosen[0]) and know.ctx.max_candidates > 1:
        kept = [s for s in order if not changed(know.ctx, s)][:1]
        chosen += kept if _LEAST_KEPT_PAIRS * costs.round_s(2) <= time_s else []
    for settings in order[1:]:
        fits = (
            len(chosen) < know.ctx.max_candidates and FINAL_PAIRS * costs.round_s(len(chosen) + 1) <= time_s
        )
        lead, error = know.lead(settings, order[0])
        # Where runs differ by much, the search cannot tell who of those within an error is ahead.
        if fits and settings not in chosen and lead >= min(math.log(_CLOSE), -error):
            chosen.append(settings)
    return tuple(chosen)


def next_final(know: Knowledge, costs: Costs) -> TrialSpec | None:
    """The next run of the finals; None when decided, complete, out of time, or with nobody to meet."""
    chosen = candidates(know, costs)
    finals = finals_of(know)
    if any((t.spec.pair or 0) >= MAX_PAIRS for t in finals):
        return None  # the challenge after the worth has begun: these finals are over
    strikes = sum(t.failure is not None for t in finals if t.settings == know.yours)
    if not chosen or strikes >= _BASELINE_STRIKES:
        return None
    pair = max((t.spec.pair or 0 for t in finals), default=0)
    waiting = _waiting(know, chosen, pair)
    if not waiting:
        pair += 1
        if pair == MAX_PAIRS or _enough(know, chosen):
            return None
        waiting = _waiting(know, chosen, pair)
    specs = [costs.final_spec(s, pair) for s in waiting]
    whole = len(waiting) == 1 + len(chosen)
    needed_s = (MARGIN if whole else 1.0) * sum(costs.predicted_s(spec) for spec in specs)
    if whole and pair >= MIN_PAIRS:
        needed_s += costs.edge_s  # one pair more is worth less than to know that the winner survives an epoch
    return specs[0] if needed_s <= know.ctx.remaining_s else None


def _waiting(know: Knowledge, chosen: tuple[Settings, ...], pair: int) -> list[Settings]:
    """Who has still to run in this pair, in the order in which they do: every other pair goes backwards."""
    sides = (know.yours, *chosen)
    ran = {t.settings for t in finals_of(know) if t.spec.pair == pair}
    return [s for s in (sides if pair % 2 == 0 else sides[::-1]) if s not in ran]


def _enough(know: Knowledge, chosen: tuple[Settings, ...]) -> bool:
    return decided(
        know.yours,
        chosen,
        finals_of(know),
        samples=know.samples,
        epochs=know.ctx.epochs,
        weight=know.ctx.weight,
    )


def challenge_of(know: Knowledge, costs: Costs) -> tuple[Settings, Settings] | None:
    """The winner, and the winner without a setting that surely costs speed: it belongs in the finals too.

    The search can miss it on a machine whose speed changes, and the worth then shows it. Decided on the
    finals before the challenge, so that the answer does not change while the challenge runs.
    """
    before = tuple(t for t in know.history if t.spec.stage != "final" or (t.spec.pair or 0) < MAX_PAIRS)
    then = Knowledge(know.ctx, before)
    verdict = judged(then, costs)
    if verdict.kind != "faster":
        return None
    without = {knob: s for knob, s in without_each(then, verdict.winner) if not then.ruled_out(s)}
    costly = {
        worth.knob: worth.ratio.value
        for worth in worths(then, verdict)
        if worth.knob in without and worth.ratio is not None and worth.ratio.high < 1
    }
    return (verdict.winner, without[min(costly, key=lambda knob: costly[knob])]) if costly else None


def next_challenge(know: Knowledge, costs: Costs) -> TrialSpec | None:
    """The next run in which *yours*, the winner and its challenger meet; None without one, or when done."""
    both = challenge_of(know, costs)
    if both is None:
        return None
    sides = (know.yours, *both)
    ran = {(t.spec.pair or 0, t.settings) for t in finals_of(know)}
    if any(t.failure is not None and t.settings in sides for t in finals_of(know)):
        return None
    for pair in range(MAX_PAIRS, MAX_PAIRS + CHALLENGE_PAIRS):
        order = sides if pair % 2 == 0 else sides[::-1]
        waiting = [costs.final_spec(s, pair) for s in order if (pair, s) not in ran]
        if not waiting:
            continue
        rounds = MIN_PAIRS if pair == MAX_PAIRS and len(waiting) == len(sides) else 1
        needed_s = MARGIN * rounds * sum(costs.predicted_s(spec) for spec in waiting) + costs.edge_s
        return waiting[0] if needed_s <= know.ctx.remaining_s else None
    return None


def ratio_beside(know: Knowledge, trial: Trial) -> float | None:
    """The rate of a full trial over that of *yours*, to be shown while it runs; None where *yours* has none.

    A final is held against the final of *yours* that ran last: the machine may have another speed by then.
    """
    if know.yours not in know.full:
        return None
    if trial.spec.stage != "final":
        return know.comparable(trial) / know.rate(know.yours)
    theirs = [t for t in finals_of(know) if t.settings == know.yours and t.measurement is not None]
    return know.effective(trial) / know.effective(theirs[-1]) if theirs else None


def _unproven(know: Knowledge) -> str:
    """What would have had to be done with settings that were faster than *yours*; empty without such."""
    faster = [s for s in know.full if know.rate(s) > NOTICEABLE * know.rate(know.yours)]
    if any(know.unpiloted(s) for s in faster):
        return "train a while in the batch size that was faster"
    return "compare the steps of what was faster with yours" if any(map(know.unchecked, faster)) else ""


def judged(know: Knowledge, costs: Costs) -> Verdict:
    """The verdict on the finals so far; *yours* is kept when nothing met it."""
    met = {t.settings: None for t in finals_of(know) if t.settings != know.yours}
    cramped = [settings for settings in met if know.no_room(settings)]
    met = {settings: None for settings in met if settings not in cramped}
    if cramped and not met:
        sentence = "yours stays: what was faster left next to none of the GPU's memory free"
        return Verdict(kind="kept", winner=know.yours, sentence=sentence)
    if met:
        verdict = judge(
            know.yours,
            tuple(met),
            finals_of(know),
            samples=know.samples,
            epochs=know.ctx.epochs,
            simpler=simplicity,
            weight=know.ctx.weight,
            price=lambda settings: LEAST_GAIN if changed(know.ctx, settings) else 1.0,
        )
        return counted_in(know.ctx, unless_disturbed(verdict, know.yours, finals_of(know)))
    worse = [
        s for s in know.full if know.trains_worse(s) and know.rate(s) > NOTICEABLE * know.rate(know.yours)
    ]
    if worse and not candidates(know, costs):
        sentence = "yours stays: what was faster does not train the same"
        return Verdict(kind="kept", winner=know.yours, sentence=sentence)
    unseen = _unproven(know) if know.ctx.search_over and not candidates(know, costs) else ""
    if unseen:
        return Verdict(
            kind="unsure", winner=know.yours, sentence=f"yours stays: no time was left to {unseen}"
        )
    others = sum(1 for s in know.full if s != know.yours)
    if others and candidates(know, costs):
        sentence = "yours stays: no time was left to confirm what looked faster"
        return Verdict(kind="unsure", winner=know.yours, sentence=sentence)
    spoiled, measured = disturbed_search(know.yours, know.history)
    if measured and 2 * spoiled >= measured:
        sentence = f"yours stays: something else disturbed {spoiled} of {measured} trials of other settings"
        return Verdict(kind="unsure", winner=know.yours, sentence=sentence)
    tried = {t.settings for t in know.history if t.spec.mode == "full"} - {know.yours}
    if 0 < len(tried) < FEW and know.ctx.search_over == TIME_USED_UP:
        others_text = f"{len(tried)} other settings" if len(tried) > 1 else "one other setting"
        sentence = f"yours stays: the budget had time for {others_text}, and none was more than 1 % faster"
        return Verdict(kind="unsure", winner=know.yours, sentence=sentence)
    sentence = (
        f"yours stays: none of {len(tried)} other settings was more than 1 % faster"
        if tried
        else f"yours stays: {know.ctx.search_over or 'nothing else was tried'}"
    )
    return Verdict(kind="kept", winner=know.yours, sentence=sentence)


def without_each(know: Knowledge, winner: Settings) -> tuple[tuple[str, Settings], ...]:
    """The winner with one changed knob set back to *yours*, for each knob, where that is legal to run."""
    space = know.ctx.space
    found = leave_one_out(winner, know.yours, space.canonical)
    return tuple((knob, settings) for knob, settings in found if space.legal(settings))


def next_worth(know: Knowledge, costs: Costs) -> TrialSpec | None:
    """The next run that shows what a setting of the winner brings; None when all is known or time is over."""
    verdict = judged(know, costs)
    if verdict.kind != "faster":
        return None
    winner = verdict.winner
    others = dict.fromkeys(settings for _, settings in without_each(know, winner))
    # What would have to be compiled for it would be told a cost that the winner has behind it.
    runs = [winner, *(settings for settings in others if not is_new(know, settings))]
    worth = [t for t in know.history if t.spec.stage == "worth"]
    broken = {t.settings for t in worth if t.failure is not None}
    if winner in broken:
        return None
    for pair in range(_WORTH_PAIRS):
        ran = {t.settings for t in worth if t.spec.pair == pair}
        if pair == 0:
            runs = _shown(know, costs, [s for s in runs if s not in broken], ran)
        waiting = [s for s in (runs if pair % 2 == 0 else runs[::-1]) if s not in ran and s not in broken]
        if len(runs) == 1 or not waiting:
            continue
        specs = [costs.worth_spec(s, pair, _left_out(winner, s)) for s in waiting]
        margin = MARGIN if pair > 1 else 1.0  # the second pair was reckoned with before the first one began
        needed_s = 0.0 if pair == 0 else margin * sum(costs.predicted_s(spec) for spec in specs)
        return specs[0] if needed_s <= know.ctx.remaining_s else None
    return None


def _shown(know: Knowledge, costs: Costs, runs: list[Settings], ran: set[Settings]) -> list[Settings]:
    """The winner and as many without a setting as there is time to run twice: one pair shows nothing.

    Once the second pair has begun, those that ran in the first.
    """
    first, *others = runs
    again = any(t.spec.stage == "worth" and t.spec.pair == 1 for t in know.history)
    chosen = [first]
    for settings in others:
        wanted = [*chosen, settings]
        twice = [costs.worth_spec(s, 0, "") for s in (*(s for s in wanted if s not in ran), *wanted)]
        needed_s = (1.0 if ran else MARGIN) * sum(costs.predicted_s(spec) for spec in twice)
        if settings in ran or (not again and needed_s <= know.ctx.remaining_s):
            chosen.append(settings)
    return chosen


def _left_out(winner: Settings, settings: Settings) -> str:
    changed = settings.changed_from(winner)
    return f"the winner without its {next(iter(changed))}" if changed else "the winner"


def worths(know: Knowledge, verdict: Verdict) -> tuple[Worth, ...]:
    """What each changed setting of the winner brings, as far as it was measured.

    Knobs that cannot be set back alone have no entry, such as the prefetch factor that came with the first
    worker.
    """
    if verdict.kind != "faster":
        return ()
    winner, yours = verdict.winner, know.yours
    changed = winner.changed_from(yours)
    if len(changed) == 1:
        ((knob, value),) = changed.items()
        return (Worth(knob=knob, yours=yours.flat()[knob], best=value, ratio=verdict.ratio),)
    return tuple(
        worth_of(
            knob,
            winner,
            without,
            know.history,
            yours=yours,
            samples=know.samples,
            epochs=know.ctx.epochs,
            weight=know.ctx.weight,
        )
        for knob, without in without_each(know, winner)
    )
