"""Records run after run of *yours*, to be judged later: alone on the machine, or beside a neighbour.

    python benchmarks/record_windows.py mnist tabular --neighbour busy --out benchmarks/data

Each run is a trial with the window of the finals of a three-minute budget, all in one bench process. The
runs go to `windows-WORKLOAD-quiet.jsonl.gz` or `windows-WORKLOAD-busy.jsonl.gz` in the folder `--out`, in
the order in which they ran (`benchmarks/grids.py` reads them, `benchmarks/aa.py` judges them). A workload
whose file is complete is passed over, one that was cut off is recorded anew. 40 runs take one to three
minutes; one line is printed for each workload. The neighbour (`benchmarks/burner.py`) uses two thirds of one
CPU in bursts of seconds, and has ended when this ends.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from burner import Burner
from grids import GridWriter, Header, read_grid

from autotune.errors import StudyError
from autotune.measure.seam import Description, Runner
from autotune.search.cost import min_blocks, window_s
from autotune.trial import Failure, Measurement, Trial, TrialSpec

BUDGET_S = 180.0
WINDOWS = 1.5
"""Windows of the search that a final is timed for (`autotune.search.cost`)."""
CPU_WORKLOADS = ("mnist", "photos-64", "char-lm", "tabular", "io-bound", "autoencoder", "photos-96")
LONGEST_RUN_S = 30.0
"""Beyond what a run should take by far: bounds the neighbour, which ends by itself too."""


def final_spec(description: Description, timed_s: float | None = None) -> TrialSpec:
    """A final of *yours*, timed for so long or as in a run of three minutes."""
    step_s, yours = description.workload.step_s, description.yours
    timed_s = timed_s or WINDOWS * window_s(BUDGET_S, step_s)
    return TrialSpec(
        settings=yours,
        stage="final",
        window_s=timed_s,
        min_blocks=min_blocks(timed_s, step_s, yours.loader.num_workers),
    )


def path_of(folder: Path, workload: str, neighbour: str) -> Path:
    """Where the runs of a workload lie."""
    return folder / f"windows-{workload}-{'busy' if neighbour == 'busy' else 'quiet'}.jsonl.gz"


def complete(path: Path, runs: int) -> bool:
    """Whether the file holds so many runs already."""
    return path.exists() and len(read_grid(path).trials) >= runs


def record(runner: Runner, path: Path, header: Header, spec: TrialSpec, runs: int) -> list[Measurement]:
    """Runs one after the other, each written at once.

    Raises:
        StudyError: when one fails, as nothing can be compared with it.
    """
    measured: list[Measurement] = []
    writer = GridWriter(path, header)
    try:
        for number in range(runs):
            found = runner.run(spec)
            if isinstance(found, Failure):
                raise StudyError(f"run {number} of {header.workload} failed", why=found.message)
            measured.append(found)
            writer.add(Trial(number=number, spec=spec, measurement=found))
    finally:
        writer.close()
    return measured


def line(workload: str, neighbour: str, measured: Sequence[Measurement], took_s: float) -> str:
    """What a workload's runs were like."""
    rates = [found.samples_per_s for found in measured]
    spread = stdev(rates) / mean(rates) if len(rates) > 1 else 0.0
    drift = mean(rates[-len(rates) // 2 :]) / mean(rates[: (len(rates) + 1) // 2]) - 1
    return (
        f"{workload:<12} neighbour {neighbour:<5} {len(rates):>3} runs  {mean(rates):9.1f} samples/s"
        f"  spread {spread:6.2%}  second half {drift:+6.2%}"
        f"  disturbed {sum(found.disturbed for found in measured):>3}  {took_s:4.0f} s"
    )


def record_workload(name: str, args: argparse.Namespace, path: Path) -> str:
    """All runs of one workload; the line about them."""
    from real_workloads import WORKLOADS

    from autotune.measure.payload import pickle_workload
    from autotune.measure.process_runner import ProcessRunner

    started = time.monotonic()
    with ProcessRunner(pickle_workload(WORKLOADS[name]())) as runner:
        description = runner.describe()
        spec = final_spec(description, args.window_s)
        command = " ".join(["python", "benchmarks/record_windows.py", *sys.argv[1:]])
        header = Header(workload=name, command=command, description=description, axes=())
        beside = (
            Burner(at_most_s=args.runs * LONGEST_RUN_S)
            if args.neighbour == "busy"
            else contextlib.nullcontext()
        )
        with beside:
            measured = record(runner, path, header, spec, args.runs)
    return line(name, args.neighbour, measured, time.monotonic() - started)


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("workloads", nargs="*", default=CPU_WORKLOADS, metavar="WORKLOAD")
    parser.add_argument("--runs", type=int, default=40, help="of each workload")
    parser.add_argument("--neighbour", choices=("none", "busy"), default="none", help="what runs beside it")
    parser.add_argument("--window-s", type=float, default=None, help="timed seconds of a run")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/data"), metavar="FOLDER")
    return parser.parse_args(argv)


def main() -> None:
    args = arguments(sys.argv[1:])
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.workloads:
        path = path_of(args.out, name, args.neighbour)
        if complete(path, args.runs):
            print(f"{name:<12} neighbour {args.neighbour:<5} {path} is complete", flush=True)
        else:
            print(record_workload(name, args, path), flush=True)


if __name__ == "__main__":
    main()
