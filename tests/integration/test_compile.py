"""torch.compile for real, on a CPU: trials that compile, what they leave behind, and models that will not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import workloads as w
from torch import nn
from torch.nn.functional import cross_entropy

from autotune.errors import ModelError
from autotune.kit import make_kit
from autotune.measure import compiling, flags
from autotune.measure.inprocess import InProcessRunner
from autotune.measure.loaders import parts_of
from autotune.measure.payload import pickle_workload
from autotune.measure.probe import machine_facts
from autotune.measure.process_runner import ProcessRunner
from autotune.measure.seam import NumericsSpec
from autotune.measure.session import Session
from autotune.measure.toolchain import compile_fixed
from autotune.recipe.guard import NumericsRecord, judge_numerics
from autotune.settings import Settings
from autotune.space.candidates import build_space
from autotune.trial import Failure, Measurement, TrialSpec
from autotune.workload import Workload

pytestmark = [
    pytest.mark.skipif(bool(compile_fixed()), reason=f"cannot compile here: {compile_fixed()}"),
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning"),  # torch, of itself
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing on disk from before, and nothing left there."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))


@pytest.fixture
def runner() -> Iterator[ProcessRunner]:
    """Seventy rows in batches of sixteen: the last one of an epoch has six."""
    workload = Workload(w.Net(), w.Rows(samples=70), optimizer=w.sgd, batch_size=16)
    with ProcessRunner(pickle_workload(workload)) as started:
        yield started


def spec(settings: Settings, **changes: Any) -> TrialSpec:
    return replace(TrialSpec(settings=settings, stage="joint", window_s=0.3, timeout_s=200), **changes)


def test_a_compiled_trial_learns_the_same_and_leaves_nothing(runner: ProcessRunner) -> None:
    """It compiles once, for the whole batches alone; the next trial runs as the model is written."""
    yours = runner.describe().yours
    compiled = runner.run(spec(yours.replace(compile="default"), epoch_edge=True))
    plain = runner.run(spec(yours))
    again = runner.run(spec(yours.replace(compile="default")))
    for found in (compiled, plain, again):
        assert isinstance(found, Measurement), found
        assert not any("recompiled" in block.marks for block in found.blocks)
    assert compiled.first_loss == pytest.approx(plain.first_loss, rel=1e-4)
    assert compiled.warmup_s > 10 * plain.warmup_s
    assert plain.warmup_s < again.warmup_s < compiled.warmup_s, "the second time it is on disk"


def test_compiled_steps_are_compared_with_the_users_own(runner: ProcessRunner) -> None:
    """In batches of the settings' own size, for which they are compiled."""
    yours = runner.describe().yours
    wanted = yours.replace(compile="default", batch_size=32)
    found = runner.compare_numerics(
        NumericsSpec(settings=wanted, reference=wanted.replace(compile=None), steps=16, timeout_s=200)
    )
    assert isinstance(found, NumericsRecord), found
    assert judge_numerics(found).kind == "same", found
    assert found.gradients is not None
    assert found.gradients.cosine > 0.999


def test_a_compiler_that_fails_costs_one_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named, and the next trial runs."""
    monkeypatch.setenv("CXX", "/bin/false")
    workload = Workload(w.Net(), w.Rows(), optimizer=w.sgd, batch_size=16)
    with ProcessRunner(pickle_workload(workload)) as runner:
        yours = runner.describe().yours
        found = runner.run(spec(yours.replace(compile="default")))
        assert isinstance(found, Failure), found
        assert found.kind == "compile_error", found
        assert isinstance(runner.run(spec(yours)), Measurement)


class Noisy(nn.Module):
    """Drops units without a module of torch's for it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = w.Net()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(torch.nn.functional.dropout(x, 0.2, training=self.training))


def test_random_numbers_of_compiled_code_are_no_fault_of_it() -> None:
    """They are others than the user's own code draws: the gradients of such a model are not compared."""
    workload = Workload(Noisy(), w.Rows(), optimizer=w.sgd, batch_size=16)
    with ProcessRunner(pickle_workload(workload)) as runner:
        yours = runner.describe().yours
        found = runner.compare_numerics(
            NumericsSpec(settings=yours.replace(compile="default"), reference=yours, timeout_s=200)
        )
    assert isinstance(found, NumericsRecord), found
    assert found.gradients is None
    assert judge_numerics(found).kind != "worse", found


def test_a_model_that_is_one_of_torchs_own_classes_is_compiled() -> None:
    """Code of torch's own is skipped where it is handed over itself."""
    before = compiling.compilations()
    model = nn.Sequential(nn.Linear(16, 4), nn.ReLU())
    settings = Settings().replace(batch_size=16, compile="default")
    with make_kit(settings, None, model, w.sgd, loss=cross_entropy) as kit:
        rows = w.Rows(samples=16)
        kit.step((rows.x, rows.y))
    assert compiling.compilations() > before


def test_the_tenth_kit_of_a_process_is_compiled_as_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch stops after eight variants of one code object, and says so in a log alone."""
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, *, mode: compiled(function, backend="eager"))
    settings, rows = Settings().replace(batch_size=16, compile="default"), w.Rows(samples=16)
    counts = []
    for _ in range(10):
        before = compiling.compilations()
        with make_kit(settings, None, w.Net(), w.sgd, loss=cross_entropy) as kit:
            kit.step((rows.x, rows.y))
        counts.append(compiling.compilations() - before)
    assert all(counts), counts


class Recurrent(nn.Module):
    """A model that the compiler skips, since torch's recurrent layers are not traced."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(16, 8, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.gru(x.unsqueeze(1))[0][:, -1])


def test_a_model_of_which_nothing_compiles_is_a_failure() -> None:
    """Else a setting that does nothing could win by chance, and be said to have been run."""
    workload = Workload(Recurrent(), w.Rows(), optimizer=w.sgd, batch_size=16)
    with ProcessRunner(pickle_workload(workload)) as runner:
        yours = runner.describe().yours
        found = runner.run(spec(yours.replace(compile="default")))
        assert isinstance(found, Failure), found
        assert (found.kind, "compiled nothing" in found.message) == ("compile_error", True)
        assert isinstance(runner.run(spec(yours)), Measurement)


def test_in_the_users_own_process_nothing_is_compiled() -> None:
    """Forgetting what a trial compiled would forget what the user compiled."""
    told = InProcessRunner(Workload(w.Net(), w.Rows(), optimizer=w.sgd, batch_size=16)).describe()
    space = build_space(told.machine, told.workload, told.yours)
    (kept,) = [kept for kept in space.kept if kept.knob == "compile"]
    assert kept.why == "a trial in your own process would drop what you compiled in it"


def test_a_kit_trains_the_compiled_model() -> None:
    """Step by step like a loop without it; the smaller last batch and validation compile nothing."""
    losses: dict[str | None, list[float]] = {}
    rows = w.Rows(samples=40)
    for mode in (None, "default"):
        torch.manual_seed(0)
        model = w.Net()
        before = compiling.compilations()
        settings = Settings().replace(batch_size=16, compile=mode)
        with make_kit(settings, None, model, w.sgd, loss=cross_entropy) as kit:
            pieces = [(rows.x[i : i + 16], rows.y[i : i + 16]) for i in (0, 16, 32, 0, 16)]
            losses[mode] = [float(kit.step(batch)) for batch in pieces]
            model.eval()
            with torch.no_grad():
                model(rows.x)
        assert compiling.compilations() - before == (mode is not None)
        compiling.forget([model])
    assert losses["default"] == pytest.approx(losses[None], rel=1e-4)


def compiled_by_the_user() -> nn.Module:
    """A model as a factory of the user's own may make it."""
    model = w.Net()
    model.compile(backend="eager")
    return model


def test_what_the_user_compiled_stays_compiled() -> None:
    """It is measured as it is, and said to be compiled already."""
    workload = Workload(compiled_by_the_user, w.Rows(), optimizer=w.sgd, batch_size=16)
    with ProcessRunner(pickle_workload(workload)) as runner:
        told = runner.describe()
        assert told.workload.compiled
        space = build_space(told.machine, told.workload, told.yours)
        assert "the model is compiled already" in [kept.why for kept in space.kept]
        assert isinstance(runner.run(spec(told.yours)), Measurement)


@pytest.mark.parametrize("start", [pickle_workload, lambda workload: InProcessRunner(workload).describe()])
def test_a_live_model_that_is_compiled_in_place_is_refused(start: Callable[[Workload], object]) -> None:
    """A copy of it runs as it is written: the tuner would measure something else than the user runs."""
    with pytest.raises(ModelError, match="compiled in place") as told:
        start(Workload(compiled_by_the_user(), w.Rows(), optimizer=w.sgd, batch_size=16))
    assert "pass a function" in told.value.fix


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_dropout_is_not_compiled_away_for_a_look(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Switching it off would need another compilation: where it drops anything, losses alone are compared."""
    switched: list[bool] = []

    def compiled(function: Callable[..., Any], *, mode: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            switched.append(not all(module.training for module in model.modules()))
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(torch, "compile", compiled)
    model = nn.Sequential(w.Net(), nn.Dropout(share))
    workload = Workload(model, w.Rows(), optimizer=w.sgd, batch_size=16)
    session = Session(workload, parts_of(workload), flags.read_user_flags(), machine_facts)
    yours = session.describe().yours
    found = session.compare_numerics(
        NumericsSpec(settings=yours.replace(compile="default"), reference=yours, steps=16)
    )
    assert isinstance(found, NumericsRecord), found
    assert (found.gradients is None) == (share > 0)
    assert switched
    assert not any(switched)
