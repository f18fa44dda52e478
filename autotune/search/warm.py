"""What won before, as settings of this space: the first guesses of a search, always measured again. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from autotune.settings import KnobValue, Settings
from autotune.space.candidates import Option, Space

MOST = 2
"""Earlier winners that are tried: each costs a trial, and more of them seldom differ by much."""


def first_guesses(space: Space, earlier: Sequence[Settings]) -> tuple[Settings, ...]:
    """The earlier winners as near as this space comes to them, the likeliest first; none that is *yours*.

    Only what is searched here is taken over: what the user fixed, and knobs of a class that may not change,
    stay as they are. A number that cannot be had here becomes the nearest that can.
    """
    found: dict[Settings, None] = {}
    for settings in earlier:
        made = _here(space, settings)
        # Another batch has to wait for its turn, and may never have one: all else is tried without it too.
        own = made.replace(batch_size=space.yours.loader.batch_size)
        if own not in (made, space.yours, space.start) and space.legal(own):
            found[own] = None
        if made not in (space.yours, space.start) and space.legal(made):
            found[made] = None
    return tuple(found)[:MOST]


def _here(space: Space, settings: Settings) -> Settings:
    theirs = settings.flat()
    changes = {}
    for option in space.options:
        value = _nearest(theirs[option.knob], _open_values(space, option, theirs[option.knob]))
        if value is not None:
            changes[option.knob] = value
    return space.settings(**changes)


def _open_values(space: Space, option: Option, wanted: KnobValue) -> tuple[KnobValue, ...]:
    """An option's values; batch sizes between two doublings have no turn of their own, but for the wanted."""
    if option.knob != "batch_size":
        return option.values
    return tuple(v for v in option.values if v == wanted or space.stood_in_for(v) is None)


def _nearest(wanted: KnobValue, values: Sequence[KnobValue]) -> KnobValue:
    """The value itself, else the nearest number; None where there is nothing like it."""
    if wanted in values:
        return wanted
    numbers = [value for value in values if isinstance(value, int) and not isinstance(value, bool)]
    if not isinstance(wanted, int) or isinstance(wanted, bool) or not numbers:
        return None
    target = wanted
    return min(numbers, key=lambda number: abs(number - target))
