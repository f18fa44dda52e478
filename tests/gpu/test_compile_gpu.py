"""torch.compile on a CUDA device: CUDA graphs that write to the same memory in every step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import workloads as w
from torch import nn
from torch.nn.functional import cross_entropy

from autotune.kit import make_kit
from autotune.measure import compiling
from autotune.measure.payload import pickle_workload
from autotune.measure.process_runner import ProcessRunner
from autotune.measure.seam import NumericsSpec
from autotune.recipe.guard import NumericsRecord, judge_numerics
from autotune.settings import Settings
from autotune.trial import Measurement, TrialSpec
from autotune.workload import Workload

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.timeout(400),
    pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning"),  # torch, of itself
    pytest.mark.filterwarnings("ignore::UserWarning:torch._inductor"),  # its advice
    pytest.mark.filterwarnings("ignore:The CUDA Graph is empty:UserWarning"),  # torch opens with one
]


class OwnLoss(nn.Module):
    """A model that computes its loss itself: a result of the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.net = w.ConvNet()

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return cross_entropy(self.net(x), y)


def own_loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """The loss that the model gives."""
    return model(*batch)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_kept_losses_are_those_of_their_own_step(mode: str, precision: str) -> None:
    """Also where the next graph writes to the memory that a loss came from, and around a small batch."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(80, 3, 8, 8, generator=generator), torch.arange(80) % 4
    pieces = [(x[i : i + 16], y[i : i + 16]) for i in (0, 16, 32, 48, 64)]
    pieces.insert(3, (x[:5], y[:5]))
    found: dict[str | None, list[float]] = {}
    for compiled in (None, mode):
        torch.manual_seed(0)
        model = OwnLoss()
        settings = Settings().replace(batch_size=16, compile=compiled, precision=precision)
        with make_kit(settings, None, model, w.sgd, step=own_loss, device="cuda") as kit:
            kept = [kit.step(batch) for batch in pieces]
        found[compiled] = [float(loss) for loss in kept]
        compiling.forget([model])
    assert found[mode] == pytest.approx(found[None], rel=2e-3)


@pytest.fixture(scope="module")
def pictures() -> Iterator[ProcessRunner]:
    """A small convolution net on CUDA; the last batch of an epoch is smaller."""
    payload = pickle_workload(Workload(w.ConvNet(), w.Pictures(), optimizer=w.adam, batch_size=24))
    with ProcessRunner(payload) as runner:
        yield runner


def spec(settings: Settings, **changes: Any) -> TrialSpec:
    return replace(TrialSpec(settings=settings, stage="joint", window_s=0.3, timeout_s=300), **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"compile": "default"},
        {"compile": "reduce-overhead"},
        {"compile": "reduce-overhead", "precision": "bfloat16", "fused_optimizer": True},
        {"compile": "reduce-overhead", "precision": "float16", "channels_last": True},
        {
            "compile": "reduce-overhead",
            "num_workers": 2,
            "prefetch_factor": 2,
            "pin_memory": True,
            "non_blocking": True,
        },
    ],
    ids=lambda changes: ",".join(f"{k}={v}" for k, v in changes.items()),
)
def test_compiled_trials_run_across_the_end_of_an_epoch(pictures: ProcessRunner, changes: dict) -> None:
    """While a thread pins batches, and nothing is compiled for the smaller last one."""
    yours = pictures.describe().yours
    found = pictures.run(spec(yours.replace(**changes), epoch_edge=True))
    assert isinstance(found, Measurement), found
    assert not any("recompiled" in block.marks for block in found.blocks)


def test_a_graphs_memory_is_free_for_the_next_trial(pictures: ProcessRunner) -> None:
    """What *yours* reserves at its peak is the same whatever ran before it in one process."""
    yours = pictures.describe().yours
    graphs = yours.replace(compile="reduce-overhead")
    peaks = []
    for _ in range(2):
        for settings in (yours, graphs, yours):
            found = pictures.run(spec(settings))
            assert isinstance(found, Measurement), found
            if settings == yours:
                peaks.append(found.peak_device_bytes)
        compared = pictures.compare_numerics(NumericsSpec(settings=graphs, reference=yours, timeout_s=300))
        assert isinstance(compared, NumericsRecord), compared
    assert len(set(peaks)) == 1, peaks


def test_graphs_train_the_same(pictures: ProcessRunner) -> None:
    """The same steps, replayed and run one by one: gradients at equal weights, and losses."""
    yours = pictures.describe().yours
    wanted = yours.replace(compile="reduce-overhead")
    found = pictures.compare_numerics(NumericsSpec(settings=wanted, reference=yours, timeout_s=300))
    assert isinstance(found, NumericsRecord), found
    assert judge_numerics(found).kind == "same", found
    assert found.gradients is not None
    assert found.gradients.cosine > 0.999
