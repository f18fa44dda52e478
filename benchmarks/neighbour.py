"""What the tuner chooses beside a busy neighbour, against what it chooses on a quiet machine.

    python benchmarks/neighbour.py --workloads photos-64 mnist --runs 5 --budget 90s --out neighbour.json.gz

Tunes each workload on the quiet machine, then several times beside a neighbour that keeps two thirds of a CPU
busy in bursts, and then, quiet again, runs all that was chosen beside the quiet choice, in pairs of fresh
processes in turn. A run passes when its choice is at least 97 % as fast as the quiet one, or when the tuner
said that it cannot judge. *Yours* kept because nothing was faster is a choice like any other.

Prints one line per run and one per workload. FILE keeps every trial, verdict and pair; started again with it,
the script goes on where it stopped. Takes RUNS + 1 budgets and about 80 s for each different choice.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from burner import Burner
from raw_file import RawFile, identity

from autotune.codec import decode, encode
from autotune.errors import AutotuneError, BudgetError
from autotune.measure.seam import Runner
from autotune.measure.stats import ratio_interval
from autotune.outcome import Interval, Outcome
from autotune.report.progress import LineListener
from autotune.search.verdict import disturbed_finals, pairs
from autotune.settings import Settings
from autotune.trial import Failure, Trial, TrialSpec
from autotune.units import parse_duration_s

LEAST = 0.97
"""Part of the quiet choice's rate that a choice beside the neighbour must reach."""
_BUSY = ("busy", "disturb", "noisy")
_OVERTIME = 3.0
"""Budgets after which the neighbour ends by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What one run of the tuner chose."""

    settings: Settings | None
    """None where it ended with an error."""
    kind: str
    """The verdict's, or the code of the error."""
    sentence: str
    cannot_judge: bool
    """Whether it said that the machine does not let it judge."""
    neighbour_cpus: float = 0.0


def choice_of(raw: dict[str, Any]) -> Choice:
    """The choice as a file of raw data holds it."""
    cpus = raw["neighbour_cpus"]
    if "error" in raw:
        error = raw["error"]
        said = f"{error['what']} {error['why']}".lower()
        busy = error["code"] == BudgetError.code and any(word in said for word in _BUSY)
        return Choice(
            settings=None,
            kind=error["code"],
            sentence=error["what"],
            cannot_judge=busy,
            neighbour_cpus=cpus,
        )
    verdict = decode(Outcome, raw["outcome"]).verdict
    return Choice(
        settings=verdict.winner,
        kind=verdict.kind,
        sentence=verdict.sentence,
        cannot_judge=verdict.kind == "unsure",
        neighbour_cpus=cpus,
    )


def passes(choice: Choice, ratio: Interval | None) -> bool:
    """Whether the run did what a run beside a neighbour should.

    Args:
        choice: what it chose.
        ratio: of the choice's quiet rate over the quiet choice's; None where there are no pairs.
    """
    return choice.cannot_judge or (ratio is not None and ratio.value >= LEAST)


def quiet_ratio(reference: Settings, chosen: Settings | None, trials: Sequence[Trial]) -> Interval | None:
    """The chosen settings' rate over the reference's, from their pairs; exactly 1 for equal settings."""
    if chosen is None:
        return None
    if chosen == reference:
        return Interval(value=1.0, low=1.0, high=1.0)
    found = pairs(reference, chosen, trials, samples=None, epochs=None)
    return ratio_interval(found) if len(found) >= 2 else None


def tune_once(make: Callable[[], Any], budget: str, seed: int, *, neighbour: bool) -> dict[str, Any]:
    """One run of the tuner; raw data."""
    import autotune

    burner = Burner(at_most_s=_OVERTIME * parse_duration_s(budget), seed=seed)
    listener = LineListener(lambda text: print(text, file=sys.stderr, flush=True))
    workload = make()
    with tempfile.TemporaryDirectory() as folder, burner if neighbour else nullcontext():
        storage = str(Path(folder) / "study.journal")
        try:
            best = autotune.find_best(workload, budget=budget, seed=seed, storage=storage, listener=listener)
            if not best.complete:
                raise KeyboardInterrupt
            found = {"outcome": encode(replace(best.outcome, study=""))}
        except AutotuneError as error:
            found = {"error": {"code": error.code, "what": error.what, "why": error.why}}
    return {**found, "neighbour_cpus": burner.cpus}


def run_pairs(
    runner: Runner, raw: RawFile, prefix: str, sides: tuple[Settings, Settings], count: int, window_s: float
) -> list[Trial]:
    """The two settings in turn, every other pair backwards, each in a fresh process."""
    found: list[Trial] = []
    for pair in range(count):
        for settings in sides if pair % 2 == 0 else sides[::-1]:
            spec = TrialSpec(
                settings=settings, stage="final", pair=pair, window_s=window_s, fresh_process=True, seed=pair
            )
            number = len(found)

            def measure(spec: TrialSpec = spec, number: int = number) -> Any:
                outcome = runner.run(spec)
                failed = isinstance(outcome, Failure)
                return encode(
                    Trial(
                        number=number,
                        spec=spec,
                        measurement=None if failed else outcome,
                        failure=outcome if failed else None,
                    )
                )

            held = raw.once(f"{prefix}/{pair}/{'reference' if settings == sides[0] else 'chosen'}", measure)
            found.append(decode(Trial, held))
    return found


def case(name: str, args: argparse.Namespace, raw: RawFile) -> str:
    """One workload; prints a line per run and returns the workload's."""
    from real_workloads import WORKLOADS

    from autotune.measure.payload import pickle_workload
    from autotune.measure.process_runner import ProcessRunner

    def tuned(label: str, seed: int, *, neighbour: bool) -> dict[str, Any]:
        return raw.once(
            f"{name}/{label}/{seed}",
            lambda: tune_once(WORKLOADS[name], args.budget, seed, neighbour=neighbour),
        )

    quiet = [choice_of(tuned("quiet", seed, neighbour=False)) for seed in range(args.quiet_runs)]
    loud = [choice_of(tuned("neighbour", seed, neighbour=True)) for seed in range(args.runs)]
    reference = quiet[0].settings
    if reference is None:
        return f"{name:<18} no quiet choice: {quiet[0].sentence}"
    seen = dict.fromkeys(choice.settings for choice in (*quiet, *loud))
    others = [settings for settings in seen if settings is not None and settings != reference]
    trials: dict[Settings, list[Trial]] = {}
    with ProcessRunner(pickle_workload(WORKLOADS[name]())) as runner:
        for other in others:
            prefix, sides = f"{name}/pairs/{other.key()}", (reference, other)
            trials[other] = run_pairs(runner, raw, prefix, sides, args.pairs, args.window_s)
    ratios = [(c, quiet_ratio(reference, c.settings, trials.get(c.settings, []))) for c in (*quiet, *loud)]
    for number, (choice, ratio) in enumerate(ratios):
        label = f"quiet {number + 1}" if number < len(quiet) else f"neighbour {number + 1 - len(quiet)}"
        print(run_line(name, label, choice, ratio, reference), flush=True)
    return workload_line(name, ratios[len(quiet) :], [t for both in trials.values() for t in both])


def run_line(name: str, label: str, choice: Choice, ratio: Interval | None, reference: Settings) -> str:
    """One row for a run."""
    figure = "-" if ratio is None else f"{ratio.value:.3f} ({ratio.low:.3f} to {ratio.high:.3f})"
    changed = {} if choice.settings is None else choice.settings.changed_from(reference)
    unlike = ", ".join(f"{knob}={value}" for knob, value in changed.items()) or "as the quiet choice"
    passed = "pass" if passes(choice, ratio) else "FAIL"
    return (
        f"{name:<18} {label:<12} {choice.kind:<8} of the quiet rate {figure:<24} {passed}"
        f"  neighbour {choice.neighbour_cpus:.2f} CPUs  {unlike if choice.settings else choice.sentence}"
    )


def workload_line(name: str, loud: Sequence[tuple[Choice, Interval | None]], trials: Sequence[Trial]) -> str:
    """One row for a workload."""
    passed = sum(passes(choice, ratio) for choice, ratio in loud)
    unsure = sum(choice.cannot_judge for choice, _ in loud)
    worst = min((r.value for c, r in loud if r is not None and not c.cannot_judge), default=float("nan"))
    disturbed, count = disturbed_finals(trials)
    return (
        f"{name:<18} {passed} of {len(loud)} runs pass, {unsure} of them cannot judge"
        f"  worst choice {worst:.3f} of the quiet rate  pairs: {disturbed} of {count} trials disturbed"
    )


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--workloads", nargs="+", default=["photos-64", "mnist"])
    parser.add_argument("--runs", type=int, default=5, help="tuning runs beside the neighbour")
    parser.add_argument("--quiet-runs", type=int, default=1, help="the first is the quiet choice")
    parser.add_argument("--budget", default="90s", help="of each tuning run")
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--window-s", type=float, default=3.0, help="timed seconds of each side of a pair")
    parser.add_argument("--out", type=Path, default=Path("neighbour.json.gz"), metavar="FILE")
    return parser.parse_args(argv)


def main() -> None:
    args = arguments(sys.argv[1:])
    raw = RawFile(args.out, identity("neighbour", budget=args.budget, window_s=args.window_s))
    print("\n".join([case(name, args, raw) for name in args.workloads]))


if __name__ == "__main__":
    main()
