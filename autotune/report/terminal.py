"""Reports and progress with colour on a terminal. The only file that imports rich."""

from __future__ import annotations

from types import TracebackType
from typing import IO

from rich.console import Console
from rich.status import Status
from rich.text import Text

from autotune.measure.seam import Description
from autotune.outcome import Kept, Outcome
from autotune.report.progress import LineListener
from autotune.report.text import Line, Role
from autotune.report.words import change_text, left_text
from autotune.settings import Settings
from autotune.trial import Trial, TrialSpec
from autotune.units import format_percent

_STYLES: dict[Role, str] = {
    "plain": "",
    "muted": "dim",
    "good": "bold green",
    "doubtful": "bold yellow",
    "warning": "yellow",
}


def console_for(stream: IO[str], *, color: bool = True) -> Console:
    """A console on `stream`. Colour follows NO_COLOR, FORCE_COLOR and whether it is a terminal.

    Args:
        stream: where it writes.
        color: False leaves colour out whatever the environment says.
    """
    return Console(file=stream, no_color=None if color else True, highlight=False, markup=False, emoji=False)


def print_lines(console: Console, lines: tuple[Line, ...]) -> None:
    """Write the report as it was laid out: rich adds colour and moves no word."""
    for line in lines:
        console.print(Text(line.text, style=_STYLES[line.role]), soft_wrap=True)


class RichListener:
    """The lines of `LineListener`, and under them one live line: what runs now, the best so far, time left.

    Use it as a context manager: the live line is gone when the block ends, however it ends.

    Args:
        console: where to write, a terminal.
        version: of autotune, for the first line.
        verbose: as for `LineListener`.
    """

    def __init__(self, console: Console, *, version: str = "", verbose: bool = False) -> None:
        self._console = console
        self._lines = LineListener(self._line, version=version, verbose=verbose)
        self._status = Status("looking at model and data", console=console)
        self._yours = Settings()
        self._best = ""

    def __enter__(self) -> RichListener:
        self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._status.stop()

    def started(self, description: Description, kept: tuple[Kept, ...], budget_s: float) -> None:
        """The first lines."""
        self._yours = description.yours
        self._lines.started(description, kept, budget_s)

    def stage(self, text: str) -> None:
        """A line, and the live line."""
        self._lines.stage(text)
        self._show(text)

    def trial_started(self, number: int, spec: TrialSpec, remaining_s: float) -> None:
        """The live line says what runs."""
        self._lines.trial_started(number, spec, remaining_s)
        what = change_text(spec.settings, self._yours)
        self._show(f"#{number} {spec.stage}  {what}{self._best}  {left_text(remaining_s)} left")

    def trial_finished(self, trial: Trial, ratio: float | None, best: bool, remaining_s: float) -> None:
        """A line; the live line keeps the best so far."""
        if best and ratio is not None:
            self._best = f"  best {format_percent(ratio)}"
        self._lines.trial_finished(trial, ratio, best, remaining_s)

    def finished(self, outcome: Outcome) -> None:
        """The last line."""
        self._lines.finished(outcome)
        self._status.stop()

    def _line(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)

    def _show(self, text: str) -> None:
        self._status.update(Text(text, overflow="ellipsis", no_wrap=True))
