"""Seconds of training to a fixed test accuracy: torch's defaults, and what find_best makes of them.

    python benchmarks/time_to_accuracy.py --data mnist --seeds 3 --budget 120s --out mnist-accuracy.json.gz
    python benchmarks/time_to_accuracy.py --data photos --target 50 --out photos-accuracy.json.gz

find_best runs once with the batch kept, once with its own recommendation, and once for throughput alone;
with `--profiles DIR` those of `kept.yaml`, `recommended.yaml` and `throughput.yaml` that are there are taken
instead. Then every row is trained for real, each run in a fresh process, by turns; in one round all rows
start from the same weights. Seconds are those of training, without looks at the test set.

Prints medians and ranges, and whether the recommendation holds: at least as fast to the target as every
other row, and after equal epochs no more than 0.3 points under the defaults; beside that, what seeds leave
to chance, in accuracy and, pair by pair, in seconds. Rows that train alike share their runs. How many samples
a target takes is a matter of batch and numbers alone, and of luck: rows that have these in common pool their
samples to the target, and differ by how fast they go through as many. Started again with the same file it
goes on.
Data: the folder named by AUTOTUNE_DATA.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accuracy_rows import ROWS, beside, judged, rows_of, seconds_to, table
from accuracy_runs import Job, Mark, averaged, run_fresh, runs_file, task_of
from raw_file import RawFile
from torch.nn.functional import cross_entropy

import autotune
from autotune.codec import decode
from autotune.outcome import Recipe
from autotune.profile.schema import Profile
from autotune.profile.yaml_io import dumps, loads
from autotune.settings import LoaderSettings, Settings

EPOCHS = {"mnist": 3, "photos": 3}
BATCH = {"mnist": 64, "photos": 32}
TARGET: dict[str, float | None] = {"mnist": 98.0, "photos": None}
"""Percent of the test set; None where `--target` has to say so."""
EVERY = {"mnist": 2000, "photos": 1000}


TUNED: dict[str, dict[str, Any]] = {
    "kept": {"allow": "numerics"},
    "recommended": {"allow": "recipe"},
    "throughput": {"allow": "recipe", "objective": "throughput"},
}
"""What find_best is asked for each kind of row."""


def tune(job: Job, tuning: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """The profile that find_best gives, as YAML."""
    task = task_of(job)
    with tempfile.TemporaryDirectory() as folder:
        best = autotune.find_best(
            task.model,
            task.train,
            loss=cross_entropy,
            optimizer=task.optimizer,
            batch_size=job.batch_size,
            device=job.device,
            storage=str(Path(folder) / "study.journal"),
            warm_start=False,  # each kind of row by itself
            name=f"{job.data}-accuracy",
            **tuning,
            **options,
        )
    print(best, file=sys.stderr, flush=True)
    return dumps(best.profile)


def training_of(profile: Profile | None, batch_size: int) -> tuple[Settings, Recipe | None]:
    """All that a row's training differs by; a recipe that changes nothing is none."""
    defaults = Settings(loader=LoaderSettings(batch_size=batch_size))
    if profile is None:
        return defaults, None
    recipe = profile.recipe
    changes = recipe is not None and (
        recipe.growth != 1 or recipe.decay is not None or recipe.accumulation_steps > 1
    )
    # What was found of *yours*, such as the number of threads, says the same as leaving it alone.
    as_yours = profile.settings == profile.measured.yours_settings
    return (defaults if as_yours else profile.settings), recipe if changes else None


def twins(profiles: Mapping[str, Profile | None], batch_size: int) -> dict[str, str]:
    """For each row the first one that trains the same way, which may be itself."""
    first: dict[str, str] = {}
    known: list[tuple[tuple[Settings, Recipe | None], str]] = []
    for name, profile in profiles.items():
        training = training_of(profile, batch_size)
        same = next((row for seen, row in known if seen == training), name)
        known.append((training, same))
        first[name] = same
    return first


def learning(profiles: Mapping[str, Profile | None], batch_size: int) -> dict[str, str]:
    """For each row the first one that trains in the same batches with the same numbers, however fast."""
    first: dict[tuple[int | None, Recipe | None], str] = {}
    found = {}
    for name, profile in profiles.items():
        settings, recipe = training_of(profile, batch_size)
        found[name] = first.setdefault((settings.loader.batch_size, recipe), name)
    return found


def description(profile: Profile | None, batch_size: int) -> str:
    """What a row changes, in a few words."""
    settings, recipe = training_of(profile, batch_size)
    yours = Settings(loader=LoaderSettings(batch_size=batch_size))
    changes = [f"{knob}={value}" for knob, value in settings.changed_from(yours).items()]
    if recipe is not None and recipe.learning_rates:
        changes.append(f"lr={recipe.learning_rates[0]:.3g}, warmup {recipe.warmup_samples:,} samples")
    return ", ".join(changes)


def profiles_of(
    raw: RawFile, job: Job, tuning: Mapping[str, Any], given: Path | None
) -> dict[str, Profile | None]:
    """Every row's profile, tuned, read or known already; None for a plain loop."""

    def text_of(kind: str) -> str:
        path = None if given is None else given / f"{kind}.yaml"
        return path.read_text() if path is not None and path.exists() else tune(job, tuning, TUNED[kind])

    texts = {kind: raw.once(f"profile/{kind}", partial(text_of, kind)) for kind in TUNED}
    found = {kind: loads(text.encode(), source=f"{kind}.yaml") for kind, text in texts.items()}
    alone = replace(found["recommended"], recipe=None)
    return {"defaults": None, **found, "alone": alone}


def race(raw: RawFile, job: Job, profiles: Mapping[str, Profile | None], seeds: int) -> dict[str, list[Any]]:
    """The runs of all rows, by turns; every other round backwards."""
    same = twins(profiles, job.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        jobs = {}
        for name, profile in profiles.items():
            path = Path(folder) / f"{name}.yaml"
            if profile is not None:
                path.write_text(dumps(profile))
            jobs[name] = replace(job, profile="" if profile is None else str(path))
        runs: dict[str, list[Any]] = {name: [] for name in profiles}
        own = [name for name in profiles if same[name] == name]
        for seed in range(seeds):
            for name in own if seed % 2 == 0 else reversed(own):
                run = replace(jobs[name], seed=seed)
                marks = [decode(Mark, m) for m in raw.once(f"run/{name}/{seed}", partial(run_fresh, run))]
                marks = averaged(marks, job.mean_of)
                runs[name].append(marks)
                reached_s = seconds_to(marks, job.target)
                told = f"{reached_s:.1f} s to the target, at last {marks[-1].accuracy:.2f} %"
                print(f"seed {seed}  {ROWS[name]:<34} {told}", file=sys.stderr, flush=True)
    return {name: runs[same[name]] for name in profiles}


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", choices=sorted(BATCH), default="mnist")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget", default="120s", help="of each run of find_best")
    parser.add_argument("--told-epochs", type=int, help="length of the run that find_best is told, if any")
    parser.add_argument("--profiles", type=Path, metavar="DIR", help="where profiles may lie already")
    parser.add_argument("--target", type=float, help="percent of the test set; 98 for mnist without")
    parser.add_argument("--epochs", type=int, help="equal epochs; 3 without")
    parser.add_argument("--most-epochs", type=int, help="until the target; twice as many without")
    parser.add_argument("--every", type=int, help="samples between two looks at the test set")
    parser.add_argument(
        "--mean-of", type=int, default=1, metavar="N", help="looks in a row that count as one"
    )
    parser.add_argument("--batch-size", type=int, help="of *yours*; 64 for mnist, 32 for photos without")
    parser.add_argument("--lr", type=float, help="of *yours*; the example's own without")
    parser.add_argument("--samples", type=int, help="train on the first so many samples only")
    parser.add_argument("--crop", type=int, default=64, help="side of the photos in pixels")
    parser.add_argument("--net", default="resnet18", help="what learns the photos, by torchvision's name")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), help="beside defaults and recommended; all")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=None, metavar="FILE", help="raw data")
    args = parser.parse_args(argv)
    if args.target is None and TARGET[args.data] is None:
        parser.error(f"--target is needed for {args.data}")
    return args


def job_of(args: argparse.Namespace) -> Job:
    """What all runs have in common."""
    epochs, target = args.epochs or EPOCHS[args.data], args.target or TARGET[args.data]
    assert target is not None, "the parser asked for it"
    return Job(
        data=args.data,
        seed=0,
        profile="",
        batch_size=args.batch_size or BATCH[args.data],
        epochs=epochs,
        most_epochs=max(epochs, args.most_epochs or 2 * epochs),
        target=target,
        every=args.every or EVERY[args.data],
        samples=args.samples,
        crop=args.crop,
        device=args.device,
        lr=args.lr,
        mean_of=args.mean_of,
        net=args.net,
    )


def main() -> None:
    args = arguments(sys.argv[1:])
    job = job_of(args)
    tuning = {"budget": args.budget, "epochs": args.told_epochs}
    out = args.out or Path(f"{args.data}-accuracy.json.gz")
    raw = runs_file(out, "time_to_accuracy", job, ("seed", "profile"), tuning=tuning)
    shown = {"defaults", "recommended", *(args.rows or ROWS)}
    profiles = profiles_of(raw, job, tuning, args.profiles)
    profiles = {name: profile for name, profile in profiles.items() if name in shown}
    runs = race(raw, job, profiles, args.seeds)
    rows = rows_of(runs, learning(profiles, job.batch_size), job.target, job.epochs)
    notes = {name: description(profile, job.batch_size) for name, profile in profiles.items()}
    length = "" if job.samples is None else f"{job.samples:,} samples, "
    print(f"{job.data}, {length}{args.seeds} seeds, {job.device}, torch {torch.__version__}\n")
    print(table(rows, notes, job.target, job.epochs), end="\n\n")
    print(beside(rows), end="\n\n")
    print(judged(rows))


if __name__ == "__main__":
    main()
