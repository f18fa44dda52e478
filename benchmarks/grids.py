"""Recorded grids: what `record_grid.py` writes, one JSON object a line, compressed.

The first line is a `Header`, each further one an `autotune.trial.Trial`.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune.codec import decode, encode
from autotune.measure.seam import Description
from autotune.settings import KnobValue
from autotune.trial import Trial


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """A knob of the grid and the values that were measured."""

    knob: str
    values: tuple[KnobValue, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What was measured, where, and how to do it again."""

    workload: str
    command: str
    description: Description
    """The machine, the workload and *yours*."""
    axes: tuple[Axis, ...]
    """Every legal combination of their values is in the grid; other knobs are as in *yours*."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A recorded grid as read from its file."""

    header: Header
    trials: tuple[Trial, ...]
    """In the order in which they were measured, rounds one after the other."""


def read_grid(path: Path) -> Grid:
    """The grid in a file; a file that was cut off gives the lines that are whole.

    Raises:
        ValueError: when not even the header is whole.
        autotune.codec.CodecError: when a line does not fit its type.
    """
    lines = _lines(path)
    first = next(lines, None)
    if first is None:
        raise ValueError(f"{path} holds no grid: its header is missing")
    trials = tuple(decode(Trial, line) for line in lines)
    return Grid(header=decode(Header, first), trials=trials)


def _lines(path: Path) -> Iterator[Any]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        try:
            for line in file:
                if not line.endswith("\n"):
                    return
                yield json.loads(line)
        except (EOFError, zlib.error):  # the recorder was killed: what it had flushed is still there
            return


class GridWriter:
    """Writes a grid line by line: what was written is on disk even when the process is killed next.

    Args:
        path: the file; replaced.
        header: its first line.
        trials: what is known already, from an earlier session.
    """

    def __init__(self, path: Path, header: Header, trials: tuple[Trial, ...] = ()) -> None:
        # An appended member after one that was cut off could not be read, so all is written anew.
        whole = path.with_name(f"{path.name}.new")
        self._file = gzip.open(whole, "wt", encoding="utf-8")  # noqa: SIM115  closed by `close`
        self._line(header)
        for trial in trials:
            self._line(trial)
        self._file.flush()
        whole.replace(path)

    def add(self, trial: Trial) -> None:
        """Write one more trial."""
        self._line(trial)
        self._file.flush()

    def _line(self, value: Any) -> None:
        self._file.write(json.dumps(encode(value), separators=(",", ":")) + "\n")

    def close(self) -> None:
        """End the file."""
        self._file.close()
