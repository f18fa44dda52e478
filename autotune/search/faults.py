"""What went wrong, for the user: the error for a failure of *yours*, and what disturbed trials. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from autotune.errors import (
    AutotuneError,
    BaselineError,
    BudgetError,
    DatasetError,
    NonFiniteLossError,
    NotPicklableError,
)
from autotune.trial import Failure, Trial
from autotune.units import format_duration

_DISTURBANCES = {
    "busy_machine": "other processes used the CPUs",
    "throttled": "the GPU slowed itself down",
    "alloc_retry": "device memory ran short",
    "recompiled": "the model was compiled again, for another shape",
}


def baseline_error(failure: Failure) -> AutotuneError:
    """The error for a failure of the user's own settings."""
    why, fix, detail = failure.message, failure.hint, failure.traceback
    if failure.kind in ("user_error", "worker_crash") and failure.sample_index is not None:
        what = f"the dataset fails at index {failure.sample_index}"
        return DatasetError(what, why=why, fix=fix or "mend or leave out that sample", detail=detail)
    if failure.kind == "non_finite":
        what = "the loss is not finite with your own settings"
        return NonFiniteLossError(
            what, why=why, fix=fix or "lower the learning rate or check the data", detail=detail
        )
    if failure.kind == "pickle":
        what = "the model or the dataset cannot be sent to another process"
        fix = fix or "define them at the top level of a module, or run in this process"
        return NotPicklableError(what, why=why, fix=fix, detail=detail)
    fix = fix or "make your own training loop run first; autotune compares with it"
    return BaselineError("your own settings do not run", why=why, fix=fix, detail=detail)


def short_budget(budget_s: float, needed_s: float, baseline_s: float, elapsed_s: float) -> BudgetError:
    """The error for a budget that does not hold the baseline and one comparison."""
    start, run = format_duration(max(elapsed_s - baseline_s, 0.0)), format_duration(baseline_s)
    return BudgetError(
        f"a budget of {format_duration(budget_s)} is too short",
        why=f"the start took {start} and one run of your own settings {run}, and a comparison takes several",
        fix=f"give at least {format_duration(needed_s)}",
    )


def used_up(budget_s: float, elapsed_s: float) -> BudgetError:
    """The error for a budget that was over before anything could be measured."""
    return BudgetError(
        f"a budget of {format_duration(budget_s)} is too short",
        why=f"starting a process and looking at model and data took {format_duration(elapsed_s)}",
        fix=f"give at least {format_duration(4 * elapsed_s)}",
    )


def unmeasured(budget_s: float, given_s: float) -> BudgetError:
    """The error for a budget in which *yours* did not come to an end, so that no need can be computed."""
    return BudgetError(
        f"a budget of {format_duration(budget_s)} is too short",
        why=f"your own settings were not measured in the {format_duration(given_s)} that were left for them",
        fix=f"give at least {format_duration(10 * budget_s)}, or check that your loop does not hang",
    )


def disturbances(trials: Sequence[Trial]) -> list[str]:
    """What disturbed these trials, in words, the most frequent first."""
    found = [t.measurement for t in trials if t.measurement is not None]
    marks = Counter(mark for measured in found for block in measured.blocks for mark in block.marks)
    return [_DISTURBANCES[mark] for mark, _ in marks.most_common() if mark in _DISTURBANCES]
