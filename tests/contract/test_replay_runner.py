"""The Runner that answers from a recorded grid keeps the contract of the real ones."""

from __future__ import annotations

import statistics
from dataclasses import replace

import pytest
from contract.runner_contract import RunnerContract
from replay_samples import recorded_grid, replay

from autotune.settings import Settings
from autotune.trial import Failure, TrialSpec


class TestReplayRunner(RunnerContract):
    """The contract, on a recorded machine."""

    @pytest.fixture
    def runner(self, tmp_path):
        """A runner on a small grid."""
        return replay.ReplayRunner(recorded_grid(tmp_path))


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """A grid with noise from run to run."""
    return recorded_grid(tmp_path_factory.mktemp("grid"), noise=0.05)


def yours(grid, **changes: object) -> TrialSpec:
    return replace(TrialSpec(settings=grid.header.description.yours, stage="yours"), **changes)


def test_the_clock_moves_by_what_a_trial_cost(grid):
    """Its process, where it needs a new one, is part of that."""
    runner = replay.ReplayRunner(grid)
    setup_s = runner.describe().workload.setup_s
    runner.run(yours(grid))
    before = runner.clock()
    found = runner.run(yours(grid, fresh_process=True))
    assert runner.clock() - before == pytest.approx(found.wall_s)
    assert found.wall_s >= setup_s + found.warmup_s + found.elapsed_s


def test_draws_follow_seed_and_call(grid):
    """The same seed and the same calls give the same; another seed, or the next call, does not."""
    first, again, other = (replay.ReplayRunner(grid, seed=seed) for seed in (1, 1, 2))
    told = first.run(yours(grid))
    assert told == again.run(yours(grid))
    assert {told, *(other.run(yours(grid)) for _ in range(5))} != {told}
    assert len({first.run(yours(grid)).samples_per_s for _ in range(5)}) > 1


def test_runs_differ_as_the_recorded_ones_did(grid):
    """Each trial is one of the recorded runs, so its rate scatters from run to run and not only in a run."""
    recorded = [
        t.measurement.samples_per_s
        for t in grid.trials
        if t.settings == yours(grid).settings and t.spec.mode == "full"
    ]
    runner = replay.ReplayRunner(grid)
    rates = [runner.run(yours(grid)).samples_per_s for _ in range(60)]
    assert statistics.mean(rates) == pytest.approx(statistics.mean(recorded), rel=0.02)
    assert statistics.stdev(rates) > 0.5 * statistics.stdev(recorded)
    nearest = [min(abs(rate / r - 1) for r in recorded) for rate in rates]
    assert statistics.median(nearest) < 0.02


def test_a_longer_window_is_filled_from_the_same_run(grid):
    """Blocks that are longer than the recorded ones are put together from several."""
    found = replay.ReplayRunner(grid).run(yours(grid, window_s=6.0))
    assert found.elapsed_s >= 6.0
    assert found.steps * 64 == found.samples


def test_a_trial_too_close_to_tell_ends_at_its_cap(grid):
    """By the clock of the replay: no real time passes while it draws, and what is open must end too."""
    runner = replay.ReplayRunner(grid)
    rate = runner.run(yours(grid)).samples_per_s
    open_ones = [
        runner.run(yours(grid, window_s=2.0, compare_with=rate, window_cap_s=4.0)) for _ in range(20)
    ]
    assert max(found.elapsed_s for found in open_ones) < 6.0


def test_off_the_grid_is_an_error_not_a_guess(grid):
    """Settings that were not measured, and a mode that was not, have no answer."""
    runner = replay.ReplayRunner(grid)
    with pytest.raises(replay.OffGridError, match="does not hold"):
        runner.run(TrialSpec(settings=Settings().replace(num_workers=3), stage="joint"))


def test_failures_come_back_as_recorded(tmp_path):
    """With what they cost; the next trial pays for a new process."""
    crash = Failure(kind="worker_crash", message="it fell over")
    grid = recorded_grid(tmp_path, failures=lambda s: crash if s.loader.num_workers == 4 else None)
    runner = replay.ReplayRunner(grid)
    runner.describe()
    four = next(t.settings for t in grid.trials if t.settings.loader.num_workers == 4)
    found = runner.run(yours(grid, settings=four))
    assert isinstance(found, Failure)
    assert (found.kind, found.message) == ("worker_crash", "it fell over")
    after = runner.run(yours(grid))
    assert after.wall_s >= runner.describe().workload.setup_s + after.elapsed_s
