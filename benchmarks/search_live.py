"""Real searches on a grid that was recorded before: how near each comes to the grid's optimum.

    python benchmarks/search_live.py photos-64 photos-96 io-bound --budget 60s --rounds 5 --out live.json.gz

The search is the product's own, by real trials, confined to what the grid holds. Then its answer, the grid's
optimum and *yours* are measured in turn, every other round backwards, each in a process of its own; what is
printed comes from those. Objective is throughput, as a grid knows of speed alone. A grid of another machine
holds another optimum: what is not legal here is left out of it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Any
from unittest import mock

from grids import Grid, read_grid
from raw_file import RawFile, identity
from real_workloads import WORKLOADS
from replay import GridSpace, confine, fixed_of, options
from search import DATA, truth_of

from autotune.codec import decode, encode
from autotune.measure.payload import pickle_workload
from autotune.measure.process_runner import ProcessRunner
from autotune.measure.seam import Runner
from autotune.report.progress import LineListener
from autotune.search.engine import tune
from autotune.settings import Settings
from autotune.space.candidates import build_space
from autotune.trial import Measurement, TrialSpec
from autotune.units import parse_duration_s

SIDES = ("found", "optimum", "yours")


def space_here(grid: Grid, runner: Runner) -> GridSpace:
    """What the grid holds and this machine can run."""
    seen = runner.describe()
    whole = build_space(seen.machine, seen.workload, seen.yours, allow="recipe", fixed=fixed_of(grid))
    return confine(whole, grid)


def optimum_of(grid: Grid, space: GridSpace) -> Settings:
    """The best of the grid's settings, over all of its rounds, among those that are legal here."""
    rates = {settings: rate for settings, rate in truth_of(grid).rates.items() if space.legal(settings)}
    return max(rates, key=lambda settings: rates[settings])


def searched(grid: Grid, space: GridSpace, runner: Runner, budget_s: float) -> Any:
    """What a real search within the grid answers, as JSON."""
    listener = LineListener(lambda text: print(text, file=sys.stderr))
    with mock.patch("autotune.search.engine.build_space", return_value=space):
        outcome = tune(runner, options(grid, budget_s), listener)
    return {
        "settings": encode(outcome.best),
        "verdict": outcome.verdict.sentence,
        "trials": len(outcome.trials),
        "spent_s": outcome.elapsed_s,
        "stopped": outcome.stop_reason,
    }


def round_of(runner: Runner, sides: Sequence[tuple[str, Settings]], window_s: float) -> Any:
    """Effective samples/s of each side, measured one after the other."""
    samples = runner.describe().workload.dataset_samples
    rates = {}
    for name, settings in sides:
        spec = TrialSpec(settings=settings, stage="final", window_s=window_s, fresh_process=True)
        outcome = runner.run(spec)
        if isinstance(outcome, Measurement):
            rates[name] = outcome.effective_samples_per_s(samples)
    return rates


def look(raw: RawFile, name: str, budget_s: float, rounds: int, window_s: float) -> str:
    """Search one workload, hold what came of it against the optimum, and say so in a paragraph."""
    grid = read_grid(DATA / f"{name}.jsonl.gz")
    with ProcessRunner(pickle_workload(WORKLOADS[name]())) as runner:
        space = space_here(grid, runner)
        found = raw.once(f"{name}/found", lambda: searched(grid, space, runner, budget_s))
        settings = decode(Settings, found["settings"])
        sides = list(zip(SIDES, (settings, optimum_of(grid, space), space.yours)))
        measured = [
            raw.once(
                f"{name}/round/{number}",
                lambda turned=sides[:: 1 if number % 2 == 0 else -1]: round_of(runner, turned, window_s),
            )
            for number in range(rounds)
        ]
    return told(name, found, measured, dict(sides), truth_of(grid).cost_s)


def told(
    name: str,
    found: Any,
    measured: Sequence[dict[str, float]],
    sides: dict[str, Settings],
    cost_s: float,
) -> str:
    """The figures of a workload, and the two choices where they differ."""
    whole = [rates for rates in measured if set(rates) == set(SIDES)]
    spent_s = found["spent_s"]
    cost = f"{spent_s:.0f} s, {spent_s / cost_s:.1%} of the grid's {cost_s:.0f} s"
    lines = [f"{name}: {found['trials']} trials in {cost}; {found['verdict']}"]
    for one, other in (("found", "optimum"), ("found", "yours")):
        ratios = [rates[one] / rates[other] for rates in whole]
        if ratios:
            spread = f"({min(ratios):.3f} to {max(ratios):.3f}, {len(ratios)} rounds)"
            lines.append(f"  {one} / {other}  {geometric_mean(ratios):.3f}  {spread}")
    changes = sides["found"].changed_from(sides["optimum"])
    unlike = ", ".join(f"{knob}={value}" for knob, value in changes.items())
    lines.append(f"  found beside the optimum: {unlike or 'the same settings'}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workloads", nargs="+", choices=sorted(WORKLOADS))
    parser.add_argument("--budget", default="60s")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--window-s", type=float, default=1.5)
    parser.add_argument("--out", type=Path, default=Path("search-live.json.gz"), metavar="FILE")
    args = parser.parse_args()
    raw = RawFile(args.out, identity("search_live", budget=args.budget, window_s=args.window_s))
    for name in args.workloads:
        print(look(raw, name, parse_duration_s(args.budget), args.rounds, args.window_s), flush=True)


if __name__ == "__main__":
    main()
