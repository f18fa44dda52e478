"""The table of batch sizes: what it holds, what it marks, and where it is shown."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from report_samples import GIB, WORKLOAD, won

from autotune.errors import UsageError
from autotune.outcome import BatchChoice, Interval, NoiseScale, Outcome
from autotune.profile.schema import profile_of
from autotune.profile.yaml_io import dumps, loads
from autotune.recipe.goodput import BatchRate, choose_batch
from autotune.report.batches import HEAD, batch_table
from autotune.report.figures import rival
from autotune.report.jsonview import outcome_json
from autotune.report.text import render
from autotune.report.view import view_of, view_of_profile

NOISE = NoiseScale(
    value=577.0,
    low=417.0,
    high=679.0,
    lower_bound=448.0,
    micro_samples=64,
    micro_batches=4,
    steps=32,
    skipped=0,
    at="after 100 warm steps",
)


def choice(noise: NoiseScale | None = NOISE, **options) -> BatchChoice:
    """Batches of 64 to 512 on a device that gains with each."""
    rates = [
        BatchRate(
            batch_size=size,
            samples_per_s=Interval(value=rate, low=rate * 0.999, high=rate * 1.001),
            peak_bytes=size * GIB // 64,
        )
        for size, rate in ((64, 400.0), (128, 700.0), (256, 900.0), (512, 1000.0))
    ]
    return choose_batch(rates, noise, WORKLOAD, **options)


def test_each_batch_has_its_figures_and_marks() -> None:
    """Rate, efficiency, their product, memory, and epochs that teach as much."""
    table = batch_table(choice(epochs=10), NOISE, 10)
    assert len({len(line.cells) for line in table.lines} | {len(HEAD)}) == 1
    assert table.lines[0].cells == ("64", "400", "1.00", "400", "1.00 GiB", "10")
    assert table.lines[1].cells[2:4] == ("0.89", "622")
    assert table.lines[1].cells[5] == "11.2"
    marks = [line.mark for line in table.lines]
    assert marks == ["yours", "recommended", "", "max throughput"]


def test_the_remarks_say_where_the_noise_was_seen_and_which_caps_bit() -> None:
    """In words: the noise scale, what the columns mean, the objective, and why it is not larger."""
    remarks = " ".join(batch_table(choice(epochs=10), NOISE, 10).remarks)
    assert "577 samples (417 to 679), after 100 warm steps" in remarks
    assert "as much as 10 epochs of yours" in remarks
    assert "Not larger, because in batches of 256 a sample likely teaches" in remarks


def test_without_a_noise_scale_the_table_says_unverified() -> None:
    """Efficiency and goodput have no figure then, and nothing is claimed of them."""
    table = batch_table(choice(None), None)
    assert table.lines[1].cells[2:4] == ("-", "-")
    assert any("unverified" in remark for remark in table.remarks)


def test_a_look_without_another_batch_still_tells_the_noise_scale() -> None:
    """There is no table, and without a look nothing at all."""
    assert batch_table(None, NOISE).lines == ()
    assert len(batch_table(None, NOISE).remarks) == 1
    assert batch_table(None, None).remarks == ()


def larger(**changes) -> Outcome:
    """A win with another batch size, whose ratio counts samples by what they teach."""
    outcome = won()
    winner = outcome.best.replace(batch_size=128)
    trials = tuple(
        replace(t, spec=replace(t.spec, settings=winner)) if t.settings == outcome.best else t
        for t in outcome.trials
    )
    weight = choice().weight(128)
    ratio = Interval(value=weight * 791 / 412, low=1.6, high=1.8)
    verdict = replace(outcome.verdict, winner=winner, ratio=ratio)
    return replace(outcome, verdict=verdict, trials=trials, batch=choice(), noise=NOISE, **changes)


def test_a_saved_profile_shows_the_table_and_what_its_ratio_counts() -> None:
    """Screen and file say the same: the batch sizes, and that the ratio is no quotient of the two rates."""
    profile = profile_of(larger(), created="2026-11-23T10:00:00+00:00", version="0.1.0")
    shown, saved = view_of(larger()), view_of_profile(loads(dumps(profile)))
    assert saved.batches == shown.batches
    said = (
        "In samples/s alone it is 1.92x; times 0.89, what a sample teaches beside one of yours, it is 1.71x."
    )
    assert said in saved.remarks
    assert said in shown.remarks
    assert "# samples/s of best over yours, times 0.889: what a sample teaches" in dumps(profile)
    assert not any("alone it is" in remark for remark in view_of(won()).remarks)


def test_the_report_shows_the_table_below_the_settings() -> None:
    """In the text, with its marks; every line within its width."""
    text = render(view_of(larger()))
    assert "peak memory  epochs" in text
    assert "recommended" in text
    assert "Gradient noise scale: 577 samples" in text
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "teaches" not in render(view_of(won()))


def test_marks_that_do_not_fit_go_on_in_the_next_line() -> None:
    """A batch can be yours, the fastest and recommended at once, and 80 columns stay 80."""
    found = replace(choice(), recommended=64, max_throughput=64)
    text = render(view_of(replace(won(), batch=found, noise=NOISE)))
    assert "yours, max" in text
    assert "recommended" in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_json_holds_the_table_and_the_noise_scale() -> None:
    """Whole, for others to compute with; null where there is none."""
    document = json.loads(json.dumps(outcome_json(larger())))
    assert [row["batch_size"] for row in document["batch"]["rows"]] == [64, 128, 256, 512]
    assert document["noise_scale"]["lower_bound"] == 448.0
    assert outcome_json(won())["batch"] is None


def test_the_rival_is_found_by_what_its_samples_teach() -> None:
    """A ratio that counts them so belongs to the settings whose rate does too."""
    outcome = larger()
    assert outcome.weight(outcome.best) == pytest.approx(512 / 576)
    assert rival(outcome) == outcome.best
    assert outcome.weight(outcome.yours) == 1.0
    assert replace(outcome, batch=choice(objective="throughput")).weight(outcome.best) == 1.0


@pytest.mark.parametrize("options", [{"objective": "speed"}, {"max_batch_size": 0}])
def test_wrong_arguments_are_told_before_anything_runs(options: dict) -> None:
    """An objective that does not exist, and a batch of nothing."""
    from autotune.api import tune_with
    from autotune.testing import FakeRunner

    with pytest.raises(UsageError):
        tune_with(FakeRunner(lambda settings, mode: 1.0), None, **options)
