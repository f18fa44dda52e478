"""`autotune tune`: measure a workload, write the profile."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autotune.cli import running
from autotune.cli.errors import EXPECTED
from autotune.cli.options import BUDGET, EFFECTIVE, SEED, fixed_knobs, talk_options
from autotune.cli.streams import say, write_answer
from autotune.errors import EnvironmentFault, ProfileError, UsageError
from autotune.measure.target import parse_target
from autotune.settings import KnobValue

if TYPE_CHECKING:
    from autotune.outcome import DecayShape
    from autotune.result import Result


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneArgs:
    """What stood on the command line."""

    target: str
    budget: float
    allow: str
    objective: str
    max_batch_size: int | None
    warm: int | None
    keep_effective: bool | int
    decay: DecayShape | None
    epochs: int | None
    fixed: dict[str, KnobValue]
    device: str | None
    batch_size: int | None
    storage: str | None
    resume: bool
    warm_start: bool
    seed: int
    runner: str
    output: Path | None
    as_json: bool
    strict: bool


@click.command()
@click.argument("target")
@click.option(
    "--budget", type=BUDGET, default="5m", show_default=True, help="Wall-clock time for everything."
)
@click.option(
    "--allow",
    type=click.Choice(["exact", "numerics", "recipe"]),
    default="recipe",
    show_default=True,
    help="The highest class of settings that may change: exact keeps every number, numerics changes"
    " rounding, recipe changes learning.",
)
@click.option(
    "--objective",
    type=click.Choice(["goodput", "throughput", "time"]),
    default="goodput",
    show_default=True,
    help="What is best across batch sizes, with --allow recipe: goodput is what is learned in a second with"
    " nearly as much from each sample, time the same at the price of more epochs, throughput samples/s.",
)
@click.option(
    "--max-batch-size",
    type=click.IntRange(1),
    help="The largest batch that may be tried; without, eight times yours.",
)
@click.option(
    "--warm",
    type=click.IntRange(0),
    metavar="STEPS",
    help="Train so many steps before gradients are looked at, from which larger batches are judged, with"
    " --allow recipe: without, as many as there is time for; 0 where the weights are trained already.",
)
@click.option(
    "--keep-effective",
    type=EFFECTIVE,
    default=False,
    metavar="yours|SAMPLES",
    help="Let each step of the optimizer keep the samples of your batch, or so many where your own loop"
    " gathers gradients already: in other batch sizes as many batches make up a step.",
)
@click.option(
    "--decay",
    type=click.Choice(["cosine", "polynomial", "wsd"]),
    help="Let the learning rate come down so over the whole run; needs --epochs.",
)
@click.option(
    "--epochs", type=click.IntRange(1), help="How long you will train: start-up costs are spread over it."
)
@click.option(
    "--set",
    "fixed",
    multiple=True,
    callback=fixed_knobs,
    metavar="KNOB=VALUE",
    help="Keep a setting at a value, such as num_workers=4. Repeatable.",
)
@click.option("--device", help="Where to train, such as cpu or cuda:1.")
@click.option("--batch-size", type=click.IntRange(1), help="Samples in a batch of yours.")
@click.option("--storage", metavar="URL|PATH", help="Where the Optuna study is kept.")
@click.option("--resume", is_flag=True, help="Go on with the study of an earlier run.")
@click.option(
    "--warm-start/--no-warm-start",
    default=True,
    show_default=True,
    help="Whether to try first what won on the like of TARGET by saved profiles. It is measured again.",
)
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of every random choice.")
@click.option(
    "--runner",
    type=click.Choice(["process", "in-process"]),
    default="process",
    show_default=True,
    help="Where to measure. A process of its own survives crashes and hangs.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the profile to this file, instead of to stdout and to the saved profiles.",
)
@click.option("--strict", is_flag=True, help="End with exit code 4 where the result is not sure.")
@talk_options
def tune(talk: running.Talk, **options: Any) -> int:
    """Find the settings that train TARGET fastest, and write them as YAML to stdout.

    TARGET is file.py:function or package.module:function. The function takes nothing and returns an
    autotune.Workload or a (model, dataset) pair.
    """
    args = TuneArgs(**options)
    _check_output(args.output)
    parse_target(args.target)  # a slip is told at once, before torch is loaded
    finished = running.find(
        args.target,
        talk,
        device=args.device,
        batch_size=args.batch_size,
        allow=args.allow,
        objective=args.objective,
        max_batch_size=args.max_batch_size,
        warm=args.warm,
        keep_effective=args.keep_effective,
        decay=args.decay,
        budget=args.budget,
        epochs=args.epochs,
        fixed=args.fixed,
        storage=args.storage,
        resume=args.resume,
        warm_start=args.warm_start,
        seed=args.seed,
        runner=args.runner.replace("-", "_"),
    )
    saved = _save(finished.result, args.output)
    outcome = finished.result.outcome
    if not talk.quiet:
        say("")
        running.report(outcome, sys.stderr, color=talk.color, saved=saved)
    _answer(finished.result, args, saved)
    if args.output is not None and not saved:
        return EXPECTED
    return running.exit_code(finished, strict=args.strict)


def _check_output(path: Path | None) -> None:
    """Before minutes are spent on an answer that cannot be written."""
    if path is not None and not path.expanduser().absolute().parent.is_dir():
        raise UsageError(
            f"{path} cannot be written", why="its folder does not exist", fix="make the folder first"
        )


def _save(result: Result, output: Path | None) -> str:
    """Save the profile; where, or empty where it was not: the answer on stdout must not be lost to that.

    A run that was cut short does not replace the saved profile of a whole one.
    """
    from autotune.profile import store

    usual = store.default_profile_path(result.profile.name)
    if output is None and not result.complete and usual.is_file():
        say(f"the profile was not saved: the run is not complete, and {usual} holds an earlier one")
        return ""
    try:
        return str(result.save(output))
    except (EnvironmentFault, ProfileError) as error:
        say(f"warning: the profile was not saved: {error.what} ({error.why})")
        return ""


def _answer(result: Result, args: TuneArgs, saved: str) -> None:
    if args.as_json:
        write_answer(running.as_json(result.outcome, saved=saved))
    elif args.output is None or not saved:
        from autotune.profile.yaml_io import dumps

        write_answer(dumps(result.profile))
