"""A recipe applied to models and optimizers, once, and the schedules that follow from it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from autotune.errors import AutotuneWarning, UsageError
from autotune.measure.marks import AFRESH, FULL, MARKS, SCALED_BY, SCALED_FOR, SCHEDULED, scaled_already
from autotune.measure.models import batch_norms
from autotune.measure.optimizers import set_beta2
from autotune.measure.retiming import (
    Retimed,
    SchedulerInterval,
    given_schedulers,
    is_function,
    is_known,
    make_scheduler,
    scale_base,
)
from autotune.measure.schedules import SampleScheduler, end_schedule
from autotune.outcome import Recipe
from autotune.recipe.rules import scaled_batch_norm

_GROUP_RATES = ("lr", "initial_lr", "max_lr", "min_lr")
"""Keys in a param group: its learning rate, and those that schedulers leave there to compute it from."""
_MOMENTA = "the momenta of the BatchNorm layers"
_DRIVER = "_autotune_scheduler"
"""Attribute of an optimizer: what drives it already. Its hooks stay, so two would be twice as fast."""


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
    the param groups say so themselves. A recipe that begins where another one has led is applied to that, and
    its schedule takes the place of the other one's.

    Args:
        recipe: None leaves learning alone.
        models: by name.
        built: the optimizers, by name; the recipe's groups are counted over all of them.
        scheduler: the user's, or a function that makes it, or a dict of either by the optimizers' names.
        interval: how often the user steps it.
        batch_size: of the loader, where there is no recipe to say so.

    Raises:
        UsageError: for what is no scheduler of these optimizers, for several optimizers where gradients are
            to be gathered, and for numbers that another recipe has left elsewhere than where this one begins.
    """
    if interval not in ("step", "epoch"):
        raise UsageError(f"a scheduler steps once a `step` or an `epoch`, not {interval!r}")
    if recipe is not None and recipe.accumulation_steps > 1 and len(built) > 1:
        raise UsageError(
            "gradients of several batches cannot be gathered for several optimizers",
            why="which batches go into which step is your training step's business",
            fix="gather them yourself, or keep the batch size",
        )
    given = given_schedulers(scheduler, built, interval)
    targets, number = {}, 0
    for name, optimizer in built.items():
        targets[name] = _Target(recipe, optimizer, number, given.get(name), interval, batch_size or 1)
        number += len(optimizer.param_groups)
    layers = _unscaled_batch_norms(recipe, models.values())
    for target in targets.values():
        target.check()  # all of it, before anything is changed
    found = {}
    for name, target in targets.items():
        driver = target.apply()
        if driver is not None:
            found[name] = driver
    _scale_batch_norms(recipe, layers)  # last: a function may still make no scheduler
    return found


@contextlib.contextmanager
def batch_norms_kept(models: Iterable[nn.Module]) -> Iterator[None]:
    """BatchNorm momenta are after the block what they were before it; in it they count as the user's own."""
    before = [
        (layer, layer.momentum, {name: vars(layer).pop(name) for name in MARKS if name in vars(layer)})
        for layer in batch_norms(models)
    ]
    try:
        yield
    finally:
        for layer, momentum, marks in before:
            layer.momentum = momentum
            for name in MARKS:
                vars(layer).pop(name, None)
            vars(layer).update(marks)


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


class _Target:
    """An optimizer, and what is to become of its learning rates.

    Args:
        recipe: None leaves learning alone.
        optimizer: changed by `apply` alone.
        number: how many param groups other optimizers have before it.
        given: a scheduler of the user's, or a function that makes it.
        interval: how often the user steps it.
        batch_size: samples in a step where there is no recipe to say so.
    """

    def __init__(
        self,
        recipe: Recipe | None,
        optimizer: Optimizer,
        number: int,
        given: Any,
        interval: SchedulerInterval,
        batch_size: int,
    ) -> None:
        self._optimizer, self._number = optimizer, number
        self._given, self._interval = given, interval
        self._step_samples = self._reference = batch_size
        if recipe is not None:
            self._step_samples, self._reference = recipe.step_samples, recipe.reference_step_samples
        changes = recipe is not None and (recipe.growth != 1 or recipe.decay is not None)
        self._recipe = recipe if changes else None
        self._driver: SampleScheduler | None = getattr(optimizer, _DRIVER, None)
        self._moved = any(FULL in group for group in optimizer.param_groups)
        """Whether a schedule of a kit has the learning rates at a part of their height."""
        self._marked = self._moved or any(SCALED_FOR in group for group in optimizer.param_groups)
        self._scaled = False
        """Whether the learning rates are what the recipe makes of them."""

    def check(self) -> None:
        """Look whether all of it fits, without a change.

        Raises:
            UsageError: for numbers or a schedule of another recipe, and for a scheduler that was made from
                rates which are not the user's own.
        """
        if self._recipe is None:
            return
        self._scaled = self._is_scaled(self._recipe)
        if self._scaled and self._driver is not None and not self._driver.is_for(self._recipe):
            raise UsageError(
                "the optimizer follows the schedule of another recipe",
                why="its learning rates are those that this one asks for, and warmup or decay are not",
                fix=AFRESH,
            )
        driven = self._given is not None and self._interval == "step"
        is_object = driven and is_known(self._given)
        if self._scaled and self._driver is None and (is_object or (driven and is_function(self._given))):
            raise UsageError(
                "the optimizer's learning rates are scaled already",
                why="a kit before this one, or its checkpoint, did so: your scheduler's start is lost",
                fix="make the kit with new optimizer and scheduler, then load: kit.load_state_dict(...)",
            )
        if is_object and self._goes_on and self._moved:
            raise UsageError(
                "your scheduler starts from a learning rate that another schedule has moved",
                why="that of the recipe before was under way when the scheduler was made",
                fix="pass a function, optimizer -> scheduler: the kit ends the other one first",
            )

    @property
    def _goes_on(self) -> bool:
        """Whether the recipe goes on from where a kit before has led."""
        return not self._scaled and (self._marked or self._driver is not None)

    def apply(self) -> SampleScheduler | None:
        """Scale what is to be scaled; gives what drives the rates from here on, None for nothing."""
        recipe, optimizer, given = self._recipe, self._optimizer, self._given
        if self._driver is not None and (recipe is None or self._scaled):
            if self._interval == "step" and is_known(given):
                self._driver.take_over(given)
            return self._driver
        if recipe is not None and self._goes_on:
            if self._driver is not None:
                self._driver.stop()
                delattr(optimizer, _DRIVER)
            end_schedule(optimizer)
        given = make_scheduler(given, optimizer)
        retimed = self._retimed(given)
        if recipe is not None and not self._scaled:
            if given is not None and retimed is None:
                scale_base(given, lambda index: _lr_factor(recipe, self._number + index))
            _scale_groups(recipe, optimizer, self._number)
        if retimed is None and not (recipe is not None and _moves(recipe)):
            return None
        driver = SampleScheduler(
            optimizer,
            recipe,
            step_samples=self._step_samples,
            retimed=retimed,
            factors=[_lr_factor(recipe, self._number + i) for i, _ in enumerate(optimizer.param_groups)],
            samples=optimizer.param_groups[0].get(SCHEDULED) if self._scaled else None,
        )
        if retimed is not None:
            driver.take_over(given)
        setattr(optimizer, _DRIVER, driver)
        return driver

    def _is_scaled(self, recipe: Recipe) -> bool:
        """By the first group that says so: one that was added later does not, and has its rate as given."""
        for number, group in enumerate(self._optimizer.param_groups, start=self._number):
            if SCALED_FOR in group:
                return scaled_already(
                    group,
                    "the optimizer's learning rates",
                    reference=self._reference,
                    size=self._step_samples,
                    factor=_lr_factor(recipe, number),
                )
        return False

    def _retimed(self, given: Any) -> Retimed | None:
        if given is None or self._interval == "epoch":
            return None
        if is_known(given):
            return Retimed(given, self._reference)
        warnings.warn(
            f"your {type(given).__name__} is kept as it is, not re-timed: it is not known to count steps "
            f"alone. Go on calling its step(); a step now has {self._step_samples} samples, and had "
            f"{self._reference}",
            AutotuneWarning,
            stacklevel=7,  # the caller of `Result.kit`
        )
        return None


def _moves(recipe: Recipe) -> bool:
    return bool(recipe.warmup_samples) or recipe.decay is not None


def _unscaled_batch_norms(recipe: Recipe | None, models: Iterable[nn.Module]) -> list[Any]:
    """The BatchNorm layers that the recipe is to be applied to."""
    if recipe is None or not recipe.batch_norm_momenta:
        return []
    own, size = recipe.reference_batch_size, recipe.batch_size
    return [
        layer
        for layer in batch_norms(models)
        if not scaled_already(vars(layer), _MOMENTA, reference=own, size=size, factor=size / own)
    ]


def _scale_batch_norms(recipe: Recipe | None, layers: Iterable[Any]) -> None:
    if recipe is None:
        return
    k = recipe.batch_size / recipe.reference_batch_size
    for layer in layers:
        layer.momentum = scaled_batch_norm(layer.momentum, k)
        # These go along where the model is copied.
        setattr(layer, SCALED_FOR, recipe.batch_size)
        setattr(layer, SCALED_BY, k)


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


def _scale_groups(recipe: Recipe, optimizer: Optimizer, number: int) -> None:
    for index, group in enumerate(optimizer.param_groups):
        factor = _lr_factor(recipe, number + index)
        for name in _GROUP_RATES:
            if name in group:
                group[name] = group[name] * factor
        if group.get("weight_decay"):
            group["weight_decay"] *= _factor(
                recipe.weight_decays, recipe.reference_weight_decays, number + index
            )
        if recipe.beta2s:
            beta2 = recipe.beta2s[min(number + index, len(recipe.beta2s) - 1)]
            if beta2 is not None:
                set_beta2(group, beta2)
        group[SCALED_FOR], group[SCALED_BY] = recipe.step_samples, factor
