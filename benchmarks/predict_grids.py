"""How well the step-time model predicts recorded grids from a few of their trials.

    python benchmarks/predict_grids.py benchmarks/data/mnist.jsonl.gz [MORE.jsonl.gz ...] --trials 6 12

For each grid and each number of trials, the median over seeds of: the rank correlation (Spearman) between
predicted and true rates of all other settings, and what the settings predicted to be fastest reach of the
grid's best true rate. The model is given *yours*, its two ceilings and a random choice of full trials, one
run of each. Beside it: a plain main-effects model of the full trials alone, and a random pick. What is true
is the mean over all rounds of the grid. `--raw FILE` keeps every single case as JSON lines.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from grids import Grid, read_grid

from autotune.search.context import PlanContext
from autotune.search.knowledge import Knowledge
from autotune.search.physics import Array
from autotune.search.predict import predicted_log_rates
from autotune.settings import Settings
from autotune.space.candidates import Option, Space, build_space
from autotune.space.knobs import knob
from autotune.trial import Trial

METHODS = ("model", "main effects", "random")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One draw of trials from a grid, and what a method made of it."""

    grid: str
    trials: int
    seed: int
    method: str
    correlation: float
    reached: float
    """True rate of the settings predicted best, among all of the grid, over the best true rate."""


def space_of(grid: Grid) -> Space:
    """The space of what was measured and no more."""
    seen = grid.header.description
    whole = build_space(seen.machine, seen.workload, seen.yours, allow="recipe")
    options = tuple(
        Option(knob=axis.knob, values=axis.values, kind=knob(axis.knob).kind) for axis in grid.header.axes
    )
    return replace(whole, options=options)


def truths(grid: Grid) -> dict[Settings, float]:
    """Mean log rate of every full settings that was measured."""
    logs: dict[Settings, list[float]] = {}
    for trial in grid.trials:
        if trial.measurement is not None and trial.spec.mode == "full":
            logs.setdefault(trial.settings, []).append(math.log(trial.measurement.samples_per_s))
    return {settings: statistics.mean(values) for settings, values in logs.items()}


def drawn(grid: Grid, count: int, seed: int) -> list[Trial]:
    """*Yours*, its ceilings where there are any, and `count` further full trials by chance, one run each."""
    chance = random.Random(seed)
    measured = [t for t in grid.trials if t.measurement is not None]
    yours = grid.header.description.yours
    full = [t for t in measured if t.spec.mode == "full"]
    loaders = [t for t in measured if t.spec.mode == "loader" and t.settings.loader == yours.loader]
    steps = [
        t
        for t in measured
        if t.spec.mode == "compute"
        and t.settings.compute == yours.compute
        and t.settings.loader.batch_size == yours.loader.batch_size
    ]
    first = chance.choice([t for t in full if t.settings == yours])
    others = sorted({t.settings for t in full} - {yours}, key=lambda s: s.key())
    picked = [chance.choice([t for t in full if t.settings == s]) for s in chance.sample(others, count)]
    ceilings = [
        replace(t, spec=replace(t.spec, stage="ceiling")) for t in map(_one(chance), (loaders, steps)) if t
    ]
    run = [replace(first, spec=replace(first.spec, stage="yours")), *ceilings, *picked]
    return [replace(trial, number=number) for number, trial in enumerate(run)]


def _one(chance: random.Random):
    return lambda trials: chance.choice(trials) if trials else None


def main_effects(space: Space, history: Sequence[Trial], settings: Sequence[Settings]) -> Array:
    """Log rates by one effect for every value of every knob, shrunk to none: what a plain regression says."""
    full = [t for t in history if t.spec.mode == "full"]
    columns = [(name, value) for name in space.names for value in space.values(name)]

    def rows(of: Sequence[Settings]) -> Array:
        return np.array([[float(s.flat()[name] == value) for name, value in columns] for s in of])

    seen = rows([t.settings for t in full])
    logs = np.array([math.log(t.measurement.samples_per_s) for t in full if t.measurement is not None])
    effects = np.linalg.solve(seen.T @ seen + 0.02 * np.eye(len(columns)), seen.T @ (logs - logs.mean()))
    return np.asarray(rows(settings) @ effects)


def spearman(left: Array, right: Array) -> float:
    """Rank correlation."""
    ranks = [np.argsort(np.argsort(values)) for values in (left, right)]
    return float(np.corrcoef(*ranks)[0, 1])


def cases_of(grid: Grid, count: int, seed: int) -> list[Case]:
    """What each method makes of one draw."""
    space, truth = space_of(grid), truths(grid)
    history = drawn(grid, count, seed)
    tried = {t.settings for t in history if t.spec.mode == "full"}
    settings = list(truth)
    true = np.array([truth[s] for s in settings])
    know = Knowledge(PlanContext(space=space, budget_s=300.0, remaining_s=290.0), history)
    found = {
        "model": predicted_log_rates(know, settings)[0],
        "main effects": main_effects(space, history, settings),
        "random": np.array([random.Random(f"{seed}|{s.key()}").random() for s in settings]),
    }
    new = np.array([s not in tried for s in settings])
    return [
        Case(
            grid=grid.header.workload,
            trials=count,
            seed=seed,
            method=method,
            correlation=spearman(found[method][new], true[new]),
            reached=float(math.exp(true[int(np.argmax(found[method]))] - true.max())),
        )
        for method in METHODS
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("grids", nargs="+", type=Path)
    parser.add_argument("--trials", nargs="+", type=int, default=[6, 12])
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--raw", type=Path, default=None, metavar="FILE")
    args = parser.parse_args()
    found: list[Case] = []
    for path in args.grids:
        grid = read_grid(path)
        for count in args.trials:
            found += [c for seed in range(args.seeds) for c in cases_of(grid, count, seed)]
            for method in METHODS:
                mine = [
                    c for c in found if (c.grid, c.trials, c.method) == (grid.header.workload, count, method)
                ]
                middle = statistics.median(c.correlation for c in mine)
                reached = sorted(c.reached for c in mine)
                print(
                    f"{grid.header.workload:<16} {count:>3} trials  {method:<13} correlation {middle:5.2f}"
                    f"  reached {statistics.median(reached):.3f}, worst {reached[0]:.3f}",
                    flush=True,
                )
    if args.raw is not None:
        fields = Case.__dataclass_fields__
        lines = [json.dumps({name: getattr(case, name) for name in fields}) for case in found]
        args.raw.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
