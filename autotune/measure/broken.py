"""Which sample of a batch raises: found by reading each alone."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from autotune.measure.feed import Feed, TailFeed
from autotune.trial import Failure

if TYPE_CHECKING:
    from autotune.measure.loaders import LoaderParts

_SHOWN = 80
"""Characters of what a sampler gave instead of a number."""


@dataclass(frozen=True, slots=True)
class BrokenSample:
    """A sample that raises when it is read alone."""

    index: int | None
    """None where the sampler gives no numbers."""
    shown: str
    """What the sampler gave, as text."""


def broken_sample(parts: LoaderParts | None, indices: Iterable[Any]) -> BrokenSample | None:
    """The first of `indices`, as the sampler gave them, that raises; None where none does."""
    if parts is None or not hasattr(parts.dataset, "__getitem__"):
        return None
    for index in indices:
        try:
            parts.dataset[index]
        except Exception:  # which one raises is the question
            return _named(index)
    return None


def _named(index: Any) -> BrokenSample:
    try:
        # Samplers give integers of NumPy and torch too, which no study can write down.
        number = operator.index(index)
    except TypeError:
        return BrokenSample(None, " ".join(repr(index).split())[:_SHOWN])
    return BrokenSample(number, str(number))


def with_sample(
    failure: Failure, parts: LoaderParts | None, feed: Feed | TailFeed | None
) -> tuple[Failure, bool]:
    """The failure of a trial with the sample that broke it, and whether there is one.

    Args:
        failure: of a trial.
        parts: of the trial's loader.
        feed: where its batches came from when it failed; None where there was none yet.
    """
    if feed is None or failure.kind != "user_error":
        return failure, False
    broken = broken_sample(parts, feed.failing_indices())
    if broken is None:
        return failure, False
    if broken.index is None:
        return replace(failure, message=f"{failure.message} (at index {broken.shown})"), True
    return replace(failure, sample_index=broken.index), True
