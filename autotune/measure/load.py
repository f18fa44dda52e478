"""How many CPUs others keep busy while we measure, and whether anybody had to wait for one."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

BUSY_CPUS = 0.25
"""Average CPUs used by others from which a measurement may be disturbed."""
BUSY_SHARE = 0.05
"""The same as a part of the CPUs that we may use; the larger of both counts."""
WAITED = 0.02
"""Part of the time in which somebody waited for a CPU, up to which there was room for all."""
_PRESSURE = Path("/proc/pressure/cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What else ran in an interval; None for what cannot be read here."""

    foreign_cpus: float | None = None
    """CPUs that others used on average, at least 0; time that a hypervisor took away (steal) counts in."""
    waited_share: float | None = None
    """Part of the time in which some process waited for a CPU, ours included: Linux's pressure (PSI)."""
    usable_cpus: int = 1

    @property
    def busy(self) -> bool:
        """Whether others may have slowed us: they used CPUs, and there was not room for everybody.

        Pressure alone says nothing, as our own workers make it too.
        """
        if self.foreign_cpus is None or self.foreign_cpus <= max(BUSY_CPUS, BUSY_SHARE * self.usable_cpus):
            return False
        return self.waited_share is None or self.waited_share > WAITED


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reading:
    at_s: float
    machine_s: float
    """CPU seconds spent by everything on the CPUs that we may use."""
    ours_s: float
    waited_s: float | None
    cpus: int


class LoadMeter:
    """The load by processes outside of one process tree, between `start` and `stop`.

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

    def stop(self) -> Load:
        """The load since `start`. Unknown where it cannot be read, and for no time. The interval goes on."""
        before, now = self._before, self._read()
        if before is None or now is None or now.at_s <= before.at_s:
            return Load()
        elapsed_s = now.at_s - before.at_s
        foreign_s = (now.machine_s - before.machine_s) - (now.ours_s - before.ours_s)
        waited_s = None
        if now.waited_s is not None and before.waited_s is not None:
            waited_s = now.waited_s - before.waited_s
        return Load(
            foreign_cpus=max(0.0, foreign_s / elapsed_s),
            waited_share=None if waited_s is None else min(max(waited_s / elapsed_s, 0.0), 1.0),
            usable_cpus=now.cpus,
        )

    def _read(self) -> _Reading | None:
        try:
            cpus = _own_cpus()
            machine_s = _machine_cpu_s(cpus)
            if machine_s is None:
                return None
            return _Reading(
                at_s=time.perf_counter(),
                machine_s=machine_s,
                ours_s=_tree_cpu_s(self._pid),
                waited_s=_waited_s(),
                cpus=len(cpus) if cpus else os.cpu_count() or 1,
            )
        except (psutil.Error, OSError, ValueError, RuntimeError):  # hidden, gone, or of an unknown shape
            return None


def _own_cpus() -> list[int] | None:
    """The CPUs that this process may run on; None where the system does not tell."""
    process = psutil.Process()
    return process.cpu_affinity() if hasattr(process, "cpu_affinity") else None


def _waited_s() -> float | None:
    """Seconds since boot in which at least one process waited for a CPU; None without PSI."""
    try:
        first = _PRESSURE.read_text(encoding="ascii").splitlines()[0]
        kind, *fields = first.split()
        total_us = dict(field.split("=") for field in fields)["total"]
        return int(total_us) / 1e6 if kind == "some" else None
    except (OSError, ValueError, IndexError, KeyError):  # another system, PSI switched off, or another shape
        return None


def _machine_cpu_s(mine: list[int] | None) -> float | None:
    """CPU seconds spent by anything on the CPUs `mine`; None where the kernel hides its counters."""
    every = psutil.cpu_times(percpu=True)
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
