"""The command in a process of its own: file descriptors and signals as a shell sees them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

AUTOTUNE = [sys.executable, "-c", "from autotune.cli.main import run; run()"]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The variables of the tests, with an own home for files."""
    return {**os.environ, "AUTOTUNE_HOME": str(tmp_path / "home")}


@pytest.mark.parametrize("runner", ["process", "in-process"])
def test_nothing_that_the_users_code_writes_reaches_stdout(
    tmp_path: Path, environment: dict[str, str], runner: str
) -> None:
    """Neither `print`, nor the bare descriptor, nor a child process: with --json stdout is one document.

    In the command's own process it goes to stderr; a bench process keeps it to itself.
    """
    (tmp_path / "noisy.py").write_text(
        "import os, subprocess, sys\n"
        "print('printed')\n"
        "def make():\n"
        "    os.write(1, b'written\\n')\n"
        "    subprocess.run([sys.executable, '-c', \"print('from a child')\"], check=True)\n"
        "    raise ValueError('no data')\n"
    )
    ran = subprocess.run(
        [*AUTOTUNE, "tune", "noisy.py:make", "--json", "--runner", runner],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1
    assert json.loads(ran.stdout)["error"]["why"] == "no data"
    told = runner == "in-process"
    assert [text in ran.stderr for text in ("printed", "written", "from a child")] == [told] * 3


def test_ctrl_c_before_there_is_anything_ends_without_a_traceback(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    """Exit code 130 and one plain sentence."""
    (tmp_path / "slow.py").write_text(
        "import time\ndef make():\n    open('ready', 'w').close()\n    time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [*AUTOTUNE, "tune", "slow.py:make", "--quiet"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, told = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "interrupted before there was an answer" in told
    assert "Traceback" not in told


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_a_full_disk_under_stdout_is_no_bug_of_ours(
    environment: dict[str, str], tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    """It is said like any other error, without a traceback and without a crash report."""
    profile = Path(__file__).parents[1] / "profiles" / "v1.yaml"
    with open("/dev/full", "w") as full:
        ran = subprocess.run(
            [*AUTOTUNE, "show", str(profile), *arguments],
            env=environment,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert ran.returncode == 1
    assert "error[AT-E50]: the answer cannot be written to stdout" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert not (tmp_path / "home").exists()
