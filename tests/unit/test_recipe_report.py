"""The recipe as the user reads it: a line for each number that moves, its rule beside it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import report_samples as samples
from profile_samples import sample_profile
from strategies import plain_workload

from autotune.outcome import LargeBatch, NoiseScale, Outcome, Recipe
from autotune.profile.schema import profile_of
from autotune.profile.yaml_io import dumps, loads
from autotune.recipe.scaling import scale_recipe
from autotune.report.jsonview import outcome_json
from autotune.report.recipes import recipe_notes, recipe_rows
from autotune.report.text import render
from autotune.report.view import view_of, view_of_profile
from autotune.space.cautions import cautions

ADAMW = {
    "optimizer_class": "AdamW",
    "optimizer_family": "adam",
    "learning_rates": (1e-3, 1e-4),
    "weight_decays": (0.1, 0.0),
    "decoupled_weight_decay": True,
    "beta2s": (0.999, 0.999),
    "batch_norm_momenta": (0.1,),
}
NOISE = NoiseScale(
    value=96.0,
    low=80.0,
    high=110.0,
    lower_bound=96.0,
    micro_samples=32,
    micro_batches=4,
    steps=32,
    skipped=0,
    at="after 100 warm steps",
)


def recipe(batch_size: int = 128, **changes: object) -> Recipe:
    """Of AdamW with two groups, from batches of 64."""
    options = {"epochs": 10, "decay": "cosine", **changes}
    return scale_recipe(plain_workload(**ADAMW), batch_size, 64, **options)  # type: ignore[arg-type]


def larger(**changes: object) -> Outcome:
    """A win with twice the batch, and this recipe."""
    return replace(samples.failing(), **{"recipe": recipe(), **changes})


def lines(outcome: Outcome) -> dict[str, tuple[str, str, str]]:
    """Yours, best and note of each row, by its name; the first of several."""
    found: dict[str, tuple[str, str, str]] = {}
    for row in view_of(outcome).settings:
        found.setdefault(row.name, (row.yours, row.best, row.note))
    return found


@pytest.mark.parametrize(
    ("name", "yours", "best", "source"),
    [
        ("learning rate", "0.001", "0.00141", "Malladi"),
        ("decay", "-", "cosine", "over 500,480 samples in whole batches; cosine to 0 (Loshchilov"),
        ("weight decay", "0.1", "0.141", "Wang and Aitchison"),
        ("beta2", "0.999", "0.998", "Marek"),
        ("BatchNorm momentum", "0.1", "0.19", "Busbridge"),
        ("EMA decay", "d", "d ** 2", "Busbridge"),
    ],
)
def test_each_part_has_a_line_with_its_rule_and_source(name: str, yours: str, best: str, source: str) -> None:
    """What goes with a batch twice as large, for an optimizer and a model that have all of it."""
    row = lines(larger())[name]
    assert row[:2] == (yours, best)
    assert source in row[2]


def test_a_warmup_has_a_line_where_the_rate_more_than_doubles() -> None:
    """Five times the batch, by the square root 2.24 times the rate."""
    row = lines(larger(recipe=recipe(320)))["warmup"]
    assert row[:2] == ("-", "50,000")
    assert "Ma and Yarats" in row[2]
    assert "warmup" not in lines(larger())


def test_gathered_gradients_have_a_line_and_nothing_else_moves() -> None:
    """A quarter of the batch, four of them in a step: beside that only what a forward pass sees changes."""
    found = scale_recipe(plain_workload(**ADAMW), 16, 64, keep_effective=True)
    rows = {row.name: (row.yours, row.best, row.note) for row in recipe_rows(found)}
    assert set(rows) == {"gradient accumulation", "BatchNorm momentum"}
    assert rows["gradient accumulation"] == ("1", "4", "batches of 16 in a step of 64 samples, as yours")


def test_a_batch_in_steps_that_keep_their_samples_does_not_change_learning() -> None:
    """Its line says so, in the run's report and in the file's."""
    plain = scale_recipe(plain_workload(**ADAMW), 128, 64)
    gathered = scale_recipe(plain_workload(**ADAMW, step_samples=128), 128, 64, keep_effective=True)
    assert lines(larger(recipe=plain))["batch_size"][2].endswith("changes learning")
    assert lines(larger(recipe=gathered))["batch_size"][2].endswith("steps keep their samples")
    profile = profile_of(larger(recipe=gathered), created="2026-11-23T10:00:00+00:00", version="0.1.0")
    assert view_of_profile(profile).settings == view_of(larger(recipe=gathered)).settings


def test_what_stays_has_no_line() -> None:
    """Neither a group without weight decay, nor L2 under Adam, nor anything under an unknown optimizer."""
    names = [row.name for row in recipe_rows(recipe())]
    assert (names.count("learning rate"), names.count("weight decay")) == (2, 1)
    coupled = plain_workload(**{**ADAMW, "decoupled_weight_decay": False})
    assert "weight decay" not in {row.name for row in recipe_rows(scale_recipe(coupled, 128, 64))}
    lion = plain_workload(optimizer_class="Lion", optimizer_family="other", weight_decays=(0.1,))
    unscaled = scale_recipe(lion, 128, 64)
    assert {row.name for row in recipe_rows(unscaled)} == {"EMA decay"}
    assert any("not scaled to the batch" in note for note in recipe_notes(unscaled, has_rows=True))
    assert recipe_rows(scale_recipe(lion, 64, 64)) == recipe_rows(None) == ()


def test_clipping_and_schedulers_are_told_in_notes() -> None:
    """What is left as it is, and what the user has to hand over; once the recipe decays itself, not that."""
    plain = scale_recipe(plain_workload(), 128, 64, noise=NOISE)
    notes = " ".join(plain.notes)
    assert "it would clip as often as before" in notes
    assert "kit(scheduler=...)" in notes
    assert not any("kit(scheduler=...)" in note for note in recipe().notes)
    shown = view_of(replace(samples.failing(), recipe=plain)).notes
    assert set(plain.notes) <= set(shown)


def test_a_decay_without_another_batch_is_a_sentence() -> None:
    """Where *yours* stays the second column shows what was tried, which the recipe is not of."""
    outcome = samples.kept(recipe=recipe(64))
    assert "decay" not in lines(outcome)
    assert any(note.startswith("decay cosine: over 500,480 samples") for note in view_of(outcome).notes)


def test_an_optimizer_for_large_batches_is_told_as_an_offer() -> None:
    """With its learning rate, its source and how to use it; no line, since nothing uses it yet."""
    offer = LargeBatch(optimizer="LARS", learning_rate=17.0, weight_decay=5e-5, rule="MLPerf")
    offered = replace(recipe(), large_batch=offer)
    notes = recipe_notes(offered, has_rows=True)
    assert any("kit(..., large_batch=True) trains with LARS" in note and "MLPerf" in note for note in notes)
    assert recipe_rows(offered) == recipe_rows(recipe())
    assert not any("clips gradients" in note for note in notes)
    lamb = replace(recipe(), large_batch=replace(offer, optimizer="LAMB"))
    assert any("clips gradients to a norm of 1 itself" in note for note in recipe_notes(lamb, has_rows=True))


def test_file_screen_and_json_hold_the_same_recipe() -> None:
    """A saved profile shows the lines that the run showed; JSON has every number with its rule."""
    outcome = larger()
    profile = profile_of(outcome, created="2026-11-23T10:00:00+00:00", version="0.1.0")
    shown, saved = view_of(outcome), view_of_profile(loads(dumps(profile)))
    assert saved.settings == shown.settings
    assert set(saved.notes) == set(shown.notes)
    line = next(line for line in dumps(profile).splitlines() if line.lstrip().startswith("batch_size:"))
    assert line.endswith("train with kit()")
    document = json.loads(json.dumps(outcome_json(outcome)))["recipe"]
    assert document["decay"]["shape"] == "cosine"
    assert document["beta2_rule"].startswith("beta2 ** k")
    assert all(len(line) <= 80 for line in render(shown).splitlines())


def test_fused_sgd_in_float16_is_warned_of_where_the_kit_may_not_be() -> None:
    """In the report and beside the setting in the file; the kit itself skips such a step."""
    settings = samples.WINNER.replace(precision="float16", fused_optimizer=True)
    assert "train with kit()" in cautions(settings, "SGD")[0]
    assert cautions(settings, "AdamW") == cautions(settings, None) == ()
    grown = scale_recipe(plain_workload(), 128, 32)
    assert "batches of 128 belong to the numbers of their recipe" in cautions(settings, "AdamW", grown)[0]
    assert cautions(settings, "AdamW", scale_recipe(plain_workload(), 32, 32)) == ()
    assert cautions(settings.replace(precision="bfloat16"), "SGD") == ()
    assert cautions(settings.replace(fused_optimizer=False), "SGD") == ()
    outcome = samples.won()
    risky = replace(outcome, verdict=replace(outcome.verdict, winner=settings))
    assert set(cautions(settings, "SGD")) <= set(view_of(risky).notes)
    profile = replace(sample_profile(), settings=settings)
    assert set(cautions(settings, "SGD")) <= set(view_of_profile(profile).notes)
    line = next(line for line in dumps(profile).splitlines() if "fused_optimizer: true" in line)
    assert line.endswith("SGD in float16: train with kit()")
    assert "train with kit()" not in dumps(sample_profile())
