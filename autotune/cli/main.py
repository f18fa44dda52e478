"""The command `autotune`. Each sub-command is imported when it is used, so that `--help` is quick."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from autotune import __version__
from autotune.cli.errors import guarded

_COMMANDS = {
    "tune": ("autotune.cli.tune", "Find the settings that train a workload fastest."),
    "show": ("autotune.cli.show", "Show a saved profile as a table."),
    "check": ("autotune.cli.check", "Measure whether a saved profile still holds here."),
    "env": ("autotune.cli.env", "Show what this machine offers to training."),
    "demo": ("autotune.cli.demo", "Tune a small example, to see what this does; about a minute."),
}


class LazyGroup(click.Group):
    """Knows its commands by name, and what every failure is worth as an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of `--help`."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of the command; None for a name that is none."""
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = getattr(import_module(_COMMANDS[cmd_name][0]), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with a suggestion for a name that is nearly right."""
        name = args[0]
        if name not in _COMMANDS and not name.startswith("-"):
            import difflib

            close = difflib.get_close_matches(name, _COMMANDS, n=1)
            hint = f" Did you mean '{close[0]}'?" if close else f" There are: {', '.join(_COMMANDS)}."
            raise click.UsageError(f"No such command '{name}'.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run, and end the program with the exit code; `standalone_mode=False` lets exceptions through."""
        given = list(sys.argv[1:] if args is None else args)

        def call() -> Any:
            return super(LazyGroup, self).main(given, prog_name, complete_var, False, **extra)

        if not standalone_mode:
            return call()
        sys.exit(guarded(call, as_json="--json" in given))


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    epilog="Colour follows NO_COLOR and FORCE_COLOR. Files live below AUTOTUNE_HOME where it is set.",
)
@click.version_option(__version__, "--version", prog_name="autotune")
def cli() -> None:
    """Measure real training steps on this machine; get the settings that train fastest."""


def run() -> None:
    """Entry point of the console script."""
    cli(prog_name="autotune")
