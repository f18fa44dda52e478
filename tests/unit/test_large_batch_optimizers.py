"""LARS and LAMB as they are built: which package, which groups, and the numbers of FusedLAMB's formula."""

from __future__ import annotations

import importlib.util
import math
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from autotune.errors import AutotuneWarning, EnvironmentFault
from autotune.measure import large_batch
from autotune.measure.large_batch import APEX_INSTALL, build_large_batch, probe_apex, split_groups
from autotune.outcome import LargeBatch

CPU = torch.device("cpu")
LAMB = LargeBatch(optimizer="LAMB", learning_rate=0.02, weight_decay=0.01, betas=(0.9, 0.999))
LARS = LargeBatch(optimizer="LARS", learning_rate=2.0, weight_decay=5e-5, momentum=0.9)
needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """What a probe found is kept, so it is dropped around each test."""
    probe_apex.cache_clear()
    yield
    probe_apex.cache_clear()


class FakeLamb(torch.optim.SGD):
    """Stands for apex's: takes its arguments, and steps."""

    def __init__(self, params: Any, lr: float, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        super().__init__(params, lr=lr)
        self.betas = betas


class Idle(FakeLamb):
    """Steps without an effect."""

    def step(self, closure: Any = None) -> None:
        """Nothing."""


class Broken(FakeLamb):
    """Built for another GPU."""

    def step(self, closure: Any = None) -> None:
        """Raises as CUDA does."""
        raise RuntimeError("no kernel image is available")


def install(
    monkeypatch: pytest.MonkeyPatch, *, version: str = "0.1", kind: Any = FakeLamb, kernels: bool = True
) -> None:
    """Puts an `apex` where imports find it."""
    names = ("apex", "apex.optimizers", "apex.multi_tensor_apply", *(["amp_C"] if kernels else []))
    for name in names:
        module = types.ModuleType(name)
        module.__spec__ = importlib.util.spec_from_loader(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    if not kernels:
        monkeypatch.setitem(sys.modules, "amp_C", None)
    sys.modules["apex.optimizers"].FusedLAMB = kind  # type: ignore[attr-defined]
    applier = types.SimpleNamespace(available=kernels)
    sys.modules["apex.multi_tensor_apply"].multi_tensor_applier = applier  # type: ignore[attr-defined]
    monkeypatch.setattr(large_batch, "_version", lambda package: version)


def test_without_apex_the_right_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVIDIA's is built from its repository, and never asked for by name from PyPI."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    probe = probe_apex(CPU)
    assert (probe.state, probe.working, probe.fix) == ("absent", False, APEX_INSTALL)


@pytest.mark.parametrize(
    ("options", "state", "said"),
    [
        ({}, "working", ""),
        ({"version": "0.9.10.dev0"}, "other_package", "another project's"),
        ({"kernels": False}, "incomplete", "without its CUDA kernels"),
        ({"kind": Broken}, "broken", "no kernel image"),
        ({"kind": Idle}, "broken", "left the weights"),
    ],
)
def test_apex_works_when_a_step_was_taken(
    options: dict[str, Any], state: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyPI's other apex, one without kernels and one that cannot step are told apart, with the reason."""
    install(monkeypatch, **options)
    probe = probe_apex(CPU)
    assert probe.state == state
    assert said in probe.why
    if state in ("other_package", "incomplete"):
        assert APEX_INSTALL in probe.fix


def test_a_working_apex_is_preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    """For float32 weights; its fused LAMB takes no bfloat16 ones."""
    install(monkeypatch)
    assert type(build_large_batch(LAMB, {"": nn.Linear(4, 2)}, CPU)) is FakeLamb


@needs_timm
@pytest.mark.parametrize("offer", [LARS, LAMB], ids=["LARS", "LAMB"])
def test_timm_is_taken_otherwise(offer: LargeBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the offer's rate, and its weight decay for weights alone."""
    install(monkeypatch, kind=Broken)
    built = build_large_batch(offer, {"": nn.Linear(4, 2)}, CPU)
    assert type(built).__module__.startswith("timm")
    assert [group["weight_decay"] for group in built.param_groups] == [offer.weight_decay, 0.0]
    assert all(group["lr"] == offer.learning_rate for group in built.param_groups)


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is wrong with the apex that is there."""
    install(monkeypatch, version="0.9.10.dev0")
    monkeypatch.setitem(sys.modules, "timm.optim", None)
    with pytest.raises(EnvironmentFault, match="LAMB needs timm") as raised:
        build_large_batch(LAMB, {"": nn.Linear(4, 2)}, CPU)
    assert "large-batch" in raised.value.fix
    assert APEX_INSTALL in raised.value.fix
    assert "another project's" in raised.value.why


@needs_timm
def test_another_projects_apex_is_named_where_timm_stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs NVIDIA's; LAMB is trained with all the same."""
    install(monkeypatch, version="0.9.10.dev0")
    with pytest.warns(AutotuneWarning, match="another project's") as told:
        built = build_large_batch(LAMB, {"": nn.Linear(4, 2)}, CPU)
    assert type(built).__module__.startswith("timm")
    assert APEX_INSTALL in str(told[0].message)


def test_biases_and_norms_are_not_decayed() -> None:
    """Shared parameters are in one group once, frozen ones in none."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 4), nn.LayerNorm([2, 2]))
    model.append(model[2])
    model[0].weight.requires_grad_(False)
    decayed, plain = split_groups([model], 0.1)
    assert [id(p) for p in decayed["params"]] == [id(model[2].weight)]
    assert {id(p) for p in plain["params"]} == {
        id(p) for p in (model[0].bias, *model[1].parameters(), model[2].bias, *model[3].parameters())
    }
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)


def fused_lamb_by_hand(
    weights: list[list[float]], gradients: list[list[list[float]]], decays: list[float]
) -> list[list[float]]:
    """FusedLAMB's update in Python's own float64, one number after the other.

    All gradients are divided by their common norm where it is over 1; moments are corrected; weight decay
    goes into the direction; what is decayed is stepped by the ratio of the norms of weights and direction.
    """
    lr, (beta1, beta2), eps = LAMB.learning_rate, (0.9, 0.999), 1e-6
    m = [[0.0] * len(w) for w in weights]
    v = [[0.0] * len(w) for w in weights]
    for step, given in enumerate(gradients, 1):
        norm = max(1.0, math.sqrt(sum(g * g for tensor in given for g in tensor)))
        for t, tensor in enumerate(given):
            directions = []
            for i, raw in enumerate(tensor):
                g = raw / norm
                m[t][i] = beta1 * m[t][i] + (1 - beta1) * g
                v[t][i] = beta2 * v[t][i] + (1 - beta2) * g * g
                mean, square = m[t][i] / (1 - beta1**step), v[t][i] / (1 - beta2**step)
                directions.append(mean / (math.sqrt(square) + eps) + decays[t] * weights[t][i])
            size, length = math.hypot(*weights[t]), math.hypot(*directions)
            ratio = size / length if decays[t] and size and length else 1.0
            weights[t] = [w - lr * ratio * d for w, d in zip(weights[t], directions)]
    return weights


@needs_timm
def test_timms_lamb_is_fused_lambs_formula() -> None:
    """Over 30 steps, in float64, with a decayed and an undecayed tensor, gradients over and under norm 1."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(5, 3).double()
    start = [p.detach().flatten().tolist() for p in model.parameters()]
    built = build_large_batch(LAMB, {"": model}, CPU)
    gradients = []
    for step in range(30):
        for parameter in model.parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.grad = drawn * (0.01 if step % 3 else 4.0)
        gradients.append([p.grad.flatten().tolist() for p in model.parameters()])
        built.step()
    expected = fused_lamb_by_hand(start, gradients, [LAMB.weight_decay, 0.0])
    for parameter, own in zip(model.parameters(), expected):
        torch.testing.assert_close(
            parameter.detach().flatten(), torch.tensor(own, dtype=torch.float64), rtol=1e-9, atol=1e-12
        )


@needs_timm
def test_timms_lars_is_the_papers_ratio() -> None:
    """One step from rest: the rate times 0.001 * |w| / (|g| + wd |w|), and the plain rate where undecayed."""
    model = nn.Linear(4, 3).double()
    before = [p.detach().clone() for p in model.parameters()]
    built = build_large_batch(LARS, {"": model}, CPU)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    built.step()
    weight, bias = before
    size, norm = float(weight.norm()), math.sqrt(12)
    ratio = 0.001 * size / (norm + LARS.weight_decay * size + 1e-8)
    torch.testing.assert_close(
        model.weight.detach(), weight - 2.0 * ratio * (1 + LARS.weight_decay * weight), rtol=1e-9, atol=1e-12
    )
    torch.testing.assert_close(model.bias.detach(), bias - 2.0)
