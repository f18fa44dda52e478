"""`autotune check`: whether a saved profile still holds here."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autotune import __version__
from autotune.cli.errors import DOUBTFUL, INTERRUPTED, OK, UNFIT
from autotune.cli.options import BUDGET, talk_options
from autotune.cli.running import Talk
from autotune.cli.streams import noticing_interrupts, stdout_to_stderr, story, write_answer
from autotune.measure.target import parse_target

if TYPE_CHECKING:
    from autotune.measure.seam import Runner
    from autotune.profile.freshness import Freshness
    from autotune.profile.schema import Profile
    from autotune.search.listener import Listener
    from autotune.search.recheck import Recheck


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """An answer and the pairs behind it; none where none were needed."""

    freshness: Freshness
    pairs: Recheck | None = None


@click.command()
@click.argument("profile", type=click.Path(path_type=Path))
@click.argument("target")
@click.option(
    "--budget", type=BUDGET, default="30s", show_default=True, help="Wall-clock time for everything."
)
@click.option("--device", help="Where to train, as it was given to tune.")
@click.option("--batch-size", type=click.IntRange(1), help="Samples in a batch of yours, as given to tune.")
@talk_options
def check(
    talk: Talk,
    profile: Path,
    target: str,
    budget: float,
    device: str | None,
    batch_size: int | None,
    as_json: bool,
) -> int:
    """Measure the settings of PROFILE against those they replaced, again, on this machine.

    TARGET is what was tuned: file.py:function or package.module:function. Exit code 0: the profile is
    valid. 3: it does not fit, because machine, torch or workload are not those it was measured with.
    4: it is stale, or the machine is too noisy to tell.
    """
    from autotune.api import make_runner
    from autotune.profile import store, yaml_io

    saved = yaml_io.loads(store.read_bytes(profile), source=str(profile))
    parse_target(target)
    started_s = time.monotonic()
    with (
        stdout_to_stderr(),
        noticing_interrupts(),
        story(version=__version__, quiet=talk.quiet, verbose=talk.verbose, color=talk.color) as listener,
    ):
        fields = {"device": device, "batch_size": batch_size, "keep_effective": kept_step(saved)}
        runner = make_runner(None, "process", target, fields, budget)
        try:
            checked = checked_with(runner, saved, listener, budget_s=budget)
        finally:
            runner.close()
    elapsed_s = time.monotonic() - started_s
    write_answer(_as_json(checked, saved, elapsed_s) if as_json else _as_text(checked))
    return exit_code(checked)


def kept_step(profile: Profile) -> int | bool:
    """Samples in a step of the optimizer, where gradients of several batches make it up; False elsewhere."""
    recipe = profile.recipe
    if recipe is None or max(recipe.accumulation_steps, recipe.reference_accumulation_steps) == 1:
        return False
    return recipe.step_samples


def checked_with(
    runner: Runner, profile: Profile, listener: Listener, *, budget_s: float, clock: Any = time.monotonic
) -> Checked:
    """The answer for a profile, by a Runner that exists.

    Args:
        runner: of the workload that the profile is about.
        profile: what was saved.
        listener: told of each trial.
        budget_s: wall seconds for everything.
        clock: seconds, monotonic.

    Raises:
        AutotuneError: where the workload or the settings that the profile replaced do not run.
    """
    from autotune.profile.freshness import freshness, misfit, same, unfit
    from autotune.profile.match import differences
    from autotune.search.recheck import recheck

    started_s = clock()
    description = runner.describe()
    found = differences(profile, description.machine, description.workload)
    if unfit(found):
        return Checked(freshness=misfit(found))
    yours = profile.measured.yours_settings
    if profile.settings == yours:
        return Checked(freshness=same(found))
    left_s = budget_s - (clock() - started_s)
    description = replace(description, yours=yours)
    listener.started(description, (), left_s)
    listener.stage("the profile's settings against those they replaced")
    pairs = recheck(
        runner,
        description,
        profile.settings,
        listener,
        budget_s=left_s,
        epochs=profile.measured.epochs,
        weight=profile.measured.weight,
        clock=clock,
    )
    return Checked(freshness=freshness(profile, pairs, found), pairs=pairs)


def exit_code(checked: Checked) -> int:
    """0 valid, 3 does not fit, 4 stale or not to be told; 130 where Ctrl-C cut it short."""
    if checked.pairs is not None and checked.pairs.interrupted:
        return INTERRUPTED
    return {"valid": OK, "unfit": UNFIT, "stale": DOUBTFUL, "unsure": DOUBTFUL}[checked.freshness.kind]


def _as_text(checked: Checked) -> str:
    found = checked.freshness
    listed = (f"  {difference}" for difference in found.differences)
    return "\n".join((f"{found.kind}: {found.sentence}", *listed))


def _as_json(checked: Checked, profile: Profile, elapsed_s: float) -> str:
    from autotune.codec import encode

    found = checked.freshness
    return json.dumps(
        {
            "autotune": __version__,
            "name": profile.name,
            "check": found.kind,
            "sentence": found.sentence,
            "ratio": encode(found.ratio),
            "was": encode(found.was),
            "pairs": found.pairs,
            "weight": found.weight,
            "differences": encode(found.differences),
            "elapsed_s": elapsed_s,
            "trials": encode(checked.pairs.trials) if checked.pairs is not None else [],
        },
        indent=2,
    )
