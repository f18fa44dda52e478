"""Warming and the end of an epoch on a CUDA device."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import workloads as w

from autotune.measure import flags
from autotune.measure.loaders import parts_of
from autotune.measure.probe import machine_facts
from autotune.measure.session import Session
from autotune.settings import Settings
from autotune.trial import Failure, Measurement, TrialSpec
from autotune.workload import Workload

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def outcome(workload: Workload, **asked: Any) -> Any:
    session = Session(workload, parts_of(workload), flags.read_user_flags(), machine_facts)
    spec = TrialSpec(settings=Settings().replace(batch_size=16), stage="final", window_s=0.1)
    return session.run(replace(spec, **asked))


def test_the_gpu_is_kept_busy_before_anything_is_timed() -> None:
    """For as long as asked, and the start costs no more for it."""
    workload = Workload(w.Net(), w.Rows(), optimizer=w.sgd, batch_size=16, device="cuda")
    found = outcome(workload, least_warm_s=3.0)
    assert isinstance(found, Measurement)
    assert found.wall_s >= 3.0
    assert found.warmup_s + found.elapsed_s < found.wall_s - 1.0


@pytest.mark.parametrize("drop_last", [False, True])
def test_the_last_batch_of_an_epoch_is_run_on_the_gpu(drop_last: bool) -> None:
    """One sample is too few for batch norm; without it the trial is measured."""
    rows = w.Rows(16 * 4000 + 1)
    workload = Workload(w.Net(), rows, optimizer=w.sgd, batch_size=16, drop_last=drop_last, device="cuda")
    found = outcome(workload, epoch_edge=True)
    assert isinstance(found, Measurement if drop_last else Failure)
    if isinstance(found, Failure):
        assert found.message.startswith("in the last batch of an epoch (1 sample): ")


def hungry_at_the_end(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    """A step that takes a gibibyte for a batch that is not full."""
    x, y = batch
    held = torch.zeros(2**28 if len(x) < 16 else 1, device=x.device)
    return torch.nn.functional.cross_entropy(model(x), y) + held[0]


def test_peak_memory_includes_the_end_of_an_epoch() -> None:
    """What is needed there alone is needed by training."""
    rows = w.Rows(16 * 4000 + 2)
    workload = Workload(w.Net(), rows, step=hungry_at_the_end, optimizer=w.sgd, batch_size=16, device="cuda")
    without, with_edge = outcome(workload), outcome(workload, epoch_edge=True)
    assert isinstance(without, Measurement)
    assert isinstance(with_edge, Measurement)
    assert without.peak_device_bytes < 2**30 <= with_edge.peak_device_bytes
