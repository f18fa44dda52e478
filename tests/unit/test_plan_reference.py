"""*Yours*, measured again during the search, and rates compared relative to it."""

from __future__ import annotations

import pytest
from search_worlds import History, context, fake_runner, run_fake, space_of, steady_rate

from autotune.search.cost import Costs
from autotune.search.decision import Run
from autotune.search.knowledge import Knowledge
from autotune.search.plan import next_move
from autotune.settings import Settings
from autotune.trial import TrialSpec

SPACE = space_of(has_conv2d=True, image_input=True)
OTHERS = [
    SPACE.settings(**values)
    for values in (
        {"num_workers": 1},
        {"num_workers": 2},
        {"num_workers": 3},
        {"channels_last": True},
        {"num_workers": 1, "channels_last": True},
        {"num_workers": 2, "channels_last": True},
        {"num_workers": 3, "channels_last": True},
        {"cpu_threads": 2},
        {"cpu_threads": 2, "channels_last": True},
    )
]


def losing(count: int, wall_s: float = 3.0) -> History:
    """*Yours*, and then so many others that are clearly slower."""
    history = History().opened(SPACE)
    for settings in OTHERS[:count]:
        history.ran(settings, 60.0, wall_s=wall_s)
    return history


def asked(history: History, remaining_s: float = 290.0, budget_s: float = 300.0) -> TrialSpec:
    """What the plan wants now."""
    move = next_move(context(SPACE, remaining_s=remaining_s, budget_s=budget_s), history)
    assert isinstance(move, Run)
    return move.spec


def again(history: History, remaining_s: float = 290.0) -> bool:
    """Whether *yours* is what is wanted."""
    return asked(history, remaining_s).settings == SPACE.yours


def test_yours_runs_again_after_eight_others() -> None:
    """Not after seven, and after nine it is over when it ran."""
    assert not again(losing(7))
    assert again(losing(8))
    assert not again(losing(8).ran(SPACE.yours, 100.0))


def test_it_is_measured_to_its_end_and_says_why() -> None:
    """*Yours* may be far behind by now: nothing of it is given up, and it is no second `yours` stage."""
    spec = asked(losing(8))
    assert (spec.stage, spec.mode) == ("joint", "full")
    assert (spec.give_up_below, spec.compare_with, spec.window_cap_s) == (None, None, None)
    assert spec.reason == "yours again: has the machine's speed changed?"


def test_long_trials_bring_it_sooner() -> None:
    """Four others that took a fifth of the search's time are enough."""
    assert again(losing(4, wall_s=30.0), remaining_s=200.0)
    assert not again(losing(3, wall_s=30.0), remaining_s=200.0)


def test_it_does_not_eat_a_small_budget() -> None:
    """With a minute left nothing is measured for the sake of the others' comparison."""
    history = losing(8)
    left_s = Costs(Knowledge(context(SPACE, remaining_s=60.0), history)).reserve_s + 10.0
    move = next_move(context(SPACE, remaining_s=left_s), history)
    assert not (isinstance(move, Run) and move.spec.settings == SPACE.yours)


def drifting() -> Knowledge:
    """A machine that lost a fifth of its speed; the last settings are 10 % faster than the first in truth."""
    history = History().opened(SPACE, 100.0).ran(OTHERS[0], 100.0)
    for settings, rate in zip(OTHERS[1:6], (60.0, 58.0, 56.0, 54.0, 50.0)):
        history.ran(settings, rate)
    history.ran(SPACE.yours, 80.0).ran(OTHERS[0], 80.0).ran(OTHERS[6], 88.0).ran(SPACE.yours, 80.0)
    return Knowledge(context(SPACE), history)


def test_rates_are_compared_as_if_the_machine_had_kept_its_speed() -> None:
    """Settings that ran late on a slower machine lead, though their figure is under the first of *yours*."""
    know = drifting()
    lead, _ = know.lead(OTHERS[6], SPACE.yours)
    assert lead == pytest.approx(0.095, abs=0.02)
    assert know.incumbent == OTHERS[6]
    assert know.drift.steady < 0.01


def test_what_is_to_be_beaten_follows_the_machine() -> None:
    """A challenger that runs now is held against what the incumbent would do now."""
    know = drifting()
    assert know.pace(OTHERS[6]) == pytest.approx(88.0, rel=0.02)
    assert know.rate(OTHERS[6]) == pytest.approx(110.0, rel=0.03)


def test_a_steady_machine_is_not_corrected() -> None:
    """Repeats that agree leave every rate as it was measured."""
    history = losing(8).ran(SPACE.yours, 100.0)
    know = Knowledge(context(SPACE), history)
    assert know.rate(OTHERS[0]) == pytest.approx(60.0)
    assert know.noise < 0.015


def test_a_run_on_a_machine_that_slows_down_finds_what_is_faster() -> None:
    """Five minutes in which it loses 15 %: the settings that are best in truth win."""

    def rate(settings: Settings, mode: str) -> float:
        return steady_rate(settings, mode) * (1 - 0.15 * runner.clock() / 300.0)

    runner = fake_runner(rate, noise=0.01)
    outcome = run_fake(runner, 300.0)
    assert outcome.verdict.kind == "faster"
    assert outcome.best.loader.num_workers == 2
    assert outcome.best.compute.channels_last
    assert any("yours again" in t.spec.reason for t in outcome.trials)
