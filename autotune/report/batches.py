"""The table of batch sizes, in words: what each takes, what it teaches, what it is recommended for. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from autotune.outcome import BatchChoice, BatchRow, NoiseScale, Objective
from autotune.report.words import count_text
from autotune.units import format_bytes, format_rate

HEAD = ("batch", "samples/s", "teaches", "goodput", "peak memory", "epochs")
_OBJECTIVES: dict[Objective, str] = {
    "goodput": "what is learned in a second, with nearly as much from each sample",
    "time": "what is learned in a second, with the epochs that it takes",
    "throughput": "samples/s, whatever they teach",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLine:
    """A batch size in the columns of `HEAD`, and what it is marked with."""

    cells: tuple[str, ...]
    mark: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchTable:
    """The batch sizes that ran, and what is to know of them."""

    lines: tuple[BatchLine, ...] = ()
    remarks: tuple[str, ...] = ()


def batch_table(
    choice: BatchChoice | None, noise: NoiseScale | None, epochs: int | None = None
) -> BatchTable:
    """The table and its remarks; empty where only one batch size ran and no gradients were looked at.

    Args:
        choice: what ran.
        noise: the noise scale of the user's gradients; None where it is unknown.
        epochs: of the user's run; None shows what matches one.
    """
    remarks = [] if noise is None else [f"Gradient noise scale: {noise.in_words()}."]
    if choice is None:
        return BatchTable(remarks=tuple(remarks))
    if any(row.efficiency is not None and row.batch_size != choice.reference for row in choice.rows):
        run = count_text(epochs or 1, "epoch")
        remarks.append(
            f"`teaches` is what a sample is worth beside one in batches of {choice.reference}, `goodput` "
            f"samples/s times that, `epochs` what teaches as much as {run} of yours."
        )
    else:
        remarks.append("What a sample teaches in larger batches was not measured: unverified.")
    remarks.append(f"Recommended for {_OBJECTIVES[choice.objective]}.")
    remarks += [f"Not larger, because {cap}." for cap in choice.limited_by]
    return BatchTable(lines=tuple(_line(row, choice) for row in choice.rows), remarks=tuple(remarks))


def _line(row: BatchRow, choice: BatchChoice) -> BatchLine:
    marks = [
        text
        for text, size in (
            ("yours", choice.reference),
            ("max throughput", choice.max_throughput),
            ("recommended", choice.recommended),
        )
        if row.batch_size == size
    ]
    return BatchLine(
        cells=(
            str(row.batch_size),
            format_rate(row.samples_per_s.value),
            "-" if row.efficiency is None else f"{row.efficiency:.2f}",
            "-" if row.goodput is None else format_rate(row.goodput),
            "-" if row.peak_bytes is None else format_bytes(row.peak_bytes),
            "-" if row.epochs_to_match is None else f"{row.epochs_to_match:.3g}",
        ),
        mark=", ".join(marks),
    )
