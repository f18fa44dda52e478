"""Models taken from what the user hands over: a module, a dict of them, or a function that makes either."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from autotune.errors import AutotuneError, ModelError
from autotune.measure.classify import user_traceback


def build_models(model: Any) -> dict[str, nn.Module]:
    """Models by name; a single one has the name "".

    Raises:
        ModelError: for anything else, when a function raises, and for parameters that hold no values yet.
    """
    if isinstance(model, nn.Module):
        return _with_values({"": model})
    if isinstance(model, Mapping) and model and all(isinstance(m, nn.Module) for m in model.values()):
        return _with_values({str(name): m for name, m in model.items()})
    if callable(model):
        made = _called(model)
        if isinstance(made, (nn.Module, Mapping)):
            return build_models(made)
        raise ModelError(
            "the model function returned no nn.Module",
            why=f"it returned {type(made).__name__}",
            fix="return a module, or a dict of modules",
        )
    raise ModelError(
        "`model` is not an nn.Module",
        why=f"it is {type(model).__name__}",
        fix="pass a module, a dict of modules, or a function without arguments that makes one",
    )


def is_expanded(tensor: torch.Tensor) -> bool:
    """Whether several elements share one place in memory: torch writes to no such tensor, nor can a step."""
    if tensor.layout is not torch.strided:  # sparse, such as a graph's edges: no strides to ask for
        return False
    return any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape))


BufferPlace = tuple[nn.Module, str, torch.Tensor]
"""A module, the name of one of its buffers, and the tensor that was there."""


def buffer_places(models: Iterable[nn.Module]) -> list[BufferPlace]:
    """Where each buffer is, for `put_back`."""
    return [
        (module, name, buffer)
        for model in models
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]


def put_back(places: Iterable[BufferPlace]) -> None:
    """The very buffers again, where a forward pass has put others of the same kind in their places.

    Not their values: a running mean that is assigned anew, not written to, leaves the old one as it was. A
    buffer that has another shape by now stays, as a cache that grew: the module may count on its size.
    """
    for module, name, buffer in places:
        now = module._buffers.get(name)
        if now is not None and now is not buffer and now.shape == buffer.shape and now.dtype == buffer.dtype:
            module._buffers[name] = buffer


def _called(function: Any) -> Any:
    try:
        return function()
    except AutotuneError:
        raise
    except Exception as error:  # the user's own function
        raise ModelError(
            "the model function raised",
            why=f"{type(error).__name__}: {error}",
            fix="make it work when it is called on its own, without arguments",
            detail=user_traceback(error),
        ) from None


def _with_values(models: dict[str, nn.Module]) -> dict[str, nn.Module]:
    tensors = [
        (f"{key}.{name}" if key else name, tensor)
        for key, model in models.items()
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    ]
    for name, tensor in tensors:
        if isinstance(tensor, (UninitializedParameter, UninitializedBuffer)):
            raise ModelError(
                f"`{name}` has no shape yet",
                why="a lazy module learns its shapes from its first batch",
                fix="run the model once on a batch before you hand it over",
            )
        if tensor.is_meta:
            raise ModelError(
                f"`{name}` has no values",
                why="the model was made on the meta device",
                fix="give it storage first: model.to_empty(device=...), then load or initialise its weights",
            )
    return models


def batch_norms(models: Iterable[nn.Module]) -> list[_BatchNorm]:
    """The BatchNorm layers whose running statistics have a momentum."""
    layers = [m for model in models for m in model.modules() if isinstance(m, _BatchNorm)]
    return [layer for layer in layers if layer.momentum is not None and layer.track_running_stats]


def batch_norm_momenta(models: Iterable[nn.Module]) -> tuple[float, ...]:
    """The different momenta among the BatchNorm layers, in the order of the model."""
    return tuple(dict.fromkeys(float(layer.momentum or 0.0) for layer in batch_norms(models)))


def has_attention(models: Iterable[nn.Module]) -> bool:
    """Whether a layer is torch's attention, or is called so."""
    kinds = {type(module).__name__ for model in models for module in model.modules()}
    return any("attention" in kind.lower() for kind in kinds)


def leaf_modules(models: Iterable[nn.Module]) -> int:
    """How many modules have no others inside."""
    return sum(not any(True for _ in module.children()) for model in models for module in model.modules())
