"""Gradients of real steps: what the hooks see, what stands still meanwhile, and what is refused."""

from __future__ import annotations

import itertools
import time
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import workloads as w
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from autotune.measure import gradients
from autotune.measure.inprocess import InProcessRunner
from autotune.measure.seam import GradientSpec
from autotune.measure.tap import GradientTap
from autotune.recipe.noise_scale import LEAST_STEPS, GradientStats, noise_scale
from autotune.trial import Failure
from autotune.workload import Workload

pytestmark = pytest.mark.usefixtures("one_thread")


class Linear(nn.Module):
    """One linear layer without a bias, so that its gradients can be written down."""

    def __init__(self, features: int = 16, classes: int = 4) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.layer = nn.Linear(features, classes, bias=False)
        self.layer.weight.data = 0.1 * torch.randn(classes, features, generator=generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def learnable() -> w.Rows:
    """Rows with something to learn, so that the mean gradient is not noise alone."""
    rows = w.Rows(samples=2048)
    rows.y = (rows.x[:, 0] > 0).long()
    return rows


def probe(workload: Workload, **changes: Any) -> GradientStats | Failure:
    """What a runner in this process sees; few steps, so that a test is short."""
    runner = InProcessRunner(workload)
    yours = runner.describe().yours
    return runner.probe_gradients(GradientSpec(settings=yours, **({"steps": 10} | changes)))


def seen(workload: Workload, **changes: Any) -> GradientStats:
    """The sums, where there are some."""
    found = probe(workload, **changes)
    assert isinstance(found, GradientStats), found
    return found


def exact(model: nn.Module, rows: w.Rows) -> tuple[float, float]:
    """Trace of the covariance and squared mean of the gradients of single samples, without bias."""
    gradients = []
    for x, y in zip(rows.x, rows.y):
        model.zero_grad()
        cross_entropy(model(x[None]), y[None]).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]).double())
    each = torch.stack(gradients)
    trace = float(each.var(dim=0, unbiased=True).sum())
    return trace, float(each.mean(0).square().sum()) - trace / len(each)


def test_the_sums_are_those_of_single_samples() -> None:
    """Trace and squared mean from 40 steps lie near those of all samples, computed one by one."""
    rows, model = learnable(), Linear()
    found = noise_scale(seen(Workload(model, rows, optimizer=w.sgd, batch_size=16), steps=40))
    trace, square = exact(model, rows)
    assert found is not None
    assert found.value == pytest.approx(trace / square, rel=0.3)
    assert found.low <= trace / square <= found.high


def test_nothing_moves_while_gradients_are_seen() -> None:
    """Without warm steps, all of them belong to the initial weights: the same seed gives the same sums."""
    workload = Workload(w.Net(), w.Rows(), optimizer=w.sgd, batch_size=16)
    runner = InProcessRunner(workload)
    spec = GradientSpec(settings=runner.describe().yours, steps=8)
    first, again = runner.probe_gradients(spec), runner.probe_gradients(spec)
    assert isinstance(first, GradientStats)
    assert isinstance(again, GradientStats)
    assert first.steps == again.steps


def test_warm_steps_move_on_first_and_are_taken_back() -> None:
    """Gradients after warm steps are others; afterwards weights, buffers and random states are as before."""
    model = w.Net()
    runner = InProcessRunner(Workload(model, learnable(), optimizer=w.sgd, batch_size=16))
    yours = runner.describe().yours
    copies = [t.detach().clone() for t in runner._ready()._tensors()]
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    cold = runner.probe_gradients(GradientSpec(settings=yours, steps=8))
    warm = runner.probe_gradients(GradientSpec(settings=yours, steps=8, warm_steps=200))
    assert isinstance(cold, GradientStats)
    assert isinstance(warm, GradientStats)
    assert cold.steps[0].square_of_mean > 2 * warm.steps[0].square_of_mean
    session = runner._ready()
    assert all(torch.equal(t, copy) for t, copy in zip(session._tensors(), copies))
    assert not any(p._backward_hooks for m in session.models.values() for p in m.parameters())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()


def alike() -> TensorDataset:
    """Rows that are all the same: every batch has the same gradient."""
    return TensorDataset(torch.ones(256, 16), torch.zeros(256, dtype=torch.long))


def test_training_between_steps_is_in_no_sum() -> None:
    """At a rate of 0 the same data give the same sums, however many steps of training lie between."""

    def still(params: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(params, lr=0.0)

    workload = Workload(Linear(), alike(), optimizer=still, batch_size=16)
    together, apart = seen(workload, steps=8), seen(workload, steps=8, apart=3)
    assert apart.steps == together.steps
    assert len(set(apart.steps)) == 1


def test_training_goes_on_between_steps_and_is_taken_back() -> None:
    """Each step then has weights of its own, as far as training had come; afterwards they are as before."""
    runner = InProcessRunner(Workload(Linear(), alike(), optimizer=w.sgd, batch_size=16))
    yours = runner.describe().yours
    before = [t.detach().clone() for t in runner._ready()._tensors()]
    apart = runner.probe_gradients(GradientSpec(settings=yours, steps=8, warm_steps=2, apart=3))
    assert isinstance(apart, GradientStats)
    squares = [step.square_of_mean for step in apart.steps]
    assert squares == sorted(squares, reverse=True)
    assert len(set(squares)) == len(squares)
    last = runner.probe_gradients(GradientSpec(settings=yours, steps=8, warm_steps=2 + 3 * 7))
    assert isinstance(last, GradientStats)
    assert last.steps[0] == apart.steps[-1]
    assert all(torch.equal(t, copy) for t, copy in zip(runner._ready()._tensors(), before))


def test_what_was_seen_counts_when_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once there are enough steps for an interval; that the loss was not seen to be a mean is told."""
    now, calls = time.perf_counter, itertools.count()

    def suddenly_late() -> float:
        return now() + (1000.0 if next(calls) > 60 else 0.0)

    monkeypatch.setattr(gradients, "time", types.SimpleNamespace(perf_counter=suddenly_late))
    found = seen(Workload(w.Net(), w.Rows(), optimizer=w.sgd, batch_size=16), steps=32, window_s=5000.0)
    assert LEAST_STEPS <= len(found.steps) < 32
    assert "whether the loss is a mean over the batch was not seen" in found.notes


def test_an_optimizer_that_stood_still_has_its_own_step_again() -> None:
    """A learning rate scheduler puts a step of its own on the optimizer, and that one comes back too."""
    layer = nn.Linear(2, 1)
    plain, scheduled = (
        torch.optim.SGD(layer.parameters(), lr=1.0),
        torch.optim.SGD(layer.parameters(), lr=1.0),
    )
    torch.optim.lr_scheduler.StepLR(scheduled, 1)
    tap, put = GradientTap([plain, scheduled]), vars(scheduled)["step"]
    with tap.standing_still():
        layer(torch.ones(1, 2)).sum().backward()
        scheduled.step()
        assert tap.asked == 1
    tap.close()
    assert vars(scheduled)["step"] is put
    assert "step" not in vars(plain)


def clipped(kit: Any, batch: Any) -> torch.Tensor:
    """A whole step of one's own that clips hard, by hand, and steps."""
    x, y = batch
    kit.zero_grad()
    loss = cross_entropy(kit.model(x), y)
    kit.backward(loss)
    nn.utils.clip_grad_norm_(kit.model.parameters(), 1e-6)
    kit.optimizer_step(clip_grad_norm=1e-7)
    return loss


def test_a_train_step_is_seen_before_it_clips_and_does_not_move_the_weights() -> None:
    """Its sums are those of the plain loop on the same data."""
    plain = Workload(Linear(), w.Rows(), optimizer=w.sgd, batch_size=16, loss=cross_entropy)
    own = Workload(Linear(), w.Rows(), optimizer=w.sgd, batch_size=16, train_step=clipped)
    assert seen(own).steps == seen(plain).steps


def halves(kit: Any, batch: Any) -> torch.Tensor:
    """Accumulates gradients over two halves of a batch."""
    kit.zero_grad()
    for x, y in zip(batch[0].chunk(2), batch[1].chunk(2)):
        loss = cross_entropy(kit.model(x), y) / 2
        kit.backward(loss)
    kit.optimizer.step()
    return loss


def test_backward_passes_of_one_micro_batch_add_up() -> None:
    """Two halves in two passes have the gradient of the whole."""
    plain = seen(Workload(Linear(), w.Rows(), optimizer=w.sgd, batch_size=16, loss=cross_entropy))
    own = seen(Workload(Linear(), w.Rows(), optimizer=w.sgd, batch_size=16, train_step=halves))
    assert [s.mean_of_squares for s in own.steps] == pytest.approx(
        [s.mean_of_squares for s in plain.steps], rel=1e-4
    )
    assert [s.square_of_mean for s in own.steps] == pytest.approx(
        [s.square_of_mean for s in plain.steps], rel=1e-4
    )


def moves_itself(kit: Any, batch: Any) -> torch.Tensor:
    """Steps by hand, past every optimizer."""
    x, y = batch
    kit.zero_grad()
    loss = cross_entropy(kit.model(x), y)
    kit.backward(loss)
    with torch.no_grad():
        for p in kit.model.parameters():
            p.sub_(0.01 * p.grad)
    return loss


def test_a_step_that_moves_the_weights_itself_is_refused() -> None:
    """Gradients at weights that move on would belong to different ones."""
    found = seen(Workload(Linear(), w.Rows(), optimizer=w.sgd, batch_size=16, train_step=moves_itself))
    assert "moves the weights by itself" in found.refused
    assert noise_scale(found) is None


def every_fourth(kit: Any, batch: Any) -> torch.Tensor:
    """Steps after four batches."""
    x, y = batch
    loss = cross_entropy(kit.model(x), y) / 4
    kit.backward(loss)
    kit.seen = getattr(kit, "seen", 0) + 1
    if kit.seen % 4 == 0:
        kit.optimizer_step()
        kit.zero_grad()
    return loss


def test_a_step_that_gathers_batches_of_its_own_is_refused() -> None:
    """How many samples a step has is its business: no batch can be held against it."""
    found = seen(Workload(Linear(), w.Rows(), optimizer=w.sgd, batch_size=16, train_step=every_fourth))
    assert "does not step the optimizer once a batch" in found.refused
    assert noise_scale(found) is None


def summed(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross entropy, summed over the batch."""
    return cross_entropy(output, target, reduction="sum")


@pytest.mark.parametrize("batch_size", [2, 16])
def test_a_summed_loss_is_refused_with_what_was_seen(batch_size: int) -> None:
    """Its gradient grows with the batch; a mean's does not, at either size."""
    mean = seen(Workload(Linear(), w.Rows(), optimizer=w.sgd, batch_size=batch_size, loss=cross_entropy))
    total = seen(Workload(Linear(), w.Rows(), optimizer=w.sgd, batch_size=batch_size, loss=summed))
    assert (mean.refused, mean.notes) == ("", ())
    assert "summed over the batch" in total.refused


def test_a_mean_whose_gradients_are_mostly_small_is_no_sum() -> None:
    """One sample in 32 is far from the others: a larger batch holds one more often, and the median rises."""
    rows = w.Rows(samples=1024)
    rows.x[::32] *= 100.0
    found = seen(Workload(Linear(), rows, optimizer=w.sgd, batch_size=32, loss=cross_entropy))
    assert (found.refused, found.notes) == ("", ())


class Table(nn.Module):
    """An embedding with sparse gradients, shared weights and a frozen part."""

    def __init__(self, sparse: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(10, 4, sparse=sparse)
        self.frozen = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)
        self.frozen.requires_grad_(requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.frozen(self.table(x) + self.table(x.flip(1))).sum(1))


def words() -> TensorDataset:
    """Rows of three word numbers, with repeats, and a class."""
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(
        torch.randint(0, 10, (128, 3), generator=generator), torch.randint(0, 3, (128,), generator=generator)
    )


def test_sparse_gradients_count_like_dense_ones() -> None:
    """Rows that occur several times are added up first; frozen parameters are left out of both."""
    sparse, dense = (
        seen(Workload(Table(sparse=kind), words(), optimizer=w.sgd, batch_size=8)) for kind in (True, False)
    )
    assert [s.square_of_mean for s in sparse.steps] == pytest.approx([s.square_of_mean for s in dense.steps])
    assert [s.mean_of_squares for s in sparse.steps] == pytest.approx(
        [s.mean_of_squares for s in dense.steps]
    )


def test_a_loader_that_does_not_shuffle_is_shuffled_here() -> None:
    """Sorted labels in a row would look like noise."""
    rows = w.Rows(samples=512)
    rows.y = rows.y.sort().values
    loader = DataLoader(rows, batch_size=16, shuffle=False)
    ordered = seen(Workload(Linear(), loader, optimizer=w.sgd))
    shuffled = seen(Workload(Linear(), rows, optimizer=w.sgd, batch_size=16))
    assert ordered.steps == shuffled.steps
    assert ordered.notes == ()


def test_streams_are_read_as_they_come_and_that_is_said() -> None:
    """Nobody can shuffle them; shorter batches at the end of a pass are passed over."""
    found = seen(Workload(w.Net(), w.Stream(samples=70), optimizer=w.sgd, batch_size=16))
    assert found.refused == ""
    assert len(found.steps) == 10
    assert "order of your own stream" in found.notes[0]


def test_too_little_data_for_different_batches_is_refused() -> None:
    """Four batches of 16 cannot be different ones of 40 samples."""
    found = seen(Workload(w.Net(), w.Rows(samples=40), optimizer=w.sgd, batch_size=16))
    assert found.refused == "40 samples hold no 4 different batches of 16"


class Overflows(nn.Module):
    """Finite losses with gradients that are not."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + torch.sqrt((self.layer.weight * 0).sum())


def test_gradients_that_are_not_finite_are_a_typed_failure() -> None:
    """Where most are NaN there is nothing to count, and the runner goes on."""
    runner = InProcessRunner(Workload(Overflows(), w.Rows(), optimizer=NoStep, batch_size=16))
    found = runner.probe_gradients(GradientSpec(settings=runner.describe().yours, steps=8))
    assert isinstance(found, Failure)
    assert found.kind == "non_finite"


class NoStep(torch.optim.SGD):
    """Steps nowhere, so that NaN gradients leave the loss finite."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, lr=0.1)

    def step(self, closure: Any = None) -> None:
        """Nothing."""


def test_a_dataset_that_raises_is_a_typed_failure_with_its_index() -> None:
    """As in any trial."""
    found = probe(Workload(w.Net(), w.RaisesAt(200), optimizer=w.sgd, batch_size=16, shuffle=False), steps=30)
    assert isinstance(found, Failure)
    assert (found.kind, found.sample_index) == ("user_error", 200)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Models of a test start from the same weights every time."""
    state = torch.get_rng_state()
    torch.manual_seed(0)
    yield
    torch.set_rng_state(state)
