"""From a batch to a loss: what is given, what is inferred, and when it is refused."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional

from autotune.errors import LossError, ModelError
from autotune.measure.losses import LossPlan, check_loss, plan_loss, split

pytestmark = pytest.mark.usefixtures("one_thread")


class Gives(nn.Module):
    """Returns what a function of its inputs returns; has one weight."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.function = function
        self.calls: list[tuple[int, tuple[str, ...]]] = []

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.calls.append((len(args), tuple(kwargs)))
        return self.function(self.weight, *args, **kwargs)


class Output(NamedTuple):
    """As models of text libraries return it."""

    loss: torch.Tensor | None
    logits: torch.Tensor


@dataclass
class Pair:
    """A batch with names of its own."""

    x: torch.Tensor
    y: torch.Tensor


def planned(model: nn.Module, batch: Any, **given: Any) -> LossPlan:
    return plan_loss(model, batch, **{"loss": None, "step": None, **given})


def same(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return weight * x


def half_mse(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """A loss of the user's own."""
    return ((output - target) ** 2).mean() / 2


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8])
@pytest.mark.parametrize(
    ("output", "target"),
    [((6, 4), (6,)), ((2, 4, 3, 5), (2, 3, 5)), ((2, 4, 3), (2, 3)), ((2, 4, 3, 3, 3), (2, 3, 3, 3))],
    ids=["classes", "segmentation", "sequence", "volumes"],
)
def test_integer_targets_take_cross_entropy(
    output: tuple[int, ...], target: tuple[int, ...], dtype: torch.dtype
) -> None:
    """With classes in the second dimension, for every dtype that a dataset gives labels in."""
    x, y = torch.randn(output), torch.randint(0, 4, target)
    model = Gives(same)
    plan = planned(model, (x, y.to(dtype)))
    assert plan.description == "cross_entropy (inferred)"
    loss = plan.loss_of(model, (x, y.to(dtype)))
    assert loss.item() == functional.cross_entropy(2 * x, y).item()
    assert loss.requires_grad


def test_labels_that_torch_ignores_are_labels() -> None:
    """-100 marks what does not count, as in segmentation."""
    x, y = torch.randn(6, 4), torch.tensor([0, 1, -100, 3, 2, -100])
    assert planned(Gives(same), (x, y)).description == "cross_entropy (inferred)"


@pytest.mark.parametrize("labels", [[1, 2, 3, 4], [0, 1, 2, -1]])
def test_labels_outside_of_the_outputs_are_refused(labels: list[int]) -> None:
    """On an accelerator they would break the process; the range is named."""
    with pytest.raises(LossError, match="labels do not fit") as raised:
        planned(Gives(same), (torch.randn(4, 4), torch.tensor(labels)))
    assert f"{min(labels)} to {max(labels)}" in raised.value.why
    assert "4 outputs" in raised.value.why
    assert raised.value.fix


@pytest.mark.parametrize("shape", [(6,), (6, 1), (6, 3), (2, 3, 4, 4)])
def test_float_targets_of_the_outputs_shape_take_the_squared_error(shape: tuple[int, ...]) -> None:
    """Regression, pictures from pictures."""
    x, y = torch.randn(shape), torch.randn(shape)
    model = Gives(same)
    plan = planned(model, [x, y])
    assert plan.description == "mse_loss (inferred)"
    assert plan.loss_of(model, [x, y]).item() == functional.mse_loss(2 * x, y).item()


def test_dict_batches_have_their_target_by_name() -> None:
    """All other parts are the model's named inputs."""
    batch = {"x": torch.randn(6, 4), "label": torch.randint(0, 4, (6,))}
    model = Gives(lambda weight, x: weight * x)
    plan = planned(model, batch)
    assert plan.description == "cross_entropy (inferred)"
    model.calls.clear()
    plan.loss_of(model, batch)
    assert model.calls == [(0, ("x",))]


def test_several_inputs_come_before_the_target() -> None:
    """The last part of a tuple is the target."""
    a, b, y = torch.randn(6), torch.randn(6), torch.randn(6)
    model = Gives(lambda weight, a, b: weight * a + b)
    plan = planned(model, (a, b, y))
    assert plan.loss_of(model, (a, b, y)).item() == functional.mse_loss(2 * a + b, y).item()


def test_a_model_that_is_given_its_labels_returns_its_loss() -> None:
    """As models of text libraries do: `model(**batch).loss`."""

    def forward(weight: torch.Tensor, input_ids: torch.Tensor, labels: Any = None) -> Output:
        logits = weight * input_ids
        return Output(None if labels is None else ((logits - labels) ** 2).mean(), logits)

    batch = {"input_ids": torch.randn(3, 4), "labels": torch.randn(3, 4)}
    model = Gives(forward)
    plan = planned(model, batch)
    assert plan.description == "the model's own loss (inferred)"
    loss = plan.loss_of(model, batch)
    assert loss.item() == functional.mse_loss(2 * batch["input_ids"], batch["labels"]).item()


def detector(weight: torch.Tensor, images: Any, targets: Any = None) -> dict[str, torch.Tensor]:
    """As detection models do while they train."""
    if targets is None:
        raise ValueError("targets should not be none when in training mode")
    total = sum(image.sum() for image in images) * weight
    return {"boxes": total * 2, "classes": total.double() * 3}


DETECTION = ([torch.ones(3, 2, 2), torch.ones(3, 4, 4)], [{"boxes": torch.ones(1, 4)}, {}])


def test_a_model_that_returns_a_dict_of_losses_has_their_sum() -> None:
    """Detection: the whole batch goes in, pictures of several sizes and targets that are dicts."""
    model = Gives(detector)
    plan = planned(model, DETECTION)
    assert plan.description == "the model's own loss (inferred)"
    assert plan.loss_of(model, DETECTION).item() == 5 * 2 * (12 + 48)


def test_a_model_that_can_do_without_targets_is_asked_with_them_too() -> None:
    """Predictions that fit no loss are no reason to give up while the targets were not tried."""

    def forward(weight: torch.Tensor, images: Any, targets: Any = None) -> Any:
        return [{"scores": weight}] if targets is None else detector(weight, images, targets)

    model = Gives(forward)
    assert planned(model, DETECTION).loss_of(model, DETECTION).item() == 300 * 2


@pytest.mark.parametrize(
    "batch",
    [torch.randn(3, 2), [torch.randn(3, 2)], {"x": torch.randn(3, 2)}],
    ids=["tensor", "list", "dict"],
)
def test_a_model_may_have_its_loss_from_inputs_alone(batch: Any) -> None:
    """An autoencoder that returns its loss needs no target; the batch goes in whole, not split up."""
    model = Gives(lambda weight, x: {"loss": (weight * x).sum(), "output": x})
    plan = planned(model, batch)
    x = batch if isinstance(batch, torch.Tensor) else batch[0] if isinstance(batch, list) else batch["x"]
    model.calls.clear()
    assert plan.loss_of(model, batch).item() == pytest.approx(2 * x.sum().item(), rel=1e-5)
    assert len(model.calls) == 1


def test_a_loss_from_inputs_alone_leaves_labels_out() -> None:
    """An autoencoder on a dataset that has labels anyway is called as it was when the loss was seen."""
    model = Gives(lambda weight, x: Output((weight * x).mean(), x))
    batch = (torch.ones(3, 2), torch.zeros(3, dtype=torch.int64))
    plan = planned(model, batch)
    model.calls.clear()
    assert plan.loss_of(model, batch).item() == 2
    assert model.calls == [(1, ())]


@pytest.mark.parametrize(
    ("loss", "name"),
    [(half_mse, "half_mse"), (nn.MSELoss(), "MSELoss"), (functools.partial(half_mse), "partial")],
    ids=["function", "module", "partial"],
)
def test_a_loss_that_is_given_is_used(loss: Any, name: str) -> None:
    """On the output and the target; functions, modules and whatever can be called."""
    x, y = torch.randn(6), torch.randn(6)
    model = Gives(same)
    plan = planned(model, (x, y), loss=loss)
    assert plan.description == name
    assert model.calls == []
    assert plan.loss_of(model, (x, y)).item() == loss(2 * x, y).item()


def test_a_step_that_is_given_gets_model_and_batch_as_they_are() -> None:
    """No batch is refused, since only the step knows it."""

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        return model(batch.x).sum() + batch.y

    batch = Pair(x=torch.ones(3), y=torch.tensor(1.0))
    plan = planned(Gives(same), batch, step=step)
    assert plan.description == "step step"
    assert plan.loss_of(Gives(same), batch).item() == 7


REFUSED: dict[str, tuple[Any, Any]] = {
    "autoencoder": (same, torch.randn(4, 3)),
    "autoencoder in a list": (same, [torch.randn(4, 3)]),
    "target of another shape": (same, (torch.randn(4, 1), torch.randn(4))),
    "one output for classes": (same, (torch.randn(4, 1), torch.randint(0, 2, (4,)))),
    "labels beside outputs": (same, (torch.randn(4), torch.randint(0, 2, (4,)))),
    "classes last": (same, (torch.randn(2, 3, 7), torch.randint(0, 7, (2, 3)))),
    "classes anywhere": (same, (torch.randn(2, 5, 5), torch.randint(0, 5, (2, 5)))),
    "other batch": (same, (torch.randn(4, 3), torch.randint(0, 3, (5,)))),
    "bool target": (same, (torch.randn(4), torch.zeros(4, dtype=torch.bool))),
    "tuple output": (lambda weight, x: (x, x), (torch.randn(4), torch.randn(4))),
    "target in a list": (same, (torch.randn(4), [1, 2, 3, 4])),
    "losses that are none": (lambda weight, x: {"a": x, "b": "text"}, (torch.randn(4), torch.randn(4))),
    "dict of several targets": (
        lambda weight, x, y, label: weight * x,
        {"x": torch.randn(4), "y": torch.randn(4), "label": torch.randn(4)},
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_leaves_a_doubt_is_not_inferred(case: str) -> None:
    """The error shows batch and output, and says what to pass."""
    forward, batch = REFUSED[case]
    with pytest.raises(LossError) as raised:
        planned(Gives(forward), batch)
    assert raised.value.what == "no loss can be inferred"
    assert "the batch is" in raised.value.why
    assert "the model returns" in raised.value.why
    assert "loss=" in raised.value.fix
    assert "step=" in raised.value.fix


def test_a_model_that_raises_is_the_models_error() -> None:
    """With its own words: those of the call that a user would have made, not only of the other one tried."""

    class Wide(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ torch.ones(99, 2)

    with pytest.raises(ModelError) as raised:
        planned(Wide(), (torch.randn(4, 3), torch.zeros(4, dtype=torch.int64)))
    assert "4x3 and 99x2" in raised.value.why
    assert "Tensor[4, 3]" in raised.value.fix
    assert "step=" in raised.value.fix


def test_a_model_that_needs_its_targets_and_raises_then_is_quoted_on_that() -> None:
    """The second call is the one that matters there."""

    def forward(weight: torch.Tensor, images: Any, targets: Any = None) -> Any:
        if targets is None:
            raise ValueError("targets should not be none")
        raise KeyError("labels")

    with pytest.raises(ModelError, match="labels"):
        planned(Gives(forward), DETECTION)


def test_running_out_of_memory_is_not_the_models_fault() -> None:
    """It passes through, to be handled as what it is."""

    def forward(weight: torch.Tensor, x: torch.Tensor) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        planned(Gives(forward), (torch.randn(4), torch.randn(4)))


def test_inference_leaves_no_trace() -> None:
    """Running statistics, random numbers and gradients are as if the model had not been called."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).train()
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    batch = (torch.randn(5, 3), torch.randint(0, 4, (5,)))
    state = torch.get_rng_state()
    planned(model, batch)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    assert all(p.grad is None for p in model.parameters())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("batch", [torch.zeros(3), [torch.zeros(3)], {"a": 1, "b": 2}, Pair, None, "text"])
def test_a_loss_needs_a_target(batch: Any) -> None:
    """A given loss on a batch that does not say which part is the target is refused before it runs."""
    with pytest.raises(LossError, match="does not say which part is the target") as raised:
        planned(Gives(same), batch, loss=half_mse)
    assert "step=" in raised.value.fix


def test_a_batch_is_split_into_inputs_and_target() -> None:
    """By place in a sequence, by name in a mapping; without a target all are inputs."""
    assert split((1, 2, 3), needs_target=True) == ((1, 2), {}, 3)
    assert split({"x": 1, "target": 2}, needs_target=True) == ((), {"x": 1}, 2)
    assert split({"x": 1, "z": 2}, needs_target=False) == ((), {"x": 1, "z": 2}, None)
    assert split([1], needs_target=False) == ((1,), {}, None)
    assert split("text", needs_target=False) == (("text",), {}, None)
    assert split([], needs_target=False) == (([],), {}, None)


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (1.5, "returned float, not a tensor"),
        (None, "returned NoneType, not a tensor"),
        (torch.ones(3, requires_grad=True), "shape [3], not a scalar"),
        (torch.ones(0, requires_grad=True), "shape [0], not a scalar"),
        (torch.tensor(1.0), "nothing can be learnt from"),
    ],
)
def test_what_no_step_can_be_made_of_is_refused(loss: Any, said: str) -> None:
    """No tensor, no scalar, no gradient: each with the name of the loss and a way out."""
    with pytest.raises(LossError) as raised:
        check_loss(loss, "half_mse")
    assert said in raised.value.what
    assert raised.value.what.startswith("half_mse")
    assert raised.value.fix


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_single_number_with_a_gradient_is_a_loss(shape: tuple[int, ...]) -> None:
    """A tensor of one element can be differentiated, of any shape."""
    check_loss(torch.ones(shape, requires_grad=True), "half_mse")
