"""Runs that are trained for real and looked at with a test set on the way, each in a process of its own.

The clock runs from before the DataLoader is made. It stands still while the weights are copied for the test
set, which is looked at between epochs: then no worker runs ahead meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from raw_file import RawFile, identity
from real_workloads import PHOTO_REPEATS, data_root
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset
from torchvision import models

import autotune
from autotune.codec import decode, encode

EXAMPLES = Path(__file__).parents[1] / "examples"
RUN_TIMEOUT_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """What the weights were worth at one point of a run."""

    epoch: int
    """From 1."""
    samples: int
    seconds: float
    """Of training until then."""
    accuracy: float
    """Percent of the test samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run: what a process of its own is asked to train."""

    data: str
    seed: int
    profile: str
    """Path of the profile to train with; empty for a plain loop with torch's defaults."""
    batch_size: int
    epochs: int
    most_epochs: int
    """It goes on so long where the target is not reached before."""
    target: float
    every: int
    """Samples between two marks."""
    samples: int | None
    """Of an epoch; None is all."""
    crop: int
    """Side of the photos in pixels."""
    device: str
    lr: float | None = None
    """Of *yours*; the example's own without."""
    mean_of: int = 1
    """Marks in a row whose mean accuracy has to reach the target."""
    net: str = "resnet18"
    """Torchvision's name of what learns the photos."""


LATER_FIELDS: dict[str, Any] = {"lr": None, "mean_of": 1, "net": "resnet18"}
"""What a Job got in later versions, with what it was before."""


def runs_file(path: Path, benchmark: str, job: Job, left_out: Sequence[str], **asked: Any) -> RawFile:
    """The raw data of runs that have all of a job in common but for `left_out`, whatever version began it."""
    run = {name: value for name, value in encode(job).items() if name not in left_out}
    return RawFile(path, identity(benchmark, run=run, **asked), later=LATER_FIELDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is trained, and on what it is tested."""

    model: Callable[[], nn.Module]
    optimizer: Callable[[Any], torch.optim.Optimizer]
    train: Dataset[Any]
    test: tuple[torch.Tensor, torch.Tensor]


def example(name: str) -> Any:
    """A script of the examples as a module."""
    if str(EXAMPLES) not in sys.path:
        sys.path.append(str(EXAMPLES))
    return importlib.import_module(name)


def task_of(job: Job) -> Task:
    """The workloads of the examples; the few hundred photos are repeated, so that an epoch has a length."""
    if job.data == "mnist":
        mnist = example("mnist")
        train, test = mnist.load_data(data_root(), job.samples)
        return Task(model=mnist.ConvNet, optimizer=_at(mnist.sgd, job.lr), train=train, test=test)
    photos, root = example("photos"), data_root() / "clothing"
    train, held_out = photos.photos(root / "train", root / "test", job.crop)
    pictures, labels = next(iter(DataLoader(held_out, batch_size=len(held_out))))
    many: Dataset[Any] = ConcatDataset([train] * PHOTO_REPEATS)
    return Task(
        model=partial(models.get_model, job.net, weights=None, num_classes=len(train.classes)),
        optimizer=_at(photos.sgd, job.lr),
        train=Subset(many, range(job.samples)) if job.samples else many,
        test=(pictures, labels),
    )


def _at(optimizer: Callable[[Any], torch.optim.Optimizer], lr: float | None) -> Any:
    """The same optimizer at another learning rate."""
    return optimizer if lr is None else partial(_at_rate, optimizer, lr)


def _at_rate(optimizer: Callable[[Any], torch.optim.Optimizer], lr: float, params: Any) -> Any:
    made = optimizer(params)
    for group in made.param_groups:
        group["lr"] = lr
    return made


class Clock:
    """Seconds of training, with pauses."""

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self.seconds = 0.0
        self._since = time.perf_counter()

    def pause(self) -> None:
        """Stop once the device has done what it was given."""
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
        self.seconds += time.perf_counter() - self._since

    def resume(self) -> None:
        """Go on."""
        self._since = time.perf_counter()


def train(job: Job, task: Task) -> list[Mark]:
    """Train as a user does, with the profile's loader and kit or with neither."""
    torch.manual_seed(job.seed)
    model = task.model().to(job.device)
    optimizer = task.optimizer(model.parameters())
    generator = torch.Generator().manual_seed(job.seed)
    clock = Clock(job.device)
    with contextlib.ExitStack() as stack:
        if job.profile:
            tuned = autotune.load(job.profile)
            kit = stack.enter_context(tuned.kit(model, optimizer, loss=cross_entropy, device=job.device))
            loader, step = tuned.loader(task.train, generator=generator), kit.step
        else:
            loader = DataLoader(task.train, batch_size=job.batch_size, shuffle=True, generator=generator)
            step = example("photos").plain_step(model, optimizer)
        return _epochs(job, task, model, loader, step, clock)


def _epochs(job: Job, task: Task, model: nn.Module, loader: Any, step: Any, clock: Clock) -> list[Mark]:
    marks: list[Mark] = []
    judge = task.model().to(job.device).eval()
    seen, due = 0, job.every
    for epoch in range(1, job.most_epochs + 1):
        copies: list[tuple[int, float, dict[str, torch.Tensor]]] = []
        for batch in loader:
            step(batch)
            seen += len(batch[1])
            if seen >= due:
                due = seen + job.every
                clock.pause()
                copies.append((seen, clock.seconds, _weights(model)))
                clock.resume()
        clock.pause()
        if not copies or copies[-1][0] < seen:
            copies.append((seen, clock.seconds, _weights(model)))
        for samples, seconds, weights in copies:
            judge.load_state_dict(weights)
            right = example("mnist").accuracy(judge, task.test, torch.device(job.device))
            marks.append(Mark(epoch=epoch, samples=samples, seconds=seconds, accuracy=right))
        if epoch >= job.epochs and first_at(averaged(marks, job.mean_of), job.target) is not None:
            break
        clock.resume()
    return marks


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def run_fresh(job: Job) -> Any:
    """The marks of a run in a process of its own, as JSON.

    Raises:
        subprocess.SubprocessError: when it fails or takes longer than `RUN_TIMEOUT_S`.
    """
    done = subprocess.run(
        [sys.executable, str(Path(__file__)), json.dumps(encode(job))],
        stdout=subprocess.PIPE,
        text=True,
        timeout=RUN_TIMEOUT_S,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def averaged(marks: Sequence[Mark], count: int) -> list[Mark]:
    """Marks with the mean accuracy of so many up to them; of those there are at the beginning.

    Of a few hundred test samples a single mark is luck by some points, and the first at a target comes early.
    """
    return [
        replace(here, accuracy=fmean(mark.accuracy for mark in marks[max(0, place + 1 - count) : place + 1]))
        for place, here in enumerate(marks)
    ]


def first_at(marks: Sequence[Mark], target: float) -> Mark | None:
    """The first mark at or above the target; None where there is none."""
    return next((mark for mark in marks if mark.accuracy >= target), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("job", help="a Job as JSON")
    job = decode(Job, json.loads(parser.parse_args().job))
    print(json.dumps(encode(train(job, task_of(job)))))


if __name__ == "__main__":
    main()
