"""The bench process leaves the user's code its alarms, and a trial hears only its own last words."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
import workloads as w
from torch import nn

from autotune.measure import bench, fork_server
from autotune.measure.launcher import BenchProcess, ForkLauncher, SpawnLauncher
from autotune.measure.payload import pickle_workload, target_payload
from autotune.measure.process_runner import ProcessRunner
from autotune.trial import Measurement, TrialSpec
from autotune.workload import Workload


class Alarmed:
    """A step that sets an alarm of its own each time, with a handler that it installed once."""

    def __init__(self) -> None:
        self.installed = False

    def __call__(self, model: nn.Module, batch: Any) -> torch.Tensor:
        if not self.installed:
            signal.signal(signal.SIGALRM, lambda number, frame: None)
            self.installed = True
        signal.setitimer(signal.ITIMER_REAL, 0.001)
        return nn.functional.cross_entropy(model(batch[0]), batch[1])


def test_alarms_of_the_users_code_end_nothing() -> None:
    """A step that works with SIGALRM is measured like any other."""
    workload = Workload(w.Net(), w.Rows(), batch_size=16, step=Alarmed())
    with ProcessRunner(pickle_workload(workload)) as runner:
        yours = runner.describe().yours
        for _ in range(2):
            found = runner.run(TrialSpec(settings=yours, stage="yours", window_s=0.2))
            assert isinstance(found, Measurement)


def test_a_process_nobody_ends_ends_itself() -> None:
    """At its deadline the process is gone, though it holds the interpreter and hears no signal."""
    context = torch.multiprocessing.get_context("spawn")
    process = context.Process(target=_hangs)
    process.start()
    process.join(60)
    assert process.exitcode not in (None, 0)


def _hangs() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.valid_signals()))
    with bench._ended_after(0.2):
        time.sleep(600)


def test_a_process_that_leads_no_group_yet_is_ended_too() -> None:
    """Between its fork and its own group no signal to the group reaches it; the closed connection does."""
    ours, theirs = socket.socketpair()
    listens = "import socket, sys; socket.socket(fileno=int(sys.argv[1])).recv(1)"
    child = subprocess.Popen(
        [sys.executable, "-c", listens, str(theirs.fileno())], pass_fds=[theirs.fileno()]
    )
    theirs.close()
    try:
        process = BenchProcess(Connection(ours.detach()), child.pid, lambda: child.wait(timeout=20))
        assert process.kill() == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        child.wait()


class _Ended(BaseException):
    """In place of the end of the process."""


class _FullDisk:
    """A stream that cannot be written out."""

    def flush(self) -> None:
        raise OSError("No space left on device")


def test_a_forked_process_ends_and_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither an exception nor output that cannot be written lets it go on as the server that forked it."""

    def broken(connection: Any, held: Any) -> None:
        connection.close()
        raise ValueError("the working directory is gone")

    def ended(status: int) -> None:
        raise _Ended(status)

    monkeypatch.setattr(os, "fork", lambda: 0)
    monkeypatch.setattr(os, "setsid", lambda: None)
    monkeypatch.setattr(os, "_exit", ended)
    monkeypatch.setattr(bench, "serve", broken)
    monkeypatch.setattr(sys, "stdout", _FullDisk())
    mine, other = socket.socketpair()
    server, descriptor = Connection(mine.detach()), other.detach()
    with pytest.raises(_Ended) as raised:
        fork_server._fork(server, descriptor, [])
    monkeypatch.undo()
    assert raised.value.args == (1,)
    assert "ValueError: the working directory is gone" in capsys.readouterr().err


def test_last_words_are_those_of_this_trial(tmp_path: Path) -> None:
    """What an earlier trial wrote is not shown as the reason why a later one ended."""
    log = tmp_path / "bench.log"
    launcher = ForkLauncher(pickle_workload(Workload(w.Net(), w.Rows())), log)
    launcher.mark_log()
    log.write_text("No space left on device: /dev/shm\n")
    assert "No space left" in launcher.log_tail()
    launcher.mark_log()
    with log.open("a") as file:
        file.write("Segmentation fault\n")
    assert launcher.log_tail() == "Segmentation fault\n"
    launcher.close()


@pytest.mark.skipif(os.name != "posix", reason="an open file has to keep its name there")
def test_the_log_of_a_run_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where the process is ended with a signal, and cleans nothing up."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    launcher = ForkLauncher(pickle_workload(Workload(w.Net(), w.Rows())))
    assert list(tmp_path.iterdir()) == []
    subprocess.run([sys.executable, "-c", "print('first')"], stdout=launcher._log.file, check=True)
    launcher.mark_log()
    subprocess.run([sys.executable, "-c", "print('second')"], stdout=launcher._log.file, check=True)
    assert launcher.log_tail() == "second\n"
    launcher.close()


def test_what_it_takes_to_make_the_workload_counts_as_setting_up(tmp_path: Path) -> None:
    """A factory that works for a second costs every fresh process that second, and the plan must know."""
    (tmp_path / "laborious.py").write_text(
        "import time\nimport workloads as w\ndef make():\n    time.sleep(1.0)\n    return w.make()\n"
    )
    with ProcessRunner(target_payload(f"{tmp_path / 'laborious.py'}:make")) as runner:
        assert runner.describe().workload.setup_s >= 1.0


def test_the_users_code_sees_no_arguments(tmp_path: Path) -> None:
    """A factory that parses its command line, all with defaults, runs as in a script without any."""
    (tmp_path / "parses.py").write_text(
        "import argparse\nimport workloads as w\n"
        "def make():\n    argparse.ArgumentParser().parse_args()\n    return w.make()\n"
    )
    with ProcessRunner(target_payload(f"{tmp_path / 'parses.py'}:make")) as runner:
        assert runner.describe().name == "rows"


@pytest.mark.parametrize("launcher", [ForkLauncher, SpawnLauncher])
def test_a_dataset_in_memory_counts_once(launcher: Any) -> None:
    """What it was sent as is let go once it is unpacked."""
    held: list[int] = []
    for mib in (0, 192):
        dataset = w.Rows()
        dataset.ballast = torch.ones(mib << 18)
        payload = pickle_workload(Workload(w.Net(), dataset, optimizer=w.sgd, batch_size=16))
        with ProcessRunner(payload, launcher(payload)) as runner:
            found = runner.run(TrialSpec(settings=runner.describe().yours, stage="yours", window_s=0.1))
            assert isinstance(found, Measurement)
            assert found.peak_host_bytes is not None
            held.append(found.peak_host_bytes)
    assert 0.8 * (192 << 20) < held[1] - held[0] < 1.3 * (192 << 20)
