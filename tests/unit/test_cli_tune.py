"""`autotune tune` and `autotune demo`: what goes where, and how they end."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import report_samples as samples
from click.testing import CliRunner
from click.testing import Result as Ran

import autotune.api
from autotune.cli.main import cli
from autotune.errors import BudgetError, EnvironmentFault
from autotune.outcome import Outcome
from autotune.profile import yaml_io
from autotune.profile.schema import profile_of
from autotune.profile.yaml_io import loads
from autotune.result import Result

Call = dict[str, Any]


class Tuner:
    """Stands for `find_best`: gives an outcome, remembers what it was asked."""

    def __init__(self) -> None:
        self.outcome: Outcome = samples.won()
        self.asked: Call = {}
        self.during: Callable[[], None] = lambda: None

    def __call__(self, target: str, **options: Any) -> Result:
        self.asked = {"target": target, **options}
        self.during()
        options["listener"].stage("the baseline")
        profile = profile_of(self.outcome, created="2026-11-23T10:00:00+00:00", version="0.1.0")
        return Result(profile, self.outcome, None)


@pytest.fixture
def tuner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Tuner:
    """A fake tuner, a script `unit_train.py` to tune, and an own home for files."""
    fake = Tuner()
    monkeypatch.setattr(autotune.api, "find_best", fake)
    monkeypatch.setenv("AUTOTUNE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "unit_train", raising=False)
    (tmp_path / "unit_train.py").write_text("def make():\n    return (object(), [1, 2])\n")
    fake.during = lambda: print("hello from the script")
    return fake


def tune(*arguments: str) -> Ran:
    """Run `autotune tune unit_train.py:make` with these arguments."""
    return CliRunner().invoke(cli, ["tune", "unit_train.py:make", *arguments])


def test_stdout_is_the_profile_and_stderr_the_story(tuner: Tuner) -> None:
    """`autotune tune ... > autotune.yaml` gives a file that loads, whatever the user's code prints."""
    ran = tune()
    assert ran.exit_code == 0
    assert loads(ran.stdout).settings == samples.WINNER
    assert "hello from the script" in ran.stderr
    assert "-- the baseline" in ran.stderr
    assert "1.92x yours" in ran.stderr


def test_options_reach_the_tuner(tuner: Tuner) -> None:
    """Each option changes what is asked for."""
    tune(
        *("--budget", "90s", "--allow", "exact", "--epochs", "3", "--seed", "7", "--runner", "in-process"),
        *("--objective", "time", "--max-batch-size", "512", "--warm", "500"),
        *("--set", "num_workers=4", "--set", "pin_memory=on", "--set", "cpu_threads=none", "--resume"),
        *("--no-warm-start", "--keep-effective", "64", "--decay", "wsd"),
        *("--set", "precision=bfloat16", "--device", "cpu", "--batch-size", "8", "--storage", "s.journal"),
    )
    tuner.asked.pop("listener")
    assert tuner.asked == {
        "target": "unit_train.py:make",
        "device": "cpu",
        "batch_size": 8,
        "budget": 90.0,
        "allow": "exact",
        "objective": "time",
        "max_batch_size": 512,
        "warm": 500,
        "keep_effective": 64,
        "decay": "wsd",
        "epochs": 3,
        "seed": 7,
        "runner": "in_process",
        "fixed": {"num_workers": 4, "pin_memory": True, "cpu_threads": None, "precision": "bfloat16"},
        "resume": True,
        "warm_start": False,
        "storage": "s.journal",
    }


def test_the_step_of_yours_can_be_kept_by_name(tuner: Tuner) -> None:
    """Without counting its samples; and nothing is kept unless it is asked for."""
    tune("--keep-effective", "yours")
    assert tuner.asked["keep_effective"] is True
    tune()
    assert (tuner.asked["keep_effective"], tuner.asked["decay"]) == (False, None)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--budget", "soon"), "is not a duration"),
        (("--set", "num_worker=4"), "did you mean 'num_workers'?"),
        (("--set", "num_workers"), "is not KNOB=VALUE"),
        (("--set", "num_workers=many"), "expected a whole number"),
        (("--set", "precision=bfloat"), "did you mean `bfloat16`?"),
        (("--allow", "all"), "'all' is not one of"),
        (("--epochs", "0"), "0 is not in the range"),
        (("--seed", "-1"), "-1 is not in the range"),
        (("--seed", str(2**32)), "4294967296 is not in the range"),
        (("--decay", "linear"), "'linear' is not one of"),
        (("--keep-effective", "mine"), "'mine' is neither 'yours' nor a number of samples"),
        (("--keep-effective", "0"), "'0' is neither 'yours' nor a number of samples"),
        (("--bugdet", "5m"), "--budget"),
        (("--quiet", "--verbose"), "cannot go together"),
    ],
)
def test_wrong_options_are_usage_errors(tuner: Tuner, arguments: tuple[str, ...], told: str) -> None:
    """Exit code 2, a hint, and nothing is run."""
    ran = tune(*arguments)
    assert ran.exit_code == 2
    assert told in ran.stderr
    assert tuner.asked == {}


def test_json_is_the_whole_run(tuner: Tuner) -> None:
    """With `--json` stdout is one JSON document with the trials in it."""
    data = json.loads(tune("--json").stdout)
    assert data["verdict"]["kind"] == "faster"
    assert len(data["trials"]) == 14
    assert Path(data["saved"]).is_file()


def test_the_profile_is_saved_and_show_finds_it(tuner: Tuner, tmp_path: Path) -> None:
    """What was tuned last is what `show` shows."""
    assert str(tmp_path / "home") in tune().stderr
    shown = CliRunner().invoke(cli, ["show"])
    assert shown.exit_code == 0
    assert "1.92x yours" in shown.stdout


def test_output_takes_the_place_of_stdout(tuner: Tuner, tmp_path: Path) -> None:
    """`--output` writes that file and no other, and leaves stdout empty."""
    ran = tune("--output", "mine.yaml")
    assert ran.stdout == ""
    assert loads((tmp_path / "mine.yaml").read_text()).name == "photos"
    assert not (tmp_path / "home").exists()


def test_an_output_that_cannot_be_written_is_told_before_the_work(tuner: Tuner) -> None:
    """Five minutes of tuning must not end in a missing folder."""
    ran = tune("--output", "no/such/folder.yaml")
    assert ran.exit_code == 1
    assert "its folder does not exist" in ran.stderr
    assert tuner.asked == {}


def test_a_home_that_cannot_be_written_does_not_cost_the_answer(
    tuner: Tuner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The profile is on stdout in any case; the loss of the copy is said."""

    def refuse(self: Result, path: object = None) -> Path:
        raise EnvironmentFault("it cannot be written", why="read-only file system")

    monkeypatch.setattr(Result, "save", refuse)
    ran = tune()
    assert ran.exit_code == 0
    assert loads(ran.stdout).settings == samples.WINNER
    assert "warning: the profile was not saved" in ran.stderr


def test_a_profile_that_is_too_large_to_save_does_not_cost_the_answer(
    tuner: Tuner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It goes to stdout, and no file is left that nothing can read."""
    monkeypatch.setattr(yaml_io, "MAX_VALUES", 10)
    ran = tune("--output", "mine.yaml")
    assert ran.exit_code == 1
    assert loads(ran.stdout).settings == samples.WINNER
    assert "warning: the profile was not saved: the profile is too large" in ran.stderr
    assert not (tmp_path / "mine.yaml").exists()


def test_an_output_that_is_lost_on_the_way_does_not_cost_the_answer(tuner: Tuner, tmp_path: Path) -> None:
    """What was found in minutes goes to stdout then, and the exit code says that the file is not there."""
    (tmp_path / "out").mkdir()

    def replace_folder() -> None:
        (tmp_path / "out").rmdir()
        (tmp_path / "out").write_text("a file")

    tuner.during = replace_folder
    ran = tune("--output", "out/mine.yaml")
    assert ran.exit_code == 1
    assert loads(ran.stdout).settings == samples.WINNER
    assert "warning: the profile was not saved" in ran.stderr


def test_a_run_that_was_cut_short_replaces_no_saved_profile(tuner: Tuner) -> None:
    """Ctrl-C in a second run must not cost what the first one confirmed."""
    tune()
    tuner.outcome = samples.interrupted()
    ran = tune()
    assert loads(ran.stdout).measured.verdict == "incomplete"
    assert "the run is not complete" in ran.stderr
    assert "1.92x yours" in CliRunner().invoke(cli, ["show"]).stdout


def test_quiet_says_nothing_but_the_answer(tuner: Tuner) -> None:
    """No progress, no report."""
    ran = tune("--quiet")
    assert loads(ran.stdout)
    assert ran.stderr == "hello from the script\n"


@pytest.mark.parametrize(
    ("outcome", "arguments", "code"),
    [
        (samples.won, ("--strict",), 0),
        (samples.kept, (), 0),
        (samples.kept, ("--strict",), 0),
        (samples.unsure, (), 0),
        (samples.unsure, ("--strict",), 4),
        (samples.interrupted, ("--strict",), 4),
    ],
)
def test_exit_codes_of_answers(
    tuner: Tuner, outcome: Callable[[], Outcome], arguments: tuple[str, ...], code: int
) -> None:
    """Any answer is a success; with `--strict` only a sure one. The answer is printed all the same."""
    tuner.outcome = outcome()
    ran = tune(*arguments)
    assert ran.exit_code == code
    assert loads(ran.stdout).settings == tuner.outcome.best


def test_ctrl_c_ends_with_130_and_the_best_so_far(tuner: Tuner) -> None:
    """The tuner turns the interrupt into an answer; the exit code tells that it was cut short."""

    def interrupt() -> None:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)

    tuner.outcome, tuner.during = samples.interrupted(), interrupt
    before = signal.getsignal(signal.SIGINT)
    ran = tune()
    assert ran.exit_code == 130
    assert loads(ran.stdout).measured.verdict == "incomplete"
    assert "not confirmed" in ran.stderr
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_without_an_answer_is_130_too(tuner: Tuner) -> None:
    """Interrupted during the import or the baseline there is nothing to print."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    tuner.during = interrupt
    ran = tune("--json")
    assert ran.exit_code == 130
    assert json.loads(ran.stdout)["error"]["code"] == "interrupted"


def test_an_expected_error_has_its_parts_on_stderr(tuner: Tuner) -> None:
    """What, why and fix; exit code 1; stdout stays empty."""

    def fail() -> None:
        raise BudgetError("the budget is too short", why="one trial takes 9 s", fix="give at least 60s")

    tuner.during = fail
    ran = tune()
    assert ran.exit_code == 1
    assert ran.stdout == ""
    assert "error[AT-E30]: the budget is too short" in ran.stderr
    assert "  fix   give at least 60s" in ran.stderr
    assert json.loads(tune("--json").stdout) == {
        "error": {
            "code": "AT-E30",
            "what": "the budget is too short",
            "why": "one trial takes 9 s",
            "fix": "give at least 60s",
        }
    }


def test_a_bug_of_ours_is_70_with_the_traceback_in_a_file(tuner: Tuner, tmp_path: Path) -> None:
    """A short message, and a file to report with."""

    def fail() -> None:
        raise ZeroDivisionError("ours")

    tuner.during = fail
    ran = tune()
    assert ran.exit_code == 70
    assert "Traceback" not in ran.stderr
    (crash,) = (tmp_path / "home" / "crashes").iterdir()
    assert str(crash) in ran.stderr
    assert "ZeroDivisionError: ours" in crash.read_text()


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_demo_refuses_a_seed_that_no_generator_takes(tuner: Tuner, seed: int) -> None:
    """As `tune` does, before anything runs."""
    ran = CliRunner().invoke(cli, ["demo", "--seed", str(seed)])
    assert ran.exit_code == 2
    assert f"{seed} is not in the range" in ran.stderr
    assert tuner.asked == {}


def test_demo_shows_the_report_and_saves_nothing(tuner: Tuner, tmp_path: Path) -> None:
    """The table is the demo's answer; a demo's profile must not become the one that `show` shows."""
    ran = CliRunner().invoke(cli, ["demo", "--seed", "5"])
    assert ran.exit_code == 0
    assert "1.92x yours" in ran.stdout
    assert (tuner.asked["budget"], tuner.asked["seed"]) == (90.0, 5)
    assert not (tmp_path / "home").exists()
    assert json.loads(CliRunner().invoke(cli, ["demo", "--json"]).stdout)["name"] == "photos"
