"""Small real workloads, and datasets that misbehave on purpose. Importable by bench processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from autotune.workload import Workload


class Rows(Dataset):
    """Random rows with a class label; `work_s` of sleep stands for loading."""

    def __init__(self, samples: int = 256, features: int = 16, work_s: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(samples, features, generator=generator)
        self.y = torch.randint(0, 4, (samples,), generator=generator)
        self.work_s = work_s

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        if self.work_s:
            time.sleep(self.work_s)
        return self.x[index], self.y[index]


class RaisesAt(Rows):
    """Raises at one index."""

    def __init__(self, index: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.bad = index

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        if index == self.bad:
            raise ValueError(f"sample {index} is broken")
        return super().__getitem__(index)


class Misbehaves(Rows):
    """In a worker process: `kill` (SIGKILL), `segfault` or `hang`. In the training process it is well."""

    def __init__(self, how: str, *, when_workers: int = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.how = how
        self.when_workers = when_workers

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        info = get_worker_info()
        if info is not None and info.num_workers == self.when_workers:
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif self.how == "segfault":
                os.kill(os.getpid(), signal.SIGSEGV)
            elif self.how == "hang":
                time.sleep(600)
        return super().__getitem__(index)


class Stream(IterableDataset):
    """A stream that gives every worker every sample."""

    def __init__(self, samples: int = 64) -> None:
        self.rows = Rows(samples)

    def __iter__(self) -> Iterator[Any]:
        for index in range(len(self.rows)):
            yield self.rows[index]


class ShardedStream(Stream):
    """A stream whose workers share the samples out."""

    def __iter__(self) -> Iterator[Any]:
        first, stride = self._share()
        for index in range(first, len(self.rows), stride):
            yield self.rows[index]

    def _share(self) -> tuple[int, int]:
        info = get_worker_info()
        return (0, 1) if info is None else (info.id, info.num_workers)


class Net(nn.Module):
    """A classifier with batch norm, so that it has buffers to keep untouched."""

    def __init__(self, features: int = 16, classes: int = 4) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(features, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, classes)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


class ConvNet(nn.Module):
    """Two convolutions over 8x8 pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 4)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


class Pictures(Dataset):
    """8x8 pictures with a label."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.full((3, 8, 8), index / 64), index % 4


class DictRows(Rows):
    """The same rows as dicts."""

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:  # type: ignore[override]
        x, y = super().__getitem__(index)
        return {"x": x, "label": y}


@dataclass
class Pair:
    """A batch as a dataclass."""

    x: torch.Tensor
    y: torch.Tensor


def to_pair(items: list[Any]) -> Pair:
    """Collate into a dataclass."""
    return Pair(x=torch.stack([x for x, _ in items]), y=torch.stack([y for _, y in items]))


def sgd(params: Any) -> torch.optim.Optimizer:
    """Plain SGD."""
    return torch.optim.SGD(params, lr=0.05)


def adam(params: Any) -> torch.optim.Optimizer:
    """Adam."""
    return torch.optim.Adam(params, lr=1e-3)


def make() -> Workload:
    """A target for the command line."""
    return Workload(Net(), Rows(), optimizer=sgd, batch_size=16, name="rows")


def make_pair() -> tuple[nn.Module, Dataset]:
    """A target that returns a pair."""
    return Net(), Rows()


def draw_rows(model: nn.Module, batch: None) -> torch.Tensor:
    """A step without a loader: it makes its own batch of eight rows."""
    device = next(model.parameters()).device
    x = torch.randn(8, 16, device=device)
    return nn.functional.cross_entropy(model(x), torch.zeros(8, dtype=torch.long, device=device))
