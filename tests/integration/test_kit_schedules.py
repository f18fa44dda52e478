"""Learning rates in a kit: schedulers re-timed, resumed and never driven twice, and gathered gradients."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import workloads as w
from kit_recipes import REFERENCE, recipe
from strategies import plain_workload
from torch import nn
from torch.nn import functional
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader

from autotune import kit as kits
from autotune.errors import AutotuneError, AutotuneWarning
from autotune.kit import Kit
from autotune.measure.models import batch_norm_momenta
from autotune.outcome import Decay, LargeBatch
from autotune.recipe.scaling import scale_recipe
from autotune.recipe.schedule import SampleSchedule
from autotune.settings import Settings

STEPS = 40

make_kit = partial(kits.make_kit, device="cpu")
"""Where the loops written by hand are."""

MAKERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "multiplicative": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.9),
    "step": lambda o: lr_scheduler.StepLR(o, step_size=8, gamma=0.5),
    "milestones": lambda o: lr_scheduler.MultiStepLR(o, milestones=[8, 24]),
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, gamma=0.9),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=STEPS),
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=16),
    "polynomial": lambda o: lr_scheduler.PolynomialLR(o, total_iters=STEPS, power=2.0),
    "one_cycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.3, total_steps=STEPS + 1),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, base_lr=0.1, max_lr=0.3, step_size_up=8),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o,
        [lr_scheduler.LinearLR(o, 0.1, total_iters=8), lr_scheduler.CosineAnnealingLR(o, T_max=32)],
        milestones=[8],
    ),
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.5, total_iters=4), lr_scheduler.ExponentialLR(o, 0.95)]
    ),
}


def settings(batch_size: int) -> Settings:
    return Settings.from_flat({"batch_size": batch_size})


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def batch(samples: int) -> Any:
    return next(iter(DataLoader(w.Rows(samples), batch_size=samples)))


def kit_of(k: int, maker: Any = None, *, model: nn.Module | None = None, **changes: Any) -> Kit:
    model = model or w.Net()
    given = recipe(k, **changes) if k > 1 or changes else None
    loss = functional.cross_entropy
    return make_kit(settings(k * REFERENCE), given, model, sgd(model), loss=loss, scheduler=maker)


def seen(kit: Kit, steps: int, group: str = "lr") -> list[float]:
    """The number of the first group before each step."""
    size = kit.settings.loader.batch_size
    assert size is not None
    found = []
    for _ in range(steps):
        found.append(kit.optimizer.param_groups[0][group])
        kit.step(batch(size))
    return found


def by_hand(maker: Any, steps: int, group: str = "lr") -> list[float]:
    model = w.Net()
    optimizer = sgd(model)
    scheduler = maker(optimizer)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0][group])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("name", MAKERS)
def test_with_the_users_batch_a_scheduler_does_what_it_does_without_a_kit(name: str) -> None:
    """Every one of torch's, to the last bit: one step of it for each step of the optimizer."""
    assert seen(kit_of(1, MAKERS[name]), STEPS) == by_hand(MAKERS[name], STEPS)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("k", [2, 8])
def test_a_larger_batch_meets_the_same_schedule_at_the_same_samples(name: str, k: int) -> None:
    """After as many samples the rate is k times what it would be: no milestone is carried over in steps."""
    assert seen(kit_of(k, MAKERS[name]), STEPS // k) == pytest.approx(
        [k * rate for rate in by_hand(MAKERS[name], STEPS)[::k]]
    )


def test_a_momentum_that_goes_with_the_rate_is_re_timed_too() -> None:
    """OneCycleLR moves both; a momentum that no scheduler moves stays the user's."""
    expected = by_hand(MAKERS["one_cycle"], STEPS, "momentum")[::4]
    kit = kit_of(4, MAKERS["one_cycle"])
    assert seen(kit, STEPS // 4, "momentum") == pytest.approx(expected)
    kit = kit_of(4, MAKERS["cosine"])
    kit.optimizer.param_groups[0]["momentum"] = 0.5
    assert seen(kit, 4, "momentum") == [0.5] * 4


def test_a_scheduler_that_exists_is_taken_over() -> None:
    """Made before the kit from the user's own rates; its step() then warns and does nothing."""
    model = w.Net()
    optimizer = sgd(model)
    scheduler = MAKERS["cosine"](optimizer)
    kit = make_kit(
        settings(8), recipe(2), model, optimizer, loss=functional.cross_entropy, scheduler=scheduler
    )
    before = optimizer.param_groups[0]["lr"]
    with pytest.warns(AutotuneWarning, match="leave its step"):
        scheduler.step()
    scheduler.step()  # said once
    assert optimizer.param_groups[0]["lr"] == before == pytest.approx(0.2)
    kit.step(batch(8))
    assert optimizer.param_groups[0]["lr"] < before


def test_the_kits_own_scheduler_is_not_driven_twice() -> None:
    """A loop that steps it as it would step another is told not to."""
    kit = kit_of(4, warmup_samples=160)
    assert kit.scheduler is not None
    before = kit.scheduler.get_last_lr()
    with pytest.warns(AutotuneWarning, match="advances by itself"):
        kit.scheduler.step()
    assert kit.scheduler.get_last_lr() == before


class Own(lr_scheduler.LRScheduler):
    """Halves the rate at each step."""

    def get_lr(self) -> list[float]:
        """From the base rates."""
        return [base * 0.5**self.last_epoch for base in self.base_lrs]


@pytest.mark.parametrize("kind", [Own, lr_scheduler.ReduceLROnPlateau])
def test_a_scheduler_of_unknown_type_is_kept_with_a_warning(kind: Any) -> None:
    """It goes on from the scaled rate, in the user's own hands."""
    model = w.Net()
    optimizer = sgd(model)
    with pytest.warns(AutotuneWarning, match="kept as it is"):
        kit = make_kit(settings(16), recipe(4), model, optimizer, scheduler=kind(optimizer))
    assert kit.scheduler is None
    assert kit.optimizer.param_groups[0]["lr"] == pytest.approx(0.4)


def test_a_kept_scheduler_computes_from_the_scaled_rate() -> None:
    """Its base rates are scaled, so its next step does not fall back; so for one that steps by epochs."""
    for interval, maker in (("step", Own), ("epoch", MAKERS["step"])):
        model = w.Net()
        optimizer = sgd(model)
        scheduler = maker(optimizer)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AutotuneWarning)
            make_kit(
                settings(16), recipe(4), model, optimizer, scheduler=scheduler, scheduler_interval=interval
            )
        assert scheduler.base_lrs == pytest.approx([0.4])
        optimizer.step()
        scheduler.step()
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.2 if maker is Own else 0.4)


@pytest.mark.parametrize(
    "given", [3, lambda o: None, lambda o: MAKERS["step"](sgd(w.Net())), {"other": MAKERS["step"]}]
)
def test_what_is_no_scheduler_of_the_optimizer_is_refused(given: Any) -> None:
    """Neither a number, nor one of another optimizer, nor a name that is not there."""
    with pytest.raises(AutotuneError) as raised:
        kit_of(2, given)
    assert raised.value.code == "AT-E01"


def test_a_warmup_meets_the_users_decay() -> None:
    """The rate is the lesser of both; a user's own, longer warmup counts in place of the recipe's."""
    kit = kit_of(4, MAKERS["cosine"], warmup_samples=64, warmup_start=0.25)
    cosine = [4 * rate for rate in by_hand(MAKERS["cosine"], STEPS)[::4]]
    warm = [0.4 * min(1.0, 0.25 + 0.75 * step / 4) for step in range(10)]
    assert seen(kit, 10) == pytest.approx([min(pair) for pair in zip(cosine, warm)])
    kit = kit_of(4, MAKERS["sequential"], warmup_samples=16, warmup_start=0.5)
    assert seen(kit, 10) == pytest.approx([4 * rate for rate in by_hand(MAKERS["sequential"], STEPS)[::4]])


def test_the_recipes_own_decay_is_what_lambdalr_makes_of_it() -> None:
    """With the plain numbers and `SampleSchedule` a loop without a kit has the same rates."""
    own = {"warmup_samples": 32, "warmup_start": 0.25, "decay": Decay(shape="cosine", samples=160)}
    kit = kit_of(4, **own)
    model = w.Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.4)
    scheduler = lr_scheduler.LambdaLR(optimizer, SampleSchedule(recipe=recipe(4, **own)))
    scheduler.load_state_dict(copy.deepcopy(scheduler.state_dict()))
    for rate in seen(kit, 12):
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-15)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("name", [None, "one_cycle", "sequential"])
def test_a_run_goes_on_where_it_was_saved(name: str | None) -> None:
    """Weights, rates and counts after a restart are those of a run without; the file holds plain values."""
    maker = MAKERS[name] if name else None
    changes: dict[str, Any] = {"warmup_samples": 80, "warmup_start": 0.25}
    torch.manual_seed(0)
    model = w.Net()
    kit = kit_of(4, maker, model=model, **changes)
    seen(kit, 3)
    file = io.BytesIO()
    torch.save(kit.state_dict(), file)
    rates = seen(kit, 5)
    file.seek(0)
    resumed = kit_of(4, maker, **changes)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert resumed.samples_seen == 48
    assert seen(resumed, 5) == rates
    for ours, theirs in zip(resumed.model.parameters(), model.parameters()):
        assert torch.equal(ours, theirs)


def test_another_kits_state_is_refused() -> None:
    """With a scheduler of the user's and without are two schedules; so are more models than there are."""
    kit = kit_of(4, warmup_samples=80)
    state = kit.state_dict()
    for other, changed in ((kit_of(4, MAKERS["step"]), state), (kit, {**state, "models": {"a": {}}})):
        with pytest.raises(AutotuneError) as raised:
            other.load_state_dict(changed)
        assert raised.value.fix


def test_what_is_no_kits_state_is_refused() -> None:
    """A model's own state, or an empty one, is told from a kit's."""
    kit = kit_of(4)
    for state in (kit.model.state_dict(), {}):
        with pytest.raises(AutotuneError) as raised:
            kit.load_state_dict(state)
        assert "not a kit's" in raised.value.what
        assert "`models`" in raised.value.why


def test_an_optimizers_own_checkpoint_knows_how_far_the_warmup_is() -> None:
    """Loaded before the kit is made, and without its state, the warmup goes on and ends at the same rate."""
    kit = kit_of(4, warmup_samples=80, warmup_start=0.25)
    seen(kit, 2)
    model = w.Net()
    loaded = sgd(model)
    loaded.load_state_dict(copy.deepcopy(kit.optimizer.state_dict()))
    resumed = make_kit(settings(16), kit.recipe, model, loaded, loss=functional.cross_entropy)
    assert seen(resumed, 5) == pytest.approx(seen(kit, 5))
    assert loaded.param_groups[0]["lr"] == pytest.approx(0.4)


def test_a_checkpoint_loaded_into_the_optimizer_after_the_kit_is_followed() -> None:
    """The usual order: the warmup goes on from where it was saved, also where it had ended."""
    for steps in (2, 6):
        kit = kit_of(4, warmup_samples=80, warmup_start=0.25)
        seen(kit, steps)
        resumed = kit_of(4, warmup_samples=80, warmup_start=0.25)
        resumed.optimizer.load_state_dict(copy.deepcopy(kit.optimizer.state_dict()))
        resumed.model.load_state_dict(kit.model.state_dict())
        assert seen(resumed, 6) == pytest.approx(seen(kit, 6))
        assert resumed.optimizer.param_groups[0]["lr"] == pytest.approx(0.4)


def test_a_scheduler_that_takes_no_step_beyond_its_total_stays_where_it_ended() -> None:
    """Epochs that end with a smaller batch have a few samples more in larger batches: OneCycleLR raised."""
    kit = kit_of(4, lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.3, total_steps=STEPS))
    rates = seen(kit, STEPS // 4 + 3)
    ended = by_hand(lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.3, total_steps=STEPS), STEPS)[-1]
    assert rates[-2:] == pytest.approx([4 * ended, 4 * ended])


@pytest.mark.parametrize(
    "make",
    [
        lambda o: lr_scheduler.ChainedScheduler([_short_cycle(o), lr_scheduler.ConstantLR(o, 1.0)]),
        lambda o: lr_scheduler.SequentialLR(
            o, [lr_scheduler.ConstantLR(o, 0.5, total_iters=8), _short_cycle(o)], milestones=[8]
        ),
    ],
    ids=["chained", "sequential"],
)
def test_an_end_inside_another_scheduler_is_seen_too(make: Callable[[Any], Any]) -> None:
    """The one that has a total may be a part: where it would raise, all of it stays."""
    rates = seen(kit_of(4, make), STEPS // 4 + 12)
    assert rates[-1] == rates[-2] == pytest.approx(rates[STEPS // 4 + 5])


def _short_cycle(optimizer: Any) -> Any:
    return lr_scheduler.OneCycleLR(optimizer, max_lr=0.3, total_steps=STEPS)


def test_rates_for_another_batch_than_the_loaders_are_noticed() -> None:
    """Once, where the first few batches all have another size; a smaller last one is as it should be."""
    kit = kit_of(4)
    for _ in range(3):
        kit.step(batch(4))
    with pytest.warns(AutotuneWarning, match="recipe's for batches of 16, and the batches so far have 4"):
        kit.step(batch(4))
    kit.step(batch(4))
    fine = kit_of(4)
    for size in (16, 4, 4, 4, 4, 4):
        fine.step(batch(size))


def test_a_second_kit_goes_on_with_the_same_schedule() -> None:
    """A kit for each epoch drives one schedule once, the user's scheduler included."""
    model = w.Net()
    optimizer = sgd(model)
    rates = []
    for _ in range(2):
        kit = make_kit(
            settings(16),
            recipe(4),
            model,
            optimizer,
            loss=functional.cross_entropy,
            scheduler=MAKERS["cosine"],
        )
        rates += seen(kit, 5)
    assert rates == pytest.approx([4 * rate for rate in by_hand(MAKERS["cosine"], STEPS)[::4]])


@pytest.mark.parametrize("fused", [False, True])
def test_a_skipped_step_waits_and_its_samples_are_seen(fused: bool) -> None:
    """float16 overflow: the user's scheduler does not go on, and the count of samples does."""
    model = w.Net()
    kit = make_kit(
        settings(8).replace(precision="float16", fused_optimizer=fused),
        recipe(2),
        model,
        sgd(model),
        step=lambda m, b: m(b[0]).sum() * b[1],
        scheduler=MAKERS["exponential"],
    )
    x = batch(8)[0]
    for scale in (float("inf"), 1e-6, float("inf"), 1e-6):
        kit.step((x, torch.tensor(scale)))
    assert kit.scheduler is not None
    assert (kit.samples_seen, kit.scheduler.samples) == (32, 16)
    assert kit.optimizer.param_groups[0]["lr"] == pytest.approx(0.2 * 0.9**4)


def test_weight_decay_beta2_and_batch_norm_are_the_recipes() -> None:
    """Applied once, to optimizer and model, however many kits are made of them."""
    model = w.Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, betas=(0.9, 0.99))
    workload = plain_workload(
        optimizer_class="AdamW",
        optimizer_family="adam",
        learning_rates=(1e-3,),
        weight_decays=(0.1,),
        decoupled_weight_decay=True,
        beta2s=(0.99,),
        batch_norm_momenta=batch_norm_momenta([model]),
    )
    given = scale_recipe(workload, 16, 4)
    for _ in range(2):
        kit = make_kit(settings(16), given, model, optimizer)
    group = optimizer.param_groups[0]
    assert group["lr"] == pytest.approx(2e-3)
    assert group["weight_decay"] == pytest.approx(0.2)
    assert group["betas"] == pytest.approx((0.9, 0.99**4))
    assert batch_norm_momenta([model]) == pytest.approx((1 - 0.9**4,))
    assert kit.ema_decay(0.999) == pytest.approx(0.999**4)


def test_the_alpha_of_rmsprop_goes_as_beta2_does() -> None:
    """It is the decay of the second moment by another name."""
    model = w.Net()
    optimizer = torch.optim.RMSprop(model.parameters(), lr=0.1, alpha=0.99)
    make_kit(settings(8), recipe(2, beta2s=(0.9801,), reference_beta2s=(0.99,)), model, optimizer)
    assert optimizer.param_groups[0]["alpha"] == 0.9801


def without_norm() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 4))


@pytest.mark.parametrize("own_loop", [False, True])
def test_gathered_gradients_are_the_users_own_step(own_loop: bool) -> None:
    """Four batches of 4 change the weights as one of 16 does, by `step` and in a loop of the pieces."""
    gathered, whole = without_norm(), without_norm()
    given = scale_recipe(plain_workload(learning_rates=(0.1,)), 4, 16, keep_effective=True)
    kit = make_kit(settings(4), given, gathered, sgd(gathered), loss=functional.cross_entropy)
    other = make_kit(settings(16), None, whole, sgd(whole), loss=functional.cross_entropy)
    rows = w.Rows(48)
    for x, y in DataLoader(rows, batch_size=4):
        if own_loop:
            kit.zero_grad()
            kit.backward(functional.cross_entropy(kit.model(x), y))
            kit.optimizer_step()
        else:
            kit.step((x, y))
    for big in DataLoader(rows, batch_size=16):
        other.step(big)
    for ours, theirs in zip(gathered.parameters(), whole.parameters()):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_gradients_are_not_gathered_for_several_optimizers() -> None:
    """Which batches belong to which step is the user's own to say."""
    models = {"a": w.Net(), "b": w.Net()}
    given = scale_recipe(plain_workload(), 4, 16, keep_effective=True)
    with pytest.raises(AutotuneError, match="gathered"):
        make_kit(settings(4), given, models, {"a": w.sgd, "b": w.sgd})


def test_an_optimizer_for_large_batches_is_used_when_asked_for() -> None:
    """In place of the user's, with its own rate, warmup and decay; without an offer it is refused."""
    pytest.importorskip("timm", reason="timm is not installed")
    offer = LargeBatch(
        optimizer="LARS",
        learning_rate=2.0,
        weight_decay=5e-5,
        momentum=0.9,
        warmup_samples=64,
        warmup_start=0.01,
        decay=Decay(shape="polynomial", samples=160, power=2.0),
    )
    given = recipe(4, large_batch=offer)
    fused = settings(16).replace(fused_optimizer=True)  # of the optimizer that this one replaces
    kit = make_kit(fused, given, w.Net(), loss=functional.cross_entropy, large_batch=True)
    rates = seen(kit, 10)
    assert rates[0] == pytest.approx(0.02)
    assert rates[5] == pytest.approx(2.0 * 0.5**2)
    with pytest.raises(AutotuneError, match="no optimizer for large batches"):
        make_kit(settings(16), recipe(4), w.Net(), large_batch=True)


def test_a_rate_that_is_a_tensor_stays_one() -> None:
    """As a captured or compiled optimizer needs it; the schedule writes into the kit's own."""
    model = w.Net()
    rate = torch.tensor(0.1)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, foreach=False)
    given = recipe(4, warmup_samples=64, warmup_start=0.25)
    kit = make_kit(settings(16), given, model, optimizer, loss=functional.cross_entropy)
    held = optimizer.param_groups[0]["lr"]
    assert float(held) == pytest.approx(0.1)
    for _ in range(4):
        kit.step(batch(16))
    assert optimizer.param_groups[0]["lr"] is held
    assert float(held) == pytest.approx(0.4)
    assert rate.item() == pytest.approx(0.1)
