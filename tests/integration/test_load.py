"""Whose CPU time counts as others' load."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from autotune.measure import load
from autotune.measure.load import Load, LoadMeter


class Times(NamedTuple):
    """CPU seconds of one core, shaped like psutil's."""

    user: float
    nice: float
    system: float
    idle: float
    steal: float


@pytest.fixture
def busy() -> Iterator[subprocess.Popen[bytes]]:
    """A child of this process that computes as fast as the machine lets it."""
    with subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) as process:
        time.sleep(0.2)
        yield process
        process.kill()


@pytest.fixture
def idle() -> Iterator[subprocess.Popen[bytes]]:
    """A child that sleeps: a process tree to which the busy one does not belong."""
    code = "import time; time.sleep(60)"
    with subprocess.Popen([sys.executable, "-S", "-c", code], start_new_session=True) as process:
        yield process
        process.kill()


def test_a_stranger_counts_and_a_child_does_not(
    busy: subprocess.Popen[bytes], idle: subprocess.Popen[bytes]
) -> None:
    """The same busy process is load for a tree without it and none for the tree that holds it."""
    ours, theirs = LoadMeter(), LoadMeter(idle.pid)
    ours.start()
    theirs.start()
    before, started = psutil.Process(busy.pid).cpu_times(), time.perf_counter()
    time.sleep(0.8)
    foreign_to_us, foreign_to_idle = ours.stop().foreign_cpus, theirs.stop().foreign_cpus
    after, elapsed_s = psutil.Process(busy.pid).cpu_times(), time.perf_counter() - started
    used_cpus = (after.user - before.user) / elapsed_s
    assert foreign_to_us is not None
    assert foreign_to_idle is not None
    assert foreign_to_idle > 0.5 * used_cpus > 0
    assert foreign_to_us < foreign_to_idle - 0.5 * used_cpus


def test_an_ended_child_is_still_ours() -> None:
    """Seconds of a worker that ended inside the interval go to its parent, not to others."""
    before = load._tree_cpu_s(os.getpid())
    code = "import time\nwhile time.process_time() < 0.3: pass"
    subprocess.run([sys.executable, "-S", "-c", code], check=True)
    assert load._tree_cpu_s(os.getpid()) - before >= 0.25


def test_without_a_beginning_there_is_no_answer() -> None:
    """`stop` before `start` knows nothing."""
    assert LoadMeter().stop() == Load()


def test_a_tree_that_is_gone_gives_none() -> None:
    """The root's end is no error."""
    with subprocess.Popen([sys.executable, "-S", "-c", ""]) as process:
        process.wait()
    meter = LoadMeter(process.pid)
    meter.start()
    assert meter.stop() == Load()


def test_hidden_counters_give_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sandbox whose CPU counters are all zero says nothing about others."""
    zeros = Times(user=0.0, nice=0.0, system=0.0, idle=0.0, steal=0.0)
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: [zeros] * (os.cpu_count() or 1))
    meter = LoadMeter()
    meter.start()
    assert meter.stop() == Load()


def test_only_the_cpus_that_we_may_use_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """A neighbour on CPU 0 is not our trouble when we run on CPU 1."""
    cores = [Times(user=value, nice=0.0, system=value, idle=9.0, steal=value) for value in (100.0, 1.0)]
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: cores)
    assert load._machine_cpu_s([1]) == 3.0


def test_waiting_for_a_cpu_is_read_where_the_kernel_tells(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The total of `some` in seconds; nothing for a file that is missing or of another shape."""
    pressure = tmp_path / "cpu"
    monkeypatch.setattr(load, "_PRESSURE", pressure)
    assert load._waited_s() is None
    pressure.write_text("some avg10=1.00 avg60=2.00 avg300=3.00 total=2500000\nfull avg10=0.00 total=9\n")
    assert load._waited_s() == 2.5
    pressure.write_text("what is this\n")
    assert load._waited_s() is None


@pytest.mark.parametrize(
    ("foreign", "waited", "cpus", "busy"),
    [
        (None, 0.9, 2, False),
        (0.2, 0.9, 2, False),
        (0.5, None, 2, True),
        (0.5, 0.3, 2, True),
        (0.5, 0.01, 2, False),
        (2.0, 0.3, 64, False),
        (4.0, 0.3, 64, True),
    ],
)
def test_others_disturb_when_they_compute_and_somebody_waits(
    foreign: float | None, waited: float | None, cpus: int, busy: bool
) -> None:
    """Load on CPUs that nobody missed is none, and a crowd counts by what the machine has."""
    assert Load(foreign_cpus=foreign, waited_share=waited, usable_cpus=cpus).busy is busy
