"""A file of raw data that grows measurement by measurement; what it holds is not measured again."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from autotune.errors import StudyError


class RawFile:
    """JSON on disk, compressed where the name ends with `.gz`: what was asked, and each value by its key.

    Args:
        path: of the file; made at the first value.
        identity: what all of its values have in common, such as the machine and the budget.

    Raises:
        StudyError: when the file holds values of another identity.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        self.identity = json.loads(json.dumps(identity))
        self.values: dict[str, Any] = {}
        if path.exists():
            held = json.loads(_read(path))
            unlike = [name for name in self.identity if held["identity"].get(name) != self.identity[name]]
            if unlike:
                raise StudyError(
                    f"{path} holds something else",
                    why=f"it differs in {', '.join(unlike)}",
                    fix="name another file with --out",
                )
            self.values = held["values"]

    def once(self, key: str, measure: Callable[[], Any]) -> Any:
        """The value of that key; measured, and written at once, where the file does not hold it."""
        if key not in self.values:
            self.values[key] = json.loads(json.dumps(measure()))
            self._write()
        return self.values[key]

    def _write(self) -> None:
        text = json.dumps({"identity": self.identity, "values": self.values})
        packed = text.encode() if self.path.suffix != ".gz" else gzip.compress(text.encode(), mtime=0)
        beside = self.path.with_name(self.path.name + ".part")
        beside.write_bytes(packed)
        os.replace(beside, self.path)


def _read(path: Path) -> bytes:
    held = path.read_bytes()
    return gzip.decompress(held) if path.suffix == ".gz" else held


def identity(benchmark: str, **options: Any) -> dict[str, Any]:
    """What values have in common: the benchmark with its options, the machine, torch."""
    from autotune.measure.probe import machine_facts

    machine = machine_facts()
    made = {"machine": machine.fingerprint(), "cpu": machine.cpu_name, "cpus": machine.usable_cpus}
    return {"benchmark": benchmark, **made, "torch": machine.torch_version, **options}
