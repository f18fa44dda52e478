"""Workloads of unusual make: measured like any other, every trial from where the first one began."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import workloads as w
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Sampler

from autotune.measure import batches, flags
from autotune.measure.inprocess import InProcessRunner
from autotune.measure.loaders import parts_of
from autotune.measure.probe import machine_facts
from autotune.measure.seam import GradientSpec, NumericsSpec
from autotune.measure.session import Session
from autotune.recipe.guard import NumericsRecord
from autotune.recipe.noise_scale import GradientStats
from autotune.trial import Measurement, Mode, TrialSpec
from autotune.workload import Workload

pytestmark = pytest.mark.usefixtures("one_thread")


def session_of(workload: Workload) -> Session:
    return Session(workload, parts_of(workload), flags.read_user_flags(), machine_facts)


def measured(session: Session, mode: Mode = "full") -> Measurement:
    yours = session.describe().yours
    found = session.run(TrialSpec(settings=yours, stage="joint", mode=mode, window_s=0.05, timeout_s=60))
    assert isinstance(found, Measurement), found
    return found


class Edges(nn.Module):
    """Rows mixed along a graph whose edges are a sparse buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 4)
        self.register_buffer("edges", torch.eye(16).to_sparse())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.sparse.mm(self.edges, x.t()).t())


def test_a_sparse_buffer_is_kept_like_any_other() -> None:
    """It has no strides to ask for, and its values are put back with the rest."""
    session = session_of(Workload(Edges(), w.Rows(), batch_size=16, optimizer=w.sgd, device="cpu"))
    measured(session)
    with torch.no_grad():
        session.main_model.edges.mul_(2)
    session.restore()
    assert torch.equal(session.main_model.edges.to_dense(), torch.eye(16))


class Assigning(w.Net):
    """A running figure that is assigned anew in each pass, and a cache that grows."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("decayed", torch.ones(1))
        self.register_buffer("cache", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.decayed = self.decayed * 0.5
        if len(self.cache) < len(x):
            self.cache = torch.arange(float(len(x)))
        return super().forward(x)


def test_a_buffer_that_is_assigned_anew_begins_each_trial_as_the_first() -> None:
    """After a few trials it would be 0, and the model another one; a cache that grew is left to the model."""
    session = session_of(Workload(Assigning(), w.Rows(), batch_size=16, optimizer=w.sgd))
    model = session.main_model
    for _ in range(2):
        measured(session)
        session.restore()
        assert model.decayed.item() == 1
        assert len(model.cache) == 16


class Sixteens(Sampler[list[int]]):
    """A batch sampler that no DataLoader makes by itself."""

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(0, 256, 16):
            yield list(range(start, start + 16))

    def __len__(self) -> int:
        return 16


def repeated(samples: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """As a batch of graphs has its nodes in front: more or less of them than samples."""
    times = [1 + index % 3 for index, _ in enumerate(samples)]
    return (
        torch.cat([x.repeat(n, 1) for (x, _), n in zip(samples, times)]),
        torch.cat([y.repeat(n) for (_, y), n in zip(samples, times)]),
    )


def test_samples_of_an_own_batch_sampler_are_counted_in_one_way() -> None:
    """By what it asked for: with the loader and without, or neither could be compared with the other."""
    loader = DataLoader(w.Rows(), batch_sampler=Sixteens(), collate_fn=repeated)
    session = session_of(Workload(w.Net(), loader, optimizer=w.sgd))
    assert session.describe().workload.batch_samples == 16
    for mode in ("full", "compute"):
        found = measured(session, mode)
        assert found.samples == 16 * found.steps


def test_gradients_of_an_own_batch_sampler_are_seen() -> None:
    """Its batches all have the size that the first one was counted with."""
    loader = DataLoader(w.Rows(), batch_sampler=Sixteens(), collate_fn=repeated)
    runner = InProcessRunner(Workload(w.Net(), loader, optimizer=w.sgd))
    found = runner.probe_gradients(GradientSpec(settings=runner.describe().yours, steps=8))
    assert isinstance(found, GradientStats), found
    assert not found.refused


class Series(IterableDataset[Any]):
    """A stream of series, seven steps each."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        for row in w.Rows().x:
            yield row.repeat(7, 1)


def time_first(series: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    stacked = torch.stack(series, dim=1)
    return stacked, stacked[0, :, 0]


def test_samples_of_a_stream_are_found_behind_its_time() -> None:
    """The first dimension of the first tensor is time here, and there are as many samples as in any batch."""
    loader = DataLoader(Series(), batch_size=16, collate_fn=time_first)

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        return (model(batch[0].mean(0))[:, 0] - batch[1]).square().mean()

    session = session_of(Workload(w.Net(), loader, optimizer=w.sgd, step=step))
    assert session.describe().workload.batch_samples == 16
    found = measured(session)
    assert found.samples == 16 * found.steps


class Turned(nn.Module):
    """Complex weights, of which the output takes the size."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 4, dtype=torch.complex64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.to(torch.complex64) @ self.weight).abs()


def test_gradients_of_complex_weights_are_compared_whole() -> None:
    """Half of each number is imaginary; a turn by a quarter is no agreement."""
    runner = InProcessRunner(Workload(Turned(), w.Rows(), batch_size=16, optimizer=w.sgd))
    yours = runner.describe().yours
    found = runner.compare_numerics(NumericsSpec(settings=yours, reference=yours, steps=8))
    assert isinstance(found, NumericsRecord), found
    assert found.gradients is not None
    assert found.gradients.cosine == pytest.approx(1)


def normalizing(model: nn.Module, batch: Any) -> torch.Tensor:
    x, y = batch
    x.sub_(0.5).div_(0.25)
    return nn.functional.cross_entropy(model(x), y)


def test_a_step_that_changes_its_batch_finds_it_as_loaded_in_each_trial() -> None:
    """Four times as large with every step, it would be infinite after a few trials."""
    session = session_of(Workload(w.Net(), w.Rows(), batch_size=16, optimizer=w.sgd, step=normalizing))
    before = session.held_batch(16)[0][0].clone()
    measured(session)
    assert torch.equal(session.held_batch(16)[0][0], before)


class FromOne(w.Rows):
    """Labels as people count: from 1."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = super().__getitem__(index)
        return x, y + 1


def from_zero(model: nn.Module, batch: Any) -> torch.Tensor:
    x, y = batch
    y -= 1
    return nn.functional.cross_entropy(model(x), y)


def whole_from_zero(kit: Any, batch: Any) -> torch.Tensor:
    kit.zero_grad()
    loss = from_zero(kit.model, batch)
    kit.backward(loss)
    kit.optimizer_step()
    return loss


@pytest.mark.parametrize("mode", ["full", "compute"])
@pytest.mark.parametrize("how", [{"step": from_zero}, {"train_step": whole_from_zero}])
def test_a_step_that_changes_its_batch_finds_it_as_loaded_in_each_step(
    how: dict[str, Any], mode: Mode
) -> None:
    """As in a plain loop, where each step has a batch of its own: labels lowered twice are out of range."""
    session = session_of(Workload(w.Net(), FromOne(), batch_size=16, optimizer=w.sgd, **how))
    measured(session, mode)


def test_only_a_step_that_changes_its_batch_gets_copies() -> None:
    """The first has one in any case; a copy that nobody needs would be timed with the step."""
    loaded = (torch.zeros(4), torch.ones(4, dtype=torch.long))
    for change, copies in ((lambda batch: batch[1].sub_(1), True), (lambda batch: batch[1] - 1, False)):
        held = batches.Held(loaded)
        for _ in range(3):
            batch = held.fresh()
            assert torch.equal(batch[1], loaded[1])
            held.stepped(change, batch)
        assert held.copies is copies
        assert (held.fresh()[0] is held.fresh()[0]) is not copies
