"""Whether the right workers are chosen where starting them costs more than they bring.

    python benchmarks/startup.py --out startup.json.gz

Each case is a workload with epochs of a given length, trained for three epochs. The tuner predicts the
seconds of such a run for 0, 1 and 2 workers that persist or do not, from a few seconds of steps; then each
run is really made, in a fresh process, from the making of its DataLoader to its last step. Prints one line
per case: both orders (`2p`: two workers that persist), the choice that follows from each, its regret (true
seconds of the predicted choice over those of the best), and what `find_best` chooses for three epochs, with
its regret.

Cases are WORKLOAD:SAMPLES:REPEATS. The photos are fewer, since 50,000 of them train for many minutes on a
CPU. FILE keeps every trial and every run; started again with it, the script goes on where it stopped.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from raw_file import RawFile, identity

from autotune.codec import decode, encode
from autotune.errors import UsageError
from autotune.outcome import Outcome
from autotune.report.progress import LineListener
from autotune.settings import Settings
from autotune.space.rules import DEFAULT_PREFETCH

CASES = ("mnist:500:3", "mnist:50000:2", "photos-64:500:3", "photos-64:5000:1")
LOADERS: dict[str, tuple[int, bool]] = {
    "0": (0, False),
    "1": (1, False),
    "1p": (1, True),
    "2": (2, False),
    "2p": (2, True),
}
"""num_workers and persistent_workers."""
CLEAR = 1.05
"""True times that differ by less are a tie: no order of them is wrong."""
FOUND = "found"
"""The label of what `find_best` chose."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A workload with epochs of one length."""

    workload: str
    samples: int
    repeats: int

    @classmethod
    def parse(cls, text: str) -> Case:
        """From WORKLOAD:SAMPLES:REPEATS.

        Raises:
            UsageError
        """
        workload, *numbers = text.split(":")
        if len(numbers) != 2 or not all(number.isdigit() and int(number) for number in numbers):
            raise UsageError(f"`{text}` is no case", fix="write WORKLOAD:SAMPLES:REPEATS, as mnist:500:3")
        return cls(workload=workload, samples=int(numbers[0]), repeats=int(numbers[1]))


def order(seconds: Mapping[str, float]) -> tuple[str, ...]:
    """Labels, quickest first."""
    return tuple(sorted(seconds, key=lambda label: (seconds[label], label)))


def regret(seconds: Mapping[str, float], chosen: str) -> float:
    """True seconds of the chosen over those of the best."""
    return seconds[chosen] / min(seconds.values())


def agreement(predicted: Mapping[str, float], true: Mapping[str, float]) -> tuple[int, int]:
    """Of the pairs whose true times clearly differ: how many are predicted in the right order, and all."""
    clear = [
        (a, b) for a, b in combinations(true, 2) if max(true[a], true[b]) / min(true[a], true[b]) >= CLEAR
    ]
    right = sum((predicted[a] < predicted[b]) == (true[a] < true[b]) for a, b in clear)
    return right, len(clear)


def line(case: Case, predicted: Mapping[str, float], true: Mapping[str, float], found: str) -> str:
    """One row of the table.

    Args:
        case: what was run.
        predicted: seconds by label, of `LOADERS`.
        true: the same, and that of `FOUND`.
        found: what `find_best` chose, in words.
    """
    theirs = {label: true[label] for label in predicted}
    right, clear = agreement(predicted, theirs)
    choice, best = order(predicted)[0], order(theirs)[0]
    said = " < ".join(f"{label} {predicted[label]:.2f}" for label in order(predicted))
    was = " < ".join(f"{label} {theirs[label]:.2f}" for label in order(theirs))
    return (
        f"{case.workload:<10} {case.samples:>6}  predicted s: {said}  true s: {was}"
        f"  {right} of {clear} clear pairs in order  choice {choice}, best {best},"
        f" regret {regret(theirs, choice):.3f}  find_best: {found}, {true[FOUND]:.2f} s,"
        f" regret {regret(true, FOUND):.3f}"
    )


def loader_settings(yours: Settings, num_workers: int, persistent: bool) -> Settings:
    """*Yours* with these workers."""
    prefetch = DEFAULT_PREFETCH if num_workers else None
    return yours.replace(num_workers=num_workers, persistent_workers=persistent, prefetch_factor=prefetch)


def measure(case: Case, args: argparse.Namespace, raw: RawFile) -> str:
    """Run one case and say what came of it."""
    from whole_runs import Parts, Subject, in_parts, observe, predict, typical_s, workload_of

    from autotune.measure.payload import pickle_workload
    from autotune.measure.process_runner import ProcessRunner

    place = f"{case.workload}/{case.samples}"
    subject = Subject(
        workload=case.workload, samples=case.samples, epochs=args.epochs, window_s=args.window_s
    )
    found = raw.once(f"{place}/find_best", lambda: find_best(case, args.epochs, args.budget))
    chosen = decode(Outcome, found).verdict.winner
    said: dict[str, list[Parts]] = {label: [] for label in LOADERS}
    ran: dict[str, list[Parts]] = {label: [] for label in (*LOADERS, FOUND)}
    with ProcessRunner(pickle_workload(workload_of(case.workload, case.samples))) as runner:
        yours = runner.describe().yours
        tried = {label: loader_settings(yours, *workers) for label, workers in LOADERS.items()}
        same = next((label for label, settings in tried.items() if settings == chosen), None)
        runs = list(tried.items()) + ([] if same else [(FOUND, chosen)])
        for repeat in range(case.repeats):
            for label, settings in runs if repeat % 2 == 0 else runs[::-1]:
                key = f"{place}/{settings.key()}/{repeat}"
                if label in said:
                    said[label].append(predict(runner, raw, key, subject, settings, repeat))
                ran[label].append(observe(raw, key, subject, settings))
    ran[FOUND] = ran[same or FOUND]
    if args.parts:
        for label, parts in said.items():
            print(f"  {label:<3} predicted s: {in_parts(parts)}   true s: {in_parts(ran[label])}")
    predicted = {label: typical_s(parts) for label, parts in said.items()}
    true = {label: typical_s(parts) for label, parts in ran.items()}
    return line(case, predicted, true, same or str(chosen.changed_from(yours)))


def find_best(case: Case, epochs: int, budget: str) -> Any:
    """What the tuner chooses of the loader's settings, for a run of so many epochs; raw data."""
    from whole_runs import workload_of

    import autotune

    workload = workload_of(case.workload, case.samples)
    listener = LineListener(lambda text: print(text, file=sys.stderr, flush=True))
    with tempfile.TemporaryDirectory() as folder:
        best = autotune.find_best(
            workload,
            allow="exact",
            budget=budget,
            epochs=epochs,
            storage=str(Path(folder) / "study.journal"),
            listener=listener,
        )
    if not best.complete:
        raise KeyboardInterrupt
    return encode(replace(best.outcome, study=""))


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cases", nargs="+", type=Case.parse, default=[Case.parse(case) for case in CASES])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--budget", default="60s", help="of each run of find_best")
    parser.add_argument("--window-s", type=float, default=3.0, help="timed seconds of each trial")
    parser.add_argument("--parts", action="store_true", help="also where the seconds of each run go")
    parser.add_argument("--out", type=Path, default=Path("startup.json.gz"), metavar="FILE")
    return parser.parse_args(argv)


def main() -> None:
    args = arguments(sys.argv[1:])
    names = {name: getattr(args, name) for name in ("epochs", "budget", "window_s")}
    raw = RawFile(args.out, identity("startup", **names))
    for case in args.cases:
        print(measure(case, args, raw), flush=True)


if __name__ == "__main__":
    main()
