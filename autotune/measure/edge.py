"""Across the end of an epoch and into the next one: what the blocks of a trial do not meet.

The last batch is smaller, which batch norm or a compiled shape may not stand; workers end and start again,
or have to live on. Nothing here is timed.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Any

from autotune.measure.device import DeviceClock
from autotune.measure.feed import Feed, LoaderFeed, TailFeed
from autotune.measure.loaders import LoaderParts, epoch_batches
from autotune.measure.timing import Step, finite, in_time
from autotune.settings import LoaderSettings
from autotune.trial import Failure

EPOCHS = 2
"""Ends that are crossed: the second shows that the loader could be started again."""
_BATCHES = 3
"""The last one of an epoch, and two full ones before it."""
_LOOKED_THROUGH = 100_000
"""Batches of indices drawn to find the last ones; drawing them takes about a second."""
_BATCHS_OWN = ("user_error", "compile_error")
"""Failures raised by the batch in use itself; others show later than they come about, or elsewhere."""


def epoch_tail(parts: LoaderParts, settings: LoaderSettings) -> list[Any]:
    """The last batches of an epoch as the user's samplers draw it, two full ones and the rest of the samples.

    Fewer where an epoch has fewer. In an epoch so long that its end is not reached, or that has none, the
    last ones seen stand for them, cut to the size of the true last one where the length is known.

    Args:
        parts: of a dataset that is no stream.
        settings: whose batch size counts.

    Returns:
        Lists of indices, bare indices where the dataset makes the batches, or what the user's own batch
        sampler gives.
    """
    tail: deque[Any] = deque(maxlen=_BATCHES)
    for number, indices in enumerate(epoch_batches(parts, settings)):
        if number == _LOOKED_THROUGH:
            tail.append(_cut(tail.pop(), parts, settings))
            break
        tail.append(indices)
    return list(tail)


def _cut(indices: Any, parts: LoaderParts, settings: LoaderSettings) -> Any:
    if parts.drop_last or settings.batch_size is None:
        return indices
    samples = parts.samples()
    return indices if samples is None else indices[: samples % settings.batch_size or None]


def cross(step: Step, feed: TailFeed, clock: DeviceClock, deadline: float) -> None:
    """Real steps to the end of an epoch, and of the next one.

    Raises:
        DivergedError: when a loss is not finite.
        OutOfTimeError: at `deadline`, a reading of `time.perf_counter`.
    """
    for _ in range(EPOCHS):
        for batch in feed.epoch():
            _run(step, batch, clock, deadline)


def cross_stream(step: Step, feed: LoaderFeed, clock: DeviceClock, deadline: float, at_most_s: float) -> None:
    """Real steps to the end of a stream's epoch and into the next, where that is near enough.

    A stream's last batches are found by reading it to its end alone. One that does not come to it in time is
    left as it is, and one whose end the timed blocks have passed already needs no more.

    Args:
        at_most_s: seconds to spend on it.

    Raises:
        DivergedError, OutOfTimeError: as in `cross`.
    """
    until = in_time(deadline) + at_most_s
    while not feed.epochs and in_time(deadline) < until:
        batch, _ = feed.next()
        _run(step, batch, clock, deadline)


def _run(step: Step, batch: Any, clock: DeviceClock, deadline: float) -> None:
    in_time(deadline)
    finite(step(batch))
    clock.synchronize()


def placed(failure: Failure, feed: Feed | TailFeed | None, *, one_sample: bool) -> Failure:
    """The failure with where in the epoch it came about, where that is known and not just any place.

    Args:
        failure: of a trial.
        feed: where its batches came from when it failed; None where there was none yet.
        one_sample: whether a sample raises alone, whatever the size of its batch.
    """
    if feed is None or not feed.place or not (isinstance(feed, TailFeed) or failure.kind in _BATCHS_OWN):
        return failure
    hint = failure.hint
    if failure.kind in _BATCHS_OWN and "sample" in feed.place and not one_sample:
        hint = "drop the last batch (drop_last=True), or use a batch size that leaves no such rest of samples"
    return replace(failure, message=f"{feed.place}: {failure.message}", hint=hint)
