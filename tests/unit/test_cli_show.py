"""`autotune show`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import report_samples as samples
from click.testing import CliRunner
from click.testing import Result as Ran

from autotune.cli.main import cli
from autotune.profile.schema import Profile, profile_of
from autotune.profile.store import default_profile_path, save_text
from autotune.profile.yaml_io import dumps


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory and an own home for files."""
    monkeypatch.setenv("AUTOTUNE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def profile(name: str) -> Profile:
    """A profile called `name`."""
    return profile_of(samples.won(name=name), created="2026-11-23T10:00:00+00:00", version="0.1.0")


def show(*arguments: str) -> Ran:
    """Run `autotune show`."""
    return CliRunner().invoke(cli, ["show", *arguments])


def test_a_file_is_shown_as_the_table(home: Path, golden) -> None:  # type: ignore[no-untyped-def]
    """The same screen as after tuning, from the file alone, as plain text."""
    (home / "a.yaml").write_text(dumps(profile("photos")))
    ran = show("a.yaml")
    assert ran.exit_code == 0
    golden("report_saved.txt", ran.stdout.rstrip("\n"))


def test_json_is_the_profile(home: Path) -> None:
    """Every value of the file, for programs."""
    (home / "a.yaml").write_text(dumps(profile("photos")))
    data = json.loads(show("a.yaml", "--json").stdout)
    assert data["schema"] == 1
    assert data["settings"]["loader"]["num_workers"] == 8


def test_the_local_file_comes_before_the_saved_ones(home: Path) -> None:
    """A project's own autotune.yaml is what one means in its folder."""
    save_text(default_profile_path("saved"), dumps(profile("saved")))
    assert " · saved · " in show().stdout
    (home / "autotune.yaml").write_text(dumps(profile("local")))
    assert " · local · " in show().stdout


def test_nothing_to_show_is_an_error_with_a_way_out(home: Path) -> None:
    """The first thing that a new user might type."""
    ran = show()
    assert ran.exit_code == 1
    assert "autotune tune" in ran.stderr


def test_a_broken_file_is_shown_with_its_line(home: Path) -> None:
    """A typing mistake in a profile is pointed at."""
    text = dumps(profile("photos")).replace("num_workers:", "num_worker:", 1)
    (home / "a.yaml").write_text(text)
    ran = show("a.yaml", "--json")
    assert ran.exit_code == 1
    assert "a.yaml:" in ran.stderr
    assert json.loads(ran.stdout)["error"]["code"] == "AT-E40"
