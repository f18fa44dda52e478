"""A second recipe for an optimizer and a model that have one: gone on from, left alone or refused."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
import workloads as w
from torch import nn
from torch.optim import lr_scheduler

from autotune import kit as kits
from autotune.errors import UsageError
from autotune.kit import Kit
from autotune.measure.models import batch_norm_momenta
from autotune.outcome import Decay, Recipe
from autotune.settings import Settings

make_kit = partial(kits.make_kit, device="cpu")
"""Where the loops written by hand are."""

WARMUP: dict[str, Any] = {"warmup_samples": 256 * 8}
DECAY: dict[str, Any] = {"decay": Decay(shape="cosine", samples=256 * 16)}
BEFORE: dict[str, dict[str, Any]] = {"none": {}, "warmup": WARMUP, "decay": DECAY, "scheduler": {}}
"""What the first recipe moves the rate by."""


def recipe(own: int, size: int, *, factor: float | None = None, lr: float = 0.1, **changes: Any) -> Recipe:
    """From batches of `own` to those of `size`, linearly; BatchNorm goes with it."""
    k = size / own if factor is None else factor
    return Recipe(
        batch_size=size,
        reference_batch_size=own,
        learning_rates=(lr * k,),
        reference_learning_rates=(lr,),
        lr_rule="linear",
        batch_norm_momenta=(1 - 0.9 ** (size / own),),
        reference_batch_norm_momenta=(0.1,),
        **changes,
    )


def kit_of(
    given: Recipe | None, model: nn.Module, optimizer: Any, scheduler: Any = None, size: int = 8
) -> Kit:
    settings = Settings.from_flat({"batch_size": given.batch_size if given else size})
    return make_kit(settings, given, model, optimizer, scheduler=scheduler)


def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = w.Net()
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def begun(name: str, steps: int = 3) -> tuple[nn.Module, torch.optim.Optimizer]:
    """After some steps of a recipe from 32 to 256."""
    model, optimizer = fresh()
    scheduler = (lambda o: lr_scheduler.StepLR(o, step_size=16)) if name == "scheduler" else None
    kit_of(recipe(32, 256, **BEFORE[name]), model, optimizer, scheduler)
    stepped(optimizer, steps)
    return model, optimizer


def rate(optimizer: Any) -> float:
    return float(optimizer.param_groups[0]["lr"])


def stepped(optimizer: Any, steps: int) -> list[float]:
    """The rate before each step."""
    found = []
    for _ in range(steps):
        found.append(rate(optimizer))
        optimizer.step()
    return found


def momentum(model: nn.Module) -> float:
    (one,) = batch_norm_momenta([model])
    return one


@pytest.mark.parametrize("name", BEFORE)
@pytest.mark.parametrize(
    "other",
    [recipe(32, 128), recipe(64, 256), recipe(32, 256, factor=4.0, **WARMUP)],
    ids=["size", "own", "rate"],
)
def test_a_recipe_for_other_numbers_than_there_are_is_refused(name: str, other: Recipe) -> None:
    """It would be multiplied onto the first, or left out in silence; nothing is changed by the attempt."""
    model, optimizer = begun(name)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(UsageError) as raised:
        kit_of(other, model, optimizer)
    assert "256 samples" in raised.value.why
    assert "anew" in raised.value.fix
    assert optimizer.state_dict() == before
    assert momentum(model) == pytest.approx(1 - 0.9**8)
    twin = begun(name)[1]
    assert stepped(optimizer, 8) == stepped(twin, 8)


@pytest.mark.parametrize("name", BEFORE)
@pytest.mark.parametrize("saved", [False, True])
def test_a_recipe_that_begins_where_the_first_led_goes_on_from_there(name: str, saved: bool) -> None:
    """Tuned again later in training: its own schedule, from the first one's full rate, and no other."""
    for changes, expected in (
        ({}, [1.6] * 12),
        ({"warmup_samples": 512 * 4}, [0.8, 1.0, 1.2, 1.4] + [1.6] * 8),
    ):
        model, optimizer = begun(name)
        if saved:
            state, optimizer = optimizer.state_dict(), torch.optim.SGD(model.parameters(), lr=0.1)
            optimizer.load_state_dict(state)
        kit = kit_of(recipe(256, 512, lr=0.8, **changes), model, optimizer)
        assert stepped(optimizer, 6) == pytest.approx(expected[:6])
        assert momentum(model) == pytest.approx(1 - 0.9**16)
        assert (kit.scheduler is None) == (not changes)
        kit = kit_of(recipe(256, 512, lr=0.8, **changes), model, optimizer)
        assert stepped(optimizer, 6) == pytest.approx(expected[6:])
        assert momentum(model) == pytest.approx(1 - 0.9**16)
        with pytest.raises(UsageError):
            kit_of(recipe(32, 256), model, optimizer)


@pytest.mark.parametrize("name", ["warmup", "decay", "scheduler"])
def test_the_second_recipes_samples_are_counted(name: str) -> None:
    """From 0, as many to a step as it has; a further kit of it has the same schedule."""
    model, optimizer = begun(name)
    kit = kit_of(recipe(256, 512, lr=0.8, **WARMUP), model, optimizer)
    assert kit.scheduler is not None
    optimizer.step()
    assert kit.scheduler.samples == 512
    again = kit_of(recipe(256, 512, lr=0.8, **WARMUP), model, optimizer)
    assert again.scheduler is kit.scheduler


def test_the_same_batch_size_with_a_decay_goes_on_too() -> None:
    """The decay begins at the full rate, where the first recipe's own had the rate by half down."""
    decayed = recipe(256, 256, lr=0.8, decay=Decay(shape="polynomial", samples=256 * 4))
    for name in BEFORE:
        model, optimizer = begun(name)
        for _ in range(2):
            kit_of(decayed, model, optimizer)
            found = stepped(optimizer, 2)
        assert found == pytest.approx([0.4, 0.2])
        assert momentum(model) == pytest.approx(1 - 0.9**8)


@pytest.mark.parametrize("lowered", [False, True])
def test_a_decay_may_be_added_to_the_same_scaling(lowered: bool) -> None:
    """Nothing is scaled once more; it begins at the rate that schedulers start from, and counts from 0."""
    model, optimizer = begun("none")
    if lowered:
        scheduler = lr_scheduler.StepLR(optimizer, step_size=1)
        optimizer.step()
        scheduler.step()
    with_decay = recipe(32, 256, decay=Decay(shape="polynomial", samples=256 * 4))
    kit_of(with_decay, model, optimizer)
    assert stepped(optimizer, 4) == pytest.approx([0.8, 0.6, 0.4, 0.2])
    kit_of(with_decay, model, optimizer)
    assert rate(optimizer) == 0.0


@pytest.mark.parametrize("name", ["warmup", "decay"])
def test_another_schedule_for_the_same_scaling_is_refused(name: str) -> None:
    """The first one is under way: neither is it what is asked for, nor has it led to a whole rate."""
    model, optimizer = begun(name)
    with pytest.raises(UsageError) as raised:
        kit_of(recipe(32, 256, warmup_samples=256 * 40), model, optimizer)
    assert "schedule" in raised.value.what
    assert raised.value.fix


def test_what_another_scheduler_lowered_after_a_warmup_stays_lowered() -> None:
    """It steps on from there: the rate of the moment is scaled, as its base is."""
    model, optimizer = begun("warmup", 8)
    scheduler = lr_scheduler.StepLR(optimizer, step_size=1)
    optimizer.step()
    scheduler.step()
    assert rate(optimizer) == pytest.approx(0.08)
    kit_of(recipe(256, 512, lr=0.8), model, optimizer)
    assert rate(optimizer) == pytest.approx(0.16)


@pytest.mark.parametrize("name", BEFORE)
def test_a_scheduler_for_the_second_recipe_starts_from_the_full_rate(name: str) -> None:
    """Made by the kit, where another schedule had moved the rate; it counts the first one's batches."""
    model, optimizer = begun(name)
    kit = kit_of(
        recipe(256, 512, lr=0.8), model, optimizer, lambda o: lr_scheduler.LinearLR(o, 0.5, total_iters=4)
    )
    assert kit.scheduler is not None
    assert stepped(optimizer, 4) == pytest.approx([0.8, 1.2, 1.6, 1.6])


@pytest.mark.parametrize("name", BEFORE)
def test_a_scheduler_made_from_a_rate_on_its_way_is_refused(name: str) -> None:
    """What it took for the start was a moment of the first one; where that had none, it is as good as any."""
    model, optimizer = begun(name)
    scheduler = lr_scheduler.StepLR(optimizer, step_size=4)
    if name == "none":
        kit_of(recipe(256, 512, lr=0.8), model, optimizer, scheduler)
        assert stepped(optimizer, 3) == pytest.approx([1.6, 1.6, 0.16])
        return
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(UsageError) as raised:
        kit_of(recipe(256, 512, lr=0.8), model, optimizer, scheduler)
    assert "function" in raised.value.fix
    assert optimizer.state_dict() == before


@pytest.mark.parametrize("saved", [False, True])
def test_a_recipe_after_kits_without_one_takes_the_drive(saved: bool) -> None:
    """A scheduler was moved for the user's own batches: it is no longer, nor are those samples counted."""
    for changes, expected in (
        ({"warmup_samples": 64 * 4}, [0.1, 0.125, 0.15, 0.175, 0.2]),
        ({"decay": Decay(shape="polynomial", samples=64 * 4)}, [0.2, 0.15, 0.1, 0.05, 0.0]),
    ):
        model, optimizer = fresh()
        kit_of(None, model, optimizer, lambda o: lr_scheduler.ExponentialLR(o, 0.5))
        stepped(optimizer, 2)
        assert rate(optimizer) == pytest.approx(0.025)
        if saved:
            state, optimizer = optimizer.state_dict(), torch.optim.SGD(model.parameters(), lr=0.1)
            optimizer.load_state_dict(state)
        kit = kit_of(recipe(32, 64, **changes), model, optimizer)
        assert stepped(optimizer, 5) == pytest.approx(expected)
        assert kit.scheduler is not None
        assert kit.scheduler.samples == 64 * (5 if "decay" in changes else 4)


def test_kits_without_a_recipe_leave_what_drives_alone() -> None:
    """They leave learning alone, in the middle of a warmup too."""
    model, optimizer = begun("warmup")
    kit_of(None, model, optimizer, size=256)
    assert stepped(optimizer, 8) == stepped(begun("warmup")[1], 8)


@pytest.mark.parametrize("name", ["none", "warmup", "decay"])
def test_checkpoints_without_the_later_marks_still_work(name: str) -> None:
    """They say for which batch size they were scaled, and how many samples were counted: no more."""
    state = begun(name)[1].state_dict()
    expected = stepped(begun(name)[1], 8)
    for group in state["param_groups"]:
        del group["scaled_by"]
        group.pop("scheduled_lr", None)
    for given, first in (
        (recipe(32, 256, **BEFORE[name]), expected),
        (recipe(256, 512, lr=0.8), [1.6] * 8),
        (recipe(32, 128), None),
    ):
        model, optimizer = fresh()
        optimizer.load_state_dict(copy.deepcopy(state))
        if first is None:
            with pytest.raises(UsageError):
                kit_of(given, model, optimizer)
        else:
            kit_of(given, model, optimizer)
            assert stepped(optimizer, 8) == pytest.approx(first)


def test_a_new_optimizer_does_not_hide_what_the_model_has() -> None:
    """BatchNorm has the first recipe's momentum: it goes on from that, or the recipe is refused whole."""
    model, _ = begun("none")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(UsageError, match="BatchNorm"):
        kit_of(recipe(32, 128), model, optimizer)
    assert rate(optimizer) == 0.1
    kit_of(recipe(256, 512), model, optimizer)
    assert momentum(model) == pytest.approx(1 - 0.9**16)
    assert rate(optimizer) == pytest.approx(0.2)


def test_a_group_added_between_kits_keeps_its_rate() -> None:
    """It came after the scaling: the next kit of the same recipe scales neither it nor the others again."""
    model, optimizer = begun("none")
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(()))], "lr": 0.3})
    kit_of(recipe(32, 256), model, optimizer)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.8, 0.3])
    kit_of(recipe(256, 512, lr=0.8), model, optimizer)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1.6, 0.6])
