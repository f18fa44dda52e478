"""Laws of the estimate of the machine's own speed."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.search.drift import Run, estimate

LOGS = st.floats(-0.2, 0.2)
RUNS = st.lists(st.tuples(st.integers(0, 3), LOGS), max_size=14)


def runs_of(pairs: list[tuple[int, float]]) -> list[Run]:
    """One run every ten seconds."""
    return [Run(settings=s, at_s=10.0 * i, log_rate=log) for i, (s, log) in enumerate(pairs)]


def search(speed: Callable[[float], float], noise: float, seed: int) -> list[Run]:
    """Thirty trials: every eighth a repeat of the first settings, a fifth of them repeats of another."""
    chance = random.Random(seed)
    names = [0 if i % 8 == 0 else 1 if i % 5 == 1 else 100 + i for i in range(30)]
    return [
        Run(settings=name, at_s=3.0 * i, log_rate=speed(i / 30) + chance.gauss(0, noise))
        for i, name in enumerate(names)
    ]


def errors(speed: Callable[[float], float], noise: float, seed: int) -> list[float]:
    """How far the estimate is off at each trial, its mean apart: only differences matter."""
    drift = estimate(search(speed, noise, seed))
    off = [drift.at(3.0 * i) - speed(i / 30) for i in range(30)]
    return [x - math.fsum(off) / 30 for x in off]


def rms(values: list[float]) -> float:
    """Root of the mean square."""
    return math.sqrt(math.fsum(x * x for x in values) / len(values))


@given(st.lists(LOGS, max_size=8))
def test_without_repeats_there_is_no_drift(logs: list[float]) -> None:
    """Settings that ran once each may differ for their own sake."""
    drift = estimate(runs_of(list(enumerate(logs))))
    assert [drift.at(10.0 * i) for i in range(8)] == [0.0] * 8
    assert drift.steady == 1.0


@given(RUNS, st.lists(LOGS, min_size=4, max_size=4))
def test_what_settings_give_is_no_drift(pairs: list[tuple[int, float]], gains: list[float]) -> None:
    """Making settings faster as such leaves the estimate where it was."""
    before = estimate(runs_of(pairs))
    after = estimate(runs_of([(s, log + gains[s]) for s, log in pairs]))
    assert after.log_speeds == pytest.approx(before.log_speeds, abs=1e-9)


@given(RUNS, st.floats(0.01, 1000), st.floats(-1e4, 1e4))
def test_the_clock_does_not_matter(pairs: list[tuple[int, float]], scale: float, start_s: float) -> None:
    """Another unit and another beginning give the same speeds at the same runs."""
    runs = runs_of(pairs)
    moved = [Run(settings=r.settings, at_s=scale * r.at_s + start_s, log_rate=r.log_rate) for r in runs]
    assert estimate(moved).log_speeds == pytest.approx(estimate(runs).log_speeds, abs=1e-6)


@given(RUNS, st.floats(-50, 500))
def test_the_estimate_is_bounded_by_what_was_seen(pairs: list[tuple[int, float]], now_s: float) -> None:
    """It is a finite number, and no change is larger than twice what the repeats of all settings differ by.

    Runs that follow each other may say of each settings in turn that the machine grew faster.
    """
    drift = estimate(runs_of(pairs))
    logs = {name: [log for one, log in pairs if one == name] for name, _ in pairs}
    assert abs(drift.at(now_s)) <= 2 * sum(max(each) - min(each) for each in logs.values()) + 1e-9
    assert 0 <= drift.steady <= 1


@given(st.integers(0, 3), st.floats(-0.2, 0.2), st.integers(2, 10))
def test_repeats_that_agree_show_no_drift(name: int, log: float, count: int) -> None:
    """Equal figures are left as they are."""
    drift = estimate(runs_of([(name, log)] * count))
    assert drift.log_speeds == pytest.approx((0.0,) * count, abs=1e-9)


@settings(max_examples=5)
@given(st.integers(0, 1000))
def test_the_line_between_two_runs_is_straight(seed: int) -> None:
    """Half way between two repeats lies half of the change; after the last nothing changes."""
    drift = estimate(search(lambda part: -0.1 * part, 0.01, seed))
    left_s, right_s = drift.knots_s[:2]
    assert drift.at((left_s + right_s) / 2) == pytest.approx(sum(drift.log_speeds[:2]) / 2)
    assert drift.at(drift.knots_s[-1] + 1000) == drift.log_speeds[-1]
    assert drift.at(-5) == drift.log_speeds[0]


@pytest.mark.parametrize("noise", [0.005, 0.015, 0.03])
def test_a_steady_machine_is_left_alone(noise: float) -> None:
    """Over a hundred machines, what the correction adds is under a third of the noise."""
    found = [x for seed in range(100) for x in errors(lambda part: 0.0, noise, seed)]
    assert rms(found) < noise / 3


@pytest.mark.parametrize("noise", [0.005, 0.015, 0.03])
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_drift_of_ten_percent_is_mostly_taken_out(noise: float, sign: int) -> None:
    """Over a hundred machines, a line of 10 % (2.9 % off its mean) leaves under 0.6 % and half the noise."""

    def line(part: float) -> float:
        return sign * 0.1 * part

    found = [x for seed in range(100) for x in errors(line, noise, seed)]
    assert rms(found) < 0.006 + noise / 2


def test_a_step_is_followed() -> None:
    """A machine that loses 10 % at once is seen to have lost most of it afterwards."""
    drift = estimate(search(lambda part: -0.1 * (part > 0.5), 0.01, 3))
    assert drift.at(85.0) - drift.at(0.0) == pytest.approx(-0.1, abs=0.02)
    assert drift.steady < 0.01


def test_runs_in_two_groups_are_no_drift():
    """One settings' luck (1.18, then 0.73) beside others that hardly moved is noise, however large."""
    runs = [
        Run(settings="yours", at_s=2.0, log_rate=math.log(0.65)),
        Run(settings="lucky", at_s=21.0, log_rate=math.log(1.18)),
        Run(settings="yours", at_s=29.0, log_rate=math.log(0.63)),
        Run(settings="lucky", at_s=31.0, log_rate=math.log(0.73)),
    ]
    assert abs(estimate(runs).at(31.0)) < 0.03
