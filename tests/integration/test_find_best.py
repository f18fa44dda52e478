"""`find_best` over every kind of workload that it takes, each with a real run of a few seconds."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
import workloads as w
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

import autotune
from autotune import api
from autotune.errors import AutotuneError
from autotune.result import Result
from autotune.search.listener import SilentListener
from autotune.space.knobs import KNOBS
from autotune.trial import Failure, Measurement, Trial, TrialSpec
from autotune.workload import Workload


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Studies and profiles of these runs stay out of the user's folders."""
    monkeypatch.setenv("AUTOTUNE_HOME", str(tmp_path / "home"))


class Enough(SilentListener):
    """Presses Ctrl-C once a trial of the kind has ended."""

    def __init__(self, kind: Callable[[Trial], bool]) -> None:
        self.kind = kind
        self.seen = False

    def trial_finished(self, trial: Trial, ratio: float | None, best: bool, remaining_s: float) -> None:
        self.seen |= self.kind(trial)

    def trial_started(self, number: int, spec: TrialSpec, remaining_s: float) -> None:
        if self.seen:
            raise KeyboardInterrupt


def something_else(trial: Trial) -> bool:
    return trial.spec.stage != "yours"


def tuned(
    model: Any, dataset: Any = None, *, until: Callable[[Trial], bool] = something_else, **options: Any
) -> Result:
    """A run in this process, which is the quickest to start, that ends at the trial that matters here."""
    usual = {"budget": 60, "runner": "in_process", "listener": Enough(until)}
    return autotune.find_best(model, dataset, **{**usual, **options})


def kept(best: Result, knob: str) -> str:
    return next((k.why for k in best.outcome.kept if k.knob == knob), "")


def step_of_dicts(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return functional.cross_entropy(model(batch["x"]), batch["label"])


def step_of_pairs(model: nn.Module, batch: w.Pair) -> torch.Tensor:
    return functional.cross_entropy(model(batch.x), batch.y)


def play(kit: Any, batch: Any) -> torch.Tensor:
    """A turn for each of two players."""
    for name in ("g", "d"):
        kit.zero_grad()
        with kit.autocast():
            loss = functional.cross_entropy(kit.models[name](batch[0]), batch[1])
        kit.backward(loss)
        kit.optimizer_step(name)
    return loss


def players() -> dict[str, nn.Module]:
    return {"g": w.Net(), "d": w.Net()}


def test_a_run_in_the_bench_process_ends_with_a_measured_answer(tmp_path: Path) -> None:
    """Live objects go over, the budget holds, the answer was run, and what it is saved as is the same."""
    best = autotune.find_best(
        w.Net(),
        w.Rows(512, work_s=0.001),
        optimizer=w.sgd,
        batch_size=16,
        device="cpu",  # a process that opens CUDA takes a third of such a budget to start
        budget=25,
        name="rows",
    )
    assert best.complete
    assert best.outcome.elapsed_s < 25 + 5
    assert best.settings in {t.settings for t in best.outcome.trials if t.measurement is not None}
    again = autotune.load(best.save(tmp_path / "autotune.yaml"))
    assert again.settings == best.settings
    with best.kit(w.Net()) as kit:
        assert isinstance(kit.optimizer, torch.optim.SGD)
        assert torch.isfinite(kit.step(next(iter(best.loader(num_workers=0)))))
    assert re.search(r"batch_size|num_workers|yours", str(best))


def test_a_dataloaders_settings_are_yours() -> None:
    """They are what is measured first and compared with."""
    loader = DataLoader(w.Rows(), batch_size=24, num_workers=1, prefetch_factor=3, drop_last=True)
    best = tuned(w.Net(), loader, optimizer=w.sgd)
    yours = best.outcome.yours.loader
    assert (yours.batch_size, yours.num_workers, yours.prefetch_factor) == (24, 1, 3)
    assert yours.persistent_workers is False
    assert best.outcome.trials[0].settings.loader == yours
    assert best.loader(num_workers=0).drop_last


def test_a_stream_that_does_not_share_its_samples_out_keeps_its_workers() -> None:
    """No trial has other workers than the user's own, and the report says why."""
    best = tuned(w.Net(), w.Stream(), optimizer=w.sgd, batch_size=16)
    assert {t.settings.loader.num_workers for t in best.outcome.trials} == {0}
    assert "once per worker" in kept(best, "num_workers")
    assert "once per worker" in str(best)


WORKLOADS: dict[str, dict[str, Any]] = {
    "functions": {"model": w.Net, "dataset": w.Rows, "optimizer": w.sgd, "batch_size": 16},
    "optimizer factory missing": {"model": w.Net(), "dataset": w.Rows(), "batch_size": 16},
    "dicts with a step": {
        "model": w.Net(),
        "dataset": w.DictRows(),
        "step": step_of_dicts,
        "optimizer": w.adam,
        "batch_size": 16,
    },
    "dataclasses": {
        "model": w.Net(),
        "dataset": w.Rows(),
        "collate_fn": w.to_pair,
        "step": step_of_pairs,
        "optimizer": w.sgd,
        "batch_size": 16,
    },
    "two players": {
        "model": players(),
        "dataset": w.Rows(),
        "train_step": play,
        "optimizer": {"g": w.adam, "d": w.adam},
        "batch_size": 16,
    },
    "a Workload": {"model": Workload(w.Net(), w.Rows(), optimizer=w.sgd, batch_size=16)},
    "a file": {"model": f"{w.__file__}:make"},
}


@pytest.mark.parametrize("case", WORKLOADS)
def test_every_kind_of_workload_is_measured(case: str) -> None:
    """*Yours* and something beside it ran, and a kit made from the answer trains a step."""
    options = dict(WORKLOADS[case])
    best = tuned(options.pop("model"), options.pop("dataset", None), **options)
    done = [t for t in best.outcome.trials if t.measurement is not None]
    assert done[0].spec.stage == "yours"
    assert len(done) == 2
    assert best.settings in {t.settings for t in done}
    if case == "two players":
        kit = best.kit(players())
        assert set(kit.optimizers) == {"g", "d"}
    elif case != "optimizer factory missing":
        kit = best.kit(w.Net())
    else:
        assert any("no optimizer was given" in note for note in best.outcome.notes)
        with pytest.raises(AutotuneError):
            best.kit(w.Net())
        return
    with kit:
        assert torch.isfinite(kit.step(next(iter(best.loader(num_workers=0)))))


def test_a_loop_without_a_loader_has_its_compute_side_tuned() -> None:
    """Rates count the samples that the user says a step trains on; no loader knob is tried."""
    best = tuned(w.Net(), step=w.draw_rows, samples_per_step=8, optimizer=w.sgd)
    assert best.outcome.workload.dataset_class is None
    measured = [t.measurement for t in best.outcome.trials if t.measurement is not None]
    assert all(m.samples == 8 * m.steps for m in measured)
    assert not any(t.spec.mode == "loader" for t in best.outcome.trials)
    assert "DataLoader" in kept(best, "num_workers")
    with pytest.raises(AutotuneError):
        best.loader()


def test_a_target_is_made_in_the_bench_process_alone(tmp_path: Path) -> None:
    """By name, with fields given beside it, and never imported here."""
    script = tmp_path / "train_rows.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(Path(w.__file__).parent)!r})\n"
        "import workloads as w\n"
        "def make():\n    return w.make()\n"
    )
    best = tuned(f"{script}:make", batch_size=8, runner="process")
    assert best.outcome.workload.batch_samples == 8
    assert best.outcome.name == "rows"  # as the workload calls itself
    assert "train_rows" not in sys.modules
    assert best.loader(w.Rows(), num_workers=0).batch_size == 8


def test_fixed_knobs_are_in_every_candidate() -> None:
    """Only *yours* may have another value."""
    best = tuned(
        w.Net(),
        w.Rows(512, work_s=0.001),
        optimizer=w.sgd,
        batch_size=16,
        fixed={"num_workers": 1, "prefetch_factor": 3},
        until=lambda trial: trial.settings.loader.num_workers > 0,
    )
    others = [t.settings.loader for t in best.outcome.trials if t.settings != best.outcome.yours]
    assert others
    assert all((loader.num_workers, loader.prefetch_factor) == (1, 3) for loader in others)


def test_exact_changes_no_rounding() -> None:
    """With allow="exact" only knobs of that class differ from *yours* in any trial."""
    best = tuned(
        w.ConvNet(),
        w.Pictures(),
        optimizer=w.sgd,
        batch_size=8,
        allow="exact",
        until=lambda trial: trial.number >= 5,
    )
    changed = {name for t in best.outcome.trials for name in t.settings.changed_from(best.outcome.yours)}
    assert changed <= {knob.name for knob in KNOBS if knob.kind == "exact"}
    assert changed


def test_a_study_in_a_database_goes_on(tmp_path: Path) -> None:
    """An SQLite URL works as storage, optuna opens it, and resume continues its trials."""
    url = f"sqlite:///{tmp_path / 'study.db'}"
    first = tuned(w.Net(), w.Rows(), optimizer=w.sgd, batch_size=16, storage=url, name="rows")
    second = tuned(w.Net(), w.Rows(), optimizer=w.sgd, batch_size=16, storage=url, name="rows", resume=True)
    assert len(second.outcome.trials) > len(first.outcome.trials)
    assert any("resumed" in note for note in second.outcome.notes)
    (summary,) = optuna.get_all_study_summaries(url)
    assert summary.n_trials >= len(second.outcome.trials)


def test_epochs_spread_the_start_up() -> None:
    """The length of the run is part of the answer."""
    best = tuned(w.Net(), w.Rows(), optimizer=w.sgd, batch_size=16, epochs=3)
    assert best.outcome.epochs == 3
    assert best.profile.measured.epochs == 3


class Widely:
    """A Runner around the real one, for which large batches are three times as fast."""

    def __init__(self, workload: Workload) -> None:
        self.inner = api.make_runner(workload, "in_process", "", {})

    def describe(self) -> Any:
        return self.inner.describe()

    def run(self, spec: TrialSpec) -> Measurement | Failure:
        found = self.inner.run(replace(spec, window_s=0.1))
        if isinstance(found, Failure) or spec.settings.loader.batch_size != 32:
            return found
        faster = tuple(replace(b, elapsed_s=b.elapsed_s / 3, wait_s=b.wait_s / 3) for b in found.blocks)
        return replace(found, blocks=faster)

    def close(self) -> None:
        self.inner.close()


def wide(trial: Trial) -> bool:
    return trial.spec.mode == "full" and trial.settings.loader.batch_size == 32


def test_a_larger_batch_takes_its_recipe_along(tmp_path: Path) -> None:
    """allow="recipe": the learning rate is scaled in profile, YAML and kit, for SGD by the batch's factor."""
    workload = Workload(w.Net(), w.Rows(4096), optimizer=w.sgd, batch_size=16)
    best = tuned(
        workload, runner=Widely(workload), allow="recipe", epochs=2, fixed={"batch_size": 32}, until=wide
    )
    recipe = best.profile.recipe
    assert best.settings.loader.batch_size == 32
    assert recipe is not None
    assert (recipe.reference_learning_rates, recipe.learning_rates) == ((0.05,), (0.1,))
    assert recipe.warmup_samples == 0  # the rate at most doubles
    text = best.save(tmp_path / "autotune.yaml").read_text()
    assert "learning_rates" in text
    again = autotune.load(tmp_path / "autotune.yaml")
    assert again.profile.recipe == recipe
    kit = again.kit(w.Net(), w.sgd)
    assert kit.optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


def test_resume_finds_the_study_of_this_name(tmp_path: Path) -> None:
    """Not that of a workload whose name only begins alike."""
    folder = tmp_path / "home" / "studies"
    folder.mkdir(parents=True)
    for name in ("net-20260101-000000", "net-20260201-000000", "net-large-20260301-000000"):
        (folder / f"{name}.journal").touch()
    assert Path(api._journal("net", resume=True)).name == "net-20260201-000000.journal"
    assert Path(api._journal("net-large", resume=True)).name == "net-large-20260301-000000.journal"
    assert Path(api._journal("net", resume=False)).name not in {p.name for p in folder.iterdir()}


@pytest.mark.parametrize(
    "arguments",
    [
        {"model": "train.py:make", "dataset": w.Rows()},
        {"model": Workload(w.Net(), w.Rows()), "dataset": w.Rows()},
        {"model": w.Net(), "dataset": w.Rows(), "runner": "thread"},
        {"model": w.Net(), "dataset": w.Rows(), "allow": "all"},
        {"model": w.Net(), "dataset": w.Rows(), "epochs": 0},
    ],
)
def test_arguments_that_cannot_go_together_are_refused(arguments: dict[str, Any]) -> None:
    """Before anything runs, with a way out."""
    with pytest.raises(AutotuneError) as raised:
        tuned(arguments.pop("model"), arguments.pop("dataset"), **arguments)
    assert raised.value.code == "AT-E01"
    assert raised.value.fix
