"""Across the end of an epoch: what fails only there is found there, and said."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import workloads as w
from torch import nn
from torch.utils.data import DataLoader, Sampler, WeightedRandomSampler

from autotune.measure import edge, flags
from autotune.measure.device import DeviceClock
from autotune.measure.feed import TailFeed
from autotune.measure.loaders import LoaderParts, parts_of
from autotune.measure.probe import machine_facts
from autotune.measure.session import Session
from autotune.settings import LoaderSettings, Settings
from autotune.trial import Failure, Measurement, TrialSpec
from autotune.workload import Workload

CPU = DeviceClock(torch.device("cpu"))
NEVER = float("inf")


class Endless(Sampler[int]):
    """Indices without an end and without a length."""

    def __iter__(self) -> Iterator[int]:
        while True:
            yield from range(10)


class Seen:
    """A step that remembers the sizes of its batches, and raises at one of them."""

    def __init__(self, refused: int = 0) -> None:
        self.sizes: list[int] = []
        self.refused = refused

    def __call__(self, model: nn.Module, batch: Any) -> torch.Tensor:
        x, y = batch
        self.sizes.append(len(x))
        if len(x) == self.refused:
            raise ValueError("this size I do not take")
        return nn.functional.cross_entropy(model(x), y)


def parts_from(dataset: Any, **fields: Any) -> LoaderParts:
    parts = parts_of(Workload(None, dataset, **fields))
    assert parts is not None
    return parts


def sizes_of(parts: LoaderParts, size: int | None) -> list[int]:
    tail = edge.epoch_tail(parts, LoaderSettings(batch_size=size))
    return [len(indices) for indices in tail]


def outcome(workload: Workload, changes: dict[str, Any] | None = None, **asked: Any) -> Any:
    """What a trial that crosses the end of an epoch gives, with the user's settings but for `changes`."""
    parts = parts_of(workload)
    session = Session(workload, parts, flags.read_user_flags(), machine_facts)
    settings = Settings(loader=parts.settings if parts is not None else LoaderSettings())
    spec = TrialSpec(
        settings=settings.replace(**changes or {}), stage="final", window_s=0.05, epoch_edge=True
    )
    return session.run(replace(spec, **asked))


WORKERS = {"num_workers": 1, "prefetch_factor": 2}


@pytest.mark.parametrize("changes", [{}, WORKERS, {**WORKERS, "persistent_workers": True}])
@pytest.mark.parametrize("samples", [33, 16 * 4000 + 1], ids=["in the blocks", "far behind the blocks"])
def test_one_sample_left_over_fails_and_is_named(samples: int, changes: dict[str, Any]) -> None:
    """Batch norm has nothing to average over in a batch of one: found wherever the epoch ends."""
    found = outcome(Workload(w.Net(), w.Rows(samples), optimizer=w.sgd, batch_size=16), changes)
    assert isinstance(found, Failure)
    assert found.kind == "user_error"
    assert found.message.startswith(
        "in the last batch of an epoch (1 sample): ValueError: Expected more than 1"
    )
    assert "drop_last=True" in found.hint


@pytest.mark.parametrize("samples", [33, 16 * 4000 + 1])
def test_dropping_the_last_batch_passes(samples: int) -> None:
    """The same without the batch of one is measured."""
    workload = Workload(w.Net(), w.Rows(samples), optimizer=w.sgd, batch_size=16, drop_last=True)
    assert isinstance(outcome(workload), Measurement)


def test_without_being_asked_nothing_is_crossed() -> None:
    """An end that is far away is then no part of the trial."""
    workload = Workload(w.Net(), w.Rows(16 * 4000 + 1), optimizer=w.sgd, batch_size=16)
    assert isinstance(outcome(workload, epoch_edge=False), Measurement)


def test_the_steps_across_are_no_part_of_what_is_timed() -> None:
    """Two epochs of two full batches and the rest follow the blocks, which hold none of them."""
    step = Seen()
    workload = Workload(w.Net(), w.Rows(16 * 4000 + 3), step=step, optimizer=w.sgd, batch_size=16)
    found = outcome(workload)
    assert isinstance(found, Measurement)
    assert step.sizes[-6:] == [16, 16, 3] * 2
    assert set(step.sizes[:-6]) == {16}
    assert found.samples == 16 * found.steps
    assert found.wall_s > found.elapsed_s


def test_a_trial_that_ends_before_its_first_batch_has_no_place() -> None:
    """Its failure is what it is."""
    found = outcome(Workload(w.Net(), w.Rows(33), optimizer=w.sgd, batch_size=16), timeout_s=0.0)
    assert isinstance(found, Failure)
    assert (found.kind, found.message) == ("timeout", "no end after 0 s")


def test_a_trial_that_was_given_up_crosses_nothing() -> None:
    """It is out already."""
    step = Seen()
    workload = Workload(w.Net(), w.Rows(16 * 4000 + 3), step=step, optimizer=w.sgd, batch_size=16)
    found = outcome(workload, give_up_below=1e12)
    assert isinstance(found, Measurement)
    assert set(step.sizes) == {16}


def test_a_loop_without_a_loader_has_no_end_to_cross() -> None:
    """Its trial is like any other."""
    workload = Workload(w.Net(), step=w.draw_rows, optimizer=w.sgd, samples_per_step=8)
    assert isinstance(outcome(workload), Measurement)


def test_a_sample_that_raises_is_named_there_too() -> None:
    """The index in the last batch, and that it was in the last batch."""
    dataset = w.RaisesAt(16 * 4000 + 2, samples=16 * 4000 + 3)
    found = outcome(Workload(w.Net(), dataset, optimizer=w.sgd, batch_size=16, shuffle=False))
    assert isinstance(found, Failure)
    assert found.sample_index == 16 * 4000 + 2
    assert found.message.startswith("in the last batch of an epoch (3 samples): ValueError: sample 64002")


def test_a_loss_that_is_lost_there_is_a_failure() -> None:
    """A mean over what is not there is NaN, in the one batch in which it is not there."""
    found = outcome(
        Workload(w.Net(), w.Rows(16 * 4000 + 3), step=_mean_of_the_rest, optimizer=w.sgd, batch_size=16)
    )
    assert isinstance(found, Failure)
    assert found.kind == "non_finite"
    assert found.message == "in the last batch of an epoch (3 samples): the loss became nan"


def _mean_of_the_rest(model: nn.Module, batch: Any) -> torch.Tensor:
    return model(batch[0])[8:].mean()


def test_a_streams_last_batch_is_named_too() -> None:
    """By its size, whether the blocks come to it or the steps after them."""
    found = outcome(Workload(w.Net(), w.Stream(16 * 40 + 1), optimizer=w.sgd, batch_size=16))
    assert isinstance(found, Failure)
    assert found.message.startswith("in the last batch of an epoch (1 sample): ValueError: Expected more")


def test_a_stream_beyond_the_blocks_is_read_on() -> None:
    """Until it starts anew, where that is within the time given."""
    parts = parts_from(w.Stream(10), batch_size=4)
    step = Seen()
    feed = edge.LoaderFeed(parts, parts.settings)
    feed.start()
    net = w.Net()
    edge.cross_stream(lambda batch: step(net, batch).detach(), feed, CPU, NEVER, at_most_s=60.0)
    assert step.sizes == [4, 4, 2, 4]
    assert feed.epochs == 1
    edge.cross_stream(lambda batch: step(net, batch).detach(), feed, CPU, NEVER, at_most_s=60.0)
    assert len(step.sizes) == 4
    feed.close()


def test_a_long_stream_is_left_as_it_is() -> None:
    """No time, no step."""
    parts = parts_from(w.Stream(10), batch_size=4)
    feed = edge.LoaderFeed(parts, parts.settings)
    feed.start()
    edge.cross_stream(lambda batch: None, feed, CPU, NEVER, at_most_s=0.0)  # type: ignore[arg-type]
    assert feed.epochs == 0
    feed.close()


@pytest.mark.parametrize(
    ("samples", "drop_last", "sizes"),
    [
        (33, False, [16, 16, 1]),
        (33, True, [16, 16]),
        (320, False, [16, 16, 16]),
        (20, False, [16, 4]),
        (20, True, [16]),
        (16, False, [16]),
    ],
)
def test_the_tail_holds_two_full_batches_and_the_rest(
    samples: int, drop_last: bool, sizes: list[int]
) -> None:
    """Fewer where the epoch has fewer."""
    assert sizes_of(parts_from(w.Rows(samples), batch_size=16, drop_last=drop_last), 16) == sizes


def test_the_tail_of_ordered_samples_is_their_end() -> None:
    """Without shuffling the last batch of an epoch is always the same one, and it is that one."""
    tail = edge.epoch_tail(parts_from(w.Rows(11), batch_size=4, shuffle=False), LoaderSettings(batch_size=4))
    assert tail == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]


def test_the_tail_is_the_samplers() -> None:
    """A sampler's own length decides, and a batch sampler's own batches."""
    rows = w.Rows(100)
    weighted = WeightedRandomSampler([1.0] * 100, num_samples=9)
    assert sizes_of(parts_from(DataLoader(rows, batch_size=4, sampler=weighted)), 4) == [4, 4, 1]
    own = [[1, 2], [3, 4, 5], [6], [7, 8]]
    tail = edge.epoch_tail(parts_from(DataLoader(rows, batch_sampler=own)), LoaderSettings())
    assert tail == own[1:]
    ready = [(torch.zeros(5, 2), torch.zeros(5))] * 4
    assert edge.epoch_tail(parts_from(DataLoader(ready, batch_size=None)), LoaderSettings()) == [1, 2, 3]


def test_an_epoch_without_an_end_gives_batches_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking ends somewhere; there is no last batch to know of."""
    monkeypatch.setattr(edge, "_LOOKED_THROUGH", 50)
    parts = parts_from(DataLoader(w.Rows(10), batch_size=4, sampler=Endless()))
    assert sizes_of(parts, 4) == [4, 4, 4]


def test_the_end_of_a_long_epoch_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where drawing all indices would take long, the last batch has the size that it will have."""
    monkeypatch.setattr(edge, "_LOOKED_THROUGH", 50)
    assert sizes_of(parts_from(w.Rows(1003), batch_size=4), 4) == [4, 4, 3]
    assert sizes_of(parts_from(w.Rows(1004), batch_size=4), 4) == [4, 4, 4]
    assert sizes_of(parts_from(w.Rows(1003), batch_size=4, drop_last=True), 4) == [4, 4, 4]


@pytest.mark.parametrize("persistent", [False, True])
def test_the_loader_really_ends_and_starts_again(persistent: bool) -> None:
    """Workers end with an epoch or live on, as the settings say; the place follows the batches."""
    parts = parts_from(w.Rows(11), batch_size=4, shuffle=False)
    settings = LoaderSettings(batch_size=4, num_workers=1, prefetch_factor=2, persistent_workers=persistent)
    feed = TailFeed(parts, settings, edge.epoch_tail(parts, settings))
    alive, places = [], []
    for _ in range(2):
        places.extend((len(batch[0]), feed.place) for batch in feed.epoch())
        alive.append(getattr(feed.loader, "_iterator", None) is not None)
    feed.close()
    last = (3, "in the last batch of an epoch (3 samples)")
    near = (4, "near the end of an epoch")
    assert places == [near, near, last, (4, "in the first batch of the next epoch"), near, last]
    assert alive == [persistent] * 2
