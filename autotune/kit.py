"""A profile applied to a training loop: what `best.kit(model, optimizer, loss=...)` gives."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from autotune.errors import UsageError
from autotune.measure import flags, losses, optimizers
from autotune.measure.device import choose_device
from autotune.measure.models import build_models
from autotune.measure.stepkit import StepKit
from autotune.outcome import Recipe
from autotune.recipe.scaling import warmup_factor
from autotune.settings import Settings

_SCALED_FOR = "scaled_for_batch_size"
"""Key in a param group: its learning rate is the recipe's for this batch size."""


class Kit(StepKit):
    """The measured training step, for the user's own model and loop.

        with best.kit(model, optimizer, loss=F.cross_entropy) as kit:
            for batch in loader:
                loss = kit.step(batch)

    Models go to the device and take the memory order of the settings; the optimizer is switched to its
    fused step; torch's switches (cudnn.benchmark, TF32, threads) are set at once and put back by `close()`
    or at the end of the `with` block. Where the batch size was changed, `scheduler` warms the scaled
    learning rate up: each step of the optimizer advances it, in any loop, and one that the scaler skipped
    does not. A scheduler of your own is made after the kit, so that it starts from the scaled rate.
    """

    def __init__(
        self,
        *,
        models: Mapping[str, nn.Module],
        optimizers_: Mapping[str, Optimizer],
        settings: Settings,
        device: torch.device,
        loss: Callable[[Any, Any], Any] | None = None,
        step: Callable[[Any, Any], Any] | None = None,
        train_step: Callable[[Any, Any], Any] | None = None,
        recipe: Recipe | None = None,
    ) -> None:
        self._loss, self._user_step = loss, step
        self._flags = contextlib.ExitStack()
        yours = flags.read_user_flags()
        self._flags.callback(flags.write_user_flags, yours)
        flags.apply_flags(settings.compute, yours, device.type)
        try:
            super().__init__(
                models=models,
                optimizers_=optimizers_,
                settings=settings,
                device=device,
                train_step=train_step,
            )
        except BaseException:
            self.close()  # no kit, so nobody else would
            raise
        self.recipe = recipe
        self.schedulers = _scaled(self.optimizers, recipe)

    @property
    def scheduler(self) -> LRScheduler | None:
        """The warmup of the optimizer, or of the first of several; None where there is nothing to warm up."""
        return next(iter(self.schedulers.values()), None)

    def step(self, batch: Any) -> torch.Tensor:
        """One whole training step on a batch of the loader.

        Returns:
            The loss, detached, on the device: reading it waits for the device.

        Raises:
            LossError: at the first batch, when no loss was given and none can be inferred.
        """
        if self._loss_of is None and self._train_step is None:
            self._loss_of = losses.plan_loss(
                self.model, self.to_device(batch), loss=self._loss, step=self._user_step
            ).loss_of
        return super().step(batch)

    def close(self) -> None:
        """Put torch's switches back; the model stays as it is."""
        self._flags.close()

    def __enter__(self) -> Kit:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def make_kit(
    settings: Settings,
    recipe: Recipe | None,
    model: Any,
    optimizer: Any = None,
    *,
    loss: Callable[[Any, Any], Any] | None = None,
    step: Callable[[Any, Any], Any] | None = None,
    train_step: Callable[[Any, Any], Any] | None = None,
    device: str | None = None,
) -> Kit:
    """A kit for the user's model.

    Args:
        settings: what to apply.
        recipe: learning rates for a changed batch size; None leaves learning alone.
        model: an `nn.Module`, a dict of them, or a function that makes one. Changed in place.
        optimizer: an Optimizer of that model, a function `params -> Optimizer`, or a dict of either. Where
            the batch size was changed its learning rates are scaled, once.
        loss, step, train_step: as for `autotune.Workload`; inferred at the first batch without.
        device: where to train; chosen as in tuning without.

    Raises:
        AutotuneError: for a model, optimizer or device that does not fit.
    """
    models = build_models(model)
    where = choose_device(device, list(models.values()))
    for one in models.values():
        one.to(where)
    built = _given(optimizer, models)
    return Kit(
        models=models,
        optimizers_=built,
        settings=settings,
        device=where,
        loss=loss,
        step=step,
        train_step=train_step,
        recipe=recipe,
    )


def _given(optimizer: Any, models: dict[str, nn.Module]) -> dict[str, Optimizer]:
    """Optimizers that exist are used themselves, so that schedulers that hold them go on working."""
    if optimizer is None:
        raise UsageError(
            "there is no optimizer to train with",
            fix="pass one of the model, or a function: kit(model, lambda p: torch.optim.SGD(p, lr=0.1))",
        )
    if isinstance(optimizer, Optimizer):
        return {"": optimizer}
    if isinstance(optimizer, Mapping) and all(isinstance(o, Optimizer) for o in optimizer.values()):
        return dict(optimizer)
    return optimizers.build_optimizers(optimizers.freeze_optimizer(optimizer), models)


def _scaled(built: Mapping[str, Optimizer], recipe: Recipe | None) -> dict[str, LRScheduler]:
    """Learning rates as the recipe has them, and what warms them up.

    A group that was scaled for this batch size before, such as by the kit of an earlier epoch or in a
    checkpoint, is left alone: it says so itself.
    """
    if recipe is None or recipe.batch_size == recipe.reference_batch_size:
        return {}
    pairs = zip(recipe.learning_rates, recipe.reference_learning_rates)
    factors = [new / old if old else 1.0 for new, old in pairs] or [1.0]
    fresh = {
        name: optimizer
        for name, optimizer in built.items()
        if any(group.get(_SCALED_FOR) != recipe.batch_size for group in optimizer.param_groups)
    }
    optimizers.scale_learning_rates(list(fresh.values()), lambda i: factors[min(i, len(factors) - 1)])
    for optimizer in fresh.values():
        for group in optimizer.param_groups:
            group[_SCALED_FOR] = recipe.batch_size
            if "initial_lr" in group:  # of a scheduler from before; those to come start from the new rate
                group["initial_lr"] = group["lr"]
    return {name: Warmup(optimizer, recipe) for name, optimizer in fresh.items() if recipe.warmup_samples}


class Warmup(LRScheduler):
    """Raises the learning rates of an optimizer to their own values over the recipe's first samples.

    It advances by itself with each step that the optimizer takes, and goes on beside another scheduler: what
    that one lowers stays lowered, and what it raises is taken for the rate to warm up to.
    """

    def __init__(self, optimizer: Optimizer, recipe: Recipe) -> None:
        self._recipe = recipe
        self._given: list[Any] = []
        super().__init__(optimizer)
        optimizer.register_step_post_hook(lambda *_: self._advance())

    def get_lr(self) -> list[Any]:
        """The learning rate of each group for the next step."""
        rates = [group["lr"] for group in self.optimizer.param_groups]
        now = self._factor(self.last_epoch)
        if self.last_epoch == 0:
            self._given = [rate * now for rate in rates]
        else:
            ratio = now / self._factor(self.last_epoch - 1)
            given = zip(rates, self._given)
            self._given = [rate * now if rate > before else rate * ratio for rate, before in given]
        return list(self._given)

    def state_dict(self) -> dict[str, Any]:
        """All but what the kit is made from."""
        return {name: value for name, value in super().state_dict().items() if name != "_recipe"}

    def _factor(self, steps: int) -> float:
        return warmup_factor(steps * self._recipe.batch_size, self._recipe)

    def _advance(self) -> None:
        if self._factor(self.last_epoch) == 1.0:
            return
        # A fused step is taken even where the gradients overflowed, and then does nothing by itself.
        overflowed = getattr(self.optimizer, "found_inf", None)
        if overflowed is None or not overflowed.item():
            self.step()
