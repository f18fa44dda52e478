"""Batches of any shape: tensors, tuples, lists, dicts, namedtuples, dataclasses, objects with `.to()`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch


def map_tensors(value: Any, function: Callable[[torch.Tensor], Any]) -> Any:
    """`value` with every tensor in its containers replaced; other leaves stay as they are."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, Mapping):
        items = {key: map_tensors(item, function) for key, item in value.items()}
        return items if type(value) is dict else _like_mapping(value, items)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(item, function) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(map_tensors(item, function) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changes = {
            f.name: map_tensors(getattr(value, f.name), function) for f in dataclasses.fields(value) if f.init
        }
        return dataclasses.replace(value, **changes)
    return value


def _like_mapping(value: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    try:
        return type(value)(items)  # type: ignore[call-arg]
    except TypeError:
        return items


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor in `value`, in order."""
    found: list[torch.Tensor] = []

    def collect(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor)
        return tensor

    if not isinstance(value, torch.Tensor) and hasattr(value, "to") and hasattr(value, "__dict__"):
        value = dict(vars(value)) if not isinstance(value, Mapping) else value
    map_tensors(value, collect)
    yield from found


def to_device(
    batch: Any, device: torch.device, *, non_blocking: bool = False, channels_last: bool = False
) -> Any:
    """`batch` on `device`; 4-D float tensors in NHWC memory order when `channels_last`.

    Objects with a `.to()` of their own are asked to move themselves.
    """
    if not isinstance(batch, torch.Tensor) and hasattr(batch, "to"):
        try:
            return batch.to(device, non_blocking=non_blocking)
        except TypeError:
            return batch.to(device)
    if isinstance(batch, (list, tuple)) and any(_moves_itself(item) for item in batch):
        moved = [
            to_device(item, device, non_blocking=non_blocking, channels_last=channels_last) for item in batch
        ]
        return type(batch)(*moved) if hasattr(batch, "_fields") else type(batch)(moved)

    def move(tensor: torch.Tensor) -> torch.Tensor:
        if channels_last and tensor.dim() == 4 and tensor.is_floating_point():
            return tensor.to(device, non_blocking=non_blocking, memory_format=torch.channels_last)
        return tensor.to(device, non_blocking=non_blocking)

    return map_tensors(batch, move)


def _moves_itself(value: Any) -> bool:
    return not isinstance(value, torch.Tensor) and hasattr(value, "to")


def count_samples(batch: Any, default: int) -> int:
    """Length of the first dimension of the first tensor; `default` where no tensor has one."""
    for tensor in tensors(batch):
        if tensor.dim() > 0:
            return int(tensor.size(0))
    return default


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
