"""Runs trials in a bench process, and puts a fresh one in its place when a trial took it down."""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from autotune.errors import AutotuneError, BaselineError, EnvironmentFault
from autotune.measure import limits
from autotune.measure.bench import failure_of_crash
from autotune.measure.classify import classify_exit, stacks_at_deadline
from autotune.measure.launcher import BenchProcess, Launcher, default_launcher
from autotune.measure.payload import Payload
from autotune.measure.seam import Description, GradientSpec, NumericsSpec, PilotSpec
from autotune.recipe.guard import NumericsRecord
from autotune.recipe.noise_scale import GradientStats
from autotune.recipe.pilot import PilotRecord
from autotune.settings import Settings
from autotune.space.rules import needs_own_process
from autotune.trial import Failure, FailureKind, Measurement, TrialSpec

_DESCRIBE_S = (60.0, 600.0)
"""A description may take the budget, but this much at least: what is slow the first time, such as an import
from a disk, says little of the run. And this much at most."""
_LAST_WORDS_S = 1.0
"""How long a process that is out of time may take to say where it hangs."""
_TAINTED: frozenset[FailureKind] = frozenset(
    {"oom_device", "oom_host", "shm", "file_descriptors", "worker_crash", "sticky_cuda", "compile_error"}
)
"""After these the process may be short of memory or hold a dead device context: a fresh one takes over."""


class ProcessRunner:
    """The Runner of ordinary runs. The user's process never runs a step.

    Args:
        payload: the workload on its way to the bench process.
        launcher: how processes start; by default the quickest way that is safe here.
        log: where bench processes write; a temporary file without it.
        budget_s: wall seconds for the whole run, of which the description is a part.
    """

    def __init__(
        self,
        payload: Payload,
        launcher: Launcher | None = None,
        log: Path | None = None,
        *,
        budget_s: float = math.inf,
    ) -> None:
        least, most = _DESCRIBE_S
        self._describe_s = min(most, max(budget_s, least))
        self._launcher = launcher or default_launcher(payload, log)
        self._bench: BenchProcess | None = None
        self._used = False
        self._last_step: Settings | None = None
        """Of the process as it is."""
        self._keeps_memory = False
        """Whether any trial, of the loader alone too, has told its allocator to keep what is freed."""
        self._description: Description | None = None

    def describe(self) -> Description:
        """The machine, the workload and *yours*.

        Raises:
            AutotuneError: where the workload cannot be run at all.
        """
        if self._description is None:
            kind, value = self._ask("describe", self._describe_s, self._describe_s)
            if kind == "error":
                raise value
            if kind != "ok":
                raise self._baseline_error(value if isinstance(value, Failure) else failure_of_crash(value))
            assert isinstance(value, Description), "describe answers with a Description"
            self._description = value
            self._last_step = value.yours  # which were just run
        return self._description

    def _baseline_error(self, failure: Failure) -> BaselineError:
        detail = failure.traceback or self._launcher.log_tail()
        if failure.kind == "timeout":
            return BaselineError(
                "your own settings did not run in time",
                why="making the workload, reading one batch and two or three steps had not ended after"
                f" {self._describe_s:.0f} s",
                fix=f"{failure.hint}; where it is only slow, raise the budget: that much is waited, up to"
                f" {_DESCRIBE_S[1]:.0f} s",
                detail=detail,
            )
        return BaselineError(
            "your own settings do not run",
            why=failure.message,
            fix=failure.hint or 'see it happen in your own process: runner="in_process"',
            detail=detail,
        )

    def _leave_unlike(self, settings: Settings, *, steps: bool = True) -> None:
        """Leave a process in which earlier trials would show in this one."""
        before, keeps = self._last_step, settings.compute.keep_host_memory
        if (self._keeps_memory and not keeps) or (
            steps and before is not None and needs_own_process(before, settings)
        ):
            self._drop()

    def run(self, spec: TrialSpec) -> Measurement | Failure:
        """Run `spec` in the bench process; only this trial is lost when it takes the process down."""
        if spec.fresh_process and self._used:
            self._drop()
        self._leave_unlike(spec.settings, steps=spec.mode != "loader")
        started = time.monotonic()
        kind, value = self._ask("run", spec, spec.timeout_s)
        self._used = True
        if spec.mode != "loader":
            self._last_step = spec.settings
        outcome = self._outcome(kind, value, started)
        assert isinstance(outcome, (Measurement, Failure)), "a trial has one of two outcomes"
        return outcome

    def probe_gradients(self, spec: GradientSpec) -> GradientStats | Failure:
        """Sums of the workload's gradients, taken in the bench process."""
        self._leave_unlike(spec.settings)
        started = time.monotonic()
        kind, value = self._ask("gradients", spec, spec.timeout_s)
        self._used, self._last_step = True, spec.settings
        outcome = self._outcome(kind, value, started)
        assert isinstance(outcome, (GradientStats, Failure)), "gradients are seen, or there is a reason"
        return outcome

    def compare_numerics(self, spec: NumericsSpec) -> NumericsRecord | Failure:
        """The same steps under both settings, in the bench process."""
        self._leave_unlike(spec.settings)
        started = time.monotonic()
        kind, value = self._ask("numerics", spec, spec.timeout_s)
        self._used, self._last_step = True, spec.settings
        if needs_own_process(spec.reference, spec.settings):
            self._drop()  # it has run both ways, and would show neither
        outcome = self._outcome(kind, value, started)
        assert isinstance(outcome, (NumericsRecord, Failure)), "steps are compared, or there is a reason"
        return outcome

    def pilot(self, spec: PilotSpec) -> PilotRecord | Failure:
        """Both batch sizes trained for a while, in the bench process."""
        self._leave_unlike(spec.settings)
        started = time.monotonic()
        kind, value = self._ask("pilot", spec, spec.timeout_s)
        self._used, self._last_step = True, spec.settings
        outcome = self._outcome(kind, value, started)
        assert isinstance(outcome, (PilotRecord, Failure)), "both are trained, or there is a reason"
        return outcome

    def _outcome(self, kind: str, value: Any, started: float) -> Any:
        """What a reply comes to; the process goes where it may have been damaged."""
        if kind == "error":
            assert isinstance(value, AutotuneError), "errors are ours"
            return Failure(kind="user_error", message=value.what, hint=value.fix, traceback=value.detail)
        outcome = failure_of_crash(value) if kind == "crash" else value
        if isinstance(outcome, Failure):
            if outcome.kind in _TAINTED or kind == "crash":
                self._drop()
            return replace(outcome, wall_s=time.monotonic() - started)
        return outcome

    def _ask(self, request: str, argument: Any, timeout_s: float) -> tuple[str, Any]:
        kills = limits.oom_kills()
        asked = math.inf
        try:
            if self._bench is None:
                self._bench = self._launcher.launch()
                self._used, self._last_step, self._keeps_memory = False, None, False
            bench = self._bench
            self._launcher.mark_log()  # what earlier trials wrote explains nothing of this one
            asked = time.monotonic()
            bench.connection.send((request, argument))
            if request != "describe" and argument.settings.compute.keep_host_memory:
                self._keeps_memory = True
            if not bench.connection.poll(timeout_s):
                return "lost", self._timed_out(timeout_s)
            kind, value = bench.connection.recv()
            return kind, value
        except EnvironmentFault as fault:
            if self._description is None:
                raise
            # One was started before, so another may be; what was measured so far must not be lost.
            return "lost", _not_started(fault)
        except (EOFError, OSError):
            if time.monotonic() - asked >= timeout_s:  # it ended itself at the deadline
                return "lost", self._timed_out(timeout_s)
            return "lost", self._died(kills)
        except BaseException:
            # Ctrl-C and the like: the trial under way must not go on behind the user's back.
            self._drop()
            raise

    def _timed_out(self, timeout_s: float) -> Failure:
        if self._bench is not None:
            with contextlib.suppress(OSError):
                self._bench.connection.poll(_LAST_WORDS_S)  # until it has ended itself
        stacks = stacks_at_deadline(self._launcher.log_tail())
        self._drop()
        return Failure(
            kind="timeout",
            message=f"no end after {timeout_s:.0f} s",
            hint="a loader or a step that hangs: look for locks held while workers are forked",
            traceback=stacks,
        )

    def _died(self, kills_before: int) -> Failure:
        bench, self._bench = self._bench, None
        if bench is None:
            return Failure(kind="process_crash", message="no bench process could be started")
        status = bench.wait()
        killed = limits.oom_kills() > kills_before
        return classify_exit(status, oom_killed=killed, stderr_tail=self._launcher.log_tail())

    def _drop(self) -> None:
        bench, self._bench = self._bench, None
        if bench is not None:
            bench.kill()

    def close(self) -> None:
        """End every process that was started."""
        self._drop()
        self._launcher.close()

    def __enter__(self) -> ProcessRunner:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _not_started(fault: EnvironmentFault) -> Failure:
    return Failure(
        kind="process_crash",
        message=f"{fault.what}: {fault.why}",
        hint="free what the machine has run out of: memory, processes or open files",
        traceback=fault.detail,
    )
