"""A YAML text to plain values, with the place of each; nothing but text, numbers, true, false and null.

Built from the parser's events: no tag is ever looked up and no object constructed, an alias is never
followed, and the depth and the number of values are bounded, so that a hostile file costs little and
does nothing. Plain scalars are read by YAML 1.2's core rules: `no` and `on` are text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from autotune.codec import Path, Problem
from autotune.profile.pointing import Finding, Place, place_of

MAX_BYTES = 2**20
MAX_DEPTH = 12
MAX_VALUES = 100_000
"""Keys, scalars, lists and mappings; so many take seconds to read.

A recipe has six for each param group, in some 90 bytes, so that a profile mostly comes to `MAX_BYTES` first.
"""
_MAX_DIGITS = 40

_FORBIDDEN = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


class UnreadableError(Exception):
    """The text cannot be read any further."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.message)
        self.finding = finding


@dataclass(slots=True)
class Document:
    """What a text holds. `problems` are those that did not keep the rest from being read."""

    value: Any = None
    keys: dict[Path, Place] = field(default_factory=dict)
    values: dict[Path, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def place(self, problem: Problem) -> Place:
        """Where a problem is; of what is not in the text, the nearest thing around it that is."""
        path = problem.path
        first, second = (self.keys, self.values) if problem.on_key else (self.values, self.keys)
        while path and path not in first and path not in second:
            path = path[:-1]
        return first.get(path) or second.get(path) or Place(line=0, column=0)


@dataclass(slots=True)
class _Frame:
    """A mapping or a list that is not at its end yet."""

    path: Path
    container: dict[str, Any] | list[Any]
    key: str | None = None
    """Of a mapping: the key whose value comes next."""


def read_document(text: str) -> Document:
    """The one document in `text`.

    Raises:
        UnreadableError: where YAML itself is broken, or goes beyond what a profile needs.
    """
    reader = _Reader()
    for event in _events(text):
        reader.feed(event)
    if not reader.documents:
        raise UnreadableError(Finding(place=Place(line=0, column=0), message="the file holds no profile"))
    return reader.document


def values_in(tree: Any) -> int:
    """How many values the text of a tree of dicts, lists and scalars has, as `read_document` counts them."""
    if isinstance(tree, dict):
        return 1 + sum(1 + values_in(item) for item in tree.values())
    if isinstance(tree, list):
        return 1 + sum(map(values_in, tree))
    return 1


def _events(text: str) -> Iterator[Any]:
    bad = _FORBIDDEN.search(text)
    if bad is not None:
        message = f"the character U+{ord(bad[0]):04X} is not allowed in YAML"
        raise UnreadableError(Finding(place=place_of(text, bad.start()), message=message))
    last = Place(line=0, column=0)
    events = iter(YAML(typ="safe", pure=True).parse(text))
    while True:
        try:
            event = next(events, None)
        except MarkedYAMLError as error:
            raise UnreadableError(_syntax(error, last)) from None
        except Exception:  # escapes that name no character reach `chr` unchecked
            raise UnreadableError(Finding(place=last, message="not valid YAML after this")) from None
        if event is None:
            return
        last = _start(event)
        yield event


def _syntax(error: MarkedYAMLError, last: Place) -> Finding:
    mark = error.problem_mark or error.context_mark
    place = last if mark is None else Place(line=mark.line, column=mark.column)
    message = " ".join((error.problem or error.context or "no further detail").split())
    if "'\\t'" in message:
        return Finding(place=place, message="a tab cannot stand here", hint="YAML is indented with spaces")
    return Finding(place=place, message=f"not valid YAML: {message}", hint=error.context or "")


class _Reader:
    def __init__(self) -> None:
        self.document = Document()
        self.documents = 0
        self.frames: list[_Frame] = []
        self.seen = 0

    def feed(self, event: Any) -> None:
        if isinstance(event, DocumentStartEvent):
            self._start_document(event)
        elif isinstance(event, (MappingStartEvent, SequenceStartEvent)):
            self._open(event)
        elif isinstance(event, (MappingEndEvent, SequenceEndEvent)):
            self.frames.pop()
        elif isinstance(event, (ScalarEvent, AliasEvent)):
            self._count(event)
            if self._key_expected():
                self._key(event)
            else:
                self._scalar(event)

    def _start_document(self, event: Any) -> None:
        self.documents += 1
        if self.documents > 1:
            raise UnreadableError(Finding(place=_start(event), message="a second document begins here"))
        if event.version or event.tags:
            raise UnreadableError(
                Finding(place=Place(line=0, column=0), message="YAML directives are not used in a profile")
            )

    def _open(self, event: Any) -> None:
        self._count(event)
        if self._key_expected():
            raise UnreadableError(Finding(place=_start(event), message="a key must be text"))
        if len(self.frames) >= MAX_DEPTH:
            raise UnreadableError(Finding(place=_start(event), message=f"nested more than {MAX_DEPTH} deep"))
        container: dict[str, Any] | list[Any] = {} if isinstance(event, MappingStartEvent) else []
        path = self._add(container, _start(event))
        self._refuse_extras(event, path)
        self.frames.append(_Frame(path, container))

    def _key_expected(self) -> bool:
        return (
            bool(self.frames) and isinstance(self.frames[-1].container, dict) and self.frames[-1].key is None
        )

    def _key(self, event: Any) -> None:
        frame = self.frames[-1]
        assert isinstance(frame.container, dict)
        if isinstance(event, AliasEvent):
            raise UnreadableError(Finding(place=_span(event), message="a key must be text"))
        frame.key = str(event.value)
        path = (*frame.path, frame.key)
        if frame.key in frame.container:
            first = self.document.keys[path].line + 1
            self._problem(path, "the key is there twice", f"the first one is in line {first}", on_key=True)
        self.document.keys[path] = _span(event)
        if _is_plain(event) and not isinstance(_resolved(event.value), str):
            self._problem(path, "a key must be text", on_key=True)
        self._refuse_extras(event, path, on_key=True)

    def _scalar(self, event: Any) -> None:
        if isinstance(event, AliasEvent):
            path = self._add(None, _span(event))
            self._problem(path, "aliases are not used in a profile", "write the value out")
            return
        value: Any = event.value
        if not _is_plain(event):
            path = self._add(value, _span(event))
        elif not value:
            path = self._add(None, None)
        else:
            path = self._add(_resolved(value), _span(event))
            if _NOT_FINITE.fullmatch(value) or _resolved(value) in (float("inf"), float("-inf")):
                self._problem(path, f"expected a finite number, found {value}")
            elif _INT.fullmatch(value) and len(value) > _MAX_DIGITS:
                self._problem(path, f"a number of {len(value)} digits is too long")
        self._refuse_extras(event, path)

    def _add(self, value: Any, place: Place | None) -> Path:
        """Puts a value where it belongs. Without a place, as for `key:`, it is where its key is."""
        if not self.frames:
            self.document.value = value
            path: Path = ()
        else:
            frame = self.frames[-1]
            if isinstance(frame.container, list):
                path = (*frame.path, len(frame.container))
                frame.container.append(value)
            else:
                assert frame.key is not None
                path = (*frame.path, frame.key)
                frame.container[frame.key] = value
                frame.key = None
        self.document.values.pop(path, None)
        if place is not None:
            self.document.values[path] = place
        return path

    def _refuse_extras(self, event: Any, path: Path, *, on_key: bool = False) -> None:
        if event.anchor is not None:
            self._problem(
                path, "anchors are not used in a profile", f"remove `&{event.anchor}`", on_key=on_key
            )
        if event.tag is not None:
            tag = str(event.tag).replace("tag:yaml.org,2002:", "!!")
            self._problem(path, "tags are not used in a profile", f"remove the tag `{tag}`", on_key=on_key)

    def _count(self, event: Any) -> None:
        self.seen += 1
        if self.seen > MAX_VALUES:
            raise UnreadableError(Finding(place=_start(event), message=f"more than {MAX_VALUES} values"))

    def _problem(self, path: Path, message: str, hint: str = "", *, on_key: bool = False) -> None:
        self.document.problems.append(Problem(path=path, message=message, hint=hint, on_key=on_key))


def _is_plain(event: Any) -> bool:
    return event.style is None


def _resolved(text: str) -> str | int | float | bool | None:
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text) if len(text) <= _MAX_DIGITS else 0
    return float(text) if _FLOAT.fullmatch(text) else text


def _start(event: Any) -> Place:
    return Place(line=event.start_mark.line, column=event.start_mark.column)


def _span(event: Any) -> Place:
    start, end = event.start_mark, event.end_mark
    width = end.column - start.column if end.line == start.line else 1
    return Place(line=start.line, column=start.column, width=max(1, width))
