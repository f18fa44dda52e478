"""What a comparison of steps comes to: the limits, the words, and what is no ground for a judgement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from autotune.recipe.guard import (
    GradientMatch,
    NumericsRecord,
    NumericsRun,
    NumericsStep,
    changes,
    judge_numerics,
    label,
)
from autotune.settings import Settings

YOURS = Settings()
BF16 = YOURS.replace(precision="bfloat16")
FLAT = (2.0,) * 30


def run(losses: Sequence[float | None], *, skipped: Sequence[int] = (), scale: float | None = None):
    """A run with these losses; None is one that is not finite."""
    steps = tuple(
        NumericsStep(loss=loss, gradient_norm=1.0, finite=loss is not None, skipped=number in skipped)
        for number, loss in enumerate(losses)
    )
    return NumericsRun(steps=steps, scale=scale)


def record(losses: Sequence[float | None] = FLAT, **changed: object) -> NumericsRecord:
    """bfloat16 with these losses beside float32 with a flat loss of 2; gradients agree."""
    plain = NumericsRecord(
        settings=BF16,
        reference=YOURS,
        run=run(losses),
        reference_run=run(FLAT),
        again=run(FLAT),
        gradients=GradientMatch(cosine=0.9998, norm_ratio=1.0),
        gradients_again=GradientMatch(cosine=1.0, norm_ratio=1.0),
    )
    return replace(plain, **changed)


def late(loss: float) -> tuple[float, ...]:
    """Losses that are off in the last third alone."""
    return (*FLAT[:20], *(loss,) * 10)


def test_equal_losses_and_gradients_are_the_same():
    """In words: over how many steps, and how near."""
    found = judge_numerics(record(late(2.001)))
    assert found.kind == "same"
    assert found.in_words() == (
        "bfloat16: same as float32 over 30 steps (loss within 0.05 %, gradients' cosine 0.9998)"
    )


@pytest.mark.parametrize(("loss", "direction"), [(2.24, "above"), (1.76, "below")])
def test_a_loss_that_is_off_is_worse_in_either_direction(loss, direction):
    """12 % of the last third's mean, with what it may be."""
    found = judge_numerics(record(late(loss)))
    assert found.kind == "worse"
    assert found.in_words() == (
        f"bfloat16: the loss after 30 steps was 12 % {direction} float32's (limit 1 %)"
    )


def test_the_limit_is_twice_what_another_order_does():
    """Where the reference moves by 2 %, 3 % are no more than chance, and 5 % are."""
    noisy = run(late(2.04))
    assert judge_numerics(record(late(2.06), again=noisy)).kind == "same"
    found = judge_numerics(record(late(2.10), again=noisy))
    assert (found.kind, found.loss_limit) == ("worse", pytest.approx(0.04))


def test_a_loss_too_noisy_to_tell_is_unknown_unless_it_agrees():
    """Nothing is claimed from a change that another order of the batches makes as well."""
    noisy = run(late(2.4))
    found = judge_numerics(record(late(2.2), again=noisy))
    assert found.kind == "unknown"
    assert found.reason == (
        "the loss was 10 % off, but another order of the batches changes float32's own by 20 %"
    )
    assert judge_numerics(record(late(2.001), again=noisy)).kind == "same"


@pytest.mark.parametrize(
    ("own", "others", "kind"),
    [
        (2.12, 3.1, "worse"),
        (2.12, 0.9, "worse"),
        (2.12, 2.8, "unknown"),
        (4.0, 5.8, "unknown"),
        (4.0, 6.2, "worse"),
    ],
)
def test_a_loss_that_is_far_off_is_worse_however_noisy_yours_is(own, others, kind):
    """Beside 6 % of noise a change of half is worse; where the noise is more, twice that."""
    assert judge_numerics(record(late(others), again=run(late(own)))).kind == kind


def test_a_loss_next_to_nothing_is_held_against_the_first_one():
    """0.001 against 0.002 after a start at 2 is no difference in training."""
    low, lower = (*FLAT[:20], *(0.002,) * 10), (*FLAT[:20], *(0.001,) * 10)
    assert judge_numerics(record(lower, reference_run=run(low), again=run(low))).kind == "same"


@pytest.mark.parametrize(
    ("match", "said"),
    [
        (GradientMatch(cosine=0.93, norm_ratio=1.0, worst_cosine=0.2, worst_parameter="head"), "0.9300"),
        (GradientMatch(cosine=1.0, norm_ratio=0.8), "0.8 times as large"),
    ],
)
def test_a_first_gradient_that_is_off_is_worse(match, said):
    """By its direction, naming the parameter, or by its size."""
    found = judge_numerics(record(gradients=match))
    assert found.kind == "worse"
    assert said in found.reason
    assert match.worst_parameter in found.reason
    assert judge_numerics(record(gradients=match, gradients_again=match)).kind == "same"


@pytest.mark.parametrize("first", [{"cosine": 0.49, "norm_ratio": 1.0}, {"cosine": 1.0, "norm_ratio": 0.8}])
def test_a_gradient_that_comes_right_with_the_first_steps_is_no_ground(first):
    """Weights that were just drawn can amplify rounding; what is off after the steps stays off."""
    match = GradientMatch(**first)
    right = GradientMatch(cosine=0.9996, norm_ratio=1.0)
    found = judge_numerics(record(gradients=match, gradients_settled=right))
    assert found.kind == "same"
    assert f"gradients' cosine {match.cosine:.4f}, 0.9996 after the steps" in found.reason
    assert judge_numerics(record(gradients=match, gradients_settled=match)).kind == "worse"


def test_skipped_steps_are_worse_after_the_scaler_is_calibrated():
    """Ten at the start are its usual search for a factor; two of twenty later are too many, one is not."""
    fp16 = {"settings": YOURS.replace(precision="float16")}
    start = record(run=run(FLAT, skipped=range(10), scale=64.0), **fp16)
    assert judge_numerics(start).kind == "same"
    assert judge_numerics(record(run=run(FLAT, skipped=(15,), scale=64.0), **fp16)).kind == "same"
    found = judge_numerics(record(run=run(FLAT, skipped=(15, 25), scale=64.0), **fp16))
    assert found.in_words() == "float16: 2 of 30 steps were skipped: their gradients overflowed"


def test_a_scale_under_one_is_worse():
    """Gradients had to be made smaller for float16 to hold them."""
    found = judge_numerics(record(run=run(FLAT, skipped=range(8), scale=0.25)))
    assert (found.kind, "factor was 0.25" in found.reason) == ("worse", True)


def test_nan_is_worse_without_a_scaler_and_no_ground_in_the_reference():
    """Where float32 itself is not finite, there is nothing to compare with."""
    broken = (*FLAT[:20], *(None,) * 10)
    found = judge_numerics(record(broken))
    assert (found.kind, found.reason) == ("worse", "loss or gradient was NaN or infinite in 10 of 30 steps")
    found = judge_numerics(record(broken, reference_run=run(broken)))
    assert (found.kind, found.reason.startswith("float32 itself")) == ("unknown", True)


def test_without_losses_the_gradient_decides_and_without_both_nothing_does():
    """A training step of one's own may return nothing."""
    silent = NumericsRun(steps=(NumericsStep(loss=None, gradient_norm=1.0),) * 30)
    none = record(run=silent, reference_run=silent, again=silent)
    assert judge_numerics(none).reason == "same as float32 over 30 steps (gradients' cosine 0.9998)"
    assert judge_numerics(replace(none, gradients=None)).kind == "unknown"
    refused = judge_numerics(NumericsRecord(settings=BF16, reference=YOURS, refused="no end after 9 s"))
    assert (refused.kind, refused.reason) == ("unknown", "no end after 9 s")


def test_what_is_checked_has_a_name():
    """The format's; what only adds the same numbers up in another order is not checked."""
    both = BF16.replace(channels_last=True, fused_optimizer=True, cpu_threads=2, num_workers=4)
    assert label(both, YOURS) == "bfloat16"
    assert changes(both, YOURS) == {("precision", "bfloat16")}
    assert label(YOURS, both) == "float32"
    assert (
        changes(YOURS.replace(cpu_threads=2, cudnn_benchmark=True, channels_last=True), YOURS) == frozenset()
    )


def test_rounding_is_held_against_what_another_batch_changes():
    """A cosine of 0.946 is little where batches hardly agree, and much where they do."""
    match = GradientMatch(cosine=0.946, norm_ratio=1.0)
    noisy, agreeing = GradientMatch(cosine=0.1, norm_ratio=1.0), GradientMatch(cosine=0.98, norm_ratio=1.0)
    assert judge_numerics(record(gradients=match)).kind == "worse"
    assert judge_numerics(record(gradients=match, gradients_apart=noisy)).kind == "same"
    assert judge_numerics(record(gradients=match, gradients_apart=agreeing)).kind == "worse"
    lost = GradientMatch(cosine=0.58, norm_ratio=1.0)
    assert judge_numerics(record(gradients=lost, gradients_apart=noisy)).kind == "worse"


def test_without_another_order_of_the_batches_only_a_gross_change_of_the_loss_counts():
    """A network that amplifies differences moves by percents with no harm done."""
    found = judge_numerics(record(late(2.12), again=None))
    assert found.kind == "unknown"
    assert "no time to see" in found.reason
    assert judge_numerics(record(late(2.001), again=None)).kind == "same"
    assert judge_numerics(record(late(4.0), again=None)).kind == "worse"
