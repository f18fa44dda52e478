"""Memory of the host: the fullest edge of a block counts, and the workers' own pages alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from autotune.measure import memory
from autotune.measure.memory import MemoryMeter


class Machine:
    """A process with one child; `sizes` is what they have in memory, and a size of None is a process gone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, close_look: int | None = 1000) -> None:
        self.sizes: dict[int, int | None] = {1: 500, 2: 700}
        self.children = [2]
        self.listed = 0
        monkeypatch.setattr(memory.psutil, "Process", lambda: self.process(1))
        monkeypatch.setattr(memory, "resident_bytes", lambda: close_look)

    def process(self, pid: int) -> Any:
        def info() -> Any:
            size = self.sizes[pid]
            if size is None:
                raise psutil.NoSuchProcess(pid)
            return SimpleNamespace(rss=size)

        def children(recursive: bool) -> list[Any]:
            self.listed += 1
            return [self.process(child) for child in self.children]

        return SimpleNamespace(memory_info=info, children=children)


def test_the_fullest_edge_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an earlier edge held beyond the last one is added to what the close look finds."""
    machine = Machine(monkeypatch)
    meter = MemoryMeter()
    for worker in (700, 950, 800):
        machine.sizes[2] = worker
        meter.sample()
    meter.finish()
    assert meter.peak_bytes == 1000 + 150
    assert machine.listed == 1


def test_a_worker_that_was_replaced_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that starts anew has other workers, and they count instead."""
    machine = Machine(monkeypatch)
    meter = MemoryMeter()
    meter.sample()
    machine.sizes, machine.children = {1: 500, 2: None, 3: 900}, [3]
    meter.sample()
    machine.sizes[3] = 600
    meter.finish()
    assert meter.peak_bytes == 1000 + 300


def test_what_the_system_hides_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing raises, and nothing is made up."""
    machine = Machine(monkeypatch, close_look=None)
    machine.sizes[1] = None
    meter = MemoryMeter()
    meter.sample()
    meter.finish()
    assert meter.peak_bytes is None


def test_this_process_is_seen() -> None:
    """The real system tells at least what Python itself holds."""
    meter = MemoryMeter()
    meter.sample()
    meter.finish()
    assert meter.peak_bytes is not None
    assert meter.peak_bytes > 2**22
