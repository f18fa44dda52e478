"""A profile applied to a training loop: what `best.kit(model, optimizer, loss=...)` gives."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from autotune.errors import AutotuneWarning, UsageError
from autotune.measure import batches, compiling, flags, host_memory, losses, optimizers, toolchain
from autotune.measure.applying import apply_recipe
from autotune.measure.device import choose_device
from autotune.measure.large_batch import build_large_batch
from autotune.measure.models import build_models
from autotune.measure.retiming import SchedulerInterval
from autotune.measure.schedules import SampleScheduler
from autotune.measure.stepkit import StepKit
from autotune.outcome import Recipe
from autotune.recipe.large_batch import large_batch_recipe
from autotune.settings import Settings

_UNLIKE = 4
"""Batches of another size than the recipe's, from the first on, after which the kit says so."""


class Kit(StepKit):
    """The measured training step, for the user's own model and loop.

        with best.kit(model, optimizer, loss=F.cross_entropy) as kit:
            for batch in loader:
                loss = kit.step(batch)

    Models go to the device and take the memory order of the settings; the optimizer is switched to its
    fused step; torch's switches (cudnn.benchmark, TF32, threads) are set at once, and training steps on whole
    batches are compiled; both are put back by `close()` or at the end of the `with` block. Only
    `keep_host_memory` stays for the life of the process: glibc has no way back from it.

    Where the batch size was changed, learning rates, weight decay, beta2 and the momentum of BatchNorm
    become those of the recipe, once for an optimizer and a model. `scheduler` drives the warmup, and the
    recipe's decay or your own scheduler, if it was handed over, by samples: each step of the optimizer
    advances it, in any loop, and one that the scaler skipped does not. Any other scheduler of your own is
    made after the kit, so that it starts from the scaled rate.

    With a recipe that gathers gradients of several batches, `zero_grad`, `backward` and `optimizer_step`
    know which batch it is: only the last steps the optimizer. What is left over at the end of an epoch goes
    into the first step of the next.
    """

    def __init__(  # noqa: PLR0913  # as many as `make_kit` gathers
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
        scheduler: Any = None,
        scheduler_interval: SchedulerInterval = "step",
    ) -> None:
        self._loss, self._user_step = loss, step
        self._flags = contextlib.ExitStack()
        yours = flags.read_user_flags()
        self._flags.callback(flags.write_user_flags, yours)
        host_memory.settle()  # as every process was that the settings were measured in
        flags.apply_flags(settings.compute, yours, device.type)
        try:
            super().__init__(
                models=models,
                optimizers_=optimizers_,
                settings=settings,
                device=device,
                train_step=train_step,
                gather=recipe.accumulation_steps if recipe is not None else 1,
            )
            self._flags.callback(compiling.put_back, self._before_compiling)
            self.schedulers: dict[str, SampleScheduler] = apply_recipe(
                recipe,
                self.models,
                self.optimizers,
                scheduler=scheduler,
                interval=scheduler_interval,
                batch_size=settings.loader.batch_size,
            )
        except BaseException:
            self.close()  # no kit, so nobody else would
            raise
        self.recipe = recipe
        self.samples_seen = 0
        """Samples in the batches given to `step`, those of steps that the scaler skipped too."""
        self._unlike = 0

    @property
    def scheduler(self) -> SampleScheduler | None:
        """What drives the learning rates of the optimizer, or of the first of several; None without."""
        return next(iter(self.schedulers.values()), None)

    def step(self, batch: Any) -> torch.Tensor:
        """One whole training step on a batch of the loader.

        Returns:
            The loss, detached, on the device: reading it waits for the device.

        Raises:
            LossError: at the first batch, when no loss was given and none can be inferred.
        """
        self.samples_seen += batches.count_samples(batch, self.settings.loader.batch_size or 1)
        self._notice_size(batch)
        if self._loss_of is None and self._train_step is None:
            self._loss_of = losses.plan_loss(
                self.model, self.to_device(batch), loss=self._loss, step=self._user_step
            ).loss_of
        return super().step(batch)

    def _notice_size(self, batch: Any) -> None:
        """Warn once where the recipe's rates meet batches that none of them was made for."""
        recipe = self.recipe
        if recipe is None or recipe.growth == 1 or self._unlike >= _UNLIKE:
            return
        size = batches.count_samples(batch, recipe.batch_size, expected=recipe.batch_size)
        if size == recipe.batch_size:
            self._unlike = _UNLIKE  # the last one of an epoch may be smaller
            return
        self._unlike += 1
        if self._unlike == _UNLIKE:
            warnings.warn(
                f"the learning rates are the recipe's for batches of {recipe.batch_size}, and the batches so "
                f"far have {size} samples: take best.loader(), or a loader with that batch size",
                AutotuneWarning,
                stacklevel=3,
            )

    def ema_decay(self, decay: float) -> float:
        """The decay, for this batch size, of an average of the weights that is taken at every step."""
        return decay if self.recipe is None else float(decay**self.recipe.ema_power)

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimizers, scaler, schedules and counts: all that a run goes on from.

        Gradients that are being gathered are not in it: their batches are learnt from anew, or not at all.
        """
        self.settle_scale()
        return {
            "models": {name: model.state_dict() for name, model in self.models.items()},
            "optimizers": {name: one.state_dict() for name, one in self.optimizers.items()},
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "schedulers": {name: one.state_dict() for name, one in self.schedulers.items()},
            "samples_seen": self.samples_seen,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave, with a kit that was made like the one saved.

        Raises:
            UsageError: for what is no kit's state, or that of one with other models, optimizers or schedules.
        """
        missing = [what for what in self.state_dict() if what not in state]
        if missing:
            raise UsageError(
                "the saved state is not a kit's",
                why=f"it has no {', '.join(f'`{what}`' for what in missing)}",
                fix="load what `kit.state_dict()` gave; a model's own state goes to model.load_state_dict()",
            )
        for what, mine in (
            ("models", self.models),
            ("optimizers", self.optimizers),
            ("schedulers", self.schedulers),
        ):
            if set(state[what]) != set(mine):
                raise UsageError(
                    f"the saved state is of other {what}",
                    why=f"saved: {sorted(state[what])}; here: {sorted(mine)}",
                    fix="make the kit with the same profile, model, optimizer and scheduler",
                )
        for name, model in self.models.items():
            model.load_state_dict(state["models"][name])
        for name, one in self.optimizers.items():
            one.load_state_dict(state["optimizers"][name])
        for name, schedule in self.schedulers.items():
            schedule.load_state_dict(state["schedulers"][name])
        self.settle_scale()  # of steps before: they are no part of what is loaded
        if self.scaler is not None and state["scaler"] is not None:
            self.scaler.load_state_dict(state["scaler"])
        self.samples_seen = state["samples_seen"]
        self._gathered = 0

    def close(self) -> None:
        """Put torch's switches back; the model stays as it is, but runs as it is written."""
        self._flags.close()

    def __enter__(self) -> Kit:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def make_kit(  # noqa: PLR0913  # each option is the user's
    settings: Settings,
    recipe: Recipe | None,
    model: Any,
    optimizer: Any = None,
    *,
    loss: Callable[[Any, Any], Any] | None = None,
    step: Callable[[Any, Any], Any] | None = None,
    train_step: Callable[[Any, Any], Any] | None = None,
    device: str | None = None,
    scheduler: Any = None,
    scheduler_interval: SchedulerInterval = "step",
    large_batch: bool = False,
) -> Kit:
    """A kit for the user's model.

    Args:
        settings: what to apply.
        recipe: how learning goes with a changed batch size; None leaves learning alone.
        model: an `nn.Module`, a dict of them, or a function that makes one. Changed in place.
        optimizer: an Optimizer of that model, a function `params -> Optimizer`, or a dict of either. Where
            the batch size was changed its numbers are made the recipe's, once.
        loss, step, train_step: as for `autotune.Workload`; inferred at the first batch without.
        device: where to train; chosen as in tuning without.
        scheduler: a scheduler of the optimizer as you use it with your own batch size, a function
            `optimizer -> scheduler`, or a dict of either by the optimizers' names. One of torch's that
            counts steps is advanced by the kit, at the same samples as with your own batch size; leave its
            `step()` out of your loop. Any other stays yours to step, with a warning, and is not given as a
            function: you would not have it.
        scheduler_interval: `epoch` for a scheduler that you step once an epoch: it stays yours to step.
        large_batch: train with LARS or LAMB as the recipe offers it, in place of `optimizer`.

    Raises:
        AutotuneError: for a model, optimizer, scheduler or device that does not fit.
    """
    models = build_models(model)
    where = choose_device(device, list(models.values()))
    settings = _that_run_here(settings, where)
    for one in (*models.values(), loss):
        if isinstance(one, nn.Module):  # a loss may have weights of its own
            one.to(where)
    if large_batch:
        offer, recipe = large_batch_recipe(recipe)
        settings = settings.replace(fused_optimizer=False)  # torch's fused step is the other optimizer's
        built: dict[str, Optimizer] = {"": build_large_batch(offer, models, where)}
    else:
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
        scheduler=scheduler,
        scheduler_interval=scheduler_interval,
    )


def _that_run_here(settings: Settings, device: torch.device) -> Settings:
    """Without `compile` where this machine cannot: steps compute the same, and go on more slowly."""
    why = toolchain.compile_fixed(cuda=device.type == "cuda") if settings.compute.compile else ""
    if not why:
        return settings
    warnings.warn(
        f"the model is not compiled ({settings.compute.compile!r}) as it was when measured: {why}",
        AutotuneWarning,
        stacklevel=4,
    )
    return settings.replace(compile=None)


def _given(optimizer: Any, models: dict[str, nn.Module]) -> dict[str, Optimizer]:
    """Optimizers that exist are used themselves, so that schedulers that hold them go on working."""
    if optimizer is None:
        raise UsageError(
            "there is no optimizer to train with",
            fix="pass one of the model, or a function: kit(model, lambda p: torch.optim.SGD(p, lr=0.1))",
        )
    if isinstance(optimizer, Optimizer):
        return {"": optimizer}
    if isinstance(optimizer, Mapping):
        made = {name: one for name, one in optimizer.items() if not isinstance(one, Optimizer)}
        return {**optimizer, **optimizers.build_optimizers(optimizers.freeze_optimizer(made), models)}
    return optimizers.build_optimizers(optimizers.freeze_optimizer(optimizer), models)
