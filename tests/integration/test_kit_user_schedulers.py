"""Schedulers of the user's own beside a kit: those that it drives, and those that stay to be stepped."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from functools import partial
from typing import Any

import pytest
import torch
import workloads as w
from kit_recipes import REFERENCE, recipe
from torch.optim import lr_scheduler

from autotune import kit as kits
from autotune.errors import AutotuneError, AutotuneWarning, UsageError
from autotune.kit import Kit
from autotune.settings import Settings

STEPS = 40

make_kit = partial(kits.make_kit, device="cpu")
"""Where the loops written by hand are."""


class OwnCycle(lr_scheduler.OneCycleLR):
    """Not torch's own, so it is kept."""


KEPT: dict[str, Any] = {
    "one_cycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=STEPS, div_factor=10),
    "own_cycle": lambda o: OwnCycle(o, max_lr=0.1, total_steps=STEPS, div_factor=10),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, base_lr=0.01, max_lr=0.1, step_size_up=8),
    "step": lambda o: lr_scheduler.StepLR(o, step_size=8),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 1 / (1 + epoch)),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=STEPS, eta_min=0.01),
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=16, eta_min=0.01),
    "linear": lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=8),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o,
        [lr_scheduler.LinearLR(o, 0.1, total_iters=8), lr_scheduler.CyclicLR(o, 0.1, 0.3, step_size_up=8)],
        milestones=[8],
    ),
}


def trained() -> tuple[Any, torch.optim.Optimizer]:
    """A model without gradients, so that steps change nothing but rates, and its optimizer."""
    model = w.Net()
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def kit_of(k: int, model: Any, optimizer: Any, scheduler: Any = None, **options: Any) -> Kit:
    """Without a word about what is kept."""
    interval = options.pop("scheduler_interval", "step")
    given = recipe(k, **options) if k > 1 or options else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AutotuneWarning)
        return make_kit(
            Settings.from_flat({"batch_size": k * REFERENCE}),
            given,
            model,
            optimizer,
            scheduler=scheduler,
            scheduler_interval=interval,
        )


def stepped(optimizer: torch.optim.Optimizer, scheduler: Any, steps: int) -> list[float]:
    """The first group's rate before each step; the scheduler is stepped where there is one."""
    found = []
    for _ in range(steps):
        found.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return found


@pytest.mark.parametrize("done", [0, 5])
@pytest.mark.parametrize("name", KEPT)
def test_a_scheduler_that_stays_the_users_runs_at_the_scaled_height(name: str, done: int) -> None:
    """Every rate that it computes is multiplied, peaks and floors too, also where it is under way already."""
    _, plain = trained()
    expected = stepped(plain, KEPT[name](plain), STEPS)
    model, optimizer = trained()
    scheduler = KEPT[name](optimizer)
    stepped(optimizer, scheduler, done)
    kit_of(8, model, optimizer, scheduler, scheduler_interval="epoch")
    found = stepped(optimizer, scheduler, STEPS - done)
    assert found == pytest.approx([8 * rate for rate in expected[done:]])


def test_a_plateau_scheduler_keeps_its_floor_in_proportion() -> None:
    """It lowers the scaled rate to the scaled floor."""
    model, optimizer = trained()
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, min_lr=0.05)
    kit_of(8, model, optimizer, scheduler)
    for _ in range(4):
        scheduler.step(1.0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.4)


def test_a_warmup_leaves_a_kept_scheduler_its_numbers() -> None:
    """OneCycleLR computes from the group's initial rate: the kit's warmup writes none over it."""
    model, optimizer = trained()
    scheduler = KEPT["one_cycle"](optimizer)
    stepped(optimizer, scheduler, 5)
    kit_of(8, model, optimizer, scheduler, scheduler_interval="epoch", warmup_samples=32)
    assert optimizer.param_groups[0]["initial_lr"] == pytest.approx(8 * 0.01)


RETIMED: dict[str, Any] = {
    "step": lambda o: lr_scheduler.StepLR(o, step_size=10),
    "one_cycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.3, total_steps=24),
    "sequential": KEPT["sequential"],
    "multiplicative": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.9),
}


@pytest.mark.parametrize("name", RETIMED)
@pytest.mark.parametrize("k", [1, 2])
def test_an_optimizers_state_of_before_takes_the_scheduler_back(k: int, name: str) -> None:
    """Loaded into the optimizer alone after the scheduler went on, or ended: the same rates come again."""
    model, optimizer = trained()
    kit = kit_of(k, model, optimizer, RETIMED[name])
    stepped(optimizer, None, 12 // k)
    saved = copy.deepcopy(optimizer.state_dict())
    expected = stepped(optimizer, None, 14 // k)
    optimizer.load_state_dict(saved)
    assert stepped(optimizer, None, 14 // k) == pytest.approx(expected)
    assert kit.scheduler is not None
    assert kit.scheduler.samples == 26 // k * k * REFERENCE


def test_a_step_schedule_gone_back_to_has_all_its_steps() -> None:
    """A tenth from step 10 to 20, where the run went back from step 25 to step 12."""
    model, optimizer = trained()
    kit_of(1, model, optimizer, RETIMED["step"])
    stepped(optimizer, None, 12)
    saved = copy.deepcopy(optimizer.state_dict())
    stepped(optimizer, None, 13)
    optimizer.load_state_dict(saved)
    assert stepped(optimizer, None, 9) == pytest.approx([0.01] * 8 + [0.001])


def test_a_kits_state_of_before_takes_an_ended_scheduler_back() -> None:
    """It had taken its last step, and takes the steps before it again."""
    model, optimizer = trained()
    kit = kit_of(1, model, optimizer, RETIMED["one_cycle"])
    stepped(optimizer, None, 12)
    saved = copy.deepcopy(kit.state_dict())
    expected = stepped(optimizer, None, 20)
    kit.load_state_dict(saved)
    assert stepped(optimizer, None, 20) == pytest.approx(expected)


DRIVEN: dict[str, Any] = {
    **RETIMED,
    **{name: KEPT[name] for name in ("lambda", "cyclic", "restarts", "linear")},
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.5, total_iters=4), lr_scheduler.ExponentialLR(o, 0.95)]
    ),
}


@pytest.mark.parametrize("name", DRIVEN)
def test_a_scheduler_that_is_driven_says_where_it_is(name: str) -> None:
    """With the user's own batch its state is that of one stepped by hand, and is saved and loaded alike."""
    _, plain = trained()
    by_hand = DRIVEN[name](plain)
    stepped(plain, by_hand, 20)
    model, optimizer = trained()
    scheduler = DRIVEN[name](optimizer)
    kit_of(1, model, optimizer, scheduler)
    stepped(optimizer, None, 20)
    expected = {key: value for key, value in by_hand.state_dict().items() if key != "_scale_fn_ref"}
    state = scheduler.state_dict()
    assert state.keys() == by_hand.state_dict().keys()
    assert {key: state[key] for key in expected} == expected
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    fresh = DRIVEN[name](trained()[1])
    fresh.load_state_dict(torch.load(file, weights_only=False))
    assert fresh.get_last_lr() == scheduler.get_last_lr() == [optimizer.param_groups[0]["lr"]]


def test_a_larger_batch_shows_the_real_rates_and_the_users_own_steps() -> None:
    """After ten steps of four times the samples it is at step 40, and the rate is the optimizer's."""
    model, optimizer = trained()
    scheduler = RETIMED["step"](optimizer)
    kit = kit_of(4, model, optimizer, scheduler)
    assert (scheduler.last_epoch, scheduler.get_last_lr()) == (0, [pytest.approx(0.4)])
    stepped(optimizer, None, 6)
    assert (scheduler.last_epoch, scheduler.get_last_lr()) == (24, [pytest.approx(0.004)])
    saved = copy.deepcopy(kit.state_dict())
    stepped(optimizer, None, 4)
    assert scheduler.last_epoch == 40
    kit.load_state_dict(saved)
    assert (scheduler.last_epoch, scheduler.get_last_lr()) == (24, [pytest.approx(0.004)])


def test_a_scheduler_that_is_driven_is_copied_and_pickled_as_what_it_was() -> None:
    """The copy has an optimizer of its own that no kit drives, so its step() steps."""
    model, optimizer = trained()
    scheduler = RETIMED["step"](optimizer)
    kit_of(1, model, optimizer, scheduler)
    assert isinstance(scheduler, lr_scheduler.StepLR)
    stepped(optimizer, None, 9)
    for other in (copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler))):
        assert type(other) is lr_scheduler.StepLR
        other.step()
        assert other.get_last_lr() == [pytest.approx(0.01)]
        assert other.optimizer.param_groups[0]["lr"] == pytest.approx(0.01)
    assert optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize("anew", [False, True])
def test_a_scheduler_handed_to_the_next_kit_shows_the_same(anew: bool) -> None:
    """A kit for each epoch with the same scheduler, or one made anew: it is driven, and is right."""
    model, optimizer = trained()
    scheduler = RETIMED["step"](optimizer)
    for _ in range(2):
        kit_of(2, model, optimizer, scheduler)
        stepped(optimizer, None, 6)
        scheduler = RETIMED["step"](optimizer) if anew else scheduler
    kit_of(2, model, optimizer, scheduler)
    assert (scheduler.last_epoch, scheduler.get_last_lr()) == (24, [pytest.approx(0.002)])
    with pytest.warns(AutotuneWarning, match="leave its step"):
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.002)


@pytest.mark.parametrize("first", [None, "step"])
def test_another_scheduler_than_the_kit_befores_is_refused(first: str | None) -> None:
    """It would be taken out of the user's hands, and never move anything."""
    model, optimizer = trained()
    kit_of(2, model, optimizer, RETIMED[first] if first else None, warmup_samples=80)
    other = KEPT["cosine"](optimizer)
    with pytest.raises(AutotuneError) as raised:
        kit_of(2, model, optimizer, other, warmup_samples=80)
    assert raised.value.why
    assert raised.value.fix
    assert type(other) is lr_scheduler.CosineAnnealingLR


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (lambda o: lr_scheduler.StepLR(o, step_size=8), lambda o: lr_scheduler.StepLR(o, step_size=80)),
        (KEPT["cosine"], lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=400, eta_min=0.01)),
        (
            lambda o: lr_scheduler.MultiStepLR(o, [4, 8]),
            lambda o: lr_scheduler.MultiStepLR(o, [4, 80]),
        ),
    ],
)
def test_one_of_the_same_class_with_other_numbers_is_another(first: Any, second: Any) -> None:
    """Of a second phase, say: the kit would go on with the first one's numbers."""
    model, optimizer = trained()
    kit_of(2, model, optimizer, first(optimizer))
    kit_of(2, model, optimizer, first(optimizer))
    with pytest.raises(UsageError, match="follows another schedule"):
        kit_of(2, model, optimizer, second(optimizer))


def test_a_function_that_is_refused_leaves_batch_norm_as_it_was() -> None:
    """Who goes on without a kit trains with the momenta that the model had."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    norms = {"batch_norm_momenta": (0.2,), "reference_batch_norm_momenta": (0.1,)}
    with pytest.raises(UsageError, match="not made by the kit"):
        kit_of(2, model, optimizer, lr_scheduler.ReduceLROnPlateau, **norms)
    assert (model[1].momentum, optimizer.param_groups[0]["lr"]) == (0.1, 0.1)
    kit_of(2, model, optimizer, **norms)
    assert model[1].momentum == pytest.approx(0.19)


def test_a_rate_that_is_a_tensor_is_shown_as_a_copy() -> None:
    """As torch's own schedulers do: who writes into what was shown changes no rate."""
    model = w.Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=torch.tensor(0.1), foreach=False)
    scheduler = RETIMED["step"](optimizer)
    kit_of(2, model, optimizer, scheduler)
    (shown,) = scheduler.get_last_lr()
    assert shown == optimizer.param_groups[0]["lr"] == pytest.approx(0.2)
    assert shown is not optimizer.param_groups[0]["lr"]


def test_a_class_is_a_function_that_makes_a_scheduler() -> None:
    """One that needs nothing but the optimizer."""
    model, optimizer = trained()
    kit_of(2, model, optimizer, lr_scheduler.ConstantLR)
    assert stepped(optimizer, None, 4) == pytest.approx([0.2 / 3, 0.2 / 3, 0.2 / 3, 0.2])


@pytest.mark.parametrize("given", [lambda o: OwnCycle(o, max_lr=0.1, total_steps=STEPS), KEPT["linear"]])
def test_a_scheduler_that_only_the_kit_would_have_is_refused(given: Any) -> None:
    """Made by the kit and left to the user to step, it would be lost; the optimizer is as it was before."""
    model, optimizer = trained()
    before = copy.deepcopy(optimizer.state_dict())
    interval = "epoch" if given is KEPT["linear"] else "step"
    with pytest.raises(UsageError) as raised:
        kit_of(2, model, optimizer, given, scheduler_interval=interval)
    assert "make it yourself" in raised.value.fix
    assert optimizer.state_dict() == before
    scheduler = given(optimizer)
    kit_of(2, model, optimizer, scheduler, scheduler_interval=interval)
    expected = stepped(plain := trained()[1], given(plain), 5)
    assert stepped(optimizer, scheduler, 5) == pytest.approx([2 * rate for rate in expected])


class Slotted:
    """A function of steps that torch cannot save: nothing is asked of it but the rate."""

    __slots__ = ()

    def __call__(self, step: int) -> float:
        return 1 / (1 + step)


def test_a_scheduler_that_cannot_be_saved_is_driven_all_the_same() -> None:
    """Only saving it raises, as it does without a kit; what the user sees of it is what moves."""
    model, optimizer = trained()
    scheduler = lr_scheduler.LambdaLR(optimizer, Slotted())
    kit_of(2, model, optimizer, scheduler)
    assert stepped(optimizer, None, 3) == pytest.approx([0.2, 0.2 / 3, 0.2 / 5])
    assert (scheduler.last_epoch, scheduler.get_last_lr()) == (6, [pytest.approx(0.2 / 7)])
