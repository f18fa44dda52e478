"""Whole runs on a made-up machine and clock."""

from __future__ import annotations

import pytest
from search_worlds import fake_runner, run_fake, steady_rate

from autotune.errors import StudyError
from autotune.search.engine import TuneOptions, tune
from autotune.search.listener import SilentListener
from autotune.search.study import open_study
from autotune.trial import Failure


class Recorder(SilentListener):
    """Writes down what it is told."""

    def __init__(self):
        self.stages, self.began, self.ended, self.outcomes, self.starts = [], [], [], [], []

    def started(self, description, kept, budget_s):
        """Keep it."""
        self.starts.append((description, kept, budget_s))

    def stage(self, text):
        """Keep it."""
        self.stages.append(text)

    def trial_started(self, number, spec, remaining_s):
        """Keep it."""
        self.began.append((number, spec, remaining_s))

    def trial_finished(self, trial, ratio, best, remaining_s):
        """Keep it."""
        self.ended.append((trial, ratio, best, remaining_s))

    def finished(self, outcome):
        """Keep it."""
        self.outcomes.append(outcome)


def test_a_true_gain_is_found_confirmed_and_explained():
    """A world with a gain of 2.8 ends with that verdict, its worth, and a reason for stopping."""
    outcome = run_fake(fake_runner(noise=0.01), 300.0)
    assert outcome.verdict.kind == "faster"
    assert outcome.best.loader.num_workers == 2
    assert outcome.best.compute.channels_last
    truth = steady_rate(outcome.best, "full") / steady_rate(outcome.yours, "full")
    assert outcome.verdict.ratio.low < truth < outcome.verdict.ratio.high
    assert {"num_workers", "channels_last"} <= {w.knob for w in outcome.worth if w.ratio}
    assert outcome.stop_reason
    assert outcome.elapsed_s <= 300.0


def test_a_minute_is_enough():
    """A budget of 60 s holds the search and five pairs of finals, and is kept."""
    runner = fake_runner(noise=0.01)
    outcome = run_fake(runner, 60.0)
    assert outcome.verdict.kind == "faster"
    assert outcome.verdict.pairs >= 4
    assert runner.clock() <= 60.0


def test_nothing_faster_keeps_yours():
    """Where all settings are alike, yours is the answer."""
    outcome = run_fake(fake_runner(lambda settings, mode: 100.0 if mode == "full" else 300.0), 120.0)
    assert outcome.verdict.kind == "kept"
    assert outcome.best == outcome.yours
    assert outcome.worth == ()
    assert not [t for t in outcome.trials if t.spec.stage == "final"]


def test_without_a_loader_only_compute_is_searched():
    """A loop without a DataLoader has no loader trials, no ceilings, and still a result."""
    facts = {"dataset_class": None, "dataset_samples": None, "batch_size": None}
    outcome = run_fake(fake_runner(facts=facts), 120.0)
    assert {t.spec.mode for t in outcome.trials} <= {"full", "compute"}
    assert "ceiling" not in {t.spec.stage for t in outcome.trials}
    assert outcome.best.compute.channels_last


def test_the_listener_hears_everything_in_order():
    """Start, stages, each trial twice, and the outcome that is returned."""
    runner, heard = fake_runner(), Recorder()
    outcome = tune(runner, TuneOptions(budget_s=120.0), heard, clock=runner.clock)
    assert len(heard.starts) == 1
    assert heard.outcomes == [outcome]
    began, ended = [n for n, _, _ in heard.began], [t.number for t, *_ in heard.ended]
    assert began == list(range(len(began)))
    assert [n for n in began if n in ended] == ended
    assert len(began) - len(ended) <= 1  # one that the budget cut short has no end to tell
    assert [t for t, *_ in heard.ended] == list(outcome.trials)
    assert heard.stages[0] == "what you run today"
    assert len(set(heard.stages)) >= 4


def test_the_listener_is_told_ratios_of_full_trials_and_what_leads():
    """Partial trials have no ratio; a new leader is announced as such, and yours never is."""
    runner, heard = fake_runner(), Recorder()
    tune(runner, TuneOptions(budget_s=120.0), heard, clock=runner.clock)
    assert all((ratio is None) == (trial.spec.mode != "full") for trial, ratio, *_ in heard.ended)
    leaders = [trial for trial, _, best, _ in heard.ended if best]
    assert leaders
    assert all(t.settings != outcome_yours(runner) for t in leaders)


def outcome_yours(runner):
    """What the runner's user runs today."""
    return runner.description.yours


def test_trials_cost_what_the_clock_says():
    """Time that the runner did not see, such as ending a process, is on the trial's bill."""
    runner = fake_runner()
    inner = runner.run

    def slow_to_end(spec):
        found = inner(spec)
        runner.clock.advance(2.0)
        return found

    runner.run = slow_to_end
    outcome = run_fake(runner, 200.0)
    assert all(t.measurement.wall_s >= t.measurement.elapsed_s + 1.999 for t in outcome.trials)
    assert runner.clock() <= 200.0 + 2.0


def test_failing_trials_cost_only_themselves():
    """Workers that always crash leave the compute side to be won, and the failures are in the outcome."""

    def fails(settings):
        crashed = Failure(kind="worker_crash", message="a worker died", hint="look at its memory")
        return crashed if settings.loader.num_workers else None

    outcome = run_fake(fake_runner(failures=fails), 200.0)
    assert outcome.verdict.kind == "faster"
    assert outcome.best.loader.num_workers == 0
    assert outcome.best.compute.channels_last
    assert [t for t in outcome.trials if t.failure is not None]


def test_a_hanging_setting_does_not_eat_the_budget():
    """A trial that would take for ever is ended early enough to go on and to answer in time."""

    def hangs(settings, mode):
        stuck = settings.loader.num_workers == 1 and mode != "compute"
        return 1e-3 if stuck else steady_rate(settings, mode)

    runner = fake_runner(hangs)
    outcome = run_fake(runner, 180.0)
    assert any(t.failure is not None and t.failure.kind == "timeout" for t in outcome.trials)
    assert outcome.verdict.kind == "faster"
    assert runner.clock() <= 180.0


def test_a_trial_cut_short_by_the_budget_is_no_failure_of_its_settings():
    """When a final takes so long that the budget ends it, the pairs before it still count."""
    runner = fake_runner()
    inner, finals = runner.run, []

    def run(spec):
        if spec.stage == "final":
            finals.append(spec)
            if len(finals) == 10:
                runner.clock.advance(spec.timeout_s)
                return Failure(kind="timeout", message="too slow", wall_s=spec.timeout_s)
        return inner(spec)

    runner.run = run
    outcome = run_fake(runner, 60.0, allow="exact")
    assert len(finals) == 10
    assert outcome.verdict.kind == "faster"
    assert all(t.failure is None for t in outcome.trials)


def test_fixed_values_are_in_every_candidate():
    """What the user fixed does not move, and the kept list says so."""
    outcome = run_fake(fake_runner(), 120.0, fixed={"num_workers": 1})
    others = [t.settings for t in outcome.trials if t.settings != outcome.yours]
    assert others
    assert all(s.loader.num_workers == 1 for s in others if s != outcome.yours.replace(channels_last=True))
    assert "num_workers" in {k.knob for k in outcome.kept}


def test_a_larger_batch_brings_its_recipe():
    """With `allow="recipe"` a winner with another batch size comes with its learning rate."""

    def rate(settings, mode):
        return (100 if mode == "full" else 300) * (settings.loader.batch_size or 1) ** 0.7

    facts = {"learning_rates": (0.1,)}
    outcome = run_fake(fake_runner(rate, facts=facts), 200.0, allow="recipe")
    assert outcome.best.loader.batch_size > 64
    assert outcome.recipe.batch_size == outcome.best.loader.batch_size
    assert outcome.recipe.reference_batch_size == 64
    assert run_fake(fake_runner(), 120.0).recipe is None


def test_startup_counts_over_the_users_epochs():
    """Workers that take long to start win in a long run and lose in a single short epoch."""
    slow = {"startup_s": lambda settings: 20.0 * bool(settings.loader.num_workers)}
    facts = {"dataset_samples": 2000}
    long = run_fake(fake_runner(facts=facts, **slow), 900.0, epochs=100)
    short = run_fake(fake_runner(facts=facts, **slow), 900.0, epochs=1)
    assert long.best.loader.num_workers > 0
    assert short.best.loader.num_workers == 0


def test_a_resumed_run_goes_on_where_the_first_stopped(tmp_path):
    """The second session measures neither yours nor its ceilings again, runs its own finals, and says so."""
    storage = str(tmp_path / "run.journal")
    first = run_fake(fake_runner(noise=0.01), 60.0, storage=storage)
    runner = fake_runner(noise=0.01, seed=1)
    second = run_fake(runner, 60.0, storage=storage, resume=True)
    stages = [spec.stage for spec in runner.specs]
    assert "yours" not in stages
    assert "ceiling" not in stages
    assert "final" in stages
    earlier = [t for t in first.trials if t.spec.stage not in ("final", "worth")]
    assert list(second.trials[: len(earlier)]) == earlier
    assert len({t.number for t in second.trials}) == len(second.trials)
    assert any("resumed" in note for note in second.notes)
    assert second.study == storage


def test_resume_on_another_machine_is_refused(tmp_path):
    """Rates of a machine with other CPUs are not mixed in; the error says what differs."""
    storage = str(tmp_path / "run.journal")
    run_fake(fake_runner(), 60.0, storage=storage)
    other = fake_runner(facts={"usable_cpus": 2})
    with pytest.raises(StudyError, match="usable_cpus was 4, is 2"):
        run_fake(other, 60.0, storage=storage, resume=True)


def test_resume_without_a_study_is_noted(tmp_path):
    """Starting anew although asked to resume is said."""
    outcome = run_fake(fake_runner(), 60.0, storage=str(tmp_path / "run.journal"), resume=True)
    assert any("started anew" in note for note in outcome.notes)


def test_every_trial_is_in_the_study(tmp_path):
    """One Optuna trial for each trial, in their order, numbered alike."""
    storage = str(tmp_path / "run.journal")
    outcome = run_fake(fake_runner(), 60.0, storage=storage)
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    study = optuna.load_study(study_name="autotune", storage=JournalStorage(JournalFileBackend(storage)))
    assert [t.number for t in study.trials] == [t.number for t in outcome.trials]
    assert [t.user_attrs["stage"] for t in study.trials] == [t.spec.stage for t in outcome.trials]


def test_an_exhausted_sampler_does_not_end_the_search(monkeypatch):
    """When the sampler has nothing new, untried settings are still tried, and finals follow."""
    monkeypatch.setattr("autotune.search.study.StudyStore.draw", lambda *args: None)
    monkeypatch.setattr("autotune.search.plan.predictions", lambda know: ())
    outcome = run_fake(fake_runner(), 300.0)
    assert "not tried yet" in {t.spec.reason for t in outcome.trials}
    assert outcome.verdict.kind == "faster"


def test_notes_say_when_finals_shared_a_process():
    """With slow starts and a short budget the finals are not in processes of their own, and that is told."""
    outcome = run_fake(fake_runner(facts={"setup_s": 8.0}), 90.0)
    assert not any(t.spec.fresh_process for t in outcome.trials)
    assert any("shared" in note for note in outcome.notes)


def test_the_store_is_opened_under_the_name_given(tmp_path):
    """`study_name` names the study."""
    storage = str(tmp_path / "run.journal")
    run_fake(fake_runner(), 60.0, storage=storage, study_name="photos")
    assert open_study(storage, "photos", options=(), identity={}).name == "photos-2"
