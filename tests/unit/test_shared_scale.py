"""float16 with several optimizers: the scale moves once for all that share a backward pass."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from autotune.measure.stepkit import StepKit
from autotune.settings import Settings

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ("a", "b")


class Two(nn.Module):
    """The loss is the sum of what two weights make of a number each; its gradients are those numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(()))
        self.b = nn.Parameter(torch.zeros(()))

    def forward(self, factors: Any) -> torch.Tensor:
        """A loss whose gradients are the factors."""
        return self.a * factors[0] + self.b * factors[1]


def kit_of(train_step: Any, *, growth_interval: int = 1, **options: Any) -> StepKit:
    """With a scale of 64, for a model whose weights have an optimizer each."""
    model = Two()
    kit = StepKit(
        models={"": model},
        optimizers_={name: torch.optim.SGD([getattr(model, name)], lr=1.0) for name in NAMES},
        settings=Settings().replace(precision="float16", **options),
        device=torch.device("cpu"),
        train_step=train_step,
    )
    kit.scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=growth_interval)
    return kit


def one_backward(kit: StepKit, factors: Any) -> torch.Tensor:
    """What torch's recipe for several optimizers says: one backward pass, a step for each."""
    kit.zero_grad()
    loss = kit.model(factors)
    kit.backward(loss)
    for name in NAMES:
        kit.optimizer_step(name)
    return loss


def weights(kit: StepKit) -> list[float]:
    return [getattr(kit.model, name).item() for name in NAMES]


def scale(kit: StepKit) -> float:
    assert kit.scaler is not None
    return kit.scaler.get_scale()


@pytest.mark.parametrize("fused", [False, True])
def test_a_scale_that_grows_changes_no_step_of_the_same_backward_pass(fused: bool) -> None:
    """The second optimizer's gradients were scaled as the first one's, whatever comes of the scale."""
    kit = kit_of(one_backward, fused_optimizer=fused)
    for number in range(1, 4):
        kit.step(torch.tensor([1.0, 1.0]))
        assert weights(kit) == [-number, -number]
        assert scale(kit) == 64.0 * 2**number


@pytest.mark.parametrize("clip", [None, 100.0])
def test_an_overflow_in_one_leaves_the_others_step_as_it_is(clip: float | None) -> None:
    """It skips its own step, the scale falls once, and the other takes one of the right length."""

    def train_step(kit: StepKit, factors: Any) -> torch.Tensor:
        kit.zero_grad()
        loss = kit.model(factors)
        kit.backward(loss)
        for name in NAMES:
            kit.optimizer_step(name, clip_grad_norm=clip)
        return loss

    kit = kit_of(train_step)
    kit.step(torch.tensor([float("inf"), 1.0]))
    assert weights(kit) == pytest.approx([0.0, -1.0])
    assert scale(kit) == 32.0


def test_steps_are_counted_once_until_the_scale_grows() -> None:
    """Two optimizers do not make it grow in half the steps."""
    kit = kit_of(one_backward, growth_interval=4)
    for expected in (64.0, 64.0, 64.0, 128.0):
        kit.step(torch.tensor([1.0, 1.0]))
        assert scale(kit) == expected


def test_a_scale_moves_before_the_next_backward_pass() -> None:
    """Players with a backward pass each take turns, however unequal: each has the scale of its own."""
    kit = kit_of(None)
    assert kit.scaler is not None
    twin = copy.deepcopy(kit.model)
    steps = {name: torch.optim.SGD([getattr(twin, name)], lr=1.0) for name in NAMES}
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=1)
    for name in ("a", "a", "b", "a", "b", "b"):
        for model, backward in (
            (kit.model, kit.backward),
            (twin, lambda loss: scaler.scale(loss).backward()),
        ):
            model.zero_grad()
            backward(model(torch.tensor([1.0, 3.0])))
        kit.optimizer_step(name)
        scaler.step(steps[name])
        scaler.update()
    assert weights(kit) == [-3.0, -9.0]
    kit.zero_grad()
    assert kit.scaler.state_dict() == scaler.state_dict()


@pytest.mark.parametrize("clip", [None, 100.0])
def test_a_loss_that_the_loop_scales_itself_meets_the_scale_of_then(clip: float | None) -> None:
    """Whoever scales by `kit.scaler` has it moved with each step: nobody knows of the next backward pass."""
    kit = kit_of(None)
    assert kit.scaler is not None
    for factor, reached in ((1.0, -1.0), (float("inf"), -1.0), (3.0, -4.0)):
        kit.model.zero_grad()
        kit.scaler.scale(kit.model(torch.tensor([factor, 1.0]))).backward()
        kit.optimizer_step("a", clip_grad_norm=clip)
        assert weights(kit) == pytest.approx([reached, 0.0])
    assert scale(kit) == 128.0


@pytest.mark.parametrize("clip", [None, 100.0])
def test_an_optimizer_may_step_again_on_the_same_backward_pass(clip: float | None) -> None:
    """A scaler refuses that until its scale has moved."""
    kit = kit_of(None, growth_interval=1000)
    kit.backward(kit.model(torch.tensor([1.0, 1.0])))
    for _ in range(2):
        kit.optimizer_step("a", clip_grad_norm=clip)
    assert scale(kit) == 64.0


def test_a_whole_step_leaves_nothing_due() -> None:
    """A train_step that steps one of two has moved the scale when it returns: who compares scales sees it."""

    def train_step(kit: StepKit, factors: Any) -> torch.Tensor:
        kit.zero_grad()
        loss = kit.model(factors)
        kit.backward(loss)
        kit.optimizer_step("b")
        return loss

    kit = kit_of(train_step)
    kit.step(torch.tensor([1.0, float("inf")]))
    assert scale(kit) == 32.0
