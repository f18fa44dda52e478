"""What compiling a model costs, and whether a run has room for it. Pure.

The first time takes seconds to minutes. Later ones read what torch keeps on disk: every trial begins with
nothing compiled (`measure/compiling.py`), so each of them pays that once more.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping

from autotune.outcome import Kept
from autotune.search.knowledge import Knowledge
from autotune.settings import CompileMode, KnobValue, Precision, Settings
from autotune.trial import Trial
from autotune.units import format_duration

GUESS_S = 10.0
"""Seconds to expect of the first time, and `GUESS_MODULE_S` for each leaf module, before any was seen."""
GUESS_MODULE_S = 0.3
AGAIN = 0.2
"""Part of the first time that a later one is expected to take, before it was seen."""
AUTOTUNED = 4.0
"""Times what another mode takes: `max-autotune` runs many kernels to find the fastest."""
SHARE = 2 / 3
"""Compiling, with `_LATER` further times for a second look and the fewest finals, may take this part of the
time that is left: a third for the first time, as long as `AGAIN` is a guess."""
_LATER = 5
PATIENCE = 3.0
"""Times what the first time should take, which a trial is given at least."""
WORTH = 0.25
"""Part of the user's whole training that compiling may take: no more than a good gain would save."""

_Code = tuple[CompileMode | None, Precision, bool, int | None, int | None]


def first_s(know: Knowledge, mode: CompileMode) -> float:
    """Seconds to expect of compiling in this mode for the first time in some settings."""
    known = {each: _first_times(know, each) for each in ("default", "reduce-overhead", "max-autotune")}
    if known[mode]:
        return statistics.median_high(known[mode])
    others = [s for each, times in known.items() for s in times if each != "max-autotune"]
    if others:
        return (AUTOTUNED if mode == "max-autotune" else 1.0) * statistics.median_high(others)
    return _guess_s(know, mode)


def _guess_s(know: Knowledge, mode: CompileMode) -> float:
    """By the size of the model alone."""
    seconds = GUESS_S + GUESS_MODULE_S * know.ctx.space.workload.leaf_modules
    return seconds * (AUTOTUNED if mode == "max-autotune" else 1.0)


def next_s(know: Knowledge, settings: Settings) -> float:
    """Seconds to expect of the next warm-up with these settings; 0 where they compile nothing."""
    mode = settings.compute.compile
    if mode is None:
        return 0.0
    known = _warmups(know, mode).get(_code(settings), [])
    if not known:
        return first_s(know, mode)
    return statistics.median_high(known[1:]) if len(known) > 1 else AGAIN * known[0]


def later_s(know: Knowledge, settings: Settings) -> float:
    """Seconds to expect of a warm-up once torch has these settings on disk; 0 where they compile nothing."""
    return (AGAIN if is_new(know, settings) else 1.0) * next_s(know, settings)


def patience_s(know: Knowledge, settings: Settings) -> float:
    """Seconds that a warm-up must be given at least: what compiled quickly may have been on disk already."""
    mode = settings.compute.compile
    if mode is None or not is_new(know, settings):
        return 0.0
    return PATIENCE * max(first_s(know, mode), _guess_s(know, mode))


def is_new(know: Knowledge, settings: Settings) -> bool:
    """Whether these settings compile something that no trial has compiled yet."""
    mode = settings.compute.compile
    return mode is not None and _code(settings) not in _warmups(know, mode)


def too_dear(know: Knowledge, settings: Settings) -> str:
    """Why there is no room for trying what these settings compile, as a clause; empty where there is.

    What the user fixed is tried in any case.
    """
    if settings.compute.compile is None or not know.full or "compile" in know.ctx.space.fixed:
        return ""
    expected_s = next_s(know, settings)
    if expected_s >= know.ctx.compile_room_s:
        return f"compiling is expected to take about {format_duration(expected_s)}: more than is left"
    return _too_dear(know, settings, know.ctx.remaining_s)


def _too_dear(know: Knowledge, settings: Settings, left_s: float) -> str:
    mode = settings.compute.compile
    assert mode is not None, "the caller has looked"
    once_s, training_s = first_s(know, mode), _training_s(know)
    takes = f"compiling is expected to take about {format_duration(once_s)}"
    if training_s is not None and once_s > WORTH * training_s:
        return f"{takes} of a training of {format_duration(training_s)}"
    now_s = next_s(know, settings)
    needed_s = now_s + _LATER * AGAIN * once_s
    if needed_s <= SHARE * left_s:
        return ""
    return f"{takes}, and {format_duration(needed_s)} with the finals: more than the budget had room for"


def pays_back(know: Knowledge, settings: Settings, gain: float) -> bool:
    """Whether a gain (log ratio) that is expected of these settings saves more than compiling them takes.

    Such as do not must not end a search whose other candidates are cheap. True where nothing is compiled, and
    where the length of the user's training is not known.
    """
    training_s = _training_s(know)
    return training_s is None or training_s * -math.expm1(-gain) >= next_s(know, settings)


def affordable(know: Knowledge, values: Mapping[str, KnobValue]) -> dict[str, KnobValue]:
    """Values of the searched knobs as they were drawn, with nothing compiled for which there is no room."""
    drawn = know.ctx.space.settings(**values)
    own = know.ctx.space.start.compute.compile
    return {**values, **({"compile": own} if "compile" in values and too_dear(know, drawn) else {})}


def compile_kept(know: Knowledge) -> tuple[Kept, ...]:
    """That there was no room for compiling from the start; nothing where there was, or where it was tried."""
    if "compile" not in know.ctx.space.names or not know.full:
        return ()
    own = know.yours.compute.compile
    if any(trial.settings.compute.compile != own for trial in know.history):
        return ()
    since = [t for t in know.history[know.ctx.earlier :] if t.spec.stage != "yours"]
    left_s = know.ctx.remaining_s + sum(trial.wall_s for trial in since)
    modes = [mode for mode in know.ctx.space.values("compile") if mode is not None and mode != own]
    reasons = [_too_dear(know, know.yours.replace(compile=mode), left_s) for mode in modes]
    if not reasons or not all(reasons):
        return ()
    return (Kept(knob="compile", value=own, why=reasons[0]),)


def compile_notes(know: Knowledge, winner: Settings) -> tuple[str, ...]:
    """What compiling the winner took: the first time, and later ones."""
    mode = winner.compute.compile
    if mode is None or mode == know.yours.compute.compile:
        return ()
    known = _warmups(know, mode).get(_code(winner), [])
    if not known:
        return ()
    note = f"compiling took {format_duration(known[0])} the first time"
    if known[1:]:
        note += f", and {format_duration(statistics.median_high(known[1:]))} once torch had it on disk"
    return (note,)


def _training_s(know: Knowledge) -> float | None:
    epochs, samples = know.ctx.epochs, know.samples
    return epochs * samples / know.rate(know.incumbent) if epochs and samples else None


def _code(settings: Settings) -> _Code:
    """What code is compiled for; other switches of the step find it on disk."""
    compute = settings.compute
    how = (compute.compile, compute.precision, compute.channels_last, compute.cpu_threads)
    return *how, settings.loader.batch_size


def _warmups(know: Knowledge, mode: CompileMode) -> dict[_Code, list[float]]:
    """Seconds of warm-up of all trials in this mode, by what was compiled, in the order in which they ran."""
    found: dict[_Code, list[float]] = {}
    for trial in know.history:
        if trial.settings.compute.compile == mode and (took_s := _took_s(trial)) is not None:
            found.setdefault(_code(trial.settings), []).append(took_s)
    return found


def _took_s(trial: Trial) -> float | None:
    """Seconds of warm-up; of a trial that ran out of time while it warmed up, all of its seconds."""
    if trial.spec.mode == "loader":
        return None
    if trial.measurement is not None:
        return trial.measurement.warmup_s
    assert trial.failure is not None
    return trial.failure.wall_s if trial.failure.kind == "timeout" else None


def _first_times(know: Knowledge, mode: CompileMode) -> list[float]:
    return [times[0] for times in _warmups(know, mode).values()]
