"""Quantities in and out: `5m` to seconds, bytes to `9.1 GiB`, rates to three digits."""

from __future__ import annotations

import re

from autotune.errors import UsageError

_SECONDS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(min|h|m|s)?")


def parse_duration_s(text: str | float) -> float:
    """Seconds from `90`, `"90"`, `"90s"`, `"5m"`, `"1h30m"`.

    Raises:
        UsageError: for anything else, and for a duration that is not positive.
    """
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        total = float(text)
    else:
        compact = str(text).strip().lower()
        parts = list(_PART.finditer(compact))
        if not parts or "".join(part.group() for part in parts) != compact:
            raise UsageError(
                f"`{text}` is not a duration", fix="write seconds or units, such as 90, 90s, 5m or 1h30m"
            )
        total = sum(float(part[1]) * _SECONDS[part[2] or "s"] for part in parts)
    if not 0 < total < float("inf"):
        raise UsageError(f"a duration of `{text}` leaves no time", fix="give more than zero seconds")
    return total


def format_duration(seconds: float) -> str:
    """`0.4 ms`, `340 ms`, `4.2 s`, `8m41s`, `2h05m`."""
    if seconds < 1:
        return f"{_digits(seconds * 1e3)} ms"
    if seconds < 99.5:
        return f"{_digits(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m"


def format_bytes(count: float) -> str:
    """`812 B`, `9.1 GiB`: powers of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{_digits(count)} {unit}"
        count /= 1024
    return f"{_digits(count)} TiB"


def format_rate(per_s: float) -> str:
    """Samples per second in three digits: `0.42`, `87.1`, `412`, `12,300`."""
    if per_s >= 1000:
        step = 10 ** (len(str(int(per_s))) - 3)
        return f"{round(per_s / step) * step:,}"
    return _digits(per_s)


def format_percent(ratio: float) -> str:
    """A ratio as a signed change: 1.213 is `+21 %`, 0.96 is `-4.0 %`."""
    change = (ratio - 1) * 100
    return f"{change:+.0f} %" if abs(change) >= 10 else f"{change:+.1f} %"


def _digits(value: float) -> str:
    if value >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
