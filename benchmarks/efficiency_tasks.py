"""What `efficiency.py` trains: real data that is in memory, so that no figure waits for a loader."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch
from accuracy_runs import example
from real_workloads import CharLM, data_root
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision import datasets, models

VIEWS = 24
"""Augmented views of each photo: a few hundred make no epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is trained, until when, and the user's own batch."""

    model: Callable[[], nn.Module]
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    optimizer: Callable[[Any], torch.optim.Optimizer]
    batch_size: int
    train: TensorDataset
    held_out: TensorDataset
    every: int
    """Samples between two looks at the held-out data."""
    target: float = 0.0
    """Loss on these."""
    device: str = "cpu"


def mnist(optimizer: Callable[[Any], torch.optim.Optimizer], batch_size: int) -> Task:
    """The ConvNet of the example, on digits."""
    parts = []
    for train, count in ((True, 60_000), (False, 2_000)):
        digits = datasets.MNIST(data_root(), train=train)
        pictures = (digits.data[:count, None].float() / 255 - 0.1307) / 0.3081
        parts.append(TensorDataset(pictures, digits.targets[:count]))
    return Task(
        model=example("mnist").ConvNet,
        loss=cross_entropy,
        optimizer=optimizer,
        batch_size=batch_size,
        train=parts[0],
        held_out=parts[1],
        every=1024,
    )


def next_characters(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross entropy of every next character."""
    return cross_entropy(logits.flatten(0, 1), targets.flatten())


def char_lm(optimizer: Callable[[Any], torch.optim.Optimizer], length: int = 32) -> Task:
    """A small transformer on characters; the last tenth of the text is held out."""
    text = (data_root() / "text" / "tinyshakespeare.txt").read_text(encoding="utf-8")
    number = {letter: i for i, letter in enumerate(sorted(set(text)))}
    tokens = torch.tensor([number[letter] for letter in text])
    windows = tokens.unfold(0, length + 1, length // 4)
    kept = len(windows) * 9 // 10
    held_out = windows[kept + 4 :: 4][:500]  # windows overlap, those of the two parts do not
    return Task(
        model=partial(CharLM, len(number), length, 64, 2),
        loss=next_characters,
        optimizer=optimizer,
        batch_size=16,
        train=TensorDataset(windows[:kept, :-1].contiguous(), windows[:kept, 1:].contiguous()),
        held_out=TensorDataset(held_out[:, :-1].contiguous(), held_out[:, 1:].contiguous()),
        every=1024,
    )


def photos(lr: float, batch_size: int, crop: int = 64) -> Task:
    """ResNet-18 from nothing, on photos whose augmented views were drawn once."""
    script, root = example("photos"), data_root() / "clothing"
    train, test = script.photos(root / "train", root / "test", crop)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    views = [_in_memory(train) for _ in range(VIEWS)]
    torch.set_rng_state(state)
    return Task(
        model=partial(models.resnet18, weights=None, num_classes=len(train.classes)),
        loss=cross_entropy,
        optimizer=partial(torch.optim.SGD, lr=lr, momentum=0.9, weight_decay=1e-4),
        batch_size=batch_size,
        train=TensorDataset(*(torch.cat(parts) for parts in zip(*views))),
        held_out=TensorDataset(*_in_memory(test)),
        every=512,
    )


def _in_memory(data: Dataset[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = next(iter(DataLoader(data, batch_size=len(data))))  # type: ignore[arg-type]
    return x, y


def _sgd(lr: float) -> Callable[[Any], torch.optim.Optimizer]:
    return partial(torch.optim.SGD, lr=lr, momentum=0.9)


TASKS: dict[str, Callable[[], Task]] = {
    "mnist-sgd": lambda: mnist(_sgd(0.02), 32),
    "mnist-16-sgd": lambda: mnist(_sgd(0.00625), 16),
    "mnist-adamw": lambda: mnist(partial(torch.optim.AdamW, lr=1e-3), 32),
    "char-lm-sgd": lambda: char_lm(_sgd(0.1)),
    "char-lm-adamw": lambda: char_lm(partial(torch.optim.AdamW, lr=2e-3)),
    "photos-8-sgd": lambda: photos(0.0025, 8),
}
LOSSES: dict[str, tuple[float, ...]] = {
    "mnist": (0.2, 0.15, 0.12, 0.1),
    "char": (2.4, 2.3, 2.2, 2.1),
    "photos": (2.1, 2.0, 1.95, 1.9),
}
"""By what a task's name begins with: losses that samples are counted to. At the last one a run ends."""


def losses_of(name: str) -> tuple[float, ...]:
    """Those of a task."""
    return LOSSES[name.partition("-")[0]]


@lru_cache(maxsize=1)
def task_of(name: str, device: str, target: float) -> Task:
    """A task with all of its data on the device, to a loss on its held-out data."""
    task = TASKS[name]()
    train, held_out = (
        TensorDataset(*(tensor.to(device) for tensor in data.tensors)) for data in (task.train, task.held_out)
    )
    return replace(task, train=train, held_out=held_out, target=target, device=device)
