"""Quantities in and out: `5m` to seconds, bytes to `9.1 GiB`, rates to three digits."""

from __future__ import annotations

import re

from autotune.errors import UsageError

_NUMBER = r"(\d+(?:\.\d+)?)\s*"
_BARE = re.compile(_NUMBER)
_PARTS = re.compile(rf"(?:{_NUMBER}h\s*)?(?:{_NUMBER}m(?:in)?\s*)?(?:{_NUMBER}s)?")
_SECONDS = (3600.0, 60.0, 1.0)


def parse_duration_s(text: str | float) -> float:
    """Seconds from `90`, `"90"`, `"90s"`, `"5m"`, `"1h 30m"`.

    Raises:
        UsageError: for anything else, and for a duration that is not positive.
    """
    total = float(text) if isinstance(text, (int, float)) and not isinstance(text, bool) else _read_s(text)
    if not 0 < total < float("inf"):
        raise UsageError(
            "a duration must be more than zero and finite", why=f"it is {text}", fix="give it in seconds"
        )
    return total


def _read_s(text: object) -> float:
    compact = str(text).strip().lower()
    if bare := _BARE.fullmatch(compact):
        return float(bare[1])
    parts = _PARTS.fullmatch(compact)
    if parts is None or not compact:
        raise UsageError(
            f"`{text}` is not a duration", fix="write seconds or units, such as 90, 90s, 5m or 1h30m"
        )
    return sum(float(count) * unit_s for count, unit_s in zip(parts.groups(), _SECONDS) if count)


def format_duration(seconds: float) -> str:
    """`0.4 ms`, `340 ms`, `4.2 s`, `8m41s`, `2h05m`."""
    if seconds < 0.9995:
        return f"{_digits(seconds * 1e3)} ms"
    if seconds < 99.5:
        return f"{_digits(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours}h{minutes:02d}m"


def format_bytes(count: float) -> str:
    """`812 B`, `9.1 GiB`: powers of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" else f"{_digits(count)} {unit}"
        count /= 1024
    return f"{_digits(count)} TiB"


def format_rate(per_s: float) -> str:
    """Samples per second in three digits: `0.42`, `87.1`, `412`, `12,300`."""
    if per_s >= 999.5:
        step = 10 ** (len(str(round(per_s))) - 3)
        return f"{round(per_s / step) * step:,}"
    return _digits(per_s)


def format_percent(ratio: float) -> str:
    """A ratio as a signed change: 1.213 is `+21 %`, 0.96 is `-4.0 %`, what rounds to nothing `0.0 %`."""
    change = (ratio - 1) * 100
    if abs(change) < 0.05:
        return "0.0 %"
    return f"{change:+.0f} %" if abs(change) >= 9.95 else f"{change:+.1f} %"


def _digits(value: float) -> str:
    if value >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
