"""When looking on is no longer worth its time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from autotune.search.worthwhile import FLOOR, Outlook, why_stop

gains = st.lists(st.floats(0, 1), min_size=1, max_size=3)
seconds = st.floats(1, 1e6)


def test_a_large_gain_in_a_long_run_is_looked_for() -> None:
    """Ten percent of an hour is worth half a minute."""
    assert why_stop(Outlook(gains=(0.1,), cost_s=30.0, training_s=3600.0)) == ""


def test_a_short_run_does_not_pay_for_a_long_look() -> None:
    """Ten percent of a minute is not, and the reason says both figures."""
    reason = why_stop(Outlook(gains=(0.05, 0.03, 0.02), cost_s=30.0, training_s=60.0))
    assert "the 3 most promising settings left promise 10.5 %" in reason
    assert "5.71 s of your training" in reason
    assert "less than the 30" in reason


def test_a_large_gain_is_looked_for_even_for_a_short_run() -> None:
    """Who trains for four seconds and gives a minute for it will train again, three times as fast."""
    assert why_stop(Outlook(gains=(0.5, 0.4, 0.2), cost_s=5.0, training_s=4.0)) == ""


def test_a_gain_that_no_trial_could_show_ends_the_search() -> None:
    """Without a length of training, a gain under the floor is the only reason beside the budget."""
    assert "no trial could tell from noise" in why_stop(Outlook(gains=(0.002, 0.001), cost_s=10.0))
    assert why_stop(Outlook(gains=(0.01,), cost_s=1e9)) == ""


def test_no_prediction_is_no_reason() -> None:
    """Where the model says nothing, it does not end the search."""
    assert why_stop(Outlook(gains=(), cost_s=10.0, training_s=1.0)) == ""


@given(gains=gains, cost_s=seconds, training_s=seconds, factor=st.floats(1, 100))
def test_longer_training_never_makes_looking_less_worthwhile(
    gains: list[float], cost_s: float, training_s: float, factor: float
) -> None:
    """What is worth its time for a run is worth it for a longer one."""
    if not why_stop(Outlook(gains=gains, cost_s=cost_s, training_s=training_s)):
        assert not why_stop(Outlook(gains=gains, cost_s=cost_s, training_s=training_s * factor))


@given(gains=gains, cost_s=seconds, training_s=st.none() | seconds)
def test_under_the_floor_it_always_ends(gains: list[float], cost_s: float, training_s: float | None) -> None:
    """A total under the floor ends the search whatever the training's length."""
    outlook = Outlook(gains=gains, cost_s=cost_s, training_s=training_s)
    if outlook.gain < FLOOR:
        assert why_stop(outlook)
