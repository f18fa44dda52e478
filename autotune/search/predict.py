"""Which untried settings the step-time model expects most of. Pure: the same history, the same answer."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from autotune.search.compiling import first_s
from autotune.search.knowledge import Knowledge
from autotune.search.physics import Array, Coded, Seen, StepModel, code, fit
from autotune.settings import Settings
from autotune.space.candidates import Space, neighbours
from autotune.space.knobs import KNOBS, MoveGroup
from autotune.space.rules import GRAPH_MODES, accelerator
from autotune.trial import Trial

MAX_CANDIDATES = 2000
"""Settings that are predicted; of a larger space as many are drawn, and all near the incumbent."""
WEIGHED = 400
"""Of these the ones with the best means are given a standard deviation."""
_CONTENDERS = 40
"""Tried settings among which the model looks for the best so far: those with the best measured rates."""
_DISTURBED = 2.0
"""Times the usual noise of a trial that was disturbed or given up."""
_GROUPS: tuple[MoveGroup, ...] = tuple(dict.fromkeys(each.group for each in KNOBS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What the model expects of untried settings."""

    settings: Settings
    log_rate: float
    """Natural logarithm of effective samples/s, starts included."""
    sd: float
    """Its standard deviation."""
    lead: float
    """`log_rate` over that of the best settings so far."""
    gain: float
    """Expected improvement: the mean of what a lead above 0 is, taken as 0 below."""
    peak_device_bytes: int | None = None
    """Device memory by the trials' own trend over the batch size; None where that is unknown."""


def observations(know: Knowledge) -> tuple[Seen, ...]:
    """What was measured, one entry for each settings and mode, repeats pooled."""
    pooled: dict[tuple[str, Settings], list[Trial]] = {}
    for trial in know.history:
        if trial.measurement is not None and trial.spec.stage not in ("final", "worth"):
            pooled.setdefault((trial.spec.mode, trial.settings), []).append(trial)
    return tuple(_seen(know, trials) for trials in pooled.values())


def _seen(know: Knowledge, trials: Sequence[Trial]) -> Seen:
    variances, logs = [], []
    for trial in trials:
        assert trial.measurement is not None
        doubtful = trial.measurement.disturbed or trial.measurement.stopped == "gave_up"
        variances.append((know.noise * (_DISTURBED if doubtful else 1.0)) ** 2)
        # The same correction for the machine's own speed that the search compares rates with.
        speed = know.comparable(trial) / know.effective(trial)
        logs.append(math.log(trial.measurement.samples_per_s * speed))
    precision = sum(1 / v for v in variances)
    return Seen(
        settings=trials[0].settings,
        mode=trials[0].spec.mode,
        log_rate=sum(x / v for x, v in zip(logs, variances)) / precision,
        noise=max(math.sqrt(1 / precision), 0.003),
    )


def model_of(know: Knowledge) -> StepModel | None:
    """The model after this history; None while nothing was measured."""
    seen = observations(know)
    return fit(know.ctx.space, seen) if seen else None


def predictions(know: Knowledge) -> tuple[Prediction, ...]:
    """Every untried candidate, the largest expected improvement first. Empty before *yours* has run.

    Settings that need more device memory than there is, by their trend over the batch size, are left out.
    Whether settings are legal beside failures and bounds is the caller's to ask.
    """
    model = model_of(know)
    if model is None or not know.full:
        return ()
    space = know.ctx.space
    settings, coded = _contenders(know, model)
    if not settings:
        return ()
    means, sds = _log_rates(know, model, coded)
    means = means + _log_weights(know, settings)
    standing = [s for s in know.full if s == know.yours or not know.ruled_out(s)]
    tried = sorted(standing, key=know.rate, reverse=True)[:_CONTENDERS]
    best = float(np.max(_log_rates(know, model, code(space, tried))[0] + _log_weights(know, tried)))
    memory = _memory(know)
    gpu = accelerator(space.machine, space.workload)
    limit = None if gpu is None else gpu.memory_bytes
    leads = means - best
    gains = _expected_improvement(leads, sds)
    found = []
    for i in np.argsort(-gains, kind="stable"):
        peak = memory(settings[i])
        too_large = peak is not None and limit is not None and peak > limit
        if settings[i] in know.full or too_large:
            continue
        found.append(
            Prediction(
                settings=settings[i],
                log_rate=float(means[i]),
                sd=float(sds[i]),
                lead=float(leads[i]),
                gain=float(gains[i]),
                peak_device_bytes=peak,
            )
        )
    return tuple(found)


def _contenders(know: Knowledge, model: StepModel) -> tuple[tuple[Settings, ...], Coded]:
    """Untried settings that may win, the `WEIGHED` with the best means, as coded for the model.

    What is far behind cannot have the largest expected improvement, and deviations take the time. What is out
    would take the place of what is not.
    """
    settings, coded = _candidates(know.ctx.space, know.incumbent, know.ctx.seed)
    out: dict[Hashable, bool] = {}
    for one in settings:
        if _judged_by(one) not in out:
            out[_judged_by(one)] = know.barred(one) or know.trains_worse(one)
    if any(out.values()):
        kept = np.array([i for i, one in enumerate(settings) if not out[_judged_by(one)]], dtype=np.int64)
        settings, coded = tuple(settings[i] for i in kept), coded.take(kept)
    if len(settings) > WEIGHED:
        log_s = model.means(coded) - _log_weights(know, settings)
        nearest = np.sort(np.argsort(log_s, kind="stable")[:WEIGHED])
        settings, coded = tuple(settings[i] for i in nearest), coded.take(nearest)
    return settings, coded


def _judged_by(settings: Settings) -> Hashable:
    """What decides whether settings train as *yours* do."""
    return settings.compute.precision, settings.compute.compile, settings.loader.batch_size


def predicted_log_rates(know: Knowledge, settings: Sequence[Settings]) -> tuple[Array, Array]:
    """Log effective samples/s of any settings, and the standard deviations.

    Raises:
        ValueError: where nothing was measured.
    """
    model = model_of(know)
    if model is None:
        raise ValueError("nothing was measured yet")
    return _log_rates(know, model, code(know.ctx.space, settings))


def _log_weights(know: Knowledge, settings: Sequence[Settings]) -> Array:
    """What a sample teaches under each of them, as logarithms."""
    return np.asarray(np.log([know.ctx.weight(one) for one in settings]))


def _expected_improvement(leads: Array, sds: Array) -> Array:
    scaled = leads / sds
    density = np.exp(-(scaled**2) / 2) / math.sqrt(2 * math.pi)
    below = np.array([0.5 * math.erfc(-z / math.sqrt(2)) for z in scaled])
    return np.asarray(np.maximum(leads * below + sds * density, 0.0))


def _log_rates(know: Knowledge, model: StepModel, coded: Coded) -> tuple[Array, Array]:
    log_s, sds = model.predict(coded)
    starts_s = _starts_s(know, coded)
    whole = np.logaddexp(log_s, np.log(np.maximum(starts_s, 1e-12)))
    return -whole, sds * np.exp(log_s - whole)


def _starts_s(know: Knowledge, coded: Coded) -> Array:
    """Seconds of starting that each sample of the user's run bears, by the trials' own trend over workers."""
    samples, epochs = know.samples, know.ctx.epochs
    measured = [(t.settings, t.measurement) for runs in know.full.values() for t in runs if t.measurement]
    if not samples:
        return np.zeros_like(coded.workers)
    starts = [(s.loader.num_workers, m.startup_s) for s, m in measured]
    restarts = [(s.loader.num_workers, m.restart_s) for s, m in measured if not s.loader.persistent_workers]
    kept = [m.restart_s for s, m in measured if s.loader.persistent_workers]
    startup_s = _trend(starts, coded.workers)
    anew_s = _trend(restarts, coded.workers) if restarts else startup_s
    persistent = coded.codes["persistent_workers"].sum(1) > 0
    restart_s = np.where(persistent, statistics.median(kept) if kept else 0.0, anew_s)
    if epochs is None:
        return np.asarray(restart_s / samples)
    warmup_s = _warmup_s(know, coded)
    return np.asarray((warmup_s + startup_s + (epochs - 1) * restart_s) / (epochs * samples))


def _warmup_s(know: Knowledge, coded: Coded) -> Array:
    """What the first steps of a run take beyond steady ones: as a rule, or with what is compiled in them."""
    excess: dict[bool, list[float]] = {False: [], True: []}
    for runs in know.full.values():
        for trial in runs:
            assert trial.measurement is not None, "full trials are measured"
            excess[trial.settings.compute.compile is not None].append(trial.measurement.warmup_excess_s)
    plain_s, compiled = excess[False], excess[True]
    usual_s = statistics.median(plain_s) if plain_s else 0.0
    compiled_s = statistics.median(compiled) if compiled else first_s(know, "default")
    return np.asarray(np.where(coded.compiled > 0, compiled_s, usual_s))


def _trend(points: Sequence[tuple[int, float]], workers: Array) -> Array:
    """A line through seconds over workers, never falling and never under 0."""
    counts = np.array([float(n) for n, _ in points])
    seconds = np.array([s for _, s in points])
    spread = counts - counts.mean()
    slope = max(float(spread @ seconds) / float(spread @ spread + 1.0), 0.0)
    return np.asarray(np.maximum(seconds.mean() + slope * (workers - counts.mean()), 0.0))


def _held_like(settings: Settings) -> tuple[str, bool]:
    """What device memory goes by beside the batch: how wide numbers are, and whether steps are graphs."""
    return settings.compute.precision, settings.compute.compile in GRAPH_MODES


def _memory(know: Knowledge) -> Callable[[Settings], int | None]:
    """Peak device memory by settings: for those held alike a line over the batch sizes that ran."""
    points: dict[tuple[str, bool], dict[int, int]] = {}
    for trial in know.history:
        measured, batch = trial.measurement, trial.settings.loader.batch_size
        if measured is None or measured.peak_device_bytes is None or batch is None:
            continue
        of = points.setdefault(_held_like(trial.settings), {})
        of[batch] = max(of.get(batch, 0), measured.peak_device_bytes)

    def peak_bytes(settings: Settings) -> int | None:
        known, batch = points.get(_held_like(settings), {}), settings.loader.batch_size
        if batch is None or len(known) < 2:
            return known.get(batch) if batch is not None else None
        sizes = np.array([float(size) for size in known])
        slope, constant = np.polyfit(sizes, np.array([float(peak) for peak in known.values()]), 1)
        return max(int(constant + max(slope, 0.0) * batch), 0)

    return peak_bytes


def _candidates(space: Space, incumbent: Settings, seed: int) -> tuple[tuple[Settings, ...], Coded]:
    thinned = _in_doublings(space, incumbent.loader.batch_size)
    drawn = _drawn(space, thinned, seed)
    if _is_small(thinned):
        return drawn
    near = [s for group in _GROUPS for _, s in neighbours(thinned, incumbent, group)]
    near += [s for one in near for group in _GROUPS for _, s in neighbours(thinned, one, group)]
    settings = tuple(dict.fromkeys([*near[: MAX_CANDIDATES // 2], *drawn[0]]))[:MAX_CANDIDATES]
    return settings, code(space, settings)


@lru_cache(maxsize=8)
def _in_doublings(space: Space, size: int | None) -> Space:
    """The space without the batch sizes between doublings, but for the one that is built on.

    They are tried where a doubling is out, not for what the model says, and would halve what it looks at.
    """
    options = tuple(
        replace(option, values=tuple(v for v in option.values if v == size or space.stood_in_for(v) is None))
        if option.knob == "batch_size"
        else option
        for option in space.options
    )
    return replace(space, options=options)


@lru_cache(maxsize=8)
def _is_small(space: Space) -> bool:
    """Whether all combinations of option values are few enough to predict each."""
    return math.prod(len(option.values) for option in space.options) <= 4 * MAX_CANDIDATES


@lru_cache(maxsize=8)
def _drawn(space: Space, thinned: Space, seed: int) -> tuple[tuple[Settings, ...], Coded]:
    """All of a small thinned space, a seeded draw from a large one. The same for the same spaces and seed."""
    names, options = thinned.names, thinned.options
    found: dict[Settings, None] = {space.start: None}
    if _is_small(thinned):
        for values in itertools.product(*(option.values for option in options)):
            found[space.settings(**dict(zip(names, values)))] = None
    else:
        chance = random.Random(seed)
        for _ in range(MAX_CANDIDATES):
            found[space.settings(**{o.knob: chance.choice(o.values) for o in options})] = None
    legal = tuple(s for s in found if space.legal(s))[:MAX_CANDIDATES]
    return legal, code(space, legal)
