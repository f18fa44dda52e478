"""Steps of real models under two settings: who trains the same, who does not, and what is put back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import workloads as w
from torch import nn

from autotune.measure import guard
from autotune.measure.inprocess import InProcessRunner
from autotune.measure.models import batch_norm_momenta
from autotune.measure.seam import NumericsSpec
from autotune.recipe.guard import NumericsRecord, NumericsRun, judge_numerics
from autotune.trial import Failure
from autotune.workload import Workload


def compared(workload: Workload, *, runner: Any = None, **asked: Any) -> NumericsRecord:
    """Steps of *yours* beside those with these knobs changed."""
    runner = runner or InProcessRunner(workload)
    spec = {name: asked.pop(name) for name in ("steps", "window_s") if name in asked}
    yours = runner.describe().yours
    found = runner.compare_numerics(NumericsSpec(settings=yours.replace(**asked), reference=yours, **spec))
    assert isinstance(found, NumericsRecord), found
    return found


def rows(model: nn.Module, **changes: Any) -> Workload:
    """A model on rows with a class that depends on one number, so that there is something to learn."""
    data = w.Rows(samples=512)
    data.y = (data.x[:, 0] > 0).long()
    return Workload(model, data, **({"optimizer": w.sgd, "batch_size": 16} | changes))


def smooth(model: nn.Module) -> nn.Module:
    """The model without a kink: where a ReLU's input is nearly zero, its last bit turns a unit on or off.

    In a layer as small as these, one unit turns the gradient by more than all other rounding does.
    """
    for index, layer in enumerate(model.body):
        if isinstance(layer, nn.ReLU):
            model.body[index] = nn.Tanh()
    return model


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    "workload",
    [
        rows(smooth(w.Net())),
        rows(smooth(w.Net()), optimizer=w.adam),
        Workload(smooth(w.ConvNet()), w.Pictures(), optimizer=w.sgd, batch_size=16),
    ],
    ids=["sgd", "adam", "conv"],
)
def test_ordinary_models_train_the_same(workload: Workload, precision: str) -> None:
    """In either format of sixteen bits, with gradients in the same direction."""
    found = judge_numerics(compared(workload, precision=precision))
    assert found.kind == "same", found
    assert found.cosine is not None
    assert found.cosine > 0.999


class Cancels(nn.Module):
    """Takes the difference of large, nearly equal numbers, of which eight bits keep nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(16, 32), nn.Linear(32, 4)
        self.same: torch.Tensor
        self.register_buffer("same", torch.eye(32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(nn.functional.linear(self.layer(x) + 1000.0, self.same) - 1000.0)


def test_rounding_that_loses_the_gradient_is_found() -> None:
    """bfloat16 times its products as fast as anywhere; the cosine shows what they are worth."""
    found = judge_numerics(compared(rows(Cancels()), precision="bfloat16"))
    assert found.kind == "worse"
    assert "bfloat16: at equal weights its gradient's cosine with float32's was" in found.in_words()


class Overflows(nn.Module):
    """Products beyond 65504, brought back before the loss sees them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(16, 64), nn.Linear(64, 4)
        self.large: torch.Tensor
        self.register_buffer("large", torch.full((64, 64), 300.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(nn.functional.linear(1e3 * self.layer(x), self.large) / 1e6)


def test_overflow_in_float16_is_found_by_its_skipped_steps() -> None:
    """And bfloat16, which holds such numbers, is let through."""
    found = judge_numerics(compared(rows(Overflows()), precision="float16"))
    assert (found.kind, "steps were skipped" in found.reason) == ("worse", True)
    assert judge_numerics(compared(rows(Overflows()), precision="bfloat16")).kind == "same"


def scaled(model: nn.Module, batch: Any) -> torch.Tensor:
    """A loss whose gradients overflow float16 with the factor that a scaler begins with."""
    x, y = batch
    return 30.0 * nn.functional.cross_entropy(model(x), y)


def test_a_scaler_is_calibrated_before_the_steps_are_compared() -> None:
    """Its first halvings would leave float16 behind for a reason that training does not have for long."""
    sgd = {"optimizer": lambda p: torch.optim.SGD(p, lr=1e-3)}
    found = compared(rows(w.Net(), step=scaled, **sgd), precision="float16")
    assert found.run.scale is not None
    assert found.run.scale < 65536
    assert not any(step.skipped for step in found.run.steps)
    assert judge_numerics(found).kind == "same"


class Counts(nn.Module):
    """Counts its forward passes; `off` belongs to the first few, and `factor` to the later ones."""

    def __init__(self, *, off: float = 0.0, factor: float = 1.0) -> None:
        super().__init__()
        self.off, self.factor = off, factor
        self.layer, self.head = nn.Linear(16, 32), nn.Linear(32, 4)
        self.same: torch.Tensor
        self.passes: torch.Tensor
        self.register_buffer("same", torch.eye(32))
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        off = self.off if float(self.head.bias.detach().abs().sum()) == 0 else 0.0
        self.passes += 1
        hidden = nn.functional.linear(torch.tanh(self.layer(x)) + off, self.same) - off
        return self.head(hidden) * (self.factor if float(self.passes) > 1 else 1.0)


def test_a_gradient_that_rounding_spoils_at_the_start_alone_is_let_through() -> None:
    """It is looked at again where the steps led to, in both formats at the same weights."""
    model = Counts(off=1000.0)
    nn.init.zeros_(model.head.bias)
    record = compared(rows(model, optimizer=lambda p: torch.optim.SGD(p, lr=1e-3)), precision="bfloat16")
    assert record.gradients is not None
    assert record.gradients.cosine < 0.9
    assert record.gradients_settled is not None
    assert record.gradients_settled.cosine > 0.99
    assert judge_numerics(record).kind == "same"
    assert compared(rows(w.Net()), precision="bfloat16").gradients_settled is None


def test_a_step_that_overflows_while_the_scaler_looks_for_its_factor_is_taken_again() -> None:
    """A gradient that grows after the first step cost float16 the next ones, and it stayed behind."""
    record = compared(
        rows(Counts(factor=100.0), optimizer=lambda p: torch.optim.SGD(p, lr=1e-5)), precision="float16"
    )
    assert record.run.scale is not None
    assert record.run.scale < 65536
    assert len(record.run.steps) == len(record.reference_run.steps)
    assert not any(step.skipped for step in record.run.steps)


class Drops(nn.Module):
    """A perceptron with dropout and a statistic of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 4)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def test_equal_settings_take_equal_steps() -> None:
    """The same weights, batches and random numbers, dropout included; another seed shows the noise."""
    found = compared(rows(Drops()))
    assert found.run == found.reference_run
    assert found.again is not None
    assert found.again != found.reference_run
    assert found.gradients is not None
    assert found.gradients.cosine == pytest.approx(1.0)


@pytest.mark.parametrize(("compiled", "momentum"), [("default", 0.19), (None, 0.1)])
def test_what_is_compiled_is_compared_at_the_momenta_of_its_trial(
    compiled: str | None, momentum: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its code is of a batch size and holds them; what is not compiled is compared in the user's own."""
    met: list[tuple[float, ...]] = []

    def compare(session: Any, spec: Any, started: float) -> Failure:
        met.append(batch_norm_momenta(session.models.values()))
        return Failure(kind="timeout", message="enough was seen")

    monkeypatch.setattr(guard, "compare", compare)
    runner = InProcessRunner(rows(Drops()))
    yours = runner.describe().yours
    runner.compare_numerics(
        NumericsSpec(settings=yours.replace(batch_size=32, compile=compiled), reference=yours)
    )
    assert met == [(pytest.approx(momentum),)]


def test_the_noise_run_ends_on_the_same_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first two thirds come in reverse order; a window that is over leaves it out."""
    orders: list[tuple[int, ...]] = []
    run = guard._Runs.run

    def told(self: Any, settings: Any, order: Any, seed: int) -> Any:
        orders.append(tuple(order))
        return run(self, settings, order, seed)

    monkeypatch.setattr(guard._Runs, "run", told)
    compared(rows(w.Net()), steps=9)
    assert orders == [tuple(range(9)), tuple(range(9)), (5, 4, 3, 2, 1, 0, 6, 7, 8)]
    assert compared(rows(w.Net()), steps=9, window_s=0.0).again is None


def test_batches_are_held_within_bounds_and_come_round_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two at least; every step has its own copy of one."""
    monkeypatch.setattr(guard, "HELD_BYTES", 1)
    found = compared(rows(w.Net(), step=spoils), steps=9)
    assert len(found.run.steps) == 9
    assert found.run == found.reference_run


def spoils(model: nn.Module, batch: Any) -> torch.Tensor:
    """A step that changes its batch in place."""
    x, y = batch
    x.mul_(0.5)
    return nn.functional.cross_entropy(model(x), y)


def own_step(kit: Any, batch: Any) -> torch.Tensor:
    """A whole step of one's own that accumulates and clips."""
    kit.zero_grad()
    for x, y in zip(batch[0].chunk(2), batch[1].chunk(2)):
        with kit.autocast():
            loss = nn.functional.cross_entropy(kit.model(x), y) / 2
        kit.backward(loss)
    kit.optimizer_step(clip_grad_norm=1e-3)
    return loss


def test_gradients_of_a_step_of_ones_own_are_seen() -> None:
    """Hooks see them before clipping and without the scaler's factor."""
    found = compared(rows(w.Net(), train_step=own_step), precision="float16")
    assert found.run.steps[0].gradient_norm == pytest.approx(
        found.reference_run.steps[0].gradient_norm, rel=1e-2
    )
    assert found.run.steps[0].gradient_norm > 0.1
    assert judge_numerics(found).kind == "same"


def test_a_loop_without_a_loader_sees_the_same_draws() -> None:
    """It makes its batches of the random numbers, which are the same in each run."""
    workload = Workload(w.Net(), step=w.draw_rows, optimizer=w.sgd, samples_per_step=8)
    found = compared(workload)
    assert found.run == found.reference_run == found.again


def test_all_is_put_back() -> None:
    """Weights, buffers, hooks, training flags, switches and random states."""
    workload = rows(Drops())
    runner = InProcessRunner(workload)
    runner.describe()
    session = runner._ready()
    copies = [t.detach().clone() for t in session._tensors()]
    before = torch.get_rng_state(), torch.get_num_threads()
    compared(workload, runner=runner, precision="bfloat16")
    assert all(torch.equal(t, copy) for t, copy in zip(session._tensors(), copies))
    assert not any(p._backward_hooks for m in session.models.values() for p in m.parameters())
    assert all(module.training for m in session.models.values() for module in m.modules())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.get_num_threads() == before[1]


def test_a_dataset_that_raises_is_a_typed_failure() -> None:
    """As in any trial, with its index."""
    runner = InProcessRunner(
        Workload(w.Net(), w.RaisesAt(200), optimizer=w.sgd, batch_size=16, shuffle=False)
    )
    yours = runner.describe().yours
    found = runner.compare_numerics(NumericsSpec(settings=yours, reference=yours))
    assert isinstance(found, Failure)
    assert (found.kind, found.sample_index) == ("user_error", 200)


@pytest.fixture(autouse=True)
def _seeded() -> Any:
    """Models of a test start from the same weights every time."""
    state = torch.get_rng_state()
    torch.manual_seed(0)
    yield
    torch.set_rng_state(state)


def test_complex_gradients_are_held_against_each_other_whole() -> None:
    """Numbers that differ in their imaginary parts alone do not agree."""
    ones = guard._dense(torch.ones(3, dtype=torch.complex64))
    turned = guard._dense(torch.full((3,), 1j))
    run = NumericsRun(steps=())
    match = guard._match(guard._Seen(run, {"w": ones}), guard._Seen(run, {"w": ones + turned}))
    assert match is not None
    assert match.norm_ratio == pytest.approx(2**0.5)
    assert match.cosine == pytest.approx(0.5**0.5)
