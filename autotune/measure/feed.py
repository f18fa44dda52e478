"""Where the batches of a trial come from: the user's loader, a stream, or one batch held on the device."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from autotune.errors import DatasetError, DatasetTooSmallError
from autotune.measure import batches
from autotune.measure.loaders import LoaderParts, build_endless, build_over, end_workers
from autotune.measure.own_batches import asked_of
from autotune.settings import LoaderSettings


class LoaderFeed:
    """Batches from a loader with given settings, with starts timed.

    `start()` it when everything else is warm and use it at once: while nothing consumes, the workers fill
    their queues, and a full queue makes the next steps look faster than the loader is.
    """

    def __init__(self, parts: LoaderParts, settings: LoaderSettings) -> None:
        self.parts = parts
        self.settings = settings
        self.loader, self.endless = build_endless(parts, settings)
        self.epochs = 0
        self.restarts_s: list[float] = []
        self.first_batch_s = 0.0
        self._ended = False
        self._iterator: Any = None
        self._fetched: list[Any] = []
        self._handed: int | None = None

    def start(self) -> None:
        """Start the workers and fetch the first batch, which `next` hands out.

        Apart from the constructor, so that a feed whose first fetch raises can still name the samples.

        Raises:
            DatasetTooSmallError: when there is no first batch.
        """
        started = time.perf_counter()
        self._iterator = iter(self.loader)
        try:
            self._fetched = [next(self._iterator)]
        except StopIteration:
            raise DatasetTooSmallError(
                "the loader ended before its first batch",
                why=f"with {_described(self.parts, self.settings)}",
                fix="lower batch_size or num_workers, so that there is a batch in each worker's share",
            ) from None
        self.first_batch_s = time.perf_counter() - started

    def next(self) -> tuple[Any, int]:
        """A batch and its number of samples. A stream that ends starts anew; that time is kept apart.

        Raises:
            DatasetError: for a stream that gives nothing the second time.
        """
        self._handed = None
        if self._fetched:
            batch = self._fetched.pop()
        else:
            try:
                batch = next(self._iterator)
            except StopIteration:
                batch = self._restart()
        self._handed = self._samples(batch)
        return batch, self._handed

    def _restart(self) -> Any:
        started = time.perf_counter()
        self._iterator = iter(self.loader)
        try:
            batch = next(self._iterator)
        except StopIteration:
            raise DatasetError(
                "the dataset cannot be read a second time",
                why=f"iter({type(self.parts.dataset).__name__}) gave nothing after its first epoch",
                fix="let `__iter__` start anew each time, as training for several epochs needs it too",
            ) from None
        self.epochs += 1
        self.restarts_s.append(time.perf_counter() - started)
        return batch

    def _samples(self, batch: Any) -> int:
        indices = None
        if self.endless is not None and self.endless.pending:
            indices = self.endless.pending.popleft()
        return batches.drawn_samples(
            batch, indices, self.settings.batch_size, own_sampler=self.parts.batch_sampler is not None
        )

    @property
    def in_flight(self) -> int:
        """Batches that workers prepare ahead."""
        return self.settings.num_workers * (self.settings.prefetch_factor or 2)

    def end_epoch(self) -> float | None:
        """End the epoch where it stands and take what is in flight.

        Returns:
            Seconds from the last batch to the end, in which workers that do not live on are ended. None for
            a stream: it has no end that could be brought about.
        """
        if self.endless is None:
            return None
        self.endless.stop()
        self._fetched.clear()
        last = time.perf_counter()
        for _ in self._iterator:
            last = time.perf_counter()
        return time.perf_counter() - last

    def begin_epoch(self) -> float:
        """Start the next epoch: seconds to its first batch, which `next` hands out."""
        started = time.perf_counter()
        self._iterator = iter(self.loader)
        self._fetched = [next(self._iterator)]
        return time.perf_counter() - started

    def failing_indices(self) -> list[Any]:
        """Indices of the batch that was due when a fetch raised."""
        return list(self.endless.pending[0]) if self.endless is not None and self.endless.pending else []

    @property
    def place(self) -> str:
        """That the batch due or in use is the last of an epoch, where its size tells; else empty."""
        count = self._handed if self._handed is not None else len(self.failing_indices())
        ordinary = self.parts.batch_sampler is None and self.settings.batch_size is not None
        return last_batch(count) if ordinary and 0 < count < (self.settings.batch_size or 0) else ""

    def close(self) -> None:
        """End the workers now."""
        if not self._ended:
            self._ended = True
            end_workers(self._iterator, self.loader)
            self._iterator = None


class TailFeed:
    """A few batches, epoch after epoch, from a loader that truly ends after each.

    Args:
        parts: of a dataset that is no stream.
        settings: as for every loader of a trial.
        wanted: the batches, as `loaders.epoch_batches` gives them.
        at_the_end: whether they are the last of an epoch, so that it matters which of them fails.
    """

    def __init__(
        self, parts: LoaderParts, settings: LoaderSettings, wanted: Sequence[Any], *, at_the_end: bool = True
    ) -> None:
        self.settings = settings
        self.place = ""
        """Which batch of which epoch is due or in use, a phrase."""
        self._wanted = wanted
        self._at_the_end = at_the_end
        self._epochs = 0
        self._own_sampler = parts.batch_sampler is not None
        self._due: deque[Collection[Any]] = deque()
        self._iterator: Any = None
        self.loader = build_over(parts, settings, wanted)

    def epoch(self) -> Iterator[Any]:
        """The batches of one epoch. Workers start and end with it, or live on, as the settings say."""
        self._due = deque(asked_of(indices, own_sampler=self._own_sampler) for indices in self._wanted)
        self._look()
        self._iterator = iter(self.loader)
        for batch in self._iterator:
            if self._due:
                self._due.popleft()
            yield batch
            self._look()
        self._epochs += 1

    def _look(self) -> None:
        if not self._at_the_end:
            return
        if len(self._due) == 1:
            # Where the dataset makes the batches, an index says nothing of how large they are.
            self.place = last_batch(len(self._due[0]) if self.settings.batch_size is not None else None)
        elif self._epochs and len(self._due) == len(self._wanted):
            self.place = "in the first batch of the next epoch"
        else:
            self.place = "near the end of an epoch"

    def failing_indices(self) -> list[Any]:
        """Indices of the batch that was due when a fetch raised."""
        return list(self._due[0]) if self._due else []

    def close(self) -> None:
        """End the workers now."""
        end_workers(self._iterator, self.loader)
        self._iterator = None


def last_batch(samples: int | None) -> str:
    """`in the last batch of an epoch (1 sample)`: how failures there begin."""
    if samples is None:
        return "in the last batch of an epoch"
    return f"in the last batch of an epoch ({samples} sample{'s' if samples != 1 else ''})"


def _described(parts: LoaderParts, settings: LoaderSettings) -> str:
    said = [f"batch_size {settings.batch_size}", f"num_workers {settings.num_workers}"]
    return ", ".join(said + ["drop_last"] * parts.drop_last)


class HeldFeed:
    """The same batch again and again: the compute side alone, and loops that have no loader.

    Args:
        batch: on the device.
        samples: in it.
        copies: whether a step changes its batch, so that each gets a copy. That is timed as a wait: a copy
            for each step of a block, made before it, would fill the device's memory.
    """

    first_batch_s = 0.0
    in_flight = 0
    epochs = 0
    place = ""

    def __init__(self, batch: Any, samples: int, *, copies: bool = False) -> None:
        self._batch = batch
        self._copies = copies
        self._samples = samples
        self.restarts_s: list[float] = []

    def next(self) -> tuple[Any, int]:
        """The batch and its number of samples."""
        return batches.copied(self._batch) if self._copies else self._batch, self._samples

    def failing_indices(self) -> list[Any]:
        """Nothing is fetched."""
        return []

    def close(self) -> None:
        """Nothing to end."""


Feed = LoaderFeed | HeldFeed
