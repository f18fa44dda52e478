"""Tensors of the user's that are on a GPU beside the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import workloads as w
from torch import nn
from torch.utils.data import TensorDataset

from autotune.measure.payload import pickle_workload
from autotune.measure.process_runner import ProcessRunner
from autotune.trial import Measurement, TrialSpec
from autotune.workload import Workload

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def measured(workload: Workload) -> tuple[Any, Any]:
    """What describe and a trial of *yours* say."""
    with ProcessRunner(pickle_workload(workload)) as runner:
        told = runner.describe()
        return told, runner.run(TrialSpec(settings=told.yours, stage="yours", window_s=0.2, timeout_s=120))


def test_a_loss_whose_weights_are_on_the_gpu() -> None:
    """As in the user's own loop, where they are not moved either."""
    loss = nn.CrossEntropyLoss(weight=torch.ones(4, device="cuda"))
    told, found = measured(Workload(w.Net().cuda(), w.Rows(), optimizer=w.sgd, batch_size=16, loss=loss))
    assert told.workload.device == "cuda:0"
    assert isinstance(found, Measurement), found


def test_a_loss_on_the_host_goes_to_the_gpu_that_the_tuner_picks() -> None:
    """Nobody has moved the model either."""
    loss = nn.CrossEntropyLoss(weight=torch.ones(4))
    _, found = measured(
        Workload(w.Net(), w.Rows(), optimizer=w.sgd, batch_size=16, loss=loss, device="cuda:0")
    )
    assert isinstance(found, Measurement), found


def test_a_step_that_closes_over_a_tensor_and_a_teacher_on_the_gpu() -> None:
    """Neither is an argument of the step, so nothing else would move them."""
    weights, teacher = torch.ones(4, device="cuda"), w.Net().cuda().eval()

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        output = model(batch[0])
        taught = nn.functional.mse_loss(output, teacher(batch[0]).detach())
        return nn.functional.cross_entropy(output, batch[1], weight=weights) + taught

    _, found = measured(Workload(w.Net().cuda(), w.Rows(), optimizer=w.sgd, batch_size=16, step=step))
    assert isinstance(found, Measurement), found


def test_a_dataset_on_the_gpu_stays_there_and_keeps_its_workers() -> None:
    """Workers could not touch it, and pinned memory is of the host."""
    rows = w.Rows()
    dataset = TensorDataset(rows.x.cuda(), rows.y.cuda())
    told, found = measured(Workload(w.Net().cuda(), dataset, optimizer=w.sgd, batch_size=16))
    assert "cuda:0" in told.workload.workers_fixed
    assert isinstance(found, Measurement), found
