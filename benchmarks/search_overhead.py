"""What the study itself costs, on recorded grids: its share of a run, and its growth over many trials.

python benchmarks/search_overhead.py [GRID ...]
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from pathlib import Path
from typing import Any

from grids import Grid, read_grid
from replay import ReplayRunner, confined, options, space_of
from search import DATA, complete

from autotune.search.context import PlanContext
from autotune.search.engine import tune
from autotune.search.listener import SilentListener
from autotune.search.plan import next_move
from autotune.search.study import open_study
from autotune.testing import FakeClock
from autotune.trial import Measurement, Trial, TrialSpec


def overhead(grid: Grid, seeds: int = 3, trials: int = 300) -> str:
    """Real seconds of the study in a run of five virtual minutes, and its growth to so many trials."""
    shares = []
    for seed in range(seeds):
        clock = FakeClock()
        runner = _Timed(grid, seed=seed, clock=clock)
        started = time.perf_counter()
        with confined(grid):
            tune(runner, options(grid, 300.0, seed), SilentListener(), clock=clock)
        shares.append((time.perf_counter() - started - runner.inside_s) / clock())
    early, late = growth(grid, trials)
    return (
        f"{grid.header.workload}: the study takes {statistics.median(shares):.2%} of a run of five minutes; "
        f"of {trials} trials each of the first 30 costs {1e3 * early:.1f} ms, "
        f"of the last 30 {1e3 * late:.1f} ms"
    )


class _Timed(ReplayRunner):
    """Knows how long it took itself to answer."""

    inside_s = 0.0

    def run(self, spec: TrialSpec) -> Any:
        started = time.perf_counter()
        try:
            return super().run(spec)
        finally:
            self.inside_s += time.perf_counter() - started


def growth(grid: Grid, trials: int) -> tuple[float, float]:
    """Real seconds of study and plan for a trial, at the start and the end of a long history."""
    space, runner = space_of(grid), ReplayRunner(grid)
    store = open_study(None, "growth", options=space.options, identity={})
    order = sorted(space.recorded, key=lambda s: s.key())
    draw, history, took = random.Random(0), [], []
    context = PlanContext(space=space, budget_s=3000.0, remaining_s=2000.0)
    for number in range(trials):
        settings = space.yours if number == 0 else draw.choice(order)
        spec = TrialSpec(settings=settings, stage="joint" if number else "yours", window_s=0.6)
        found = runner.run(spec)
        assert isinstance(found, Measurement), "this grid has no failures"
        started = time.perf_counter()
        trial = Trial(number=store.start(spec), spec=spec, measurement=found)
        history.append(trial)
        store.finish(trial, found.samples_per_s)
        next_move(context, history)
        took.append(time.perf_counter() - started)
    return statistics.mean(took[:30]), statistics.mean(took[-30:])


def main() -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("grids", nargs="*", type=Path, help="files; all of benchmarks/data without")
    for path in parser.parse_args().grids or sorted(DATA.glob("*.jsonl.gz")):
        grid = read_grid(path)
        if complete(grid):
            print(overhead(grid), flush=True)


if __name__ == "__main__":
    main()
