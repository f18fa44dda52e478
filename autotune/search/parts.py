"""Partial trials: one side of the step alone, to put the full trials in a good order. Pure.

They are run only where a side has many values and such a trial costs clearly less than a full one. Workers
may compete with the step for the same CPUs, so the ranking is only a hint: decisions are made on full trials.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from autotune.measure.stats import rate_interval
from autotune.outcome import Interval
from autotune.search.cost import Costs
from autotune.search.knowledge import Knowledge
from autotune.search.lessons import would_fail
from autotune.settings import GROUPS, KnobValue, Settings
from autotune.space.candidates import bundle, neighbours
from autotune.space.rules import needs_own_process
from autotune.trial import TrialSpec

_MANY = 4
"""Alternatives on a side below which full trials are as quick a way."""
_CHEAP = 0.7
"""A partial trial must cost less than this part of a full one."""
_SHARE = 0.35
"""All partial trials of a side may take this part of the time left for the search."""
_RISE = 1.03
"""More workers must bring this factor, or the ladder is not climbed further."""
_ENOUGH = 1.2
"""A loader this much faster than the step keeps it fed."""
_CONFIDENCE = 0.8
"""Of the intervals that must be apart before a step's switch counts as better alone: a GPU that waits for the
host to launch its kernels shows a tenth more or less from one second to the next."""


def base(know: Knowledge) -> Settings:
    """What the partial trials vary: the bundle where it ran, else *yours*; the same from first to last."""
    first = bundle(know.ctx.space)
    return first if first in know.full else know.yours


def next_part(know: Knowledge, costs: Costs, room_s: float, sides: Sequence[str]) -> TrialSpec | None:
    """The next partial trial of one of `sides` (`compute`, `loader`); None when done or not worth it."""
    if "compute" in sides:
        variants = _compute_variants(know)
        untried = [s for s in variants if know.partial("compute", s) is None]
        if untried and _worth_it(costs, "compute", len(variants), len(untried), room_s):
            changed = describe_change(base(know), untried[0])
            return costs.search_spec(untried[0], "compute", changed or "the step alone", "compute")
    if "loader" in sides:
        ladder = _ladder(know)
        settings = _next_rung(know, ladder)
        if settings is not None and _worth_it(costs, "loader", len(ladder), 1, room_s):
            changed = describe_change(base(know), settings)
            return costs.search_spec(settings, "loader", changed or "the loader alone", "loader")
    return None


def predicted(know: Knowledge) -> tuple[Settings, ...]:
    """Full settings to try because their parts were best alone, the best guess first."""
    start = base(know)
    compute, loader = _best_compute(know), _best_loader(know)
    shared = {knob: value for knob, value in compute.items() if knob != "cpu_threads"}
    found = [_changed(know, {**compute, **loader})]
    if compute and loader:
        found.append(_changed(know, compute))
    if shared and "cpu_threads" in compute:
        # Alone the step does best with every CPU; beside workers it may with those that the base leaves it.
        found.insert(0, _changed(know, {**shared, **loader}))
    if shared and start != know.yours and know.rate(start) < know.rate(know.yours):
        # What slowed the base is as likely its workers, and what the step gained does not depend on them.
        found.insert(0, _onto(know, know.yours, shared))
    return tuple(dict.fromkeys(s for s in found if s != start))


def describe_change(old: Settings, new: Settings) -> str:
    """`num_workers 2 -> 4, pin_memory False -> True`."""
    before = old.flat()
    return ", ".join(f"{knob} {before[knob]} -> {value}" for knob, value in new.changed_from(old).items())


def next_workers(
    ladder: Sequence[int], start: int, rates: Mapping[int, float], enough: float | None
) -> int | None:
    """The worker count to measure next on the way from `start`; None when the way is clear.

    Upwards while it pays and the loader is not yet fast enough; downwards, but not to none, while it is.
    """
    here = ladder.index(start)
    if start not in rates:
        return start
    if enough is not None and rates[start] >= enough:
        for count in reversed(ladder[:here]):
            if count == 0:
                return None
            if count not in rates:
                return count
            if rates[count] < enough:
                return None
        return None
    for lower, count in zip(ladder[here:], ladder[here + 1 :]):
        if count not in rates:
            return count
        if rates[count] < _RISE * rates[lower] or (enough is not None and rates[count] >= enough):
            return None
    return None


def _worth_it(costs: Costs, side: Literal["compute", "loader"], size: int, left: int, room_s: float) -> bool:
    full = costs.search_spec(costs.know.incumbent, "joint", "")
    part_s = costs.predicted_s(costs.search_spec(base(costs.know), side, "", side))
    cheap = part_s < _CHEAP * costs.predicted_s(full)
    return size >= _MANY and cheap and left * part_s <= _SHARE * room_s


def _compute_variants(know: Knowledge) -> tuple[Settings, ...]:
    start, space = base(know), know.ctx.space
    # Memory that is kept is a move of its own (ADR 0010): each final beside it starts a process. So is what
    # is compiled, as it takes longer than any trial.
    own = start.compute
    moved = [
        s
        for _, s in neighbours(space, start, "compute")
        if space.legal(s)
        and (s.compute.keep_host_memory, s.compute.compile) == (own.keep_host_memory, own.compile)
    ]
    alike = sorted(moved, key=lambda s: needs_own_process(start, s))  # what needs another process comes last
    return tuple(s for s in dict.fromkeys([start, *alike]) if not would_fail(s, know.history))


def _best_compute(know: Knowledge) -> dict[str, KnobValue]:
    """The knob values that were better alone than those of the base: by more than a percent, and surely."""
    start = base(know)
    reference = _alone(know, start)
    best: dict[str, tuple[float, KnobValue]] = {}
    for settings in _compute_variants(know):
        changed = {k: v for k, v in settings.changed_from(start).items() if k in GROUPS["compute"]}
        rate = _alone(know, settings)
        if reference is None or rate is None or len(changed) != 1:
            continue
        if rate.value <= 1.01 * reference.value or rate.low <= reference.high:
            continue
        ((knob, value),) = changed.items()
        if rate.value > best.get(knob, (0.0, None))[0]:
            best[knob] = (rate.value, value)
    return {knob: value for knob, (_, value) in best.items()}


def _alone(know: Knowledge, settings: Settings) -> Interval | None:
    """Samples/s of the step alone under these settings, as far as its blocks agree; None where unmeasured."""
    key = (settings.compute, settings.loader.batch_size)
    found = [
        rate_interval(t.measurement.steady, confidence=_CONFIDENCE)
        for t in know.history
        if t.measurement is not None
        and t.spec.mode == "compute"
        and (t.settings.compute, t.settings.loader.batch_size) == key
    ]
    return max(found, key=lambda interval: interval.value, default=None)


def _ladder(know: Knowledge) -> list[int]:
    counts = [v for v in know.ctx.space.values("num_workers") if isinstance(v, int)]
    return sorted({*counts, base(know).loader.num_workers})


def _with_workers(know: Knowledge, count: int) -> Settings:
    return _changed(know, {"num_workers": count})


def _changed(know: Knowledge, changes: Mapping[str, KnobValue]) -> Settings:
    """The base with these options changed, in the space's spelling."""
    return _onto(know, base(know), changes)


def _onto(know: Knowledge, start: Settings, changes: Mapping[str, KnobValue]) -> Settings:
    space = know.ctx.space
    flat = start.flat()
    if all(flat[knob] == value for knob, value in changes.items()):
        return start
    return space.settings(**{**{knob: flat[knob] for knob in space.names}, **changes})


def _rung_rates(know: Knowledge, ladder: Sequence[int]) -> dict[int, float]:
    rates = {}
    for count in ladder:
        settings = _with_workers(know, count)
        rate = know.partial("loader", settings)
        if rate is None and (not know.ctx.space.legal(settings) or would_fail(settings, know.history)):
            rate = 0.0
        if rate is not None:
            rates[count] = rate
    return rates


def _enough(know: Knowledge) -> float | None:
    return _ENOUGH * max(know.compute_rates.values()) if know.compute_rates else None


def _next_rung(know: Knowledge, ladder: Sequence[int]) -> Settings | None:
    start = base(know).loader.num_workers
    count = next_workers(ladder, start, _rung_rates(know, ladder), _enough(know))
    return None if count is None else _with_workers(know, count)


def _best_loader(know: Knowledge) -> dict[str, KnobValue]:
    """The fewest workers that keep the step fed, else those that load fastest; nothing where unmeasured."""
    rates = {count: rate for count, rate in _rung_rates(know, _ladder(know)).items() if count and rate}
    if len(rates) < 2:
        return {}
    enough = _enough(know)
    fed = [count for count, rate in rates.items() if enough is not None and rate >= enough]
    count = min(fed) if fed else max(rates, key=lambda c: rates[c])
    return {"num_workers": count} if count != base(know).loader.num_workers else {}
