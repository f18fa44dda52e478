"""The table of time to accuracy: what counts as reached, which rows train alike, and what decides."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from benchmark_scripts import load
from profile_samples import sample_profile

from autotune.outcome import Recipe
from autotune.settings import LoaderSettings, Settings

load("raw_file")
load("real_workloads")
runs = load("accuracy_runs")
rows_py = load("accuracy_rows")
tta = load("time_to_accuracy")


def mark(epoch: int, samples: int, accuracy: float):
    return runs.Mark(epoch=epoch, samples=samples, seconds=samples / 10, accuracy=accuracy)


MARKS = [mark(1, 100, 90.0), mark(1, 150, 98.5), mark(2, 250, 97.0), mark(2, 300, 98.0)]


def test_the_target_is_reached_at_the_first_mark_that_meets_it():
    """A later dip does not count, equality does; a target that was never met took for ever."""
    assert tta.seconds_to(MARKS, 98.5) == pytest.approx(15.0)
    assert tta.seconds_to(MARKS, 98.0) == pytest.approx(15.0)
    assert tta.seconds_to(MARKS, 99.0) == math.inf


def test_equal_epochs_are_judged_at_their_last_mark():
    """Not at the best one, and not where a longer run ended."""
    row = rows_py.rows_of({"kept": [[*MARKS, mark(3, 450, 99.0)]]}, {"kept": "kept"}, 98.0, 2)["kept"]
    assert row.accuracy == (98.0,)
    assert row.epochs_s == (30.0,)


def slower(marks, times):
    """The same run at another pace."""
    return [replace(m, seconds=times * m.seconds) for m in marks]


def test_rows_that_learn_the_same_differ_by_their_pace_alone():
    """Which of equal trainings is lucky says nothing: all take their samples to the target together."""
    early, late = MARKS, [mark(1, 100, 90.0), mark(2, 250, 97.0), mark(2, 300, 98.6)]
    never = [mark(1, 100, 90.0), mark(2, 300, 91.0)]
    runs_of = {"defaults": [slower(early, 2)], "kept": [late], "throughput": [never]}
    found = rows_py.rows_of(
        runs_of, {"defaults": "defaults", "kept": "defaults", "throughput": "throughput"}, 98.5, 2
    )
    assert (found["defaults"].seconds, found["kept"].seconds) == ((30.0,), (30.0,))
    assert found["defaults"].paced_s == (pytest.approx(2 * 22.5),), "225 samples in the median of both"
    assert found["kept"].paced_s == (pytest.approx(22.5),)
    assert found["throughput"].paced_s == (math.inf,)


def test_runs_that_are_shared_count_once_among_those_that_learn_the_same():
    """Two rows that are one and the same run are no second witness."""
    late = [[mark(1, 100, 90.0), mark(2, 300, 98.6)]]
    learns = dict.fromkeys(("defaults", "kept", "alone"), "defaults")
    found = rows_py.rows_of({"defaults": [MARKS], "kept": late, "alone": late}, learns, 98.5, 2)
    assert found["defaults"].paced_s == (pytest.approx(22.5),)


def test_seconds_are_read_between_and_beyond_marks():
    """A run that ended before as many samples would have gone on at its last pace."""
    marks = [mark(1, 100, 1.0), replace(mark(1, 200, 1.0), seconds=40.0)]
    assert rows_py.seconds_at(marks, 150.0) == pytest.approx(25.0)
    assert rows_py.seconds_at(marks, 250.0) == pytest.approx(55.0)
    assert rows_py.seconds_at(marks[:1], 150.0) == pytest.approx(15.0)


def test_a_mark_can_stand_for_the_mean_of_several():
    """A lucky one does not reach the target then; at the beginning it is the mean of those there are."""
    means = runs.averaged(MARKS, 2)
    assert [(m.samples, m.accuracy) for m in means] == [
        (100, 90.0),
        (150, 94.25),
        (250, 97.75),
        (300, 97.5),
    ]
    assert tta.seconds_to(means, 98.5) == math.inf
    assert tta.seconds_to(means, 97.5) == pytest.approx(25.0)
    assert runs.averaged(MARKS, 1) == MARKS


def recipe(batch_size: int) -> Recipe:
    return Recipe(
        batch_size=batch_size,
        reference_batch_size=64,
        learning_rates=(0.1 * batch_size / 64,),
        reference_learning_rates=(0.1,),
        lr_rule="linear",
    )


def test_rows_that_train_alike_share_their_runs():
    """A recipe for the user's own batch is none, and another batch without its recipe is another row."""
    yours = Settings(loader=LoaderSettings(batch_size=64))
    large = yours.replace(batch_size=256)
    kept = replace(sample_profile(), settings=yours, recipe=recipe(64))
    grown = replace(kept, settings=large, recipe=recipe(256))
    profiles = {
        "defaults": None,
        "kept": kept,
        "recommended": grown,
        "throughput": grown,
        "alone": replace(grown, recipe=None),
    }
    same = tta.twins(profiles, 64)
    assert same == {
        "defaults": "defaults",
        "kept": "defaults",
        "recommended": "recommended",
        "throughput": "recommended",
        "alone": "alone",
    }


def test_a_profile_of_yours_trains_as_the_defaults_do():
    """Although it says how many threads that is."""
    found = Settings(loader=LoaderSettings(batch_size=64)).replace(cpu_threads=2)
    measured = replace(sample_profile().measured, yours_settings=found)
    kept = replace(sample_profile(), settings=found, measured=measured, recipe=None)
    assert tta.twins({"defaults": None, "kept": kept}, 64) == {"defaults": "defaults", "kept": "defaults"}


def test_rows_learn_the_same_in_the_same_batches_with_the_same_numbers():
    """However fast: other workers make no other training, the batch alone does."""
    yours = Settings(loader=LoaderSettings(batch_size=64))
    kept = replace(sample_profile(), settings=yours.replace(num_workers=2), recipe=recipe(64))
    grown = replace(kept, settings=yours.replace(batch_size=256), recipe=recipe(256))
    profiles = {
        "defaults": None,
        "kept": kept,
        "recommended": grown,
        "throughput": replace(grown, settings=grown.settings.replace(num_workers=3)),
        "alone": replace(grown, recipe=None),
    }
    assert tta.learning(profiles, 64) == {
        "defaults": "defaults",
        "kept": "defaults",
        "recommended": "recommended",
        "throughput": "recommended",
        "alone": "alone",
    }


def row(seconds, accuracy=(98.5, 98.6, 98.7), **changes):
    """A row that trains as no other does."""
    made = {"paced_s": seconds, "epochs_s": (30.0,) * 3, "learns": str(seconds), **changes}
    return rows_py.Row(seconds=seconds, accuracy=accuracy, **made)


def rows(**changes):
    """A table in which the recommendation is fastest, and as good as the defaults."""
    fast = row((5.0, 6.0, 40.0), (98.2, 98.4, 98.9))
    return {
        name: fast if name == "recommended" else row((10.0, 11.0, 30.0)) for name in rows_py.ROWS
    } | changes


def test_the_recommendation_passes_where_no_row_is_faster_in_the_median():
    """One slow seed does not decide, and a fifth of a point is not lost."""
    assert rows_py.judged(rows()).startswith("PASS: accuracy against the defaults -0.20")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kept": row((2.5, 3.0, 19.9))}, "'tuned, batch kept' is faster"),
        ({"recommended": row((5.0, 6.0, 40.0), (98.1, 98.2, 98.3))}, "0.40 points under"),
        ({"recommended": row((5.0, math.inf, math.inf))}, "not reached in most runs"),
    ],
)
def test_the_recommendation_fails_and_says_why(changes, said):
    """Another row that is surely faster, accuracy surely lost, a target that was not reached."""
    verdict = rows_py.judged(rows(**changes))
    assert verdict.startswith("FAIL")
    assert said in verdict


def test_a_row_that_learns_the_same_is_held_beside_pair_by_pair():
    """Its median may be ahead by the round that it comes from."""
    own = rows()["recommended"]
    behind = row((5.5, 5.9, 42.0), learns=own.learns)
    assert rows_py.judged(rows(kept=behind)).startswith("PASS")
    assert rows_py.judged(rows(kept=replace(behind, learns="other"))).startswith("NOT SHOWN")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kept": row((5.9, 5.9, 50.0))}, "'tuned, batch kept' is faster"),
        ({"recommended": row((5.0, 6.0, 40.0), (98.2, 98.2, 98.9))}, "0.40 points under"),
    ],
)
def test_what_chance_may_have_done_is_neither_passed_nor_failed(changes, said):
    """An order of medians that seeds turn round, and points that they differ by."""
    verdict = rows_py.judged(rows(**changes))
    assert verdict.startswith("NOT SHOWN")
    assert said in verdict


def test_rows_are_held_beside_the_recommendation_seed_by_seed():
    """Twice the seconds in each seed is twice without doubt; a target that one side missed is no pair."""
    fast = rows()["recommended"]
    twice = row(tuple(2 * seconds for seconds in fast.seconds))
    missed = row((10.0, 12.0, math.inf))
    paced = row((1.0, 2.0, 3.0), paced_s=(15.0, 18.0, 120.0), learns=fast.learns)
    text = rows_py.beside(
        {"recommended": fast, "defaults": paced, "kept": twice, "throughput": missed, "alone": fast}
    )
    assert "batch kept: 2.00 (2.00 to 2.00, 3 of 3 seeds)" in text
    assert "max-throughput batch: 2.00 (2.00 to 2.00, 2 of 3 seeds)" in text
    assert "torch's defaults: 3.00 (3.00 to 3.00), to as many samples" in text
    assert "alone" not in text.splitlines()[-1]


def test_the_table_names_a_target_that_was_not_reached():
    """Ranges with an end that never came, and no speed where the median did not."""
    never = row((5.0, math.inf, math.inf), (90.0,) * 3)
    text = rows_py.table(rows(alone=never), dict.fromkeys(rows_py.ROWS, ""), 98.0, 3)
    line = next(line for line in text.splitlines() if line.startswith(rows_py.ROWS["alone"]))
    assert "never (5.0 to never)" in line
    assert "x" not in line.removeprefix(rows_py.ROWS["alone"])
    assert "1.83x" in text
