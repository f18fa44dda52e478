"""A small grid that was recorded from a made-up machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmark_scripts import load

from autotune.settings import Settings
from autotune.testing import FakeRunner, fake_description
from autotune.trial import Failure, Mode

grids = load("grids")
recorder = load("record_grid")
replay = load("replay")

VALUES = {"num_workers": (0, 1, 2, 4), "cpu_threads": (1, 2), "batch_size": (64, 128)}


def rate(settings: Settings, mode: Mode) -> float:
    """Two workers and two threads are best; the step alone is a little faster."""
    workers, threads = settings.loader.num_workers, settings.compute.cpu_threads or 1
    step = 1000.0 * (1.3 if threads == 2 else 1.0)
    if mode == "compute":
        return step
    loader = 600.0 * (1, 1.4, 2.4, 2.0)[(0, 1, 2, 4).index(workers)]
    return loader if mode == "loader" else min(step, loader) * 0.95


def recorded_grid(
    folder: Path,
    *,
    noise: float = 0.02,
    rounds: int = 3,
    failures: Callable[[Settings], Failure | None] = lambda settings: None,
) -> Any:
    """What the recorder makes of that machine, read back from its file."""
    described = fake_description(cpu_threads=2)
    runner = FakeRunner(rate, noise=noise, failures=failures, description=described)
    space = recorder.space_of(described)
    axes = recorder.axes_of(space, VALUES)
    header = grids.Header(workload="made-up", command="-", description=described, axes=axes)
    plan = recorder.Plan(rounds=rounds, budget_s=3600.0)
    path = folder / "grid.jsonl.gz"
    recorder.record(runner, path, header, recorder.specs_of(space, axes, 0.6), plan, clock=runner.clock)
    return grids.read_grid(path)
