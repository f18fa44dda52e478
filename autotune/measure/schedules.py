"""Learning rates that follow samples: by a recipe's own schedule, or the user's scheduler re-timed."""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.optim import Optimizer, lr_scheduler

from autotune.errors import AutotuneWarning, UsageError
from autotune.measure.marks import FULL, SCALED_BY, SCHEDULED
from autotune.measure.retiming import Retimed, hand_over
from autotune.outcome import Recipe
from autotune.recipe.schedule import schedule_factor, warmup_factor, warmup_start


class SampleScheduler:
    """Drives one optimizer's learning rates by the samples that its steps have learnt from.

    It advances by itself after each step that the optimizer takes, in any loop. Each counts `step_samples`
    samples, a smaller last batch of an epoch too, as schedulers that count steps have it. A step that a
    gradient scaler skipped taught nothing and does not count, though its samples were seen; where a fused
    optimizer takes such a step in name, its `found_inf` is read, which waits for the device, as the scaler
    does with all that are not fused.

    Beside a scheduler of the user's that it does not drive, it only warms up: what that one lowers stays
    lowered, and what it raises is taken for the rate to warm up to.

    A param group that is added to the optimizer has its full rate from where it was made, as it is given, and
    takes the part of it that the others take of theirs, from its first step on. Beside a scheduler that it
    drives that is the part of the last group which the scheduler knows, of the rate from which it starts, or
    of OneCycleLR's highest.

    Args:
        optimizer: with the learning rates of the recipe, at their full height.
        recipe: its warmup and decay; None for neither.
        step_samples: samples in a step of the optimizer.
        retimed: the user's scheduler to drive; in place of the recipe's decay.
        factors: for each group, what the recipe multiplies the user's learning rate by.
        samples: counted by a schedule that goes on here, of which the groups say the full rate; None for a
            new one.
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
        self._shown_in = weakref.WeakSet[lr_scheduler.LRScheduler]()
        """The user's own, which `retimed` is a copy of; there may be a new one with each kit."""
        self._factors = list(factors) or [1.0] * len(optimizer.param_groups)
        self._full = self._full_rates(goes_on=samples is not None)
        warmup = recipe.warmup_samples if recipe is not None else 0
        self._peaks = retimed.peak_rates(warmup) if retimed is not None else []
        for group, rate in zip(optimizer.param_groups, self._full):
            group.setdefault("initial_lr", rate)  # schedulers to come start from the full rate
        self._written = [_rate(group) for group in optimizer.param_groups]
        if samples is None or self._owns:
            self._write(self._rates())
        self._hooks = (
            optimizer.register_step_pre_hook(lambda *_: self._take_in()),
            optimizer.register_step_post_hook(lambda *_: self._advance()),
        )

    def _full_rates(self, *, goes_on: bool) -> list[float]:
        """Of the groups as they are; a decay begins where schedulers do, whatever these made of the rate."""
        groups = self.optimizer.param_groups
        if self._retimed is not None:
            return [height * factor for height, factor in zip(self._retimed.heights(), self._factors)]
        if goes_on or (self._recipe is not None and self._recipe.decay is not None):
            return [_full_rate(group) for group in groups]
        return [_rate(group) for group in groups]

    def is_for(self, recipe: Recipe) -> bool:
        """Whether that recipe's warmup and decay are the ones that it follows."""
        mine = self._recipe
        return mine is not None and _schedule(mine) == _schedule(recipe)

    def stop(self) -> None:
        """Drive no longer; the rates stay as they are."""
        for hook in self._hooks:
            hook.remove()

    @property
    def _owns(self) -> bool:
        """Whether the rates are its own for the whole run."""
        return self._retimed is not None or (self._recipe is not None and self._recipe.decay is not None)

    def get_last_lr(self) -> list[float]:
        """The learning rate of each group for the next step."""
        return [_rate(group) for group in self.optimizer.param_groups]

    def step(self) -> None:
        """Does nothing but say so: the optimizer's own steps advance it."""
        warnings.warn("kit.scheduler advances by itself: leave its step() out", AutotuneWarning, stacklevel=2)

    def take_over(self, scheduler: lr_scheduler.LRScheduler) -> None:
        """From here on the user's own scheduler only shows what this one does.

        Raises:
            UsageError: for another than the one that is driven.
        """
        if self._retimed is None or not self._retimed.is_like(scheduler):
            raise UsageError(
                "the optimizer follows another schedule than your scheduler",
                why="a kit of the same optimizer was made before, without this scheduler",
                fix="pass the scheduler of that kit, or make optimizer, scheduler and kit anew",
            )
        hand_over(scheduler)
        self._shown_in.add(scheduler)
        self._take_in()
        self._write(self._rates())  # one that was just made has set the rates that it starts from

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
            UsageError: where one of them drives a scheduler of the user's, and the other does not, or one
                with other param groups.
        """
        if (self._retimed is None) != (state["retimed"] is None):
            raise UsageError(
                "the saved schedule is not of this kit",
                why="one of them drives a scheduler of yours, and the other does not",
                fix="make the kit with the scheduler that the saved one was made with",
            )
        if self._retimed is not None and len(state["retimed"]["groups"]) != len(self._retimed.rates()):
            raise UsageError(
                "the saved schedule is of other param groups",
                why=f"your scheduler was made with {len(state['retimed']['groups'])}, and here with "
                f"{len(self._retimed.rates())}",
                fix="make the optimizer as it was made then, and add the other groups after the kit",
            )
        self.samples = state["samples"]
        self._full, self._written = list(state["full"]), list(state["written"])
        self._peaks = list(state["peaks"])
        if self._retimed is not None:
            self._retimed.load_state_dict(state["retimed"])
        self._show()

    def _take_in(self) -> None:
        """Before a step: what was loaded into the optimizer since the last one, and what was added to it."""
        self._follow_checkpoint()
        for group in self.optimizer.param_groups[len(self._full) :]:
            share, full = self._share(), _full_rate(group)
            shared = self._shared_with(group)
            if shared is not None:
                group["lr"], full = group["lr"].clone(), shared
            elif not math.isclose(_rate(group), full * share, rel_tol=1e-6):  # no copy of another group
                full = _rate(group)
            group.setdefault("initial_lr", full)
            self._full.append(full)
            self._written.append(full * share)
            self._set(group, full * share, full)

    def _shared_with(self, group: Mapping[str, Any]) -> float | None:
        """The full rate of the group whose very tensor this one has for its rate: the optimizer's default."""
        if not isinstance(group["lr"], torch.Tensor):
            return None
        known = zip(self.optimizer.param_groups, self._full)
        return next((full for one, full in known if one["lr"] is group["lr"]), None)

    def _advance(self) -> None:
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
        self._full = [_full_rate(group) for group in groups]
        self._written = [_rate(group) for group in groups]

    def _warm(self, samples: int) -> float:
        return 1.0 if self._recipe is None else warmup_factor(samples, self._recipe)

    def _adopt(self, before: int) -> None:
        """Take over what another scheduler made of the rates since they were written."""
        for index, group in enumerate(self.optimizer.param_groups):
            rate, written = float(group["lr"]), self._written[index]
            if not math.isclose(rate, written, rel_tol=1e-6):
                self._full[index] = rate if rate > written else rate / self._warm(before)

    def _rates(self) -> list[float]:
        known = [] if self._retimed is None else self._known_rates(self._retimed)
        return known + [full * self._share() for full in self._full[len(known) :]]

    def _share(self) -> float:
        """The part of its full rate that a group takes now; of one that `retimed` does not know, if there."""
        if self._retimed is None:
            return 1.0 if self._recipe is None else schedule_factor(self.samples, self._recipe)
        known = self._known_rates(self._retimed)
        shares = [rate / full for rate, full in zip(known, self._full) if full]
        return shares[-1] if shares else 1.0

    def _known_rates(self, retimed: Retimed) -> list[float]:
        """Of the groups that the user's scheduler was made with."""
        retimed.advance_to(self.samples)
        retimed.cycle_momentum(self.optimizer.param_groups)
        rates = retimed.rates()
        if self._recipe is not None and self.samples < self._recipe.warmup_samples:
            warm = self._warm(self.samples)
            rates = [min(rate, peak * warm) for rate, peak in zip(rates, self._peaks)]
        return [rate * factor for rate, factor in zip(rates, self._factors)]

    def _write(self, rates: Sequence[float]) -> None:
        for group, rate, full in zip(self.optimizer.param_groups, rates, self._full):
            self._set(group, rate, full)
        self._written = list(rates)
        self._show()

    def _set(self, group: dict[str, Any], rate: float, full: float) -> None:
        set_rate(group, rate)
        group[SCHEDULED], group[FULL] = self.samples, full
        if not self._owns and self._warm(self.samples) == 1.0:
            del group[FULL]  # from here on the rate is what it is, and others may lower it

    def _show(self) -> None:
        if self._retimed is not None:
            for scheduler in self._shown_in:
                self._retimed.show_in(scheduler, self.optimizer)


def end_schedule(optimizer: Optimizer) -> None:
    """What a schedule of a kit has made of the learning rates is undone, and forgotten."""
    for group in optimizer.param_groups:
        counted, full = group.pop(SCHEDULED, None), group.pop(FULL, None)
        if counted is not None and SCALED_BY not in group:
            full = group.get("initial_lr")  # a checkpoint of a version that kept the full rate there
        if full is not None:
            # OneCycleLR starts far below its height; a warmup may have met what others lowered meanwhile.
            set_rate(group, min(full, float(group.get("initial_lr", full))))


def set_rate(group: dict[str, Any], rate: float) -> None:
    """Give a param group a learning rate; one that is a tensor stays the same tensor."""
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def _rate(group: Mapping[str, Any]) -> float:
    return float(group["lr"])


def _full_rate(group: Mapping[str, Any]) -> float:
    """What the schedule that wrote the group's rate took part of."""
    return float(group.get(FULL, group.get("initial_lr", group["lr"])))


def _schedule(recipe: Recipe) -> tuple[Any, ...]:
    decay = None if recipe.decay is None else replace(recipe.decay, rule="")
    return recipe.warmup_samples, warmup_start(recipe), decay
