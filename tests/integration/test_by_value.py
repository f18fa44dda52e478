"""What goes to workers that are not forked: the user's own objects, as torch itself would send them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, get_worker_info
from torch.utils.data.datapipes.iter import IterableWrapper

from autotune.measure import loaders
from autotune.measure.loaders import LoaderParts, build_endless, build_loader, parts_of
from autotune.settings import LoaderSettings
from autotune.workload import Workload

TWO = LoaderSettings(batch_size=4, num_workers=2, prefetch_factor=2)


def parts_from(loader: DataLoader[Any]) -> LoaderParts:
    parts = parts_of(Workload(None, loader))
    assert parts is not None
    return parts


def spawning(dataset: Any, **options: Any) -> LoaderParts:
    """The parts of a loader whose workers start from nothing."""
    return parts_from(
        DataLoader(dataset, batch_size=4, num_workers=2, multiprocessing_context="spawn", **options)
    )


def drawn(loader: DataLoader[Any], batches: int) -> list[Any]:
    iterator = iter(loader)
    try:
        return [next(iterator) for _ in range(batches)]
    finally:
        loaders.end_workers(iterator, loader)


def private_bytes(_: Any) -> int:
    """Memory that this process wrote to and shares with no other, in place of a batch."""
    text = Path("/proc/self/smaps_rollup").read_text()
    fields = {line.split(":")[0]: line.split()[1] for line in text.splitlines()[1:]}
    return 1024 * int(fields["Private_Dirty"])


def local_dataset(**held: Any) -> Any:
    """A dataset of a class that no worker could import."""

    class Local(Dataset[Any]):
        def __init__(self) -> None:
            vars(self).update(held)

        def __len__(self) -> int:
            return 16

        def __getitem__(self, index: int) -> Any:
            return {name: value[index] for name, value in vars(self).items()}

    return Local()


def local_stream() -> Any:
    """A stream of a class that no worker could import."""

    class Local(IterableDataset[Any]):
        def __iter__(self) -> Iterator[int]:
            info = get_worker_info()
            assert info is not None
            return iter(range(info.id, 16, info.num_workers))

    return Local()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from Linux's /proc")
def test_tensors_stay_shared_with_workers_that_are_not_forked() -> None:
    """In a trial as in the loader that the user gets: a copy for each worker would be 32 MiB more."""
    data = TensorDataset(torch.zeros(64, 2**17))
    parts = spawning(data, collate_fn=private_bytes)
    ours = max(drawn(build_endless(parts, TWO)[0], 2))
    torchs = max(drawn(build_loader(parts, TWO), 2))
    assert ours < torchs + 2**24


def test_what_no_worker_could_import_travels_by_value() -> None:
    """Class, function and their data: tensors, arrays of any layout, an empty one, plain lists."""
    held = {
        "tensor": torch.arange(16),
        "array": np.arange(16),
        "columns": np.asfortranarray(np.arange(64).reshape(16, 4)),
        "every_other": np.arange(32)[::2],
        "plain": list(range(16)),
    }
    parts = spawning(local_dataset(**held), collate_fn=lambda samples: samples)
    built = build_endless(parts, TWO)[0]
    samples = [sample for batch in drawn(built, 4) for sample in batch]
    assert [int(sample["tensor"]) for sample in samples] == list(range(16))
    assert [int(sample["array"]) for sample in samples] == list(range(16))
    assert [sample["columns"].tolist() for sample in samples] == held["columns"].tolist()  # type: ignore[attr-defined]
    assert [int(sample["every_other"]) for sample in samples] == list(range(0, 32, 2))
    assert [sample["plain"] for sample in samples] == list(range(16))


def test_arrays_can_be_written_to_in_the_worker() -> None:
    """As those that torch sends can be, also where they are empty."""
    held = {"rows": np.zeros((16, 2)), "nothing": np.zeros((16, 0))}

    def write(samples: list[Any]) -> list[Any]:
        for sample in samples:
            sample["rows"][:] = 1
            sample["nothing"][:] = 1
        return samples

    parts = spawning(local_dataset(**held), collate_fn=write)
    (batch,) = drawn(build_endless(parts, TWO)[0], 1)
    assert [sample["rows"].tolist() for sample in batch] == [[1, 1]] * 4


@pytest.mark.parametrize("stream", [local_stream(), IterableWrapper(range(16)).sharding_filter()])
def test_streams_and_pipes_reach_workers_that_are_not_forked(stream: Any) -> None:
    """Each worker gives its share; torch divides the parts of a pipe itself."""
    built, _ = build_endless(spawning(stream), TWO)
    assert sorted(int(x) for batch in drawn(built, 4) for x in batch) == list(range(16))
