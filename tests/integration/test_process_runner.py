"""Trials in a bench process: what one trial breaks, the next one does not feel."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
import torch
import workloads as w

import autotune
from autotune.errors import AutotuneError, BaselineError, EnvironmentFault
from autotune.measure import process_runner
from autotune.measure.launcher import ForkLauncher, SpawnLauncher
from autotune.measure.payload import Payload, pickle_workload, target_payload
from autotune.measure.process_runner import ProcessRunner
from autotune.settings import Settings
from autotune.trial import Failure, Measurement, TrialSpec
from autotune.workload import Workload


def runner_for(dataset: object) -> ProcessRunner:
    return ProcessRunner(
        pickle_workload(Workload(w.Net(), dataset, optimizer=w.sgd, batch_size=16, shuffle=False))
    )


def spec(settings: Settings, **changes: object) -> TrialSpec:
    quick = TrialSpec(settings=settings, stage="joint", window_s=0.1, timeout_s=60)
    return replace(quick, **changes)  # type: ignore[arg-type]


def with_workers(settings: Settings, count: int) -> Settings:
    return settings.replace(
        num_workers=count, prefetch_factor=2 if count else None, persistent_workers=count > 0
    )


@pytest.fixture
def plain() -> Iterator[ProcessRunner]:
    with runner_for(w.Rows()) as runner:
        yield runner


def test_a_full_trial_measures_steps_waits_and_starts(plain: ProcessRunner) -> None:
    """Blocks hold whole steps and their samples; waits are part of the time; a loss was computed."""
    outcome = plain.run(spec(with_workers(plain.describe().yours, 2)))
    assert isinstance(outcome, Measurement)
    assert outcome.samples == outcome.steps * 16
    assert all(block.steps % 2 == 0 for block in outcome.blocks)
    assert 0 < outcome.wait_share < 1
    assert outcome.startup_s > 0
    assert outcome.restart_s >= 0
    assert outcome.last_loss is not None
    assert outcome.peak_host_bytes is not None
    on_cpu = plain.describe().workload.device == "cpu"
    assert (outcome.peak_device_bytes is None) == on_cpu


@pytest.mark.parametrize(
    ("how", "kind"), [("kill", "worker_crash"), ("segfault", "worker_crash"), ("hang", "timeout")]
)
def test_a_trial_that_dies_or_hangs_loses_only_itself(how: str, kind: str) -> None:
    """SIGKILL, a segmentation fault or a hang in a worker is one Failure; the next trial measures."""
    with runner_for(w.Misbehaves(how)) as runner:
        yours = runner.describe().yours
        bad = runner.run(spec(with_workers(yours, 2), timeout_s=8 if how == "hang" else 60))
        assert isinstance(bad, Failure)
        # A SIGKILL may have been the kernel's, for memory: both names are right.
        assert bad.kind in ({kind, "oom_host"} if how == "kill" else {kind}), bad.traceback
        assert bad.message
        assert bad.hint
        if how == "hang":
            assert "_try_get_data" in bad.traceback, "it says where it waited"
        assert isinstance(runner.run(spec(with_workers(yours, 1))), Measurement)


def test_a_process_that_ended_itself_at_its_deadline_was_out_of_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever wakes late on a busy machine finds the process gone, and it is a timeout all the same."""

    def step(model: torch.nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        if torch.get_num_threads() == 3:
            time.sleep(600)
        return model(batch[0]).square().mean()

    payload = pickle_workload(Workload(w.Net(), w.Rows(), step=step, batch_size=16))
    with ProcessRunner(payload) as runner:
        yours = runner.describe().yours
        assert runner._bench is not None
        real = runner._bench.connection.poll

        def late(timeout: float) -> bool:
            time.sleep(timeout + 1.5)
            return bool(real(0))

        monkeypatch.setattr(runner._bench.connection, "poll", late, raising=False)
        bad = runner.run(spec(yours.replace(cpu_threads=3), timeout_s=3))
    assert isinstance(bad, Failure)
    assert bad.kind == "timeout"
    assert "in step" in bad.traceback


def test_a_crash_of_the_bench_process_itself_loses_only_that_trial(plain: ProcessRunner) -> None:
    """A process that is gone costs the trial that notices it, and a fresh one takes over."""
    yours = plain.describe().yours
    assert plain._bench is not None
    psutil.Process(plain._bench.pid).kill()
    bad = plain.run(spec(yours))
    assert isinstance(bad, Failure)
    assert bad.kind in ("process_crash", "oom_host")
    assert isinstance(plain.run(spec(yours)), Measurement)


def test_a_sample_that_raises_in_a_worker_is_named_with_its_own_traceback() -> None:
    """The dataset's traceback and the index reach the Failure."""
    with runner_for(w.RaisesAt(200)) as runner:
        outcome = runner.run(spec(with_workers(runner.describe().yours, 2), window_s=3.0))
    assert isinstance(outcome, Failure)
    assert (outcome.kind, outcome.sample_index) == ("user_error", 200)
    assert "sample 200 is broken" in outcome.traceback


def test_a_fresh_process_is_another_process(plain: ProcessRunner) -> None:
    """`fresh_process` replaces a bench process that has run a trial, and only then."""
    yours = plain.describe().yours
    plain.run(spec(yours))
    assert plain._bench is not None
    first = plain._bench.pid
    plain.run(spec(yours))
    assert plain._bench.pid == first
    plain.run(spec(yours, fresh_process=True))
    assert plain._bench.pid != first


def test_nothing_is_left_running_after_close() -> None:
    """Every process that the runner started has ended, workers of a hanging trial included."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    runner = runner_for(w.Misbehaves("hang"))
    runner.run(spec(with_workers(runner.describe().yours, 2), timeout_s=5))
    runner.run(spec(with_workers(runner.describe().yours, 1)))
    runner.close()
    runner.close()
    deadline = time.monotonic() + 10
    left = {1}
    while left and time.monotonic() < deadline:
        left = {child.pid for child in psutil.Process().children(recursive=True)} - before
        time.sleep(0.1)
    assert left == set()


def test_an_interrupt_ends_the_trial_under_way(plain: ProcessRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while a trial runs reaches the caller, and the bench process is gone."""
    yours = plain.describe().yours
    assert plain._bench is not None
    pid = plain._bench.pid

    def interrupted(timeout: float) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(plain._bench.connection, "poll", interrupted, raising=False)
    with pytest.raises(KeyboardInterrupt):
        plain.run(spec(yours))
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_spawned_bench_process_answers_like_a_forked_one() -> None:
    """The launcher of other systems works here too."""
    payload = pickle_workload(Workload(w.Net(), w.Rows(), optimizer=w.sgd, batch_size=16))
    with ProcessRunner(payload, SpawnLauncher(payload)) as runner:
        assert runner.describe().workload.model_class == "Net"
        assert isinstance(runner.run(spec(runner.describe().yours)), Measurement)


@pytest.mark.parametrize("launcher", [ForkLauncher, SpawnLauncher])
def test_a_users_own_autotune_module_is_none_of_ours(
    launcher: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies in the current directory under that name is not what a bench process runs."""
    (tmp_path / "autotune.py").write_text("raise RuntimeError('a script of the user')")
    payload = pickle_workload(Workload(w.Net(), w.Rows(), optimizer=w.sgd, batch_size=16))
    monkeypatch.chdir(tmp_path)
    with ProcessRunner(payload, launcher(payload)) as runner:
        assert isinstance(runner.run(spec(runner.describe().yours)), Measurement)


BESIDE = """
import dataclasses, os, sys
site = sys.argv[1]
sys.path.insert(0, site)
import autotune
sys.path.remove(site)
sys.path.append(site)
from autotune.measure.launcher import ForkLauncher, SpawnLauncher
from autotune.measure.payload import target_payload
from autotune.measure.process_runner import ProcessRunner
assert autotune.__file__.startswith(site), autotune.__file__
sent = target_payload(f"{site}/factory.py:make")
with ProcessRunner(sent, globals()[sys.argv[2]](sent)) as runner:
    print(runner.describe().name)
"""


@pytest.mark.parametrize("launcher", ["ForkLauncher", "SpawnLauncher"])
def test_what_is_installed_beside_this_package_comes_after_the_standard_library(
    launcher: str, tmp_path: Path
) -> None:
    """A stray backport there harms no bench, and no process that the user's code starts hears of it."""
    shutil.copytree(Path(autotune.__file__).parent, tmp_path / "autotune")
    shutil.copy(w.__file__, tmp_path / "workloads.py")
    (tmp_path / "dataclasses.py").write_text("raise ImportError('a backport for Python 3.6')")
    (tmp_path / "factory.py").write_text(
        "import os, sys, autotune, workloads\n"
        "def make():\n"
        "    assert 'PYTHONPATH' not in os.environ\n"
        "    return workloads.make().with_(name=os.path.dirname(os.path.dirname(autotune.__file__)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", BESIDE, str(tmp_path), launcher],
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == str(tmp_path), done.stderr


def test_a_target_is_brought_up_in_the_bench_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """`file.py:factory` runs its factory there, with the fields set on the command line."""
    monkeypatch.setenv("AUTOTUNE_TEST_PARENT", str(os.getpid()))
    with ProcessRunner(target_payload(f"{w.__file__}:make", batch_size=8)) as runner:
        description = runner.describe()
    assert description.workload.batch_samples == 8
    assert description.workload.optimizer_class == "SGD"


def test_a_step_or_dataset_defined_in_the_users_script_travels() -> None:
    """Lambdas and local functions go over by value."""
    step = lambda model, batch: model(batch[0]).square().mean()  # noqa: E731
    with ProcessRunner(pickle_workload(Workload(w.Net(), w.Rows(), step=step, batch_size=16))) as runner:
        assert runner.describe().workload.loss.startswith("step")
        assert isinstance(runner.run(spec(runner.describe().yours)), Measurement)


def test_workers_started_by_forkserver_get_a_dataset_from_the_users_script() -> None:
    """Where workers are not forked, what was pickled by value must travel once more."""
    script = (
        "import multiprocessing\n"
        "multiprocessing.set_start_method('forkserver')\n"
        "import torch, workloads as w\n"
        "class Mine(w.Rows):\n    pass\n"
        "from autotune.measure.payload import pickle_workload\n"
        "from autotune.measure.process_runner import ProcessRunner\n"
        "from autotune.trial import Measurement, TrialSpec\n"
        "from autotune.workload import Workload\n"
        "with ProcessRunner(pickle_workload(Workload(w.Net(), Mine(), batch_size=16))) as r:\n"
        "    s = r.describe().yours.replace(num_workers=1, prefetch_factor=2)\n"
        "    o = r.run(TrialSpec(settings=s, stage='joint', window_s=0.1, timeout_s=100))\n"
        "    assert isinstance(o, Measurement), o\n"
    )
    path = os.pathsep.join(filter(None, [os.path.dirname(w.__file__), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_what_cannot_be_pickled_is_named() -> None:
    """A lock in the dataset is an error that names the dataset and says what to do."""
    dataset = w.Rows()
    dataset.lock = threading.Lock()  # type: ignore[attr-defined]
    with pytest.raises(AutotuneError) as raised:
        pickle_workload(Workload(w.Net(), dataset))
    assert raised.value.code == "AT-E12"
    assert "dataset" in raised.value.what
    assert "in_process" in raised.value.fix


def test_a_process_that_cannot_be_started_costs_one_trial(
    plain: ProcessRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once one has run, no memory for another is a failed trial with its reason, and not the end."""
    yours = plain.describe().yours
    assert isinstance(plain.run(spec(yours)), Measurement)

    def refuse() -> None:
        raise EnvironmentFault("no bench process could be started", why="Cannot allocate memory")

    with monkeypatch.context() as patched:
        patched.setattr(plain._launcher, "launch", refuse)
        found = plain.run(spec(yours, fresh_process=True))
    assert isinstance(found, Failure)
    assert found.kind == "process_crash"
    assert "Cannot allocate memory" in found.message
    assert isinstance(plain.run(spec(yours)), Measurement)


def test_a_first_process_that_cannot_be_started_is_an_error(
    plain: ProcessRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is known yet, so there is nothing to save: the user is told at once."""

    def refuse() -> None:
        raise EnvironmentFault("no bench process could be started")

    monkeypatch.setattr(plain._launcher, "launch", refuse)
    with pytest.raises(EnvironmentFault):
        plain.describe()


def test_a_workload_that_hangs_is_waited_for_as_long_as_the_budget_lasts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the error says how long, and where it hung, also in the function that makes it."""
    (tmp_path / "hangs.py").write_text(
        "import time\ndef wait_for_a_server():\n    time.sleep(600)\ndef make():\n    wait_for_a_server()\n"
    )
    monkeypatch.setattr(process_runner, "_DESCRIBE_S", (3.0, 600.0))
    started = time.monotonic()
    with (
        ProcessRunner(target_payload(f"{tmp_path / 'hangs.py'}:make"), budget_s=1.0) as runner,
        pytest.raises(BaselineError, match="in time") as raised,
    ):
        runner.describe()
    assert "3 s" in raised.value.why
    assert "wait_for_a_server" in raised.value.detail
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(("budget_s", "waited_s"), [(5.0, 60.0), (90.0, 90.0), (3600.0, 600.0)])
def test_a_description_may_take_the_budget(budget_s: float, waited_s: float) -> None:
    """A minute in any case, and ten at most."""
    assert ProcessRunner(Payload(blob=b""), cast(Any, object()), budget_s=budget_s)._describe_s == waited_s
