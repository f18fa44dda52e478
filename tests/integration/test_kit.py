"""A kit in the user's own loop: the same learning, the settings on, and everything put back."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
import workloads as w
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

from autotune import kit as kits
from autotune.errors import AutotuneError
from autotune.kit import Kit
from autotune.measure import flags
from autotune.measure.stepkit import is_channels_last
from autotune.outcome import Recipe
from autotune.settings import Settings

PLAIN = Settings.from_flat({"batch_size": 16})

make_kit = partial(kits.make_kit, device="cpu")
"""Where the loops written by hand are."""


def batches(count: int = 4, size: int = 16) -> list[Any]:
    return list(DataLoader(w.Rows(size * count), batch_size=size))


def by_hand(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for x, y in batches():
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach() for p in model.parameters()]


def same(model: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(model), weights(other)))


def recipe(batch_size: int = 64, reference: int = 16, **changes: Any) -> Recipe:
    factor = batch_size / reference
    lengths = {"warmup_samples": 10 * batch_size, **changes}
    return Recipe(
        batch_size=batch_size,
        reference_batch_size=reference,
        learning_rates=(0.1 * factor, 0.01 * factor),
        reference_learning_rates=(0.1, 0.01),
        lr_rule="linear",
        **lengths,
    )


def two_groups(model: nn.Module) -> torch.optim.SGD:
    body = list(model.body)
    return torch.optim.SGD(
        [{"params": body[0].parameters()}, {"params": body[3].parameters(), "lr": 0.01}], lr=0.1
    )


def rates(optimizer: torch.optim.Optimizer) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups]


class Watched(w.ConvNet):
    """Notes what reaches its forward pass."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = (x.is_contiguous(memory_format=torch.channels_last), torch.is_autocast_enabled("cpu"))
        return super().forward(x)


@pytest.mark.parametrize("handed", ["optimizer", "factory"])
def test_the_numbers_are_those_of_a_loop_written_by_hand(handed: str) -> None:
    """In float32 a kit's steps change the weights exactly as the user's own would."""
    model = w.Net()
    other = copy.deepcopy(model)
    by_hand(other, w.adam(other.parameters()))
    optimizer = w.adam(model.parameters()) if handed == "optimizer" else w.adam
    with make_kit(PLAIN, None, model, optimizer) as kit:
        losses = [kit.step(batch) for batch in batches()]
    assert same(model, other)
    assert all(loss.dim() == 0 and not loss.requires_grad for loss in losses)
    if handed == "optimizer":
        assert kit.optimizer is optimizer


def test_a_loop_of_the_users_own_is_made_of_the_pieces() -> None:
    """to_device, zero_grad, autocast, backward and optimizer_step do what `step` does."""
    model = w.Net()
    other = copy.deepcopy(model)
    by_hand(other, w.sgd(other.parameters()))
    with make_kit(PLAIN, None, model, w.sgd) as kit:
        for batch in batches():
            x, y = kit.to_device(batch)
            kit.zero_grad()
            with kit.autocast():
                loss = functional.cross_entropy(kit.model(x), y)
            kit.backward(loss)
            kit.optimizer_step()
    assert same(model, other)


def test_every_setting_is_applied() -> None:
    """Memory order, autocast, the scaler, the fused step and the threads are those of the settings."""
    settings = PLAIN.replace(channels_last=True, precision="float16", fused_optimizer=True, cpu_threads=2)
    model = Watched()
    optimizer = w.sgd(model.parameters())
    batch = next(iter(DataLoader(w.Pictures(), batch_size=8)))
    with make_kit(settings, None, model, optimizer, loss=functional.cross_entropy) as kit:
        kit.step(batch)
        assert torch.get_num_threads() == 2
    assert is_channels_last(model)
    assert model.seen == (True, True)
    assert kit.scaler is not None
    assert all(group["fused"] for group in optimizer.param_groups)


def test_closing_puts_the_switches_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch was set to before the kit, it is set to after; a second close does nothing."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before = flags.read_user_flags()
    kit = make_kit(PLAIN.replace(cpu_threads=2), None, w.Net(), w.sgd)
    torch.backends.cudnn.benchmark = False
    torch.set_float32_matmul_precision("high")
    kit.close()
    assert flags.read_user_flags() == before
    torch.set_num_threads(2)
    kit.close()
    assert torch.get_num_threads() == 2


def test_a_kit_that_is_refused_leaves_no_switch_behind() -> None:
    """Settings that the optimizer has no fused step for are an error, and the threads stay."""
    with pytest.raises(AutotuneError):
        make_kit(
            PLAIN.replace(cpu_threads=3, fused_optimizer=True),
            None,
            w.Net(),
            lambda p: torch.optim.RMSprop(p, lr=0.1),
        )
    assert torch.get_num_threads() == 1


def test_several_models_train_with_their_own_optimizers() -> None:
    """A dict of models and one of optimizers go to a train_step by name."""

    def play(kit: Kit, batch: Any) -> torch.Tensor:
        for name in ("g", "d"):
            kit.zero_grad()
            with kit.autocast():
                loss = functional.cross_entropy(kit.models[name](batch[0]), batch[1])
            kit.backward(loss)
            kit.optimizer_step(name)
        return loss

    models = {"g": w.Net(), "d": w.Net()}
    others = copy.deepcopy(models)
    for other in others.values():
        by_hand(other, w.sgd(other.parameters()))
    with make_kit(PLAIN, None, models, {"g": w.sgd, "d": w.sgd}, train_step=play) as kit:
        for batch in batches():
            kit.step(batch)
    assert all(same(models[name], others[name]) for name in models)


def test_an_optimizer_beside_a_function_is_used_itself() -> None:
    """In a dict of both: a scheduler that holds it goes on working, and a second kit knows it again."""
    models = {"g": w.Net(), "d": w.Net()}
    mine = torch.optim.SGD(models["d"].parameters(), lr=0.1)
    for _ in range(2):
        kit = make_kit(PLAIN, recipe(warmup_samples=0), models, {"g": w.sgd, "d": mine})
        assert kit.optimizers["d"] is mine
        assert list(kit.optimizers) == ["g", "d"]
        assert rates(mine) == pytest.approx([0.4])


def test_a_saved_scale_is_that_of_the_steps_taken() -> None:
    """Where one of several players has stepped last, float16's scale has moved in what is saved."""
    models = {"g": w.Net(), "d": w.Net()}
    with make_kit(PLAIN.replace(precision="float16"), None, models, {"g": w.sgd, "d": w.sgd}) as kit:
        kit.scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=1)
        x, y = batches(1)[0]
        kit.backward(functional.cross_entropy(kit.models["d"](x), y))
        kit.optimizer_step("d")
        assert kit.state_dict()["scaler"]["scale"] == 128.0


def test_without_an_optimizer_there_is_no_kit() -> None:
    """Nothing is trained with an optimizer that the user did not choose."""
    with pytest.raises(AutotuneError) as raised:
        make_kit(PLAIN, None, w.Net())
    assert raised.value.code == "AT-E01"


def test_an_optimizer_of_another_model_is_refused() -> None:
    """Its steps would train nothing, without a word."""
    with pytest.raises(AutotuneError) as raised:
        make_kit(PLAIN, None, w.Net(), w.sgd(w.Net().parameters()))
    assert "optimizer" in raised.value.what


def test_without_a_recipe_learning_is_left_alone() -> None:
    """No scaling, no warmup, no scheduler; so too with a recipe for the same batch size."""
    for given in (None, recipe(16, 16)):
        model = w.Net()
        optimizer = two_groups(model)
        kit = make_kit(PLAIN, given, model, optimizer)
        assert rates(optimizer) == [0.1, 0.01]
        assert kit.scheduler is None


def test_learning_rates_are_scaled_and_warmed_up_to() -> None:
    """From the reference to the full rate over the warmup's samples, the groups' ratio kept throughout."""
    model = w.Net()
    optimizer = two_groups(model)
    kit = make_kit(PLAIN, recipe(), model, optimizer, loss=functional.cross_entropy)
    seen = [rates(optimizer)]
    for _ in range(12):
        kit.step(batches(1, 64)[0])
        seen.append(rates(optimizer))
    assert seen[0] == pytest.approx([0.1, 0.01])
    assert seen[5] == pytest.approx([0.25, 0.025])
    assert seen[10] == seen[12] == pytest.approx([0.4, 0.04])
    assert all(first == pytest.approx(10 * second) for first, second in seen)


def test_the_warmup_goes_on_in_a_loop_of_the_users_own() -> None:
    """The optimizer's own step advances it, whoever calls it."""
    model = w.Net()
    optimizer = two_groups(model)
    kit = make_kit(PLAIN, recipe(), model, optimizer)
    for x, y in batches(5):
        kit.zero_grad()
        kit.backward(functional.cross_entropy(model(x), y))
        optimizer.step()
    assert rates(optimizer) == pytest.approx([0.25, 0.025])


def test_a_group_whose_rate_was_0_in_tuning_is_scaled_as_the_others() -> None:
    """A rate, or weight decay, of 0 says nothing of the factor, nor for groups that came after it."""
    given = Recipe(
        batch_size=32,
        reference_batch_size=16,
        learning_rates=(0.2, 0.0),
        reference_learning_rates=(0.1, 0.0),
        lr_rule="linear",
        weight_decays=(0.0, 0.04),
        reference_weight_decays=(0.0, 0.02),
    )
    model = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 8), nn.Linear(8, 4))
    optimizer = torch.optim.SGD([{"params": m.parameters()} for m in model], lr=0.1, weight_decay=0.5)
    make_kit(PLAIN.replace(batch_size=32), given, model, optimizer)
    assert rates(optimizer) == pytest.approx([0.2, 0.2, 0.2])
    assert [group["weight_decay"] for group in optimizer.param_groups] == pytest.approx([1.0, 1.0, 1.0])


def test_every_optimizer_is_warmed_up() -> None:
    """With several, none starts at the full rate; the recipe's rates are counted over all their groups."""
    models = {"g": w.Net(), "d": w.Net()}
    made = {
        "g": torch.optim.SGD(models["g"].parameters(), lr=0.1),
        "d": torch.optim.SGD(models["d"].parameters(), lr=0.01),
    }
    kit = make_kit(PLAIN, recipe(), models, made)
    assert [rates(optimizer)[0] for optimizer in made.values()] == pytest.approx([0.1, 0.01])
    assert set(kit.schedulers) == {"g", "d"}


@pytest.mark.parametrize("fused", [False, True])
def test_a_skipped_step_does_not_advance_the_warmup(fused: bool) -> None:
    """Gradients that overflow in float16 cost a step of learning and none of the warmup."""
    model = w.Net()
    optimizer = two_groups(model)
    settings = PLAIN.replace(precision="float16", fused_optimizer=fused)
    kit = make_kit(settings, recipe(), model, optimizer, step=lambda m, b: m(b[0]).sum() * b[1])
    x = batches(1)[0][0]
    kit.step((x, torch.tensor(float("inf"))))
    assert rates(optimizer) == pytest.approx([0.1, 0.01])
    kit.step((x, torch.tensor(1e-6)))
    assert rates(optimizer) == pytest.approx([0.13, 0.013])


def test_a_second_kit_of_the_same_optimizer_scales_nothing_twice() -> None:
    """A kit for each epoch, or after a checkpoint was loaded, keeps the rates and goes on warming up."""
    model = w.Net()
    optimizer = two_groups(model)
    for _ in range(3):
        with make_kit(PLAIN, recipe(), model, optimizer, loss=functional.cross_entropy) as kit:
            for batch in batches(4, 64):
                kit.step(batch)
    assert rates(optimizer) == pytest.approx([0.4, 0.04])
    resumed = w.Net()
    again = two_groups(resumed)
    again.load_state_dict(optimizer.state_dict())
    make_kit(PLAIN, recipe(), resumed, again)
    assert rates(again) == pytest.approx([0.4, 0.04])


def test_a_schedule_of_the_users_own_goes_on() -> None:
    """After the warmup nothing undoes what another scheduler lowered, and during it nothing overshoots."""
    model = w.Net()
    optimizer = two_groups(model)
    kit = make_kit(PLAIN, recipe(), model, optimizer, loss=functional.cross_entropy)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5**epoch)
    for _ in range(3):
        for batch in batches(6, 64):
            kit.step(batch)
            assert rates(optimizer)[0] <= 0.4 + 1e-9
        decay.step()
    assert rates(optimizer) == pytest.approx([0.05, 0.005])


def test_a_checkpoint_of_the_warmup_goes_on_where_it_was() -> None:
    """Optimizer and scheduler states saved in the middle of the warmup lead to the same rates."""
    model = w.Net()
    kit = make_kit(PLAIN, recipe(), model, two_groups(model), loss=functional.cross_entropy)
    for batch in batches(4, 64):
        kit.step(batch)
    saved = copy.deepcopy((kit.optimizer.state_dict(), kit.scheduler.state_dict()))
    other = w.Net()
    resumed = make_kit(PLAIN, recipe(), other, two_groups(other), loss=functional.cross_entropy)
    resumed.optimizer.load_state_dict(saved[0])
    resumed.scheduler.load_state_dict(saved[1])
    for one in (kit, resumed):
        one.step(batches(1, 64)[0])
    assert rates(kit.optimizer) == rates(resumed.optimizer)


def test_a_loss_is_inferred_at_the_first_batch() -> None:
    """Class labels take cross entropy; where nothing fits, the error says what to pass."""
    kit = make_kit(PLAIN, None, w.Net(), w.sgd)
    assert torch.isfinite(kit.step(batches(1)[0]))
    with pytest.raises(AutotuneError) as raised:
        make_kit(PLAIN, None, w.Net(), w.sgd).step({"x": torch.randn(4, 16)})
    assert raised.value.fix
