"""The rows of `time_to_accuracy.py`: seconds and accuracy of runs, and whether a recommendation holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median, stdev

from accuracy_runs import Mark, first_at

from autotune.measure.stats import ratio_interval
from autotune.outcome import Interval

MOST_LOST = 0.3
"""Points of accuracy that the recommendation may lie under the defaults."""
SURE = 2.0
"""Standard errors beyond which a difference of accuracies is no chance."""
ROWS = {
    "defaults": "torch's defaults",
    "kept": "tuned, batch kept",
    "recommended": "tuned, recommended batch",
    "throughput": "tuned, max-throughput batch",
    "alone": "recommended batch, LR left alone",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row of the table: its figures, one for each seed."""

    seconds: tuple[float, ...]
    """To the target, in this run."""
    paced_s: tuple[float, ...]
    """Of this run to the samples that the target takes in the median of all rows that learn the same."""
    accuracy: tuple[float, ...]
    """Percent after equal epochs."""
    epochs_s: tuple[float, ...]
    """Seconds of those epochs."""
    learns: str
    """The first row that trains in the same batches with the same numbers."""


def seconds_to(marks: Sequence[Mark], target: float) -> float:
    """Seconds of training to the first mark at or above the target; infinite where there is none."""
    mark = first_at(marks, target)
    return math.inf if mark is None else mark.seconds


def samples_to(marks: Sequence[Mark], target: float) -> float:
    """Samples to the same mark."""
    mark = first_at(marks, target)
    return math.inf if mark is None else mark.samples


def seconds_at(marks: Sequence[Mark], samples: float) -> float:
    """Seconds after which a run had seen so many samples, by the straight line between or beyond marks."""
    if samples == math.inf:
        return math.inf
    if len(marks) == 1:
        return marks[0].seconds * samples / marks[0].samples
    before, after = next(
        ((a, b) for a, b in pairwise(marks) if b.samples >= samples),
        (marks[-2], marks[-1]),
    )
    per_sample_s = (after.seconds - before.seconds) / (after.samples - before.samples)
    return before.seconds + per_sample_s * (samples - before.samples)


def at_end_of(marks: Sequence[Mark], epoch: int) -> Mark:
    """The last mark of an epoch."""
    return [mark for mark in marks if mark.epoch == epoch][-1]


def rows_of(
    runs: Mapping[str, Sequence[Sequence[Mark]]], learns: Mapping[str, str], target: float, epochs: int
) -> dict[str, Row]:
    """The figures of every row.

    Args:
        runs: marks of each row's runs; rows that share their runs have the same object.
        learns: for each row the first one that trains in the same batches with the same numbers.
        target: percent of the test set.
        epochs: after which accuracies are compared.
    """
    pooled: dict[str, dict[int, Sequence[Sequence[Mark]]]] = {}
    for name, of_row in runs.items():
        pooled.setdefault(learns[name], {})[id(of_row)] = of_row
    needed = {
        first: median(samples_to(marks, target) for of_row in distinct.values() for marks in of_row)
        for first, distinct in pooled.items()
    }
    rows = {}
    for name, of_row in runs.items():
        ends = [at_end_of(marks, epochs) for marks in of_row]
        rows[name] = Row(
            seconds=tuple(seconds_to(marks, target) for marks in of_row),
            paced_s=tuple(seconds_at(marks, needed[learns[name]]) for marks in of_row),
            accuracy=tuple(end.accuracy for end in ends),
            epochs_s=tuple(end.seconds for end in ends),
            learns=learns[name],
        )
    return rows


def table(rows: Mapping[str, Row], notes: Mapping[str, str], target: float, epochs: int) -> str:
    """Medians, and from the lowest to the highest."""
    base = median(rows["defaults"].paced_s)
    reached = f"s to {target:g} %"
    lines = [
        f"{'':<34} {reached:>24} {'pooled':>7} {'speed':>7} {f'accuracy, {epochs} ep.':>24} {'epochs s':>9}"
    ]
    for name, row in rows.items():
        own = median(row.paced_s)
        speed = f"{base / own:.2f}x" if math.isfinite(base) and math.isfinite(own) else "-"
        paced = f"{own:.1f}" if math.isfinite(own) else "never"
        figures = f"{ranged(row.seconds, 1):>24} {paced:>7} {speed:>7} {ranged(row.accuracy, 2):>24}"
        lines.append(f"{ROWS[name]:<34} {figures} {median(row.epochs_s):>8.1f}  {notes[name]}".rstrip())
    return "\n".join(lines)


def ranged(values: Sequence[float], digits: int) -> str:
    """Such as `8.1 (7.9 to 8.4)`; a target that was not reached is `never`."""
    low, middle, high = (
        f"{value:.{digits}f}" if math.isfinite(value) else "never"
        for value in (min(values), median(values), max(values))
    )
    return f"{middle} ({low} to {high})"


def judged(rows: Mapping[str, Row]) -> str:
    """Whether the recommendation holds, by how much, and whether chance may be all that speaks against it."""
    own, sure, doubts = rows["recommended"], [], []
    for name, row in rows.items():
        ratio = ratio_of(row, own)
        if name != "recommended" and faster(row, own, ratio):
            surely = ratio is not None and ratio.high < 1
            (sure if surely else doubts).append(f"{ROWS[name]!r} is faster to the target")
    if not math.isfinite(median(own.seconds)):
        sure.append("the target was not reached in most runs")
    lost = median(rows["defaults"].accuracy) - median(own.accuracy)
    if lost > MOST_LOST:
        mean, error = difference(rows)
        surely = error is not None and mean + SURE * error < -MOST_LOST
        (sure if surely else doubts).append(
            f"the accuracy is {lost:.2f} points under that of the defaults in the median"
        )
    said = f"accuracy against the defaults {-lost:+.2f} points, {chance(rows)}"
    if sure:
        return f"FAIL: {'; '.join([*sure, *doubts])} ({said})"
    return f"NOT SHOWN, it may be chance: {'; '.join(doubts)} ({said})" if doubts else f"PASS: {said}"


def faster(row: Row, own: Row, ratio: Interval | None) -> bool:
    """Whether a row is ahead: by its pairs where both learn the same, else by the medians."""
    if row.learns == own.learns and ratio is not None:
        return ratio.value < 1
    return median(row.paced_s) < median(own.paced_s)


def difference(rows: Mapping[str, Row]) -> tuple[float, float | None]:
    """Points of accuracy of the recommendation over the defaults: mean of the seeds, and its error."""
    pairs = zip(rows["recommended"].accuracy, rows["defaults"].accuracy)
    points = [mine - theirs for mine, theirs in pairs]
    return fmean(points), stdev(points) / math.sqrt(len(points)) if len(points) > 1 else None


def chance(rows: Mapping[str, Row]) -> str:
    """How well seeds and a test set of that size tell an accuracy."""
    mean, error = difference(rows)
    if error is None:
        return "from one seed"
    return f"in the mean of {len(rows['defaults'].accuracy)} seeds {mean:+.2f} +- {error:.2f}"


def ratio_of(row: Row, own: Row) -> Interval | None:
    """Seconds of a row over the recommendation's, paired by seed; None where fewer than two pairs tell.

    Where both learn the same, those to as many samples; else those to the target itself.
    """
    alike = row.learns == own.learns
    pairs = zip(row.paced_s, own.paced_s) if alike else zip(row.seconds, own.seconds)
    logs = [math.log(theirs / mine) for theirs, mine in pairs if math.inf not in (theirs, mine)]
    return ratio_interval(logs) if len(logs) > 1 else None


def beside(rows: Mapping[str, Row]) -> str:
    """Seconds of each other row over the recommendation's, by seed: what the order of medians is worth."""
    own = rows["recommended"]
    lines = []
    for name, row in rows.items():
        ratio = None if row.seconds == own.seconds else ratio_of(row, own)
        if ratio is not None:
            how = ", to as many samples" if row.learns == own.learns else ""
            told = sum(math.inf not in pair for pair in zip(row.seconds, own.seconds))
            of = "" if row.learns == own.learns else f", {told} of {len(own.seconds)} seeds"
            lines.append(f"{ROWS[name]}: {ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f}{of}){how}")
    return "\n".join(["seconds to the target over those of the recommendation, paired, 95 %:", *lines])
