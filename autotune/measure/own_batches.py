"""Batches as a batch sampler of the user's own gives them: lists, tensors, arrays, ranges and the like."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from autotune.measure import flags

_LOOKED_THROUGH = 10_000
"""Batches drawn to count an epoch's samples; those of a longer one are taken to go on like these."""
_AT_MOST_S = 3.0
"""Seconds for that; what takes longer, as where lengths are read from files, is not known."""


class LastingBatches:
    """The batches as they are, but for those that can be gone through only once: these become lists.

    Counting them would use them up before anything is fetched.
    """

    def __init__(self, batches: Iterable[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        for indices in self.batches:
            yield list(indices) if isinstance(indices, Iterator) else indices


def asked_of(indices: Any, *, own_sampler: bool) -> Collection[Any]:
    """What one batch asks the dataset for, item by item, its elements as they are.

    Args:
        indices: as the loader's sampler gave them.
        own_sampler: whether that is a batch sampler of the user's own. Without, what is no list or tuple is
            one item, for which the dataset may give a whole batch.
    """
    if isinstance(indices, (list, tuple)):
        return list(indices)
    if not own_sampler:
        return [indices]
    try:
        if isinstance(indices, Collection):
            len(indices)  # a tensor without a dimension has none
            return indices  # no list: one of a large tensor takes as long as a small step
        return list(indices)
    except TypeError:
        return [indices]


def samples_of_epoch(batches: Iterable[Any]) -> int | None:
    """Samples in one pass over a batch sampler, which must be a copy: it is gone through.

    None where that is not known: no end is near, and it has no length.
    """
    samples, ends = 0, time.perf_counter() + _AT_MOST_S
    with flags.preserved():
        flags.seed_everything(0)  # where sizes are drawn by chance, the next run must find the same number
        try:
            for number, indices in enumerate(LastingBatches(batches)):
                if number == _LOOKED_THROUGH:
                    return round(len(batches) * samples / number)  # type: ignore[arg-type]
                if time.perf_counter() > ends:
                    return None
                samples += len(asked_of(indices, own_sampler=True))
        except Exception:  # the user's own: a trial that meets it says so, here it is no more than not known
            return None
    return samples
