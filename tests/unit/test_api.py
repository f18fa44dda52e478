"""`find_best` before anything runs: what it is called, and which options it refuses."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import workloads as w

import autotune.api
from autotune.api import find_best, tune_with
from autotune.errors import UsageError
from autotune.measure import payload, process_runner
from autotune.measure.inprocess import InProcessRunner
from autotune.measure.seam import Description
from autotune.search import engine
from autotune.search.engine import TuneOptions, tune
from autotune.search.listener import SilentListener
from autotune.testing import FakeRunner, fake_description
from autotune.workload import Workload


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("train.py:make", "train"),
        ("folder/train.py:make", "train"),
        ("train:make", "train"),
        ("package.module:make", "module"),
        ("package.inner.module:make", "module"),
    ],
)
def test_a_target_is_called_after_its_file_or_module(
    monkeypatch: pytest.MonkeyPatch, target: str, name: str
) -> None:
    """The last part of a dotted module, so that two modules of a package keep two profiles."""
    asked: dict[str, Any] = {}
    monkeypatch.setattr(autotune.api, "tune_with", lambda *_, **options: asked.update(options))
    find_best(target, runner=FakeRunner(lambda settings, mode: 100.0))
    assert asked["name"] == name


def test_a_model_is_called_after_what_makes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its class, or the function, also inside a partial; the name that is given comes first."""
    asked: list[str] = []
    monkeypatch.setattr(autotune.api, "tune_with", lambda *_, name, **options: asked.append(name))
    runner = FakeRunner(lambda settings, mode: 100.0)
    for model in (w.Net(), w.Net, functools.partial(w.Net)):
        find_best(model, [1, 2], runner=runner)
    find_best(w.Net, [1, 2], runner=runner, name="mine")
    assert asked == ["net", "net", "net", "mine"]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *((option, value) for option in ("epochs", "max_batch_size") for value in (0, -1, "3", 2.5, True)),
        *(("warm", value) for value in (-1, "3", 2.5, False)),
    ],
)
def test_a_count_is_a_whole_number(option: str, value: Any) -> None:
    """Anything else is told as an error of use, before a trial runs; none but `warm` may be 0."""
    runner = FakeRunner(lambda settings, mode: 100.0)
    with pytest.raises(UsageError) as caught:
        find_best(object(), [1, 2], runner=runner, **{option: value})
    assert f"`{option}` must be a whole number" in caught.value.what
    assert repr(value) in caught.value.why
    assert runner.specs == []


def test_the_name_that_a_workload_has_itself_is_the_reports() -> None:
    """Of a target only the bench process knows it; the one given here is for workloads without."""
    for own, shown in (("mine", "mine"), ("", "train")):
        runner = FakeRunner(lambda settings, mode: 100.0, description=fake_description(name=own))
        outcome = tune(runner, TuneOptions(budget_s=60, name="train"), SilentListener(), clock=runner.clock)
        assert outcome.name == shown


def test_a_name_that_is_given_travels_to_the_target(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It replaces the workload's own there; without one nothing is replaced."""
    (tmp_path / "named_train.py").write_text("")
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(payload, "target_payload", lambda target, **fields: asked.append(fields))
    runner = FakeRunner(lambda settings, mode: 1.0)
    monkeypatch.setattr(process_runner, "ProcessRunner", lambda _, *, budget_s: runner)
    monkeypatch.setattr(autotune.api, "tune_with", lambda *_, **options: None)
    find_best(f"{tmp_path}/named_train.py:make", name="given")
    find_best(f"{tmp_path}/named_train.py:make")
    assert asked == [{"name": "given"}, {}]


def test_a_bench_process_tells_the_workloads_name() -> None:
    """As the workload has it."""
    runner = InProcessRunner(Workload(w.Net(), w.Rows(), optimizer=w.sgd, batch_size=16, name="mine"))
    assert runner.describe().name == "mine"
    runner.close()


class _Counted(FakeRunner):
    """Counts how often the workload is brought up."""

    described = 0

    def describe(self) -> Description:
        """As the fake does."""
        self.described += 1
        return super().describe()


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"fixed": ["num_workers"]}, "`fixed` is no mapping"),
        ({"seed": "x"}, "`seed` must be a whole number"),
        ({"seed": -1}, "`seed` must be at least 0 and under 2**32"),
        ({"seed": 2**32}, "`seed` must be at least 0 and under 2**32"),
    ],
)
def test_options_that_nothing_can_use_are_refused(options: dict[str, Any], what: str) -> None:
    """As errors of use, not wherever they are used first; the workload is not brought up for them."""
    runner = _Counted(lambda settings, mode: 100.0)
    with pytest.raises(UsageError) as caught:
        find_best(object(), [1, 2], runner=runner, **options)
    assert caught.value.what == what
    assert repr(next(iter(options.values()))) in caught.value.why
    assert caught.value.fix
    assert runner.described == 0


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_the_least_and_the_greatest_seed_run(seed: int, tmp_path: Path) -> None:
    """What is let through is what the study's sampler takes too."""
    runner = FakeRunner(lambda settings, mode: 100.0)
    storage = tmp_path / "study.journal"
    result = tune_with(runner, None, budget=60, seed=seed, storage=storage, warm_start=False)
    assert result.outcome.trials


def test_a_storage_may_be_a_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As anywhere in Python; the engine gets text."""
    asked: list[TuneOptions] = []
    monkeypatch.setattr(engine, "tune", lambda runner, options, listener: asked.append(options))
    monkeypatch.setattr(autotune.api, "profile_of", lambda *_, **__: None)
    tune_with(FakeRunner(lambda settings, mode: 100.0), None, storage=tmp_path / "a.journal")
    assert asked[0].storage == str(tmp_path / "a.journal")
