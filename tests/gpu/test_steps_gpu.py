"""What only a GPU shows of optimizers, steps and switches."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from autotune.kit import make_kit
from autotune.measure.flags import apply_flags, preserved, read_user_flags
from autotune.measure.optimizers import set_fused
from autotune.measure.stepkit import StepKit
from autotune.settings import ComputeSettings, Settings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

Make = Callable[[Any], torch.optim.Optimizer]

FUSED: dict[str, Make] = {
    "SGD": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "Adam": lambda params: torch.optim.Adam(params, lr=0.01),
    "AdamW": lambda params: torch.optim.AdamW(params, lr=0.01),
}


def twins(make: Make) -> tuple[nn.Module, torch.optim.Optimizer, nn.Module, torch.optim.Optimizer]:
    """Two equal models on the GPU, with an optimizer each."""
    torch.manual_seed(0)
    one = nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 2)).cuda()
    other = copy.deepcopy(one)
    return one, make(one.parameters()), other, make(other.parameters())


def squares(model: Any, batch: Any) -> torch.Tensor:
    return model(batch).square().mean()


def kit_of(model: nn.Module, optimizer: torch.optim.Optimizer, **knobs: Any) -> StepKit:
    return StepKit(
        models={"": model},
        optimizers_={"": optimizer},
        settings=Settings().replace(**knobs),
        device=torch.device("cuda", 0),
        loss_of=squares,
    )


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(32, 16, generator=generator) for _ in range(3)]


@pytest.mark.parametrize("name", FUSED)
def test_switching_there_and_back_leaves_nothing_behind(name: str) -> None:
    """The same numbers within rounding, and step counters on the host again: read there, nothing waits."""
    ours, first, theirs, second = twins(FUSED[name])
    for fused in (False, True, False):
        set_fused(first, fused)
        for batch in batches():
            for model, optimizer in ((ours, first), (theirs, second)):
                optimizer.zero_grad()
                squares(model, batch.cuda()).backward()
                optimizer.step()
        counters = [state["step"] for state in first.state.values() if "step" in state]
        assert {counter.device.type for counter in counters} <= {"cuda" if fused else "cpu"}
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_step_is_the_loop_that_a_user_would_write(precision: str) -> None:
    """In every precision, from a batch on the host."""
    ours, first, theirs, second = twins(FUSED["Adam"])
    kit = kit_of(ours, first, precision=precision, non_blocking=True)
    dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision)
    scaler = torch.amp.GradScaler("cuda", enabled=precision == "float16")
    for batch in batches():
        loss = kit.step(batch)
        second.zero_grad()
        with torch.autocast("cuda", dtype=dtype, enabled=dtype is not None):
            expected = squares(theirs, batch.cuda())
        scaler.scale(expected).backward()
        scaler.step(second)
        scaler.update()
        torch.testing.assert_close(loss, expected.detach())
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_fused_step_under_a_scaler_learns_the_same() -> None:
    """The scaler leaves the scaling back to it, once."""
    ours, first, theirs, second = twins(FUSED["AdamW"])
    fused = kit_of(ours, first, precision="float16", fused_optimizer=True)
    plain = kit_of(theirs, second, precision="float16")
    for batch in batches():
        fused.step(batch)
        plain.step(batch)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_tf32_is_on_for_its_trial_alone() -> None:
    """Products lose digits while it is applied, and have them again afterwards."""
    a, b = torch.rand(512, 512, device="cuda"), torch.rand(512, 512, device="cuda")
    exact = (a.double() @ b.double()).float()
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no TF32")

    def error() -> float:
        return float(((a @ b - exact) / exact).abs().max())

    yours = read_user_flags()
    with preserved():
        apply_flags(ComputeSettings(precision="tf32"), yours, "cuda")
        rough = error()
        state = torch.cuda.get_rng_state()
        torch.rand(5, device="cuda")
    assert rough > 10 * error()
    assert torch.equal(torch.cuda.get_rng_state(), state)


def test_a_fused_sgd_that_overflows_first_learns_the_same() -> None:
    """No momentum is left behind by a step that was skipped, whatever the memory held before."""

    def momentum(params: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(params, lr=0.01, momentum=0.9)

    ours, first, theirs, second = twins(momentum)
    fused = kit_of(ours, first, precision="float16", fused_optimizer=True)
    plain = kit_of(theirs, second, precision="float16")
    for kit in (fused, plain):
        kit.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**127)
        held = [torch.full_like(p, float("nan")) for p in kit.model.parameters()]
        del held  # the allocator hands out again what it got back last
        kit.step(batches()[0])
        assert kit.scaler.get_scale() == 2.0**126
        kit.scaler.update(64.0)
        for batch in batches():
            kit.step(batch)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_momenta_loaded_on_the_host_follow_the_model_to_the_gpu() -> None:
    """A kit moves the model; an optimizer that was made and loaded before steps on from where it was."""
    model = nn.Linear(16, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    squares(model, batches()[0]).backward()
    optimizer.step()
    held = [optimizer.state[p]["momentum_buffer"].clone() for p in model.parameters()]
    with make_kit(Settings.from_flat({"batch_size": 32}), None, model, optimizer, loss=mse_to_zero) as kit:
        assert all(p.is_cuda for p in model.parameters())
        for p, before in zip(model.parameters(), held, strict=True):
            torch.testing.assert_close(optimizer.state[p]["momentum_buffer"].cpu(), before)
        kit.step((batches()[1], torch.zeros(32, 4)))


def mse_to_zero(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.mse_loss(output, target)
