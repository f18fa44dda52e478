"""Schedulers of the user's own: re-timed by samples, taken over, or scaled where they stay."""

from __future__ import annotations

import copy
import warnings
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch.optim import Optimizer, lr_scheduler

from autotune.errors import AutotuneWarning, UsageError

SchedulerInterval = Literal["step", "epoch"]
"""How often the user's own loop steps a scheduler."""
_CYCLED = ("lr", "momentum", "betas")
"""What torch's schedulers move."""
_MOVING = ("last_epoch", "_step_count", "_last_lr", "T_cur", "T_i")
"""What moves in torch's schedulers themselves."""
_PASSING = (*_MOVING, "base_lrs", "_is_initial", "_get_lr_called_within_step")
"""What does not tell one scheduler from another: a recipe may have scaled the rates in between."""
_RATES = (
    (object, "base_lrs"),
    (lr_scheduler.CyclicLR, "max_lrs"),
    (lr_scheduler.CosineAnnealingLR, "eta_min"),
    (lr_scheduler.CosineAnnealingWarmRestarts, "eta_min"),
    (lr_scheduler.ReduceLROnPlateau, "min_lrs"),
)
"""What schedulers compute learning rates from, by their kind."""
_KIND, _TOLD = "_autotune_kind", "_autotune_told"
"""Attributes of the class of a scheduler that was handed over: the class before, and whether it warned."""


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
        self._start = copy.deepcopy((self._stand_in, self._scheduler))
        """No scheduler of torch's goes back."""
        self._step_samples = step_samples
        self._steps = 0
        self._ended = False

    def rates(self) -> list[float]:
        """Each group's learning rate as the user's own batch would have it now."""
        return [float(group["lr"]) for group in self._stand_in.param_groups]

    def heights(self) -> list[float]:
        """Each group's learning rate that the present one is a part of, for the user's own batch."""
        return [float(g.get("max_lr", g.get("initial_lr", g["lr"]))) for g in self._stand_in.param_groups]

    def advance_to(self, samples: int) -> None:
        """Go to where the scheduler would be after so many samples; back by the way from its start.

        Where the last batch of an epoch is smaller, epochs have a few samples more in larger batches. A
        scheduler that takes no step beyond its total (OneCycleLR) then stays where it ended.
        """
        steps = samples // self._step_samples
        if steps < self._steps:
            self._stand_in, self._scheduler = copy.deepcopy(self._start)
            self._steps, self._ended = 0, False
        for _ in range(steps - self._steps):
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

    def is_like(self, scheduler: lr_scheduler.LRScheduler) -> bool:
        """Whether it is a scheduler of the same class, made with the same numbers."""
        return _alike(self._start[1], scheduler)

    def show_in(self, scheduler: lr_scheduler.LRScheduler, optimizer: Optimizer) -> None:
        """Let the user's own scheduler say where this one is, and what the learning rates really are."""
        _show(self._scheduler, scheduler)
        rates = [group["lr"] for group in optimizer.param_groups]
        scheduler._last_lr = [rate.clone() if torch.is_tensor(rate) else rate for rate in rates]

    def state_dict(self) -> dict[str, Any]:
        """Where it is."""
        groups = [{name: g[name] for name in _CYCLED if name in g} for g in self._stand_in.param_groups]
        return {"steps": self._steps, "scheduler": self._scheduler.state_dict(), "groups": groups}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there, the scheduler being made as it was."""
        self._steps, self._ended = state["steps"], False
        self._scheduler.load_state_dict(state["scheduler"])
        for group, saved in zip(self._stand_in.param_groups, state["groups"]):
            group.update(saved)


def _alike(mine: Any, yours: Any) -> bool:
    """By what they were told, as far as it can be compared: functions cannot."""
    if not isinstance(yours, type(mine)):
        return False
    told = [name for name in vars(mine) if name not in _PASSING and _is_plain(vars(mine)[name])]
    if any(vars(yours).get(name) != vars(mine)[name] for name in told):
        return False
    inner = zip(getattr(mine, "_schedulers", ()), getattr(yours, "_schedulers", ()))
    return all(_alike(one, other) for one, other in inner)


def _is_plain(value: Any) -> bool:
    whole_numbers = isinstance(value, list) and all(isinstance(one, int) for one in value)
    return whole_numbers or isinstance(value, (bool, int, float, str, tuple, Counter))


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


def given_schedulers(
    scheduler: Any, optimizers: Mapping[str, Optimizer], interval: SchedulerInterval
) -> dict[str, Any]:
    """The user's schedulers, or the functions that make them, by the names of their optimizers.

    Args:
        scheduler: one, a function that makes one, or a dict of either by the optimizers' names.
        optimizers: by name.
        interval: how often the user steps them.

    Raises:
        UsageError: for what is no scheduler of one of the optimizers, nor makes one that can be driven.
    """
    if scheduler is None:
        return {}
    if not isinstance(scheduler, Mapping) and len(optimizers) > 1:
        raise UsageError(
            "one scheduler was given, and there are several optimizers",
            why=f"optimizers: {', '.join(optimizers)}",
            fix="pass a dict with the optimizers' names as keys",
        )
    by_name = scheduler if isinstance(scheduler, Mapping) else dict.fromkeys(optimizers, scheduler)
    unknown = [str(name) for name in by_name if name not in optimizers]
    if unknown:
        raise UsageError(f"there is no optimizer called {', '.join(unknown)} to schedule")
    for name, given in by_name.items():
        if not is_function(given):
            _check_of(given, optimizers[name])
        elif interval == "epoch":
            raise _would_be_lost("you step it by epochs")
    return dict(by_name)


def is_function(given: Any) -> bool:
    """Whether it makes a scheduler, rather than being one: a function, or a class."""
    return callable(given) and (isinstance(given, type) or not hasattr(given, "step"))


def make_scheduler(given: Any, optimizer: Optimizer) -> Any:
    """The scheduler that was given, or made by the function that was; None where none was.

    Raises:
        UsageError: for a function that makes something else, or a scheduler that the kit does not drive:
            nobody else has it. The param groups are then as they were.
    """
    if not is_function(given):
        return given
    before = [
        {name: value if name == "params" else copy.deepcopy(value) for name, value in group.items()}
        for group in optimizer.param_groups
    ]
    made = given(optimizer)
    _check_of(made, optimizer)
    if is_known(made):
        return made
    for group, values in zip(optimizer.param_groups, before):
        group.clear()
        group.update(values)  # the user's own next one starts from these, not from where this one went
    raise _would_be_lost(f"{type(made).__name__} is not known to count steps alone, so the kit does not")


def _check_of(given: Any, optimizer: Optimizer) -> None:
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


def _would_be_lost(why: str) -> UsageError:
    return UsageError(
        "a scheduler that is yours to step is not made by the kit",
        why=f"{why}, and you could not: it would stay where it starts",
        fix="make it yourself: from your optimizer, and pass it; or after the kit, from `kit.optimizer`",
    )


def is_known(scheduler: Any) -> bool:
    """Whether a scheduler is torch's own and counts steps alone, so that it can be re-timed."""
    if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
        return False
    inner = getattr(scheduler, "_schedulers", ())
    return type(scheduler).__module__ == lr_scheduler.__name__ and all(is_known(one) for one in inner)


def hand_over(scheduler: lr_scheduler.LRScheduler) -> None:
    """Make the user's own calls of `scheduler.step()` do nothing but warn, once: twice is too often.

    By a class of its own: what is in the scheduler itself is what its `state_dict()` saves.
    """
    kind = type(scheduler)
    if not hasattr(kind, _KIND):
        like = {"__module__": kind.__module__, "__doc__": kind.__doc__}
        own = {"step": _warn, "__reduce_ex__": _reduce, _KIND: kind, _TOLD: False}
        scheduler.__class__ = type(kind.__name__, (kind,), {**like, **own})


def _show(mine: Any, yours: Any) -> None:
    """What moves, and no more: not every scheduler can be saved."""
    vars(yours).update({name: vars(mine)[name] for name in _MOVING if name in vars(mine)})
    for inner, shown in zip(getattr(mine, "_schedulers", ()), getattr(yours, "_schedulers", ())):
        _show(inner, shown)


def _warn(scheduler: Any, *_: Any, **__: Any) -> None:
    kind = type(scheduler)
    if not getattr(kind, _TOLD):
        setattr(kind, _TOLD, True)
        what = f"the kit advances your {kind.__name__}: leave its step() out"
        warnings.warn(what, AutotuneWarning, stacklevel=2)


def _reduce(scheduler: Any, protocol: Any) -> tuple[Any, ...]:
    """Copied and pickled as what it was: the copy's optimizer is another one, without a kit."""
    # By the first protocol whatever is asked for: the later ones let no object go by another class.
    reduced: Any = object.__reduce_ex__(scheduler, 0)
    maker, (_, *given), *state = reduced
    return (maker, (getattr(scheduler, _KIND), *given), *state)


def _cycles(scheduler: Any) -> bool:
    inner = getattr(scheduler, "_schedulers", ())
    return bool(getattr(scheduler, "cycle_momentum", False)) or any(_cycles(one) for one in inner)


def scale_base(scheduler: Any, factors: Callable[[int], float]) -> None:
    """Let a scheduler that stays the user's own compute from the scaled learning rates.

    What OneCycleLR computes from is in the optimizer's param groups.
    """
    for kind, name in _RATES:
        rates = getattr(scheduler, name, None) if isinstance(scheduler, kind) else None
        if isinstance(rates, list):
            setattr(scheduler, name, [rate * factors(index) for index, rate in enumerate(rates)])
        elif rates is not None:
            setattr(scheduler, name, rates * factors(0))  # one for all groups
    for inner in getattr(scheduler, "_schedulers", ()):
        scale_base(inner, factors)
