from __future__ import annotations

import math
from dataclasses import replace

import pytest
from profile_samples import (
    BATCHES,
    BEST,
    GIB,
    MACHINE,
    NOISE,
    OUTCOME,
    YOURS,
    measurement,
    sample_profile,
    trial,
)

from autotune.outcome import Verdict
from autotune.profile.schema import SCHEMA, profile_of


def test_rates_come_from_the_finals_alone():
    """A search trial that came out high leaves no trace in what is said to be measured."""
    measured = sample_profile().measured
    expected = math.prod([800, 791, 780]) ** (1 / 3)
    assert measured.best.samples_per_s == pytest.approx(expected, rel=1e-5)
    assert measured.best.runs == 3
    assert measured.best.peak_device_bytes == 8 * GIB
    assert measured.best.wait_share == pytest.approx(0.02)
    assert measured.yours.samples_per_s == pytest.approx(math.prod([400, 412, 420]) ** (1 / 3), rel=1e-5)


def test_an_unconfirmed_winner_has_no_rate():
    """Cut short before the finals, the best trial so far gives settings and no figures."""
    searched = tuple(t for t in OUTCOME.trials if t.spec.stage != "final")
    outcome = replace(OUTCOME, trials=searched, verdict=Verdict(kind="incomplete", winner=BEST))
    measured = profile_of(outcome, created="", version="0.1.0").measured
    assert (measured.best.samples_per_s, measured.best.runs, measured.ratio) == (None, 0, None)
    assert (measured.yours.samples_per_s, measured.yours.runs) == (500.0, 1)


def test_kept_settings_without_finals_show_the_baseline():
    """Where yours stays and no finals were needed, its own baseline runs are its figures."""
    outcome = replace(
        OUTCOME,
        trials=(trial(0, YOURS, "yours", measurement(500)), trial(1, YOURS, "ceiling", measurement(900))),
        verdict=Verdict(kind="kept", winner=YOURS),
    )
    measured = profile_of(outcome, created="", version="0.1.0").measured
    assert measured.best == measured.yours
    assert measured.best.samples_per_s == 500.0


def test_start_up_counts_as_the_verdict_counts_it():
    """The rate is the effective one: a restart in every epoch makes it lower than the steady rate."""
    slow_start = replace(measurement(500), restart_s=200.0)
    outcome = replace(
        OUTCOME, trials=(trial(0, YOURS, "final", slow_start),), verdict=Verdict(kind="kept", winner=YOURS)
    )
    measured = profile_of(outcome, created="", version="0.1.0").measured
    assert measured.yours.samples_per_s == pytest.approx(100_000 / (200 + 200))


def test_failures_are_counted_by_kind():
    """What failed is in the profile, by kind, and counted among the trials."""
    measured = sample_profile().measured
    assert measured.failures == {"oom_device": 1}
    assert measured.trials == len(OUTCOME.trials)


def test_the_summary_says_what_the_process_may_use():
    """Memory is the cgroup's limit where there is one, and every GPU is listed."""
    profile = sample_profile()
    assert profile.schema == SCHEMA
    assert profile.machine.memory_bytes == 64 * GIB
    assert [gpu.name for gpu in profile.machine.gpus] == [gpu.name for gpu in MACHINE.gpus]
    assert profile.settings == BEST


def test_figures_are_rounded_below_their_noise():
    """Six digits are kept of a measured figure."""
    measured = sample_profile().measured
    assert measured.ratio is not None
    assert measured.ratio.value == 1.92346
    assert measured.elapsed_s == 281.457


def test_the_batch_table_and_the_noise_scale_are_kept():
    """Both as the run found them, but for digits far below their noise."""
    measured = sample_profile().measured
    assert measured.batch is not None
    assert measured.noise is not None
    assert [row.batch_size for row in measured.batch.rows] == [64, 128]
    assert measured.batch.rows[1].efficiency == 0.666667
    assert measured.batch.rows[1].samples_per_s.high == 911.111
    assert replace(measured.batch, rows=BATCHES.rows) == BATCHES
    assert measured.noise == replace(NOISE, value=81.2346)


def test_a_sample_counts_as_it_did_in_the_run():
    """By the noise scale's lower bound, under any batch size; 1 where no other batch ran."""
    measured = sample_profile().measured
    assert measured.weight(BEST) == 1.0
    assert measured.weight(BEST.replace(batch_size=128)) == pytest.approx(2 / 3)
    assert measured.weight(BEST.replace(batch_size=192)) == pytest.approx(1 / 2)
    assert replace(measured, batch=None).weight(BEST.replace(batch_size=128)) == 1.0
    assert replace(measured, noise=None).weight(BEST.replace(batch_size=128)) == 1.0
