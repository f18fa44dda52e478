"""Datasets and functions that travel to DataLoader workers by value.

In the bench process the user's script is not the main module, so where workers are not forked, what the
script defines cannot be found by name there. It was pickled by value on its way here and goes on like that;
the worker gets the user's own object, not a wrapper.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from typing import Any

import cloudpickle
from torch.utils.data import Dataset, IterableDataset


class _Traveller:
    """Holds an object, and pickles as that object itself."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __reduce__(self) -> tuple[Any, ...]:
        return cloudpickle.loads, (cloudpickle.dumps(self.inner),)


class _MapStyle(_Traveller, Dataset[Any]):
    def __getitem__(self, index: Any) -> Any:
        return self.inner[index]

    def __len__(self) -> int:
        return len(self.inner)


class _Stream(_Traveller, IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(self.inner)


class _Function(_Traveller):
    def __call__(self, *args: Any) -> Any:
        return self.inner(*args)


def workers_fork(context: str | None) -> bool:
    """Whether workers inherit this process's memory."""
    return (context or multiprocessing.get_start_method()) == "fork"


def travelling_dataset(dataset: Any) -> Any:
    """The dataset, able to go to a worker that was not forked."""
    return _Stream(dataset) if isinstance(dataset, IterableDataset) else _MapStyle(dataset)


def travelling_function(function: Any) -> Any:
    """A function, able to go to a worker that was not forked; None stays None."""
    return None if function is None else _Function(function)
