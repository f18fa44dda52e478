"""What can go wrong, said so that the reader can act: what, why, fix, code.

    AutotuneError
    |-- UsageError            AT-E01  arguments that cannot go together
    |-- TargetError           AT-E02  a TARGET that does not import or does not return a workload
    |-- EmptyDatasetError     AT-E10  nothing to train on
    |-- DatasetTooSmallError  AT-E11  fewer samples than one batch
    |-- NotPicklableError     AT-E12  model or dataset cannot travel to another process
    |-- DatasetError          AT-E13  the user's dataset raised
    |-- ModelError            AT-E20  nothing to train, or the model raised
    |-- LossError             AT-E21  no loss can be inferred, or it does not fit the batch
    |-- NonFiniteLossError    AT-E22  the loss is NaN or infinite from the start
    |-- BudgetError           AT-E30  not even the baseline fits the budget
    |-- DeviceError           AT-E31  no device, or several and none named
    |-- BaselineError         AT-E32  the user's own settings do not run
    |-- ProfileError          AT-E40  a profile that cannot be read, or is too large to be
    |-- StudyError            AT-E41  a study file that cannot be used or resumed
    `-- EnvironmentFault      AT-E50  the machine refuses: disk, permissions, a missing package

Foreign exceptions are mapped to these where they enter; none of ours leaves as a bare ValueError.
"""

from __future__ import annotations

from typing import ClassVar


class AutotuneError(Exception):
    """Base of every expected failure.

    Args:
        what: the fact, one clause, no full stop.
        why: what was seen that led to it.
        fix: what the user can do about it.
        detail: longer text, such as the user's own traceback; shown last.
    """

    code: ClassVar[str] = "AT-E00"

    def __init__(self, what: str, *, why: str = "", fix: str = "", detail: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.fix = fix
        self.detail = detail

    def __str__(self) -> str:
        return self.render()

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.what, self.why, self.fix, self.detail))

    def render(self) -> str:
        """The error as plain text, a line for each part that has something to say."""
        lines = [f"error[{self.code}]: {self.what}"]
        lines += [
            f"  {name:<5} {_indented(text)}" for name, text in (("why", self.why), ("fix", self.fix)) if text
        ]
        if self.detail:
            lines += ["", self.detail.rstrip()]
        return "\n".join(lines)


def _indented(text: str) -> str:
    return text.rstrip().replace("\n", "\n        ")


def _rebuild(cls: type[AutotuneError], what: str, why: str, fix: str, detail: str) -> AutotuneError:
    return cls(what, why=why, fix=fix, detail=detail)


class UsageError(AutotuneError):
    """Arguments that cannot go together, or a value outside of what is legal."""

    code = "AT-E01"


class TargetError(AutotuneError):
    """A command-line TARGET that does not import, is not there or returns something else."""

    code = "AT-E02"


class EmptyDatasetError(AutotuneError):
    """The dataset holds no sample."""

    code = "AT-E10"


class DatasetTooSmallError(AutotuneError):
    """The dataset holds fewer samples than one batch."""

    code = "AT-E11"


class NotPicklableError(AutotuneError):
    """Model or dataset cannot be sent to another process."""

    code = "AT-E12"


class DatasetError(AutotuneError):
    """The user's dataset raised; `detail` is its own traceback."""

    code = "AT-E13"


class ModelError(AutotuneError):
    """The model has nothing to train, or raised on the user's own batch."""

    code = "AT-E20"


class LossError(AutotuneError):
    """No loss can be inferred, or the loss given does not fit the batch."""

    code = "AT-E21"


class NonFiniteLossError(AutotuneError):
    """The loss is NaN or infinite before any setting was changed."""

    code = "AT-E22"


class BudgetError(AutotuneError):
    """The budget does not hold the baseline and one comparison."""

    code = "AT-E30"


class DeviceError(AutotuneError):
    """The device named does not exist, or there are several and none is named."""

    code = "AT-E31"


class BaselineError(AutotuneError):
    """The user's own settings do not run, so there is nothing to compare with."""

    code = "AT-E32"


class ProfileError(AutotuneError):
    """A profile that cannot be read, or is too large to be; of a file `detail` points at line and column."""

    code = "AT-E40"


class StudyError(AutotuneError):
    """A study that cannot be opened, or that belongs to another workload."""

    code = "AT-E41"


class EnvironmentFault(AutotuneError):
    """The machine refuses: a full disk, no permission, a package that is not installed."""

    code = "AT-E50"


class AutotuneWarning(UserWarning):
    """Something the user should know that does not stop the work."""


class ProfileMismatchWarning(AutotuneWarning):
    """A profile is applied where machine, versions or workload differ from where it was measured."""
