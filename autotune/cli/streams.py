"""Who may write where: stdout carries the answer alone, stderr the story."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType

import click

from autotune.errors import EnvironmentFault
from autotune.search.listener import Listener, SilentListener

_BROKEN_PIPE = 128 + 13
"""What a shell shows for a program that SIGPIPE ended."""


def write_answer(text: str) -> None:
    """Write `text` to stdout; ends the program quietly where the reader has gone, as `head` does.

    Raises:
        EnvironmentFault: where it cannot be written, such as to a full disk.
    """
    try:
        click.echo(text, nl=not text.endswith("\n"))
    except OSError as error:
        # Python flushes stdout once more at exit and would complain again.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise SystemExit(_BROKEN_PIPE) from None
        raise EnvironmentFault(
            "the answer cannot be written to stdout",
            why=(error.strerror or str(error)).lower(),
            fix="free some space, or send it elsewhere; `autotune show` shows what `autotune tune` has saved",
        ) from error


def say(text: str) -> None:
    """Write a line of the story to stderr."""
    click.echo(text, err=True)


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Until the block ends, what anything prints goes to stderr: the user's code, and processes started here.

    Child processes know file descriptors alone, so descriptor 1 is moved too where there is one.
    """
    sys.stdout.flush()
    with contextlib.redirect_stdout(sys.stderr):
        try:
            kept = os.dup(1)
        except OSError:
            yield
            return
        try:
            os.dup2(2, 1)
            yield
        finally:
            os.dup2(kept, 1)
            os.close(kept)


class Interruption:
    """Whether Ctrl-C was pressed; true from the first one on."""

    def __init__(self) -> None:
        self.seen = False

    def __bool__(self) -> bool:
        return self.seen


@contextlib.contextmanager
def noticing_interrupts() -> Iterator[Interruption]:
    """Remember Ctrl-C while the block runs. It interrupts as it did before: the tuner ends and answers."""
    interruption = Interruption()
    before = signal.getsignal(signal.SIGINT)

    def handler(number: int, frame: FrameType | None) -> None:
        interruption.seen = True
        if callable(before):
            before(number, frame)

    try:
        if callable(before):  # else Ctrl-C is ignored, as under nohup, and stays so
            signal.signal(signal.SIGINT, handler)
    except ValueError:  # only the main thread may
        yield interruption
        return
    try:
        yield interruption
    finally:
        if callable(before):
            signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def story(*, version: str, quiet: bool, verbose: bool, color: bool) -> Iterator[Listener]:
    """Who tells how the run goes: nobody, a live line on a terminal, or plain lines for a log."""
    if quiet:
        yield SilentListener()
        return
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        from autotune.report.terminal import RichListener, console_for

        with RichListener(console_for(sys.stderr, color=color), version=version, verbose=verbose) as listener:
            yield listener
        return
    from autotune.report.progress import LineListener

    # The stream of now: inside, stdout is redirected to it.
    stream = sys.stderr
    yield LineListener(lambda line: click.echo(line, file=stream), version=version, verbose=verbose)
