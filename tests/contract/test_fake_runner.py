"""The fake Runner keeps the contract of the real ones, and moves only its own clock."""

from __future__ import annotations

import pytest
from contract.runner_contract import StepsContract
from search_worlds import fake_runner

from autotune.trial import TrialSpec


class TestFakeRunner(StepsContract):
    """The contract, on a made-up machine."""

    @pytest.fixture
    def runner(self):
        """A fake runner with some noise."""
        return fake_runner(noise=0.02)


def test_fake_time_is_the_trials_cost():
    """The clock moves by what the trial says it cost."""
    runner = fake_runner()
    before = runner.clock()
    found = runner.run(TrialSpec(settings=runner.description.yours, stage="yours"))
    assert runner.clock() - before == pytest.approx(found.wall_s)


def test_fake_noise_follows_the_seed():
    """The same seed measures the same, another one does not."""
    spec = TrialSpec(settings=fake_runner().description.yours, stage="yours")
    first, again, other = (fake_runner(noise=0.05, seed=seed).run(spec) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_without_noise_the_rate_is_the_functions():
    """What the function says is what is measured."""
    runner = fake_runner(lambda settings, mode: 123.0)
    spec = TrialSpec(settings=runner.description.yours, stage="yours")
    assert runner.run(spec).samples_per_s == pytest.approx(123.0)
