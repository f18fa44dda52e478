"""What stops a run: a budget that is too short, a baseline that fails, an interrupt."""

from __future__ import annotations

import re

import pytest
from search_worlds import fake_runner, run_fake, steady_rate

from autotune.errors import (
    BaselineError,
    BudgetError,
    DatasetError,
    NonFiniteLossError,
    NotPicklableError,
)
from autotune.trial import Failure
from autotune.units import parse_duration_s


def test_a_short_budget_says_how_long_is_needed_and_that_is_enough():
    """The length in the error is one with which the same run ends well."""
    with pytest.raises(BudgetError, match="too short") as caught:
        run_fake(fake_runner(), 8.0)
    needed = parse_duration_s(re.search(r"at least (.*)", caught.value.fix)[1].replace(" ", ""))
    assert needed > 8.0
    assert re.match(r"the start took .* and one run of your own settings .*, and", caught.value.why)
    outcome = run_fake(fake_runner(), needed)
    assert any(t.spec.stage == "final" for t in outcome.trials)


def test_a_budget_eaten_by_the_first_look_is_too_short():
    """Describing the workload counts, and the reason says so: a step's own seconds would puzzle."""
    with pytest.raises(BudgetError, match="too short") as caught:
        run_fake(fake_runner(facts={"setup_s": 50.0}), 20.0)
    assert "looking at model and data took 50" in caught.value.why


def test_a_baseline_cut_short_by_the_budget_is_a_short_budget():
    """Where yours did not end in what was left, the budget is to blame, not yours."""
    with pytest.raises(BudgetError, match="too short") as caught:
        run_fake(fake_runner(lambda settings, mode: 0.5), 30.0)
    assert "were not measured" in caught.value.why


def test_a_hanging_baseline_is_an_error_of_the_baseline():
    """With plenty of budget left, a baseline that does not end within minutes hangs."""
    with pytest.raises(BaselineError):
        run_fake(fake_runner(lambda settings, mode: 1e-3), 36_000.0)


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (Failure(kind="oom_device", message="out of memory", hint="smaller batch"), BaselineError),
        (Failure(kind="user_error", message="shapes", traceback="Traceback ..."), BaselineError),
        (Failure(kind="user_error", message="broken", sample_index=17, traceback="T"), DatasetError),
        (Failure(kind="worker_crash", message="killed", sample_index=3), DatasetError),
        (Failure(kind="non_finite", message="the loss is nan"), NonFiniteLossError),
        (Failure(kind="pickle", message="a lambda"), NotPicklableError),
    ],
)
def test_a_failing_baseline_is_told_as_what_it_is(failure, error):
    """Message, way out and traceback of the failure are in the error, of the class that fits."""
    with pytest.raises(error) as caught:
        run_fake(fake_runner(failures=lambda settings: failure), 120.0)
    assert type(caught.value) is error
    assert caught.value.why == failure.message
    assert caught.value.fix
    assert caught.value.detail == failure.traceback
    if failure.sample_index is not None:
        assert str(failure.sample_index) in caught.value.what


def interrupted(at, budget_s=200.0, **options):
    """A run that is interrupted when the runner gets its `at`-th trial."""
    runner = fake_runner(noise=0.01)
    inner = runner.run

    def run(spec):
        if len(runner.specs) == at:
            raise KeyboardInterrupt
        return inner(spec)

    runner.run = run
    return run_fake(runner, budget_s, **options)


@pytest.mark.parametrize("allow", ["numerics", "recipe"])
def test_an_interrupt_before_anything_ran_gives_yours(allow):
    """There is an outcome even then."""
    outcome = interrupted(0, allow=allow)
    assert (outcome.verdict.kind, outcome.best) == ("incomplete", outcome.yours)
    assert outcome.trials == ()


def test_an_interrupted_search_gives_the_best_so_far():
    """The leader of the search is returned, marked as not confirmed."""
    outcome = interrupted(8)
    assert outcome.verdict.kind == "incomplete"
    assert outcome.best != outcome.yours
    assert "not confirmed" in outcome.verdict.sentence
    assert outcome.stop_reason == "interrupted during the search"


def finals_at(stage):
    """At which trial the uninterrupted run begins `stage`."""
    runner = fake_runner(noise=0.01)
    run_fake(runner, 200.0)
    return next(i for i, spec in enumerate(runner.specs) if spec.stage == stage)


def test_interrupted_finals_are_incomplete():
    """Finals that did not end confirm nothing."""
    outcome = interrupted(finals_at("final") + 3)
    assert outcome.verdict.kind == "incomplete"
    assert outcome.stop_reason == "interrupted during the finals"


def test_an_interrupt_after_the_finals_keeps_their_verdict():
    """What was confirmed stays confirmed; only the worth is cut short."""
    outcome = interrupted(finals_at("worth") + 1)
    assert outcome.verdict.kind == "faster"
    assert outcome.stop_reason == "interrupted after the finals"


def test_an_interrupted_trial_is_closed_in_the_study(tmp_path):
    """A later session finds no trial that seems to run, and goes on."""
    storage = str(tmp_path / "run.journal")
    interrupted(8, storage=storage)
    outcome = run_fake(fake_runner(), 120.0, storage=storage, resume=True)
    assert outcome.verdict.kind == "faster"


def test_an_interrupt_from_within_the_rate_is_an_interrupt():
    """KeyboardInterrupt from anywhere under the runner ends the run in order."""

    def rate(settings, mode):
        if settings.loader.num_workers:
            raise KeyboardInterrupt
        return steady_rate(settings, mode)

    assert run_fake(fake_runner(rate), 120.0).verdict.kind == "incomplete"
