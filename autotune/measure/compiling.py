"""torch.compile as a setting: a model whose training steps are compiled.

What is compiled is the call of a model in training, on whole batches. A smaller batch, such as the last one
of an epoch, and validation run as the model is written: compiling once more for a shape that comes once an
epoch costs more than it saves, and would change the kernels of all steps to such as take any size.
"""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from autotune.errors import ModelError
from autotune.settings import CompileMode


def compiled_already(models: Iterable[nn.Module]) -> bool:
    """Whether the user has compiled a model, or a part of one."""
    modules = [module for model in models for module in model.modules()]
    return any(_in_place(module) or type(module).__name__ == "OptimizedModule" for module in modules)


def check_travels(model: Any) -> None:
    """Refuse a live model that no copy can be made of as it is: `model.compile()` is lost on the way.

    Raises:
        ModelError: what would be measured as the user's own is not what they run.
    """
    live = list(model.values()) if isinstance(model, Mapping) else [model]
    modules = [module for one in live if isinstance(one, nn.Module) for module in one.modules()]
    if any(map(_in_place, modules)):
        raise ModelError(
            "the model is compiled in place, and a copy of it would not be",
            why="model.compile() is not kept by pickle or deepcopy, and the tuner measures a copy",
            fix="hand it over before you compile it, and compiling is one of the settings that are tried;"
            " or pass a function that makes and compiles it, and it is left as it is",
        )


_compiled_for: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""Models of which this process holds compiled code of ours, whatever they run now."""


class NothingCompiledError(Exception):
    """Steps that were to run compiled ran as they are written, without a word of torch's."""


class _TrainingSteps:
    """A module's call: compiled for whole batches in training, as it is written for all else."""

    def __init__(self, module: nn.Module, mode: CompileMode, wanted: Callable[[], bool]) -> None:
        self._module, self._wanted = module, wanted

        # A function of ours, since some versions skip the call of a class of torch's own.
        def call(*args: Any, **kwargs: Any) -> Any:
            return module._call_impl(*args, **kwargs)

        # Of its own for each model: torch compiles no more than eight variants of one code object.
        call.__code__ = call.__code__.replace()
        self._compiled = torch.compile(call, mode=mode)
        self.called = False
        """Whether any call was to run compiled."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._module.training and torch.is_grad_enabled() and self._wanted():
            self.called = True
            return self._compiled(*args, **kwargs)
        return self._module._call_impl(*args, **kwargs)


def set_compiled(
    models: Iterable[nn.Module], mode: CompileMode | None, wanted: Callable[[], bool]
) -> list[tuple[nn.Module, Any]]:
    """Compile the training steps of these models in place, or have them run as they are written again.

    As `nn.Module.compile` does it: parameters, and the names in `state_dict()`, stay what they are. What the
    user has compiled is left alone where `mode` is None.

    Args:
        models: each is compiled by itself, at its first step.
        mode: of `torch.compile`.
        wanted: asked before each call in training, whether it is to run compiled.

    Returns:
        What `put_back` takes.
    """
    before = [(model, model._compiled_call_impl) for model in models if mode is not None or _is_ours(model)]
    for model, _ in before:
        if mode is not None:
            model._compiled_call_impl = _TrainingSteps(model, mode, wanted)
            _compiled_for.add(model)
        else:
            model._compiled_call_impl = None
    return before


def put_back(before: Iterable[tuple[nn.Module, Any]]) -> None:
    """The calls that `set_compiled` replaced, unless they were ours."""
    for model, call in before:
        if _is_ours(model):
            model._compiled_call_impl = None if isinstance(call, _TrainingSteps) else call


def forget(models: Iterable[nn.Module]) -> None:
    """Models run as they are written, and nothing that was compiled for them is left in this process.

    Without that the ninth variant of a model would silently run uncompiled (torch 2.9 to 2.15), and CUDA
    graphs would keep their memory. What torch keeps on disk stays, so that the next time is quicker.
    """
    ours = [model for model in models if model in _compiled_for]
    set_compiled(ours, None, lambda: True)
    _compiled_for.difference_update(ours)
    if ours:
        # After an error that stays with the device nothing can be given back, and the process goes.
        with contextlib.suppress(RuntimeError):
            torch.compiler.reset()


def compilations() -> int:
    """How often this process has compiled so far; 0 where the compiler was never loaded."""
    utils = sys.modules.get("torch._dynamo.utils")
    return 0 if utils is None else int(utils.counters["stats"]["unique_graphs"])


def check_compiled(models: Iterable[nn.Module], before: int) -> None:
    """Whether anything was compiled since `compilations()` gave `before`, where these models were to be.

    Raises:
        NothingCompiledError: what would be measured is not what the settings say.
    """
    ours = [call for model in models if isinstance(call := model._compiled_call_impl, _TrainingSteps)]
    if not ours or compilations() > before:
        return
    if any(call.called for call in ours):
        raise NothingCompiledError("torch compiled nothing of the model, and ran it as it is written")
    raise NothingCompiledError(
        "no step ran compiled: only whole batches in training do, and they are told by a tensor with as many "
        "rows as the loader's batch_size"
    )


def _in_place(module: nn.Module) -> bool:
    """Whether the user called its `compile()`."""
    return getattr(module, "_compiled_call_impl", None) is not None and not _is_ours(module)


def _is_ours(module: nn.Module) -> bool:
    return isinstance(getattr(module, "_compiled_call_impl", None), _TrainingSteps)
