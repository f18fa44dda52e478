"""Frozen dataclasses to JSON-able values and back, by their type hints, strictly.

One decoder serves the study's attributes, recorded trials and the profile: it reports every problem with
its path, so that a reader that knows lines and columns can point at each.
"""

from __future__ import annotations

import dataclasses
import difflib
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")
Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing wrong in a document."""

    path: Path
    """Keys and indices from the top to the place."""
    message: str
    hint: str = ""
    on_key: bool = False
    """Whether the key is wrong rather than its value."""


class CodecError(Exception):
    """A document that does not fit its type; `problems` holds all that is wrong with it."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(f"{'.'.join(map(str, p.path))}: {p.message}" for p in problems))
        self.problems = problems


def encode(value: Any) -> Any:
    """`value` as dicts, lists and scalars."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (tuple, list)):
        return [encode(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    return value


def decode(cls: type[T], data: Any) -> T:
    """An instance of `cls` from what `encode` gave.

    Raises:
        CodecError: with every unknown key, missing key and wrong type.
    """
    problems: list[Problem] = []
    value = _decode(cls, data, (), problems)
    if problems:
        raise CodecError(problems)
    return typing.cast(T, value)


def _decode(hint: Any, data: Any, path: Path, problems: list[Problem]) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _decode_dataclass(typing.cast(type, hint), data, path, problems)
    if origin in (typing.Union, types.UnionType):
        return _decode_union(args, data, path, problems)
    if origin is typing.Literal:
        if any(data == option and type(data) is type(option) for option in args):
            return data
        return _wrong(f"one of {', '.join(map(repr, args))}", data, path, problems, options=args)
    if origin is tuple:
        return _decode_tuple(args, data, path, problems)
    if origin is dict:
        if not isinstance(data, Mapping):
            return _wrong("a mapping", data, path, problems)
        return {key: _decode(args[1], item, (*path, key), problems) for key, item in data.items()}
    return _decode_scalar(hint, data, path, problems)


def _decode_scalar(hint: Any, data: Any, path: Path, problems: list[Problem]) -> Any:
    if hint is float and isinstance(data, int) and not isinstance(data, bool):
        if abs(data) <= sys.float_info.max:
            return float(data)
        return _wrong("a number that a float can hold", data, path, problems)
    if isinstance(data, hint) and (hint is bool or not isinstance(data, bool)):
        return data
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return _wrong(names.get(hint, str(hint)), data, path, problems)


def _decode_union(args: tuple[Any, ...], data: Any, path: Path, problems: list[Problem]) -> Any:
    if data is None and type(None) in args:
        return None
    options = [arg for arg in args if arg is not type(None)]
    attempts: list[list[Problem]] = []
    for option in options:
        found: list[Problem] = []
        value = _decode(option, data, path, found)
        if not found:
            return value
        attempts.append(found)
    fewest: list[Problem] = min(attempts, key=lambda found: len(found))  # noqa: PLW0108  # bare `len` has too wide a type
    problems.extend(fewest)
    return None


def _decode_tuple(args: tuple[Any, ...], data: Any, path: Path, problems: list[Problem]) -> Any:
    if not isinstance(data, (list, tuple)):
        return _wrong("a list", data, path, problems)
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(_decode(args[0], item, (*path, i), problems) for i, item in enumerate(data))
    if len(data) != len(args):
        return _wrong(f"a list of {len(args)}", data, path, problems)
    return tuple(_decode(arg, item, (*path, i), problems) for i, (arg, item) in enumerate(zip(args, data)))


def _decode_dataclass(cls: type, data: Any, path: Path, problems: list[Problem]) -> Any:
    if not isinstance(data, Mapping):
        return _wrong("a mapping", data, path, problems)
    hints, fields = _hints(cls), {f.name: f for f in dataclasses.fields(cls)}
    before = len(problems)
    for key in data:
        if key not in fields:
            close = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"did you mean `{close[0]}`?" if close else f"known here: {', '.join(fields)}"
            problems.append(Problem(path=(*path, key), message="unknown key", hint=hint, on_key=True))
    values: dict[str, Any] = {}
    for name, f in fields.items():
        if name in data:
            values[name] = _decode(hints[name], data[name], (*path, name), problems)
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            problems.append(Problem(path=path, message=f"`{name}` is missing", on_key=True))
    return cls(**values) if len(problems) == before else None


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _wrong(
    wanted: str, data: Any, path: Path, problems: list[Problem], options: tuple[Any, ...] = ()
) -> None:
    close = difflib.get_close_matches(str(data), [str(o) for o in options], n=1)
    hint = f"did you mean `{close[0]}`?" if close else ""
    problems.append(Problem(path=path, message=f"expected {wanted}, found {_shown(data)}", hint=hint))


def _shown(data: Any) -> str:
    text = repr(data)
    return text if len(text) <= 40 else f"{text[:37]}..."
