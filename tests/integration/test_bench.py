"""The bench process leaves the user's code its alarms, and a trial hears only its own last words."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import torch
import workloads as w
from torch import nn

from autotune.measure import bench
from autotune.measure.launcher import ForkLauncher
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


def test_what_it_takes_to_make_the_workload_counts_as_setting_up(tmp_path: Path) -> None:
    """A factory that works for a second costs every fresh process that second, and the plan must know."""
    (tmp_path / "laborious.py").write_text(
        "import time\nimport workloads as w\ndef make():\n    time.sleep(1.0)\n    return w.make()\n"
    )
    with ProcessRunner(target_payload(f"{tmp_path / 'laborious.py'}:make")) as runner:
        assert runner.describe().workload.setup_s >= 1.0
