"""A profile applied to a training loop: what `best.kit(model, optimizer, loss=...)` gives."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from autotune.measure import flags, losses, optimizers
from autotune.measure.device import choose_device
from autotune.measure.models import build_models
from autotune.measure.stepkit import StepKit
from autotune.outcome import Recipe
from autotune.recipe.scaling import warmup_factor
from autotune.settings import Settings


class Kit(StepKit):
    """The measured training step, for the user's own model and loop.

        with best.kit(model, optimizer, loss=F.cross_entropy) as kit:
            for batch in loader:
                loss = kit.step(batch)

    Models go to the device and take the memory order of the settings; the optimizer is switched to its
    fused step; torch's switches (cudnn.benchmark, TF32, threads) are set at once and put back by `close()`
    or at the end of the `with` block. Where the batch size was changed, `scheduler` warms the scaled
    learning rate up, and `step` advances it (not after a step that the scaler skipped).
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
        self._flags = contextlib.ExitStack()
        self._loss, self._user_step = loss, step
        yours = flags.read_user_flags()
        self._flags.enter_context(_flags_only())
        flags.apply_flags(settings.compute, yours, device.type)
        super().__init__(
            models=models,
            optimizers_=optimizers_,
            settings=settings,
            device=device,
            train_step=train_step,
        )
        self.recipe = recipe
        self.scheduler = _warmup(self.optimizers, recipe)

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
        scale = self.scaler.get_scale() if self.scaler is not None and self.scheduler is not None else None
        loss = super().step(batch)
        skipped = scale is not None and self.scaler is not None and self.scaler.get_scale() < scale
        if self.scheduler is not None and not skipped:
            self.scheduler.step()
        return loss

    def close(self) -> None:
        """Put torch's switches back; the model stays as it is."""
        self._flags.close()

    def __enter__(self) -> Kit:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@contextlib.contextmanager
def _flags_only() -> Any:
    """Switches are put back, random states are not: training moves those on."""
    before = flags.read_user_flags()
    deterministic = torch.backends.cudnn.deterministic
    try:
        yield
    finally:
        flags.write_user_flags(before)
        torch.backends.cudnn.deterministic = deterministic


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
        optimizer: an Optimizer of that model, a function `params -> Optimizer`, or a dict of either.
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
    if recipe is not None and recipe.batch_size != recipe.reference_batch_size:
        factors = [
            new / old if old else 1.0
            for new, old in zip(recipe.learning_rates, recipe.reference_learning_rates, strict=True)
        ]
        optimizers.scale_learning_rates(list(built.values()), lambda i: factors[min(i, len(factors) - 1)])
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
    if isinstance(optimizer, Optimizer):
        return {"": optimizer}
    if isinstance(optimizer, Mapping) and all(isinstance(o, Optimizer) for o in optimizer.values()):
        return dict(optimizer)
    return optimizers.build_optimizers(optimizers.freeze_optimizer(optimizer), models)


def _warmup(built: Mapping[str, Optimizer], recipe: Recipe | None) -> LambdaLR | None:
    if recipe is None or recipe.warmup_samples == 0:
        return None
    first = next(iter(built.values()))
    return LambdaLR(first, lambda steps: warmup_factor(steps * recipe.batch_size, recipe))
