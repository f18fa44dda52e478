"""From a batch to a loss: what the user gave, or what the batch and the output leave no doubt about."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from autotune.errors import LossError, ModelError
from autotune.measure.batches import describe_batch
from autotune.measure.models import is_expanded

LossOf = Callable[[Any, Any], torch.Tensor]
"""`(model, batch on the device) -> scalar loss`."""

_Arguments = tuple[tuple[Any, ...], dict[str, Any]]
_TARGET_KEYS = ("target", "targets", "label", "labels", "y")
_LABELS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_IGNORED = -100
"""The label that cross entropy leaves out unless it is told another."""
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


def _own_loss(arguments: Callable[[Any], _Arguments]) -> LossPlan:
    """For models that return their loss, or a dict of losses, when they are called with these arguments."""

    def loss_of(model: Any, batch: Any) -> torch.Tensor:
        inputs, named = arguments(batch)
        found = _carried_loss(model(*inputs, **named))
        assert found is not None, "the plan saw a loss in the output"
        return found

    return LossPlan(loss_of=loss_of, description="the model's own loss (inferred)")


def _inputs(batch: Any) -> _Arguments:
    inputs, named, _ = split(batch, needs_target=False)
    return inputs, named


def _everything(batch: Any) -> _Arguments:
    return ((), dict(batch)) if isinstance(batch, Mapping) else (tuple(batch), {})


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
    target = split(batch, needs_target=False)[2]
    plan, raised = None, []
    with _unseen(model):
        output, error = _try(model, *_inputs(batch))
        if _carried_loss(output) is not None:
            return _own_loss(_inputs)
        if error:
            raised.append(error)
        else:
            plan = _by_target(output, target)
        if target is not None and (plan is None or isinstance(batch, Mapping)):
            with_target, error = _try(model, *_everything(batch))
            if _carried_loss(with_target) is not None:
                return _own_loss(_everything)
            if error and raised:
                raised = [f"without the target: {raised[0]}", f"with it: {error}"]
    if plan is not None:
        return plan
    if raised:
        raise ModelError(
            "the model raised on a batch of the dataset",
            why="\n".join(raised),
            fix=f"the batch is {describe_batch(batch)}: pass step=callable(model, batch) -> loss if the model"
            " takes it in another way",
        )
    raise LossError(
        "no loss can be inferred",
        why=f"the batch is {describe_batch(batch)} and the model returns {describe_batch(output)}",
        fix=_HOW,
    )


@contextlib.contextmanager
def _unseen(model: nn.Module) -> Iterator[None]:
    """A look at what the model returns: running statistics and random numbers go on as if there was none."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers() if not is_expanded(buffer)]
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            for buffer, value in buffers:
                buffer.copy_(value)


def _by_target(output: Any, target: Any) -> LossPlan | None:
    """Cross entropy or the squared error, where shapes and types leave no doubt.

    Raises:
        LossError: for labels that are no classes of the output.
    """
    if not isinstance(output, torch.Tensor) or not isinstance(target, torch.Tensor):
        return None
    if target.is_floating_point() and output.shape == target.shape:
        return LossPlan(loss_of=_with_loss(functional.mse_loss), description="mse_loss (inferred)")
    if target.dtype in _LABELS and output.dim() >= 2 and _classes_second(output.shape, target.shape):
        _check_labels(target, output.shape[1])
        return LossPlan(loss_of=_with_loss(_cross_entropy), description="cross_entropy (inferred)")
    return None


def _classes_second(output: torch.Size, target: torch.Size) -> bool:
    """Whether an output holds scores for each label of the target in its second dimension, and only there.

    One score is none to choose from; where all dimensions are alike the last one could be meant as well.
    """
    second = output[0] == target[0] if len(target) else False
    last = len(output) > 2 and output[:-1] == target
    return bool(second and output[1] > 1 and output[2:] == target[1:] and not last)


def _check_labels(target: torch.Tensor, classes: int) -> None:
    """Look before an accelerator does: there a label without a score ends the process."""
    counted = target[target != _IGNORED]
    if counted.numel() == 0:
        return
    low, high = int(counted.min()), int(counted.max())
    if low < 0 or high >= classes:
        raise LossError(
            "the labels do not fit the model's outputs",
            why=f"labels go from {low} to {high}, and {classes} outputs take 0 to {classes - 1}",
            fix="number labels from 0, give the model an output for each, or pass a loss= that ignores some",
        )


def _cross_entropy(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(output, target.long())


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
        raise LossError(
            f"{plan} returned {type(loss).__name__}, not a tensor",
            why="a step differentiates the loss",
            fix="return the loss tensor",
        )
    if loss.numel() != 1:
        raise LossError(
            f"{plan} returned a tensor of shape {list(loss.shape)}, not a scalar",
            why="a step differentiates one number",
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
