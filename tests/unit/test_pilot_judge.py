"""What a pilot comes to: the limits, the words, and what is no ground for a judgement."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autotune.outcome import Pilot, Recipe
from autotune.recipe.pilot import (
    PilotRecord,
    PilotRun,
    judge_pilot,
    levels,
    marks,
    pilot_of,
    pilot_recipe,
    priced_marks,
)
from autotune.settings import Settings

OWN = Settings().replace(batch_size=64)
LARGER = OWN.replace(batch_size=256)


def own(*, priced: float = 0.5, equal: float = 0.4) -> PilotRun:
    """The user's own batch: its loss after as many samples as the other's count for, and after as many."""
    return PilotRun(losses=(equal,) * 4, priced=(priced,) * 4, most=2.3, steps=256)


def record(loss: float, **changed: object) -> PilotRecord:
    """A batch of 256 that ends at `loss` beside one of 64 at 0.5, its samples counted for 0.8."""
    plain = PilotRecord(
        settings=LARGER,
        reference=OWN,
        priced=0.8,
        warm_steps=100,
        samples=64 * 256,
        held_samples=512,
        first_loss=2.3,
        run=PilotRun(losses=(loss,) * 4, most=2.3, steps=64),
        reference_run=own(),
        again=own(),
    )
    return replace(plain, **changed)


def test_what_its_samples_are_counted_for_is_enough():
    """It may be behind the user's own over equal samples: that was taken off its rate before."""
    found = judge_pilot(record(0.505))
    assert (found.kind, found.change) == ("same", pytest.approx(0.01))
    assert found.in_words() == (
        "batches of 256: learns what its samples are counted for: held-out loss 0.505 after 64 steps; "
        "yours 0.5 after 0.80 of the samples, 0.4 after as many"
    )


def test_less_than_that_is_worse():
    """By more than 2 %, where two runs of the user's own agree."""
    found = judge_pilot(record(0.6))
    assert found.kind == "worse"
    assert found.in_words().startswith(
        "batches of 256: 20 % above what its samples are counted for (limit 2 %): held-out loss 0.6"
    )
    assert judge_pilot(record(0.4)).kind == "same"


def test_the_limit_is_twice_what_chance_does():
    """Two runs that are 0.05 apart deviate by 0.035: 13 % above are no more than chance, 20 % are."""
    chance = {"again": own(priced=0.55, equal=0.45)}
    found = judge_pilot(record(0.59, **chance))
    assert (found.kind, found.limit) == ("same", pytest.approx(2 * 0.05 / 2**0.5 / 0.525))
    assert judge_pilot(record(0.63, **chance)).kind == "worse"


@pytest.mark.parametrize(("loss", "said"), [(0.7, "21 % above"), (0.58, "level"), (0.4, "31 % below")])
def test_what_chance_moves_by_much_is_unknown(loss, said):
    """Within a limit of 40 % nothing is claimed: neither of a loss that is off nor of one that agrees."""
    chance = {"again": own(priced=0.66, equal=0.56)}
    found = judge_pilot(record(loss, **chance))
    assert found.kind == "unknown"
    assert found.reason.startswith(f"{said}, but chance alone moves the loss by 20 %")
    assert judge_pilot(record(0.9, **chance)).kind == "worse"


def test_without_a_second_run_two_percent_are_the_limit():
    """And the words say that nothing is known of chance."""
    found = judge_pilot(record(0.52, again=None))
    assert (found.kind, found.limit) == ("worse", 0.02)
    assert "no time was left to see what chance does" in found.reason


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (PilotRun(losses=(None,) * 4, finite=False, most=3.0, steps=7), "NaN or infinite within 7 steps"),
        (PilotRun(losses=(0.4,) * 4, most=7.0, steps=64), "the loss rose to 7 within 64 steps, from 2.3"),
    ],
)
def test_a_loss_that_diverges_is_worse_whatever_its_end(run, said):
    """Not finite, or three times the loss of the initial weights; in the user's own it is no ground."""
    found = judge_pilot(record(0.4, run=run))
    assert found.kind == "worse"
    assert said in found.reason
    broken = replace(own(), most=run.most, finite=run.finite)
    assert judge_pilot(record(0.9, again=broken)).reason == "your own batch diverges by itself"
    assert judge_pilot(record(0.9, again=broken)).kind == "unknown"


def test_a_start_on_an_easy_batch_is_no_divergence():
    """A trained model's first batch may have a fraction of the loss that the others have."""
    trained = replace(own(priced=0.02, equal=0.02), first=0.02, most=0.03)
    easy = {"first_loss": 0.005, "warm_steps": 0, "reference_run": trained, "again": trained}
    found = judge_pilot(record(0.02, run=replace(trained, priced=(), steps=64), **easy))
    assert (found.kind, found.change) == ("same", pytest.approx(0.0))
    found = judge_pilot(record(0.02, run=replace(trained, priced=(), most=0.07, steps=64), **easy))
    assert (found.kind, found.reason) == ("worse", "the loss rose to 0.07 within 64 steps, from 0.02")


def test_a_batch_that_diverged_in_the_warm_steps_is_no_ground():
    """The runs begin at a loss that is many times the first one, and stay there."""
    blown = replace(own(priced=50.0, equal=50.0), first=50.0, most=140.0)
    found = judge_pilot(record(50.0, run=replace(blown, priced=()), reference_run=blown, again=blown))
    assert (found.kind, found.reason) == ("unknown", "your own batch diverges by itself")


def test_training_losses_are_averaged_over_sixths_of_the_run():
    """By the samples before each step; what lies beyond the end belongs to the last."""
    trace = [(16 * n, float(n)) for n in range(13)]
    assert levels(trace, 12 * 16) == (0.5, 2.5, 4.5, 6.5, 8.5, 11.0)
    assert levels(trace[:3], 12 * 16) == (0.5, 2.0)
    assert levels([], 100) == ()


def test_a_loss_next_to_nothing_is_held_against_the_first_one():
    """0.002 against 0.001 after a start at 2.3 is no difference in training."""
    tiny = own(priced=0.001, equal=0.0009)
    assert judge_pilot(record(0.002, reference_run=tiny, again=tiny)).kind == "same"


def test_training_losses_are_called_so():
    """Where nothing could be held out."""
    assert "training loss 0.5 after 64 steps" in judge_pilot(record(0.5, held_samples=0)).reason


def test_what_was_not_compared_is_unknown():
    """A runner's refusal in its own words; a step that returns no loss."""
    refused = judge_pilot(PilotRecord(settings=LARGER, reference=OWN, refused="no end after 9 s"))
    assert (refused.kind, refused.reason, refused.batch_size) == ("unknown", "no end after 9 s", 256)
    silent = PilotRun(losses=(None,) * 4, priced=(None,) * 4)
    found = judge_pilot(record(0.5, run=silent, reference_run=silent, again=silent))
    assert (found.kind, found.reason) == ("unknown", "the step returns no loss")


def test_marks_are_whole_batches_of_either_size():
    """At two thirds and later, the last at the end; the user's own at as many samples as those count for."""
    reached = marks(30, 256)
    assert reached == (20 * 256, 23 * 256, 27 * 256, 30 * 256)
    assert priced_marks(reached, 0.5, 64) == (40 * 64, 46 * 64, 54 * 64, 60 * 64)
    assert priced_marks((64,), 0.1, 64) == (64,)


def test_the_warmup_takes_the_same_part_of_the_pilot():
    """A tenth of the run is a tenth of the pilot; of a run of unknown length a tenth is taken; never more."""
    recipe = Recipe(
        batch_size=256,
        reference_batch_size=64,
        learning_rates=(0.4,),
        reference_learning_rates=(0.1,),
        lr_rule="linear",
        warmup_samples=60_000,
    )
    assert pilot_recipe(recipe, 10_000, 600_000).warmup_samples == 1000
    assert pilot_recipe(recipe, 10_000, 1_200_000).warmup_samples == 500
    assert pilot_recipe(recipe, 10_000, None).warmup_samples == 1000
    assert pilot_recipe(recipe, 10_000_000, None).warmup_samples == 60_000
    assert replace(pilot_recipe(recipe, 10_000, None), warmup_samples=60_000) == recipe


def test_a_size_is_known_by_its_own_pilot_or_by_one_that_says_more():
    """What a smaller size cannot, a larger one cannot; what a larger one can, a smaller one can."""
    failed = Pilot(kind="worse", batch_size=256, reference=64, reason="20 % above")
    passed = Pilot(kind="same", batch_size=128, reference=64, reason="learns")
    silent = Pilot(kind="unknown", batch_size=512, reference=64, reason="no end")
    assert pilot_of((failed,), 512) == pilot_of((failed,), 256) == failed
    assert pilot_of((failed,), 128) is None
    assert pilot_of((passed,), 96) == pilot_of((failed, passed), 128) == passed
    assert pilot_of((passed,), 256) is None
    assert pilot_of((silent,), 256) is None
    assert pilot_of((silent,), 512) == silent
