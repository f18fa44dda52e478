"""Settings, failures and clocks in the words every report uses. Pure."""

from __future__ import annotations

from autotune.settings import KnobValue, Settings
from autotune.trial import FailureKind

_FAILURES: dict[FailureKind, str] = {
    "oom_device": "out of device memory",
    "oom_host": "out of memory",
    "shm": "out of shared memory",
    "file_descriptors": "too many open files",
    "worker_crash": "a loader worker died",
    "process_crash": "the process died",
    "pickle": "could not be sent to a process",
    "timeout": "took too long",
    "sticky_cuda": "CUDA error",
    "non_finite": "loss not finite",
    "compile_error": "did not compile",
    "user_error": "the code under test raised",
}


def failure_text(kind: str) -> str:
    """A kind of failure as people say it; a kind unknown here, from a newer file, as it is written."""
    return {str(known): text for known, text in _FAILURES.items()}.get(kind, kind)


def value_text(name: str, value: KnobValue) -> str:
    """A setting's value as people say it: on, 8, bfloat16; `auto` where torch decides, `-` for nothing."""
    if value is None:
        return "auto" if name == "cpu_threads" else "-"
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


def change_text(settings: Settings, yours: Settings) -> str:
    """The changes from `yours`, such as `num_workers 0->2, pin_memory on`; `yours` without any."""
    theirs = yours.flat()
    parts = []
    for name, value in settings.changed_from(yours).items():
        if _follows(name, settings, yours):
            continue
        if isinstance(value, (bool, str)) or value_text(name, theirs[name]) == "-":
            parts.append(f"{name} {value_text(name, value)}")
        else:
            parts.append(f"{name} {value_text(name, theirs[name])}->{value_text(name, value)}")
    return ", ".join(parts) or "yours"


def _follows(name: str, settings: Settings, yours: Settings) -> bool:
    """Whether this only says again that workers came or went: there are none to prefetch or to keep alive."""
    workers = (settings.loader.num_workers, yours.loader.num_workers)
    if name == "prefetch_factor":
        return 0 in workers and settings.loader.prefetch_factor in (None, 2)
    return name == "persistent_workers" and 0 in workers


def count_text(count: int, singular: str, plural: str = "") -> str:
    """`1 trial`, `22 trials`."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"


def left_text(seconds: float) -> str:
    """Time left as `03:12`, hours in front where there are any."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"


def rate_text(samples: int | None, epochs: int | None) -> str:
    """What `samples/s` counts in: a sentence."""
    if not samples:
        return "samples/s is the steady rate: the length of an epoch is not known."
    if epochs is None:
        return "samples/s is the steady rate with one restart of the loader per epoch."
    return f"samples/s is over {count_text(epochs, 'epoch')}, the start and every restart included."
