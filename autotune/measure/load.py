"""How many CPUs others keep busy while we measure."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reading:
    at_s: float
    machine_s: float
    """CPU seconds spent by everything on the CPUs that we may use."""
    ours_s: float


class LoadMeter:
    """Average CPUs used by processes outside of one process tree, between `start` and `stop`.

    Only the CPUs that this process may run on are looked at, so a neighbour on the other half of a shared
    host is not counted. Time that a hypervisor took away counts as others' load. A reading takes about a
    millisecond; nothing raises.

    Args:
        pid: the root of the tree that counts as ours; this process by default.
    """

    def __init__(self, pid: int | None = None) -> None:
        self._pid = os.getpid() if pid is None else pid
        self._before: _Reading | None = None

    def start(self) -> None:
        """Begin an interval."""
        self._before = self._read()

    def stop(self) -> float | None:
        """CPUs that others used on average since `start`, at least 0.

        None where it cannot be read, and for an interval of no length. The interval goes on.
        """
        before, now = self._before, self._read()
        if before is None or now is None or now.at_s <= before.at_s:
            return None
        foreign_s = (now.machine_s - before.machine_s) - (now.ours_s - before.ours_s)
        return max(0.0, foreign_s / (now.at_s - before.at_s))

    def _read(self) -> _Reading | None:
        try:
            machine_s = _machine_cpu_s()
            if machine_s is None:
                return None
            return _Reading(at_s=time.perf_counter(), machine_s=machine_s, ours_s=_tree_cpu_s(self._pid))
        except (psutil.Error, OSError, ValueError, RuntimeError):  # hidden, gone, or of an unknown shape
            return None


def _machine_cpu_s() -> float | None:
    """CPU seconds spent by anything on the CPUs of this process; None where the kernel hides its counters."""
    every = psutil.cpu_times(percpu=True)
    process = psutil.Process()
    mine = process.cpu_affinity() if hasattr(process, "cpu_affinity") else None
    if mine and max(mine) < len(every):
        every = [every[cpu] for cpu in mine]
    if not any(sum(times) for times in every):
        return None
    # Interrupts are left out: they serve our own reading and copying as much as anybody's.
    names = ("user", "nice", "system", "steal")
    return float(sum(getattr(times, name, 0.0) for times in every for name in names))


def _tree_cpu_s(pid: int) -> float:
    """CPU seconds of a process and its descendants, those that have ended and were waited for included."""
    root = psutil.Process(pid)
    return _cpu_s(root) + sum(map(_cpu_s, root.children(recursive=True)))


def _cpu_s(process: psutil.Process) -> float:
    try:
        return float(sum(process.cpu_times()[:4]))  # user, system, and both of the children it waited for
    except psutil.NoSuchProcess:  # its seconds are in its parent's count from now on
        return 0.0
