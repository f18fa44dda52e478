"""`find_best` and `load`: the shell wired together."""

from __future__ import annotations

import functools
import glob
import math
import os
import typing
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import autotune
from autotune.errors import UsageError
from autotune.measure.seam import Description, Runner
from autotune.outcome import DecayShape, Objective
from autotune.profile import store
from autotune.profile.earlier import earlier_settings
from autotune.profile.schema import profile_of
from autotune.profile.yaml_io import loads
from autotune.result import Result, Tuned
from autotune.search.listener import Listener, SilentListener
from autotune.settings import KnobValue, Settings
from autotune.units import parse_duration_s
from autotune.workload import Workload

Allow = Literal["exact", "numerics", "recipe"]
RunnerName = Literal["process", "in_process"]


def find_best(
    model: Any,
    dataset: Any = None,
    *,
    loss: Any = None,
    step: Any = None,
    train_step: Any = None,
    optimizer: Any = None,
    batch_size: int | None = None,
    samples_per_step: int | None = None,
    device: str | None = None,
    shuffle: bool = True,
    collate_fn: Any = None,
    drop_last: bool = False,
    keep_effective: bool | int = False,
    allow: Allow = "recipe",
    budget: str | float = "5m",
    objective: Objective = "goodput",
    max_batch_size: int | None = None,
    warm: int | None = None,
    decay: DecayShape | None = None,
    epochs: int | None = None,
    fixed: Mapping[str, KnobValue] | None = None,
    runner: RunnerName | Runner = "process",
    storage: str | Path | None = None,
    resume: bool = False,
    warm_start: bool = True,
    seed: int = 0,
    name: str = "",
    listener: Listener | None = None,
) -> Result:
    """Measure real training steps and return the settings that train fastest without training worse.

    Nothing of yours is changed: model, optimizer, random states and torch's switches are after the call
    what they were before it.

    Args:
        model: an `nn.Module`, a dict of them, a function that makes one, a whole `autotune.Workload`, or
            the name of a function that returns one: "train.py:make" or "package.module:make". By name,
            nothing but the bench process imports it, and nothing has to be pickled.
        dataset, loss, step, train_step, optimizer, batch_size, samples_per_step, device, shuffle,
        collate_fn, drop_last, keep_effective: as for `autotune.Workload`.
        allow: the highest class of knob that may change. `exact`: the same numbers come out (workers,
            prefetch, pinning). `numerics`: rounding may change too (precision, cudnn.benchmark,
            channels_last, fused, threads). `recipe`: learning may change too (batch size, with its
            learning rate and warmup).
        budget: wall-clock time for everything, such as 90, "90s" or "5m". Never exceeded by more than
            the end of a trial; for its first steps a workload has a minute in any case.
        objective: what is best across batch sizes, where `allow` lets them change. `goodput`: what is learned
            in a second, with nearly as much from each sample. `time`: the same, if you add the epochs that
            make up for what each teaches less. `throughput`: samples a second, whatever they teach.
        max_batch_size: the largest batch that may be tried; without, eight times yours.
        warm: with allow="recipe", training steps before gradients are looked at, from which larger batches
            are judged; without, as many as there is time for, some 200 at most. 0 where the weights that you
            hand over are trained already.
        decay: let the learning rate come down so over the whole run, whatever batch size is chosen:
            `cosine`, `polynomial` (a straight line to 0) or `wsd` (over the last fifth). The kit drives it by
            samples. Needs `epochs`. Without it a scheduler of yours goes to `kit(scheduler=...)`.
        epochs: how long you will train. Start-up costs are spread over that; without it the settings are
            judged for a long run.
        fixed: knobs that must have a value, such as {"num_workers": 4}.
        runner: `process` measures in another process, and survives crashes and hangs; `in_process`
            measures here. Or a Runner of your own.
        storage: an Optuna storage URL or a file for the study; a journal file in the user's data folder
            without. `optuna-dashboard` opens it.
        resume: go on with the study in `storage`.
        warm_start: try first what saved profiles say won on the like of this workload; measured again.
        seed: of every random choice, 0 to 2**32 - 1.
        name: what to call it in reports and file names; without, what the Workload says, else the model's
            class or the target's file.
        listener: is told of every trial as it happens.

    Returns:
        The result: `print` it, then use `loader()`, `kit()` and `save()`. After Ctrl-C it holds the best
        so far and says that it is incomplete.

    Raises:
        AutotuneError: when the workload cannot be measured; it says what, why and what to do.
    """
    fields = {
        "loss": loss,
        "step": step,
        "train_step": train_step,
        "optimizer": optimizer,
        "batch_size": batch_size,
        "samples_per_step": samples_per_step,
        "device": device,
        "shuffle": shuffle,
        "collate_fn": collate_fn,
        "drop_last": drop_last,
        "keep_effective": keep_effective,
        "name": name,
    }
    workload, target = _workload(model, dataset, fields, in_process=runner == "in_process")
    called = name or (workload.name or _model_name(workload.model) if workload else _target_name(target))
    own_runner = isinstance(runner, str)
    chosen: Runner = (
        runner
        if not isinstance(runner, str)
        else make_runner(workload, runner, target, fields, parse_duration_s(budget))
    )
    try:
        return tune_with(
            chosen,
            workload,
            allow=allow,
            budget=budget,
            objective=objective,
            max_batch_size=max_batch_size,
            warm=warm,
            decay=decay,
            epochs=epochs,
            fixed=fixed,
            storage=storage,
            resume=resume,
            warm_start=warm_start,
            seed=seed,
            name=called,
            listener=listener,
        )
    finally:
        if own_runner:
            chosen.close()


def _workload(
    model: Any, dataset: Any, fields: dict[str, Any], *, in_process: bool
) -> tuple[Workload | None, str]:
    """A workload of live objects, or the target that another process will make it from."""
    if isinstance(model, str) and dataset is not None:
        raise UsageError(
            "a target and a dataset were given",
            why=f"`{model}` makes its own workload, dataset included",
            fix="let its function return the dataset, or pass the model itself beside the dataset",
        )
    if isinstance(model, str) and not in_process:
        return None, model
    if isinstance(model, str):
        from autotune.measure.target import load_target, parse_target

        model = load_target(parse_target(model))
    if not isinstance(model, Workload):
        return Workload(model, dataset, **fields), ""
    if dataset is not None:
        raise UsageError(
            "a Workload and a dataset were given",
            why="a Workload holds its dataset",
            fix="put the dataset into the Workload",
        )
    return model.with_(**_given(fields)), ""


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields that say something else than their default."""
    defaults = {name: f.default for name, f in Workload.__dataclass_fields__.items()}
    return {name: value for name, value in fields.items() if value != defaults[name]}


def _model_name(model: Any) -> str:
    if isinstance(model, Mapping):
        return "-".join(type(one).__name__ for one in model.values()).lower()
    if isinstance(model, functools.partial):
        model = model.func
    kind = model.__name__ if callable(model) and hasattr(model, "__name__") else type(model).__name__
    return str(kind).lower().strip("<>")


def _target_name(target: str) -> str:
    """Of a file its name, of a dotted module the last part."""
    return Path(target.rpartition(":")[0]).name.removesuffix(".py").rpartition(".")[2]


def make_runner(
    workload: Workload | None, name: str, target: str, fields: dict[str, Any], budget_s: float = math.inf
) -> Runner:
    """The Runner of that name, for live objects or for a target, in a run of so many wall seconds.

    Raises:
        NotPicklableError: when live objects cannot be sent to another process.
        TargetError: when a target is not there.
    """
    if name == "in_process" and workload is not None:
        from autotune.measure.inprocess import InProcessRunner

        return InProcessRunner(workload)
    if name == "process":
        from autotune.measure.payload import pickle_workload, target_payload
        from autotune.measure.process_runner import ProcessRunner
        from autotune.measure.target import parse_target

        if workload is not None:
            return ProcessRunner(pickle_workload(workload), budget_s=budget_s)
        parse_target(target)
        return ProcessRunner(target_payload(target, **_given(fields)), budget_s=budget_s)
    raise UsageError(f"`{name}` is no runner", fix='use runner="process" or runner="in_process"')


def tune_with(
    runner: Runner,
    workload: Workload | None,
    *,
    allow: Allow = "recipe",
    budget: str | float = "5m",
    objective: Objective = "goodput",
    max_batch_size: int | None = None,
    warm: int | None = None,
    decay: DecayShape | None = None,
    epochs: int | None = None,
    fixed: Mapping[str, KnobValue] | None = None,
    storage: str | Path | None = None,
    resume: bool = False,
    warm_start: bool = True,
    seed: int = 0,
    name: str = "",
    listener: Listener | None = None,
) -> Result:
    """Tune with a Runner that exists; `find_best` and the command line both end here."""
    from autotune.search.engine import TuneOptions, tune

    _check_count("epochs", epochs, fix="leave it out for a long run")
    _check_count("max_batch_size", max_batch_size, fix="leave it out to let the measurements decide")
    _check_count("warm", warm, fix="leave it out to let the budget decide", least=0)
    _check_values(allow, objective, fixed, seed)
    _check_decay(decay, epochs)
    place = os.fspath(storage) if storage is not None else _journal(name, resume=resume)
    options = TuneOptions(
        budget_s=parse_duration_s(budget),
        allow=allow,
        objective=objective,
        max_batch_size=max_batch_size,
        warm=warm,
        decay=decay,
        epochs=epochs,
        fixed=dict(fixed or {}),
        seed=seed,
        storage=place,
        study_name=name,
        resume=resume,
        name=name,
        first=_won_before if warm_start else _nothing,
    )
    outcome = tune(runner, options, listener or SilentListener())
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    profile = profile_of(outcome, created=created, version=autotune.__version__)
    return Result(profile, outcome, workload)


def _check_values(allow: str, objective: str, fixed: Any, seed: Any) -> None:
    if fixed is not None and not isinstance(fixed, Mapping):
        raise UsageError(
            "`fixed` is no mapping", why=f"it is {fixed!r}", fix='name values too, such as {"num_workers": 4}'
        )
    if not isinstance(seed, int):
        raise UsageError(
            "`seed` must be a whole number", why=f"it is {seed!r}", fix="leave it out, or give one"
        )
    if not 0 <= seed < 2**32:
        raise UsageError(
            "`seed` must be at least 0 and under 2**32",
            why=f"it is {seed!r}, and the sampler of the search takes no other",
            fix="leave it out, or give one in that range",
        )
    if allow not in ("exact", "numerics", "recipe"):
        raise UsageError(
            f"`allow` cannot be {allow!r}",
            fix='use "exact", "numerics" or "recipe"',
            why="it names a class of knob",
        )
    if objective not in ("goodput", "throughput", "time"):
        raise UsageError(
            f"`objective` cannot be {objective!r}",
            fix='use "goodput", "throughput" or "time"',
            why="it says what is best across batch sizes",
        )


def _check_count(name: str, value: Any, *, fix: str, least: int = 1) -> None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
        raise UsageError(
            f"`{name}` must be a whole number of at least {least}", why=f"it is {value!r}", fix=fix
        )


def _check_decay(decay: str | None, epochs: int | None) -> None:
    shapes = typing.get_args(DecayShape)
    if decay is not None and decay not in shapes:
        raise UsageError(
            f"`decay` cannot be {decay!r}",
            why="it says how the learning rate comes down",
            fix=f"use one of {', '.join(shapes)}, or leave it out to keep your own",
        )
    if decay is not None and epochs is None:
        raise UsageError(
            f"a {decay} decay needs the length of the run",
            why="neither its shape nor its end is known without",
            fix="give epochs= as well",
        )


def _won_before(description: Description) -> tuple[Settings, ...]:
    return earlier_settings(description.machine, description.workload)


def _nothing(description: Description) -> tuple[Settings, ...]:
    return ()


def _journal(name: str, *, resume: bool) -> str:
    """The study's own file: one for each run, so that an old run stays readable; the newest on resume."""
    first = store.study_path(name)
    stamps = "[0-9]" * 8 + "-" + "[0-9]" * 6  # not those of a workload whose name goes on after a dash
    runs = sorted(first.parent.glob(f"{glob.escape(first.stem)}-{stamps}{first.suffix}"))
    if resume and runs:
        return str(runs[-1])
    stamp = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    return os.fspath(first.with_name(f"{first.stem}-{stamp}{first.suffix}"))


def load(path: str | Path | None = None) -> Tuned:
    """A saved profile, ready to make loaders and kits.

    Args:
        path: of the YAML file; without it `autotune.yaml` here, else the newest saved profile.

    Raises:
        ProfileError: when it cannot be read; line and column are shown.
    """
    source = Path(path) if path is not None else store.find_profile()
    return Tuned(loads(store.read_bytes(source), source=str(source)))
