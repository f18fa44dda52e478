"""Progress: plain lines for logs, a live line on a terminal."""

from __future__ import annotations

import io

import report_samples as samples
from rich.console import Console

from autotune.measure.seam import Description
from autotune.outcome import Kept
from autotune.report.progress import LineListener, trial_line
from autotune.report.terminal import RichListener, console_for, print_lines
from autotune.report.text import Line, lines
from autotune.report.view import view_of
from autotune.search.listener import Listener
from autotune.trial import TrialSpec

DESCRIPTION = Description(
    machine=samples.MACHINE, workload=samples.WORKLOAD, yours=samples.YOURS, notes=("the GPU is busy",)
)


def play(listener: Listener) -> None:
    """A short run, told to `listener`."""
    listener.started(DESCRIPTION, (Kept(knob="channels_last", value=False, why="no conv"),), 300.0)
    listener.stage("the first guess")
    spec = TrialSpec(settings=samples.WINNER, stage="joint", reason="what an expert would try")
    listener.trial_started(7, spec, 192.0)
    listener.trial_finished(samples.trial(7, samples.WINNER, samples.measured(638)), 1.55, True, 190.0)
    failed = samples.failing().trials[6]
    listener.trial_finished(failed, None, False, 100.0)
    listener.finished(samples.won())


def test_a_finished_trial_is_one_line() -> None:
    """Number, stage, change, rate, gain, best, time left."""
    trial = samples.trial(7, samples.YOURS.replace(num_workers=2, pin_memory=True), samples.measured(638))
    line = trial_line(trial, samples.YOURS, 1.55, best=True, remaining_s=192)
    assert line.split() == [
        "#7",
        "joint",
        "num_workers",
        "0->2,",
        "pin_memory",
        "on",
        "638",
        "samples/s",
        "+55",
        "%",
        "best",
        "03:12",
        "left",
    ]


def test_a_failed_trial_says_how() -> None:
    """The kind in words, and no rate."""
    line = trial_line(samples.failing().trials[4], samples.YOURS, None, remaining_s=5)
    assert "failed: out of device memory" in line
    assert "samples/s" not in line


def test_a_part_trial_says_that_it_ran_alone() -> None:
    """The loader's own rate must not be read as a training rate."""
    line = trial_line(samples.SEARCH[1], samples.YOURS, None, remaining_s=5)
    assert "420 samples/s (loader alone)" in line


def test_yours_is_not_compared_with_itself_and_losers_are_marked() -> None:
    """No `+0.0 %` for *yours*; a trial given up early says so."""
    assert "%" not in trial_line(samples.SEARCH[0], samples.YOURS, 1.0, remaining_s=5)
    behind = samples.trial(8, samples.WINNER, samples.measured(100, stopped="gave_up"))
    assert "behind" in trial_line(behind, samples.YOURS, 0.4, remaining_s=5)


def test_lines_fit_a_log() -> None:
    """No carriage return, no escape, one event a line."""
    written: list[str] = []
    play(LineListener(written.append, version="0.1.0"))
    assert written[0] == "autotune 0.1.0 · ResNet on ImageFolder · NVIDIA RTX 4090 24.0 GiB, 16 usable CPUs"
    assert "note: the GPU is busy" in written
    assert "-- the first guess" in written
    assert sum(line.startswith("#") for line in written) == 2
    assert written[-1] == "done in 8m41s, 14 trials"
    assert not any(sign in line for line in written for sign in ("\r", "\n", "\x1b"))


def test_verbose_adds_reasons_kept_settings_and_tracebacks() -> None:
    """What is left out of the plain story."""
    plain: list[str] = []
    full: list[str] = []
    play(LineListener(plain.append))
    play(LineListener(full.append, verbose=True))
    extra = "\n".join(line for line in full if line not in plain)
    assert "kept channels_last off: no conv" in extra
    assert "#7 what an expert would try" in extra
    assert "RuntimeError: bad jpeg" in extra


def test_the_live_line_stands_under_the_same_lines() -> None:
    """On a terminal nothing that a log has is missing."""
    written: list[str] = []
    play(LineListener(written.append, version="0.1.0"))
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=200, color_system=None)
    with RichListener(console, version="0.1.0") as listener:
        play(listener)
    shown = stream.getvalue()
    assert all(line in shown for line in written)


def test_the_live_line_is_gone_after_an_error() -> None:
    """An exception leaves the terminal as it was: cursor shown again."""
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100)
    try:
        with RichListener(console):
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert stream.getvalue().rfind("\x1b[?25h") > stream.getvalue().rfind("\x1b[?25l")


def test_colour_moves_no_word() -> None:
    """The report on a terminal is the plain text with styles around it."""
    stream = io.StringIO()
    laid_out = lines(view_of(samples.won(), version="0.1.0", saved=f"/{'x' * 120}"))
    print_lines(console_for(stream, color=False), laid_out)
    assert stream.getvalue() == "".join(f"{line.text}\n" for line in laid_out)


def test_brackets_in_text_are_not_markup() -> None:
    """A user's message in square brackets arrives as it is."""
    stream = io.StringIO()
    print_lines(console_for(stream), (Line(text="[bold]x[/bold] :smile:"),))
    assert stream.getvalue() == "[bold]x[/bold] :smile:\n"
