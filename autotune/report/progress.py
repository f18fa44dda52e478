"""How a run goes, as plain lines: one for each stage and each finished trial. Fit for a log."""

from __future__ import annotations

from collections.abc import Callable

from autotune.measure.seam import Description
from autotune.outcome import Kept, Outcome
from autotune.report.view import device_text
from autotune.report.words import change_text, count_text, failure_text, left_text, value_text
from autotune.settings import Settings
from autotune.trial import Trial, TrialSpec
from autotune.units import format_duration, format_percent, format_rate

_ALONE = {"loader": " (loader alone)", "compute": " (step alone)"}


class LineListener:
    """Writes plain lines; no cursor movement, so that a log stays readable.

    Args:
        write: called with each line, without its newline.
        version: of autotune, for the first line.
        verbose: also says why each trial is run, which settings are kept, and shows tracebacks of trials
            that failed.
    """

    def __init__(self, write: Callable[[str], None], *, version: str = "", verbose: bool = False) -> None:
        self._write = write
        self._version = version
        self._verbose = verbose
        self._yours = Settings()

    def started(self, description: Description, kept: tuple[Kept, ...], budget_s: float) -> None:
        """The first line: what runs where, and for how long."""
        self._yours = description.yours
        facts, machine = description.workload, description.machine
        what = facts.model_class + (f" on {facts.dataset_class}" if facts.dataset_class else "")
        cpus = count_text(machine.usable_cpus, "usable CPU")
        where = f"{device_text(machine, facts.device)}, {cpus}"
        self._write(f"autotune {self._version}".rstrip() + f" · {what} · {where}")
        self._write(f"budget {format_duration(budget_s)}; Ctrl-C stops early and gives the best so far")
        for note in description.notes:
            self._write(f"note: {note}")
        if self._verbose:
            for item in kept:
                self._write(f"kept {item.knob} {value_text(item.knob, item.value)}: {item.why}")

    def stage(self, text: str) -> None:
        """A line of its own for a new part of the work."""
        self._write(f"-- {text}")

    def trial_started(self, number: int, spec: TrialSpec, remaining_s: float) -> None:
        """The reason, where it was asked for."""
        if self._verbose and spec.reason:
            self._write(f"#{number} {spec.reason}")

    def trial_finished(self, trial: Trial, ratio: float | None, best: bool, remaining_s: float) -> None:
        """One line: number, stage, what was changed, what came out, time left."""
        self._write(trial_line(trial, self._yours, ratio, best=best, remaining_s=remaining_s))
        if self._verbose and trial.failure is not None and trial.failure.traceback:
            self._write(trial.failure.traceback.rstrip())

    def finished(self, outcome: Outcome) -> None:
        """The last line; the report says the rest."""
        spent = format_duration(outcome.elapsed_s)
        self._write(f"done in {spent}, {count_text(len(outcome.trials), 'trial')}")


def trial_line(
    trial: Trial, yours: Settings, ratio: float | None, *, best: bool = False, remaining_s: float
) -> str:
    """A finished trial in one line.

    Args:
        trial: what ran and what came of it.
        yours: the settings that the changes are named against.
        ratio: effective rate over *yours*; None where they cannot be compared.
        best: whether nothing before was faster.
        remaining_s: of the budget.
    """
    head = f"{f'#{trial.number}':<4} {trial.spec.stage:<7}  {change_text(trial.settings, yours):<32}"
    if trial.failure is not None:
        result = f"failed: {failure_text(trial.failure.kind)}"
    else:
        assert trial.measurement is not None, "one outcome per trial"
        rate = f"{format_rate(trial.measurement.samples_per_s)} samples/s"
        result = f"{rate:>16}{_ALONE.get(trial.spec.mode, '')}"
        if ratio is not None and trial.settings != yours:
            result += f"  {format_percent(ratio):>7}"
        if trial.measurement.stopped == "gave_up":
            result += "  behind"
        elif best:
            result += "  best"
    return f"{head}  {result}  {left_text(remaining_s)} left"
