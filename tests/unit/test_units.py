"""Quantities as people write and read them."""

from __future__ import annotations

import pytest

from autotune.errors import UsageError
from autotune.units import format_bytes, format_duration, format_percent, format_rate, parse_duration_s


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (90, 90),
        (0.5, 0.5),
        ("90", 90),
        ("1.5", 1.5),
        ("90s", 90),
        ("5m", 300),
        ("5min", 300),
        (" 5 M ", 300),
        ("2h", 7200),
        ("1h30m", 5400),
        ("1h 30m 5s", 5405),
        ("0.5h", 1800),
    ],
)
def test_durations_people_write(text: str | float, seconds: float) -> None:
    """Bare numbers are seconds; units may be joined or apart, in either case."""
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "soon",
        "m",
        "5 minutes",
        "1.5.5",
        "-5m",
        "1h-5m",
        "1e3",
        "10 20",
        "1h30",
        "30m1h",
        "5m5m",
        True,
        None,
    ],
)
def test_what_is_no_duration_is_refused(text: object) -> None:
    """Nothing is guessed: neither two numbers side by side nor units in the wrong order."""
    with pytest.raises(UsageError, match="is not a duration") as raised:
        parse_duration_s(text)  # type: ignore[arg-type]
    assert "1h30m" in raised.value.fix


@pytest.mark.parametrize("value", [0, -1, "0s", float("nan"), float("inf"), "9" * 400])
def test_a_duration_is_finite_and_more_than_nothing(value: str | float) -> None:
    """Zero, less, not a number and without an end are refused."""
    with pytest.raises(UsageError, match="more than zero and finite"):
        parse_duration_s(value)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0004, "0.40 ms"),
        (0.34, "340 ms"),
        (0.9996, "1.00 s"),
        (4.2, "4.20 s"),
        (42.04, "42.0 s"),
        (99.6, "1m40s"),
        (521, "8m41s"),
        (3599.7, "1h00m"),
        (7500, "2h05m"),
    ],
)
def test_durations_are_shown_in_the_unit_that_reads_best(seconds: float, text: str) -> None:
    """Three digits under a hundred seconds, then minutes, then hours; rounding may move up a unit."""
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (812, "812 B"),
        (1024, "1.00 KiB"),
        (999.7 * 1024, "0.98 MiB"),
        (9.1 * 2**30, "9.10 GiB"),
        (80 * 2**30, "80.0 GiB"),
        (2**50, "1024 TiB"),
    ],
)
def test_bytes_are_powers_of_1024(count: float, text: str) -> None:
    """Never more than three digits before the point, up to the largest unit."""
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (0.42, "0.42"),
        (87.1, "87.1"),
        (412.4, "412"),
        (999.7, "1,000"),
        (12345, "12,300"),
        (9999.6, "10,000"),
        (1.5e6, "1,500,000"),
    ],
)
def test_rates_have_three_digits(rate: float, text: str) -> None:
    """More digits than that are noise."""
    assert format_rate(rate) == text


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (1.213, "+21 %"),
        (0.96, "-4.0 %"),
        (1.004, "+0.4 %"),
        (0.5, "-50 %"),
        (1.0996, "+10 %"),
        (1.0, "0.0 %"),
        (0.9999, "0.0 %"),
        (3.0, "+200 %"),
    ],
)
def test_a_ratio_is_shown_as_a_signed_change(ratio: float, text: str) -> None:
    """The sign is always there, but for what rounds to nothing."""
    assert format_percent(ratio) == text
