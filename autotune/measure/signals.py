"""What torch does in the main thread when a loader's worker dies: it raises wherever that thread is.

Within `Queue.put` that leaves a lock taken for ever, and closing the loader then waits for it.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from torch.utils.data._utils import signal_handling

_WAITS = {("selectors.py", "select"), ("connection.py", "poll"), ("threading.py", "wait")}
"""File and function in which a thread waits for what comes from another process or thread."""


@contextlib.contextmanager
def deaf_to_workers() -> Iterator[None]:
    """Torch raises wherever the main thread is when a worker dies; not while one death is being handled."""
    if not hasattr(signal, "pthread_sigmask") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def calm_worker_deaths() -> None:
    """From now on torch raises for a dead worker only where the main thread waits for batches.

    For the life of the process. Anywhere else it finds the worker missing at its next look, within five
    seconds of waiting.
    """
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        return
    signal_handling._set_SIGCHLD_handler()  # the first loader with workers would; later ones leave it
    raising = signal.getsignal(signal.SIGCHLD)

    def handler(number: int, frame: FrameType | None) -> None:
        if callable(raising) and _waits_for_batches(frame):
            raising(number, frame)

    signal.signal(signal.SIGCHLD, handler)


def _waits_for_batches(frame: FrameType | None) -> bool:
    if frame is None or (Path(frame.f_code.co_filename).name, frame.f_code.co_name) not in _WAITS:
        return False
    while frame is not None and frame.f_code.co_name != "_try_get_data":
        frame = frame.f_back
    return frame is not None
