"""Whether a stream divides its samples among the workers, as far as its code tells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.utils.data import Dataset

if TYPE_CHECKING:
    from autotune.measure.loaders import LoaderParts

_WRAPPED = 1000
"""Datasets looked for in one list of another; longer lists hold samples."""


def wrapped_datasets(dataset: Any) -> dict[int, Any]:
    """The dataset and those that it wraps, which samplers may hold too, by identity."""
    found: dict[int, Any] = {}
    pending = [dataset]
    while pending:
        current = pending.pop()
        if id(current) in found:
            continue
        found[id(current)] = current
        held = vars(current).values() if hasattr(current, "__dict__") else ()
        for value in held:
            inner = value if isinstance(value, (list, tuple)) else (value,)
            pending.extend(item for item in inner[:_WRAPPED] if isinstance(item, Dataset))
    return found


def shards_itself(parts: LoaderParts) -> bool:
    """Whether a stream divides its samples among workers, as far as its code tells.

    Unsure counts as no: with a stream that does not, every worker yields every sample.
    """
    if not parts.iterable or parts.worker_init_fn is not None:
        return True
    dataset = parts.dataset
    kind = type(dataset)
    if kind.__module__.startswith("datasets.") and getattr(dataset, "num_shards", 0) > 1:
        return True
    if _is_pipe(dataset):
        return any(
            hasattr(pipe, "apply_sharding") for pipe in wrapped_datasets(dataset).values() if _is_pipe(pipe)
        )
    return "get_worker_info" in _names_used(kind, "__iter__")


def _is_pipe(dataset: Any) -> bool:
    """Whether torch itself asks this stream's parts to divide the samples."""
    return any(base.__name__ == "IterDataPipe" for base in type(dataset).__mro__)


def _names_used(kind: type, method: str) -> set[str]:
    """Names used by a method, by the functions inside it and by the methods of the same class it calls."""
    pending, seen, names = [method], set(), set()
    while pending:
        name = pending.pop()
        code = getattr(getattr(kind, name, None), "__code__", None)
        if code is None or name in seen:
            continue
        seen.add(name)
        inner = [code]
        while inner:
            current = inner.pop()
            names.update(current.co_names)
            pending.extend(current.co_names)
            inner.extend(const for const in current.co_consts if hasattr(const, "co_names"))
    return names
