"""Batches gathered to one step of the optimizer: as they are measured, and as the kit trains with them."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import workloads as w
from strategies import plain_workload
from torch import nn
from torch.nn import functional
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader

import autotune
from autotune.errors import AutotuneWarning, UsageError
from autotune.kit import make_kit
from autotune.measure.inprocess import InProcessRunner
from autotune.measure.stepkit import StepKit
from autotune.recipe.scaling import scale_recipe
from autotune.search.listener import SilentListener
from autotune.settings import Settings
from autotune.testing import FakeRunner, fake_description
from autotune.trial import Measurement, Trial, TrialSpec
from autotune.workload import Workload


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Studies and profiles of these runs stay out of the user's folders."""
    monkeypatch.setenv("AUTOTUNE_HOME", str(tmp_path / "home"))


class Counted(torch.optim.SGD):
    """Counts its steps over all of its kind."""

    steps = 0

    def step(self, closure: Any = None) -> Any:
        """One more."""
        Counted.steps += 1
        return super().step(closure)


class Seen(nn.Module):
    """Counts the batches that are learnt from."""

    batches = 0

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        Seen.batches += 1
        return self.inner(x)


def counted(params: Any) -> torch.optim.Optimizer:
    """Counts, at a rate that changes little."""
    return Counted(params, lr=1e-4)


def measured(workload: Workload, batch_size: int) -> tuple[Measurement, int, int]:
    """A trial in this batch size; with how many batches and how many steps of the optimizer it took."""
    runner = InProcessRunner(workload)
    try:
        yours = runner.describe().yours
        Seen.batches = Counted.steps = 0
        found = runner.run(
            TrialSpec(settings=yours.replace(batch_size=batch_size), stage="joint", mode="full", window_s=0.3)
        )
    finally:
        runner.close()
    assert isinstance(found, Measurement)
    return found, Seen.batches, Counted.steps


@pytest.mark.parametrize(("keep", "own", "size", "gather"), [(True, 16, 4, 4), (32, 8, 16, 2), (32, 8, 8, 4)])
def test_a_trial_steps_the_optimizer_once_for_so_many_batches(
    keep: bool | int, own: int, size: int, gather: int
) -> None:
    """What is shown was run: each batch forward and backward, and the optimizer at the pace that it has."""
    workload = Workload(Seen(), w.Rows(512), optimizer=counted, batch_size=own, keep_effective=keep)
    found, batches, steps = measured(workload, size)
    assert batches // gather == steps
    assert all(block.steps % gather == 0 for block in found.blocks[:-1])
    assert found.warmup_steps % gather == 0


def test_without_it_each_batch_is_a_step() -> None:
    """As ever."""
    _, batches, steps = measured(Workload(Seen(), w.Rows(512), optimizer=counted, batch_size=16), 4)
    assert batches == steps


def described(**fields: Any) -> Any:
    runner = InProcessRunner(
        Workload(**{"model": Seen, "dataset": w.Rows(512), "optimizer": counted, "batch_size": 16, **fields})
    )
    try:
        return runner.describe().workload
    finally:
        runner.close()


def test_the_facts_hold_the_samples_of_a_step() -> None:
    """Those of the user's batch, or as many as asked for; none where a step has one batch."""
    assert described(keep_effective=True).step_samples == 16
    assert described(keep_effective=64).step_samples == 64
    assert described().step_samples is None


@pytest.mark.parametrize(
    "fields",
    [
        {"keep_effective": 24},
        {
            "keep_effective": True,
            "batch_size": None,
            "dataset": DataLoader(w.Rows(), batch_sampler=[[0, 1, 2, 3], [4, 5]]),
        },
        {
            "keep_effective": True,
            "model": lambda: {"a": w.Net(), "b": w.Net()},
            "optimizer": {"a": w.sgd, "b": w.sgd},
        },
    ],
)
def test_a_step_that_cannot_be_gathered_is_refused(fields: dict[str, Any]) -> None:
    """One that the user's batches do not make up, batches of an unknown size, several optimizers."""
    with pytest.raises(UsageError) as raised:
        described(**fields)
    assert raised.value.why
    assert raised.value.fix


def test_gathered_steps_of_the_bench_change_weights_as_the_whole_batch_does() -> None:
    """Four batches of a quarter and one whole: the same weights, whether steps or their pieces are called."""
    ends = []
    for gather, size in ((4, 4), (1, 16)):
        torch.manual_seed(0)
        model = nn.Linear(16, 4)
        kit = StepKit(
            models={"": model},
            optimizers_={"": torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)},
            settings=Settings(),
            device=torch.device("cpu"),
            loss_of=lambda m, b: functional.cross_entropy(m(b[0]), b[1]),
            gather=gather,
        )
        for batch in DataLoader(w.Rows(48), batch_size=size):
            kit.step(batch)
        ends.append(model.weight.detach().clone())
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-5, atol=1e-6)


class FirstLarge(SilentListener):
    """Presses Ctrl-C once a trial in batches of 4 has ended."""

    seen = False

    def trial_finished(self, trial: Trial, ratio: float | None, best: bool, remaining_s: float) -> None:
        """Whether that was it."""
        self.seen |= trial.settings.loader.batch_size == 4

    def trial_started(self, number: int, spec: TrialSpec, remaining_s: float) -> None:
        """No further."""
        if self.seen:
            raise KeyboardInterrupt


def test_what_find_best_is_asked_reaches_the_kit(tmp_path: Path) -> None:
    """A step that is kept and a decay, through a real run, its file, and a kit that trains by them."""
    best = autotune.find_best(
        w.Net(),
        w.Rows(256),
        optimizer=w.sgd,
        batch_size=16,
        keep_effective=64,
        decay="polynomial",
        epochs=2,
        allow="recipe",
        fixed={"batch_size": 4},
        budget=60,
        runner="in_process",
        listener=FirstLarge(),
    )
    best.save(tmp_path / "autotune.yaml")
    recipe = autotune.load(tmp_path / "autotune.yaml").profile.recipe
    assert recipe is not None
    assert recipe == best.profile.recipe
    assert recipe.reference_accumulation_steps == 4
    size = best.settings.loader.batch_size
    assert (recipe.step_samples, recipe.accumulation_steps) == (64, 64 // (size or 1))
    kit = autotune.load(tmp_path / "autotune.yaml").kit(w.Net(), w.sgd, loss=functional.cross_entropy)
    for batch in DataLoader(w.Rows(256), batch_size=size):
        kit.step(batch)
    assert kit.scheduler is not None
    assert kit.scheduler.samples == 256
    assert kit.optimizer.param_groups[0]["lr"] == pytest.approx(0.05 * 0.5)


@pytest.mark.parametrize(("batch_size", "gather"), [(64, 1), (32, 1), (16, 4)])
@pytest.mark.parametrize("drop_last", [False, True])
def test_a_run_with_a_decay_learns_to_its_last_step(batch_size: int, gather: int, drop_last: bool) -> None:
    """100 samples are no whole number of batches: the rate comes down with the steps that a loader makes."""
    own = batch_size * gather
    left = 100 % own if drop_last else None
    workload = plain_workload(
        dataset_samples=100 - (left or 0), dropped_samples=left, step_samples=own if gather > 1 else None
    )
    recipe = scale_recipe(workload, batch_size, own, epochs=6, decay="cosine", keep_effective=gather > 1)
    settings = Settings.from_flat({"batch_size": batch_size})
    kit = make_kit(settings, recipe, w.Net(), w.sgd, loss=functional.cross_entropy, device="cpu")
    loader = DataLoader(w.Rows(100), batch_size=batch_size, drop_last=drop_last)
    rates: list[float] = []
    kit.optimizer.register_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
    for batch in itertools.chain.from_iterable(itertools.repeat(loader, 6)):
        kit.step(batch)
    assert len(rates) == 6 * len(loader) // gather
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] > 1e-6
    all_learnt = 6 * len(loader) % gather == 0
    assert (kit.optimizer.param_groups[0]["lr"] < 1e-12) == all_learnt
    kit.close()


def growing(settings: Settings, mode: str) -> float:
    """Larger batches are faster."""
    size = settings.loader.batch_size or 1
    return (1 if mode == "full" else 3) * size / (0.05 + size / 4000)


def faked(**facts: Any) -> Any:
    """`find_best` on a made-up machine where larger batches pay and little else is there to try."""
    description = fake_description(**{"usable_cpus": 1, "learning_rates": (0.05,), **facts})
    return autotune.find_best(
        w.Net,
        w.Rows(64),
        optimizer=w.sgd,
        runner=FakeRunner(growing, description=description),
        allow="recipe",
        fixed={"num_workers": 0},
        budget=300,
        warm_start=False,
    )


def test_without_a_learning_rate_the_batch_stays_and_the_report_says_why() -> None:
    """No optimizer was given: nobody knows what would have to be scaled."""
    best = faked(optimizer_class=None, optimizer_family="other", learning_rates=())
    assert best.settings.loader.batch_size == 64
    assert best.profile.recipe is None
    said = " ".join(str(best).split())
    assert "batch_size 64: no optimizer was given, so no learning rate could go with another one" in said


def test_a_scheduler_of_unknown_type_is_kept_with_a_warning() -> None:
    """After a run whose batch grew: the user goes on stepping it, from the scaled rate."""
    best = faked()
    recipe = best.profile.recipe
    assert recipe is not None
    assert best.settings.loader.batch_size > 64
    model = w.Net()
    optimizer = w.sgd(model.parameters())
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer)
    with pytest.warns(AutotuneWarning, match="ReduceLROnPlateau is kept as it is"):
        kit = best.kit(model, optimizer, scheduler=scheduler)
    assert kit.optimizer.param_groups[0]["lr"] <= recipe.learning_rates[0]
    scheduler.step(1.0)
    assert any("kit(scheduler=...)" in note for note in recipe.notes)
