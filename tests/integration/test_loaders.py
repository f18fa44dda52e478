"""The user's DataLoader rebuilt with other settings: real loaders, real workers, the very same batches."""

from __future__ import annotations

import functools
import itertools
import random
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import workloads as w
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
    get_worker_info,
)
from torch.utils.data.datapipes.iter import IterableWrapper

from autotune.errors import DatasetError, DatasetTooSmallError, EmptyDatasetError, UsageError
from autotune.measure import own_batches
from autotune.measure.loaders import (
    LoaderParts,
    build_endless,
    build_loader,
    end_workers,
    parts_of,
    private_copy,
)
from autotune.measure.sharding import shards_itself
from autotune.settings import LoaderSettings
from autotune.workload import Workload


class Numbers(Dataset[Any]):
    """Sample i is the number i."""

    def __init__(self, samples: int = 20) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: Any) -> Any:
        return torch.as_tensor(index)


class NoLength(Dataset[Any]):
    """Nobody knows how many."""

    def __getitem__(self, index: int) -> Any:
        return index


class Backwards(Sampler[int]):
    """A sampler of the user's own."""

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.samples - 1, -1, -1))


class ByLength(Sampler[list[int]]):
    """Batches of the user's own, of several sizes."""

    def __iter__(self) -> Iterator[list[int]]:
        return iter([[0, 1, 2, 3, 4], [5], [6, 7]])

    def __len__(self) -> int:
        return 3


class BatchesWithoutEnd(Sampler[list[int]]):
    """Of 3 and 5 samples in turn; whether or not there is a length."""

    def __init__(self, length: int | None) -> None:
        self.length = length

    def __iter__(self) -> Iterator[list[int]]:
        return itertools.cycle([[0, 1, 2], [3, 4, 5, 6, 7]])

    def __len__(self) -> int:
        if self.length is None:
            raise TypeError("no length")
        return self.length


class Slow(Sampler[list[int]]):
    """Batches that are read from somewhere."""

    def __iter__(self) -> Iterator[list[int]]:
        for number in range(100):
            time.sleep(0.3)
            yield [number % 20]

    def __len__(self) -> int:
        return 100


class Raises(Sampler[list[int]]):
    """Batches of which the second cannot be made."""

    def __iter__(self) -> Iterator[list[int]]:
        yield [0]
        raise ValueError("no second one")


class ByChance(Sampler[list[int]]):
    """Batches of as many samples as chance says, from torch's own generator; counts what it gave."""

    def __init__(self) -> None:
        self.given = 0

    def __iter__(self) -> Iterator[list[int]]:
        for size in torch.randint(1, 9, (10,)).tolist():
            self.given += 1
            yield list(range(size))


class FromHelper(w.Stream):
    """Shares its samples out in a generator inside a method that `__iter__` calls."""

    def __iter__(self) -> Iterator[Any]:
        return self._rows()

    def _rows(self) -> Iterator[Any]:
        def mine(index: int) -> bool:
            info = get_worker_info()
            return info is None or index % info.num_workers == info.id

        return (self.rows[index] for index in range(len(self.rows)) if mine(index))


class Unused(w.Stream):
    """Could share its samples out, but does not."""

    def share(self) -> Any:
        return get_worker_info()


class Owned(DataLoader):  # type: ignore[type-arg]
    """A loader class of the user's own."""


def collate(items: list[Any]) -> Any:
    """A collate function of the user's own: the numbers as one text."""
    return " ".join(str(int(item)) for item in items)


def init_worker(number: int) -> None:
    """A worker_init_fn that leaves a mark: worker `number` adds 1000 to its samples."""
    info = get_worker_info()
    assert info is not None
    info.dataset.samples += 1000


def seed_worker(number: int) -> None:
    """As torch's page on reproducibility has it."""
    random.seed(torch.initial_seed() % 2**32)


def seed_from_info(number: int, rank: int = 0) -> None:
    """As several libraries do."""
    info = get_worker_info()
    assert info is not None
    random.seed(info.seed + rank)


def shared_out(number: int) -> None:
    """Each worker keeps its own rows, which it looks up by name."""

    def keep() -> None:
        info: Any = get_worker_info()
        rows = getattr(info, "dataset").rows  # noqa: B009
        rows.x, rows.y = rows.x[info.id :: info.num_workers], rows.y[info.id :: info.num_workers]

    keep()


def twice(function: Any) -> Any:
    """A decorator of the user's own."""

    @functools.wraps(function)
    def both(number: int) -> None:
        seed_worker(number)
        function(number)

    return both


class Starts:
    """A worker_init_fn that is an object, and does its work in another method."""

    def __call__(self, number: int) -> None:
        self.start(number)

    def start(self, number: int) -> None:
        self.hand_over(number)

    def hand_over(self, number: int) -> None:
        info: Any = get_worker_info()
        info.dataset.rows.x = info.dataset.rows.x[info.id :: info.num_workers]


class Calls:
    """A worker_init_fn that is an object, and calls what it was given."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __call__(self, number: int) -> None:
        self.function(number)


class Marked(Numbers):
    """Shows the mark that `init_worker` left."""

    def __getitem__(self, index: int) -> Any:
        return self.samples


def parts_from(dataset: Any, **fields: Any) -> LoaderParts:
    parts = parts_of(Workload(None, dataset, **fields))
    assert parts is not None
    return parts


def drawn(parts: LoaderParts, settings: LoaderSettings | None = None, batches: int = 100) -> list[Any]:
    """The first batches of an endless loader; its workers are ended."""
    loader, _ = build_endless(parts, settings or parts.settings)
    iterator = iter(loader)
    try:
        return [as_list(batch) for batch in itertools.islice(iterator, batches)]
    finally:
        end_workers(iterator, loader)


def as_list(batch: Any) -> Any:
    return batch.tolist() if isinstance(batch, torch.Tensor) else batch


def as_lists(batches: Iterable[Any]) -> list[Any]:
    return [as_list(batch) for batch in batches]


# -- what is taken over ------------------------------------------------------------------------------


def test_the_settings_of_a_loader_are_yours() -> None:
    """All that Settings have a word for is read off."""
    loader = DataLoader(
        Numbers(), batch_size=5, num_workers=2, prefetch_factor=3, persistent_workers=True, drop_last=True
    )
    parts = parts_from(loader)
    assert parts.settings == LoaderSettings(
        batch_size=5, num_workers=2, prefetch_factor=3, persistent_workers=True, pin_memory=False
    )
    assert parts.drop_last is True
    assert parts.note == ""


def test_everything_else_of_a_loader_is_kept() -> None:
    """Functions, samplers, generator, context, timeout and order reach the rebuilt loader as they were."""
    generator = torch.Generator().manual_seed(1)
    loader = DataLoader(
        Numbers(),
        batch_size=4,
        sampler=Backwards(20),
        num_workers=1,
        collate_fn=collate,
        worker_init_fn=init_worker,
        generator=generator,
        drop_last=True,
        timeout=7,
        multiprocessing_context="fork",
        in_order=False,
    )
    parts = parts_from(loader)
    other = LoaderSettings(batch_size=3, num_workers=2, prefetch_factor=4, persistent_workers=True)
    for built in (build_loader(parts, other), build_endless(parts, other)[0]):
        assert built.dataset is loader.dataset
        assert built.collate_fn is collate
        assert built.worker_init_fn is init_worker
        assert built.generator is generator
        assert built.timeout == 7
        assert built.in_order is False
        assert built.multiprocessing_context.get_start_method() == "fork"
        assert (built.num_workers, built.prefetch_factor, built.persistent_workers) == (2, 4, True)
    assert build_loader(parts, other).sampler is loader.sampler
    assert build_loader(parts, other).drop_last is True


def test_a_plain_dataset_is_loaded_as_the_workload_says() -> None:
    """Batch size (32 by default), order, collate_fn and drop_last."""
    assert parts_from(Numbers()).settings == LoaderSettings(batch_size=32)
    ordered = parts_from(Numbers(7), batch_size=3, shuffle=False, collate_fn=collate, drop_last=True)
    assert list(build_loader(ordered, ordered.settings)) == ["0 1 2", "3 4 5"]
    shuffled = parts_from(Numbers(), batch_size=4)
    assert isinstance(build_loader(shuffled, shuffled.settings).sampler, RandomSampler)
    assert parts_of(Workload(None, step=print, samples_per_step=1)) is None


def test_a_function_or_class_that_makes_a_dataset_is_called() -> None:
    """Whatever it makes: a dataset, a stream, a loader."""
    assert isinstance(parts_from(Numbers).dataset, Numbers)
    assert isinstance(parts_from(w.Stream).dataset, w.Stream)
    assert parts_from(lambda: DataLoader(Numbers(), batch_size=5)).settings.batch_size == 5


@pytest.mark.parametrize(
    "given", [3, iter([1, 2]), lambda: iter([1])], ids=["number", "iterator", "function"]
)
def test_what_is_no_dataset_is_refused(given: Any) -> None:
    """Its type is named, and what would do."""
    with pytest.raises(UsageError, match="no dataset") as raised:
        parts_from(given)
    assert "__getitem__" in raised.value.why


def test_a_loader_class_of_the_users_own_is_noted() -> None:
    """What it adds to a DataLoader cannot be measured."""
    assert "Owned" in parts_from(Owned(Numbers())).note


def test_what_a_loader_overrules_is_noted() -> None:
    """A batch size beside a DataLoader is not used, and whoever gave it is told; what agrees is not."""
    loader = DataLoader(Numbers(), batch_size=4, shuffle=True)
    asked = {"batch_size": 8, "shuffle": False, "collate_fn": collate, "drop_last": True}
    assert parts_from(loader, **asked).note.startswith(
        "batch_size, shuffle=False, collate_fn, drop_last: not"
    )
    assert parts_from(lambda: loader, batch_size=8).note.startswith("batch_size: not used")
    assert parts_from(loader, batch_size=4).note == ""
    both = parts_from(Owned(Numbers()), batch_size=8).note
    assert "Owned" in both
    assert "batch_size: not used" in both


def test_a_length_that_raises_is_the_datasets_error() -> None:
    """Such as that of a class that was called without what it needs."""
    with pytest.raises(DatasetError) as raised:
        parts_from(TensorDataset).check()
    assert "TensorDataset" in raised.value.what
    assert "IndexError" in raised.value.why


def test_a_plain_batch_sampler_may_come_from_the_user() -> None:
    """Then sampler, batch size and drop_last are in it, not in the loader; other sizes can be tried."""
    loader = DataLoader(Numbers(7), batch_sampler=BatchSampler(Backwards(7), 3, drop_last=True))
    parts = parts_from(loader)
    assert (parts.settings.batch_size, parts.drop_last) == (3, True)
    assert as_lists(build_loader(parts, parts.settings)) == as_lists(loader) == [[6, 5, 4], [3, 2, 1]]
    assert drawn(parts, LoaderSettings(batch_size=2), 3) == [[6, 5], [4, 3], [2, 1]]


def test_a_batch_sampler_of_the_users_own_makes_the_batches() -> None:
    """Whatever batch size the settings name."""
    loader = DataLoader(Numbers(), batch_sampler=ByLength())
    parts = parts_from(loader)
    assert parts.settings.batch_size is None
    for settings in (parts.settings, LoaderSettings(batch_size=64)):
        assert as_lists(build_loader(parts, settings)) == as_lists(loader)
        assert drawn(parts, settings, 4) == [[0, 1, 2, 3, 4], [5], [6, 7], [0, 1, 2, 3, 4]]


def test_a_dataset_may_make_its_own_batches() -> None:
    """`batch_size=None`: single indices go in, whatever comes out is a batch, for any settings."""
    loader = DataLoader(Numbers(3), batch_size=None, sampler=Backwards(3))
    parts = parts_from(loader)
    assert parts.settings.batch_size is None
    assert as_lists(build_loader(parts, LoaderSettings(batch_size=64))) == as_lists(loader) == [2, 1, 0]
    assert drawn(parts, batches=4) == [2, 1, 0, 2]


def test_whole_batches_may_be_asked_of_a_dataset() -> None:
    """A sampler of index lists with `batch_size=None`, as for bulk reads."""
    bulk = BatchSampler(SequentialSampler(range(5)), 2, False)
    parts = parts_from(DataLoader(Numbers(5), batch_size=None, sampler=bulk))
    loader, endless = build_endless(parts, parts.settings)
    assert as_lists(itertools.islice(loader, 4)) == [[0, 1], [2, 3], [4], [0, 1]]
    assert endless is not None
    assert [len(indices) for indices in endless.pending] == [2, 2, 1, 2]


# -- building ----------------------------------------------------------------------------------------


def test_without_workers_there_is_nothing_to_prefetch() -> None:
    """Settings that torch refuses without workers are left out."""
    parts = parts_from(DataLoader(Numbers(), num_workers=1, timeout=5, multiprocessing_context="fork"))
    settings = LoaderSettings(batch_size=4, num_workers=0, prefetch_factor=4, persistent_workers=True)
    for loader in (build_loader(parts, settings), build_endless(parts, settings)[0]):
        assert (loader.num_workers, loader.prefetch_factor, loader.persistent_workers) == (0, None, False)
        assert (loader.timeout, loader.multiprocessing_context) == (0, None)


def test_worker_init_fn_runs_in_the_workers() -> None:
    """As it does for the user."""
    parts = parts_from(DataLoader(Marked(4), batch_size=2, worker_init_fn=init_worker))
    assert drawn(parts, LoaderSettings(batch_size=2, num_workers=1), 2) == [[1004, 1004]] * 2


def test_a_stream_has_no_sampler() -> None:
    """And keeps drop_last and batch size."""
    parts = parts_from(w.Stream(5), batch_size=2, drop_last=True)
    assert parts.iterable
    assert parts.shuffle is False
    loader, endless = build_endless(parts, parts.settings)
    assert endless is None
    assert [len(x) for x, _ in loader] == [len(x) for x, _ in build_loader(parts, parts.settings)] == [2, 2]


OVERRIDES: dict[str, tuple[dict[str, Any], list[list[int]]]] = {
    "sampler": ({"sampler": Backwards(4)}, [[3, 2], [1, 0]]),
    "shuffle": ({"shuffle": False}, [[0, 1], [2, 3]]),
    "batch sampler": ({"batch_sampler": [[3], [0, 1]]}, [[3], [0, 1]]),
    "batch size": ({"batch_size": 3, "shuffle": False}, [[0, 1, 2], [3]]),
    "drop last": ({"batch_size": 3, "shuffle": False, "drop_last": True}, [[0, 1, 2]]),
    "no batches": ({"batch_size": None, "shuffle": False}, [0, 1, 2, 3]),  # type: ignore[dict-item]
    "workers": ({"num_workers": 0, "shuffle": False}, [[0, 1], [2, 3]]),
}


@pytest.mark.parametrize("name", OVERRIDES)
@pytest.mark.parametrize("dataset", [Numbers(4), DataLoader(Numbers(4), shuffle=True)], ids=["set", "loader"])
def test_overrides_have_the_last_word(name: str, dataset: Any) -> None:
    """They replace what torch would refuse beside them."""
    overrides, expected = OVERRIDES[name]
    settings = LoaderSettings(batch_size=2, num_workers=1, prefetch_factor=2)
    assert as_lists(build_loader(parts_from(dataset), settings, **overrides)) == expected


def test_own_batches_give_way_to_a_batch_size_alone() -> None:
    """A batch size or a batch sampler takes their place; an order does not go with them."""
    parts = parts_from(DataLoader(Numbers(4), batch_sampler=ByLength()))
    settings = LoaderSettings()
    assert as_lists(build_loader(parts, settings, batch_size=3)) == [[0, 1, 2], [3]]
    assert as_lists(build_loader(parts, settings, batch_sampler=[[3], [0]])) == [[3], [0]]
    with pytest.raises(ValueError, match="mutually exclusive"):
        build_loader(parts, settings, shuffle=True)


def test_workers_may_be_overridden_both_ways() -> None:
    """What goes with workers comes and goes with them."""
    parts = parts_from(DataLoader(Numbers(), num_workers=1, timeout=5))
    assert build_loader(parts, LoaderSettings(batch_size=2), num_workers=2).timeout == 5
    settings = LoaderSettings(batch_size=2, num_workers=2, prefetch_factor=4, persistent_workers=True)
    none = build_loader(parts, settings, num_workers=0)
    assert (none.num_workers, none.prefetch_factor, none.timeout) == (0, None, 0)
    assert build_loader(parts, settings, prefetch_factor=8).prefetch_factor == 8


def test_an_override_that_torch_refuses_is_refused() -> None:
    """It is the user's own word, so it is not dropped in silence."""
    with pytest.raises(ValueError, match="prefetch_factor"):
        build_loader(parts_from(Numbers()), LoaderSettings(batch_size=2), prefetch_factor=8)


def test_settings_without_a_batch_size_leave_it_to_the_loader() -> None:
    """Tuned on own batches, applied to a plain dataset: its samples are not handed out one by one."""
    assert build_loader(parts_from(Numbers(), batch_size=5), LoaderSettings()).batch_size == 5


# -- endless batches ---------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("drop_last", [False, True])
def test_endless_batches_are_the_users_epoch_after_epoch(workers: int, drop_last: bool) -> None:
    """In the same order, short last batch and all; with workers as without."""
    parts = parts_from(Numbers(7), batch_size=3, shuffle=False, drop_last=drop_last)
    epoch = as_lists(build_loader(parts, parts.settings))
    settings = LoaderSettings(batch_size=3, num_workers=workers, prefetch_factor=2 if workers else None)
    assert drawn(parts, settings, 2 * len(epoch) + 1) == epoch + epoch + epoch[:1]


def test_shuffled_epochs_hold_every_sample_once() -> None:
    """Each epoch is a fresh permutation, drawn from the loader's generator."""
    generator = torch.Generator().manual_seed(3)
    parts = private_copy(parts_from(DataLoader(Numbers(12), batch_size=4, shuffle=True, generator=generator)))
    batches = drawn(parts, LoaderSettings(batch_size=4), 6)
    first, second = list(itertools.chain(*batches[:3])), list(itertools.chain(*batches[3:]))
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second


def test_the_same_generator_gives_the_users_own_first_epoch() -> None:
    """What is measured is what the user would have trained on."""
    loader = DataLoader(
        Numbers(12), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(3), num_workers=1
    )
    parts = private_copy(parts_from(loader))
    assert drawn(parts, parts.settings, 3) == as_lists(loader)


def test_indices_of_batches_not_yet_handed_out_are_known() -> None:
    """Samples are counted by them, and one that raises is found among them."""
    parts = parts_from(Numbers(5), batch_size=2, shuffle=False)
    loader, endless = build_endless(parts, parts.settings)
    assert endless is not None
    iterator = iter(loader)
    assert list(endless.pending) == []
    next(iterator)
    next(iterator)
    assert list(endless.pending) == [[0, 1], [2, 3]]
    iterator = iter(loader)
    next(iterator)
    assert list(endless.pending) == [[0, 1]]


@pytest.mark.parametrize("workers", [0, 1])
def test_stop_ends_the_epoch_at_once(workers: int) -> None:
    """No batch is drawn after it; those already drawn come out, and the next epoch starts anew."""
    parts = parts_from(Numbers(100), batch_size=2, shuffle=False)
    settings = LoaderSettings(batch_size=2, num_workers=workers, prefetch_factor=2 if workers else None)
    loader, endless = build_endless(parts, settings)
    assert endless is not None
    iterator = iter(loader)
    first = as_list(next(iterator))
    ahead = len(endless.pending) - 1
    endless.stop()
    assert as_lists(iterator) == [[2 * i, 2 * i + 1] for i in range(1, 1 + ahead)]
    again = iter(loader)
    assert as_list(next(again)) == first
    end_workers(again, loader)


def test_a_sampler_that_gives_nothing_ends() -> None:
    """An epoch without a batch would otherwise be drawn for ever."""
    parts = parts_from(DataLoader(Numbers(), batch_sampler=[]))
    assert drawn(parts) == []


# -- the user's own objects --------------------------------------------------------------------------


class Remembers(Sampler[int]):
    """A sampler with a state and a random generator of its own, over a dataset."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset
        self.given = 0
        self.random = np.random.default_rng(0)

    def __iter__(self) -> Iterator[int]:
        for _ in range(10):
            self.given += 1
            yield int(self.random.integers(0, 20))

    def __len__(self) -> int:
        return 10


def test_drawing_from_a_private_copy_leaves_the_user_alone() -> None:
    """Sampler state, the generators of torch and NumPy, the loader itself: all as before."""
    generator = torch.Generator().manual_seed(5)
    dataset = Numbers()
    sampler = Remembers(dataset)
    loader = DataLoader(dataset, batch_size=4, sampler=sampler, generator=generator)
    before = (generator.get_state(), sampler.random.bit_generator.state)
    own = private_copy(parts_from(loader))
    assert own.sampler is not sampler
    assert own.dataset is own.sampler.dataset is dataset
    drawn(own, LoaderSettings(batch_size=4, num_workers=1, prefetch_factor=2), 5)
    assert sampler.given == 0
    assert torch.equal(generator.get_state(), before[0])
    assert sampler.random.bit_generator.state == before[1]
    assert loader._iterator is None


def test_sampler_and_loader_go_on_sharing_their_generator() -> None:
    """In the copy as in the original: one stream of random numbers."""
    parts = parts_from(
        DataLoader(Numbers(), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(5))
    )
    own = private_copy(parts)
    assert own.generator is own.sampler.generator
    assert own.generator is not parts.generator


def test_a_dataset_inside_the_dataset_is_not_copied_either() -> None:
    """A sampler over what a Subset wraps would otherwise drag all of it along."""
    whole = Numbers()
    parts = parts_from(DataLoader(Subset(whole, range(10)), sampler=Remembers(whole)))
    assert private_copy(parts).sampler.dataset is whole


def test_batch_samplers_are_copied_too() -> None:
    """One of the user's own keeps its state as well."""
    inner = Remembers(Numbers())

    class Own(BatchSampler):
        """Not the usual class."""

    own = private_copy(parts_from(DataLoader(Numbers(), batch_sampler=Own(inner, 2, False))))
    drawn(own, own.settings, 3)
    assert inner.given == 0


# -- lengths -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "samples"),
    [
        (Numbers(7), 7),
        (DataLoader(Numbers(7), sampler=WeightedRandomSampler([1.0] * 7, 3)), 3),
        (DataLoader(Numbers(7), sampler=Backwards(7)), None),
        (DataLoader(Numbers(8), batch_sampler=ByLength()), 8),
        (DataLoader(Numbers(20), batch_sampler=ByLength()), 8),
        (DataLoader(Numbers(20), batch_sampler=[[1, 2, 3], [3, 4], [5]]), 6),
        (DataLoader(Numbers(20), batch_sampler=torch.randperm(10).split(4)), 10),
        (DataLoader(Numbers(20), batch_sampler=np.array_split(np.arange(10), 3)), 10),
        (DataLoader(Numbers(20), batch_sampler=BatchesWithoutEnd(10_000)), 40_000),
        (DataLoader(Numbers(20), batch_sampler=BatchesWithoutEnd(None)), None),
        (DataLoader(Numbers(20), batch_sampler=Slow()), None),
        (DataLoader(Numbers(20), batch_sampler=Raises()), None),
        (DataLoader(Numbers(7), batch_size=None), None),
        (w.Stream(7), None),
        (NoLength(), None),
    ],
    ids=[
        "dataset",
        "sampler",
        "sampler without length",
        "own batches",
        "own batches of a part",
        "a list of batches",
        "tensors",
        "arrays",
        "a long epoch",
        "no end",
        "slow batches",
        "batches that raise",
        "made batches",
        "stream",
        "unknown",
    ],
)
def test_the_samples_of_an_epoch(monkeypatch: Any, dataset: Any, samples: int | None) -> None:
    """As many as the sampler draws; unknown rather than wrong."""
    monkeypatch.setattr(own_batches, "_LOOKED_THROUGH", 300)
    monkeypatch.setattr(own_batches, "_AT_MOST_S", 1.0)
    assert parts_from(dataset).samples() == samples


def test_counting_an_epochs_batches_leaves_no_trace() -> None:
    """Neither on the user's sampler nor on the random state; chance gives the next run the same number."""
    sampler = ByChance()
    parts = parts_from(DataLoader(Numbers(), batch_sampler=sampler))
    before = torch.get_rng_state()
    counted = parts.samples()
    assert counted is not None
    assert 10 <= counted <= 80
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert parts.samples() == counted
    assert sampler.given == 0


@pytest.mark.parametrize(("drop_last", "samples"), [(False, 23), (True, 20)])
def test_an_epoch_is_as_long_as_what_it_trains_on(drop_last: bool, samples: int) -> None:
    """What `drop_last` leaves out does not count, whether a dataset or a loader says so."""
    assert parts_from(Numbers(23), batch_size=5, drop_last=drop_last).samples() == samples
    assert parts_from(DataLoader(Numbers(23), batch_size=5, drop_last=drop_last)).samples() == samples


@pytest.mark.parametrize(
    ("dataset", "error"),
    [
        (Numbers(0), EmptyDatasetError),
        (DataLoader([], batch_size=None), EmptyDatasetError),
        (Numbers(31), DatasetTooSmallError),
        (DataLoader(Numbers(7), batch_size=8), DatasetTooSmallError),
        (NoLength(), UsageError),
    ],
    ids=["empty", "no batch", "one too few", "loader", "no length"],
)
def test_what_cannot_fill_a_batch_is_refused(dataset: Any, error: Any) -> None:
    """With the numbers, and what to do."""
    with pytest.raises(error) as raised:
        parts_from(dataset).check()
    assert raised.value.why
    assert raised.value.fix


@pytest.mark.parametrize(
    "dataset",
    [
        Numbers(32),
        [1] * 32,
        DataLoader(Numbers(8), batch_size=8),
        DataLoader(NoLength(), sampler=Backwards(7)),
        DataLoader(NoLength(), batch_sampler=ByLength()),
        DataLoader(Numbers(1), batch_size=None),
        w.Stream(1),
    ],
)
def test_what_may_fill_a_batch_is_let_through(dataset: Any) -> None:
    """One batch is enough; where nobody knows the first fetch will tell."""
    parts_from(dataset).check()


# -- streams and workers -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "sharded"),
    [
        (Numbers(), True),
        (w.Stream(), False),
        (w.ShardedStream(), True),
        (FromHelper(), True),
        (Unused(), False),
        (DataLoader(w.Stream(), worker_init_fn=init_worker), True),
        (IterableWrapper(range(4)), False),
        (IterableWrapper(range(4)).sharding_filter().shuffle(), True),
    ],
    ids=["map", "stream", "helper", "generator in a helper", "unused", "init", "pipe", "sharded pipe"],
)
def test_a_stream_that_shares_its_samples_out_is_known(dataset: IterableDataset[Any], sharded: bool) -> None:
    """By its code, by the user's worker_init_fn, by torch's own filter; a doubt counts as no."""
    assert shards_itself(parts_from(dataset)) is sharded


@pytest.mark.parametrize(
    ("init", "sharded"),
    [
        (seed_worker, False),
        (seed_from_info, False),
        (functools.partial(seed_from_info, rank=3), False),
        (twice(seed_worker), False),
        (Calls(seed_worker), False),
        (print, False),
        (shared_out, True),
        (functools.partial(shared_out), True),
        (twice(shared_out), True),
        (Calls(shared_out), True),
        (Starts(), True),
        (Starts().start, True),
    ],
)
def test_a_worker_init_fn_shares_out_only_where_it_reaches_the_dataset(init: Any, sharded: bool) -> None:
    """Most of them only seed: then every worker of such a stream yields every sample."""
    assert shards_itself(parts_from(DataLoader(w.Stream(), worker_init_fn=init))) is sharded
    assert shards_itself(parts_from(DataLoader(w.ShardedStream(), worker_init_fn=init)))


@pytest.mark.parametrize("init", [seed_worker, seed_from_info, shared_out])
def test_what_is_said_of_a_worker_init_fn_is_true(init: Any) -> None:
    """With two workers every sample comes once where it shares them out, twice where it seeds."""
    parts = parts_from(DataLoader(w.Stream(8), batch_size=2, worker_init_fn=init))
    given = sum(len(x) for x, _ in drawn(parts, LoaderSettings(batch_size=2, num_workers=2)))
    assert given == (8 if shards_itself(parts) else 16)


@pytest.mark.parametrize("dataset", [w.Stream(8), w.ShardedStream(8), FromHelper(8)])
def test_what_is_said_of_a_stream_is_true(dataset: Any) -> None:
    """With two workers a sharded stream gives every sample once, another one twice."""
    parts = parts_from(dataset, batch_size=2)
    given = sum(len(x) for x, _ in drawn(parts, LoaderSettings(batch_size=2, num_workers=2)))
    assert given == (8 if shards_itself(parts) else 16)
