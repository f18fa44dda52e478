"""What each setting is worth, as the phrase that stands beside it in the profile."""

from __future__ import annotations

import textwrap

from autotune.outcome import Interval
from autotune.profile.schema import Profile
from autotune.settings import KnobValue
from autotune.space.cautions import cautions
from autotune.units import format_percent

_WIDTH = 72


def setting_comments(profile: Profile) -> dict[str, str]:
    """One phrase for each knob, by its name."""
    yours = profile.measured.yours_settings.flat()
    worth = {worth.knob: worth.ratio for worth in profile.measured.worth}
    kept = {kept.knob: kept.why for kept in profile.measured.kept}
    comments = {}
    for name, value in profile.settings.flat().items():
        changed = value != yours[name]
        parts = [f"yours: {shown(yours[name])}" if changed else "as yours"]
        if name in kept:
            parts.append(f"kept: {kept[name]}")
        elif changed:
            parts.append(_worth(worth.get(name)))
        if name == "fused_optimizer" and cautions(profile.settings, profile.workload.optimizer_class):
            parts.append("SGD in float16: train with kit()")
        if name == "batch_size" and changed and profile.recipe is not None:
            parts.append("train with kit()")  # a line has room for no more
        comments[name] = _one_line("; ".join(parts))
    return comments


def ratio_comment(profile: Profile) -> str:
    """What the ratio of the profile compares."""
    if profile.settings == profile.measured.yours_settings:
        return "the best candidate's samples/s over yours"
    weight = profile.measured.weight(profile.settings)
    if weight != 1:
        return f"samples/s of best over yours, times {weight:.3f}: what a sample teaches"
    return "samples/s of best over yours"


def shown(value: KnobValue) -> str:
    """A knob's value as YAML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return "null" if value is None else str(value)


def _worth(ratio: Interval | None) -> str:
    if ratio is None:
        return "worth not measured alone"
    return f"worth {format_percent(ratio.value)} ({_bare(ratio.low)} to {_bare(ratio.high)})"


def _bare(ratio: float) -> str:
    return format_percent(ratio).removesuffix(" %").removeprefix("+")


def _one_line(text: str) -> str:
    printable = "".join(c if c.isprintable() else " " for c in text)
    return textwrap.shorten(printable, _WIDTH, placeholder=" ...")
