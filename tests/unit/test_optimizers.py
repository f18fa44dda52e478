"""Optimizers rebuilt for a trial, and the fused step switched on and off."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import workloads as w
from torch import nn

from autotune.errors import UsageError
from autotune.measure.optimizers import (
    MEASURING_LR,
    Rebuilt,
    beta2s,
    build_optimizers,
    decoupled,
    family,
    follow_parameters,
    freeze_optimizer,
    fused_available,
    is_fused,
    learning_rates,
    set_beta2,
    set_fused,
    weight_decays,
)

pytestmark = pytest.mark.usefixtures("one_thread")

Make = Callable[[Any], torch.optim.Optimizer]

FUSED: dict[str, Make] = {
    "SGD": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "plain SGD": lambda params: torch.optim.SGD(params, lr=0.1),
    "Adam": lambda params: torch.optim.Adam(params, lr=0.01, amsgrad=True),
    "AdamW": lambda params: torch.optim.AdamW(params, lr=0.01, weight_decay=0.1),
    "Adagrad": lambda params: torch.optim.Adagrad(params, lr=0.1),
}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Steps on fixed batches."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 16, generator=generator)).square().mean().backward()
        optimizer.step()


def two_groups(model: w.Net) -> torch.optim.Optimizer:
    """AdamW with a group of its own for the biases."""
    return torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.2, "lr": 0.01},
            {"params": [p for p in model.parameters() if p.dim() == 1]},
        ],
        lr=0.02,
        betas=(0.8, 0.99),
        weight_decay=0.0,
    )


def plain(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Groups without their parameters, which cannot be compared with ==."""
    return [{key: value for key, value in group.items() if key != "params"} for group in groups]


@pytest.mark.parametrize(
    "make",
    [
        two_groups,
        lambda model: torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9, nesterov=True),
        lambda model: torch.optim.Adam(model.named_parameters(), lr=0.3, fused=True),
        lambda model: torch.optim.RMSprop(model.parameters(), lr=0.3, alpha=0.7),
        lambda model: torch.optim.LBFGS(model.parameters(), lr=0.3, history_size=7),
    ],
    ids=["groups", "SGD", "named", "RMSprop", "LBFGS"],
)
def test_an_optimizer_is_rebuilt_as_it_is(make: Any) -> None:
    """Class, every hyperparameter of every group, and the very same parameters in the same groups."""
    model = w.Net()
    optimizer = make(model)
    built = build_optimizers(freeze_optimizer(optimizer), {"": model})[""]
    assert type(built) is type(optimizer)
    assert plain(built.param_groups) == plain(optimizer.param_groups)
    assert built.defaults == optimizer.defaults
    for ours, theirs in zip(built.param_groups, optimizer.param_groups, strict=True):
        assert [id(p) for p in ours["params"]] == [id(p) for p in theirs["params"]]


def test_the_users_optimizer_is_left_alone() -> None:
    """Steps of the rebuilt one, and changes to its groups, reach neither state nor groups of the user's."""
    model = w.Net()
    optimizer = two_groups(model)
    train(model, optimizer, 2)
    before = copy.deepcopy(optimizer.state_dict())
    built = build_optimizers(freeze_optimizer(optimizer), {"": model})[""]
    assert not built.state
    train(model, built, 3)
    for group in built.param_groups:
        group["lr"] *= 10
    set_fused(built, True)
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert all(
        torch.equal(after["state"][key][name], value)
        for key, state in before["state"].items()
        for name, value in state.items()
    )


def test_a_scheduler_that_warms_up_does_not_hide_the_rate() -> None:
    """It set the rate to 0 at once: what is tuned with is what it starts from."""
    optimizer = two_groups(w.Net())
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 100))
    assert learning_rates([optimizer]) == (0.0, 0.0)
    built = build_optimizers(freeze_optimizer(optimizer), {"": w.Net()})[""]
    assert learning_rates([built]) == (0.01, 0.02)


def test_numbers_that_a_kit_left_are_the_users_own() -> None:
    """Tuned again, they are what is begun with: nothing in a trial takes them for scaled already."""
    optimizer = two_groups(w.Net())
    for group in optimizer.param_groups:
        group.update(scaled_for_batch_size=256, scaled_by=8.0, scheduled_samples=512, scheduled_lr=0.5)
    built = build_optimizers(freeze_optimizer(optimizer), {"": w.Net()})[""]
    assert not any(name.startswith("scaled") for group in built.param_groups for name in group)
    assert not any(name.startswith("scheduled") for group in built.param_groups for name in group)
    assert learning_rates([built]) == (0.01, 0.02)


def test_each_build_starts_afresh() -> None:
    """Trial after trial gets the groups as they were handed over."""
    model = w.Net()
    frozen = freeze_optimizer(two_groups(model))
    first = build_optimizers(frozen, {"": model})[""]
    for group in first.param_groups:
        group["lr"] *= 7
    second = build_optimizers(frozen, {"": model})[""]
    assert learning_rates([second]) == (0.01, 0.02)


def test_what_is_frozen_stays_frozen() -> None:
    """Freezing twice is freezing once; factories are as they were; dicts are gone through."""
    frozen = freeze_optimizer(two_groups(w.Net()))
    assert isinstance(frozen, Rebuilt)
    assert freeze_optimizer(frozen) is frozen
    assert freeze_optimizer(w.sgd) is w.sgd
    assert freeze_optimizer(None) is None
    assert freeze_optimizer({"a": w.sgd, "b": frozen}) == {"a": w.sgd, "b": frozen}


@pytest.mark.parametrize("given", [3, "sgd", {"a": 3}])
def test_what_is_no_optimizer_is_refused(given: object) -> None:
    """It is named, and a factory is shown."""
    with pytest.raises(UsageError, match="neither an Optimizer nor a function") as raised:
        freeze_optimizer(given)
    assert "lambda params" in raised.value.fix


def test_a_factory_gets_what_can_be_trained() -> None:
    """Frozen parameters are not its business."""
    model = w.Net()
    model.body[0].requires_grad_(False)
    (built,) = build_optimizers(w.sgd, {"": model}).values()
    assert [id(p) for p in built.param_groups[0]["params"]] == [
        id(p) for p in model.parameters() if p.requires_grad
    ]


def test_one_factory_trains_all_models() -> None:
    """A dict of models with one optimizer: its parameters are all of theirs."""
    models = {"a": w.Net(), "b": w.Net()}
    (built,) = build_optimizers(w.sgd, models).values()
    assert len(built.param_groups[0]["params"]) == sum(len(list(m.parameters())) for m in models.values())


def test_a_dict_of_factories_goes_by_name() -> None:
    """Each trains the model of its own key."""
    models = {"a": w.Net(), "b": w.Net()}
    built = build_optimizers({"b": w.adam, "a": w.sgd}, models)
    assert type(built["a"]) is torch.optim.SGD
    assert type(built["b"]) is torch.optim.Adam
    assert built["b"].param_groups[0]["params"][0] is next(models["b"].parameters())


def test_optimizers_of_one_model_may_have_names_of_their_own() -> None:
    """Two Optimizers over parts of one model know their parameters already."""
    model = w.Net()
    given = {"first": w.sgd(model.body[0].parameters()), "last": w.adam(model.body[3].parameters())}
    built = build_optimizers(freeze_optimizer(given), {"": model})
    assert [type(o) for o in built.values()] == [torch.optim.SGD, torch.optim.Adam]
    assert built["last"].param_groups[0]["params"][0] is model.body[3].weight


@pytest.mark.parametrize(
    ("models", "known"), [({"a": w.Net()}, "models: a"), ({"": w.Net()}, "`model` is a single one")]
)
def test_a_factory_without_a_model_is_refused(models: dict[str, nn.Module], known: str) -> None:
    """The key and the models that there are are named."""
    with pytest.raises(UsageError, match="'c'") as raised:
        build_optimizers({"c": w.sgd}, models)
    assert raised.value.why == known


def test_a_factory_that_returns_something_else_is_told_so() -> None:
    """Such as a class in place of an instance."""
    with pytest.raises(UsageError, match="returned no Optimizer") as raised:
        build_optimizers(lambda params: torch.optim.SGD, {"": w.Net()})
    assert raised.value.why == "it returned type"


def test_without_an_optimizer_plain_sgd_is_measured() -> None:
    """With a rate that breaks nothing."""
    (built,) = build_optimizers(None, {"": w.Net()}).values()
    assert type(built) is torch.optim.SGD
    assert learning_rates([built]) == (MEASURING_LR,)


class MySGD(torch.optim.SGD):
    """A subclass follows its base's rule."""


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (torch.optim.SGD, "sgd"),
        (MySGD, "sgd"),
        (torch.optim.Adam, "adam"),
        (torch.optim.AdamW, "adam"),
        (torch.optim.NAdam, "adam"),
        (torch.optim.RMSprop, "adam"),
        (torch.optim.LBFGS, "other"),
        (torch.optim.Adagrad, "other"),
    ],
)
def test_the_family_says_how_the_rate_scales(kind: Any, expected: str) -> None:
    """Found by name over all base classes, so that other libraries' optimizers count."""
    assert family(kind(w.Net().parameters(), lr=0.1)) == expected


@pytest.mark.parametrize("name", FUSED)
def test_the_fused_step_is_available_where_torch_has_one(name: str) -> None:
    """On the CPU for all of these; on a kind of device that torch knows none for, for none."""
    optimizer = FUSED[name](w.Net().parameters())
    assert fused_available([optimizer], "cpu")
    assert not fused_available([optimizer], "meta")
    assert fused_available([optimizer], "cuda") == (name != "Adagrad")


@pytest.mark.parametrize(
    "optimizer",
    [
        torch.optim.RMSprop(w.Net().parameters()),
        torch.optim.LBFGS(w.Net().parameters()),
        torch.optim.SGD(w.Net().parameters(), lr=0.1, differentiable=True),
        torch.optim.SGD([torch.zeros(3, dtype=torch.complex64)], lr=0.1),
    ],
    ids=["RMSprop", "LBFGS", "differentiable", "complex"],
)
def test_the_fused_step_is_not_offered_elsewhere(optimizer: torch.optim.Optimizer) -> None:
    """One optimizer without it is enough to say no for all."""
    assert not fused_available([optimizer], "cpu")
    assert not fused_available([w.sgd(w.Net().parameters()), optimizer], "cpu")


@pytest.mark.parametrize("name", FUSED)
def test_switching_there_and_back_changes_no_number(name: str) -> None:
    """With live state, the result is that of an optimizer that never switched, within rounding."""
    torch.manual_seed(0)
    switched = nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 2))
    unmoved = copy.deepcopy(switched)
    first, second = FUSED[name](switched.parameters()), FUSED[name](unmoved.parameters())
    for fused in (False, True, False):
        set_fused(first, fused)
        assert is_fused([first]) is fused
        train(switched, first, 3)
        train(unmoved, second, 3)
    for a, b in zip(switched.parameters(), unmoved.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", FUSED)
def test_a_switched_optimizer_is_like_one_that_was_made_so(name: str) -> None:
    """In all that torch and a gradient scaler look at, and for groups that are added later."""
    model = w.Net()
    born = FUSED[name](model.parameters())
    made = type(born)(model.parameters(), **{**_accepted(born), "fused": True})
    switched = FUSED[name](model.parameters())
    set_fused(switched, True)
    assert plain(switched.param_groups) == plain(made.param_groups)
    assert switched._step_supports_amp_scaling is getattr(made, "_step_supports_amp_scaling", False)
    assert switched._step_supports_amp_scaling or name == "Adagrad"  # which torch taught it later
    extra = nn.Parameter(torch.zeros(2))
    switched.add_param_group({"params": [extra]})
    assert switched.param_groups[-1]["fused"] is True
    set_fused(switched, False)
    assert not getattr(switched, "_step_supports_amp_scaling", False)
    switched.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    assert not any(group["fused"] for group in switched.param_groups)


def _accepted(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    names = ("lr", "momentum", "weight_decay", "amsgrad")
    return {name: optimizer.defaults[name] for name in names if name in optimizer.defaults}


def test_switching_keeps_schedulers_and_state() -> None:
    """The optimizer stays the same object; a scheduler goes on with it, momentum is not lost."""
    model = w.Net()
    optimizer = FUSED["SGD"](model.parameters())
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
    train(model, optimizer, 2)
    momentum = [optimizer.state[p]["momentum_buffer"].clone() for p in model.parameters()]
    set_fused(optimizer, True)
    assert all(
        torch.equal(optimizer.state[p]["momentum_buffer"], m)
        for p, m in zip(model.parameters(), momentum, strict=True)
    )
    train(model, optimizer, 1)
    scheduler.step()
    assert learning_rates([optimizer]) == (0.05,)


def test_nothing_happens_where_nothing_changes() -> None:
    """A user's own `foreach=True` is kept when no fused step is asked for."""
    optimizer = torch.optim.SGD(w.Net().parameters(), lr=0.1, foreach=True)
    set_fused(optimizer, False)
    assert optimizer.param_groups[0]["foreach"] is True


def test_an_optimizer_without_a_fused_step_is_not_switched() -> None:
    """A scaler would believe the switch and leave its gradients scaled."""
    optimizer = torch.optim.RMSprop(w.Net().parameters())
    with pytest.raises(UsageError, match="RMSprop") as raised:
        set_fused(optimizer, True)
    assert raised.value.fix
    assert not getattr(optimizer, "_step_supports_amp_scaling", False)
    assert not is_fused([optimizer])


@pytest.mark.parametrize(
    ("optimizer", "decoupled_", "beta2"),
    [
        (torch.optim.AdamW(w.Net().parameters()), True, 0.999),
        (torch.optim.Adam(w.Net().parameters(), weight_decay=0.01, betas=(0.9, 0.95)), False, 0.95),
        (torch.optim.Adam(w.Net().parameters(), decoupled_weight_decay=True), True, 0.999),
        (torch.optim.NAdam(w.Net().parameters(), decoupled_weight_decay=True), True, 0.999),
        (torch.optim.SGD(w.Net().parameters(), lr=0.1, weight_decay=5e-4), False, None),
        (torch.optim.RMSprop(w.Net().parameters(), alpha=0.97), False, 0.97),
    ],
)
def test_what_a_recipe_scales_is_read(
    optimizer: torch.optim.Optimizer, decoupled_: bool, beta2: float | None
) -> None:
    """How weight decay works, how much, and the decay of the second moment where there is one."""
    assert decoupled(optimizer) is decoupled_
    assert weight_decays([optimizer]) == (optimizer.param_groups[0]["weight_decay"],)
    assert beta2s([optimizer]) == (beta2,)


def test_a_group_without_a_second_moment_gets_none() -> None:
    """SGD's groups stay as they are; betas keep their first."""
    group: dict[str, Any] = {"lr": 0.1}
    set_beta2(group, 0.5)
    assert group == {"lr": 0.1}
    group = {"betas": (0.8, 0.999)}
    set_beta2(group, 0.5)
    assert group == {"betas": (0.8, 0.5)}


def test_state_goes_where_its_parameter_is_and_nothing_else_moves() -> None:
    """Momenta loaded before the model moved would stop the first step; a counter stays on the host."""
    moved = nn.Parameter(torch.empty(3, device="meta"))
    optimizer = torch.optim.SGD([moved], lr=0.1, momentum=0.9)
    optimizer.state[moved] = {"momentum_buffer": torch.ones(3), "step": torch.tensor(2.0)}
    follow_parameters(optimizer)
    assert optimizer.state[moved]["momentum_buffer"].device.type == "meta"
    assert optimizer.state[moved]["step"].device.type == "cpu"
    there = torch.optim.SGD([nn.Parameter(torch.ones(3))], lr=0.1, momentum=0.9)
    (parameter,) = there.param_groups[0]["params"]
    buffer = torch.ones(3)
    there.state[parameter] = {"momentum_buffer": buffer}
    follow_parameters(there)
    assert there.state[parameter]["momentum_buffer"] is buffer
