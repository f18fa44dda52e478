"""The Optuna study: what is stored, what the sampler sees, what can be resumed."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from search_worlds import space_of

from autotune.errors import StudyError
from autotune.search.study import open_study
from autotune.trial import Block, Failure, Measurement, Trial, TrialSpec

SPACE = space_of(has_conv2d=True, image_input=True)
IDENTITY = {"model": "Net", "usable_cpus": 4, "searched": [o.knob for o in SPACE.options]}


def opened(storage=None, name="run", identity=IDENTITY, **options):
    """A store over the test's space."""
    return open_study(storage, name, options=SPACE.options, identity=identity, **options)


def stored(storage, name="run"):
    """The study as any program with Optuna sees it."""
    backend = storage if "://" in storage else JournalStorage(JournalFileBackend(storage))
    return optuna.load_study(study_name=name, storage=backend)


def put(store, settings, rate=None, *, stage="joint", mode="full", kind="shm", pair=None):
    """Run a trial on paper: at `rate`, or failing without one."""
    spec = TrialSpec(settings=settings, stage=stage, mode=mode, reason="because", pair=pair)
    number = store.start(spec)
    if rate is None:
        trial = Trial(number=number, spec=spec, failure=Failure(kind=kind, message="no"))
    else:
        block = Block(steps=10, samples=10, elapsed_s=10 / rate, wait_s=0.0)
        trial = Trial(number=number, spec=spec, measurement=Measurement(blocks=(block,)))
    store.finish(trial, rate if mode == "full" else None)
    return trial


@pytest.fixture
def path(tmp_path):
    """A journal file that is not there yet, in a folder that is not there either."""
    return str(tmp_path / "studies" / "run.journal")


def test_a_full_trial_is_complete_with_its_rate(path):
    """Value, parameters, constraint and attributes of a trial that measured."""
    trial = put(opened(path), SPACE.settings(num_workers=2), 123.0)
    (found,) = stored(path).trials
    assert (found.state, found.value, found.number) == (TrialState.COMPLETE, 123.0, trial.number)
    assert found.params["num_workers"] == 2
    assert set(found.params) == set(SPACE.names)
    assert found.constraints == {"failed": -1.0}
    wanted = {"stage": "joint", "mode": "full", "status": "ok", "reason": "because"}
    assert wanted.items() <= found.user_attrs.items()
    assert found.user_attrs["samples_per_s"] == pytest.approx(123.0)


def test_a_failed_full_trial_is_complete_and_infeasible(path):
    """A failure is something to learn from: a bad value, a violated constraint, its kind."""
    store = opened(path)
    put(store, SPACE.yours, 50.0, stage="yours")
    put(store, SPACE.settings(num_workers=2))
    failed = stored(path).trials[1]
    assert (failed.state, failed.value) == (TrialState.COMPLETE, 0.0)
    assert failed.constraints == {"failed": 1.0}
    assert failed.user_attrs["status"] == "shm"
    assert stored(path).best_trial.number == 0


@pytest.mark.parametrize("mode", ["loader", "compute"])
def test_a_partial_trial_is_no_result_of_the_objective(path, mode):
    """The rate of one side is kept as an attribute, and the best value is not taken from it."""
    store = opened(path)
    put(store, SPACE.yours, 50.0, stage="yours")
    put(store, SPACE.yours, 5000.0, stage="ceiling", mode=mode)
    partial = stored(path).trials[1]
    assert partial.state == TrialState.FAIL
    assert partial.user_attrs["samples_per_s"] == pytest.approx(5000.0)
    assert partial.user_attrs["status"] == "ok"
    assert stored(path).best_value == 50.0


def test_a_running_trial_is_seen_as_running(path):
    """Who watches the study sees what is being tried."""
    opened(path).start(TrialSpec(settings=SPACE.yours, stage="yours"))
    assert stored(path).trials[0].state == TrialState.RUNNING


def test_an_abandoned_trial_says_why(path):
    """An interrupt leaves no trial that seems to run for ever."""
    store = opened(path)
    store.start(TrialSpec(settings=SPACE.yours, stage="yours"))
    store.abandon("interrupted")
    (found,) = stored(path).trials
    assert (found.state, found.user_attrs["status"]) == (TrialState.FAIL, "interrupted")


def test_knobs_not_in_use_take_a_value_of_their_own(path):
    """The space is flat: without workers the prefetch factor still has one of its values."""
    put(opened(path), SPACE.yours, 50.0)
    assert stored(path).trials[0].params["prefetch_factor"] in SPACE.values("prefetch_factor")


def test_resume_gives_the_trials_back(path):
    """Trials come back equal, without finals and worth, which belong to their own session."""
    first = opened(path)
    kept = [
        put(first, SPACE.yours, 50.0, stage="yours"),
        put(first, SPACE.yours, 90.0, stage="ceiling", mode="loader"),
        put(first, SPACE.settings(num_workers=2)),
    ]
    put(first, SPACE.yours, 51.0, stage="final", pair=0)
    put(first, SPACE.yours, 51.0, stage="worth", pair=0)
    again = opened(path, resume=True)
    assert list(again.history) == kept
    assert again.name == "run"


def test_resume_ends_what_was_running(path):
    """A session that was killed leaves a running trial, which would count as bad for ever."""
    opened(path).start(TrialSpec(settings=SPACE.yours, stage="yours"))
    opened(path, resume=True)
    assert stored(path).trials[0].state == TrialState.FAIL


def test_resume_of_something_else_says_what_differs(path):
    """Measurements of another model are not mixed in."""
    opened(path)
    with pytest.raises(StudyError, match='model was "Net", is "OtherNet"'):
        opened(path, resume=True, identity={**IDENTITY, "model": "OtherNet"})


def test_resume_of_a_foreign_study_is_refused(path):
    """A study of the same name that someone else made is left alone."""
    opened(path)
    optuna.create_study(study_name="theirs", storage=JournalStorage(JournalFileBackend(path)))
    with pytest.raises(StudyError, match="not made by autotune"):
        opened(path, "theirs", resume=True)


def test_resume_without_a_study_starts_anew(path):
    """A job that always resumes also starts the first time."""
    store = opened(path, resume=True)
    assert (store.history, store.name) == ((), "run")


def test_a_taken_name_gets_a_number_and_resume_takes_the_newest(path):
    """Two runs under one name are two studies in one file."""
    opened(path)
    second = opened(path)
    put(second, SPACE.yours, 50.0, stage="yours")
    assert second.name == "run-2"
    assert opened(path, resume=True).name == "run-2"
    assert opened(path).name == "run-3"


def test_a_database_url_is_handed_to_optuna(tmp_path):
    """Any storage that Optuna knows will do."""
    url = f"sqlite:///{tmp_path / 'study.db'}"
    put(opened(url), SPACE.yours, 50.0)
    assert stored(url).best_value == 50.0


@pytest.mark.parametrize("text", ["not a journal\n", '{"a": 1}\n', "\x00\x01\n"])
def test_a_broken_journal_is_one_of_our_errors(tmp_path, text):
    """A damaged file gives an error that names it, not Optuna's own."""
    path = tmp_path / "broken.journal"
    path.write_text(text)
    with pytest.raises(StudyError, match="broken"):
        opened(str(path))


@pytest.mark.parametrize("storage", ["nonsense://x", "sqlite:////no/such/folder/x.db"])
def test_an_unusable_url_is_one_of_our_errors(storage):
    """A URL that Optuna cannot open gives a StudyError."""
    with pytest.raises(StudyError, match="cannot be opened"):
        opened(storage)


def test_a_trial_from_a_newer_version_is_one_of_our_errors(path):
    """A stored trial with fields unknown here cannot be resumed, and that is said."""
    opened(path)
    study = stored(path)
    trial = study.ask()
    trial.set_user_attr("trial", json.dumps({"number": 0, "spec": {}, "novelty": 1}))
    study.tell(trial, 1.0)
    with pytest.raises(StudyError, match="cannot read"):
        opened(path, resume=True)


def draw(store, accept=lambda settings: True):
    """Settings from the sampler."""
    return store.draw(
        lambda values: SPACE.settings(**values), lambda settings: settings if accept(settings) else None
    )


def test_drawn_settings_are_accepted_ones():
    """What is refused is drawn again; None when nothing passes."""
    assert draw(opened(), lambda s: s.loader.num_workers == 2).loader.num_workers == 2
    assert draw(opened(), lambda s: False) is None


def test_what_turns_out_to_train_worse_is_no_longer_aimed_at():
    """Two workers were by far the fastest; once they are out, the sampler looks elsewhere."""
    store = taught()
    assert drawn_counts(store) > 6
    store.unteach(lambda settings: settings.loader.num_workers == 2)
    assert drawn_counts(store) < 6
    put(store, SPACE.settings(num_workers=3), 20.0)
    assert len(store.history) == 0


def test_drawing_leaves_no_trace_in_the_record(path):
    """Proposals that were not run are not in the study."""
    store = opened(path)
    for _ in range(3):
        draw(store)
    assert stored(path).trials == []


def drawn_counts(store, times=12):
    """How many of some draws have two workers."""
    return sum(draw(store).loader.num_workers == 2 for _ in range(times))


def taught(path=None, *, partial=False):
    """A store that saw two workers win, in full or in partial trials."""
    store = opened(path)
    for count in (0, 1, 2, 3, 4, 6, 8) * 2:
        rate = 1000.0 if count == 2 else 10.0
        mode = "loader" if partial else "full"
        put(store, SPACE.settings(num_workers=count), rate, mode=mode, stage="loader" if partial else "joint")
    return store


def test_the_sampler_learns_from_full_trials_only(path):
    """Full trials draw it to what won; partial ones, of another objective, do not."""
    assert drawn_counts(taught()) > drawn_counts(taught(partial=True))


def test_a_resumed_sampler_knows_what_the_first_one_knew(path):
    """The sampler's own study is rebuilt from the record."""
    taught(path)
    assert drawn_counts(opened(path, resume=True)) >= 4


def test_draws_follow_the_seed():
    """The same seed proposes the same."""
    assert [draw(opened(seed=3)) for _ in range(2)] == [draw(opened(seed=3)) for _ in range(2)]


def test_optuna_keeps_the_users_verbosity(path, capfd):
    """Our studies say nothing, and the user's own log level is as it was."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.DEBUG)
    try:
        put(opened(path), SPACE.yours, 50.0)
        assert optuna.logging.get_verbosity() == optuna.logging.DEBUG
    finally:
        optuna.logging.set_verbosity(before)
    assert capfd.readouterr().err == ""


def test_the_engine_loads_optuna_late():
    """Importing the engine or the plan brings in neither optuna nor torch."""
    code = (
        "import sys, autotune.search.engine, autotune.testing;"
        "print([name for name in ('optuna', 'torch') if name in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert run.stdout.strip() == "[]"
