"""`autotune demo`: tune a small example that needs no download."""

from __future__ import annotations

import sys

import click

from autotune.cli import running
from autotune.cli.options import BUDGET, SEED, talk_options
from autotune.cli.streams import say, write_answer


@click.command()
@click.option(
    "--budget", type=BUDGET, default="90s", show_default=True, help="Wall-clock time for everything."
)
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of every random choice.")
@talk_options
def demo(talk: running.Talk, budget: float, seed: int, as_json: bool) -> int:
    """Tune a ResNet-18 on photos that are drawn at start, and show the report.

    Nothing is downloaded and no profile is saved.
    """
    finished = running.find("autotune.demo:make", talk, name="demo", budget=budget, seed=seed)
    outcome = finished.result.outcome
    if as_json:
        write_answer(running.as_json(outcome))
    else:
        if not talk.quiet:
            say("")
        running.report(outcome, sys.stdout, color=talk.color)
    return running.exit_code(finished)
