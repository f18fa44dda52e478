"""How near a prediction from a few seconds of steps comes to what three epochs really take.

    python benchmarks/predicted_epochs.py --out predicted.json.gz

For each workload, *yours* and one tuned setting (two persistent workers, memory kept, and bfloat16 where the
hardware has it, else the fused optimizer): `Measurement.run_s` for three epochs against such a run made, from
the making of its DataLoader to its last step; both in fresh processes, in turn. Epochs are made so long that
the run of *yours* takes about 15 seconds. Prints one line per case; 10 % is the goal.

FILE keeps every trial and every run; started again with it, the script goes on where it stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from raw_file import RawFile, identity

from autotune.measure.seam import Description
from autotune.settings import Settings
from autotune.space.rules import DEFAULT_PREFETCH, host_memory_kept, runs_in

if TYPE_CHECKING:
    from whole_runs import Parts

WORKLOADS = ("mnist", "photos-64", "char-lm", "tabular", "io-bound", "autoencoder")
GOAL = 0.10


def tuned_from(description: Description) -> Settings:
    """The tuned setting of a workload."""
    machine, workload = description.machine, description.workload
    workers = description.yours.replace(
        num_workers=2,
        persistent_workers=True,
        prefetch_factor=DEFAULT_PREFETCH,
        keep_host_memory=not host_memory_kept(machine, workload),
    )
    if runs_in("bfloat16", machine, workload):
        return workers.replace(precision="bfloat16")
    return workers.replace(fused_optimizer=workload.fused_available)


def epoch_samples(samples_per_s: float, run_s: float, epochs: int) -> int:
    """The length of an epoch for a run of about `run_s`, to two digits."""
    return int(float(f"{samples_per_s * run_s / epochs:.1e}"))


def line(name: str, label: str, samples: int, predicted_s: float, true_s: Sequence[float]) -> str:
    """One row of the table; the error is of the prediction against the mean of the runs."""
    error = predicted_s / (sum(true_s) / len(true_s)) - 1
    really = " ".join(f"{one:6.2f}" for one in true_s)
    return (
        f"{name:<12} {label:<6} {samples:>8} samples  predicted {predicted_s:6.2f} s  really {really} s"
        f"  error {error:+7.1%}  {'pass' if abs(error) <= GOAL else 'FAIL'}"
    )


def measure(name: str, args: argparse.Namespace, raw: RawFile) -> list[str]:
    """The rows of one workload."""
    from whole_runs import Subject, in_parts, measured_by, observe, predict, typical_s, workload_of

    from autotune.measure.payload import pickle_workload
    from autotune.measure.process_runner import ProcessRunner
    from autotune.trial import TrialSpec

    def length() -> int:
        with ProcessRunner(pickle_workload(workload_of(name, args.probe_samples))) as runner:
            spec = TrialSpec(settings=runner.describe().yours, stage="yours")
            return epoch_samples(measured_by(runner, spec).samples_per_s, args.run_s, args.epochs)

    samples = raw.once(f"{name}/samples", length)
    subject = Subject(workload=name, samples=samples, epochs=args.epochs, window_s=args.window_s)
    said: dict[str, list[Parts]] = {}
    ran: dict[str, list[Parts]] = {}
    with ProcessRunner(pickle_workload(workload_of(name, samples))) as runner:
        description = runner.describe()
        runs = [("yours", description.yours), ("tuned", tuned_from(description))]
        for repeat in range(args.repeats):
            for label, settings in runs if repeat % 2 == 0 else runs[::-1]:
                key = f"{name}/{label}/{repeat}"
                predicted = predict(runner, raw, key, subject, settings, repeat)
                said.setdefault(label, []).append(predicted)
                ran.setdefault(label, []).append(observe(raw, key, subject, settings))
    rows = []
    for label, _ in runs:
        rows.append(line(name, label, samples, typical_s(said[label]), [p.total_s for p in ran[label]]))
        if args.parts:
            rows.append(f"    predicted s: {in_parts(said[label])}   true s: {in_parts(ran[label])}")
    return rows


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--run-s", type=float, default=15.0, help="seconds that the run of yours is to take")
    parser.add_argument("--window-s", type=float, default=3.0, help="timed seconds of each trial")
    parser.add_argument("--probe-samples", type=int, default=10_000, help="epoch of the first look")
    parser.add_argument("--parts", action="store_true", help="also where the seconds of each run go")
    parser.add_argument("--out", type=Path, default=Path("predicted.json.gz"), metavar="FILE")
    return parser.parse_args(argv)


def main() -> None:
    args = arguments(sys.argv[1:])
    names = {name: getattr(args, name) for name in ("epochs", "run_s", "window_s")}
    raw = RawFile(args.out, identity("predicted_epochs", **names))
    for name in args.workloads:
        print("\n".join(measure(name, args, raw)), flush=True)


if __name__ == "__main__":
    main()
