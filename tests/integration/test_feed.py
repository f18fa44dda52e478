"""Where the batches of a trial come from: counted, timed, and named when one fails."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import workloads as w
from torch.utils.data import DataLoader, IterableDataset, SubsetRandomSampler

from autotune.codec import decode, encode
from autotune.errors import DatasetError, DatasetTooSmallError
from autotune.measure import flags
from autotune.measure.edge import epoch_tail
from autotune.measure.feed import HeldFeed, LoaderFeed, TailFeed
from autotune.measure.loaders import LoaderParts, parts_of
from autotune.measure.probe import machine_facts
from autotune.measure.session import Session
from autotune.settings import LoaderSettings, Settings
from autotune.trial import Failure, TrialSpec
from autotune.workload import Workload


class ReadOnce(IterableDataset[Any]):
    """A stream that gives its samples to whoever asks first."""

    def __init__(self, samples: int) -> None:
        self.left = iter(range(samples))

    def __iter__(self) -> Iterator[int]:
        return self.left


def parts_from(dataset: Any, **fields: Any) -> LoaderParts:
    parts = parts_of(Workload(None, dataset, **fields))
    assert parts is not None
    return parts


@pytest.fixture
def started() -> Iterator[Any]:
    """`started(parts, settings)` gives a feed that runs; it is closed after the test."""
    feeds: list[LoaderFeed] = []

    def start(parts: LoaderParts, settings: LoaderSettings | None = None) -> LoaderFeed:
        feed = LoaderFeed(parts, settings or parts.settings)
        feeds.append(feed)
        feed.start()
        return feed

    yield start
    for feed in feeds:
        feed.close()


@pytest.fixture
def workers() -> Callable[[], list[int]]:
    """`workers()` gives the processes that were started since the test began."""
    before = {child.pid for child in psutil.Process().children()}
    return lambda: [child.pid for child in psutil.Process().children() if child.pid not in before]


def run(feed: LoaderFeed) -> None:
    """A start and ten batches."""
    feed.start()
    for _ in range(10):
        feed.next()


def text(items: list[Any]) -> str:
    """A batch that nobody can count."""
    return "text"


@pytest.mark.parametrize("number", [0, 2])
def test_samples_are_counted_batch_by_batch(started: Any, number: int) -> None:
    """The short last batch of an epoch counts as what it is, with workers as without."""
    settings = LoaderSettings(batch_size=4, num_workers=number, prefetch_factor=2 if number else None)
    feed = started(parts_from(w.Rows(10), batch_size=4, shuffle=False), settings)
    found = [feed.next() for _ in range(7)]
    assert [count for _, count in found] == [4, 4, 2, 4, 4, 2, 4]
    assert [len(batch[0]) for batch, _ in found] == [4, 4, 2, 4, 4, 2, 4]


def test_batches_without_tensors_are_counted_too(started: Any) -> None:
    """What was asked of the dataset is counted, not what the collate function made of it."""
    feed = started(parts_from(w.Rows(10), batch_size=4, shuffle=False, collate_fn=text))
    assert [feed.next() for _ in range(3)] == [("text", 4), ("text", 4), ("text", 2)]


def test_batches_of_the_users_own_are_counted(started: Any) -> None:
    """By their indices, or by their tensors where one index is a batch."""
    feed = started(parts_from(DataLoader(w.Rows(10), batch_sampler=[[1, 2, 3], [4]])))
    assert [feed.next()[1] for _ in range(3)] == [3, 1, 3]
    ready = [(torch.zeros(5, 2), torch.zeros(5)), (torch.zeros(3, 2), torch.zeros(3))]
    feed = started(parts_from(DataLoader(ready, batch_size=None)))
    assert [feed.next()[1] for _ in range(3)] == [5, 3, 5]


class Asked(w.Rows):
    """Keeps what was asked for: sample by sample, or whole batches where it takes them."""

    def __init__(self) -> None:
        super().__init__(16)
        self.asked: list[Any] = []

    def __getitem__(self, index: Any) -> Any:
        self.asked.append(index)
        return super().__getitem__(index)


class AskedWhole(Asked):
    """Takes a batch at once."""

    def __getitems__(self, indices: Any) -> list[Any]:
        self.asked.append(indices)
        return [self.x[index] for index in indices]


class OneUse:
    """Batches that can be gone through once each."""

    def __iter__(self) -> Iterator[Any]:
        return (iter([first, first + 1, first + 2]) for first in (0, 3, 6))


OWN_BATCHES: dict[str, tuple[Any, list[int]]] = {
    "tensors": (torch.randperm(16).split(6), [6, 6, 4]),
    "arrays": (np.array_split(np.arange(16), 3), [6, 5, 5]),
    "ranges": ([range(5), range(5, 16)], [5, 11]),
    "dictionaries": ([{3: "a", 4: "b"}, {5: "c"}], [2, 1]),
    "iterators": (OneUse(), [3, 3, 3]),
    "tuples": ([(1, 2), (3,)], [2, 1]),
}


@pytest.mark.parametrize("number", [0, 2])
@pytest.mark.parametrize("name", OWN_BATCHES)
def test_own_batches_of_any_kind_are_counted_by_their_items(started: Any, name: str, number: int) -> None:
    """One by one and across the end of an epoch, with workers as without."""
    batches, sizes = OWN_BATCHES[name]
    parts = parts_from(DataLoader(w.Rows(16), batch_sampler=batches))
    settings = LoaderSettings(batch_size=None, num_workers=number, prefetch_factor=2 if number else None)
    feed = started(parts, settings)
    found = [feed.next() for _ in range(len(sizes) + 1)]
    assert [count for _, count in found] == [len(x) for (x, _), _ in found] == [*sizes, sizes[0]]
    tail = TailFeed(parts, settings, epoch_tail(parts, settings))
    for _ in range(2):
        assert [len(x) for x, _ in tail.epoch()] == sizes[-3:]
    tail.close()


@pytest.mark.parametrize("kind", [Asked, AskedWhole])
@pytest.mark.parametrize("name", [name for name in OWN_BATCHES if name != "iterators"])
def test_a_dataset_is_asked_as_torch_asks_it(started: Any, kind: Any, name: str) -> None:
    """For the very elements of the user's batches, or for those batches themselves."""
    batches, _ = OWN_BATCHES[name]
    ours, torchs = kind(), kind()
    feed = started(parts_from(DataLoader(ours, batch_sampler=batches)))
    for _ in DataLoader(torchs, batch_sampler=batches):
        feed.next()
    assert [(type(index), str(index)) for index in ours.asked] == [
        (type(index), str(index)) for index in torchs.asked
    ]


@pytest.mark.parametrize("number", [0, 1])
def test_a_sample_in_own_batches_of_arrays_is_named(number: int) -> None:
    """As in any other batch."""
    loader = DataLoader(w.RaisesAt(9), batch_sampler=np.array_split(np.arange(16), 3))
    workload = Workload(w.Net(), loader, optimizer=w.sgd)
    session = Session(workload, parts_of(workload), flags.read_user_flags(), machine_facts)
    settings = Settings().replace(num_workers=number, prefetch_factor=2 if number else None)
    failure = session.run(TrialSpec(settings=settings, stage="loader", mode="loader", window_s=0.1))
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.sample_index) == ("user_error", 9)


def test_a_stream_that_ends_starts_anew(started: Any) -> None:
    """The samples go on; how often and how long it took to start again is kept apart."""
    feed = started(parts_from(w.Stream(5), batch_size=2))
    assert [feed.next()[1] for _ in range(7)] == [2, 2, 1, 2, 2, 1, 2]
    assert feed.epochs == len(feed.restarts_s) == 2
    assert all(seconds > 0 for seconds in feed.restarts_s)


def test_a_stream_that_can_be_read_once_is_told_so(started: Any) -> None:
    """Its second epoch is empty, for training as for us."""
    feed = started(parts_from(ReadOnce(4), batch_size=2))
    assert [feed.next()[1] for _ in range(2)] == [2, 2]
    with pytest.raises(DatasetError, match="second time") as raised:
        feed.next()
    assert "ReadOnce" in raised.value.why


@pytest.mark.parametrize(
    ("parts", "settings", "said"),
    [
        (parts_from(w.Stream(0)), LoaderSettings(batch_size=4), "batch_size 4, num_workers 0"),
        (
            parts_from(w.ShardedStream(8), batch_size=8, drop_last=True),
            LoaderSettings(batch_size=8, num_workers=2),
            "batch_size 8, num_workers 2, drop_last",
        ),
        (parts_from(DataLoader(w.Rows(4), batch_sampler=[])), LoaderSettings(), "num_workers 0"),
    ],
    ids=["empty stream", "shares under a batch", "empty sampler"],
)
def test_a_loader_without_a_first_batch_is_an_error(
    started: Any, parts: LoaderParts, settings: LoaderSettings, said: str
) -> None:
    """Said with the settings that led to it, not as a bare end of iteration."""
    with pytest.raises(DatasetTooSmallError, match="before its first batch") as raised:
        started(parts, settings)
    assert said in raised.value.why
    assert raised.value.fix


def test_the_first_batch_is_timed_and_handed_out(started: Any) -> None:
    """Its time holds the start; the batch itself is not lost."""
    feed = started(parts_from(w.Rows(8, work_s=0.02), batch_size=4, shuffle=False))
    assert 0.08 <= feed.first_batch_s < 5
    began = time.perf_counter()
    batch, _ = feed.next()
    assert time.perf_counter() - began < 0.05
    assert torch.equal(batch[0], w.Rows(8).x[:4])


def test_what_workers_prepare_ahead() -> None:
    """Workers times prefetch, torch's default of two included; nothing without workers."""
    parts = parts_from(w.Rows())
    assert LoaderFeed(parts, LoaderSettings(batch_size=4)).in_flight == 0
    assert LoaderFeed(parts, LoaderSettings(batch_size=4, num_workers=3)).in_flight == 6
    assert LoaderFeed(parts, LoaderSettings(batch_size=4, num_workers=3, prefetch_factor=4)).in_flight == 12


def in_workers(persistent: bool) -> LoaderSettings:
    return LoaderSettings(batch_size=4, num_workers=1, prefetch_factor=2, persistent_workers=persistent)


def test_workers_that_live_on_start_the_next_epoch(started: Any, workers: Any) -> None:
    """The same process, and the batch that came with the start is handed out like any other."""
    feed = started(parts_from(w.Rows(100), batch_size=4), in_workers(True))
    feed.next()
    (worker,) = workers()
    assert feed.end_epoch() >= 0
    assert workers() == [worker]
    assert feed.begin_epoch() > 0
    assert workers() == [worker]
    assert [feed.next()[1] for _ in range(3)] == [4, 4, 4]


def test_workers_that_do_not_live_on_end_with_their_epoch(started: Any, workers: Any) -> None:
    """The time of that is a part of the end; closing afterwards does no harm."""
    feed = started(parts_from(w.Rows(100), batch_size=4), in_workers(False))
    feed.next()
    assert len(workers()) == 1
    assert feed.end_epoch() > 0
    assert workers() == []


def test_a_stream_has_no_end_that_could_be_brought_about(started: Any) -> None:
    """It ends where it ends."""
    assert started(parts_from(w.ShardedStream(100), batch_size=4), in_workers(True)).end_epoch() is None


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("bad", [1, 9])
def test_the_batch_that_raised_is_named(number: int, bad: int) -> None:
    """The first batch as well as a later one; batches ahead of it in the workers do not confuse it."""
    settings = LoaderSettings(batch_size=4, num_workers=number, prefetch_factor=3 if number else None)
    feed = LoaderFeed(parts_from(w.RaisesAt(bad, samples=40), batch_size=4, shuffle=False), settings)
    with pytest.raises(ValueError, match=f"sample {bad} is broken"):
        run(feed)
    assert feed.failing_indices() == list(range(bad // 4 * 4, bad // 4 * 4 + 4))
    feed.close()


def test_a_trial_names_the_sample_that_broke_its_first_batch(workers: Any) -> None:
    """All the way up: index, the user's traceback, and no worker left behind."""
    workload = Workload(w.Net(), w.RaisesAt(2), optimizer=w.sgd, batch_size=4, shuffle=False)
    session = Session(workload, parts_of(workload), flags.read_user_flags(), machine_facts)
    settings = Settings().replace(batch_size=4, num_workers=1, prefetch_factor=2, persistent_workers=True)
    failure = session.run(TrialSpec(settings=settings, stage="loader", mode="loader", window_s=0.1))
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.sample_index) == ("user_error", 2)
    assert workers() == []


class ByName(w.Rows):
    """Samples are asked for by name, `row 3`, and one raises."""

    def __getitem__(self, index: Any) -> Any:
        if index == "row 3":
            raise ValueError("broken")
        return super().__getitem__(int(index.split()[1]))


@pytest.mark.parametrize(
    ("dataset", "sampler", "index", "words"),
    [
        (w.RaisesAt(6), SubsetRandomSampler(np.arange(8)), 6, "sample 6 is broken"),
        (w.RaisesAt(6), list(torch.arange(8)), 6, "is broken"),
        (ByName(), [f"row {number}" for number in range(8)], None, "(at index 'row 3')"),
    ],
    ids=["numpy", "torch", "names"],
)
def test_samplers_that_give_other_than_plain_integers(
    dataset: Any, sampler: Any, index: int | None, words: str
) -> None:
    """Their sample is named by a plain number, or else in words, and a study can write the failure down."""
    workload = Workload(
        w.Net(), DataLoader(dataset, batch_size=4, drop_last=True, sampler=sampler), optimizer=w.sgd
    )
    session = Session(workload, parts_of(workload), flags.read_user_flags(), machine_facts)
    settings = Settings().replace(batch_size=4, num_workers=1, prefetch_factor=2)
    failure = session.run(TrialSpec(settings=settings, stage="loader", mode="loader", window_s=0.1))
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.sample_index) == ("user_error", index)
    assert words in failure.message
    assert decode(Failure, json.loads(json.dumps(encode(failure)))) == failure


@pytest.mark.parametrize("persistent", [False, True])
def test_closing_ends_the_workers(started: Any, workers: Any, persistent: bool) -> None:
    """At once, also those that would live on; twice does no harm."""
    settings = LoaderSettings(batch_size=4, num_workers=2, prefetch_factor=2, persistent_workers=persistent)
    feed = started(parts_from(w.Rows(100), batch_size=4), settings)
    assert len(workers()) == 2
    feed.close()
    assert workers() == []
    feed.close()


def test_a_feed_that_never_started_can_be_closed() -> None:
    """And names nothing."""
    feed = LoaderFeed(parts_from(w.Rows()), LoaderSettings(batch_size=4, num_workers=1))
    assert feed.failing_indices() == []
    feed.close()


def test_a_held_batch_is_given_again_and_again() -> None:
    """The same object, with its samples; nothing starts, waits or ends."""
    batch = (torch.zeros(3, 2), torch.zeros(3))
    feed = HeldFeed(batch, 3)
    assert all(feed.next()[0] is batch and feed.next()[1] == 3 for _ in range(3))
    assert (feed.first_batch_s, feed.in_flight, feed.epochs, feed.restarts_s) == (0.0, 0, 0, [])
    assert feed.failing_indices() == []
    feed.close()
