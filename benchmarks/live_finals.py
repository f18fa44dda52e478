"""Real finals whose truth is known, by turns over several cases, every one of them kept on disk."""

from __future__ import annotations

import contextlib
import gzip
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from played_finals import Finals, count, play, raw_of

from autotune.codec import encode
from autotune.measure.process_runner import ProcessRunner
from autotune.outcome import Interval, Verdict
from autotune.settings import Settings
from autotune.trial import Failure, Measurement, TrialSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveCase:
    """Two settings whose true ratio is known, on a workload that can be run."""

    name: str
    start: Callable[[], ProcessRunner]
    """Makes the runner; called once, when the case's turn comes first."""
    field: Callable[[ProcessRunner], tuple[Settings, Settings]]
    """*Yours* and the candidate."""
    spec: Callable[[ProcessRunner], TrialSpec]
    """What all runs have in common."""
    gain: float = 0.0
    same: bool = False
    """Whether the candidate is a name alone, and *yours* is run in its place."""
    whole_run: bool = True
    """Whether rates are those of whole epochs, starts included."""

    def samples(self, runner: ProcessRunner) -> int | None:
        """Length of an epoch, where it counts."""
        return runner.describe().workload.dataset_samples if self.whole_run else None

    def play(self, runner: ProcessRunner, last: int) -> Finals:
        """One finals, each run in a process of its own."""
        field = self.field(runner)

        def measure(spec: TrialSpec) -> Measurement | Failure:
            return runner.run(replace(spec, settings=field[0]) if self.same else spec)

        return play(measure, field, samples=self.samples(runner), last=last, spec=self.spec(runner))


def play_live(
    cases: Sequence[LiveCase],
    raw: Path,
    *,
    finals: int,
    last: int,
    minutes: float,
    say: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """So many finals of each case, by turns, until they are all there or no time is left for another.

    Args:
        cases: with different names.
        raw: JSON lines, compressed; what it holds already counts.
        finals: of each case.
        last: pairs of a finals at most.
        minutes: no finals is begun that would, by the longest so far, end later.
        say: gets a line after each.
    """
    ends_s, longest_s = time.monotonic() + 60 * minutes, 0.0
    records = read_raw(raw)
    with contextlib.ExitStack() as stack:
        runners: dict[str, ProcessRunner] = {}
        for turn in range(finals):
            for case in cases:
                if sum(record["case"] == case.name for record in records) > turn:
                    continue
                started = time.monotonic()
                if started + longest_s > ends_s:
                    return records
                if case.name not in runners:
                    runners[case.name] = stack.enter_context(case.start())
                runner = runners[case.name]
                played = case.play(runner, last)
                records.append(_keep(raw, case, played, case.samples(runner)))
                longest_s = max(longest_s, time.monotonic() - started)
                say(f"{case.name}: {played.verdict.kind}, {played.rounds} pairs: {played.verdict.sentence}")
    return records


def lines(cases: Sequence[LiveCase], records: Sequence[dict[str, Any]]) -> list[str]:
    """One line for each case that has been played."""
    told = []
    for case in cases:
        of_case = [record for record in records if record["case"] == case.name]
        if of_case:
            counted = count([(_verdict(r), r["rounds"]) for r in of_case], case.gain)
            told.append(
                f"{'A/B' if case.gain else 'A/A'} live  {case.name:<24} gain {case.gain:4.0%}  {counted}"
            )
    return told


def _verdict(record: dict[str, Any]) -> Verdict:
    ratio = record["ratio"]
    return Verdict(
        kind=record["verdict"],
        winner=Settings(),
        ratio=None if ratio is None else Interval(value=ratio[0], low=ratio[1], high=ratio[2]),
    )


def _keep(raw: Path, case: LiveCase, played: Finals, samples: int | None) -> dict[str, Any]:
    record = raw_of(
        played,
        samples,
        case=case.name,
        gain=case.gain,
        epoch_samples=samples,
        rounds=played.rounds,
        disturbed=sum(t.measurement.disturbed for t in played.trials if t.measurement is not None),
        trials=[encode(trial) for trial in played.trials],
    )
    with gzip.open(raw, "at", encoding="utf-8") as file:  # each record is a whole member of the archive
        file.write(json.dumps(record, separators=(",", ":")) + "\n")
    return record


def read_raw(raw: Path) -> list[dict[str, Any]]:
    """What `play_live` wrote, in the order in which it was measured."""
    if not raw.exists():
        return []
    with gzip.open(raw, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]
