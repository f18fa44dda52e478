"""Where the batches of a trial come from: the user's loader, a stream, or one batch held on the device."""

from __future__ import annotations

import time
from typing import Any

from autotune.errors import DatasetError, DatasetTooSmallError
from autotune.measure import batches
from autotune.measure.loaders import LoaderParts, build_endless, end_workers
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
        if self._fetched:
            batch = self._fetched.pop()
        else:
            try:
                batch = next(self._iterator)
            except StopIteration:
                batch = self._restart()
        return batch, self._samples(batch)

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
        if self.endless is not None and self.endless.pending and self.settings.batch_size is not None:
            return len(self.endless.pending.popleft())
        if self.endless is not None and self.endless.pending:
            indices = self.endless.pending.popleft()
            return len(indices) if len(indices) > 1 else batches.count_samples(batch, 1)
        return batches.count_samples(batch, self.settings.batch_size or 1)

    @property
    def in_flight(self) -> int:
        """Batches that workers prepare ahead."""
        return self.settings.num_workers * (self.settings.prefetch_factor or 2)

    def time_restart(self) -> float | None:
        """Seconds from the start of a further epoch to its first batch, with the workers still alive.

        Ends the epoch where it stands, takes what is in flight, and starts the next one. None where that
        says nothing: without persistent workers every start is the first one, and a stream has no such end.
        """
        if self.endless is None or not self.settings.persistent_workers:
            return None
        self.endless.stop()
        for _ in self._iterator:
            pass
        started = time.perf_counter()
        self._iterator = iter(self.loader)
        next(self._iterator)
        return time.perf_counter() - started

    def failing_indices(self) -> list[int]:
        """Indices of the batch that was due when a fetch raised."""
        return list(self.endless.pending[0]) if self.endless is not None and self.endless.pending else []

    def close(self) -> None:
        """End the workers now."""
        if not self._ended:
            self._ended = True
            end_workers(self._iterator, self.loader)
            self._iterator = None


def _described(parts: LoaderParts, settings: LoaderSettings) -> str:
    said = [f"batch_size {settings.batch_size}", f"num_workers {settings.num_workers}"]
    return ", ".join(said + ["drop_last"] * parts.drop_last)


class HeldFeed:
    """The same batch again and again: the compute side alone, and loops that have no loader."""

    first_batch_s = 0.0
    in_flight = 0
    epochs = 0

    def __init__(self, batch: Any, samples: int) -> None:
        self._batch = batch
        self._samples = samples
        self.restarts_s: list[float] = []

    def next(self) -> tuple[Any, int]:
        """The batch and its number of samples."""
        return self._batch, self._samples

    def time_restart(self) -> float | None:
        """Nothing restarts."""
        return None

    def failing_indices(self) -> list[int]:
        """Nothing is fetched."""
        return []

    def close(self) -> None:
        """Nothing to end."""


Feed = LoaderFeed | HeldFeed
