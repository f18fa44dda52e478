"""Options that several commands have, and values that click does not know."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable
from typing import Any

import click

from autotune.cli.running import Talk
from autotune.codec import CodecError, decode
from autotune.errors import UsageError
from autotune.settings import GROUP_OF, ComputeSettings, KnobValue, LoaderSettings, TransferSettings
from autotune.units import parse_duration_s

_GROUPS = {"loader": LoaderSettings, "transfer": TransferSettings, "compute": ComputeSettings}
_WORDS: dict[str, KnobValue] = {
    "true": True,
    "on": True,
    "yes": True,
    "false": False,
    "off": False,
    "no": False,
    "none": None,
    "null": None,
}


class Duration(click.ParamType):
    """`90`, `90s`, `5m`, `1h30m`, to seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds; a usage error for anything that is no duration."""
        try:
            return parse_duration_s(value)
        except UsageError as error:
            self.fail(f"{error.what}; {error.fix}", param, ctx)


BUDGET = Duration()


class Effective(click.ParamType):
    """`yours`, or the samples in a step of the optimizer."""

    name = "yours|samples"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bool | int:
        """True for `yours`, else a whole number of at least 1; a usage error for anything else."""
        if isinstance(value, bool):
            return value
        if value == "yours":
            return True
        try:
            samples = int(value)
        except ValueError:
            samples = 0
        if samples < 1:
            self.fail(f"'{value}' is neither 'yours' nor a number of samples", param, ctx)
        return samples


EFFECTIVE = Effective()
SEED = click.IntRange(0, 2**32 - 1)
"""What the sampler of the search takes."""


def fixed_knobs(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, KnobValue]:
    """Each `KNOB=VALUE` checked against the type of that setting."""
    fixed: dict[str, KnobValue] = {}
    for text in values:
        name, equals, raw = text.partition("=")
        if not equals:
            raise click.BadParameter(f"'{text}' is not KNOB=VALUE", ctx, param)
        if name not in GROUP_OF:
            close = difflib.get_close_matches(name, GROUP_OF, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"there are: {', '.join(GROUP_OF)}"
            raise click.BadParameter(f"no setting is called '{name}'; {hint}", ctx, param)
        value = _value(raw)
        try:
            decode(_GROUPS[GROUP_OF[name]], {name: value})
        except CodecError as error:
            problem = error.problems[0]
            hint = f"; {problem.hint}" if problem.hint else ""
            raise click.BadParameter(f"{name}: {problem.message}{hint}", ctx, param) from None
        fixed[name] = value
    return fixed


def _value(raw: str) -> KnobValue:
    word = raw.strip().lower()
    if word in _WORDS:
        return _WORDS[word]
    try:
        return int(word)
    except ValueError:
        return raw.strip()


def talk_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--json`, `--quiet`, `--verbose` and `--no-color`; all but the first arrive as `talk`."""

    @click.option("--json", "as_json", is_flag=True, help="Write JSON to stdout, failures too.")
    @click.option("-q", "--quiet", is_flag=True, help="No progress and no report; errors only.")
    @click.option("-v", "--verbose", is_flag=True, help="Say why each trial is run, and show tracebacks.")
    @click.option("--no-color", is_flag=True, help="Plain text on a terminal too.")
    @functools.wraps(command)
    def wrapped(quiet: bool, verbose: bool, no_color: bool, **rest: Any) -> Any:
        if quiet and verbose:
            raise click.UsageError("--quiet and --verbose cannot go together.")
        return command(talk=Talk(quiet=quiet, verbose=verbose, color=not no_color), **rest)

    return wrapped
