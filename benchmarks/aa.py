"""A/A: two settings that are the same, judged as if they were not. Any win is a false one.

    python benchmarks/aa.py                                     from recorded runs, about five minutes
    python benchmarks/aa.py --live 20 --raw aa-live.jsonl.gz    real finals, about a minute for each

Prints one line per case with the wins declared and the exact interval of their share, then one line over all
cases.

Recorded: runs of *yours* by `record_windows.py`. A finals takes a stretch of runs that follow each other,
from a random place on, and gives them to the two sides in the order in which real finals run, until
`decided` or out of pairs: so a drift, a burst and a neighbour stay what they were. In the first count the
sides take turns as in a real finals; in the second, chance says which side goes first in each pair, which
makes many more different finals of the same runs. Stretches overlap, in the second count too: 300 finals of
40 runs are not 300 pieces of evidence, and the interval, which takes them for that, is narrower than what is
known. Wins are counted as the user is told them, and (in brackets) as they would be without the rule for
disturbed finals.

Live: each run is a fresh process. Both sides run the same settings; the candidate is a second name for them.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import sys
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from grids import Grid, read_grid
from live_finals import LiveCase, lines, play_live
from played_finals import Finals, play, raw_of, share_interval
from record_windows import final_spec

from autotune.measure.process_runner import ProcessRunner
from autotune.search.cost import MAX_PAIRS
from autotune.settings import Settings
from autotune.trial import Measurement, TrialSpec

LIVE_WORKLOADS = ("tabular", "autoencoder")


def twin(settings: Settings) -> Settings:
    """Other settings, to serve as a second name for these."""
    return settings.replace(pin_memory=not settings.loader.pin_memory)


def finals_of(grid: Grid, rng: random.Random, *, last: int, by_chance: bool) -> Finals:
    """One finals played from a stretch of the recorded runs.

    Args:
        grid: of runs of one choice of settings, in the order of time; twice `last` of them at least.
        rng: says where the stretch begins and which side goes first: once, or in each pair.
        last: pairs at most.
        by_chance: whether the side that goes first is drawn anew for each pair.
    """
    runs = [trial.measurement for trial in grid.trials if trial.measurement is not None]
    begin = rng.randrange(len(runs) - 2 * last + 1)
    swaps = [rng.random() < 0.5 for _ in range(last)] if by_chance else [rng.random() < 0.5] * last
    yours = grid.header.description.yours
    field = (yours, twin(yours))
    # In the order of real finals the sides swap from pair to pair; a swap of both names is another finals.
    order = [_sides(field, pair, swaps[pair]) for pair in range(last)]
    taken = {
        (pair, settings): runs[begin + 2 * pair + place]
        for pair in range(last)
        for place, settings in enumerate(order[pair])
    }

    def measure(spec: TrialSpec) -> Measurement:
        return taken[spec.pair or 0, spec.settings]

    return play(measure, field, samples=grid.header.description.workload.dataset_samples, last=last)


def _sides(field: tuple[Settings, Settings], pair: int, swapped: bool) -> tuple[Settings, Settings]:
    return field if (pair % 2 == 0) != swapped else field[::-1]


def judge_recorded(path: Path, count: int, last: int) -> tuple[str, int, list[dict[str, Any]]]:
    """Many finals from one file: the line about them, the wins told in turn, and what is kept."""
    grid = read_grid(path)
    name = path.name.removeprefix("windows-").removesuffix(".jsonl.gz")
    last = min(last, len(grid.trials) // 2)
    samples = grid.header.description.workload.dataset_samples
    rng = random.Random(zlib.crc32(name.encode()))
    told, raw, wins = [], [], {}
    for way in ("in turn", "by chance"):
        played = [finals_of(grid, rng, last=last, by_chance=way == "by chance") for _ in range(count)]
        raw += [raw_of(one, samples, case=name, order=way) for one in played]
        wins[way] = sum(one.verdict.kind == "faster" for one in played)
        without = sum(one.undisturbed.kind == "faster" for one in played)
        low, high = share_interval(wins[way], count)
        told.append(f"{way}: wins {wins[way]:>2} ({without:>2}) of {count}, 95 %: {low:.2%} to {high:.2%}")
    disturbed = sum(t.measurement.disturbed for t in grid.trials if t.measurement is not None)
    line = f"A/A  {name:<20} {len(grid.trials):>3} runs, {disturbed:>3} disturbed  {'   '.join(told)}"
    return line, wins["in turn"], raw


def recorded(args: argparse.Namespace) -> None:
    paths = args.files or sorted(Path(__file__).with_name("data").glob("windows-*.jsonl.gz"))
    if not paths:
        sys.exit("there are no recorded runs: make some with benchmarks/record_windows.py")
    wins, raw = 0, []
    for path in paths:
        line, won, kept = judge_recorded(path, args.finals, args.pairs)
        print(line, flush=True)
        wins, raw = wins + won, raw + kept
    count = args.finals * len(paths)
    low, high = share_interval(wins, count)
    print(f"A/A  all {len(paths)} cases, in turn: wins {wins} of {count}, 95 %: {low:.2%} to {high:.2%}")
    if args.raw is not None:
        with gzip.open(args.raw, "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in raw)


def live_case(name: str) -> LiveCase:
    """A real workload under two names."""

    def start() -> ProcessRunner:
        from real_workloads import WORKLOADS

        from autotune.measure.payload import pickle_workload

        return ProcessRunner(pickle_workload(WORKLOADS[name]()))

    def field(runner: ProcessRunner) -> tuple[Settings, Settings]:
        yours = runner.describe().yours
        return yours, twin(yours)

    def spec(runner: ProcessRunner) -> TrialSpec:
        return replace(final_spec(runner.describe()), fresh_process=True)

    return LiveCase(name=name, start=start, field=field, spec=spec, same=True)


def live(args: argparse.Namespace) -> None:
    cases = [live_case(name) for name in args.workloads]
    each = -(-args.live // len(cases))
    records = play_live(
        cases,
        args.raw or Path("aa-live.jsonl.gz"),
        finals=each,
        last=args.pairs,
        minutes=args.minutes,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    print("\n".join(lines(cases, records)))
    wins = sum(record["verdict"] == "faster" for record in records)
    low, high = share_interval(wins, max(1, len(records)))
    print(f"A/A live  all: wins {wins} of {len(records)}, 95 %: {low:.2%} to {high:.2%}")


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="recorded runs; all in benchmarks/data without")
    parser.add_argument("--finals", type=int, default=300, help="of each recorded case")
    parser.add_argument("--live", type=int, default=0, metavar="N", help="so many real finals instead")
    parser.add_argument("--workloads", nargs="+", default=LIVE_WORKLOADS, help="of the real finals")
    parser.add_argument("--minutes", type=float, default=30.0, help="for the real finals, at most")
    parser.add_argument("--pairs", type=int, default=MAX_PAIRS, help="of a finals, at most")
    parser.add_argument("--raw", type=Path, default=None, metavar="FILE", help="what is kept, as .jsonl.gz")
    return parser.parse_args(argv)


def main() -> None:
    args = arguments(sys.argv[1:])
    if args.live:
        live(args)
    else:
        recorded(args)


if __name__ == "__main__":
    main()
