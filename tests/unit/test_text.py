"""Reports and errors as text: golden files, read them as documents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import report_samples as samples

from autotune.errors import TargetError
from autotune.outcome import Outcome
from autotune.profile.schema import profile_of
from autotune.report.errors import error_json, error_text
from autotune.report.text import lines, render
from autotune.report.view import View, view_of, view_of_profile

SCREENS: dict[str, Callable[[], Outcome]] = {
    "win": samples.won,
    "kept": samples.kept,
    "unsure": samples.unsure,
    "incomplete": samples.interrupted,
    "no_loader": samples.without_loader,
    "failures": samples.failing,
}


@pytest.mark.parametrize("name", SCREENS)
def test_screens(name: str, golden: Callable[[str, str], None]) -> None:
    """Each ending of a run has a screen of its own, in 80 columns without colour."""
    text = render(view_of(SCREENS[name](), version="0.1.0", saved="~/photos.yaml"))
    golden(f"report_{name}.txt", text)
    assert max(map(len, text.splitlines())) <= 80


def test_saved_profile_screen(golden: Callable[[str, str], None]) -> None:
    """`show` prints the same table from the file."""
    profile = profile_of(samples.won(), created="2026-11-23T10:00:00+00:00", version="0.1.0")
    golden("report_saved.txt", render(view_of_profile(profile)))


def test_commands_are_never_wrapped() -> None:
    """What is to be copied stays on one line, however long the path."""
    path = f"/data/{'long/' * 30}photos.yaml"
    text = render(view_of(samples.won(), saved=path))
    assert f"autotune show {path}" in text


def test_long_prose_is_wrapped() -> None:
    """A note of many words keeps to the width and stays in its column."""
    text = render(view_of(replace(samples.won(), notes=("word " * 60,))))
    noted = [line for line in text.splitlines() if "word" in line]
    assert len(noted) > 3
    assert max(map(len, noted)) <= 80


def test_an_empty_view_has_no_empty_blocks() -> None:
    """Parts with nothing to say leave no gap."""
    assert render(View(head=("autotune",), headline="Nothing.", good=True)) == "autotune\n\nNothing."


def test_roles_tell_good_from_doubtful() -> None:
    """A terminal colours by role: only a sure answer is good."""
    assert "good" in {line.role for line in lines(view_of(samples.won()))}
    assert "good" not in {line.role for line in lines(view_of(samples.unsure()))}


def test_error_text_wraps_its_parts_and_leaves_the_traceback() -> None:
    """What, why and fix keep to 80 columns; a traceback must stay as it was printed."""
    error = TargetError("what " * 20, why="why " * 30, fix="fix it", detail=f"Traceback\n  {'x' * 100}")
    text = error_text(error)
    head, _, detail = text.partition("\n\n")
    assert head.startswith("error[AT-E02]: what")
    assert max(map(len, head.splitlines())) <= 80
    assert "  fix   fix it" in head
    assert detail.endswith("x" * 100)


def test_error_json_has_the_four_parts() -> None:
    """Programs always find code, what, why and fix; detail only where there is one."""
    assert error_json("AT-E02", "w", fix="f") == {
        "error": {"code": "AT-E02", "what": "w", "why": "", "fix": "f"}
    }
    assert error_json("AT-E02", "w", detail="d")["error"] == {
        "code": "AT-E02",
        "what": "w",
        "why": "",
        "fix": "",
        "detail": "d",
    }
