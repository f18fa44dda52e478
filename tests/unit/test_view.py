"""What a report says about an outcome."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import report_samples as samples

from autotune.outcome import Interval, Verdict
from autotune.profile.schema import profile_of
from autotune.report.figures import break_even_s, failures, rival, sides
from autotune.report.jsonview import outcome_json
from autotune.report.view import View, device_text, view_of, view_of_profile
from autotune.report.words import change_text, left_text, value_text
from autotune.settings import Settings


def row(view: View, name: str) -> tuple[str, str, str, str]:
    """The cells of the row called `name`."""
    found = next(r for r in (*view.settings, *view.summary) if r.name == name)
    return found.yours, found.best, found.worth, found.note


def test_rates_come_from_the_finals_and_not_from_the_search() -> None:
    """The search said 415 and 803; the table shows the finals' 412 and 791, and their ratio."""
    view = view_of(samples.won())
    assert row(view, "samples/s") == (
        "412",
        "791",
        "1.92x",
        "95 %: 1.88 to 1.96, confirmed in 5 fresh pairs",
    )


def test_a_pair_with_one_failed_side_does_not_count() -> None:
    """A pair is a comparison only where both sides were measured."""
    outcome = samples.won()
    lost = samples.trial(99, samples.YOURS, samples.measured(1), stage="final", pair=9)
    yours, best = sides(replace(outcome, trials=(*outcome.trials, lost)), samples.WINNER)
    assert yours is not None
    assert best is not None
    assert (yours.trials, best.trials) == (5, 5)
    assert math.isclose(yours.samples_per_s, 412)


def test_without_finals_the_search_is_shown_as_not_confirmed() -> None:
    """An interrupted run shows its best so far, and says that it is no more than that."""
    view = view_of(samples.interrupted())
    assert view.best_label == "best so far"
    assert not view.good
    assert row(view, "samples/s")[3] == "not confirmed"
    assert view.headline.startswith("Incomplete: the best so far, not confirmed")


def test_interrupted_before_anything_was_better() -> None:
    """Where *yours* is the best so far nothing is shown beside it."""
    outcome = replace(samples.interrupted(), verdict=Verdict(kind="incomplete", winner=samples.YOURS))
    view = view_of(outcome)
    assert view.best_label == ""
    assert "cut short before anything beat your settings" in view.headline
    assert row(view, "samples/s") == ("415", "", "", "")


def test_only_changed_settings_and_the_asked_for_ones_have_rows() -> None:
    """Rows of settings that stay are noise, but for the three that everyone asks about."""
    names = [r.name for r in view_of(samples.won()).settings]
    assert "channels_last" not in names
    assert {"batch_size", "num_workers", "precision", "pin_memory"} <= set(names)


def test_worth_is_shown_with_its_interval_and_says_when_it_is_noise() -> None:
    """A setting that may bring nothing is not sold as a gain."""
    view = view_of(samples.won())
    assert row(view, "num_workers") == ("0", "8", "+49 %", "+44 to +54 %")
    assert row(view, "pin_memory")[3] == "-1 to +9 %, within noise"
    assert row(view, "non_blocking")[2:] == ("", "not measured alone")
    assert row(view, "precision")[3].endswith("changes rounding")


def test_an_interval_of_nearly_no_pairs_is_said_in_words() -> None:
    """Two pairs that differ reach from nothing to billions: figures that nobody can read."""
    wide = Interval(value=4.9, low=1e-12, high=5e13)
    outcome = samples.failing()
    worth = tuple(replace(each, ratio=wide) for each in outcome.worth)
    view = view_of(replace(outcome, worth=worth, verdict=replace(outcome.verdict, ratio=wide)))
    shown = [r.note for r in view.settings if "too wide to tell" in r.note]
    assert shown
    assert all("within noise" in note for note in shown)
    assert row(view, "samples/s")[3].startswith("95 %: too wide to tell")


def test_recipe_rows_show_each_param_group() -> None:
    """A new batch size brings its learning rates along; one that doubles needs no warmup."""
    view = view_of(samples.failing())
    rates = [(r.yours, r.best) for r in view.settings if r.name == "learning rate"]
    assert rates == [("0.1", "0.2"), ("0.01", "0.02")]
    assert not [r for r in view.settings if r.name == "warmup"]
    assert row(view, "learning rate")[3] == "linear (Goyal et al. 2017, arXiv:1706.02677)"
    assert row(view, "10 epochs")[:2] == ("20m14s", "10m32s")


def test_the_rival_is_the_one_that_the_verdict_speaks_of() -> None:
    """With two candidates in the finals, the ratio shown belongs to the settings shown."""
    first, second = samples.YOURS.replace(cudnn_benchmark=True), samples.YOURS.replace(channels_last=True)
    trials = samples.finals(0, samples.YOURS, first, (600, 630)) + samples.finals(
        20, samples.YOURS, second, (600, 606)
    )
    outcome = samples.kept(trials=trials)
    told = replace(outcome.verdict, ratio=Interval(value=1.01, low=0.98, high=1.04))
    assert rival(replace(outcome, verdict=told)) == second
    assert rival(replace(outcome, verdict=replace(told, ratio=None))) == first


@pytest.mark.parametrize(
    "why",
    [
        "each of the others failed in the finals",
        "nothing was faster in the search",
        "there was nothing else to try",
    ],
)
def test_kept_without_a_comparison_does_not_claim_to_be_near_the_best(why: str) -> None:
    """Only finals show that *yours* is as good as the best."""
    verdict = Verdict(kind="kept", winner=samples.YOURS, sentence=f"yours stays: {why}")
    view = view_of(samples.kept(verdict=verdict, trials=samples.SEARCH))
    assert view.headline == f"Your settings stay (4 trials). {why[0].upper()}{why[1:]}."


@pytest.mark.parametrize(
    ("low", "high", "why", "opening"),
    [
        (1.015, 1.024, "gain is too small for what it asks", "Your settings stay (13 trials)."),
        (1.004, 1.026, "gain is too small to be sure of", "Your settings stay (13 trials)."),
        (0.95, 0.98, "was slower", "Your settings stay (13 trials)."),
        (0.98, 1.02, "was within noise", "Your settings are already within noise of the best (13 trials)."),
    ],
)
def test_what_differs_for_sure_is_not_said_to_be_noise(
    low: float, high: float, why: str, opening: str
) -> None:
    """The opening agrees with the verdict's own sentence, on the screen and from the file."""
    ratio = Interval(value=(low + high) / 2, low=low, high=high)
    verdict = replace(samples.kept().verdict, ratio=ratio, sentence=f"yours stays: the best candidate {why}")
    outcome = samples.kept(verdict=verdict)
    profile = profile_of(outcome, created="2026-11-23T10:00:00+00:00", version="0.1.0")
    for view in (view_of(outcome), view_of_profile(profile)):
        assert view.headline == f"{opening} The best candidate {why}."


def test_failures_are_counted_by_kind_the_most_frequent_first() -> None:
    """Two trials out of memory and one crash are two lines."""
    groups = failures(samples.failing().trials)
    assert [(g.kind, g.count) for g in groups] == [("oom_device", 2), ("worker_crash", 1)]
    assert "3 failed" in view_of(samples.failing()).stopped


def test_without_a_loader_nothing_is_said_about_waiting() -> None:
    """A loop without a DataLoader has no waiting share and no loader rows."""
    view = view_of(samples.without_loader())
    names = {r.name for r in (*view.settings, *view.summary)}
    assert names.isdisjoint({"waiting for data", "num_workers", "one epoch"})
    assert any("no DataLoader" in text for text in view.remarks)


def test_an_interval_that_ends_near_one_gets_a_third_digit() -> None:
    """`1.00 to 1.10` would hide that it lies above 1."""
    assert "1.003 to 1.097" in row(view_of(samples.without_loader()), "samples/s")[3]


def test_no_trial_at_all_still_gives_a_view() -> None:
    """Ctrl-C during the very first trial leaves nothing to tabulate."""
    view = view_of(
        replace(samples.interrupted(), trials=(), verdict=Verdict(kind="incomplete", winner=samples.YOURS))
    )
    assert view.summary == ()
    assert view.stopped.startswith("0 trials")


def test_a_saved_profile_shows_the_figures_of_its_run() -> None:
    """Screen and file come from the same trials, so they say the same."""
    outcome = samples.won()
    profile = profile_of(outcome, created="2026-11-23T10:00:00+00:00", version="0.1.0")
    assert view_of_profile(profile).summary == view_of(outcome).summary
    assert view_of_profile(profile).settings == view_of(outcome).settings
    assert view_of_profile(profile).headline == view_of(outcome).headline


def test_a_saved_device_that_names_no_number_is_shown_all_the_same() -> None:
    """A file may be edited; only a search for the GPU's name reads the number."""
    profile = profile_of(samples.won(), created="2026-11-23T10:00:00+00:00", version="0.1.0")
    edited = replace(profile, workload=replace(profile.workload, device="cuda:x"))
    assert profile.machine.gpus
    assert view_of_profile(edited).head[2] == view_of_profile(profile).head[2]


def test_a_profile_of_an_interrupted_run_shows_yours_alone() -> None:
    """A search figure is never saved, so there is none to show for the best so far."""
    profile = profile_of(samples.interrupted(), created="2026-11-23T10:00:00+00:00", version="0.1.0")
    assert row(view_of_profile(profile), "samples/s")[:3] == ("415", "", "")


@pytest.mark.parametrize(
    ("device", "shown"),
    [
        ("cuda", "NVIDIA RTX 4090 24.0 GiB"),
        ("cuda:3", "cuda:3"),
        ("cpu", "AMD EPYC 7763"),
        ("mps", "NVIDIA RTX 4090 24.0 GiB"),
    ],
)
def test_a_device_is_shown_by_its_name(device: str, shown: str) -> None:
    """The accelerator by index, the processor by name, else the device as it is written."""
    assert device_text(samples.MACHINE, device) == shown


def test_change_text_names_what_was_changed_and_nothing_that_follows_from_it() -> None:
    """Workers bring their prefetching along: saying so on each line would drown the rest."""
    assert change_text(samples.WINNER, samples.YOURS) == (
        "num_workers 0->8, pin_memory on, non_blocking on, precision bfloat16"
    )
    assert change_text(samples.YOURS, samples.YOURS) == "yours"
    deeper = samples.WINNER.replace(prefetch_factor=4)
    assert change_text(deeper, samples.WINNER) == "prefetch_factor 2->4"
    assert "prefetch_factor 4" in change_text(deeper, samples.YOURS)
    assert change_text(Settings().replace(cpu_threads=1), Settings()) == "cpu_threads auto->1"


def test_words_for_values_and_clocks() -> None:
    """What people read, not what Python prints."""
    assert [value_text("pin_memory", v) for v in (True, False)] == ["on", "off"]
    assert [left_text(s) for s in (-3, 192, 3723)] == ["00:00", "03:12", "1:02:03"]


def test_json_holds_the_answer_and_every_block_behind_it() -> None:
    """Another program can compute each figure again."""
    data = json.loads(
        json.dumps(outcome_json(samples.won(), version="0.1.0", saved="a.yaml"), allow_nan=False)
    )
    assert data["verdict"]["kind"] == "faster"
    assert data["changed"]["num_workers"] == 8
    assert round(data["best"]["measured"]["samples_per_s"]) == 791
    assert round(data["yours"]["measured"]["samples_per_s"]) == 412
    assert len(data["trials"]) == 14
    assert data["trials"][0]["measurement"]["blocks"][0]["samples"] == 415


def test_json_has_null_for_a_number_that_json_lacks() -> None:
    """A loss that overflowed must not make the file unreadable."""
    trial = samples.trial(0, samples.YOURS, samples.measured(5, last_loss=math.inf), stage="yours")
    data = outcome_json(replace(samples.interrupted(), trials=(trial,)))
    assert data["trials"][0]["measurement"]["last_loss"] is None


def test_json_of_a_kept_run_says_what_was_tried() -> None:
    """`best` is *yours* then, and the rival stands apart."""
    data = outcome_json(samples.kept())
    assert data["changed"] == {}
    assert data["tried"]["settings"]["loader"]["num_workers"] == 2
    assert data["best"]["measured"] == data["yours"]["measured"]


def test_tuning_pays_back_when_it_has_saved_what_it_took() -> None:
    """521 s of tuning for 1.92x: 566 s of training do what takes 1,087 s with *yours*."""
    assert break_even_s(samples.won()) == pytest.approx(521 / (791 / 412 - 1))
    assert outcome_json(samples.won())["break_even_s"] == break_even_s(samples.won())
    assert break_even_s(samples.kept()) is None


def test_the_report_says_what_its_rates_count_in() -> None:
    """Without `epochs` one restart per epoch; with it every start; without a length the steady rate."""
    assert (
        "samples/s is the steady rate with one restart of the loader per epoch."
        in view_of(samples.won()).remarks
    )
    three = replace(samples.won(), epochs=3)
    assert "samples/s is over 3 epochs, the start and every restart included." in view_of(three).remarks
    stream = replace(three, workload=replace(three.workload, dataset_samples=None))
    assert any("the length of an epoch is not known" in text for text in view_of(stream).remarks)
