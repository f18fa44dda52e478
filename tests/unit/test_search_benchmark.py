"""The comparison of search methods: what is true of a grid, how it is searched, and what is counted."""

from __future__ import annotations

import pytest
from benchmark_scripts import load
from replay_samples import recorded_grid, replay

from autotune.codec import decode
from autotune.search.engine import tune
from autotune.search.listener import SilentListener
from autotune.settings import Settings
from autotune.testing import FakeClock

methods = load("search_methods")
load("raw_file")
search = load("search")
load("real_workloads")
live = load("search_live")


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """A grid without noise: the best of it is known."""
    return recorded_grid(tmp_path_factory.mktemp("grid"), noise=0.0)


@pytest.fixture(scope="module")
def truth(grid):
    """What is true of it."""
    return search.truth_of(grid)


def test_truth_is_the_mean_over_rounds(grid, truth):
    """The best of the made-up machine is the optimum, and without noise both optima agree."""
    best = max(truth.rates, key=lambda s: truth.rates[s])
    assert best.loader.num_workers == 2
    assert best.compute.cpu_threads == 2
    assert truth.validated == pytest.approx(truth.best)
    assert truth.cost_s == pytest.approx(sum(t.measurement.wall_s for t in grid.trials))


def test_cross_validation_does_not_believe_a_lucky_round():
    """What is best by one lucky round is chosen with that round and valued without it."""
    steady, lucky = [100.0, 100.0, 100.0], [90.0, 90.0, 160.0]
    assert search.cross_validated([steady, lucky]) < 110.0
    assert search.cross_validated([[100.0], [90.0]]) is None


def test_a_run_stays_within_the_grid(grid):
    """What is searched are the axes; a whole run asks for nothing that was not recorded."""
    space = replay.space_of(grid)
    assert {o.knob: o.values for o in space.options} == {a.knob: a.values for a in grid.header.axes}
    assert all(space.legal(settings) for settings in space.recorded)
    assert not space.legal(space.settings(num_workers=3))
    clock = FakeClock()
    with replay.confined(grid):
        outcome = tune(
            replay.ReplayRunner(grid, clock=clock), replay.options(grid, 120.0), SilentListener(), clock=clock
        )
    assert {t.settings for t in outcome.trials} <= space.recorded
    assert outcome.verdict.kind == "faster"


def test_ours_is_followed_through_its_run(grid, truth):
    """At the end it has the optimum, and it proves it; before anything ran it has yours."""
    played = search.ours(grid, truth, 120.0, 0)
    assert played.shares[-1] == pytest.approx(1.0, rel=0.01)
    assert played.proved == pytest.approx(1.0, rel=0.01)
    assert played.spent_s <= 120.0 * 1.05


def test_a_budget_too_small_for_ours_keeps_yours(grid, truth):
    """It is played as what a user would be left with."""
    played = search.ours(grid, truth, 2.0, 0)
    assert played.verdict == "no budget"
    assert played.proved == truth.rates[grid.header.description.yours] / truth.best


@pytest.mark.parametrize("method", ["random", "tpe", "tpe-univariate", "greedy"])
def test_rivals_find_the_optimum_of_a_machine_without_noise(grid, truth, method):
    """Given the time to see all of it; and no one spends more than the budget."""
    played = search.rival(grid, truth, method, 120.0, 0)
    assert played.shares[-1] == pytest.approx(1.0, rel=0.01)
    assert played.spent_s <= 120.0
    assert list(played.shares) == sorted(played.shares)


def test_what_was_measured_is_answered_from_memory(grid):
    """A second time costs nothing and says the same."""
    field = methods.Field(replay.ReplayRunner(grid), replay.space_of(grid), 60.0)
    first, now_s = field.measure(field.space.yours), field.runner.clock()
    assert field.measure(field.space.yours) == first
    assert field.runner.clock() == now_s
    assert len(field.seen) == 1


def test_the_rule_of_thumb_takes_what_the_grid_holds(grid):
    """As many workers as there are CPUs; nothing else applies to this machine."""
    settings = methods.rule_of_thumb(replay.space_of(grid))
    assert settings.loader.num_workers == 4
    assert settings.compute == grid.header.description.yours.compute


def test_a_budget_may_be_a_part_of_the_grids_cost(truth):
    """Or a duration."""
    assert search.budget_of("10%", truth) == pytest.approx(0.1 * truth.cost_s)
    assert search.budget_of("2m", truth) == 120.0


def test_a_table_has_a_line_for_each_method(grid, truth):
    """With median and worst share."""
    played = [*(search.ours(grid, truth, 60.0, seed) for seed in range(2)), search.by_rule(grid, truth, 60.0)]
    lines = search.table(played, ["ours", "random", "rule of thumb"]).splitlines()
    assert [line.split("  ")[0] for line in lines] == ["method", "ours", "rule of thumb"]
    assert "made-up" in search.heading(grid, truth, 60.0)


def test_every_run_has_a_key_and_is_played_from_the_grids_file(tmp_path):
    """With each seed where a method draws; a run survives being written."""
    recorded_grid(tmp_path, noise=0.0)
    (path,) = tmp_path.glob("*.gz")
    work = search.runs([path], ["60", "10%"], ["tpe", "rule of thumb"], 2)
    assert len(work) == 2 * (2 + 1)
    played = decode(search.Played, work[f"{path.name}/60/tpe/1"]())
    assert (played.method, played.seed, played.budget_s) == ("tpe", 1, 60.0)
    assert decode(search.Played, work[f"{path.name}/10%/rule of thumb/0"]()).trials == 0


def test_the_cost_of_the_study_is_told(grid):
    """As a share of a run, and for a trial of a long history."""
    told = "of a run of five minutes; of 40 trials"
    assert told in load("search_overhead").overhead(grid, seeds=1, trials=40)


def test_every_grid_that_is_kept_can_be_read():
    """Grids recorded earlier stay readable, or nothing can be played on them."""
    paths = sorted(path for path in search.DATA.glob("*.jsonl.gz") if not path.name.startswith("windows-"))
    assert {"mnist", "io-bound"} <= {search.read_grid(path).header.workload for path in paths}


def test_a_real_search_is_held_against_the_grids_optimum(grid):
    """What it answers is in the grid; answer, optimum and *yours* are measured in turn and told as ratios."""
    runner = replay.ReplayRunner(grid)
    space = live.space_here(grid, runner)
    found = live.searched(grid, space, runner, 20.0)
    settings = decode(Settings, found["settings"])
    assert settings in space.recorded
    optimum = live.optimum_of(grid, space)
    assert optimum.loader.num_workers == 2
    sides = dict(zip(live.SIDES, (settings, optimum, space.yours)))
    measured = [live.round_of(runner, list(sides.items()), 0.6)]
    said = live.told("made up", found, measured, sides, 1000.0)
    ratio = measured[0]["found"] / measured[0]["optimum"]
    assert f"found / optimum  {ratio:.3f}" in said
    assert "% of the grid's 1000 s" in said


def test_a_round_that_misses_a_side_gives_no_ratio(grid):
    """A failure is no rate; the words say where the two choices differ."""
    yours = replay.space_of(grid).yours
    sides = dict(zip(live.SIDES, (yours, yours.replace(cpu_threads=7), yours)))
    found = {"trials": 3, "spent_s": 6.0, "verdict": "kept"}
    said = live.told("made up", found, [{"found": 1.0}], sides, 60.0)
    assert "found /" not in said
    assert "3 trials in 6 s, 10.0% of the grid's 60 s" in said
    assert "found beside the optimum: cpu_threads=" in said
