"""Whether a stream divides its samples among the workers, as far as its code tells."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any

from torch.utils.data import Dataset

if TYPE_CHECKING:
    from autotune.measure.loaders import LoaderParts

_WRAPPED = 1000
"""Datasets looked for in one list of another; longer lists hold samples."""
_FUNCTIONS = (FunctionType, MethodType, functools.partial)


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
    if not parts.iterable or (parts.worker_init_fn is not None and _divides(parts.worker_init_fn)):
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


def _divides(worker_init_fn: Callable[[int], Any]) -> bool:
    """Whether a worker_init_fn gives each worker a share: it reaches the dataset through its worker's info.

    Most only seed. Those that take their seed from that info need it for nothing else.
    """
    names = _names_behind(worker_init_fn)
    return "dataset" in names or ("get_worker_info" in names and "seed" not in names)


def _names_behind(function: Any) -> set[str]:
    """Names used by what a call runs: through partials, decorators and objects that can be called."""
    pending: list[Any] = [function]
    seen: set[int] = set()
    names: set[str] = set()
    while pending:
        current = pending.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        if isinstance(current, functools.partial):
            pending += [current.func, *current.args, *current.keywords.values()]
        elif isinstance(current, FunctionType):
            names.update(_names_in(current.__code__))
            pending.extend(_held_in_cells(current))
        elif isinstance(current, MethodType):
            names |= _names_used(type(current.__self__), current.__name__)
            pending.append(current.__func__)
        elif callable(current) and not isinstance(current, type):
            names |= _names_used(type(current), "__call__")
            held = getattr(current, "__dict__", {}).values()
            pending.extend(item for item in held if isinstance(item, _FUNCTIONS))
    return names


def _held_in_cells(function: Any) -> Iterator[Any]:
    """What a function made in another one keeps of it, such as the function that it decorates."""
    for cell in getattr(function, "__closure__", None) or ():
        try:
            yield cell.cell_contents
        except ValueError:  # a name that was never given a value
            continue


def _names_used(kind: type, method: str) -> set[str]:
    """Names used by a method, by the functions inside it and by the methods of the same class it calls."""
    pending, seen, names = [method], set(), set()
    while pending:
        name = pending.pop()
        code = getattr(getattr(kind, name, None), "__code__", None)
        if code is None or name in seen:
            continue
        seen.add(name)
        used = set(_names_in(code))
        names |= used
        pending.extend(used)
    return names


def _names_in(code: CodeType) -> Iterator[str]:
    """Names in this code and in the functions inside it; also those given to `getattr` as text."""
    inner = [code]
    while inner:
        current = inner.pop()
        yield from current.co_names
        for const in current.co_consts:
            if isinstance(const, CodeType):
                inner.append(const)
            elif isinstance(const, str):
                yield const
