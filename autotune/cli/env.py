"""`autotune env`: what this machine offers to training."""

from __future__ import annotations

import json

import click

from autotune.cli.streams import write_answer


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print everything that was read, as JSON.")
def env(as_json: bool) -> None:
    """Show what this machine offers to training: versions, CPUs, memory, limits and GPUs."""
    from importlib.metadata import version

    from autotune import __version__
    from autotune.codec import encode
    from autotune.measure.probe import machine_facts
    from autotune.report.environment import environment_text

    versions = {"autotune": __version__, "optuna": version("optuna")}
    facts = machine_facts(free_memory=True)
    if as_json:
        write_answer(json.dumps({"versions": versions, "machine": encode(facts)}, indent=2))
    else:
        write_answer(environment_text(facts, versions))
