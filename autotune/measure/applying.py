"""A recipe applied to models and optimizers, once, and the schedules that follow from it."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer

from autotune.errors import AutotuneWarning, UsageError
from autotune.measure.models import batch_norms
from autotune.measure.optimizers import set_beta2
from autotune.measure.retiming import Retimed, is_known, scale_base
from autotune.measure.schedules import SCHEDULED, SampleScheduler
from autotune.outcome import Recipe
from autotune.recipe.rules import scaled_batch_norm

SchedulerInterval = Literal["step", "epoch"]
"""How often the user's own loop steps a scheduler."""

_SCALED_FOR = "scaled_for_batch_size"
"""Key in a param group: its numbers are the recipe's for so many samples in a step."""
_GROUP_RATES = ("lr", "initial_lr", "max_lr", "min_lr")
"""Keys in a param group: its learning rate, and those that schedulers leave there to compute it from."""
_DRIVER = "_autotune_scheduler"
"""Attribute of an optimizer: what drives it already. Its hook stays, so two would be twice as fast."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Clock:
    """Samples in a step: of the run, and of the run that the user's numbers come from."""

    step_samples: int
    reference: int


def apply_recipe(
    recipe: Recipe | None,
    models: Mapping[str, nn.Module],
    built: Mapping[str, Optimizer],
    *,
    scheduler: Any,
    interval: SchedulerInterval,
    batch_size: int | None,
) -> dict[str, SampleScheduler]:
    """Give optimizers and BatchNorm layers the recipe's numbers, and say what drives which learning rate.

    What a kit of an earlier epoch, or the kit that a checkpoint comes from, has scaled already is left alone:
    the param groups say so themselves.

    Args:
        recipe: None leaves learning alone.
        models: by name.
        built: the optimizers, by name; the recipe's groups are counted over all of them.
        scheduler: the user's, or a function that makes it, or a dict of either by the optimizers' names.
        interval: how often the user steps it.
        batch_size: of the loader, where there is no recipe to say so.

    Raises:
        UsageError: for what is no scheduler, or not of these optimizers, and for several optimizers where
            gradients are to be gathered.
    """
    if interval not in ("step", "epoch"):
        raise UsageError(f"a scheduler steps once a `step` or an `epoch`, not {interval!r}")
    if recipe is not None and recipe.accumulation_steps > 1 and len(built) > 1:
        raise UsageError(
            "gradients of several batches cannot be gathered for several optimizers",
            why="which batches go into which step is your training step's business",
            fix="gather them yourself, or keep the batch size",
        )
    clock = _Clock(step_samples=batch_size or 1, reference=batch_size or 1)
    if recipe is not None:
        clock = _Clock(step_samples=recipe.step_samples, reference=recipe.reference_step_samples)
        _scale_batch_norms(recipe, models.values())
    given = _made(scheduler, built, interval)
    found, number = {}, 0
    for name, optimizer in built.items():
        one = _drive(recipe, optimizer, number, given.get(name), interval, clock)
        if one is not None:
            found[name] = one
        number += len(optimizer.param_groups)
    return found


@contextlib.contextmanager
def batch_norms_kept(models: Iterable[nn.Module]) -> Iterator[None]:
    """The momenta of BatchNorm layers are after the block what they were before it."""
    before = [(layer, layer.momentum, vars(layer).get(_SCALED_FOR)) for layer in batch_norms(models)]
    try:
        yield
    finally:
        for layer, momentum, scaled_for in before:
            layer.momentum = momentum
            vars(layer).pop(_SCALED_FOR, None)
            if scaled_for is not None:
                setattr(layer, _SCALED_FOR, scaled_for)


@contextlib.contextmanager
def batch_norms_at(models: Iterable[nn.Module], batch_size: int | None, own: int | None) -> Iterator[None]:
    """Within the block BatchNorm layers have the momenta that a kit gives them for batches of that size.

    Compiled code holds them as constants: a trial with others would leave the training that follows to
    compile anew.
    """
    if batch_size is None or own is None or batch_size == own:
        yield
        return
    modules = list(models)
    with batch_norms_kept(modules):
        for layer in batch_norms(modules):
            layer.momentum = scaled_batch_norm(layer.momentum or 0.0, batch_size / own)
        yield


def _drive(
    recipe: Recipe | None,
    optimizer: Optimizer,
    number: int,
    given: Any,
    interval: SchedulerInterval,
    clock: _Clock,
) -> SampleScheduler | None:
    driver: SampleScheduler | None = getattr(optimizer, _DRIVER, None)
    if driver is not None:
        if given is not None and interval == "step" and is_known(given):
            driver.take_over(given)
        return driver
    changes = recipe is not None and (recipe.growth != 1 or recipe.decay is not None)
    scaled = changes and all(g.get(_SCALED_FOR) == clock.step_samples for g in optimizer.param_groups)
    retimed = _retimed(given, interval, clock)
    if scaled and retimed is not None:
        raise UsageError(
            "the optimizer's learning rates are scaled already",
            why="it was loaded from a checkpoint before the kit was made, so your scheduler's start is lost",
            fix="make the kit with new optimizer and scheduler, then load: kit.load_state_dict(...)",
        )
    if changes and not scaled:
        assert recipe is not None, "what changes is in the recipe"
        if given is not None and retimed is None:
            scale_base(given, lambda index: _lr_factor(recipe, number + index))
        _scale_groups(recipe, optimizer, number, clock.step_samples)
    if retimed is None and not (changes and recipe is not None and _moves(recipe)):
        return None
    counted = int(optimizer.param_groups[0].get(SCHEDULED, 0)) if scaled else None
    driver = SampleScheduler(
        optimizer,
        recipe if changes else None,
        step_samples=clock.step_samples,
        retimed=retimed,
        factors=[_lr_factor(recipe, number + i) for i, _ in enumerate(optimizer.param_groups)],
        samples=counted,
    )
    if retimed is not None:
        driver.take_over(given)
    setattr(optimizer, _DRIVER, driver)
    return driver


def _moves(recipe: Recipe) -> bool:
    return bool(recipe.warmup_samples) or recipe.decay is not None


def _retimed(given: Any, interval: SchedulerInterval, clock: _Clock) -> Retimed | None:
    if given is None or interval == "epoch":
        return None
    if is_known(given):
        return Retimed(given, clock.reference)
    warnings.warn(
        f"your {type(given).__name__} is kept as it is, not re-timed: it is not known to count steps alone. "
        f"Go on calling its step(); a step now has {clock.step_samples} samples, and had {clock.reference}",
        AutotuneWarning,
        stacklevel=7,  # the caller of `Result.kit`
    )
    return None


def _made(scheduler: Any, built: Mapping[str, Optimizer], interval: SchedulerInterval) -> dict[str, Any]:
    """The user's schedulers by the names of their optimizers."""
    if scheduler is None:
        return {}
    if not isinstance(scheduler, Mapping) and len(built) > 1:
        raise UsageError(
            "one scheduler was given, and there are several optimizers",
            why=f"optimizers: {', '.join(built)}",
            fix="pass a dict with the optimizers' names as keys",
        )
    by_name = scheduler if isinstance(scheduler, Mapping) else dict.fromkeys(built, scheduler)
    unknown = [str(name) for name in by_name if name not in built]
    if unknown:
        raise UsageError(f"there is no optimizer called {', '.join(unknown)} to schedule")
    return {name: _scheduler_of(one, built[name], interval) for name, one in by_name.items()}


def _scheduler_of(given: Any, optimizer: Optimizer, interval: SchedulerInterval) -> Any:
    if callable(given) and (isinstance(given, type) or not hasattr(given, "step")):
        if interval == "epoch":
            raise _would_be_lost("you step it by epochs")
        if hasattr(optimizer, _DRIVER):
            return None  # the kit before made it
        given = _made_here(given, optimizer)
    if not callable(getattr(given, "step", None)):
        raise UsageError(
            "`scheduler` is neither a scheduler nor a function that makes one",
            why=f"it is {type(given).__name__}",
            fix="pass one of the optimizer, or lambda optimizer: CosineAnnealingLR(optimizer, T_max=...)",
        )
    if getattr(given, "optimizer", optimizer) is not optimizer:
        raise UsageError(
            "the scheduler is of another optimizer",
            why="what it does would not reach the one that trains",
            fix="make it from the optimizer that you pass, or pass a function: optimizer -> scheduler",
        )
    return given


def _made_here(make: Callable[[Optimizer], Any], optimizer: Optimizer) -> Any:
    """A scheduler that the kit will drive: nobody else has it."""
    before = [
        {name: value if name == "params" else copy.deepcopy(value) for name, value in group.items()}
        for group in optimizer.param_groups
    ]
    made = make(optimizer)
    if not hasattr(made, "step") or is_known(made):
        return made
    for group, values in zip(optimizer.param_groups, before):
        group.clear()
        group.update(values)  # the user's own next one starts from these, not from where this one went
    raise _would_be_lost(f"{type(made).__name__} is not known to count steps alone, so the kit does not")


def _would_be_lost(why: str) -> UsageError:
    return UsageError(
        "a scheduler that is yours to step is not made by the kit",
        why=f"{why}, and you could not: it would stay where it starts",
        fix="make it yourself: from your optimizer, and pass it; or after the kit, from `kit.optimizer`",
    )


def _scale_batch_norms(recipe: Recipe, models: Iterable[nn.Module]) -> None:
    if not recipe.batch_norm_momenta:
        return
    k = recipe.batch_size / recipe.reference_batch_size
    for layer in batch_norms(models):
        if getattr(layer, _SCALED_FOR, None) != recipe.batch_size and layer.momentum is not None:
            layer.momentum = scaled_batch_norm(layer.momentum, k)
            setattr(layer, _SCALED_FOR, recipe.batch_size)  # goes along where the model is copied


def _lr_factor(recipe: Recipe | None, number: int) -> float:
    """Groups that were not there in tuning follow the last one that was."""
    if recipe is None:
        return 1.0
    return _factor(recipe.learning_rates, recipe.reference_learning_rates, number)


def _factor(own: tuple[float, ...], reference: tuple[float, ...], number: int) -> float:
    factors = [new / old if old else None for new, old in zip(own, reference)]
    # A number that was 0 says nothing of how it is scaled: it goes with the first that does.
    first = next((factor for factor in factors if factor is not None), 1.0)
    factor = factors[min(number, len(factors) - 1)] if factors else None
    return first if factor is None else factor


def _scale_groups(recipe: Recipe, optimizer: Optimizer, number: int, step_samples: int) -> None:
    for index, group in enumerate(optimizer.param_groups):
        for name in _GROUP_RATES:
            if name in group:
                group[name] = group[name] * _lr_factor(recipe, number + index)
        if group.get("weight_decay"):
            group["weight_decay"] *= _factor(
                recipe.weight_decays, recipe.reference_weight_decays, number + index
            )
        if recipe.beta2s:
            beta2 = recipe.beta2s[min(number + index, len(recipe.beta2s) - 1)]
            if beta2 is not None:
                set_beta2(group, beta2)
        group[_SCALED_FOR] = step_samples
