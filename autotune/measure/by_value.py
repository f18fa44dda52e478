"""Datasets and functions that travel to DataLoader workers by value.

In the bench process the user's script is not the main module, so where workers are not forked, what the
script defines cannot be found by name there. It was pickled by value on its way here and goes on like that;
the worker gets the user's own object, not a wrapper. All else goes as torch sends it, tensors in shared
memory, so that workers start here as they will in training.
"""

from __future__ import annotations

import io
import multiprocessing
import pickle
from collections import ChainMap
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler
from typing import Any

import cloudpickle
import numpy as np
from torch.utils.data import Dataset, IterableDataset, IterDataPipe


class _Pickler(cloudpickle.CloudPickler):  # type: ignore[misc]
    """Functions and classes as cloudpickle has them, tensors as torch has registered them for processes."""

    def __init__(self, file: io.BytesIO, buffers: list[pickle.PickleBuffer]) -> None:
        # Before the base class, which reads it once.
        self.dispatch_table = ChainMap(
            ForkingPickler(file).dispatch_table, cloudpickle.CloudPickler.dispatch_table
        )
        super().__init__(file, protocol=5, buffer_callback=buffers.append)


def _loads(pickled: bytes, buffers: list[Any]) -> Any:
    return pickle.loads(pickled, buffers=buffers)


class _Traveller:
    """Holds an object, and pickles as that object itself."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __reduce__(self) -> tuple[Any, ...]:
        file, buffers = io.BytesIO(), list[pickle.PickleBuffer]()
        _Pickler(file, buffers).dump(self.inner)
        # Arrays are left to whoever pickles this, or they would be copied twice on either side.
        return _loads, (file.getvalue(), [np.asarray(buffer.raw()) for buffer in buffers])


class _MapStyle(_Traveller, Dataset[Any]):
    def __getitem__(self, index: Any) -> Any:
        return self.inner[index]

    def __len__(self) -> int:
        return len(self.inner)


class _Stream(_Traveller, IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(self.inner)


class _Pipe(_Traveller, IterDataPipe[Any]):
    """A stream to which torch gives a seed that all workers share, and whose parts it divides."""

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
    if isinstance(dataset, IterDataPipe):
        return _Pipe(dataset)
    return _Stream(dataset) if isinstance(dataset, IterableDataset) else _MapStyle(dataset)


def travelling_function(function: Any) -> Any:
    """A function, able to go to a worker that was not forked; None stays None."""
    return None if function is None else _Function(function)
