"""What failures teach: which settings would fail again. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from autotune.settings import GROUPS, HALF_WIDTH, KnobValue, Settings
from autotune.space.rules import GRAPH_MODES
from autotune.trial import Mode, Trial

_QUEUE_FAILURES = ("shm", "oom_host", "file_descriptors")


_Explanation = Callable[[Settings], bool]
"""Which settings a failure speaks of."""


def would_fail(settings: Settings, history: Sequence[Trial]) -> bool:
    """Whether `settings` repeat a failure, need at least as much as one, or hold a value that never works."""
    ran = [t.settings for t in history if t.failure is None and t.spec.mode == "full"]
    if any(_repeats(settings, t, ran) for t in history if t.failure is not None and not _refuted(t, ran)):
        return True
    flat = settings.flat()
    return any(flat[knob] == value for knob, value in dropped(history))


def dropped(history: Sequence[Trial]) -> tuple[tuple[str, KnobValue], ...]:
    """Knob values that failed in two different settings and never once ran."""
    ran: set[tuple[str, KnobValue]] = set()
    failed: dict[tuple[str, KnobValue], set[Settings]] = {}
    for trial in history:
        pairs = _exercised(trial)
        if trial.failure is None:
            ran |= pairs
        else:
            for pair in pairs:
                failed.setdefault(pair, set()).add(trial.settings)
    found = [pair for pair, settings in failed.items() if len(settings) >= 2 and pair not in ran]
    return tuple(sorted(found, key=str))


def _exercised(trial: Trial) -> set[tuple[str, KnobValue]]:
    """The knob values that a trial put to the test: a partial trial does not use the other side."""
    idle = {"full": (), "loader": GROUPS["compute"] + GROUPS["transfer"], "compute": GROUPS["loader"]}
    unused = idle[trial.spec.mode]
    return {(knob, value) for knob, value in trial.settings.flat().items() if knob not in unused}


def _refuted(trial: Trial, ran: Sequence[Settings]) -> bool:
    """Whether full trials ran with the very side that failed alone: then the fault lay elsewhere."""
    theirs = trial.settings
    if trial.spec.mode == "loader":
        return any(s.loader == theirs.loader for s in ran)
    if trial.spec.mode == "compute":
        return any(s.compute == theirs.compute and _batch(s) == _batch(theirs) for s in ran)
    return False


def _repeats(settings: Settings, trial: Trial, ran: Sequence[Settings]) -> bool:
    """Whether it speaks of `settings`, by its widest explanation that nothing which ran contradicts."""
    for speaks_of in _explanations(trial):
        if not any(map(speaks_of, ran)):
            return speaks_of(settings)
    return settings == trial.settings


def _explanations(trial: Trial) -> tuple[_Explanation, ...]:
    """What may be behind a failure, beyond the very settings, the widest first."""
    assert trial.failure is not None
    theirs, kind, mode = trial.settings, trial.failure.kind, trial.spec.mode
    if kind == "oom_device":
        return _device_explanations(theirs)
    if kind in _QUEUE_FAILURES and theirs.loader.num_workers:
        return lambda s: _queue_need(s, theirs), lambda s: s.loader == theirs.loader
    if kind == "oom_host" and mode != "loader":
        return _device_explanations(theirs)  # without workers it is the step that needs the memory
    if kind == "compile_error" and theirs.compute.compile is not None:
        own, how = theirs.compute.precision, theirs.compute.compile
        narrow = own in HALF_WIDTH  # then it may be an operation that half the width has no kernel for
        return (
            lambda s: s.compute.compile is not None and (s.compute.precision == own or not narrow),
            lambda s: s.compute.compile == how,
            lambda s: s.compute == theirs.compute,
        )
    if kind == "timeout":
        return (lambda s: _as_slow(s, theirs, mode),)
    if mode == "loader":
        return (lambda s: s.loader == theirs.loader,)
    if mode == "compute":
        return (lambda s: s.compute == theirs.compute and _batch(s) == _batch(theirs),)
    return ()


def _device_explanations(theirs: Settings) -> tuple[_Explanation, ...]:
    return (
        lambda s: _device_need(s, theirs),
        lambda s: _device_need(s, theirs) and s.compute == theirs.compute,
    )


def _as_slow(settings: Settings, theirs: Settings, mode: Mode) -> bool:
    """Whether as large batches go the way that hung, with as long a queue where there is one."""
    queued = mode == "compute" or _queue_need(settings, theirs)
    computed = mode == "loader" or settings.compute == theirs.compute
    return queued and computed and _batch(settings) >= _batch(theirs)


def _queue_need(settings: Settings, theirs: Settings) -> bool:
    """Whether as many workers keep as many batches of at least that size in flight."""
    mine, other = settings.loader, theirs.loader
    return (
        mine.num_workers >= other.num_workers
        and (mine.prefetch_factor or 0) >= (other.prefetch_factor or 0)
        and _batch(settings) >= _batch(theirs)
    )


def _device_need(settings: Settings, theirs: Settings) -> bool:
    """Whether as large a batch is held in numbers as wide, with as much workspace for the kernel search."""
    narrower = settings.compute.precision in HALF_WIDTH and theirs.compute.precision not in HALF_WIDTH
    less_workspace = theirs.compute.cudnn_benchmark and not settings.compute.cudnn_benchmark
    # A graph keeps the memory of a whole step for itself.
    less_workspace |= theirs.compute.compile in GRAPH_MODES and settings.compute.compile not in GRAPH_MODES
    return _batch(settings) >= _batch(theirs) and not narrower and not less_workspace


def _batch(settings: Settings) -> int:
    return settings.loader.batch_size or 0
