"""One epoch of MNIST: with torch's defaults, with each well-known trick alone, with what find_best chose.

    python examples/mnist.py                                       # downloads MNIST to ./data
    python examples/mnist.py --data DIR --budget 3m --json out.json

An epoch is timed from the making of the DataLoader to the last step, so starting workers counts. Every row
starts from the same weights and sees the same samples in the same order. Rounds go over all rows in turn,
so that a machine that slows down slows all rows alike.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import datasets, transforms

import autotune

SEED = 0


class ConvNet(nn.Sequential):
    """Two convolutions and two linear layers: (N, 1, 28, 28) to (N, 10)."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(64 * 5 * 5, 128), nn.ReLU(), nn.Linear(128, 10)),
        )


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.05, momentum=0.9)


Train = Callable[[nn.Module, torch.optim.Optimizer, Dataset, int], None]
"""Trains a model on a dataset for so many epochs."""


@dataclass
class Row:
    """A row of the table: how it trains, and what came of it."""

    name: str
    train: Train
    note: str = ""
    epoch_s: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)


@dataclass
class Plain:
    """A training loop as anyone writes it, without autotune; the fields are the tricks."""

    device: torch.device
    batch_size: int
    num_workers: int = 0
    pin_memory: bool = False
    non_blocking: bool = False
    cudnn_benchmark: bool = False
    amp: bool = False

    def __call__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, data: Dataset, epochs: int
    ) -> None:
        """Train `model` for `epochs` epochs."""
        kind = self.device.type
        half = torch.bfloat16 if kind == "cpu" else torch.float16
        scaler = torch.amp.GradScaler(kind, enabled=self.amp and half == torch.float16)
        loader = DataLoader(
            data,
            batch_size=self.batch_size,
            shuffle=True,
            generator=torch.Generator().manual_seed(SEED),
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
        )
        torch.backends.cudnn.benchmark = self.cudnn_benchmark
        for _ in range(epochs):
            for batch in loader:
                images, labels = (part.to(self.device, non_blocking=self.non_blocking) for part in batch)
                optimizer.zero_grad()
                with torch.autocast(kind, dtype=half, enabled=self.amp):
                    loss = cross_entropy(model(images), labels)
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()


@dataclass
class Tuned:
    """The same loop with the loader and the step that find_best chose."""

    best: autotune.Result

    def __call__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, data: Dataset, epochs: int
    ) -> None:
        """Train `model` for `epochs` epochs."""
        loader = self.best.loader(data, generator=torch.Generator().manual_seed(SEED))
        with self.best.kit(model, optimizer, loss=cross_entropy) as kit:
            for _ in range(epochs):
                for batch in loader:
                    kit.step(batch)


def plain_rows(device: torch.device, batch_size: int) -> list[Row]:
    """Torch's defaults first, then each trick alone."""
    workers = os.cpu_count() or 1
    no_copy = "" if device.type != "cpu" else "no accelerator: nothing to copy to"
    no_cudnn = "" if device.type == "cuda" else "no CUDA: nothing to choose"
    tricks: list[tuple[str, dict[str, Any], str]] = [
        ("torch's defaults", {}, ""),
        (f"num_workers={workers}", {"num_workers": workers}, "as many as CPUs"),
        ("pin_memory", {"pin_memory": True}, no_copy),
        ("num_workers + pin_memory", {"num_workers": workers, "pin_memory": True}, no_copy),
        ("cudnn.benchmark", {"cudnn_benchmark": True}, no_cudnn),
        ("AMP", {"amp": True}, "bfloat16" if device.type == "cpu" else "float16"),
        ("non_blocking", {"non_blocking": True}, no_copy or "without pinned memory the host waits"),
    ]
    return [Row(name, Plain(device, batch_size, **trick), note) for name, trick, note in tricks]


def run(row: Row, data: Dataset, test: tuple[torch.Tensor, torch.Tensor], epochs: int, device: Any) -> None:
    """Train a fresh model the row's way, and note seconds per epoch and test accuracy."""
    torch.manual_seed(SEED)
    model = ConvNet().to(device)
    optimizer = sgd(model.parameters())
    synchronize(device)
    started = time.perf_counter()
    row.train(model, optimizer, data, epochs)
    synchronize(device)
    row.epoch_s.append((time.perf_counter() - started) / epochs)
    row.accuracy.append(accuracy(model, test, device))


def synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@torch.no_grad()
def accuracy(model: nn.Module, test: tuple[torch.Tensor, torch.Tensor], device: torch.device) -> float:
    """Percent of the test samples that the model gets right."""
    chunks = zip(test[0].split(1000), test[1].split(1000))
    right = sum(int((model(x.to(device)).argmax(1).cpu() == y).sum()) for x, y in chunks)
    return 100 * right / len(test[1])


def table(rows: list[Row]) -> str:
    """The rows as text, the speed against the first of them."""
    base = statistics.median(rows[0].epoch_s)
    lines = [f"{'':<26} {'s/epoch':>8} {'speed':>7} {'accuracy':>9}"]
    for row in rows:
        epoch_s = statistics.median(row.epoch_s)
        figures = f"{epoch_s:>8.2f} {base / epoch_s:>6.2f}x {statistics.median(row.accuracy):>7.2f} %"
        lines.append(f"{row.name:<26} {figures}  {row.note}".rstrip())
    single = min(rows[1:-1], key=lambda row: statistics.median(row.epoch_s))
    ratio = statistics.median(single.epoch_s) / statistics.median(rows[-1].epoch_s)
    return "\n".join([*lines, "", f"find_best against the best trick ({single.name}): {ratio:.2f}x as fast"])


def load_data(root: Path, samples: int | None) -> tuple[Dataset, tuple[torch.Tensor, torch.Tensor]]:
    """The training set, read through Pillow as usual, and the test set as two tensors."""
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    train = datasets.MNIST(root, train=True, download=True, transform=transform)
    test = datasets.MNIST(root, train=False, download=True, transform=transform)
    images, labels = next(iter(DataLoader(test, batch_size=len(test))))
    return Subset(train, range(samples)) if samples else train, (images, labels)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("AUTOTUNE_DATA", "data"), help="MNIST root"
    )
    parser.add_argument("--budget", default="5m", help="time that find_best may take")
    parser.add_argument("--device", default=None, help="cpu, cuda, ...; the accelerator where there is one")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=1, help="epochs that each row trains")
    parser.add_argument("--repeats", type=int, default=3, help="rounds over all rows; medians are shown")
    parser.add_argument("--samples", type=int, default=None, help="train on the first so many samples only")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="keep the raw figures here")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    # The table itself says which tricks do nothing here.
    warnings.filterwarnings("ignore", message=".*pin_memory.*", category=UserWarning)
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = torch.device(args.device or found or "cpu")
    train, test = load_data(args.data, args.samples)

    best = autotune.find_best(
        ConvNet,
        train,
        loss=cross_entropy,
        optimizer=sgd,
        batch_size=args.batch_size,
        device=str(device),
        epochs=args.epochs,
        budget=args.budget,
        seed=SEED,
    )
    print(best, end="\n\n")

    rows = [*plain_rows(device, args.batch_size), Row("find_best", Tuned(best))]
    run(Row("warm-up", rows[0].train), Subset(train, range(20 * args.batch_size)), test, 1, device)
    for number in range(args.repeats):
        for row in rows if number % 2 == 0 else reversed(rows):
            run(row, train, test, args.epochs, device)
            print(f"round {number + 1}  {row.name:<26} {row.epoch_s[-1]:.2f} s", flush=True)

    print(f"\nMNIST, {len(train):,} samples, batch {args.batch_size}, {device}, torch {torch.__version__}\n")
    print(table(rows))
    if args.json is not None:
        kept = [{k: v for k, v in vars(row).items() if k != "train"} for row in rows]
        args.json.write_text(json.dumps({"rows": kept, "find_best": best.settings.flat()}, indent=1))


if __name__ == "__main__":
    main()
