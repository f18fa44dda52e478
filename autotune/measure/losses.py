"""From a batch to a loss: what the user gave, or what the batch and the output leave no doubt about."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from autotune.errors import LossError, ModelError
from autotune.measure.batches import describe_batch

LossOf = Callable[[Any, Any], torch.Tensor]
"""`(model, batch on the device) -> scalar loss`."""

_TARGET_KEYS = ("target", "targets", "label", "labels", "y")
_HOW = "pass loss=callable(output, target), or step=callable(model, batch) -> loss"


@dataclass(frozen=True, slots=True, kw_only=True)
class LossPlan:
    """How a loss is had from a batch."""

    loss_of: LossOf
    description: str


def plan_loss(
    model: nn.Module,
    batch: Any,
    *,
    loss: Callable[[Any, Any], Any] | None,
    step: Callable[[Any, Any], Any] | None,
) -> LossPlan:
    """The loss to train with; runs the model once on `batch` where it has to be inferred.

    Raises:
        LossError: when nothing fits; ModelError: when the model itself raises.
    """
    if step is not None:
        return LossPlan(loss_of=step, description=f"step {_name(step)}")
    if loss is not None:
        split(batch, needs_target=True)
        return LossPlan(loss_of=_with_loss(loss), description=_name(loss))
    return _infer(model, batch)


def split(batch: Any, *, needs_target: bool) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Positional inputs, named inputs and the target of a batch.

    Raises:
        LossError: when a target is needed and nothing says which part it is.
    """
    if isinstance(batch, Mapping):
        keys = [key for key in _TARGET_KEYS if key in batch]
        if len(keys) == 1:
            return (), {key: value for key, value in batch.items() if key != keys[0]}, batch[keys[0]]
        if not needs_target:
            return (), dict(batch), None
    elif isinstance(batch, (tuple, list)) and len(batch) >= 2:
        return tuple(batch[:-1]), {}, batch[-1]
    elif not needs_target:
        return (batch[0] if isinstance(batch, (tuple, list)) and batch else batch,), {}, None
    raise LossError(
        "the batch does not say which part is the target",
        why=f"it is {describe_batch(batch)}",
        fix="pass step=callable(model, batch) -> loss",
    )


def _with_loss(loss: Callable[[Any, Any], Any]) -> LossOf:
    def loss_of(model: Any, batch: Any) -> torch.Tensor:
        inputs, named, target = split(batch, needs_target=True)
        return loss(model(*inputs, **named), target)

    return loss_of


def _own_loss(model: Any, batch: Any) -> torch.Tensor:
    """For models that return their loss, or a dict of losses, when they are given the whole batch."""
    output = model(**batch) if isinstance(batch, Mapping) else model(*batch)
    found = _carried_loss(output)
    assert found is not None, "the plan saw a loss in the output"
    return found


def _carried_loss(output: Any) -> torch.Tensor | None:
    carried = getattr(output, "loss", None)
    if isinstance(carried, torch.Tensor):
        return carried
    if isinstance(output, Mapping) and output:
        if isinstance(output.get("loss"), torch.Tensor):
            return output["loss"]
        values = list(output.values())
        if all(isinstance(value, torch.Tensor) and value.dim() == 0 for value in values):
            return torch.stack(values).sum()
    return None


def _infer(model: nn.Module, batch: Any) -> LossPlan:
    whole = isinstance(batch, (Mapping, tuple, list))
    with torch.no_grad():
        inputs, named, target = split(batch, needs_target=False)
        output, error = _try(model, inputs, named)
        if _carried_loss(output) is None and whole and (error or isinstance(batch, Mapping)):
            everything = ((), dict(batch)) if isinstance(batch, Mapping) else (tuple(batch), {})
            output_whole, error_whole = _try(model, *everything)
            if _carried_loss(output_whole) is not None:
                return LossPlan(loss_of=_own_loss, description="the model's own loss (inferred)")
            error = error and (error_whole or error)
        elif _carried_loss(output) is not None and target is None:
            return LossPlan(loss_of=_own_loss, description="the model's own loss (inferred)")
    if error:
        raise ModelError(
            "the model raised on a batch of the dataset",
            why=error,
            fix=f"the batch is {describe_batch(batch)}: pass step=callable(model, batch) -> loss if the model"
            " takes it in another way",
        )
    return _by_target(output, target, batch)


def _by_target(output: Any, target: Any, batch: Any) -> LossPlan:
    if isinstance(output, torch.Tensor) and isinstance(target, torch.Tensor):
        integer = not target.is_floating_point() and target.dtype != torch.bool and not target.is_complex()
        classes = output.dim() == target.dim() + 1 and output.dim() >= 2
        if (
            integer
            and classes
            and output.shape[0] == target.shape[0]
            and output.shape[2:] == target.shape[1:]
        ):
            return LossPlan(
                loss_of=_with_loss(functional.cross_entropy), description="cross_entropy (inferred)"
            )
        if target.is_floating_point() and output.shape == target.shape:
            return LossPlan(loss_of=_with_loss(functional.mse_loss), description="mse_loss (inferred)")
    raise LossError(
        "no loss can be inferred",
        why=f"the batch is {describe_batch(batch)} and the model returns {describe_batch(output)}",
        fix=_HOW,
    )


def _try(model: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, str]:
    try:
        return model(*inputs, **named), ""
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # the user's model may raise anything; its text is what they need to see
        return None, f"{type(error).__name__}: {error}"


def check_loss(loss: Any, plan: str) -> None:
    """Refuse what cannot be differentiated into a step.

    Raises:
        LossError
    """
    if not isinstance(loss, torch.Tensor):
        raise LossError(f"{plan} returned {type(loss).__name__}, not a tensor", fix="return the loss tensor")
    if loss.dim() != 0 and loss.numel() != 1:
        raise LossError(
            f"{plan} returned a tensor of shape {list(loss.shape)}, not a scalar",
            fix="reduce it, such as with .mean()",
        )
    if not loss.requires_grad:
        raise LossError(
            f"{plan} returned a loss that nothing can be learnt from",
            why="it carries no gradient: it was detached, made under no_grad, or no parameter takes part",
            fix="return the loss as computed from the model's output",
        )


def _name(function: Any) -> str:
    return str(getattr(function, "__name__", type(function).__name__))
