"""A whole run on real steps in which learning may change: gradients, larger batches, the recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import autotune
from autotune import Workload
from autotune.measure.inprocess import InProcessRunner
from autotune.report.text import render
from autotune.report.view import view_of
from autotune.trial import Measurement, TrialSpec


def digits(samples: int = 16000) -> TensorDataset:
    """Noisy vectors of ten classes: hard enough for a batch to leave much noise in a gradient."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(samples) % 10
    centres = torch.randn(10, 32, generator=generator)
    return TensorDataset(centres[labels] + 4 * torch.randn(samples, 32, generator=generator), labels)


@pytest.mark.parametrize(("batch_size", "momentum"), [(16, 0.1), (32, 0.19), (8, 1 - 0.9**0.5)])
def test_a_trial_has_the_momenta_that_training_will_have(batch_size: int, momentum: float) -> None:
    """Compiled code holds them as constants, so that training at others would have to compile anew."""
    norm, met = nn.BatchNorm1d(32), set()
    norm.register_forward_hook(lambda layer, *_: met.add(layer.momentum))
    model = nn.Sequential(nn.Linear(32, 32), norm, nn.ReLU(), nn.Linear(32, 10))
    runner = InProcessRunner(
        Workload(
            model,
            digits(),
            loss=nn.functional.cross_entropy,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.05),
            batch_size=16,
        )
    )
    yours = runner.describe().yours
    for size, expected in ((batch_size, momentum), (16, 0.1)):
        met.clear()
        spec = TrialSpec(settings=yours.replace(batch_size=size), stage="joint", window_s=0.05)
        assert isinstance(runner.run(spec), Measurement)
        assert list(met) == [pytest.approx(expected)]


@pytest.mark.slow
def test_a_run_that_may_change_learning_tells_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The noise scale of real gradients, a table of batches that ran, and a recipe where one of them won."""
    monkeypatch.setenv("AUTOTUNE_HOME", str(tmp_path / "home"))
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))
    result = autotune.find_best(
        model,
        digits(),
        loss=nn.functional.cross_entropy,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05),
        batch_size=16,
        allow="recipe",
        epochs=20,
        budget="40s",
        runner="in_process",
        fixed={"num_workers": 0},
        storage=str(tmp_path / "study.journal"),
        warm_start=False,
    )
    outcome = result.outcome
    assert outcome.noise is not None
    assert outcome.noise.lower_bound > 0
    assert outcome.noise.at.startswith("after")
    assert outcome.batch is not None
    assert {row.batch_size for row in outcome.batch.rows} >= {16, 32}
    assert outcome.batch.recommended == outcome.best.loader.batch_size
    assert (outcome.recipe is not None) == (outcome.best.loader.batch_size != 16)
    if outcome.recipe is not None:
        assert outcome.recipe.learning_rates[0] > 0.05
    assert "Gradient noise scale" in render(view_of(outcome))
