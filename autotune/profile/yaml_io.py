"""A Profile as YAML: written to be read by people, read strictly.

The reader gives all that is wrong with a file at once, each with line, column and, where a name is close to
a known one, a suggestion. Settings left out of a hand-written file are torch's defaults.
"""

from __future__ import annotations

import dataclasses
import io
import re
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.representer import RoundTripRepresenter
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from autotune.codec import CodecError, Path, Problem, decode, encode
from autotune.errors import ProfileError
from autotune.outcome import Interval
from autotune.profile.comments import ratio_comment, setting_comments, shown
from autotune.profile.document import (
    MAX_BYTES,
    MAX_VALUES,
    Document,
    UnreadableError,
    read_document,
    values_in,
)
from autotune.profile.legal import illegal_values
from autotune.profile.pointing import Finding, error_at, place_of
from autotune.profile.schema import SCHEMA, Profile
from autotune.settings import GROUPS

_SECTION = re.compile(r"^(?=(?:settings|recipe|measured|machine|workload):)", re.MULTILINE)
_PLAIN = re.compile(r"[A-Za-z_](?:[A-Za-z0-9_./()+-]| (?=[A-Za-z0-9(]))*")
_READ_AS_ANOTHER_TYPE = frozenset(["y", "n", "yes", "no", "on", "off", "true", "false", "null"])
"""Unquoted, a YAML 1.1 reader takes these for booleans and null, in any case."""
_INDENT = 4
"""Columns before a setting: below `settings:` and its group."""


class _Representer(RoundTripRepresenter):
    """Writes null and small numbers so that readers of YAML 1.1 and 1.2 take them for the same values."""

    def null(self, value: None) -> Any:
        return self.represent_scalar("tag:yaml.org,2002:null", "null")

    def number(self, value: float) -> Any:
        text = repr(value)
        if "e" in text and "." not in text:
            text = text.replace("e", ".0e")
        return self.represent_scalar("tag:yaml.org,2002:float", text)


_Representer.add_representer(type(None), _Representer.null)
_Representer.add_representer(float, _Representer.number)


def dumps(profile: Profile) -> str:
    """The profile as YAML; each setting says what it is worth."""
    tree = _tree(encode(profile))
    _annotate(tree["settings"], setting_comments(profile))
    if profile.measured.ratio is not None:
        tree["measured"].yaml_add_eol_comment(ratio_comment(profile), "ratio", column=0)
    yaml = YAML()
    yaml.Representer = _Representer
    yaml.width = 2**31  # a folded line would part a value from its comment
    yaml.indent(mapping=2, sequence=4, offset=2)
    buffer = io.StringIO()
    yaml.dump(tree, buffer)
    version = "".join(c for c in profile.autotune_version if c.isprintable())
    return f"# written by autotune {version}\n{_SECTION.sub(chr(10), buffer.getvalue())}"


def dumps_readable(profile: Profile) -> str:
    """What `dumps` gives, where `loads` does not refuse it for its size.

    Raises:
        ProfileError: where it would.
    """
    text, values = dumps(profile), values_in(encode(profile))
    size = len(text.encode("utf-8"))
    if values > MAX_VALUES or size > MAX_BYTES:
        raise ProfileError(
            "the profile is too large to be read again",
            why=f"it has {values:,} values in {size / 2**20:.2f} MiB; up to {MAX_VALUES:,} are read, in"
            f" {MAX_BYTES / 2**20:g} MiB",
            fix="give the optimizer fewer param groups: the recipe has six numbers for each",
        )
    return text


def loads(text: str | bytes, *, source: str = "profile") -> Profile:
    """The profile that `text` holds.

    Args:
        text: YAML, as text or as UTF-8.
        source: what to call it in errors, such as the file's name.

    Raises:
        ProfileError: with every problem found, each with line and column.
    """
    content = _decoded(text, source)
    try:
        document = read_document(content)
    except UnreadableError as error:
        raise error_at([error.finding], content, source) from None
    _check_schema(document, content, source)
    problems = list(document.problems)
    profile = None
    try:
        profile = decode(Profile, document.value)
    except CodecError as error:
        broken = {problem.path for problem in problems}
        problems += [p for p in error.problems if not any(p.path[: len(path)] == path for path in broken)]
    problems += illegal_values(document.value)
    if profile is None or problems:
        raise _error(problems, document, content, source)
    return profile


def _decoded(text: str | bytes, source: str) -> str:
    if len(text) > MAX_BYTES:
        raise ProfileError(
            f"{source} is too large to be a profile",
            why=f"it holds more than {MAX_BYTES // 2**20} MiB, a profile a few KiB",
            fix="name the YAML file that `autotune tune` wrote",
            detail=f" --> {source}:1:1",
        )
    if isinstance(text, str):
        return text.removeprefix("\ufeff")
    try:
        return text.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        readable = text.decode("utf-8", "replace")
        finding = Finding(
            place=place_of(readable, len(text[: error.start].decode("utf-8"))),
            message=f"the byte 0x{text[error.start]:02x} is not UTF-8 text",
            hint="save the file as UTF-8",
        )
        raise error_at([finding], readable, source) from None


def _check_schema(document: Document, text: str, source: str) -> None:
    """Raises for a document that only another autotune can judge."""
    value = document.value
    if not isinstance(value, dict):
        problem = Problem(path=(), message="a profile is a mapping that begins with `schema:`")
        raise _error([problem], document, text, source)
    schema = value.get("schema")
    if not isinstance(schema, int) or isinstance(schema, bool) or schema == SCHEMA:
        return  # the decoder says what is wrong, beside all else
    message = f"no profile has schema {schema}"
    hint = f"this autotune reads schema {SCHEMA}"
    if schema > SCHEMA:
        message = f"the profile has schema {schema}, and this autotune reads up to {SCHEMA}"
        writer = value.get("autotune_version")
        needed = f"autotune {writer}, which wrote it," if isinstance(writer, str) else "a newer autotune"
        hint = f"{needed} or later can read it: pip install -U torch-autotune"
    raise _error([Problem(path=("schema",), message=message, hint=hint)], document, text, source)


def _error(problems: list[Problem], document: Document, text: str, source: str) -> ProfileError:
    distinct = {(problem.path, problem.message): problem for problem in problems}
    return error_at([_finding(problem, document) for problem in distinct.values()], text, source)


def _finding(problem: Problem, document: Document) -> Finding:
    name, message, hint = _dotted(problem.path), problem.message, problem.hint
    if message == "unknown key":
        message = f"unknown key `{name}`"
    elif not problem.path and message == "`schema` is missing":
        hint = f"every profile begins with its format's number, such as `schema: {SCHEMA}`"
    elif problem.path:
        message = f"`{name}`: {message}"
    return Finding(place=document.place(problem), message=message, hint=hint)


def _dotted(path: Path) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")


def _tree(value: Any) -> Any:
    """Plain values as ruamel's, with the style that each is written in."""
    if isinstance(value, dict):
        mapping = CommentedMap((_tree(key), _tree(item)) for key, item in value.items())
        if not value or set(value) == {f.name for f in dataclasses.fields(Interval)}:
            mapping.fa.set_flow_style()
        return mapping
    if isinstance(value, list):
        sequence = CommentedSeq(_tree(item) for item in value)
        if not any(isinstance(item, (dict, list, str)) for item in value):
            sequence.fa.set_flow_style()
        return sequence
    return _quoted(value) if isinstance(value, str) else value


def _quoted(text: str) -> str:
    if _PLAIN.fullmatch(text) and text.lower() not in _READ_AS_ANOTHER_TYPE:
        return text
    # A lone surrogate, as in a file name that is not UTF-8, cannot be written.
    quoted: str = DoubleQuotedScalarString(text.encode("utf-8", "replace").decode("utf-8"))
    return quoted


def _annotate(settings: CommentedMap, comments: dict[str, str]) -> None:
    flat = {name: settings[group][name] for group, names in GROUPS.items() for name in names}
    column = _INDENT + max(len(f"{name}: {shown(value)}") for name, value in flat.items()) + 2
    for group, names in GROUPS.items():
        for name in names:
            settings[group].yaml_add_eol_comment(comments[name], name, column=column)
