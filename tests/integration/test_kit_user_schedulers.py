"""Schedulers of the user's own beside a kit: those that it drives, and those that stay to be stepped."""

from __future__ import annotations

import copy
import warnings
from functools import partial
from typing import Any

import pytest
import torch
import workloads as w
from torch.optim import lr_scheduler

from autotune import kit as kits
from autotune.errors import AutotuneWarning
from autotune.kit import Kit
from autotune.outcome import Recipe
from autotune.settings import Settings

REFERENCE = 4
STEPS = 40

make_kit = partial(kits.make_kit, device="cpu")
"""Where the loops written by hand are."""


class OwnCycle(lr_scheduler.OneCycleLR):
    """Not torch's own, so it is kept."""


KEPT: dict[str, Any] = {
    "one_cycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=STEPS, div_factor=10),
    "own_cycle": lambda o: OwnCycle(o, max_lr=0.1, total_steps=STEPS, div_factor=10),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, base_lr=0.01, max_lr=0.1, step_size_up=8),
    "step": lambda o: lr_scheduler.StepLR(o, step_size=8),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 1 / (1 + epoch)),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=STEPS, eta_min=0.01),
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=16, eta_min=0.01),
    "linear": lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=8),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o,
        [lr_scheduler.LinearLR(o, 0.1, total_iters=8), lr_scheduler.CyclicLR(o, 0.1, 0.3, step_size_up=8)],
        milestones=[8],
    ),
}


def recipe(k: int, **changes: Any) -> Recipe:
    """Linear, without a warmup unless asked."""
    plain: dict[str, Any] = {
        "batch_size": k * REFERENCE,
        "reference_batch_size": REFERENCE,
        "learning_rates": (0.1 * k,),
        "reference_learning_rates": (0.1,),
        "lr_rule": "linear",
    }
    return Recipe(**{**plain, **changes})


def trained() -> tuple[Any, torch.optim.Optimizer]:
    """A model without gradients, so that steps change nothing but rates, and its optimizer."""
    model = w.Net()
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def kit_of(k: int, model: Any, optimizer: Any, scheduler: Any = None, **options: Any) -> Kit:
    """Without a word about what is kept."""
    interval = options.pop("scheduler_interval", "step")
    given = recipe(k, **options) if k > 1 or options else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AutotuneWarning)
        return make_kit(
            Settings.from_flat({"batch_size": k * REFERENCE}),
            given,
            model,
            optimizer,
            scheduler=scheduler,
            scheduler_interval=interval,
        )


def stepped(optimizer: torch.optim.Optimizer, scheduler: Any, steps: int) -> list[float]:
    """The first group's rate before each step; the scheduler is stepped where there is one."""
    found = []
    for _ in range(steps):
        found.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return found


@pytest.mark.parametrize("done", [0, 5])
@pytest.mark.parametrize("name", KEPT)
def test_a_scheduler_that_stays_the_users_runs_at_the_scaled_height(name: str, done: int) -> None:
    """Every rate that it computes is multiplied, peaks and floors too, also where it is under way already."""
    _, plain = trained()
    expected = stepped(plain, KEPT[name](plain), STEPS)
    model, optimizer = trained()
    scheduler = KEPT[name](optimizer)
    stepped(optimizer, scheduler, done)
    kit_of(8, model, optimizer, scheduler, scheduler_interval="epoch")
    found = stepped(optimizer, scheduler, STEPS - done)
    assert found == pytest.approx([8 * rate for rate in expected[done:]])


def test_a_plateau_scheduler_keeps_its_floor_in_proportion() -> None:
    """It lowers the scaled rate to the scaled floor."""
    model, optimizer = trained()
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, min_lr=0.05)
    kit_of(8, model, optimizer, scheduler)
    for _ in range(4):
        scheduler.step(1.0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.4)


def test_a_warmup_leaves_a_kept_scheduler_its_numbers() -> None:
    """OneCycleLR computes from the group's initial rate: the kit's warmup writes none over it."""
    model, optimizer = trained()
    scheduler = KEPT["one_cycle"](optimizer)
    stepped(optimizer, scheduler, 5)
    kit_of(8, model, optimizer, scheduler, scheduler_interval="epoch", warmup_samples=32)
    assert optimizer.param_groups[0]["initial_lr"] == pytest.approx(8 * 0.01)


RETIMED: dict[str, Any] = {
    "step": lambda o: lr_scheduler.StepLR(o, step_size=10),
    "one_cycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.3, total_steps=24),
    "sequential": KEPT["sequential"],
    "multiplicative": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.9),
}


@pytest.mark.parametrize("name", RETIMED)
@pytest.mark.parametrize("k", [1, 2])
def test_an_optimizers_state_of_before_takes_the_scheduler_back(k: int, name: str) -> None:
    """Loaded into the optimizer alone after the scheduler went on, or ended: the same rates come again."""
    model, optimizer = trained()
    kit = kit_of(k, model, optimizer, RETIMED[name])
    stepped(optimizer, None, 12 // k)
    saved = copy.deepcopy(optimizer.state_dict())
    expected = stepped(optimizer, None, 14 // k)
    optimizer.load_state_dict(saved)
    assert stepped(optimizer, None, 14 // k) == pytest.approx(expected)
    assert kit.scheduler is not None
    assert kit.scheduler.samples == 26 // k * k * REFERENCE


def test_a_step_schedule_gone_back_to_has_all_its_steps() -> None:
    """A tenth from step 10 to 20, where the run went back from step 25 to step 12."""
    model, optimizer = trained()
    kit_of(1, model, optimizer, RETIMED["step"])
    stepped(optimizer, None, 12)
    saved = copy.deepcopy(optimizer.state_dict())
    stepped(optimizer, None, 13)
    optimizer.load_state_dict(saved)
    assert stepped(optimizer, None, 9) == pytest.approx([0.01] * 8 + [0.001])


def test_a_kits_state_of_before_takes_an_ended_scheduler_back() -> None:
    """It had taken its last step, and takes the steps before it again."""
    model, optimizer = trained()
    kit = kit_of(1, model, optimizer, RETIMED["one_cycle"])
    stepped(optimizer, None, 12)
    saved = copy.deepcopy(kit.state_dict())
    expected = stepped(optimizer, None, 20)
    kit.load_state_dict(saved)
    assert stepped(optimizer, None, 20) == pytest.approx(expected)
