"""A neighbour that uses one CPU in bursts of random length, while a block of code runs.

    python benchmarks/burner.py --seconds 60

Bursts and pauses are exponential, so that the load has no rhythm which a measurement could fall in step with:
two thirds of one CPU on average. The process is a group of its own, ends by itself after its time or when
its parent has gone, and is ended with the block.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil

ON_S, OFF_S = 2.0, 1.0
"""Mean seconds of a burst and of a pause."""
_LONGEST = 4.0
"""Times the mean: what no burst and no pause exceeds."""
_LOOK_S = 0.05
_GRACE_S = 5.0


def bursts(seed: int, *, on_s: float = ON_S, off_s: float = OFF_S) -> Iterator[tuple[float, float]]:
    """Seconds of each burst and of the pause after it, without end."""
    draw = random.Random(seed)
    while True:
        lengths = (min(draw.expovariate(1 / mean), _LONGEST * mean) for mean in (on_s, off_s))
        yield next(lengths), next(lengths)


def burn(seed: int, at_most_s: float) -> None:
    """Spin and sleep by turns until the time is over or the parent has gone."""
    parent, ends_s = os.getppid(), time.monotonic() + at_most_s
    for on_s, off_s in bursts(seed):
        for length_s, spins in ((on_s, True), (off_s, False)):
            until_s = min(time.monotonic() + length_s, ends_s)
            while time.monotonic() < until_s:
                if os.getppid() != parent:
                    return
                _spin(_LOOK_S) if spins else time.sleep(min(_LOOK_S, length_s))
        if time.monotonic() >= ends_s:
            return


def _spin(seconds: float) -> None:
    ends_s = time.perf_counter() + seconds
    value = 1
    while time.perf_counter() < ends_s:
        for number in range(1000):
            value = (value * 31 + number) & 0xFFFF


class Burner:
    """The neighbour, from `with` to the end of its block; then `cpus` says how much it used.

    Args:
        at_most_s: seconds after which it ends by itself, whatever became of us.
        seed: of the lengths of its bursts.
    """

    def __init__(self, *, at_most_s: float, seed: int = 0) -> None:
        self.at_most_s, self.seed = at_most_s, seed
        self.cpus = 0.0
        """CPUs kept busy on average."""

    def __enter__(self) -> Burner:
        command = [sys.executable, __file__, "--seconds", str(self.at_most_s), "--seed", str(self.seed)]
        self._started_s = time.monotonic()
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(psutil.Error):
            used = psutil.Process(self._process.pid).cpu_times()
            self.cpus = (used.user + used.system) / (time.monotonic() - self._started_s)
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def main() -> None:
    """Be the neighbour."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    burn(args.seed, args.seconds)


if __name__ == "__main__":
    main()
