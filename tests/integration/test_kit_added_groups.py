"""Param groups that are added to an optimizer whose learning rates a kit moves."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from autotune import kit as kits
from autotune.errors import UsageError
from autotune.kit import Kit
from autotune.outcome import Decay, Recipe
from autotune.settings import Settings

make_kit = partial(kits.make_kit, device="cpu")
"""Where the loops written by hand are."""

SCHEDULES: dict[str, Any] = {
    "warmup": {"warmup_samples": 80, "warmup_start": 0.25},
    "decay": {"decay": Decay(shape="cosine", samples=160)},
    "both": {"warmup_samples": 80, "warmup_start": 0.25, "decay": Decay(shape="polynomial", samples=160)},
}
SCHEDULERS: dict[str, Any] = {
    "step": lambda o: lr_scheduler.StepLR(o, step_size=16),
    "linear": lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=32),
    "one_cycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=41, cycle_momentum=False),
}


class Body(nn.Module):
    """Two weights, the second of which is trained later; each has a gradient of 1."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.zeros(()))
        self.later = nn.Parameter(torch.zeros(()))
        for weight in self.parameters():
            weight.grad = torch.ones(())


def kit_of(scheduler: Any = None, **changes: Any) -> Kit:
    """Batches of 16 where the user has 4, so that 0.1 becomes 0.4."""
    model = Body()
    recipe = Recipe(
        batch_size=16,
        reference_batch_size=4,
        learning_rates=(0.4,),
        reference_learning_rates=(0.1,),
        lr_rule="linear",
        **changes,
    )
    optimizer = torch.optim.SGD([model.first], lr=0.1)
    return make_kit(Settings.from_flat({"batch_size": 16}), recipe, model, optimizer, scheduler=scheduler)


def add(kit: Kit, **options: Any) -> None:
    kit.optimizer.add_param_group({"params": [kit.model.later], **options})


def moved(kit: Kit, steps: int) -> list[tuple[float, ...]]:
    """How far each step moves the weights: the rates that were really taken."""
    found = []
    for _ in range(steps):
        before = [weight.item() for weight in kit.model.parameters()]
        kit.optimizer.step()
        found.append(tuple(old - weight.item() for old, weight in zip(before, kit.model.parameters())))
    return found


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_group_that_is_added_follows_the_recipes_schedule(name: str) -> None:
    """From its first step on it has the part of its own rate that the others have of theirs."""
    kit = kit_of(**SCHEDULES[name])
    moved(kit, 2)
    add(kit, lr=0.2)
    for first, later in moved(kit, 10):
        assert later == pytest.approx(first / 2, abs=1e-7)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("warmup", [{}, SCHEDULES["warmup"]])
def test_a_group_that_is_added_follows_the_users_scheduler(name: str, warmup: Any) -> None:
    """A scheduler of torch's cannot take it in: it goes with the last group that the scheduler knows."""
    kit = kit_of(SCHEDULERS[name], **warmup)
    moved(kit, 2)
    add(kit, lr=0.2)
    for first, later in moved(kit, 10):
        assert later == pytest.approx(first / 2, abs=1e-7)


def test_a_group_that_is_a_copy_has_the_rate_of_its_like() -> None:
    """With all that is in it but the parameters; not where it was given a rate of its own."""
    for own in (None, 0.2):
        kit = kit_of(**SCHEDULES["warmup"])
        moved(kit, 2)
        like = {name: value for name, value in kit.optimizer.param_groups[0].items() if name != "params"}
        add(kit, **{**like, **({"lr": own} if own else {})})
        for first, later in moved(kit, 5):
            assert later == pytest.approx(first / 2 if own else first)


def test_another_scheduler_may_lower_what_was_added() -> None:
    """A warmup of the kit's takes that over, as it does for groups that were there."""
    kit = kit_of(**SCHEDULES["warmup"])
    moved(kit, 2)
    add(kit, lr=0.4)
    moved(kit, 1)
    kit.optimizer.param_groups[1]["lr"] *= 0.5
    for first, later in moved(kit, 5)[1:]:
        assert later == pytest.approx(first / 2)


@pytest.mark.parametrize("scheduler", [None, SCHEDULERS["step"]])
def test_a_run_with_an_added_group_goes_on_where_it_was_saved(scheduler: Any) -> None:
    """By the kit's state, or the optimizer's own, in a kit that took the same group in."""
    kit = kit_of(scheduler, **SCHEDULES["warmup"])
    moved(kit, 2)
    add(kit, lr=0.2)
    moved(kit, 1)
    saved = copy.deepcopy(kit.state_dict())
    expected = moved(kit, 5)
    for whole in (True, False):
        other = kit_of(scheduler, **SCHEDULES["warmup"])
        add(other, lr=0.3)
        other.load_state_dict(saved) if whole else other.optimizer.load_state_dict(saved["optimizers"][""])
        found = moved(other, 5)
        assert found == [pytest.approx(step, abs=1e-6) for step in expected]


def test_a_state_with_other_groups_under_the_scheduler_is_refused() -> None:
    """A group that the scheduler knew nothing of when it was saved is added after the kit is made."""
    kit = kit_of(SCHEDULERS["step"])
    add(kit, lr=0.2)
    moved(kit, 1)
    model = Body()
    optimizer = torch.optim.SGD([{"params": [model.first]}, {"params": [model.later]}], lr=0.1)
    other = make_kit(kit.settings, kit.recipe, model, optimizer, scheduler=SCHEDULERS["step"])
    with pytest.raises(UsageError) as raised:
        other.load_state_dict(kit.state_dict())
    assert "after the kit" in raised.value.fix


def test_a_group_that_is_added_leaves_a_shared_tensor_rate_alone() -> None:
    """Torch gives it the very tensor of the optimizer's default rate, which the other groups have too."""
    model = Body()
    optimizer = torch.optim.Adam([model.first], lr=torch.tensor(0.1))
    scheduler = lr_scheduler.ExponentialLR(optimizer, 0.5)
    kit = make_kit(Settings.from_flat({"batch_size": 4}), None, model, optimizer, scheduler=scheduler)
    moved(kit, 2)
    optimizer.add_param_group({"params": [model.later]})
    moved(kit, 2)
    assert [float(group["lr"]) for group in optimizer.param_groups] == pytest.approx([0.00625, 0.00625])
