"""Batches of any shape: tensors, tuples, lists, dicts, namedtuples, dataclasses, objects with `.to()`."""

from __future__ import annotations

import collections
import copy
import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence


def map_tensors(
    value: Any,
    function: Callable[[torch.Tensor], Any],
    *,
    movers: Callable[[Any], Any] | None = None,
) -> Any:
    """`value` with every tensor in its containers replaced; other leaves stay as they are.

    Args:
        value: containers in containers.
        function: gives the new tensor for an old one.
        movers: gives the new object for one with a `.to()` of its own; without, such objects are containers
            or leaves like others.
    """
    if isinstance(value, torch.Tensor):
        return function(value)
    if movers is not None and _moves_itself(value):
        return movers(value)

    def inside(item: Any) -> Any:
        return map_tensors(item, function, movers=movers)

    if isinstance(value, Mapping):
        return _like_mapping(value, {key: inside(item) for key, item in value.items()})
    if isinstance(value, (tuple, list)):
        return _like_sequence(value, [inside(item) for item in value])
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # A copy, not a new instance: what `__post_init__` does to the values must not be done twice.
        changed = copy.copy(value)
        for f in dataclasses.fields(value):
            object.__setattr__(changed, f.name, inside(getattr(value, f.name)))
        return changed
    return value


def _like_mapping(value: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    if type(value) is dict:
        return items
    if isinstance(value, (dict, collections.UserDict)):
        same: Any = copy.copy(value)  # keeps what a subclass holds besides its items
        same.update(items)
        return same
    try:
        return type(value)(items)  # type: ignore[call-arg]
    except TypeError:
        return items


def _like_sequence(value: tuple[Any, ...] | list[Any], items: list[Any]) -> Any:
    if hasattr(value, "_fields"):
        return type(value)(*items)
    try:
        return type(value)(items)
    except TypeError:
        return tuple(items) if isinstance(value, tuple) else items


def copied(batch: Any) -> Any:
    """The batch with tensors of its own: a step may change its batch in place."""
    return None if batch is None else map_tensors(batch, torch.Tensor.clone)


class Held:
    """One batch for many steps, as it was loaded in each of them.

    The first step gets a copy. Where it changes that in place, so does every other step, and each gets one of
    its own; else all others have the batch itself, as a copy that nobody needs would be timed with the step.
    """

    def __init__(self, batch: Any) -> None:
        self._batch = copied(batch)
        self.copies = True
        """Whether `fresh` gives copies."""
        self._seen = False

    def fresh(self) -> Any:
        """The batch for one step."""
        return copied(self._batch) if self.copies else self._batch

    def stepped(self, step: Callable[[Any], Any], batch: Any) -> Any:
        """What `step` returns for the batch, which `fresh` gave and which is on the device by now."""
        before = None if self._seen else _versions(batch)
        returned = step(batch)
        if not self._seen:
            self.copies, self._seen = _versions(batch) != before, True
        return returned


def _versions(batch: Any) -> list[int]:
    """How often each tensor was changed in place; one made in inference mode does not count that."""
    return [tensor._version for tensor in tensors(batch) if not tensor.is_inference()]


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor in `value`, in order; those that objects with a `.to()` hold as attributes too."""
    for found in _found(value, set()):
        if isinstance(found, PackedSequence):
            yield from (part for part in found if part is not None)
        else:
            yield found


def _found(value: Any, seen: set[int]) -> Iterator[Any]:
    """Tensors and packed sequences, which hold several but are one."""
    if isinstance(value, (torch.Tensor, PackedSequence)):
        yield value
        return
    for item in _items(value, seen):
        yield from _found(item, seen)


def _items(value: Any, seen: set[int]) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return value.values()
    if isinstance(value, (tuple, list)):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, f.name) for f in dataclasses.fields(value)]
    if _moves_itself(value) and hasattr(value, "__dict__") and id(value) not in seen:
        seen.add(id(value))  # objects may hold each other
        return vars(value).values()
    return ()


def to_device(
    batch: Any, device: torch.device, *, non_blocking: bool = False, channels_last: bool = False
) -> Any:
    """`batch` on `device`; 4-D float tensors in NHWC memory order when `channels_last`.

    Objects with a `.to()` of their own are asked to move themselves.
    """

    def move(tensor: torch.Tensor) -> torch.Tensor:
        if channels_last and tensor.dim() == 4 and tensor.is_floating_point():
            return tensor.to(device, non_blocking=non_blocking, memory_format=torch.channels_last)
        return tensor.to(device, non_blocking=non_blocking)

    def ask(value: Any) -> Any:
        try:
            moved = value.to(device, non_blocking=non_blocking)
        except TypeError:
            moved = value.to(device)
        return value if moved is None else moved  # None: it has moved in place

    return map_tensors(batch, move, movers=ask)


def _moves_itself(value: Any) -> bool:
    return not isinstance(value, (torch.Tensor, type)) and callable(getattr(value, "to", None))


def count_samples(batch: Any, default: int, *, expected: int | None = None) -> int:
    """Length of the first dimension of the first tensor that holds anything; `default` where none does.

    A packed sequence counts its sequences. Where some tensor has `expected` entries, that is the number: the
    first one may have its time or its nodes in front.
    """
    lengths = (
        int(found.batch_sizes[0] if isinstance(found, PackedSequence) else found.size(0))
        for found in _found(batch, set())
        if isinstance(found, PackedSequence) or found.dim() > 0
    )
    held = [length for length in lengths if length]
    if expected in held:
        return expected or default
    return held[0] if held else default


def drawn_samples(
    batch: Any, indices: Collection[Any] | None, batch_size: int | None, *, own_sampler: bool
) -> int:
    """Samples in a batch of a loader.

    Args:
        batch: as the collate function made it.
        indices: what was asked for; None for a stream.
        batch_size: as the loader was given it; None where something else makes the batches.
        own_sampler: whether a batch sampler of the user's own does; else the dataset makes them.
    """
    # One index may stand for a whole batch that the dataset makes.
    if indices is not None and (len(indices) > 1 or batch_size is not None or own_sampler):
        return len(indices)
    return count_samples(batch, batch_size or 1, expected=batch_size)


def batch_bytes(batch: Any) -> int:
    """Bytes of all tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors(batch))


def describe_batch(batch: Any, depth: int = 0) -> str:
    """The batch's structure in one line, for error messages: `(Tensor[32, 1, 28, 28] float32, ...)`."""
    if isinstance(batch, torch.Tensor):
        return f"Tensor{list(batch.shape)} {str(batch.dtype).removeprefix('torch.')}"
    if depth < 2 and isinstance(batch, Mapping):
        inner = ", ".join(f"{key}: {describe_batch(item, depth + 1)}" for key, item in batch.items())
        return f"{{{inner}}}"
    if depth < 2 and isinstance(batch, (tuple, list)):
        shown = ", ".join(describe_batch(item, depth + 1) for item in list(batch)[:4])
        more = ", ..." if len(batch) > 4 else ""
        return f"({shown}{more})" if isinstance(batch, tuple) else f"[{shown}{more}]"
    return type(batch).__name__
