"""The command as a whole: quick to start, plain about mistakes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from autotune import __version__
from autotune.cli.main import cli

PROFILE = Path(__file__).parents[1] / "profiles" / "v1.yaml"


@pytest.mark.parametrize(
    "code",
    [
        "import autotune",
        "run('--help')",
        "run('--version')",
        "run('show', '--help')",
        "run('tune', '--help')",
        f"run('show', {str(PROFILE)!r})",
        f"run('show', {str(PROFILE)!r}, '--json')",
        "run('tune', 'missing.py:make')",
    ],
)
def test_torch_and_optuna_are_not_imported_where_they_are_not_used(code: str) -> None:
    """They cost seconds: help, a saved profile and a typing mistake must not wait for them."""
    script = f"""
import sys
def run(*arguments):
    from autotune.cli.main import cli
    try:
        cli(list(arguments))
    except SystemExit:
        pass
{code}
loaded = {{"torch", "optuna"}} & set(sys.modules)
sys.exit(f"loaded {{loaded}}" if loaded else 0)
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr.count("loaded {")) == (0, 0), ran.stderr


def test_the_console_script_runs() -> None:
    """The entry point that an installation makes."""
    script = "from autotune.cli.main import run; run()"
    ran = subprocess.run(
        [sys.executable, "-c", script, "--version"], capture_output=True, text=True, check=True
    )
    assert ran.stdout == f"autotune, version {__version__}\n"


def test_a_reader_that_goes_away_ends_it_quietly() -> None:
    """`autotune show | head` leaves no traceback behind."""
    script = "from autotune.cli.main import run; run()"
    reading, writing = os.pipe()
    os.close(reading)
    ran = subprocess.run(
        [sys.executable, "-c", script, "show", str(PROFILE)],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writing)
    assert (ran.returncode, ran.stderr) == (141, "")


def test_a_command_that_is_nearly_right_gets_a_suggestion() -> None:
    """Exit code 2 and the name that was meant."""
    ran = CliRunner().invoke(cli, ["shwo"])
    assert ran.exit_code == 2
    assert "Did you mean 'show'?" in ran.stderr


def test_usage_errors_are_json_where_json_was_asked_for() -> None:
    """A program that reads stdout finds the reason there."""
    ran = CliRunner().invoke(cli, ["show", "--json", "--frob"])
    assert ran.exit_code == 2
    assert json.loads(ran.stdout)["error"]["code"] == "usage"


def test_help_names_every_command_in_80_columns() -> None:
    """Help is a screen too."""
    text = CliRunner().invoke(cli, ["--help"]).stdout
    assert all(f"\n  {name} " in text for name in ("tune", "show", "env", "demo"))
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("name", ["tune", "show", "demo"])
def test_each_command_has_the_help_that_the_list_promises(name: str) -> None:
    """The list of commands is written without importing them, so it is held to them here."""
    ran = CliRunner().invoke(cli, [name, "--help"])
    assert ran.exit_code == 0
    assert ran.stdout.startswith(f"Usage: cli {name}")
