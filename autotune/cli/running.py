"""One run of the tuner as a command has it: the story on stderr, the answer kept for stdout."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autotune import __version__
from autotune.cli.errors import DOUBTFUL, INTERRUPTED, OK
from autotune.cli.streams import noticing_interrupts, stdout_to_stderr, story

if TYPE_CHECKING:
    from autotune.outcome import Outcome
    from autotune.result import Result


@dataclass(frozen=True, slots=True, kw_only=True)
class Talk:
    """How much a command says, and in which colours."""

    quiet: bool = False
    verbose: bool = False
    color: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A run that gave an answer."""

    result: Result
    interrupted: bool
    """Whether Ctrl-C ended it."""


def find(target: str, talk: Talk, **options: Any) -> Finished:
    """Tune what TARGET makes; nothing of it reaches stdout.

    Args:
        target: `file.py:function` or `module:function`.
        talk: how much to say on the way.
        options: for `autotune.api.find_best`.

    Raises:
        AutotuneError: where there is no answer.
    """
    from autotune import api

    with (
        stdout_to_stderr(),
        noticing_interrupts() as interruption,
        story(version=__version__, quiet=talk.quiet, verbose=talk.verbose, color=talk.color) as listener,
    ):
        result = api.find_best(target, listener=listener, **options)
        return Finished(result=result, interrupted=bool(interruption))


def exit_code(finished: Finished, *, strict: bool = False) -> int:
    """0 for an answer; 130 where Ctrl-C cut it short; 4 where `strict` wants a sure one and it is not."""
    if finished.interrupted:
        return INTERRUPTED
    doubtful = finished.result.outcome.verdict.kind in ("unsure", "incomplete")
    return DOUBTFUL if strict and doubtful else OK


def report(outcome: Outcome, stream: Any, *, color: bool, saved: str = "") -> None:
    """Write the report to `stream`, coloured where it is a terminal."""
    from autotune.report.terminal import console_for, print_lines
    from autotune.report.text import lines
    from autotune.report.view import view_of

    print_lines(console_for(stream, color=color), lines(view_of(outcome, version=__version__, saved=saved)))


def as_json(outcome: Outcome, *, saved: str = "") -> str:
    """The run as JSON text."""
    from autotune.report.jsonview import outcome_json

    return json.dumps(outcome_json(outcome, version=__version__, saved=saved), indent=2)
