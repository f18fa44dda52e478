"""Whole training runs for real, as a user's own loop does them: the truth that predictions are held against.

    python benchmarks/whole_runs.py mnist --samples 500 --epochs 3

One process for each run: the DataLoader is made with the settings, the kit is applied, and every epoch is
trained to its last step. Prints the run's times as JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from raw_file import RawFile
from torch.utils.data import Dataset

from autotune import Workload
from autotune.codec import decode, encode
from autotune.errors import BaselineError
from autotune.kit import Kit, make_kit
from autotune.measure.load import LoadMeter
from autotune.measure.loaders import build_loader, parts_of
from autotune.measure.seam import Runner
from autotune.settings import Settings
from autotune.trial import Failure, Measurement, TrialSpec

RUN_TIMEOUT_S = 1800.0


class Cycled(Dataset[Any]):
    """A dataset of another length: its first samples, or all of them again and again."""

    def __init__(self, dataset: Any, samples: int) -> None:
        self.dataset, self.samples, self._held = dataset, samples, len(dataset)

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index % self._held]


def workload_of(name: str, samples: int) -> Workload:
    """A real workload with an epoch of that length; everything else is as it was."""
    from real_workloads import WORKLOADS

    workload = WORKLOADS[name]()
    return workload.with_(dataset=Cycled(workload.dataset, samples))


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """One epoch of a run, in seconds."""

    steps: int
    first_batch_s: float
    """From `iter(loader)` to the first batch."""
    first_step_s: float
    elapsed_s: float
    """From `iter(loader)` to the end of the last step."""
    closing_s: float
    """From the end of the last step to the end of the loop: workers that do not persist are ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeRun:
    """A run of several epochs."""

    samples: int
    """In an epoch."""
    settings: Settings
    epochs: tuple[Epoch, ...]
    total_s: float
    """From before the DataLoader was made to the end of the last step."""
    foreign_cpus: float | None = None
    """CPUs that other processes kept busy meanwhile."""
    page_faults: int = 0
    """Pages of memory that the training process had to ask for: the allocator gave them back before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Where the seconds of a run go."""

    begin_s: float
    """The first start: what its first batch and first step take beyond a steady step."""
    restarts_s: float
    """The same at every further epoch, with the end of the one before."""
    steps_s: float
    """All steps, each of them at the steady pace."""

    @property
    def total_s(self) -> float:
        """Seconds of the whole run."""
        return self.begin_s + self.restarts_s + self.steps_s


def true_parts(run: WholeRun) -> Parts:
    """The parts of a run; the steady pace is that of all steps but the first of each epoch."""
    later_s = sum(e.elapsed_s - e.first_batch_s - e.first_step_s for e in run.epochs)
    later = sum(e.steps - 1 for e in run.epochs)
    step_s = later_s / later if later else 0.0
    starts_s = [e.first_batch_s + e.first_step_s - step_s for e in run.epochs]
    closings_s = sum(e.closing_s for e in run.epochs[:-1])
    steps_s = step_s * sum(e.steps for e in run.epochs)
    begin_s = run.total_s - closings_s - sum(starts_s[1:]) - steps_s  # with what making the loader takes
    return Parts(begin_s=begin_s, restarts_s=sum(starts_s[1:]) + closings_s, steps_s=steps_s)


def predicted_parts(measured: Measurement, samples: int, epochs: int) -> Parts:
    """The parts of what `Measurement.run_s` says of the run."""
    whole_s = measured.run_s(samples, epochs)
    assert whole_s is not None, "the length of an epoch is known"
    steps_s = epochs * samples / measured.samples_per_s
    restarts_s = (epochs - 1) * measured.restart_s
    return Parts(begin_s=whole_s - restarts_s - steps_s, restarts_s=restarts_s, steps_s=steps_s)


def train(workload: Workload, settings: Settings, epochs: int) -> WholeRun:
    """Train for so many epochs in this process."""
    torch.manual_seed(0)
    parts = parts_of(workload)
    assert parts is not None, "these workloads have a dataset"
    with make_kit(
        settings,
        None,
        workload.model,
        workload.optimizer,
        loss=workload.loss,
        step=workload.step,
        train_step=workload.train_step,
        device=workload.device,
    ) as kit:
        meter = LoadMeter()
        meter.start()
        faults = _page_faults()
        started_s = time.perf_counter()
        loader = build_loader(parts, settings.loader)
        seen = [_epoch(loader, kit) for _ in range(epochs)]
        total_s = time.perf_counter() - started_s - seen[-1].closing_s
        load, faults = meter.stop(), _page_faults() - faults
    return WholeRun(
        samples=len(parts.dataset),
        settings=settings,
        epochs=tuple(seen),
        total_s=total_s,
        foreign_cpus=load.foreign_cpus,
        page_faults=faults,
    )


def _page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _epoch(loader: Any, kit: Kit) -> Epoch:
    steps, done = len(loader), 0
    first_batch_s = first_step_s = elapsed_s = 0.0
    started_s = time.perf_counter()
    for batch in loader:
        if done == 0:
            first_batch_s = time.perf_counter() - started_s
        loss = kit.step(batch)
        done += 1
        if done == steps:
            float(loss)  # waits for the device
            elapsed_s = time.perf_counter() - started_s
        if done == 1:
            first_step_s = time.perf_counter() - started_s - first_batch_s
    closing_s = time.perf_counter() - started_s - elapsed_s
    return Epoch(
        steps=done,
        first_batch_s=first_batch_s,
        first_step_s=first_step_s,
        elapsed_s=elapsed_s,
        closing_s=closing_s,
    )


def run_fresh(name: str, samples: int, settings: Settings, epochs: int) -> WholeRun:
    """The same in a process of its own.

    Raises:
        subprocess.SubprocessError: when it fails or takes longer than `RUN_TIMEOUT_S`.
    """
    command = [sys.executable, str(Path(__file__)), name, "--samples", str(samples), "--epochs", str(epochs)]
    command += ["--settings", json.dumps(encode(settings))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=RUN_TIMEOUT_S, check=True)
    return decode(WholeRun, json.loads(done.stdout.splitlines()[-1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A workload with epochs of one length, trained for so many of them."""

    workload: str
    samples: int
    epochs: int
    window_s: float
    """Timed seconds of the trial that the prediction comes from."""


def predict(runner: Runner, raw: RawFile, key: str, subject: Subject, settings: Settings, seed: int) -> Parts:
    """What a trial of these settings in a fresh process says of the run; measured once for each key."""
    spec = TrialSpec(
        settings=settings, stage="joint", window_s=subject.window_s, fresh_process=True, seed=seed
    )
    measured = decode(Measurement, raw.once(f"{key}/predicted", lambda: encode(measured_by(runner, spec))))
    samples = runner.describe().workload.dataset_samples  # fewer than the dataset holds, with drop_last
    assert samples is not None, "these datasets have a length"
    return predicted_parts(measured, samples, subject.epochs)


def measured_by(runner: Runner, spec: TrialSpec) -> Measurement:
    """What the trial measured.

    Raises:
        BaselineError: when it failed.
    """
    outcome = runner.run(spec)
    if isinstance(outcome, Failure):
        raise BaselineError(f"{spec.settings.key()} does not run", why=outcome.message, fix=outcome.hint)
    return outcome


def observe(raw: RawFile, key: str, subject: Subject, settings: Settings) -> Parts:
    """What the run really took; run once for each key."""

    def run() -> Any:
        return encode(run_fresh(subject.workload, subject.samples, settings, subject.epochs))

    return true_parts(decode(WholeRun, raw.once(f"{key}/true", run)))


def typical_s(found: Sequence[Parts]) -> float:
    """Median seconds of a run."""
    return median(parts.total_s for parts in found)


def in_parts(found: Sequence[Parts]) -> str:
    """Medians of the parts, in words."""
    names = ("begin", "restarts", "steps")
    values = [median(getattr(parts, f"{name}_s") for parts in found) for name in names]
    return "  ".join(f"{name} {value:7.3f}" for name, value in zip(names, values))


def main() -> None:
    """Train once and print the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("workload")
    parser.add_argument("--samples", type=int, required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--settings", default="", help="JSON, as in a file of raw data; *yours* without")
    args = parser.parse_args()
    workload = workload_of(args.workload, args.samples)
    parts = parts_of(workload)
    assert parts is not None, "these workloads have a dataset"
    settings = (
        decode(Settings, json.loads(args.settings)) if args.settings else Settings(loader=parts.settings)
    )
    print(json.dumps(encode(train(workload, settings, args.epochs))))


if __name__ == "__main__":
    main()
