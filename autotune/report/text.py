"""A report as plain text in 80 columns, more only where one word needs it. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from autotune.report.batches import HEAD, BatchTable
from autotune.report.rows import Row
from autotune.report.view import Remark, View

Role = Literal["plain", "muted", "good", "doubtful", "warning"]

WIDTH = 80
_LABEL = 8
"""Columns of the word in front of a list: kept, failed, note, next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line of text and what it is, so that a terminal can colour it."""

    text: str
    role: Role = "plain"


def render(view: View, width: int = WIDTH) -> str:
    """The report as one text, without a newline at its end."""
    return "\n".join(line.text for line in lines(view, width))


def lines(view: View, width: int = WIDTH) -> tuple[Line, ...]:
    """The report line by line, each at most `width` columns wide."""
    blocks = [
        _paragraph(" · ".join(view.head), width, "muted", follow="  "),
        _paragraph(view.headline, width, "good" if view.good else "doubtful"),
        _table(view, width),
        _batches(view.batches, width),
        [
            line
            for text in view.remarks
            for line in _paragraph(text, width, "plain", indent="  ", follow="  ")
        ],
        [
            *_listing("kept", _by_reason(view.kept), width, "muted"),
            *_listing("failed", (_full(item) for item in view.failures), width, "warning"),
            *_listing("note", view.notes, width, "warning"),
        ],
        [
            *_paragraph(view.stopped, width, "muted", follow="  "),
            *_verbatim("next", view.next),
        ],
    ]
    result: list[Line] = []
    for block in blocks:
        if block:
            result += [Line(text=""), *block] if result else block
    return tuple(result)


def _paragraph(text: str, width: int, role: Role, *, indent: str = "", follow: str = "") -> list[Line]:
    wrapped = textwrap.wrap(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=follow,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [Line(text=line, role=role) for line in wrapped]


def _listing(label: str, items: Iterable[str], width: int, role: Role) -> list[Line]:
    result = []
    for number, item in enumerate(items):
        wrapped = textwrap.wrap(
            item, width - _LABEL, break_long_words=False, break_on_hyphens=False, subsequent_indent="  "
        )
        for row, text in enumerate(wrapped):
            head = label if number == row == 0 else ""
            result.append(Line(text=f"{head:<{_LABEL}}{text}", role=role))
    return result


def _verbatim(label: str, items: Iterable[str]) -> list[Line]:
    """Commands are for copying: they are never broken into two lines."""
    return [Line(text=f"{label if number == 0 else '':<{_LABEL}}{item}") for number, item in enumerate(items)]


def _full(remark: Remark) -> str:
    if not remark.more:
        return remark.text
    separator = " " if remark.text.endswith(".") else ". "
    return f"{remark.text}{separator}{remark.more[:1].upper()}{remark.more[1:]}"


def _by_reason(kept: tuple[Remark, ...]) -> list[str]:
    """One line for all that is kept for the same reason."""
    groups: dict[str, list[str]] = {}
    for remark in kept:
        groups.setdefault(remark.more, []).append(remark.text)
    return [", ".join(names) + (f": {why}" if why else "") for why, names in groups.items()]


def _table(view: View, width: int) -> list[Line]:
    rows = [*view.settings, *view.summary]
    if not rows:
        return []
    head = Row(
        name="setting",
        yours="yours",
        best=view.best_label,
        worth="worth" if any(row.worth for row in view.settings) else "",
    )
    every = [head, *rows]
    widths = tuple(
        max(len(cell) for cell in column)
        for column in zip(*((row.name, row.yours, row.best, row.worth) for row in every))
    )
    cells = sum(size for size in widths if size) + 2 * sum(1 for size in widths[1:] if size)
    notes_at = 2 + cells + 2
    result = [Line(text=_row_text(head, widths), role="muted")]
    for row in view.settings:
        result += _row_lines(row, widths, notes_at, width)
    if view.settings and view.summary:
        result.append(Line(text=f"  {'-' * cells}", role="muted"))
    for row in view.summary:
        result += _row_lines(row, widths, notes_at, width)
    return result


def _batches(table: BatchTable, width: int) -> list[Line]:
    """The batch sizes in columns, those that are marked standing out, and the remarks below them."""
    rows = [HEAD, *(line.cells for line in table.lines)] if table.lines else []
    sizes = [max(map(len, column)) for column in zip(*rows)]
    texts = ["  " + "  ".join(f"{cell:>{size}}" for cell, size in zip(row, sizes)) for row in rows]
    result: list[Line] = []
    for text, mark in zip(texts, ["", *(line.mark for line in table.lines)]):
        role: Role = "plain" if "recommended" in mark else "muted"
        first, *more = textwrap.wrap(mark, max(16, width - len(text) - 2)) or [""]
        result.append(Line(text=f"{text}  {first}".rstrip(), role=role))
        result += [Line(text=f"{'':<{len(text) + 2}}{rest}", role=role) for rest in more]
    for remark in table.remarks:
        result += _paragraph(remark, width, "plain", indent="  ", follow="  ")
    return result


def _row_text(row: Row, widths: tuple[int, ...]) -> str:
    cells = [f"{row.name:<{widths[0]}}"]
    for cell, size in zip((row.yours, row.best, row.worth), widths[1:]):
        if size:
            cells.append(f"{cell:>{size}}")
    return f"  {'  '.join(cells)}".rstrip()


def _row_lines(row: Row, widths: tuple[int, ...], notes_at: int, width: int) -> list[Line]:
    text = _row_text(row, widths)
    changed = bool(row.best) and row.best != row.yours
    role: Role = "plain" if changed else "muted"
    if not row.note:
        return [Line(text=text, role=role)]
    notes = textwrap.wrap(row.note, max(20, width - notes_at), break_long_words=False, break_on_hyphens=False)
    first = Line(text=f"{text:<{notes_at}}{notes[0]}", role=role)
    return [first, *(Line(text=f"{'':<{notes_at}}{note}", role=role) for note in notes[1:])]
