"""Ways to search, on recorded grids: how near each comes to the best setting, and what it costs.

    python benchmarks/search.py [GRID ...] [--seeds 30] [--budgets 60 300] [--jobs 2] [--out FILE]

For each grid, budget and method: the share of the grid's optimum that the returned settings reach, median and
worst over the seeds, when stopped at 10, 25, 50 and 100 % of the budget. All figures are effective samples/s.
True is the geometric mean over all rounds of the grid.

The replayed machine is exactly what was recorded, so its optimum is the best of those means. On the real one
that is too high, as the best of many noisy means always is: `validated` is the share, at the end, of what is
left of it under cross-validation (chosen on all rounds but one, valued on that one, over all rotations).
`proved` is what a whole run of ours hands over: the winner of the finals, else *yours*. The other methods
prove nothing, and spend that time on searching.

A share of the grid's cost is virtual seconds spent over the seconds that recording the grid took. Started
again with the same file it goes on. What the study itself costs is in `search_overhead.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from grids import Grid, read_grid
from raw_file import RawFile, Work, fill
from replay import ReplayRunner, confined, options, space_of
from search_methods import RIVALS, Field, OutOfTimeError, best_at, rule_of_thumb

import autotune
from autotune.codec import decode
from autotune.errors import BudgetError
from autotune.search.context import PlanContext
from autotune.search.engine import tune
from autotune.search.knowledge import Knowledge
from autotune.search.listener import SilentListener
from autotune.settings import Settings
from autotune.testing import FakeClock
from autotune.trial import Trial
from autotune.units import parse_duration_s

STOPS = (0.10, 0.25, 0.50, 1.00)
"""Parts of the budget after which a method is asked for its best."""
HELD_OUT = ("photos-64", "photos-96")
"""Grids that no choice of the method was made on. char-lm and io-bound were named before any tuning, and runs
of them have been looked into since."""
DATA = Path(__file__).parent / "data"


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What is known of a grid once all of it was measured."""

    name: str
    rates: dict[Settings, float]
    """Effective samples/s, the geometric mean over the rounds; 0 where no round measured."""
    validated: float | None
    """The optimum by cross-validation; None with a single round."""
    cost_s: float
    """What recording it took."""

    @property
    def best(self) -> float:
        """The rate of the best setting."""
        return max(self.rates.values())

    def validated_share(self, settings: Settings) -> float | None:
        """The rate of these settings over the cross-validated optimum."""
        return self.rates[settings] / self.validated if self.validated is not None else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """One method on one grid with one seed."""

    grid: str
    budget_s: float
    method: str
    seed: int
    shares: tuple[float, ...]
    """Of the plain optimum, at `STOPS`."""
    proved: float | None
    """The share of what the whole run handed over; None for methods that prove nothing."""
    validated: float | None
    """The last of `shares`, of the cross-validated optimum."""
    verdict: str
    spent_s: float
    trials: int
    returned: str


def truth_of(grid: Grid) -> Truth:
    """The truth of a grid."""
    samples = grid.header.description.workload.dataset_samples
    found: dict[Settings, list[float]] = {}
    for trial in grid.trials:
        if trial.spec.mode == "full":
            rates = found.setdefault(trial.settings, [])
            if trial.measurement is not None:
                rates.append(trial.measurement.effective_samples_per_s(samples))
    return Truth(
        name=grid.header.workload,
        rates={settings: _geometric(rates) if rates else 0.0 for settings, rates in found.items()},
        validated=cross_validated(list(found.values())),
        cost_s=sum((t.measurement or t.failure).wall_s for t in grid.trials),
    )


def cross_validated(rates: Sequence[Sequence[float]]) -> float | None:
    """The rate of what is best in all rounds but one, seen in that one; the mean over all rotations.

    Args:
        rates: of each setting, one for each round; settings that miss a round are left out.
    """
    rounds = max(len(r) for r in rates)
    whole = [r for r in rates if len(r) == rounds]
    if rounds < 2:
        return None
    held = []
    for out in range(rounds):
        chosen = max(whole, key=lambda r: _geometric([x for i, x in enumerate(r) if i != out]))
        held.append(chosen[out])
    return _geometric(held)


def _geometric(values: Sequence[float]) -> float:
    return math.exp(math.fsum(math.log(value) for value in values) / len(values))


class _Ears(SilentListener):
    """Notes when each trial ended."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.ended: list[tuple[float, Trial]] = []

    def trial_finished(self, trial: Trial, ratio: float | None, best: bool, remaining_s: float) -> None:
        self.ended.append((self.clock(), trial))


def ours(grid: Grid, truth: Truth, budget_s: float, seed: int) -> Played:
    """The product's own run, unchanged but for where its space ends."""
    clock, space = FakeClock(), space_of(grid)
    ears = _Ears(clock)
    runner = ReplayRunner(grid, seed=seed, clock=clock)
    kind, winner = "no budget", space.yours
    try:
        with confined(grid):
            outcome = tune(runner, options(grid, budget_s, seed), ears, clock=clock)
        kind, winner = outcome.verdict.kind, outcome.best
    except BudgetError:
        pass
    at = [_incumbent(space, ears.ended, stop * budget_s, budget_s) for stop in STOPS]
    return Played(
        grid=truth.name,
        budget_s=budget_s,
        method="ours",
        seed=seed,
        shares=tuple(truth.rates[s] / truth.best for s in at),
        proved=truth.rates[winner] / truth.best,
        validated=truth.validated_share(at[-1]),
        verdict=kind,
        spent_s=clock(),
        trials=len(ears.ended),
        returned=winner.key(),
    )


def _incumbent(space: Any, ended: Sequence[tuple[float, Trial]], at_s: float, budget_s: float) -> Settings:
    """What the search held to be best at this time."""
    context = PlanContext(space=space, budget_s=budget_s, remaining_s=budget_s - at_s)
    know = Knowledge(context, [trial for ended_s, trial in ended if ended_s <= at_s])
    return know.incumbent if know.full else space.yours


def rival(grid: Grid, truth: Truth, method: str, budget_s: float, seed: int) -> Played:
    """Another method, with as much virtual time."""
    field = Field(ReplayRunner(grid, seed=seed), space_of(grid), budget_s)
    with contextlib.suppress(OutOfTimeError):
        RIVALS[method](field, seed)
    at = [best_at(field.seen, stop * budget_s, field.space.yours) for stop in STOPS]
    return Played(
        grid=truth.name,
        budget_s=budget_s,
        method=method,
        seed=seed,
        shares=tuple(truth.rates[s] / truth.best for s in at),
        proved=None,
        validated=truth.validated_share(at[-1]),
        verdict="",
        spent_s=field.seen[-1].at_s if field.seen else 0.0,
        trials=len(field.seen),
        returned=at[-1].key(),
    )


def by_rule(grid: Grid, truth: Truth, budget_s: float) -> Played:
    """The rule of thumb, which measures nothing."""
    settings = rule_of_thumb(space_of(grid))
    share = truth.rates[settings] / truth.best
    return Played(
        grid=truth.name,
        budget_s=budget_s,
        method="rule of thumb",
        seed=0,
        shares=(share,) * len(STOPS),
        proved=None,
        validated=truth.validated_share(settings),
        verdict="",
        spent_s=0.0,
        trials=0,
        returned=settings.key(),
    )


def play(path: Path, budget: str, method: str, seed: int) -> Any:
    """One run, as JSON."""
    grid, truth = _known(path)
    budget_s = budget_of(budget, truth)
    if method == "rule of thumb":
        return asdict(by_rule(grid, truth, budget_s))
    if method == "ours":
        return asdict(ours(grid, truth, budget_s, seed))
    return asdict(rival(grid, truth, method, budget_s, seed))


@lru_cache(maxsize=1)
def _known(path: Path) -> tuple[Grid, Truth]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    grid = read_grid(path)
    return grid, truth_of(grid)


def runs(paths: Sequence[Path], budgets: Sequence[str], methods: Sequence[str], seeds: int) -> Work:
    """Every run, by its key; a method that draws nothing runs once."""
    return {
        f"{path.name}/{budget}/{method}/{seed}": partial(play, path, budget, method, seed)
        for path in paths
        for budget in budgets
        for method in methods
        for seed in range(1 if method == "rule of thumb" else seeds)
    }


def table(played: Sequence[Played], methods: Sequence[str]) -> str:
    """A line for each method: median / worst share at each stop, what was proved, what it took."""
    stops = "".join(f"{f'{stop:.0%}':>15}" for stop in STOPS)
    lines = [f"{'method':<18}{stops}{'validated':>15}{'proved':>15}{'spent':>8}{'trials':>8}"]
    for method in methods:
        mine = [p for p in played if p.method == method]
        if not mine:
            continue
        cells = [_both([p.shares[i] for p in mine]) for i in range(len(STOPS))]
        for known in ([p.validated for p in mine], [p.proved for p in mine]):
            told = [share for share in known if share is not None]
            cells.append(_both(told) if told else "-")
        spent_s, trials = (
            statistics.median(getattr(p, name) for p in mine) for name in ("spent_s", "trials")
        )
        lines.append(
            f"{method:<18}{''.join(f'{c:>15}' for c in cells)}{spent_s:>7.0f}s{trials:>8.0f}{_verdicts(mine)}"
        )
    return "\n".join(lines)


def _verdicts(played: Sequence[Played]) -> str:
    kinds = Counter(p.verdict for p in played if p.verdict)
    return "".join(f"  {kind} {count}" for kind, count in kinds.most_common())


def _both(shares: Sequence[float]) -> str:
    return f"{100 * statistics.median(shares):.1f}/{100 * min(shares):.1f}"


def heading(grid: Grid, truth: Truth, budget_s: float) -> str:
    """What the table under it is about."""
    yours = truth.rates[grid.header.description.yours] / truth.best
    rounds = len(grid.trials) / len({(t.spec.mode, t.settings) for t in grid.trials})
    validated = f"{truth.validated / truth.best:.1%}" if truth.validated is not None else "not known"
    held_out = " (held out)" if truth.name in HELD_OUT else ""
    return (
        f"\n{truth.name}{held_out}: {len(truth.rates)} settings, "
        f"{rounds:.1f} rounds in {truth.cost_s:.0f} s; budget {budget_s:.0f} s, "
        f"{budget_s / truth.cost_s:.0%} of that; yours {yours:.1%}; "
        f"cross-validated optimum {validated} of the plain one"
    )


def complete(grid: Grid) -> bool:
    """Whether both sides of everything that was measured together were measured alone as well."""
    modes: dict[str, set[Any]] = {"full": set(), "loader": set(), "compute": set()}
    for trial in grid.trials:
        modes[trial.spec.mode].add(trial.settings)
    loaders, steps = ({pick(s) for s in modes["full"]} for pick in (_loader, _step))
    return (
        bool(loaders)
        and loaders == set(map(_loader, modes["loader"]))
        and steps == set(map(_step, modes["compute"]))
    )


def _loader(settings: Settings) -> Any:
    return settings.loader


def _step(settings: Settings) -> Any:
    return settings.compute, settings.loader.batch_size


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    methods = ["ours", *RIVALS, "rule of thumb"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("grids", nargs="*", type=Path, help="files; all of benchmarks/data without")
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument(
        "--budgets", nargs="+", default=["60"], help="virtual time, such as 60, 5m, or 5%% of the grid's"
    )
    parser.add_argument("--methods", nargs="+", choices=methods, default=methods, metavar="METHOD")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--out", type=Path, default=Path("search.json.gz"), metavar="FILE", help="every run")
    return parser.parse_args(argv)


def budget_of(text: str, truth: Truth) -> float:
    """Virtual seconds: a duration, or a percentage of what the grid took."""
    return float(text[:-1]) / 100 * truth.cost_s if text.endswith("%") else parse_duration_s(text)


def usable(methods: Sequence[str], say: Callable[[str], None]) -> list[str]:
    """The methods that can run here; what is missing is said."""
    try:
        import scipy  # noqa: F401
    except ImportError:
        say("gp is left out: Optuna's Gaussian process sampler needs scipy, which is not installed")
        return [method for method in methods if method != "gp"]
    return list(methods)


def main() -> None:
    args = arguments(sys.argv[1:])
    paths = [path for path in args.grids or sorted(DATA.glob("*.jsonl.gz")) if complete(read_grid(path))]
    methods = usable(args.methods, print)
    raw = RawFile(args.out, {"benchmark": "search", "autotune": autotune.__version__})
    fill(raw, runs(paths, args.budgets, methods, args.seeds), jobs=args.jobs)
    for budget in args.budgets:
        everything: list[Played] = []
        for path in paths:
            grid, truth = _known(path)
            keys = runs([path], [budget], methods, args.seeds)
            found = [decode(Played, raw.values[key]) for key in keys]
            print(heading(grid, truth, budget_of(budget, truth)), table(found, methods), sep="\n", flush=True)
            everything += found
        print(f"\nall {len(paths)} grids, budget {budget}", table(everything, methods), sep="\n", flush=True)


if __name__ == "__main__":
    main()
