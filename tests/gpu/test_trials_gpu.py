"""Trials on a CUDA device: every knob that needs one, every failure that only it can have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import workloads as w

from autotune.facts import MachineFacts
from autotune.measure import flags
from autotune.measure.payload import pickle_workload
from autotune.measure.process_runner import ProcessRunner
from autotune.settings import Settings
from autotune.trial import Failure, Measurement, TrialSpec
from autotune.workload import Workload

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def spec(settings: Settings, **changes: Any) -> TrialSpec:
    return replace(TrialSpec(settings=settings, stage="joint", window_s=0.2, timeout_s=120), **changes)


@pytest.fixture(scope="module")
def pictures() -> Iterator[ProcessRunner]:
    """A small convolution net on CUDA."""
    payload = pickle_workload(Workload(w.ConvNet(), w.Pictures(), optimizer=w.adam, batch_size=16))
    with ProcessRunner(payload) as runner:
        yield runner


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "float32"},
        {"precision": "tf32"},
        {"precision": "bfloat16"},
        {"precision": "float16"},
        {"cudnn_benchmark": True},
        {"channels_last": True},
        {"fused_optimizer": True},
        {"fused_optimizer": True, "precision": "float16", "channels_last": True, "cudnn_benchmark": True},
        {"num_workers": 2, "prefetch_factor": 2, "persistent_workers": True, "pin_memory": True},
        {
            "num_workers": 2,
            "prefetch_factor": 4,
            "persistent_workers": True,
            "pin_memory": True,
            "non_blocking": True,
        },
    ],
    ids=lambda changes: ",".join(f"{k}={v}" for k, v in changes.items()),
)
def test_every_gpu_knob_runs_and_is_measured(pictures: ProcessRunner, changes: dict[str, Any]) -> None:
    """Each setting gives a measurement with a finite loss and a peak of device memory."""
    yours = pictures.describe().yours
    outcome = pictures.run(spec(yours.replace(**changes)))
    assert isinstance(outcome, Measurement), outcome
    assert outcome.peak_device_bytes is not None
    assert outcome.peak_device_bytes > 0
    assert outcome.last_loss is not None


def test_the_facts_name_the_gpu(pictures: ProcessRunner) -> None:
    """Name, memory, capability and driver of the device are known, and the workload is on it."""
    description = pictures.describe()
    machine: MachineFacts = description.machine
    assert machine.gpus[0].name
    assert machine.gpus[0].memory_bytes > 2**30
    assert machine.gpus[0].capability >= (7, 0)
    assert description.workload.device == "cuda:0"
    assert description.workload.image_input


def hungry(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    """A step that takes a gibibyte for every sample."""
    x, y = batch
    held = torch.zeros(len(x) * 2**28, device=x.device)
    return torch.nn.functional.cross_entropy(model(x), y) + held[0]


def test_out_of_memory_is_a_failure_and_the_next_trial_runs() -> None:
    """A batch that does not fit fails as oom_device; a smaller one measures right after it."""
    payload = pickle_workload(Workload(w.Net(), w.Rows(512), step=hungry, optimizer=w.sgd, batch_size=2))
    with ProcessRunner(payload) as runner:
        yours = runner.describe().yours
        bad = runner.run(spec(yours.replace(batch_size=512)))
        assert isinstance(bad, Failure)
        assert bad.kind == "oom_device", bad
        good = runner.run(spec(yours))
        assert isinstance(good, Measurement), good
        assert good.peak_device_bytes is not None
        assert good.peak_device_bytes >= 2 * 2**30


def out_of_bounds(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    """A step whose kernel asserts on the device for larger batches: the context is dead after it."""
    x, y = batch
    index = torch.full((1,), 10**6 if len(x) > 16 else 0, device=x.device)
    return torch.nn.functional.cross_entropy(model(x), y) + torch.zeros(4, device=x.device)[index].sum()


def test_a_sticky_error_costs_its_process_and_nothing_else() -> None:
    """A device-side assert fails as sticky_cuda; the next trial has a fresh process and measures."""
    payload = pickle_workload(Workload(w.Net(), w.Rows(), step=out_of_bounds, optimizer=w.sgd, batch_size=16))
    with ProcessRunner(payload) as runner:
        yours = runner.describe().yours
        bad = runner.run(spec(yours.replace(batch_size=32)))
        assert isinstance(bad, Failure)
        assert bad.kind == "sticky_cuda", bad
        assert isinstance(runner.run(spec(yours)), Measurement)


def test_a_live_model_on_the_gpu_stays_where_and_what_it_is() -> None:
    """It travels as a CPU copy: weights and memory of the parent's device are the same afterwards."""
    model = w.Net().cuda()
    before = [p.detach().clone() for p in model.parameters()]
    allocated = torch.cuda.memory_allocated()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with ProcessRunner(
        pickle_workload(Workload(model, w.Rows(), optimizer=optimizer, batch_size=16))
    ) as runner:
        assert runner.describe().workload.device.startswith("cuda")
        assert isinstance(runner.run(spec(runner.describe().yours)), Measurement)
    assert torch.cuda.memory_allocated() == allocated
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(p.is_cuda and p.grad is None for p in model.parameters())


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_switching_to_the_fused_step_equals_building_it_fused(optimizer: Any) -> None:
    """`set_fused` on an optimizer with state steps as one that was fused from the start."""
    from autotune.measure.optimizers import set_fused

    nets = [w.Net().cuda() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    built = optimizer(nets[0].parameters(), lr=0.01, fused=True)
    switched = optimizer(nets[1].parameters(), lr=0.01)
    set_fused(switched, True)
    rows = w.Rows()
    for net, opt in zip(nets, (built, switched), strict=True):
        for _ in range(3):
            opt.zero_grad()
            torch.nn.functional.cross_entropy(net(rows.x.cuda()), rows.y.cuda()).backward()
            opt.step()
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16", "float16"])
def test_switches_are_put_back(precision: Any) -> None:
    """cudnn.benchmark and the TF32 switches are after a trial what they were before it."""
    before = flags.read_user_flags()
    with flags.preserved():
        compute = Settings().replace(precision=precision, cudnn_benchmark=True).compute
        flags.apply_flags(compute, before, "cuda")
        assert torch.backends.cudnn.benchmark
        wanted = "high" if precision == "tf32" else "highest"
        assert torch.get_float32_matmul_precision() == wanted
    assert flags.read_user_flags() == before
