"""Measures every combination of a sub-space of settings, in shuffled rounds, and stores all of it.

    python benchmarks/record_grid.py photos-64 --out photos-64.jsonl.gz --budget 25m
    python benchmarks/record_grid.py mnist --out m.jsonl.gz --knobs num_workers=0,2,4 precision

Each round measures the real step of every combination once, each loader alone and each step alone, in an
order of its own, so that a machine that drifts drifts over all of them. Started again with the same file,
it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from grids import Axis, GridWriter, Header, read_grid

from autotune.errors import StudyError, UsageError
from autotune.measure.seam import Description, Runner
from autotune.settings import KnobValue, Settings
from autotune.space.candidates import Space, build_space
from autotune.space.knobs import knob
from autotune.trial import Failure, Trial, TrialSpec
from autotune.units import parse_duration_s

Values = dict[str, tuple[KnobValue, ...]]

PHOTOS: Values = {
    "num_workers": (0, 1, 2, 4, 8, 12, 16),
    "prefetch_factor": (None, 2, 4),
    "cpu_threads": (1, 2),
    "channels_last": (False, True),
    "precision": ("float32", "tf32", "bfloat16", "float16"),
}
IN_MEMORY: Values = {
    "num_workers": (0, 1, 2, 4, 8),
    "prefetch_factor": (None, 2, 8),
    "cpu_threads": (1, 2),
    "fused_optimizer": (False, True),
    "precision": ("float32", "tf32", "bfloat16", "float16"),
    "batch_size": (32, 64, 128, 256, 512),
}
LANGUAGE: Values = {
    "num_workers": (0, 1, 2, 4),
    "prefetch_factor": (None, 2, 4),
    "cpu_threads": (1, 2),
    "fused_optimizer": (False, True),
    "precision": ("float32", "tf32", "bfloat16", "float16"),
    "pin_memory": (False, True),
    "non_blocking": (False, True),
    "batch_size": (32, 64),
}
RESNET50: Values = {
    "num_workers": (0, 4, 8, 12, 16),
    "prefetch_factor": (None, 2, 4),
    "cpu_threads": (1, 2),
    "pin_memory": (False, True),
    "non_blocking": (False, True),
    "channels_last": (False, True),
    "cudnn_benchmark": (False, True),
    "precision": ("float32", "tf32", "bfloat16", "float16"),
}
SPACES: dict[str, Values] = {
    "mnist": {**IN_MEMORY, "channels_last": (False, True), "batch_size": (64, 128)},
    "photos-64": PHOTOS,
    "photos-96": PHOTOS,
    "photos-resnet50": RESNET50,
    "tensors-resnet50": RESNET50,
    "char-lm": LANGUAGE,
    "char-lm-gpu": LANGUAGE,
    "tabular": IN_MEMORY,
    "io-bound": {**IN_MEMORY, "num_workers": (0, 1, 2, 3, 4), "batch_size": (32, 64)},
    "autoencoder": {**IN_MEMORY, "batch_size": (128, 256, 512)},
}
"""What is measured of each workload, as far as it is legal: the device's own knobs need a device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much to measure."""

    rounds: int = 3
    window_s: float = 0.6
    budget_s: float = 1500.0
    seed: int = 0


def axes_of(space: Space, declared: Mapping[str, Sequence[KnobValue]]) -> tuple[Axis, ...]:
    """The declared values that are legal on this machine; a knob with none of them stays as in *yours*."""
    found = []
    for name, values in declared.items():
        legal = tuple(value for value in values if value in space.values(knob(name).name))
        if legal:
            found.append(Axis(knob=name, values=legal))
    return tuple(found)


def specs_of(space: Space, axes: Sequence[Axis], window_s: float) -> list[TrialSpec]:
    """One round: *yours*, every legal combination, every loader alone and every step alone."""
    full: dict[Settings, None] = {space.yours: None}
    names = [axis.knob for axis in axes]
    for values in itertools.product(*(axis.values for axis in axes)):
        made = space.settings(**dict(zip(names, values)))
        if space.legal(made):
            full[made] = None
    base = TrialSpec(settings=space.yours, stage="joint", window_s=window_s)
    specs = [replace(base, settings=s, stage="yours" if s == space.yours else "joint") for s in full]
    if not space.workload.has_loader:
        return specs
    loaders = {s.loader: s for s in full}
    steps = {(s.compute, s.loader.batch_size): s for s in full}
    specs += [replace(base, settings=s, stage="loader", mode="loader") for s in loaders.values()]
    specs += [replace(base, settings=s, stage="compute", mode="compute") for s in steps.values()]
    return specs


def record(
    runner: Runner,
    out: Path,
    header: Header,
    specs: Sequence[TrialSpec],
    plan: Plan,
    *,
    clock: Callable[[], float] = time.monotonic,
    say: Callable[[str], None] = lambda text: None,
) -> str:
    """Measure what the file does not hold yet, and say why it ended.

    Raises:
        StudyError: when the file holds another workload, machine or grid.
    """
    ends_s = clock() + plan.budget_s
    known = _known(out, header)
    done = Counter(_key(trial.spec) for trial in known)
    number = len(known)
    writer = GridWriter(out, header, known)
    try:
        for round_ in range(plan.rounds):
            todo = [spec for spec in specs if done[_key(spec)] <= round_]
            random.Random(plan.seed + round_).shuffle(todo)
            for spec in todo:
                if clock() >= ends_s:
                    return f"the budget is used up in round {round_ + 1} of {plan.rounds}"
                outcome = runner.run(spec)
                failure = outcome if isinstance(outcome, Failure) else None
                measurement = None if isinstance(outcome, Failure) else outcome
                trial = Trial(number=number, spec=spec, measurement=measurement, failure=failure)
                writer.add(trial)
                number += 1
                say(f"{round_ + 1}/{plan.rounds} {_line(trial)}")
        return "complete"
    finally:
        writer.close()


def _line(trial: Trial) -> str:
    measured = trial.measurement
    failed = trial.failure.kind if trial.failure is not None else ""
    result = f"{measured.samples_per_s:.1f} samples/s" if measured is not None else failed
    return f"{trial.number:>4} {trial.spec.mode:<7} {result:>18}  {trial.settings.key()}"


def _key(spec: TrialSpec) -> tuple[str, str]:
    return spec.mode, spec.settings.key()


def _known(out: Path, header: Header) -> tuple[Trial, ...]:
    if not out.exists():
        return ()
    earlier = read_grid(out)
    ours, theirs = (_identity(h) for h in (header, earlier.header))
    if ours != theirs:
        raise StudyError(
            f"{out} holds another grid",
            why=f"it is of {theirs[0]}, on another machine, with another *yours* or other values",
            fix="name another file with --out",
        )
    return earlier.trials


def _identity(header: Header) -> tuple[object, ...]:
    seen = header.description
    return (
        header.workload,
        header.axes,
        seen.yours,
        seen.machine.fingerprint(),
        seen.machine.torch_version,
        seen.workload.fingerprint(),
    )


def chosen(declared: Values, knobs: Sequence[str], space: Space) -> Values:
    """The declared values narrowed down to what `--knobs` names: `NAME` or `NAME=VALUE,VALUE`.

    Raises:
        UsageError: for a name that is no knob and a value that it cannot have here.
    """
    if not knobs:
        return declared
    narrowed: Values = {}
    for text in knobs:
        name, given, values = text.partition("=")
        legal = {str(value): value for value in space.values(knob(name).name)}
        wanted = values.split(",") if given else [str(value) for value in declared.get(name, legal.values())]
        unknown = [value for value in wanted if value not in legal]
        if given and unknown:
            raise UsageError(f"`{name}` cannot be {unknown[0]} here", why=f"it can be {', '.join(legal)}")
        narrowed[name] = tuple(legal[value] for value in wanted if value in legal)
    return narrowed


def space_of(description: Description) -> Space:
    """All that may be tried, batch sizes included."""
    return build_space(description.machine, description.workload, description.yours, allow="recipe")


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    usual = Plan()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("workload", choices=list(SPACES))
    parser.add_argument("--out", type=Path, default=None, metavar="FILE", help="WORKLOAD.jsonl.gz without")
    parser.add_argument("--rounds", type=int, default=usual.rounds, help="times that everything is measured")
    parser.add_argument("--window-s", type=float, default=usual.window_s, help="timed seconds of a trial")
    parser.add_argument("--budget", default="25m", help="wall time of this session")
    parser.add_argument("--knobs", nargs="*", default=[], help="NAME or NAME=VALUE,VALUE: these knobs only")
    return parser.parse_args(argv)


def main() -> None:
    from real_workloads import WORKLOADS

    from autotune.measure.payload import pickle_workload
    from autotune.measure.process_runner import ProcessRunner

    args = arguments(sys.argv[1:])
    out = args.out or Path(f"{args.workload}.jsonl.gz")
    plan = Plan(rounds=args.rounds, window_s=args.window_s, budget_s=parse_duration_s(args.budget))
    with ProcessRunner(pickle_workload(WORKLOADS[args.workload]())) as runner:
        description = runner.describe()
        space = space_of(description)
        axes = axes_of(space, chosen(SPACES[args.workload], args.knobs, space))
        command = " ".join(["python", "benchmarks/record_grid.py", *sys.argv[1:]])
        header = Header(workload=args.workload, command=command, description=description, axes=axes)
        specs = specs_of(space, axes, plan.window_s)
        combinations = sum(spec.mode == "full" for spec in specs)
        print(f"{combinations} combinations, {len(specs)} trials a round", flush=True)
        print(record(runner, out, header, specs, plan, say=lambda text: print(text, flush=True)))


if __name__ == "__main__":
    main()
