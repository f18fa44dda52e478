"""Learning rates that follow samples: a recipe's own schedule, or the user's scheduler re-timed."""

from __future__ import annotations

import copy
import math
import warnings
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.optim import Optimizer, lr_scheduler

from autotune.errors import AutotuneWarning, UsageError
from autotune.outcome import Recipe
from autotune.recipe.schedule import schedule_factor, warmup_factor

SCHEDULED = "scheduled_samples"
"""Key in a param group: samples that its schedule has counted, so that the optimizer's checkpoint has it."""
_CYCLED = ("lr", "momentum", "betas")
"""What torch's schedulers move."""


class _StandIn:
    """What a scheduler sees of an optimizer: the groups' numbers, and that steps were taken."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.param_groups = [
            {name: copy.deepcopy(value) for name, value in group.items() if name != "params"}
            for group in optimizer.param_groups
        ]
        self._opt_called = True

    def step(self) -> None:
        """Looked at by schedulers, never called."""

    step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]  # so torch does not warn that it is not


class Retimed:
    """A scheduler of the user's that counts steps, advanced by samples.

    A copy of it runs on a stand-in for the optimizer, one step for each `step_samples` samples, which is
    what a step had where its numbers come from: milestones, T_max, total_steps and the like are reached after
    as many samples as before, whatever the batch. Between two such steps the rate stays.

    Args:
        scheduler: made with the user's own learning rates, before these are scaled.
        step_samples: samples in a step of the user's own.
    """

    def __init__(self, scheduler: lr_scheduler.LRScheduler, step_samples: int) -> None:
        self._stand_in = _StandIn(scheduler.optimizer)
        self._scheduler = copy.deepcopy(scheduler, {id(scheduler.optimizer): self._stand_in})
        self._step_samples = step_samples
        self._steps = 0
        self._ended = False

    def rates(self) -> list[float]:
        """Each group's learning rate as the user's own batch would have it now."""
        return [float(group["lr"]) for group in self._stand_in.param_groups]

    def advance_to(self, samples: int) -> None:
        """Go on to where the scheduler would be after so many samples; never back.

        Where the last batch of an epoch is smaller, epochs have a few samples more in larger batches. A
        scheduler that takes no step beyond its total (OneCycleLR) then stays where it ended.
        """
        for _ in range(samples // self._step_samples - self._steps):
            if not self._ended:
                self._ended = not _stepped(self._scheduler)
            self._steps += 1

    def peak_rates(self, samples: int) -> list[float]:
        """Each group's highest rate within the next so many samples."""
        ahead, peaks = copy.deepcopy(self), self.rates()
        for reached in range(self._step_samples, samples + 1, self._step_samples):
            ahead.advance_to(reached)
            peaks = [max(pair) for pair in zip(peaks, ahead.rates())]
        return peaks

    def cycle_momentum(self, groups: Sequence[dict[str, Any]]) -> None:
        """Hand on a momentum, or Adam's beta1, that the scheduler moves together with the rate."""
        if not _cycles(self._scheduler):
            return
        for group, seen in zip(groups, self._stand_in.param_groups):
            if "momentum" in seen:
                group["momentum"] = seen["momentum"]
            if "betas" in seen:
                group["betas"] = (seen["betas"][0], *group["betas"][1:])

    def state_dict(self) -> dict[str, Any]:
        """Where it is."""
        groups = [{name: g[name] for name in _CYCLED if name in g} for g in self._stand_in.param_groups]
        return {"steps": self._steps, "scheduler": self._scheduler.state_dict(), "groups": groups}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there, the scheduler being made as it was."""
        self._steps = state["steps"]
        self._scheduler.load_state_dict(state["scheduler"])
        for group, saved in zip(self._stand_in.param_groups, state["groups"]):
            group.update(saved)


class SampleScheduler:
    """Drives one optimizer's learning rates by the samples that its steps have learnt from.

    It advances by itself after each step that the optimizer takes, in any loop. Each counts `step_samples`
    samples, a smaller last batch of an epoch too, as schedulers that count steps have it. A step that a
    gradient scaler skipped taught nothing and does not count, though its samples were seen; where a fused
    optimizer takes such a step in name, its `found_inf` is read, which waits for the device, as the scaler
    does with all that are not fused.

    Beside a scheduler of the user's that it does not drive, it only warms up: what that one lowers stays
    lowered, and what it raises is taken for the rate to warm up to.

    Args:
        optimizer: with the learning rates of the recipe, at their full height.
        recipe: its warmup and decay; None for neither.
        step_samples: samples in a step of the optimizer.
        retimed: the user's scheduler to drive; in place of the recipe's decay.
        factors: for each group, what the recipe multiplies the user's learning rate by.
        samples: counted by a schedule that goes on here, of which the groups' `initial_lr` is the full rate;
            None for a new one.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        recipe: Recipe | None,
        *,
        step_samples: int,
        retimed: Retimed | None = None,
        factors: Sequence[float] = (),
        samples: int | None = None,
    ) -> None:
        self.optimizer = optimizer
        self.samples = samples or 0
        """Counted so far."""
        self._recipe = recipe
        self._step_samples = step_samples
        self._retimed = retimed
        self._factors = list(factors) or [1.0] * len(optimizer.param_groups)
        full = "lr" if samples is None else "initial_lr"
        self._full = [float(group[full]) for group in optimizer.param_groups]
        warmup = recipe.warmup_samples if recipe is not None else 0
        self._peaks = retimed.peak_rates(warmup) if retimed is not None else []
        for group, rate in zip(optimizer.param_groups, self._full):
            group["initial_lr"] = rate  # schedulers to come start from the full rate
        self._written = [float(g["lr"]) for g in optimizer.param_groups]
        if samples is None or self._owns:
            self._write(self._rates())
        optimizer.register_step_post_hook(lambda *_: self._advance())

    @property
    def _owns(self) -> bool:
        """Whether the rates are its own for the whole run."""
        return self._retimed is not None or (self._recipe is not None and self._recipe.decay is not None)

    def get_last_lr(self) -> list[float]:
        """The learning rate of each group for the next step."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def step(self) -> None:
        """Does nothing but say so: the optimizer's own steps advance it."""
        warnings.warn("kit.scheduler advances by itself: leave its step() out", AutotuneWarning, stacklevel=2)

    def state_dict(self) -> dict[str, Any]:
        """All but what the kit is made from."""
        retimed = None if self._retimed is None else self._retimed.state_dict()
        return {
            "samples": self.samples,
            "full": list(self._full),
            "written": list(self._written),
            "peaks": list(self._peaks),
            "retimed": retimed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the saved one was; the optimizer's own state is loaded apart.

        Raises:
            UsageError: where one of them drives a scheduler of the user's, and the other does not.
        """
        if (self._retimed is None) != (state["retimed"] is None):
            raise UsageError(
                "the saved schedule is not of this kit",
                why="one of them drives a scheduler of yours, and the other does not",
                fix="make the kit with the scheduler that the saved one was made with",
            )
        self.samples = state["samples"]
        self._full, self._written = list(state["full"]), list(state["written"])
        self._peaks = list(state["peaks"])
        if self._retimed is not None:
            self._retimed.load_state_dict(state["retimed"])

    def _advance(self) -> None:
        self._follow_checkpoint()
        before = self.samples
        if not self._owns and self._warm(before) == 1.0:
            return
        # A fused step is taken even where the gradients overflowed, and then does nothing by itself.
        overflowed = getattr(self.optimizer, "found_inf", None)
        if overflowed is not None and overflowed.item():
            return
        self.samples += self._step_samples
        if not self._owns:
            self._adopt(before)
        self._write(self._rates())

    def _follow_checkpoint(self) -> None:
        """Go on where a state that was loaded into the optimizer itself had come to: its groups say where."""
        groups = self.optimizer.param_groups
        counted = groups[0].get(SCHEDULED, self.samples)
        if counted == self.samples:
            return
        self.samples = counted
        self._full = [float(group.get("initial_lr", group["lr"])) for group in groups]
        self._written = [float(group["lr"]) for group in groups]

    def _warm(self, samples: int) -> float:
        return 1.0 if self._recipe is None else warmup_factor(samples, self._recipe)

    def _adopt(self, before: int) -> None:
        """Take over what another scheduler made of the rates since they were written."""
        for index, group in enumerate(self.optimizer.param_groups):
            rate, written = float(group["lr"]), self._written[index]
            if not math.isclose(rate, written, rel_tol=1e-6):
                self._full[index] = rate if rate > written else rate / self._warm(before)

    def _rates(self) -> list[float]:
        if self._retimed is None:
            factor = 1.0 if self._recipe is None else schedule_factor(self.samples, self._recipe)
            return [full * factor for full in self._full]
        self._retimed.advance_to(self.samples)
        self._retimed.cycle_momentum(self.optimizer.param_groups)
        rates = self._retimed.rates()
        if self._recipe is not None and self.samples < self._recipe.warmup_samples:
            warm = self._warm(self.samples)
            rates = [min(rate, peak * warm) for rate, peak in zip(rates, self._peaks)]
        return [rate * factor for rate, factor in zip(rates, self._factors)]

    def _write(self, rates: Sequence[float]) -> None:
        for group, rate in zip(self.optimizer.param_groups, rates):
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
            group[SCHEDULED] = self.samples
        self._written = list(rates)


def _stepped(scheduler: lr_scheduler.LRScheduler) -> bool:
    """Whether the scheduler took one more step; False where it is at its end and says so."""
    if _at_end(scheduler):
        return False
    scheduler.step()
    return True


def _at_end(scheduler: Any) -> bool:
    """Whether a further step raises, by itself or in those that it is made of."""
    total = getattr(scheduler, "total_steps", None)
    if isinstance(total, int) and scheduler.last_epoch + 1 >= total:
        return True
    inner, milestones = getattr(scheduler, "_schedulers", ()), getattr(scheduler, "_milestones", None)
    if milestones is not None:  # one after the other: only whose turn it is then takes the step
        inner = (inner[bisect_right(milestones, scheduler.last_epoch + 1)],)
    return any(_at_end(one) for one in inner)


def is_known(scheduler: Any) -> bool:
    """Whether a scheduler is torch's own and counts steps alone, so that it can be re-timed."""
    if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
        return False
    inner = getattr(scheduler, "_schedulers", ())
    return type(scheduler).__module__ == lr_scheduler.__name__ and all(is_known(one) for one in inner)


def hand_over(scheduler: lr_scheduler.LRScheduler) -> None:
    """Make the user's own calls of `scheduler.step()` do nothing but warn: twice is too often."""
    told: list[bool] = []

    def step(*_: Any, **__: Any) -> None:
        if not told:
            told.append(True)
            what = f"the kit advances your {type(scheduler).__name__}: leave its step() out"
            warnings.warn(what, AutotuneWarning, stacklevel=2)

    scheduler.step = step  # type: ignore[method-assign]


def _cycles(scheduler: Any) -> bool:
    inner = getattr(scheduler, "_schedulers", ())
    return bool(getattr(scheduler, "cycle_momentum", False)) or any(_cycles(one) for one in inner)


def scale_base(scheduler: Any, factors: Callable[[int], float]) -> None:
    """Let a scheduler that stays the user's own compute from the scaled learning rates."""
    bases = getattr(scheduler, "base_lrs", None)
    if isinstance(bases, list):
        scheduler.base_lrs = [base * factors(index) for index, base in enumerate(bases)]
    for inner in getattr(scheduler, "_schedulers", ()):
        scale_base(inner, factors)
