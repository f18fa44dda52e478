"""`autotune show`: a saved profile as a table."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from autotune.cli.streams import write_answer


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the profile as JSON.")
@click.option("--no-color", is_flag=True, help="Plain text on a terminal too.")
def show(file: Path | None, as_json: bool, no_color: bool) -> None:
    """Show a saved profile as a table.

    Without FILE: autotune.yaml in this directory, else the profile saved last.
    """
    from autotune.codec import encode
    from autotune.profile import store, yaml_io
    from autotune.report.text import lines, render
    from autotune.report.view import view_of_profile

    path = file or store.find_profile()
    profile = yaml_io.loads(store.read_bytes(path), source=str(path))
    if as_json:
        write_answer(json.dumps(encode(profile), indent=2))
        return
    view = view_of_profile(profile)
    if not sys.stdout.isatty():
        write_answer(render(view))
        return
    from autotune.report.terminal import console_for, print_lines

    print_lines(console_for(sys.stdout, color=not no_color), lines(view))
