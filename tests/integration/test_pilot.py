"""Real models trained a while in two batch sizes: who learns as counted, who does not, what is put back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import workloads as w
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, WeightedRandomSampler

from autotune import kit as kits
from autotune.measure import pilot
from autotune.measure.inprocess import InProcessRunner
from autotune.measure.models import batch_norm_momenta
from autotune.measure.seam import PilotSpec
from autotune.outcome import Recipe
from autotune.recipe.pilot import PilotRecord, judge_pilot
from autotune.recipe.scaling import scale_recipe
from autotune.settings import Settings
from autotune.trial import Failure
from autotune.workload import Workload


def digits(samples: int = 4096) -> TensorDataset:
    """Noisy vectors of ten classes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(samples) % 10
    centres = torch.randn(10, 32, generator=generator)
    return TensorDataset(centres[labels] + 2 * torch.randn(samples, 32, generator=generator), labels)


def net() -> nn.Module:
    """A perceptron for `digits`."""
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))


def workload(model: nn.Module | None = None, **changes: Any) -> Workload:
    """It learns `digits` in batches of 16."""
    values: dict[str, Any] = {
        "dataset": digits(),
        "loss": nn.functional.cross_entropy,
        "optimizer": lambda p: torch.optim.SGD(p, lr=0.05),
        "batch_size": 16,
        **changes,
    }
    return Workload(model or net(), **values)


def recipe(settings: Settings, runner: InProcessRunner, factor: float | None = None) -> Recipe:
    """Of the rules, or with the learning rate multiplied by `factor` and no warmup."""
    told = runner.describe()
    assert settings.loader.batch_size is not None
    ruled = scale_recipe(told.workload, settings.loader.batch_size, 16, epochs=1)
    if factor is None:
        return ruled
    lrs = tuple(factor * lr for lr in ruled.reference_learning_rates)
    return Recipe(
        batch_size=settings.loader.batch_size,
        reference_batch_size=16,
        learning_rates=lrs,
        reference_learning_rates=ruled.reference_learning_rates,
        lr_rule="made up",
    )


def piloted(
    work: Workload, size: int = 64, *, factor: float | None = None, runner: Any = None, **asked: Any
) -> PilotRecord:
    """A pilot of batches of `size`."""
    runner = runner or InProcessRunner(work)
    yours = runner.describe().yours
    settings = yours.replace(batch_size=size)
    values = {"priced": 0.8, "steps": 30, "warm_steps": 20, **asked}
    found = runner.pilot(
        PilotSpec(settings=settings, reference=yours, recipe=recipe(settings, runner, factor), **values)
    )
    assert isinstance(found, PilotRecord), found
    return found


def test_the_same_batch_learns_the_same() -> None:
    """Equal settings take equal steps from the same weights, dropout included; another order does not."""
    model = nn.Sequential(
        nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 10)
    )
    found = piloted(workload(model), 16, factor=1.0, priced=1.0)
    assert found.run.losses == found.reference_run.losses == found.reference_run.priced
    assert found.run.most == found.reference_run.most
    assert found.again is not None
    assert found.again.losses != found.reference_run.losses
    assert judge_pilot(found).kind == "same"
    assert judge_pilot(found).change == pytest.approx(0.0, abs=0.1)


def test_a_scaled_learning_rate_learns_what_its_samples_are_counted_for() -> None:
    """Four times the batch with the recipe's rate; losses are held-out ones, of a tenth of the samples."""
    found = piloted(workload())
    assert (found.held_samples, found.samples) == (400, 30 * 64)
    assert (found.run.steps, found.reference_run.steps) == (30, 120)
    judged = judge_pilot(found)
    assert judged.kind == "same", judged
    assert "held-out loss" in judged.reason


def trained(data: TensorDataset, epochs: int = 12) -> nn.Module:
    """A perceptron that knows most of the data: its loss differs many times from batch to batch."""
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(epochs):
        for batch, target in DataLoader(data, batch_size=64, shuffle=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(batch), target).backward()
            optimizer.step()
    return model


@pytest.mark.parametrize("warm_steps", [0, 20])
def test_a_model_that_is_trained_already_does_not_diverge(warm_steps: int) -> None:
    """Its easiest batch has under a third of its hardest one's loss: that is no fault of a batch size."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(4096) % 10
    centres = 4 * torch.randn(10, 32, generator=generator)
    data = TensorDataset(centres[labels] + 2 * torch.randn(4096, 32, generator=generator), labels)
    work = workload(trained(data), dataset=data, optimizer=lambda p: torch.optim.SGD(p, lr=0.01))
    judged = judge_pilot(piloted(work, 32, priced=0.9, warm_steps=warm_steps))
    assert "diverges" not in judged.reason, judged
    assert "rose" not in judged.reason, judged


def test_a_learning_rate_far_too_high_is_found() -> None:
    """Two hundred times the rate diverges, whatever the batch."""
    judged = judge_pilot(piloted(workload(), factor=200.0))
    assert judged.kind == "worse", judged


def test_a_batch_that_is_counted_for_too_much_is_found() -> None:
    """Sixteen times the batch with the rate left alone cannot keep up with as many samples of one's own."""
    judged = judge_pilot(piloted(workload(), 256, factor=1.0, priced=1.0, warm_steps=0))
    assert judged.kind == "worse", judged
    assert "above what its samples are counted for" in judged.reason


def test_the_recipe_is_applied_as_a_kit_applies_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates start at the warmup's and reach the recipe's; the user's own run keeps its own."""
    seen: dict[int, list[float]] = {16: [], 64: []}
    step = pilot._Runs._step

    def told(self: Any, kit: Any, batch: Any) -> float | None:
        seen[kit.settings.loader.batch_size].append(kit.optimizer.param_groups[0]["lr"])
        return step(self, kit, batch)

    monkeypatch.setattr(pilot._Runs, "_step", told)
    work = workload()
    runner = InProcessRunner(work)
    found = piloted(work, runner=runner)
    ruled = recipe(found.settings, runner)
    assert set(seen[16]) == {0.05}
    assert seen[64][0] == pytest.approx(0.05)
    assert seen[64][-1] == pytest.approx(ruled.learning_rates[0])
    assert len(seen[64]) == 30


def test_a_run_after_a_kits_recipe_begins_with_what_that_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tuned again with model and optimizer of a kit: a recipe scales them, from whatever batch it goes."""
    seen = []
    step = pilot._Runs._step

    def told(self: Any, kit: Any, batch: Any) -> float | None:
        if kit.settings.loader.batch_size == 64:
            (momentum,) = batch_norm_momenta(kit.models.values())
            seen.append((kit.optimizer.param_groups[0]["lr"], momentum))
        return step(self, kit, batch)

    monkeypatch.setattr(pilot._Runs, "_step", told)
    for size in (16, 32, 64):  # the first one's batch: yours now, another, and the very one that is tried
        model = nn.Sequential(nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0125)
        first = Recipe(
            batch_size=size,
            reference_batch_size=size // 4,
            learning_rates=(0.05,),
            reference_learning_rates=(0.0125,),
            lr_rule="made up",
            batch_norm_momenta=(1 - 0.9**4,),
            reference_batch_norm_momenta=(0.1,),
        )
        kits.make_kit(Settings.from_flat({"batch_size": size}), first, model, optimizer, device="cpu")
        piloted(workload(model, optimizer=optimizer))
        assert seen[-1] == (pytest.approx(0.2), pytest.approx(1 - 0.9**16))
        assert batch_norm_momenta([model]) == pytest.approx((1 - 0.9**4,))


def test_held_out_samples_are_not_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor in the warm steps; both sizes take the same samples in the same order."""
    orders: list[list[Any]] = []
    inner = pilot._Data.training

    def told(self: Any, loader: Any, samples: int, seed: int) -> Iterator[Any]:
        taken: list[Any] = []
        orders.append(taken)
        for x, y in inner(self, loader, samples, seed):
            taken.extend(x[:, 0].tolist())
            yield x, y

    monkeypatch.setattr(pilot._Data, "training", told)
    held: list[float] = []
    drawn = pilot._Data.held_out

    def kept(self: Any, loader: Any) -> list[Any]:
        found = drawn(self, loader)
        held.extend(value for x, _ in found for value in x[:, 0].tolist())
        return found

    monkeypatch.setattr(pilot._Data, "held_out", kept)
    piloted(workload())
    warm, own, larger, again = orders
    assert len(held) == 400
    assert all(set(held).isdisjoint(order) for order in orders)
    assert own == larger
    assert sorted(again) != sorted(own)
    assert len(warm) == 20 * 16


def test_a_sampler_of_the_users_own_is_drawn_from() -> None:
    """What it never gives is neither trained on nor held out."""
    data = digits(2048)
    weights = [1.0 if index < 1024 else 0.0 for index in range(2048)]
    sampler = WeightedRandomSampler(weights, 2048)
    loader = DataLoader(data, batch_size=16, sampler=sampler)
    found = piloted(workload(dataset=loader, batch_size=None))
    assert 0 < found.held_samples <= 102
    assert found.run.complete


class Unsized(Dataset[Any]):
    """Samples by number, of which nobody knows how many there are."""

    def __init__(self) -> None:
        self.data = digits(2048)

    def __getitem__(self, index: int) -> Any:
        return self.data[index]


def test_a_dataset_without_a_length_is_drawn_from_by_its_sampler() -> None:
    """The loader needs no length there, and so does a pilot not."""
    loader = DataLoader(Unsized(), batch_size=16, sampler=WeightedRandomSampler([1.0] * 2048, 2048))
    found = piloted(workload(dataset=loader, batch_size=None))
    assert found.held_samples > 0
    assert found.run.complete


class Streamed(IterableDataset):
    """`digits` in their order."""

    def __iter__(self) -> Iterator[Any]:
        yield from digits()


def test_a_stream_is_compared_by_its_training_losses() -> None:
    """Nothing can be held out of it; the words say which losses were compared."""
    found = piloted(workload(dataset=Streamed()))
    assert found.held_samples == 0
    assert found.run.complete
    assert "training loss" in judge_pilot(found).reason


def own_step(kit: Any, batch: Any) -> torch.Tensor:
    """A whole step of one's own."""
    kit.zero_grad()
    with kit.autocast():
        loss = nn.functional.cross_entropy(kit.model(batch[0]), batch[1])
    kit.backward(loss)
    kit.optimizer_step()
    return loss


def silent_step(kit: Any, batch: Any) -> None:
    """One that does not tell its loss."""
    own_step(kit, batch)


def test_a_whole_step_of_ones_own_is_compared_by_what_it_returns() -> None:
    """Its training losses."""
    found = piloted(workload(loss=None, train_step=own_step))
    assert (found.held_samples, found.run.complete) == (0, True)


class OnlyTrains(nn.Module):
    """Returns its loss in training, and something else in evaluation, as detection models do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net()

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        output = self.body(x)
        return {"classes": nn.functional.cross_entropy(output, y)} if self.training else output


def test_a_model_without_a_loss_in_evaluation_is_compared_by_training_losses() -> None:
    """It raises there, and nothing is held against it."""
    found = piloted(workload(OnlyTrains(), loss=None, step=lambda model, b: model(*b)["classes"]))
    assert (found.held_samples, found.run.complete) == (0, True)


def test_losses_of_a_model_that_diverges_are_no_numbers_in_the_record() -> None:
    """A run ends where its loss is not finite."""
    found = piloted(workload(), factor=1e12)
    assert not found.run.finite
    assert found.run.steps < 30
    assert judge_pilot(found).kind == "worse"


def test_a_window_that_is_over_leaves_the_second_run_out() -> None:
    """Then nothing is known of chance."""
    assert piloted(workload(), window_s=0.0).again is None


def test_a_dataset_too_small_for_the_batch_says_so() -> None:
    """As a refusal in words, not as a failure."""
    found = piloted(workload(dataset=digits(64)), 128)
    assert found.refused == "64 samples hold no batch of 128"


class Counts(nn.Module):
    """Batch norm, dropout, and a buffer that moves in evaluation too."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 10)
        )
        self.calls: torch.Tensor
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.body(x)


@pytest.mark.parametrize("optimizer", [w.sgd, w.adam], ids=["sgd", "adam"])
def test_all_is_put_back(optimizer: Any) -> None:
    """Weights, buffers, training flags, the momentum of batch norm, switches and random states."""
    work = workload(Counts(), optimizer=optimizer)
    runner = InProcessRunner(work)
    runner.describe()
    session = runner._ready()
    copies = [t.detach().clone() for t in session._tensors()]
    layers = [m for model in session.models.values() for m in model.modules()]
    marks = [dict(vars(layer)).keys() for layer in layers]
    before = torch.get_rng_state(), torch.get_num_threads()
    found = piloted(work, runner=runner)
    assert found.held_samples
    assert all(torch.equal(t, copy) for t, copy in zip(session._tensors(), copies))
    assert all(module.training for module in layers)
    assert [dict(vars(layer)).keys() for layer in layers] == marks
    assert {layer.momentum for layer in layers if isinstance(layer, nn.BatchNorm1d)} == {0.1}
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.get_num_threads() == before[1]


def test_workers_feed_a_pilot_as_well() -> None:
    """With the loader of the settings that are piloted."""
    work = workload()
    runner = InProcessRunner(work)
    yours = runner.describe().yours.replace(num_workers=1, prefetch_factor=2)
    settings = yours.replace(batch_size=32)
    found = runner.pilot(
        PilotSpec(settings=settings, reference=yours, recipe=recipe(settings, runner), steps=6, warm_steps=2)
    )
    assert isinstance(found, PilotRecord), found
    assert found.run.complete


def test_a_dataset_that_raises_is_a_typed_failure() -> None:
    """As in any trial, with its index and no word of an epoch's end."""
    runner = InProcessRunner(
        Workload(w.Net(), w.RaisesAt(200, samples=1024), optimizer=w.sgd, batch_size=16, shuffle=False)
    )
    yours = runner.describe().yours
    settings = yours.replace(batch_size=32)
    found = runner.pilot(
        PilotSpec(settings=settings, reference=yours, recipe=recipe(settings, runner), steps=40)
    )
    assert isinstance(found, Failure)
    assert (found.kind, found.sample_index) == ("user_error", 200)
    assert "epoch" not in found.message


@pytest.fixture(autouse=True)
def _seeded() -> Any:
    """Models of a test start from the same weights every time."""
    state = torch.get_rng_state()
    torch.manual_seed(0)
    yield
    torch.set_rng_state(state)
