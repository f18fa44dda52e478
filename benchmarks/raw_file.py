"""A file of raw data that grows measurement by measurement; what it holds is not measured again."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from autotune.errors import StudyError


class RawFile:
    """JSON on disk, compressed where the name ends with `.gz`: what was asked, and each value by its key.

    Args:
        path: of the file; made at the first value.
        identity: what all of its values have in common, such as the machine and the budget.
        later: fields of its parts that later versions added, with what they were before: a file that lacks
            them holds the same.

    Raises:
        StudyError: when the file holds values of another identity.
    """

    def __init__(
        self, path: Path, identity: Mapping[str, Any], *, later: Mapping[str, Any] | None = None
    ) -> None:
        self.path = path
        self.identity = json.loads(json.dumps(identity))
        self.values: dict[str, Any] = {}
        if path.exists():
            held = json.loads(_read(path))
            theirs = {name: _without(part, later or {}) for name, part in held["identity"].items()}
            mine = {name: _without(part, later or {}) for name, part in self.identity.items()}
            unlike = [name for name in mine if theirs.get(name) != mine[name]]
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


def _without(part: Any, later: Mapping[str, Any]) -> Any:
    if not isinstance(part, dict):
        return part
    return {name: value for name, value in part.items() if name not in later or value != later[name]}


Work = Mapping[str, Callable[[], Any]]
"""What is to be measured, by its key in the raw data."""


def fill(raw: RawFile, work: Work, *, jobs: int = 1, fits: Callable[[], bool] = lambda: True) -> bool:
    """Measure what the raw data lack, so many at a time; whether all of it is there after that.

    Args:
        raw: where it goes, as soon as it is known.
        work: with more than one job, functions that can be pickled: each job is a process of one thread.
        jobs: how many at a time.
        fits: asked before each, or after each where several run; False leaves the rest for another time.
    """
    todo = {key: one for key, one in work.items() if key not in raw.values}
    if jobs == 1:
        for key, one in todo.items():
            if not fits():
                return False
            print(key, file=sys.stderr, flush=True)
            raw.once(key, one)
        return True
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=_one_thread) as pool:
        running = {pool.submit(one): key for key, one in todo.items()}
        for done in as_completed(running):
            if done.cancelled():
                continue
            raw.once(running[done], done.result)
            print(running[done], file=sys.stderr, flush=True)
            if not fits():
                pool.shutdown(wait=False, cancel_futures=True)
    return all(key in raw.values for key in work)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _read(path: Path) -> bytes:
    held = path.read_bytes()
    return gzip.decompress(held) if path.suffix == ".gz" else held


def identity(benchmark: str, **options: Any) -> dict[str, Any]:
    """What values have in common: the benchmark with its options, the machine, torch."""
    from autotune.measure.probe import machine_facts

    machine = machine_facts()
    made = {"machine": machine.fingerprint(), "cpu": machine.cpu_name, "cpus": machine.usable_cpus}
    return {"benchmark": benchmark, **made, "torch": machine.torch_version, **options}
