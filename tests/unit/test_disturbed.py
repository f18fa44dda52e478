"""What a run does about trials that something else disturbed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from finals_trials import YOURS, finals, workers
from search_worlds import History, context, fake_runner, run_fake, space_of, steady_rate

from autotune.outcome import Interval, Verdict
from autotune.search.decision import Run
from autotune.search.knowledge import Knowledge
from autotune.search.plan import next_move
from autotune.search.verdict import disturbed_finals, unless_disturbed
from autotune.settings import Settings
from autotune.trial import Block, Measurement, Trial, TrialSpec

BUSY = ("busy_machine",)
FAST = workers(2)


def busy(trial: Trial) -> Trial:
    """The same trial with a neighbour on the CPUs."""
    assert trial.measurement is not None
    blocks = tuple(replace(block, marks=BUSY) for block in trial.measurement.blocks)
    return replace(trial, measurement=replace(trial.measurement, blocks=blocks))


@pytest.mark.parametrize(
    ("marks", "disturbed"),
    [
        (("-", "-", "-", "-"), False),
        (("busy_machine", "-", "-", "-"), False),
        (("busy_machine", "throttled", "-", "-"), False),
        (("busy_machine", "throttled", "alloc_retry", "-"), True),
        (("epoch_edge", "epoch_edge", "epoch_edge", "-"), False),
        (("transient", "transient", "-", "busy_machine", "busy_machine"), True),
    ],
)
def test_a_trial_is_disturbed_when_most_of_its_steady_blocks_are(
    marks: tuple[str, ...], disturbed: bool
) -> None:
    """Half is not most; what was cut as a transient and the edge of an epoch do not count."""
    blocks = tuple(
        Block(steps=1, samples=1, elapsed_s=1.0, wait_s=0.0, marks=() if mark == "-" else (mark,))
        for mark in marks
    )
    assert Measurement(blocks=blocks).disturbed is disturbed


def test_a_disturbed_newcomer_is_measured_again_once() -> None:
    """At once, at small cost, and its disturbed run no longer counts; a second disturbance is let be."""
    space = space_of()
    new = space.settings(num_workers=2)
    history = History().opened(space).ran(new, 50.0)
    history[-1] = busy(history[-1])
    move = next_move(context(space), history)
    assert isinstance(move, Run)
    assert move.spec.settings == new
    assert "disturbed" in move.spec.reason
    know = Knowledge(context(space), History(history).ran(new, 200.0))
    assert know.rate(new) == pytest.approx(200.0)
    assert know.again is None
    assert Knowledge(context(space), [*history, history[-1]]).again is None


def test_nothing_is_measured_again_where_time_is_short() -> None:
    """A repeat may take a tenth of what is left for the search, not more."""
    space = space_of()
    history = History().opened(space).ran(space.settings(num_workers=2), 50.0, wall_s=3.0)
    history[-1] = busy(history[-1])
    move = next_move(context(space, remaining_s=50.0), history)
    assert not (isinstance(move, Run) and "disturbed" in move.spec.reason)


def test_on_a_machine_that_is_always_busy_nothing_is_repeated_for_that() -> None:
    """The second run would be as disturbed as the first: only the first settings of all are tried twice."""
    runner = fake_runner(marks=lambda spec: BUSY)
    run_fake(runner, 200.0)
    again = [spec for spec in runner.specs if "disturbed" in spec.reason]
    assert [spec.settings for spec in again] == [runner.description.yours]


def test_a_passing_neighbour_costs_one_more_run_and_no_wrong_turn() -> None:
    """Settings that were slowed while they were tried win all the same."""

    def passing(spec: TrialSpec) -> tuple[str, ...]:
        return BUSY if spec.stage == "joint" and "disturbed" not in spec.reason else ()

    count = 0

    def marks(spec: TrialSpec) -> tuple[str, ...]:
        nonlocal count
        count += bool(passing(spec))
        return BUSY if passing(spec) and count <= 2 * spec.min_blocks else ()

    quiet, disturbed = fake_runner(), fake_runner(marks=marks)
    best = run_fake(quiet, 300.0).best
    assert steady_rate(run_fake(disturbed, 300.0).best, "full") == pytest.approx(steady_rate(best, "full"))
    assert sum("disturbed" in spec.reason for spec in disturbed.specs) in (1, 2)


def won(low: float) -> Verdict:
    """A win by 2 % over `low`."""
    ratio = Interval(value=low + 0.02, low=low, high=low + 0.04)
    return Verdict(kind="faster", winner=FAST, ratio=ratio, pairs=5, sentence="faster")


@pytest.mark.parametrize(
    ("low", "disturbed", "kind"),
    [(1.01, 0, "faster"), (1.01, 5, "faster"), (1.01, 6, "unsure"), (1.05, 10, "faster")],
)
def test_a_small_gain_among_disturbed_finals_is_not_sure(low: float, disturbed: int, kind: str) -> None:
    """More than half disturbed: only a gain surely above 3 % stands, and the sentence says so in any case."""
    trials = finals({YOURS: [100.0] * 5, FAST: [103.0] * 5})
    trials = (*(busy(trial) for trial in trials[:disturbed]), *trials[disturbed:])
    assert disturbed_finals(trials) == (disturbed, 10)
    found = unless_disturbed(won(low), YOURS, trials)
    assert found.kind == kind
    assert found.winner == (FAST if kind == "faster" else YOURS)
    assert found.ratio == won(low).ratio
    assert (f"{disturbed} of 10 finals" in found.sentence) == (disturbed > 5)


def test_a_run_among_neighbours_says_so() -> None:
    """A note tells how many finals were disturbed and by what; a large gain is believed, a small one not."""

    def rates(gain: float):
        return lambda s, mode: 400.0 * (2 if mode != "full" else gain if s.loader.num_workers else 1.0)

    def marks(spec: TrialSpec) -> tuple[str, ...]:
        return BUSY if spec.stage == "final" else ()

    large = run_fake(fake_runner(rates(1.5), marks=marks), 200.0)
    small = run_fake(fake_runner(rates(1.025), marks=marks), 200.0)
    assert (large.verdict.kind, small.verdict.kind) == ("faster", "unsure")
    assert small.best == small.yours
    for outcome in (large, small):
        assert any("finals were disturbed: other processes used the CPUs" in note for note in outcome.notes)
    quiet = run_fake(fake_runner(rates(1.025)), 200.0)
    assert quiet.verdict.kind == "faster"
    assert isinstance(quiet.best, Settings)
    assert not any("disturbed" in note for note in quiet.notes)
