"""torch.compile as a setting: when it can be used, and which calls of a model it is used for."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import workloads as w
from torch.nn.functional import cross_entropy

from autotune.errors import AutotuneWarning, UsageError
from autotune.kit import make_kit
from autotune.measure import compiling
from autotune.measure.stepkit import StepKit
from autotune.measure.toolchain import compile_fixed
from autotune.settings import Settings

pytestmark = pytest.mark.usefixtures("one_thread")


SETTINGS = Settings().replace(batch_size=8, compile="default")
X, Y = torch.randn(8, 16), torch.arange(8) % 4


def kit_of(model: w.Net, **knobs: Any) -> StepKit:
    """Plain SGD in batches of eight."""
    return StepKit(
        models={"": model},
        optimizers_={"": w.sgd(model.parameters())},
        settings=Settings().replace(**{"batch_size": 8, **knobs}),
        device=torch.device("cpu"),
        loss_of=lambda model, batch: cross_entropy(model(batch[0]), batch[1]),
    )


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every call of compiled code, by its mode; nothing is really compiled."""
    made: list[str] = []

    def compiled(function: Callable[..., Any], *, mode: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            made.append(mode)
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(torch, "compile", compiled)
    return made


def test_only_training_steps_on_whole_batches_run_compiled(calls: list[str]) -> None:
    """The smaller batch at the end of an epoch, validation and a look without gradients run as written."""
    model = w.Net()
    kit = kit_of(model, compile="default")
    kit.step((X, Y))
    assert calls == ["default"]
    kit.step((X[:5], Y[:5]))
    with torch.no_grad():
        model(kit.to_device(X))
    model.eval()
    model(kit.to_device(X))
    assert calls == ["default"]
    model.train()
    kit.step((X, Y))
    assert calls == ["default", "default"]


def test_a_loop_of_ones_own_runs_compiled_too(calls: list[str]) -> None:
    """Whoever brings batches over with the kit has said by that which size they have."""
    model = w.Net()
    kit = kit_of(model, compile="reduce-overhead")
    for size in (8, 3, 8):
        x, y = kit.to_device((X[:size], Y[:size]))
        kit.zero_grad()
        with kit.autocast():
            loss = cross_entropy(kit.model(x), y)
        kit.backward(loss)
        kit.optimizer_step()
    assert calls == ["reduce-overhead", "reduce-overhead"]


def test_a_compiled_model_is_the_same_model(calls: list[str]) -> None:
    """Names and parameters stay; copies and pickles of it run as they are written."""
    model = w.Net()
    names, parameters = list(model.state_dict()), list(model.parameters())
    kit_of(model, compile="default")
    assert list(model.state_dict()) == names
    assert all(a is b for a, b in zip(model.parameters(), parameters))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other(X)
    assert calls == []


def test_a_kit_that_compiles_nothing_takes_back_what_another_compiled(calls: list[str]) -> None:
    """But what the user compiled stays compiled."""
    model = w.Net()
    kit_of(model, compile="default")
    kit_of(model).step((X, Y))
    assert calls == []
    model.compile(mode="the user's")
    kit_of(model).step((X, Y))
    assert calls == ["the user's"]


def test_a_closed_kit_leaves_nothing_compiled(calls: list[str]) -> None:
    """Nor does one that did not come about; what the user had compiled is compiled again."""
    model = w.Net()
    with make_kit(SETTINGS, None, model, w.sgd, loss=cross_entropy) as kit:
        kit.step((X, Y))
    model(X)
    assert calls == ["default"]
    with pytest.raises(UsageError):
        make_kit(SETTINGS, None, model, w.sgd(w.Net().parameters()), loss=cross_entropy)
    model.compile(mode="the user's")
    with make_kit(SETTINGS, None, model, w.sgd, loss=cross_entropy) as kit:
        kit.step((X, Y))
    model(X)
    assert calls == ["default", "default", "the user's"]


def test_why_nothing_was_compiled_is_told(calls: list[str]) -> None:
    """Torch may have skipped the model, or no batch may have been a whole one."""
    model = w.Net()
    kit = kit_of(model, compile="default")
    with pytest.raises(compiling.NothingCompiledError, match="no step ran compiled"):
        compiling.check_compiled([model], compiling.compilations())
    kit.step((X, Y))
    with pytest.raises(compiling.NothingCompiledError, match="torch compiled nothing"):
        compiling.check_compiled([model], compiling.compilations())
    compiling.check_compiled([model], compiling.compilations() - 1)
    compiling.check_compiled([w.Net()], compiling.compilations())


def test_a_whole_batch_is_as_large_as_the_first_where_the_loader_does_not_tell(calls: list[str]) -> None:
    """As with a batch sampler of the user's own."""
    kit = kit_of(w.Net(), compile="default", batch_size=None)
    for size in (8, 3, 8):
        kit.step((X[:size], Y[:size]))
    assert len(calls) == 2


def test_a_graphs_step_begins_once(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With the first call after a step of the optimizer, wherever gradients are dropped."""
    begun: list[int] = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append(len(calls)))
    kit = kit_of(w.Net(), compile="reduce-overhead")
    kit._graphs = True  # as on a CUDA device
    for _ in range(3):
        x, y = kit.to_device((X, Y))
        loss = cross_entropy(kit.model(x) + kit.model(x), y)
        kit.zero_grad()
        kit.backward(loss)
        kit.optimizer_step()
    assert begun == [0, 2, 4]


def test_what_was_compiled_is_forgotten(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """And torch is told so; where nothing was, what the process compiled otherwise is left alone."""
    resets: list[bool] = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append(True))
    model = w.Net()
    compiling.forget([model])
    assert resets == []
    kit_of(model, compile="default")
    compiling.forget([model])
    model(X)
    assert (resets, calls) == ([True], [])


def test_what_was_compiled_is_forgotten_where_other_settings_came_after_it(
    calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a comparison, whose last run is yours: the graphs of the run before would keep their memory."""
    resets: list[bool] = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append(True))
    model = w.Net()
    kit_of(model, compile="default")
    kit_of(model)
    for _ in range(2):
        compiling.forget([model])
    assert resets == [True]


def test_the_users_own_compiled_model_is_recognised(calls: list[str]) -> None:
    """In place, wrapped, or a part of it; one that a kit compiled is not the user's."""
    plain, ours, in_place, inside = (w.Net() for _ in range(4))
    kit_of(ours, compile="default")
    in_place.compile(mode="default")
    inside.body.compile(mode="default")
    assert not compiling.compiled_already([plain, ours])
    assert compiling.compiled_already([in_place])
    assert compiling.compiled_already([plain, inside])


def test_a_wrapped_model_is_recognised() -> None:
    """What torch.compile returns is another class of module."""
    assert compiling.compiled_already([torch.compile(w.Net(), backend="eager")])


def test_why_nothing_can_be_compiled_is_said(tmp_path: Path) -> None:
    """Switched off, no compiler, no headers; and nothing where all is there."""
    compiler, headers = tmp_path / "g++", tmp_path / "include"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    headers.mkdir()
    environ = {"PATH": str(tmp_path), "CXX": "g++"}
    assert "headers" in compile_fixed(environ, headers=headers)
    (headers / "Python.h").touch()
    assert compile_fixed(environ, headers=headers) == ""
    assert "no C++ compiler" in compile_fixed({"PATH": str(headers)}, headers=headers)
    assert "no C++ compiler (other)" in compile_fixed({**environ, "CXX": "other"}, headers=headers)
    assert "no C++ compiler" in compile_fixed({"PATH": str(tmp_path / "x")}, headers=headers)
    off = {**environ, "TORCH_COMPILE_DISABLE": "1"}
    assert compile_fixed(off, headers=headers) == "you set TORCH_COMPILE_DISABLE"
    assert compile_fixed({**environ, "TORCHDYNAMO_DISABLE": "0"}, headers=headers) == ""


def test_a_kit_goes_on_uncompiled_where_nothing_can_be(
    calls: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A profile from a machine with a compiler is applied on one without: it says so, and trains."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.warns(AutotuneWarning, match="not compiled .*: no C\\+\\+ compiler"):
        kit = make_kit(SETTINGS, None, w.Net(), w.sgd, loss=cross_entropy)
    with kit:
        kit.step((X, Y))
    assert calls == []
