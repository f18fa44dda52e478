"""Problems in a text, shown where they are: file, line, column, the line itself and a caret."""

from __future__ import annotations

import re
from dataclasses import dataclass

from autotune.errors import ProfileError

_BREAK = re.compile("\r\n|[\n\r]")  # what YAML 1.2 counts as the end of a line
_SHOWN_COLUMNS = 100
_SHOWN_FINDINGS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A stretch of one line. Line and column count from 0."""

    line: int
    column: int
    width: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing wrong, and where."""

    place: Place
    message: str
    hint: str = ""


def place_of(text: str, index: int) -> Place:
    """The place of the character at `index`."""
    ends = [match.end() for match in _BREAK.finditer(text[:index])]
    return Place(line=len(ends), column=index - (ends[-1] if ends else 0))


def error_at(findings: list[Finding], text: str, source: str) -> ProfileError:
    """One error that shows all findings, from the top of the text to its end."""
    ordered = sorted(findings, key=lambda finding: (finding.place.line, finding.place.column))
    lines = _BREAK.split(text)
    if len(ordered) == 1:
        return ProfileError(_printable(ordered[0].message), detail=_excerpt(ordered[0], lines, source))
    blocks = [
        f"{_printable(finding.message)}\n{_excerpt(finding, lines, source)}"
        for finding in ordered[:_SHOWN_FINDINGS]
    ]
    if len(ordered) > _SHOWN_FINDINGS:
        blocks.append(f"and {len(ordered) - _SHOWN_FINDINGS} more")
    return ProfileError(f"{len(ordered)} problems in {_printable(source)}", detail="\n\n".join(blocks))


def _excerpt(finding: Finding, lines: list[str], source: str) -> str:
    place = finding.place
    line = lines[place.line] if place.line < len(lines) else ""
    start = max(0, place.column - _SHOWN_COLUMNS // 2) if len(line) > _SHOWN_COLUMNS else 0
    shown = line[start : start + _SHOWN_COLUMNS]
    column = place.column - start
    width = max(1, min(place.width, len(shown) - column))
    number = str(place.line + 1)
    margin = " " * len(number)
    rows = [
        f"{margin}--> {_printable(source)}:{place.line + 1}:{place.column + 1}",
        f"{number} | {_printable(shown)}".rstrip(),
        f"{margin} | {' ' * column}{'^' * width}",
    ]
    if finding.hint:
        rows.append(f"{margin} = help: {_printable(finding.hint)}")
    return "\n".join(rows)


def _printable(text: str) -> str:
    """A text from a stranger's file, made harmless for a terminal; no character changes its column."""
    return "".join(c if c.isprintable() else " " if c == "\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
