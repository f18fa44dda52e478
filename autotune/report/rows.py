"""The lines of the result table, the same for a run that just ended and for a saved profile. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from autotune.outcome import Interval, VerdictKind, Worth
from autotune.report.words import count_text, value_text
from autotune.settings import KnobValue, Settings
from autotune.space.knobs import knob
from autotune.units import format_bytes, format_duration, format_percent, format_rate

_ALWAYS = ("num_workers", "batch_size", "precision")
"""Shown even where they do not change: the settings that everyone asks about first."""

_VAGUE = 100.0
"""An interval whose upper end is so many times the lower one is shown in words."""
_TOO_WIDE = "too wide to tell"

_CLASS_NOTES = {"exact": "", "numerics": "changes rounding", "recipe": "changes learning"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A line of the table."""

    name: str
    yours: str = ""
    best: str = ""
    worth: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """What some settings did, over all the trials that count for them."""

    samples_per_s: float
    """Effective rate: starts of the loader included, geometric mean over the trials."""
    wait_share: float | None = None
    """Part of the timed seconds spent waiting for the loader, 0 to 1."""
    peak_bytes: int | None = None
    """The highest peak: of the accelerator's memory where there is one, else of the host's."""
    trials: int = 0
    final: bool = False
    """Whether the trials are finals, so that no search has picked them for coming out high."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """*Yours* beside the other side: both figures, and how sure their ratio is."""

    yours: Side
    other: Side | None
    """None where there is nothing to show beside *yours*."""
    verdict: VerdictKind
    ratio: Interval | None = None
    """Other over yours, from the finals; None without them."""


def settings_rows(
    yours: Settings,
    best: Settings | None,
    worth: tuple[Worth, ...] = (),
    *,
    has_loader: bool = True,
    step_kept: bool = False,
) -> tuple[Row, ...]:
    """The settings that differ, and those that everyone asks about; `best` None shows *yours* alone.

    Args:
        yours: what the user runs.
        best: the other side.
        worth: of the changed settings, those that were measured.
        has_loader: whether a DataLoader feeds the step.
        step_kept: whether steps of the optimizer have as many samples in any batch size.
    """
    measured = {item.knob: item for item in worth}
    theirs = (best or yours).flat()
    rows = []
    for name, value in yours.flat().items():
        if theirs[name] != value:
            kept = step_kept and name == "batch_size"
            note = "steps keep their samples" if kept else _CLASS_NOTES[knob(name).kind]
            rows.append(_changed_row(name, yours, theirs[name], measured.get(name), note))
        elif name in _ALWAYS and (has_loader or name == "precision"):
            rows.append(
                Row(name=name, yours=value_text(name, value), best=value_text(name, value) if best else "")
            )
    return tuple(rows)


def summary_rows(
    both: Comparison, *, samples: int | None, epochs: int | None, has_loader: bool
) -> tuple[Row, ...]:
    """Rate, time for the user's epochs, share of waiting and peak memory of both sides.

    Args:
        both: the two sides.
        samples: in one epoch; None where that is unknown.
        epochs: of the user's whole run; None shows one.
        has_loader: whether a DataLoader feeds the step.
    """
    yours, other = both.yours, both.other
    rows = [_rate_row(both)]
    if samples:
        count = epochs or 1
        label = "one epoch" if count == 1 else count_text(count, "epoch")
        rows.append(_row(label, _run_text(yours, samples * count), _run_text(other, samples * count)))
    if has_loader:
        rows.append(_row("waiting for data", _wait_text(yours), _wait_text(other)))
    if yours.peak_bytes or (other and other.peak_bytes):
        rows.append(_row("peak memory", _peak_text(yours), _peak_text(other)))
    return tuple(rows)


def _changed_row(name: str, yours: Settings, best: KnobValue, worth: Worth | None, change: str) -> Row:
    figure, notes = "", []
    if worth is not None and worth.ratio is not None:
        figure = format_percent(worth.ratio.value)
        ends = f"{_change(worth.ratio.low)} to {_change(worth.ratio.high)} %"
        notes.append(_TOO_WIDE if _is_vague(worth.ratio) else ends)
        if worth.ratio.low <= 1 <= worth.ratio.high:
            notes.append("within noise")
    elif name in ("prefetch_factor", "persistent_workers") and yours.loader.num_workers == 0:
        notes.append("goes with num_workers")
    elif worth is not None:
        notes.append("not measured alone")
    notes.append(change)
    return Row(
        name=name,
        yours=value_text(name, yours.flat()[name]),
        best=value_text(name, best),
        worth=figure,
        note=", ".join(note for note in notes if note),
    )


def _is_vague(ratio: Interval) -> bool:
    """Whether its ends, as two pairs that differ may have them, are no figures to read."""
    return ratio.high > _VAGUE * ratio.low


def _change(ratio: float) -> str:
    return f"{(ratio - 1) * 100:+.0f}"


def _row(name: str, yours: str, best: str) -> Row:
    return Row(name=name, yours=yours, best=best)


def _run_text(side: Side | None, samples: int) -> str:
    return "" if side is None else format_duration(samples / side.samples_per_s)


def _wait_text(side: Side | None) -> str:
    return "" if side is None or side.wait_share is None else f"{side.wait_share * 100:.0f} %"


def _peak_text(side: Side | None) -> str:
    return "" if side is None or not side.peak_bytes else format_bytes(side.peak_bytes)


def _digits(ratio: Interval) -> int:
    """Two decimals; three where an end would read 1.00 and so hide on which side of it it lies."""
    return 3 if any(abs(end - 1) < 0.005 for end in (ratio.low, ratio.high)) else 2


def _rate_row(both: Comparison) -> Row:
    yours, other = both.yours, both.other
    if other is None:
        return _row("samples/s", format_rate(yours.samples_per_s), "")
    ratio, notes = other.samples_per_s / yours.samples_per_s, []
    if both.ratio is not None and other.final:
        ratio = both.ratio.value
        digits = _digits(both.ratio)
        ends = f"{both.ratio.low:.{digits}f} to {both.ratio.high:.{digits}f}"
        spread = _TOO_WIDE if _is_vague(both.ratio) else ends
        notes.append(f"{both.ratio.confidence * 100:.3g} %: {spread}")
    if both.verdict == "incomplete":
        notes.append("not confirmed")
    elif other.final:
        word = "confirmed in" if both.verdict == "faster" else "over"
        notes.append(f"{word} {count_text(other.trials, 'fresh pair')}")
    return Row(
        name="samples/s",
        yours=format_rate(yours.samples_per_s),
        best=format_rate(other.samples_per_s),
        worth=f"{ratio:.2f}x",
        note=", ".join(notes),
    )
