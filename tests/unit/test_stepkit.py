"""The training step with settings applied, beside loops written by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import workloads as w
from torch import nn
from torch.nn import functional

from autotune.errors import UsageError
from autotune.measure.stepkit import StepKit, is_channels_last, set_memory_format
from autotune.settings import Settings

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def batches(count: int = 4) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [
        (torch.randn(8, 16, generator=generator), torch.randint(0, 4, (8,), generator=generator))
        for _ in range(count)
    ]


def cross_entropy(model: Any, batch: Any) -> torch.Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def kit_of(
    model: nn.Module | dict[str, nn.Module],
    optimizer: torch.optim.Optimizer | dict[str, torch.optim.Optimizer],
    *,
    loss_of: Any = cross_entropy,
    train_step: Any = None,
    **knobs: Any,
) -> StepKit:
    return StepKit(
        models=model if isinstance(model, dict) else {"": model},
        optimizers_=optimizer if isinstance(optimizer, dict) else {"": optimizer},
        settings=Settings().replace(**knobs),
        device=CPU,
        loss_of=None if train_step is not None else loss_of,
        train_step=train_step,
    )


def twins(make: Callable[[Any], torch.optim.Optimizer] = w.adam) -> tuple[Any, Any, Any, Any]:
    """Two equal models, and an optimizer for each."""
    torch.manual_seed(0)
    one = w.Net()
    other = copy.deepcopy(one)
    return one, make(one.parameters()), other, make(other.parameters())


def assert_equal(one: nn.Module, other: nn.Module) -> None:
    """To the last bit, buffers included."""
    for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_step_is_the_loop_that_a_user_would_write(precision: str) -> None:
    """Bit by bit, in every precision; float16 with a scaler, bfloat16 without."""
    ours, our_optimizer, theirs, optimizer = twins()
    kit = kit_of(ours, our_optimizer, precision=precision)
    dtype = PRECISIONS[precision]
    scaler = torch.amp.GradScaler("cpu", enabled=precision == "float16")
    for x, y in batches():
        loss = kit.step((x, y))
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            expected = functional.cross_entropy(theirs(x), y)
        scaler.scale(expected).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(loss, expected.detach())
    assert_equal(ours, theirs)
    assert (kit.scaler is not None) == (precision == "float16")
    if kit.scaler is not None:
        assert kit.scaler.state_dict() == scaler.state_dict()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_forward_runs_in_the_precision_asked_for(precision: str) -> None:
    """And the loss that comes back is in float32, detached."""
    seen = []

    def loss_of(model: Any, batch: Any) -> torch.Tensor:
        output = model(batch[0])
        seen.append(output.dtype)
        return functional.cross_entropy(output, batch[1])

    model = w.Net()
    loss = kit_of(model, w.sgd(model.parameters()), loss_of=loss_of, precision=precision).step(batches()[0])
    assert seen == [PRECISIONS[precision] or torch.float32]
    assert loss.dtype == torch.float32
    assert not loss.requires_grad


def test_gradients_do_not_pile_up() -> None:
    """A step starts without those of the last one, in all optimizers; `zero_grad` drops them."""
    model = w.Net()
    split = {"a": w.sgd(model.body[0].parameters()), "b": w.sgd(model.body[1:].parameters())}
    kit = kit_of(model, split)
    for batch in batches(2):
        kit.step(batch)
    twin = copy.deepcopy(model)
    kit.step(batches()[0])
    twin.zero_grad()
    cross_entropy(twin, batches()[0]).backward()
    for name, p in twin.named_parameters():
        assert torch.equal(p.grad, model.get_parameter(name).grad)
    kit.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_several_optimizers_share_one_scale() -> None:
    """The scale moves once a step, after all of them: they share the loss that it was multiplied with."""
    model = w.Net()
    split = {"a": w.sgd(model.body[0].parameters()), "b": w.sgd(model.body[1:].parameters())}
    kit = kit_of(model, split, precision="float16")
    kit.scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=1)
    before = [p.detach().clone() for p in model.parameters()]
    kit.step(batches()[0])
    assert kit.scaler.get_scale() == 128.0
    moved = [not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True)]
    assert sum(moved) >= len(moved) - 1  # the bias before batch norm has no gradient to speak of


def test_a_step_that_overflowed_is_skipped() -> None:
    """The weights stay and the scale falls, as always with float16."""
    model = w.Net()
    kit = kit_of(model, w.sgd(model.parameters()), precision="float16")
    kit.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    before = copy.deepcopy(list(model.parameters()))
    kit.step(batches()[0])
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert kit.scaler.get_scale() == 2.0**126


@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_first_step_that_overflowed_starts_no_momentum(clip: float | None) -> None:
    """A fused SGD left to itself would keep a buffer that nobody has written, and learn from it."""

    def train_step(kit: StepKit, batch: Any) -> torch.Tensor:
        kit.zero_grad()
        with kit.autocast():
            loss = cross_entropy(kit.model, batch)
        kit.backward(loss)
        kit.optimizer_step(clip_grad_norm=clip)
        return loss

    def momentum(params: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(params, lr=0.05, momentum=0.9, dampening=0.5)

    ours, fused, theirs, plain = twins(momentum)
    kits = [
        kit_of(ours, fused, train_step=train_step, precision="float16", fused_optimizer=True),
        kit_of(theirs, plain, train_step=train_step, precision="float16"),
    ]
    for kit in kits:
        kit.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=2)
        kit.step(batches()[0])
        assert kit.scaler.get_scale() == 2.0**126
        assert not any("momentum_buffer" in state for state in kit.optimizer.state.values())
        kit.scaler.update(4.0)
        for batch in batches():
            kit.step(batch)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_gradients_are_clipped_at_their_true_size(precision: str, fused: bool) -> None:
    """With a scaler they are scaled back first, and not a second time by a fused step."""
    limit = 0.01

    def train_step(kit: StepKit, batch: Any) -> torch.Tensor:
        kit.zero_grad()
        with kit.autocast():
            loss = cross_entropy(kit.model, batch)
        kit.backward(loss)
        kit.optimizer_step(clip_grad_norm=limit)
        return loss

    ours, our_optimizer, theirs, optimizer = twins(w.sgd)
    kit = kit_of(ours, our_optimizer, train_step=train_step, precision=precision, fused_optimizer=fused)
    dtype = PRECISIONS[precision]
    scaler = torch.amp.GradScaler("cpu", enabled=precision == "float16")
    for x, y in batches():
        before = [p.detach().clone() for p in ours.parameters()]
        kit.step((x, y))
        step = torch.cat([(p - old).flatten() for p, old in zip(ours.parameters(), before, strict=True)])
        assert step.norm().item() == pytest.approx(0.05 * limit, rel=1e-3)
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            expected = cross_entropy(theirs, (x, y))
        scaler.scale(expected).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(theirs.parameters(), limit)
        scaler.step(optimizer)
        scaler.update()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_two_players_take_turns(precision: str) -> None:
    """A GAN's step: two models, two optimizers by name, one kit; the same as by hand."""

    def models() -> dict[str, nn.Module]:
        torch.manual_seed(4)
        return {"g": nn.Linear(4, 16), "d": nn.Linear(16, 1)}

    def play(players: Any, optimizers: Any, real: torch.Tensor, autocast: Any, scaler: Any) -> Any:
        fake = players["g"](torch.ones(8, 4))
        optimizers["d"].zero_grad()
        with autocast():
            loss = (players["d"](fake.detach()) - players["d"](real)).mean()
        scaler.scale(loss).backward()
        scaler.step(optimizers["d"])
        scaler.update()
        optimizers["g"].zero_grad()
        with autocast():
            loss = -players["d"](fake).mean()
        scaler.scale(loss).backward()
        scaler.step(optimizers["g"])
        scaler.update()

    def train_step(kit: StepKit, batch: Any) -> Any:
        fake = kit.models["g"](torch.ones(8, 4))
        kit.optimizers["d"].zero_grad()
        with kit.autocast():
            loss = (kit.models["d"](fake.detach()) - kit.models["d"](batch[0])).mean()
        kit.backward(loss)
        kit.optimizer_step("d")
        kit.optimizers["g"].zero_grad()
        with kit.autocast():
            loss = -kit.models["d"](fake).mean()
        kit.backward(loss)
        kit.optimizer_step(kit.optimizers["g"])
        return loss

    ours, theirs = models(), models()
    kit = kit_of(
        ours,
        {name: w.adam(m.parameters()) for name, m in ours.items()},
        train_step=train_step,
        precision=precision,
    )
    dtype = PRECISIONS[precision]
    scaler = torch.amp.GradScaler("cpu", enabled=precision == "float16")
    optimizers = {name: w.adam(m.parameters()) for name, m in theirs.items()}
    for batch in batches():
        assert not kit.step(batch).requires_grad
        play(
            theirs,
            optimizers,
            batch[0],
            lambda: torch.autocast("cpu", dtype=dtype, enabled=dtype is not None),
            scaler,
        )
    for name in ours:
        assert_equal(ours[name], theirs[name])


def test_which_of_several_optimizers_must_be_said() -> None:
    """A turn that names none, or one that is not there, would train the wrong player in silence."""
    models = {"g": w.Net(), "d": w.Net()}
    kit = kit_of(models, {name: w.sgd(m.parameters()) for name, m in models.items()})
    cross_entropy(kit.models["d"], batches()[0]).backward()
    for which in (None, "generator"):
        with pytest.raises(UsageError) as raised:
            kit.optimizer_step(which)
        assert "g, d" in raised.value.why
    kit.optimizer_step("d")


def test_the_first_of_several_is_the_model() -> None:
    """`model` and `optimizer` are for loops with one of each."""
    models = {"g": w.Net(), "d": w.Net()}
    kit = kit_of(models, {name: w.sgd(m.parameters()) for name, m in models.items()})
    assert kit.model is models["g"]
    assert kit.optimizer is kit.optimizers["g"]


def test_a_train_step_does_it_all() -> None:
    """Nothing is added to it, and it gets None in a loop without a loader; what it returns comes back."""
    seen = []

    def train_step(kit: StepKit, batch: Any) -> Any:
        seen.append(batch)
        return "text"

    model = w.Net()
    kit = kit_of(model, w.sgd(model.parameters()), train_step=train_step)
    assert kit.step(None) == "text"
    assert seen == [None]
    assert not kit.autocast_entered


def test_whether_autocast_was_asked_for_is_known() -> None:
    """A train_step that never does cannot be given another precision."""
    model = w.Net()
    kit = kit_of(model, w.sgd(model.parameters()))
    assert not kit.autocast_entered
    kit.step(batches()[0])
    assert kit.autocast_entered


def test_the_fused_step_is_switched_on_and_learns_the_same() -> None:
    """In the optimizer that was handed over, with float16 too."""
    ours, our_optimizer, theirs, optimizer = twins(w.sgd)
    kit = kit_of(ours, our_optimizer, fused_optimizer=True, precision="float16")
    plain = kit_of(theirs, optimizer, precision="float16")
    assert kit.optimizer is our_optimizer
    assert our_optimizer.param_groups[0]["fused"] is True
    for batch in batches():
        kit.step(batch)
        plain.step(batch)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


class Mixed(nn.Module):
    """2-D and 3-D convolutions side by side, one of them 1x1."""

    def __init__(self) -> None:
        super().__init__()
        self.flat = nn.Conv2d(3, 4, 3)
        self.point = nn.Conv2d(4, 4, 1)
        self.deep = nn.Conv3d(3, 4, 3)
        self.head = nn.Linear(4, 2)


def test_memory_order_changes_in_place() -> None:
    """The Parameters stay the same objects with the same values, there and back; 5-D ones are left alone."""
    model = Mixed()
    before = {name: (id(p), p.detach().clone()) for name, p in model.named_parameters()}
    set_memory_format(model, channels_last=True)
    assert model.flat.weight.is_contiguous(memory_format=torch.channels_last)
    assert model.deep.weight.is_contiguous()
    assert is_channels_last(model)
    assert {name: id(p) for name, p in model.named_parameters()} == {n: i for n, (i, _) in before.items()}
    assert all(torch.equal(p, before[name][1]) for name, p in model.named_parameters())
    set_memory_format(model, channels_last=False)
    assert all(p.is_contiguous() for p in model.parameters())
    assert not is_channels_last(model)


def test_an_optimizer_goes_on_after_a_change_of_memory_order() -> None:
    """Its momentum belongs to the same Parameters; steps give the same numbers within rounding."""
    torch.manual_seed(0)
    ours = w.ConvNet()
    theirs = copy.deepcopy(ours)
    make = lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9)  # noqa: E731
    pictures = (torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3]))
    first, second = make(ours), make(theirs)
    kit_of(ours, first).step(pictures)
    kit_of(theirs, second).step(pictures)
    kit = kit_of(ours, first, channels_last=True)
    plain = kit_of(theirs, second)
    for _ in range(3):
        kit.step(pictures)
        plain.step(pictures)
    assert is_channels_last(ours)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_batch_takes_the_memory_order_of_the_settings() -> None:
    """Pictures go along with the weights."""
    model = w.ConvNet()
    kit = kit_of(model, w.sgd(model.parameters()), channels_last=True)
    pictures, labels = kit.to_device((torch.randn(4, 3, 8, 8), torch.zeros(4)))
    assert pictures.is_contiguous(memory_format=torch.channels_last)
    assert labels.is_contiguous()
    plain = kit_of(model, w.sgd(model.parameters()))
    assert plain.to_device(torch.randn(4, 3, 8, 8)).is_contiguous()
    assert not is_channels_last(model)


def test_half_a_model_in_another_order_is_not_the_whole() -> None:
    """A model without 4-D weights, with 1x1 ones alone or with some in each order is not channels_last."""
    assert not is_channels_last(w.Net())
    assert not is_channels_last(nn.Conv2d(4, 4, 1))
    both = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    set_memory_format(both[0], channels_last=True)
    assert is_channels_last(both[0])
    assert not is_channels_last(both)
