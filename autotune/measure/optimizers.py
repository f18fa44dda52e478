"""Optimizers rebuilt for a trial, and the fused switch on one that exists."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from autotune.errors import UsageError
from autotune.facts import OptimizerFamily
from autotune.measure.marks import MARKS

_SGD = {"SGD"}
_ADAM = {"Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop", "FusedAdam"}
_FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad)
MEASURING_LR = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """An Optimizer the user handed over, as class and param groups; its state stays with the user."""

    kind: type[Optimizer]
    groups: list[dict[str, Any]]
    defaults: dict[str, Any]

    def build(self) -> Optimizer:
        """A new optimizer over the same parameters."""
        accepted = inspect.signature(self.kind).parameters
        defaults = {name: value for name, value in self.defaults.items() if name in accepted}
        return self.kind([dict(group) for group in self.groups], **defaults)


def freeze_optimizer(optimizer: Any) -> Any:
    """An Optimizer as `Rebuilt`; factories and what is frozen as they are; dicts of these alike.

    Numbers that a kit gave it are the user's own here: they are what is begun with.
    Its learning rates are those that a scheduler attached to it starts from: where one warms up, the present
    rate is 0 or next to it, and says nothing of how the model learns.
    """
    if isinstance(optimizer, Optimizer):
        groups = [
            {key: list(value) if key == "params" else value for key, value in g.items() if key not in MARKS}
            | ({"lr": g["initial_lr"]} if "initial_lr" in g else {})
            for g in optimizer.param_groups
        ]
        return Rebuilt(kind=type(optimizer), groups=groups, defaults=dict(optimizer.defaults))
    if isinstance(optimizer, Mapping):
        return {key: freeze_optimizer(value) for key, value in optimizer.items()}
    if optimizer is not None and not isinstance(optimizer, Rebuilt) and not callable(optimizer):
        raise UsageError(
            "`optimizer` is neither an Optimizer nor a function",
            why=f"it is {type(optimizer).__name__}",
            fix="pass lambda params: torch.optim.SGD(params, lr=0.1)",
        )
    return optimizer


def build_optimizers(frozen: Any, models: Mapping[str, nn.Module]) -> dict[str, Optimizer]:
    """An optimizer for each name: one over all models, or one for each key of a dict.

    Raises:
        UsageError: for a factory that returns something else, or keys without a model.
    """
    if not isinstance(frozen, Mapping):
        return {"": _build(frozen, [p for model in models.values() for p in model.parameters()])}
    built = {}
    for name, one in frozen.items():
        if not isinstance(one, Rebuilt) and name not in models:
            raise UsageError(
                f"`optimizer` has the key {name!r} and `model` has not",
                why=f"models: {', '.join(models)}" if any(models) else "`model` is a single one",
                fix="use the same keys in both dicts",
            )
        built[name] = _build(one, list(models[name].parameters()) if name in models else [])
    return built


def _build(one: Any, params: list[nn.Parameter]) -> Optimizer:
    trainable = [p for p in params if p.requires_grad]
    if one is None:
        return torch.optim.SGD(trainable, lr=MEASURING_LR)
    optimizer = one.build() if isinstance(one, Rebuilt) else one(trainable)
    if not isinstance(optimizer, Optimizer):
        raise UsageError(
            "the optimizer function returned no Optimizer",
            why=f"it returned {type(optimizer).__name__}",
            fix="return one, such as torch.optim.AdamW(params, lr=1e-3)",
        )
    return optimizer


def family(optimizer: Optimizer) -> OptimizerFamily:
    """Which learning-rate rule fits."""
    names = {base.__name__ for base in type(optimizer).__mro__}
    if names & _SGD:
        return "sgd"
    return "adam" if names & _ADAM else "other"


def is_fused(optimizers: Iterable[Optimizer]) -> bool:
    """Whether every param group asks for the fused step."""
    return all(bool(group.get("fused")) for optimizer in optimizers for group in optimizer.param_groups)


def fused_available(optimizers: Iterable[Optimizer], device_type: str) -> bool:
    """Whether torch has a fused step for all of these on this kind of device."""
    supported = torch.utils._foreach_utils._get_fused_kernels_supported_devices()
    for optimizer in optimizers:
        if not isinstance(optimizer, _FUSED) or device_type not in supported:
            return False
        if isinstance(optimizer, torch.optim.Adagrad) and device_type == "cuda":
            return False  # raises on CUDA up to torch 2.11
        groups = optimizer.param_groups
        if any(group.get("differentiable") or group.get("capturable") for group in groups):
            return False
        if any(not torch.is_floating_point(p) for group in groups for p in group["params"]):
            return False
    return True


def follow_parameters(optimizer: Optimizer) -> None:
    """Momenta that were loaded before the model moved go to where their parameters are now."""
    away = (
        torch.is_tensor(value) and value.dim() > 0 and value.device != parameter.device
        for parameter, state in optimizer.state.items()
        for value in state.values()
    )
    if any(away):
        optimizer.load_state_dict(optimizer.state_dict())  # torch moves what it loads


def set_fused(optimizer: Optimizer, fused: bool) -> None:
    """Switch an optimizer to the fused step or back, in place: schedulers that hold it go on working.

    Raises:
        UsageError: for one that torch has no fused step for.
    """
    if all(bool(group.get("fused")) == fused for group in optimizer.param_groups):
        return
    if fused and not isinstance(optimizer, _FUSED):
        # A gradient scaler believes the flag set below, and would leave the gradients scaled.
        raise UsageError(
            f"torch has no fused step for {type(optimizer).__name__}",
            why="the settings ask for `fused_optimizer`",
            fix=f"use one of {', '.join(kind.__name__ for kind in _FUSED)}, or settings without it",
        )
    for options in (optimizer.defaults, *optimizer.param_groups):  # defaults: for groups added later
        options["fused"] = True if fused else None
        options["foreach"] = None
    # A step counter may have to move to the parameters' device: torch does so while loading state.
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer._step_supports_amp_scaling = fused and _takes_the_scale(optimizer)  # type: ignore[attr-defined]
    if not fused:
        _counters_to_host(optimizer)


def _takes_the_scale(optimizer: Optimizer) -> bool:
    """Whether the fused step unscales gradients itself: versions of torch differ, its constructor knows."""
    kind: Any = next(kind for kind in _FUSED if isinstance(optimizer, kind))
    made = kind([torch.zeros(1, requires_grad=True)], fused=True)
    return bool(getattr(made, "_step_supports_amp_scaling", False))


def _counters_to_host(optimizer: Optimizer) -> None:
    """Where an optimizer that never was fused keeps them; torch reads them there at every step."""
    for group in optimizer.param_groups:
        for parameter in group["params"] if not group.get("capturable") else ():
            state = optimizer.state.get(parameter, {})
            if isinstance(state.get("step"), torch.Tensor):
                state["step"] = state["step"].cpu()


def learning_rates(optimizers: Iterable[Optimizer]) -> tuple[float, ...]:
    """The learning rate of every param group, in order."""
    return tuple(float(group["lr"]) for optimizer in optimizers for group in optimizer.param_groups)


def weight_decays(optimizers: Iterable[Optimizer]) -> tuple[float, ...]:
    """The weight decay of every param group, in order; 0 for optimizers without."""
    return tuple(
        float(group.get("weight_decay") or 0.0)
        for optimizer in optimizers
        for group in optimizer.param_groups
    )


def decoupled(optimizer: Optimizer) -> bool:
    """Whether weight decay shrinks the weights themselves rather than being added to their gradients."""
    if isinstance(optimizer, torch.optim.AdamW) or getattr(optimizer, "adam_w_mode", False):
        return True
    return any(bool(group.get("decoupled_weight_decay")) for group in optimizer.param_groups)


def beta2s(optimizers: Iterable[Optimizer]) -> tuple[float | None, ...]:
    """The decay of the second moment of every param group, in order: Adam's beta2, RMSprop's alpha."""
    return tuple(_beta2(group) for optimizer in optimizers for group in optimizer.param_groups)


def _beta2(group: Mapping[str, Any]) -> float | None:
    betas = group.get("betas")
    if isinstance(betas, Sequence) and len(betas) == 2:
        return float(betas[1])
    alpha = group.get("alpha")
    return float(alpha) if isinstance(alpha, (int, float)) else None


def set_beta2(group: dict[str, Any], beta2: float) -> None:
    """Give a param group another decay of its second moment, where it has one."""
    if _beta2(group) is None:
        return
    if "betas" in group:
        group["betas"] = (group["betas"][0], beta2)
    else:
        group["alpha"] = beta2
