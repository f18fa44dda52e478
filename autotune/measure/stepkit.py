"""The training step with settings applied. The bench measures it; a profile's kit hands out the same one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from autotune.errors import UsageError
from autotune.measure import batches, compiling, optimizers
from autotune.measure.losses import LossOf
from autotune.settings import Precision, Settings
from autotune.space.rules import GRAPH_MODES

AUTOCAST: dict[Precision, torch.dtype] = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class StepKit:
    """Models, optimizers and scaler, ready for a loop under given settings.

    `kit.step(batch)` is the whole step. A loop of your own uses the pieces: `to_device`, `zero_grad`,
    `autocast`, `backward`, `optimizer_step`.

    Args:
        models: by name; a single model has the name "".
        optimizers_: likewise.
        settings: what to apply. The models are converted in place.
        device: where they live already.
        loss_of: `(model, batch) -> loss`; not needed with `train_step` or a loop of your own.
        train_step: `(kit, batch) -> loss`: does the whole step itself.
        gather: batches whose gradients are averaged for one step of the optimizer: `zero_grad`, `backward`
            and `optimizer_step` know which batch it is, and only the last steps the optimizer.

    Raises:
        UsageError: for optimizers that hold no parameter of the models, and for settings that they refuse.
    """

    def __init__(
        self,
        *,
        models: Mapping[str, nn.Module],
        optimizers_: Mapping[str, Optimizer],
        settings: Settings,
        device: torch.device,
        loss_of: LossOf | None = None,
        train_step: Callable[[Any, Any], Any] | None = None,
        gather: int = 1,
    ) -> None:
        self.models = dict(models)
        self.optimizers = dict(optimizers_)
        self.settings = settings
        self.device = device
        self.scaler: torch.amp.GradScaler | None = None
        self._unsettled: set[int] = set()
        """Ids of the optimizers that have stepped since the scale last moved."""
        self._shared = False
        """Whether they may share a backward pass with others: it was taken here."""
        self.autocast_entered = False
        self._loss_of = loss_of
        self._train_step = train_step
        self._gather = gather
        self._gathered = 0
        self._size = settings.loader.batch_size
        """Samples of a whole batch; of the first one where the loader does not tell."""
        self._whole = True
        """Whether the batch under way is one."""
        self._graphs = device.type == "cuda" and settings.compute.compile in GRAPH_MODES
        self._stepped = True
        """Whether the optimizer has stepped since anything compiled ran."""
        _check_held(self.models.values(), self.optimizers.values())
        for model in self.models.values():
            set_memory_format(model, channels_last=settings.compute.channels_last)
        for optimizer in self.optimizers.values():
            optimizers.follow_parameters(optimizer)
            optimizers.set_fused(optimizer, settings.compute.fused_optimizer)
        if settings.compute.precision == "float16":
            self.scaler = torch.amp.GradScaler(device.type)
        # Last, so that nothing stays compiled for a kit that did not come about.
        self._before_compiling = compiling.set_compiled(
            self.models.values(), settings.compute.compile, self._runs_compiled
        )

    @property
    def model(self) -> nn.Module:
        """The model, or the first of several."""
        return next(iter(self.models.values()))

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer, or the first of several."""
        return next(iter(self.optimizers.values()))

    def to_device(self, batch: Any) -> Any:
        """The batch where the model is, in the memory order that the settings ask for."""
        if self.settings.compute.compile is not None:
            count = batches.count_samples(batch, self._size or 1, expected=self._size)
            self._size = self._size or count
            self._whole = count == self._size
        return batches.to_device(
            batch,
            self.device,
            non_blocking=self.settings.transfer.non_blocking,
            channels_last=self.settings.compute.channels_last,
        )

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Context for forward and loss: autocast for bfloat16 and float16, nothing otherwise."""
        self.autocast_entered = True
        dtype = AUTOCAST.get(self.settings.compute.precision)
        if dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=dtype)

    def zero_grad(self) -> None:
        """Drop all gradients, where none are being gathered."""
        self.settle_scale()
        if self._gathered == 0:
            for optimizer in self.optimizers.values():
                optimizer.zero_grad()

    def backward(self, loss: torch.Tensor) -> None:
        """Backward pass, through the scaler where there is one; gathered gradients are averaged."""
        self.settle_scale()
        self._shared = True
        loss = loss / self._gather if self._gather > 1 else loss
        (self.scaler.scale(loss) if self.scaler is not None else loss).backward()

    def optimizer_step(
        self, optimizer: Optimizer | str | None = None, *, clip_grad_norm: float | None = None
    ) -> None:
        """One step of an optimizer (by itself or by name; the only one without), with optional clipping.

        With a scaler, a step whose gradients overflowed is skipped, as always with float16. The scale moves
        once every optimizer has stepped, or before the next backward pass: those that step after the same one
        share the scale that its loss was multiplied with. Where gradients are gathered, a step is taken with
        the last batch alone.

        Raises:
            UsageError: for a name that is not there, and where several are and none is named.
        """
        chosen = optimizer if isinstance(optimizer, Optimizer) else self._optimizer(optimizer)
        if not self._ends_step():
            return
        if clip_grad_norm is not None:
            if self.scaler is not None:
                self._let_step_again(chosen)
                self.scaler.unscale_(chosen)
            params = [p for group in chosen.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(params, clip_grad_norm)
        self._step_one(chosen)

    def settle_scale(self) -> None:
        """Let the scaler's scale move, where an optimizer has stepped since it last did."""
        if self.scaler is not None and self._unsettled:
            self._unsettled.clear()
            self._shared = False
            self.scaler.update()

    def _ends_step(self) -> bool:
        """Whether this batch is the last of those whose gradients are gathered; it counts as one of them."""
        self._gathered = (self._gathered + 1) % self._gather
        return self._gathered == 0

    def _optimizer(self, name: str | None) -> Optimizer:
        if name is None and len(self.optimizers) == 1:
            return self.optimizer
        if name is None or name not in self.optimizers:
            raise UsageError(
                "no optimizer is named" if name is None else f"there is no optimizer {name!r}",
                why=f"optimizers: {', '.join(self.optimizers)}",
                fix=f"name the one to step, such as kit.optimizer_step({next(iter(self.optimizers))!r})",
            )
        return self.optimizers[name]

    def _runs_compiled(self) -> bool:
        """Whether what is called now is to run compiled; told to torch, where it is the first of a step."""
        if self._whole and self._stepped and self._graphs:
            torch.compiler.cudagraph_mark_step_begin()  # what the last step's graphs gave may be overwritten
            self._stepped = False
        return self._whole

    def _step_one(self, optimizer: Optimizer) -> None:
        self._stepped = True
        if self.scaler is None:
            optimizer.step()
            return
        self._let_step_again(optimizer)
        with _skipped_by_scaler(optimizer) if _makes_momentum(optimizer) else contextlib.nullcontext():
            self.scaler.step(optimizer)
        self._unsettled.add(id(optimizer))
        if not self._shared or self._unsettled.issuperset(map(id, self.optimizers.values())):
            self.settle_scale()

    def _let_step_again(self, optimizer: Optimizer) -> None:
        """A scaler takes no second step of an optimizer until its scale has moved."""
        if id(optimizer) in self._unsettled:
            self.settle_scale()

    def step(self, batch: Any) -> torch.Tensor:
        """One whole training step on a batch still on the host (or already on the device).

        Returns:
            The loss, detached, on the device: reading it waits for the device.
        """
        batch = self.to_device(batch) if batch is not None else None
        if self._train_step is not None:
            loss = self._train_step(self, batch)
        else:
            assert self._loss_of is not None, "a kit without a loss has no step of its own"
            self.zero_grad()
            with self.autocast():
                loss = self._loss_of(self.model, batch)
            self.backward(loss)
            if self._ends_step():
                for optimizer in self.optimizers.values():
                    self._step_one(optimizer)
        self.settle_scale()
        if not isinstance(loss, torch.Tensor):
            return loss
        # A loss that the model computes lies in memory that the next step's graph writes to.
        return loss.detach().clone() if self._graphs else loss.detach()


def _check_held(models: Iterable[nn.Module], optimizers_: Iterable[Optimizer]) -> None:
    """Refuse optimizers that train something else: every step would be measured, and nothing learnt."""
    held = {id(p) for optimizer in optimizers_ for group in optimizer.param_groups for p in group["params"]}
    if not any(id(p) in held for model in models for p in model.parameters()):
        raise UsageError(
            "the optimizer holds no parameter of the model",
            why="it was made for another model, or for this one before it was copied or made anew",
            fix="make it from this model's parameters, or pass a function: lambda p: SGD(p, lr=0.1)",
        )


def _makes_momentum(optimizer: Optimizer) -> bool:
    """Whether the next step is a fused SGD's first one for some parameter with momentum."""
    return isinstance(optimizer, torch.optim.SGD) and any(
        parameter.grad is not None and optimizer.state.get(parameter, {}).get("momentum_buffer") is None
        for group in optimizer.param_groups
        if group.get("fused") and group["momentum"]
        for parameter in group["params"]
    )


@contextlib.contextmanager
def _skipped_by_scaler(optimizer: Optimizer) -> Iterator[None]:
    """The scaler itself skips a step whose gradients overflowed, as it does with what is not fused.

    A fused SGD takes such a step and does nothing in it; but where it is the first one, which in float16 it
    mostly is, the momentum buffers have been made and never written, and the next step learns from what the
    memory held before (torch 2.9 to 2.14: NaN at once, or wrong weights).
    """
    takes_the_scale = getattr(optimizer, "_step_supports_amp_scaling", False)
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        optimizer._step_supports_amp_scaling = takes_the_scale  # type: ignore[attr-defined]


def set_memory_format(model: nn.Module, *, channels_last: bool) -> None:
    """Put 4-D parameters in NHWC or back in NCHW order, in place; the Parameters stay the same objects.

    One by one, since `model.to(memory_format=...)` raises on a model that also holds 5-D ones.
    """
    wanted = torch.channels_last if channels_last else torch.contiguous_format
    for parameter in model.parameters():
        if parameter.dim() == 4 and not parameter.is_contiguous(memory_format=wanted):
            parameter.data = parameter.data.contiguous(memory_format=wanted)


def is_channels_last(model: nn.Module) -> bool:
    """Whether the model's 4-D parameters are already in NHWC order (1x1 kernels are in both)."""
    four = [p for p in model.parameters() if p.dim() == 4]
    there = all(p.is_contiguous(memory_format=torch.channels_last) for p in four)
    return there and not all(p.is_contiguous() for p in four)
