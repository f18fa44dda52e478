"""A worker's death is raised where the main thread waits for batches, and nowhere else."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import signal, time
from multiprocessing import Pipe
from torch.utils.data._utils import signal_handling
from autotune.measure.signals import calm_worker_deaths

def fails():
    raise RuntimeError("worker died")

signal_handling._error_if_any_worker_fails = fails
calm_worker_deaths()
told = []

def heard(function):
    try:
        function()
    except RuntimeError as error:
        told.append(str(error))
    else:
        told.append("")

reader, writer = Pipe(duplex=False)

def wait():
    signal.signal(signal.SIGALRM, lambda *_: None)
    reader.poll(3)

def _try_get_data():
    wait()

import os, threading
def soon():
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGCHLD)).start()

heard(lambda: signal.raise_signal(signal.SIGCHLD))
soon(); started = time.monotonic(); heard(_try_get_data); waited_s = time.monotonic() - started
soon(); heard(wait)
print(told, waited_s < 2)
"""


def test_a_death_is_raised_while_batches_are_waited_for() -> None:
    """Elsewhere it would leave locks taken that closing the loader waits for."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout == "['', 'worker died', ''] True\n", done.stderr
