"""What one look at a workload finds, and how it says that there is nothing to look at."""

from __future__ import annotations

import gc
import threading
from typing import Any

import psutil
import pytest
import torch
import workloads as w
from torch import nn
from torch.utils.data import DataLoader

from autotune.errors import AutotuneError
from autotune.measure import flags
from autotune.measure.feed import LoaderFeed
from autotune.measure.inprocess import InProcessRunner
from autotune.measure.loaders import parts_of
from autotune.measure.payload import pickle_workload, target_payload
from autotune.measure.probe import machine_facts
from autotune.measure.process_runner import ProcessRunner
from autotune.measure.seam import Description
from autotune.measure.session import Session
from autotune.measure.stepkit import StepKit
from autotune.trial import Measurement, TrialSpec
from autotune.workload import Workload


def described(workload: Workload) -> Description:
    return InProcessRunner(workload).describe()


def session_of(workload: Workload) -> Session:
    return Session(workload, parts_of(workload), flags.read_user_flags(), machine_facts)


def refused(workload: Workload) -> AutotuneError:
    with pytest.raises(AutotuneError) as raised:
        described(workload)
    error = raised.value
    assert error.why
    assert error.fix
    return error


class Tempered(nn.Module):
    """A loss that learns."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(output * self.temperature, target)


def fused_sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.01, fused=True)


def breaks() -> Any:
    raise FileNotFoundError("weights.pt")


def out_of_memory(model: nn.Module, batch: Any) -> torch.Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB.")


def test_what_the_users_code_sets_already_is_yours() -> None:
    """A model in NHWC order and a fused optimizer are the user's own, and no gain to find."""
    model = w.ConvNet().to(memory_format=torch.channels_last)
    yours = described(Workload(model, w.Pictures(), batch_size=8, optimizer=fused_sgd)).yours.compute
    assert (yours.channels_last, yours.fused_optimizer) == (True, True)
    plain = described(Workload(w.ConvNet(), w.Pictures(), batch_size=8, optimizer=w.sgd)).yours.compute
    assert (plain.channels_last, plain.fused_optimizer) == (False, False)


def test_what_does_nothing_on_this_device_is_no_part_of_yours() -> None:
    """Pinned memory asked for on a CPU is neither measured nor counted as a difference."""
    loader = DataLoader(w.Rows(), batch_size=16, pin_memory=True, num_workers=1, prefetch_factor=3)
    yours = described(Workload(w.Net(), loader, optimizer=w.sgd, device="cpu")).yours.loader
    assert yours.pin_memory is False
    assert (yours.batch_size, yours.num_workers, yours.prefetch_factor) == (16, 1, 3)


def test_a_dataset_that_makes_its_batches_is_counted_by_them() -> None:
    """With batch_size=None a sample of the loader is a batch: its rows count, its length does not."""
    batches = [(torch.randn(12, 16), torch.randint(0, 4, (12,))) for _ in range(6)]
    workload = Workload(w.Net(), DataLoader(batches, batch_size=None), optimizer=w.sgd)
    runner = InProcessRunner(workload)
    facts = runner.describe().workload
    assert facts.batch_samples == 12
    assert facts.dataset_samples is None
    assert facts.batch_size_fixed
    found = runner.run(TrialSpec(settings=runner.describe().yours, stage="yours", window_s=0.1))
    assert isinstance(found, Measurement)
    assert found.samples == 12 * found.steps


@pytest.mark.parametrize(("drop_last", "trained", "dropped"), [(False, 23, None), (True, 20, 3)])
def test_samples_that_no_epoch_trains_on_are_counted_apart(
    drop_last: bool, trained: int, dropped: int | None
) -> None:
    """Another batch size leaves out others, so both numbers are told; of a sampler, its own length."""
    loader = DataLoader(w.Rows(23), batch_size=5, drop_last=drop_last)
    sampler = DataLoader(w.Rows(64), batch_size=5, sampler=range(23), drop_last=drop_last)
    for workload in (
        Workload(w.Net(), w.Rows(23), batch_size=5, drop_last=drop_last, optimizer=w.sgd),
        Workload(w.Net(), loader, optimizer=w.sgd),
        Workload(w.Net(), sampler, optimizer=w.sgd),
    ):
        facts = described(workload).workload
        assert (facts.dataset_samples, facts.dropped_samples) == (trained, dropped)


def test_own_batches_of_a_part_of_the_dataset_are_an_epoch() -> None:
    """A shard of 128 of 512 rows, in tensors: its batches hold 32, and an epoch is 128."""
    shard = torch.randperm(512)[:128].split(32)
    facts = described(
        Workload(w.Net(), DataLoader(w.Rows(512), batch_sampler=shard), optimizer=w.sgd)
    ).workload
    assert (facts.batch_samples, facts.dataset_samples) == (32, 128)


def test_parts_in_evaluation_stay_there() -> None:
    """A frozen backbone keeps its flag in every trial; a model validated last is trained all the same."""
    model = w.Net()
    model.body[1].eval()
    session = session_of(Workload(model, w.Rows(), batch_size=16, optimizer=w.sgd))
    session.describe()
    session.restore()
    assert [m.training for m in model.body] == [True, False, True, True]
    validated = w.Net().eval()
    session_of(Workload(validated, w.Rows(), batch_size=16)).restore()
    assert all(m.training for m in validated.modules())


def test_a_ladder_of_batch_sizes_keeps_two_batches() -> None:
    """The user's own batch and the latest other one are held; the rest of the memory is free again."""
    session = session_of(Workload(w.Net(), w.Rows(), batch_size=16, optimizer=w.sgd))
    own, _ = session.held_batch(16)
    for size in (8, 32, 64):
        assert session.held_batch(size)[1] == size
    assert set(session._held) == {16, 64}
    assert session.held_batch(16)[0] is own


def test_nothing_is_left_on_the_model_when_a_step_raises() -> None:
    """The hooks of the look are gone, whatever way it ended."""
    model = w.Net()
    session = session_of(Workload(model, w.Rows(), batch_size=16, step=out_of_memory))
    with pytest.raises(AutotuneError):
        session.describe()
    assert all(not m._forward_pre_hooks for m in model.modules())


def test_a_compiled_model_is_measured() -> None:
    """A model that the user compiled runs, with its own class of step."""
    runner = InProcessRunner(
        Workload(torch.compile(w.Net(), backend="eager"), w.Rows(), batch_size=16, optimizer=w.sgd)
    )
    found = runner.run(TrialSpec(settings=runner.describe().yours, stage="yours", window_s=0.1))
    assert isinstance(found, Measurement)


def test_a_buffer_that_shares_its_elements_is_left_alone() -> None:
    """Expanded buffers cannot be written to, so nothing has to put them back."""
    model = w.Net()
    model.register_buffer("scale", torch.ones(1).expand(16))
    assert described(Workload(model, w.Rows(), batch_size=16)).workload.first_loss is not None


def test_models_without_values_are_refused() -> None:
    """Lazy and meta parameters are named, with what to do first."""
    lazy = refused(Workload(nn.Sequential(nn.LazyLinear(4)), w.Rows(), batch_size=16))
    assert lazy.code == "AT-E20"
    assert "0.weight" in lazy.what
    with torch.device("meta"):
        model = w.Net()
    meta = refused(Workload({"net": model}, w.Rows(), batch_size=16))
    assert "net.body.0.weight" in meta.what


def test_functions_that_raise_are_named() -> None:
    """A factory of the model or of the dataset that fails says so itself, with its traceback."""
    model = refused(Workload(breaks, w.Rows(), batch_size=16))
    assert (model.code, "weights.pt" in model.why, "in breaks" in model.detail) == ("AT-E20", True, True)
    dataset = refused(Workload(w.Net(), breaks, batch_size=16))
    assert (dataset.code, "weights.pt" in dataset.why) == ("AT-E13", True)


def test_an_optimizer_of_another_model_is_refused() -> None:
    """Its steps would change nothing of what is trained."""
    other = torch.optim.SGD(w.Net().parameters(), lr=0.1)
    error = refused(Workload(w.Net(), w.Rows(), batch_size=16, optimizer=other))
    assert error.code == "AT-E01"
    assert "optimizer" in error.what


def test_a_model_that_cannot_be_copied_is_refused() -> None:
    """In the user's own process a copy is trained, and some models have none."""
    model = w.Net()
    model.cached = model.body[0].weight * 2  # type: ignore[assignment]
    assert "function" in refused(Workload(model, w.Rows(), batch_size=16)).fix


def test_a_loss_with_weights_is_copied_too() -> None:
    """In the user's own process nothing of theirs gets a gradient."""
    loss = Tempered()
    described(Workload(w.Net(), w.Rows(), batch_size=16, loss=loss))
    assert loss.temperature.grad is None


@pytest.mark.parametrize("in_process", [True, False])
def test_too_little_memory_in_the_first_step_is_an_error_of_ours(in_process: bool) -> None:
    """What the device says is classified, with a way out."""
    workload = Workload(w.Net(), w.Rows(), batch_size=16, step=out_of_memory)
    runner = InProcessRunner(workload) if in_process else ProcessRunner(pickle_workload(workload))
    try:
        with pytest.raises(AutotuneError) as raised:
            runner.describe()
    finally:
        runner.close()
    assert raised.value.code == "AT-E32"
    assert "3.00 GiB" in raised.value.why
    assert "smaller batch" in raised.value.fix


def test_a_target_takes_functions_of_the_caller() -> None:
    """Fields given beside a target travel by value, as live objects do; what cannot is named."""
    with ProcessRunner(target_payload(f"{w.__file__}:make", loss=lambda out, y: out.sum() * 0 + 1)) as runner:
        assert runner.describe().workload.first_loss == 1
    lock = threading.Lock()
    with pytest.raises(AutotuneError) as raised:
        target_payload(f"{w.__file__}:make", loss=lambda out, y: lock)
    assert raised.value.code == "AT-E12"
    assert "loss" in raised.value.what


def test_trials_leave_nothing_behind() -> None:
    """After many trials no loader, optimizer, worker, hook or file is left of them."""
    session = session_of(Workload(w.Net(), w.Rows(), batch_size=16, optimizer=w.adam))
    yours = session.describe().yours

    def left() -> dict[str, int]:
        gc.collect()
        kinds = (DataLoader, torch.optim.Optimizer, StepKit, LoaderFeed)
        alive = [kind for value in gc.get_objects() for kind in kinds if issubclass(type(value), kind)]
        return {
            **{kind.__name__: alive.count(kind) for kind in kinds},
            "children": len(psutil.Process().children(recursive=True)),
            "files": psutil.Process().num_fds(),
            "hooks": sum(len(m._forward_pre_hooks) for m in session.main_model.modules()),
        }

    plan = [
        yours,
        yours.replace(num_workers=2, prefetch_factor=2, persistent_workers=True),
        yours.replace(num_workers=1, prefetch_factor=2, batch_size=8),
        yours.replace(precision="bfloat16", batch_size=32),
    ]
    seen = [left()]
    for _ in range(2):
        for settings in plan:
            found = session.run(TrialSpec(settings=settings, stage="joint", window_s=0.05))
            assert isinstance(found, Measurement)
        seen.append(left())
    assert seen[1] == seen[2]
    for kind in ("DataLoader", "Optimizer", "StepKit", "LoaderFeed", "children", "hooks"):
        assert seen[2][kind] <= seen[0][kind], kind


def test_a_tiny_dataset_with_lasting_workers_has_its_restart_timed() -> None:
    """Fewer batches than are in flight: the next epoch still starts, and its start is short of a new one."""
    session = session_of(Workload(w.Net(), w.Rows(20), batch_size=16, optimizer=w.sgd))
    settings = session.describe().yours.replace(num_workers=2, prefetch_factor=4, persistent_workers=True)
    found = session.run(TrialSpec(settings=settings, stage="joint", window_s=0.1))
    assert isinstance(found, Measurement)
    assert found.samples < 16 * found.steps
    assert 0 <= found.restart_s < found.startup_s


def test_workers_that_start_anew_have_their_first_steps_and_their_end_counted() -> None:
    """A further epoch costs more than its first batch, by what steps take after a start."""
    session = session_of(Workload(w.Net(), w.Rows(64), batch_size=16, optimizer=w.sgd))
    settings = session.describe().yours.replace(num_workers=1, prefetch_factor=2)
    found = session.run(TrialSpec(settings=settings, stage="joint", window_s=0.1))
    assert isinstance(found, Measurement)
    assert found.restart_s > found.startup_s
    assert found.warmup_steps >= 2


def test_without_workers_a_further_epoch_starts_like_the_first() -> None:
    """Nothing is forked, and nothing ends."""
    session = session_of(Workload(w.Net(), w.Rows(64), batch_size=16, optimizer=w.sgd))
    found = session.run(TrialSpec(settings=session.describe().yours, stage="joint", window_s=0.1))
    assert isinstance(found, Measurement)
    assert found.restart_s == found.startup_s


def test_a_restart_is_not_timed_at_the_price_of_the_trial() -> None:
    """Where taking what is in flight would run past the trial's end, the measurement is kept as it is."""
    session = session_of(Workload(w.Net(), w.Rows(64, work_s=0.02), batch_size=8, optimizer=w.sgd))
    settings = session.describe().yours.replace(num_workers=1, prefetch_factor=40, persistent_workers=True)
    spec = TrialSpec(settings=settings, stage="joint", window_s=0.5, min_blocks=2, timeout_s=8)
    found = session.run(spec)
    assert isinstance(found, Measurement)
    assert found.wall_s < spec.timeout_s
    assert found.restart_s == found.startup_s
