"""What a sample teaches in larger batches: as the noise scale predicts it, and as training shows it.

    python benchmarks/efficiency.py --minutes 60 --out efficiency.json.gz

For each task and seed the noise scale is taken by the product's own probe, over a stretch of training as the
product does. Then the task is trained with k = 1, 2, 4, 8 and 16 times the batch from the same weights until
its loss on held-out data is down at the target, with all that the recipe says: once whole, once without its
warmup (the same where it has none), so that the learning rates are seen alone, for Adam once with a warmup
from a hundredth of the rate instead of the user's own, and once with every number left alone. The runs are
short, and a warmup takes up to a tenth of what the recipe is told is the run.

    predicted = (phi + M0) / (phi + M)        measured = samples to the target with M0 / samples with M

Prints both for several targets on the way, as phi grows while one trains, with phi at its estimate and at its
lower bound, which is what the product counts on. Started again with the same file it goes on. No figure
depends on speed, so runs may go side by side (`--jobs`) and on any device. Data: the folder named by
AUTOTUNE_DATA.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from efficiency_tasks import TASKS, Task, losses_of, task_of
from raw_file import RawFile, Work, fill, identity
from samples_to_target import Mark, Seen, samples_to, table
from torch import nn
from torch.utils.data import TensorDataset

from autotune import Workload
from autotune.codec import decode, encode
from autotune.errors import ModelError
from autotune.facts import WorkloadFacts
from autotune.kit import make_kit
from autotune.measure.inprocess import InProcessRunner
from autotune.measure.seam import GradientSpec
from autotune.outcome import NoiseScale, Recipe
from autotune.recipe.noise_scale import GradientStats, noise_scale
from autotune.recipe.scaling import UNWARMED_FACTOR, scale_recipe
from autotune.search.batch_moves import MICRO_BATCHES, STEPS, UNSEEN
from autotune.settings import LoaderSettings, Settings

MODES = {
    "whole": "the whole recipe",
    "rates": "the recipe without its warmup",
    "hundredth": "the recipe with its warmup from a hundredth",
    "alone": "the batch alone, every number left as it was",
}
OWN = "rates/1"
"""The user's own batch, which has neither."""
EPOCHS = 3
"""The length of the run that the recipe is told; also the most that a run is trained for."""
CHUNK = 500
DRAWS = 5
"""Of batches for a noise scale, where the probe refuses."""


def probe(task: Task, seed: int, trained_steps: int) -> Any:
    """The workload's facts and its noise scale over the later half of so many steps, as JSON.

    Where the probe refuses, other batches are drawn; what it refused is kept.

    Raises:
        AutotuneError: where it refuses `DRAWS` times.
    """
    torch.manual_seed(seed)
    runner = InProcessRunner(
        Workload(
            task.model(),
            TensorDataset(*(tensor.cpu() for tensor in task.train.tensors)),
            loss=task.loss,
            optimizer=task.optimizer,
            batch_size=task.batch_size,
            device=task.device,
        )
    )
    described, refused = runner.describe(), []
    for draw in range(DRAWS):
        spec = GradientSpec(
            settings=described.yours,
            steps=STEPS,
            micro_batches=MICRO_BATCHES,
            warm_steps=round(UNSEEN * trained_steps),
            apart=round((1 - UNSEEN) * trained_steps / (STEPS - 1)),
            seed=seed + 1000 * draw,
            window_s=120.0,
            timeout_s=600.0,
        )
        stats = runner.probe_gradients(spec)
        assert isinstance(stats, GradientStats), stats
        found = noise_scale(stats)
        if found is not None:
            facts = encode(described.workload)
            return {"facts": facts, "noise": encode(found), "stats": encode(stats), "refused": refused}
        refused.append(stats.refused)
    raise ModelError("these gradients give no noise scale", why="; ".join(refused))


def batches(data: TensorDataset, size: int, epochs: int, seed: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """Whole batches of freshly shuffled data."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(len(data), generator=generator).to(data.tensors[0].device)
        for chosen in order.split(size):
            if len(chosen) == size:
                yield tuple(tensor[chosen] for tensor in data.tensors)


def train(task: Task, recipe: Recipe, seed: int) -> list[Mark]:
    """Train from the seed's weights until the target, or for `EPOCHS`."""
    torch.manual_seed(seed)
    size = recipe.batch_size
    settings = Settings(loader=LoaderSettings(batch_size=size))
    marks: list[Mark] = []
    with make_kit(settings, recipe, task.model(), task.optimizer, loss=task.loss, device=task.device) as kit:
        for batch in batches(task.train, size, EPOCHS, seed):
            kit.step(batch)
            if kit.samples_seen >= (len(marks) + 1) * task.every:
                marks.append(Mark(samples=kit.samples_seen, loss=held_out_loss(kit.model, task)))
                if samples_to(marks, task.target) < math.inf or math.isnan(marks[-1].loss):
                    break
    return marks


@torch.no_grad()
def held_out_loss(model: nn.Module, task: Task) -> float:
    """Mean loss on the held-out data."""
    x, y = task.held_out.tensors
    model.eval()
    summed = sum(float(task.loss(model(a), b)) * len(a) for a, b in zip(x.split(CHUNK), y.split(CHUNK)))
    model.train()
    return summed / len(x)


def recipe_of(facts: WorkloadFacts, noise: NoiseScale, growth: int, mode: str) -> Recipe:
    """What the product says for a batch so many times as large."""
    own = facts.batch_samples
    recipe = scale_recipe(facts, growth * own, own, epochs=EPOCHS, noise=noise)
    if mode == "alone":
        return replace(scale_recipe(facts, own, own), batch_size=growth * own)
    if mode == "rates":
        return replace(recipe, warmup_samples=0)
    return recipe if mode == "whole" else replace(recipe, warmup_start=0.01)


class Deadline:
    """Says whether another run fits, by the longest so far."""

    def __init__(self, minutes: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ends_s, self._longest_s = clock() + 60 * minutes, 0.0

    def fits(self) -> bool:
        """Whether a run as long as the longest so far would end in time."""
        return self._clock() + self._longest_s <= self._ends_s

    def timed(self, work: Callable[[], Any]) -> Any:
        """What the work gives; how long it takes is noted."""
        started = self._clock()
        done = work()
        self._longest_s = max(self._longest_s, self._clock() - started)
        return done


def key_of(name: str, target: float, seed: int, kind: str) -> str:
    """Of a run in the raw data; it ends at its target, and one for another target is another run."""
    return f"{name}/to {target:g}/{seed}/{kind}"


def noise_of(name: str, target: float, seed: int, trained_steps: int, device: str) -> Any:
    """What `probe` says of a named task."""
    return probe(task_of(name, device, target), seed, trained_steps)


def run_of(name: str, target: float, seed: int, kind: str, probed: Any, device: str) -> Any:
    """The marks of one run of a named task, as JSON."""
    facts, noise = decode(WorkloadFacts, probed["facts"]), decode(NoiseScale, probed["noise"])
    mode, _, growth = kind.partition("/")
    return encode(train(task_of(name, device, target), recipe_of(facts, noise, int(growth), mode), seed))


def measure(raw: RawFile, work: Work, deadline: Deadline, jobs: int) -> bool:
    """Measure what the raw data lack while there is time; whether all of it is there after that."""
    timed = {key: partial(deadline.timed, one) for key, one in work.items()} if jobs == 1 else work
    return fill(raw, timed, jobs=jobs, fits=deadline.fits)


def noises(targets: Mapping[str, float], seeds: int, trained_steps: int, device: str) -> Work:
    """The noise scale of every task and seed."""
    return {
        f"{name}/{seed}/noise": partial(noise_of, name, target, seed, trained_steps, device)
        for seed in range(seeds)
        for name, target in targets.items()
    }


def runs(
    raw: RawFile,
    targets: Mapping[str, float],
    seeds: int,
    device: str,
    kinds: Callable[[str], Sequence[str]],
) -> Work:
    """Every run of every task and seed whose noise scale is known."""
    return {
        key_of(name, target, seed, kind): partial(
            run_of, name, target, seed, kind, raw.values[f"{name}/{seed}/noise"], device
        )
        for seed in range(seeds)
        for name, target in targets.items()
        if f"{name}/{seed}/noise" in raw.values
        for kind in kinds(name)
    }


def kinds_of(name: str, *, modes: Sequence[str], growths: Sequence[int]) -> list[str]:
    """The runs of a task and seed: MODE/GROWTH."""
    known = [mode for mode in modes if mode != "hundredth" or "adam" in name]
    return [OWN, *(f"{mode}/{growth}" for growth in growths for mode in known)]


def seen_in(
    raw: RawFile,
    name: str,
    ended: float,
    target: float,
    mode: str,
    seeds: Sequence[int],
    growths: Sequence[int],
) -> list[Seen]:
    """All that the raw data hold of a task under one mode, its runs having gone on until `ended`."""

    def samples(seed: int, kind: str) -> float | None:
        held = raw.values.get(key_of(name, ended, seed, kind))
        return None if held is None else samples_to([decode(Mark, mark) for mark in held], target)

    found = []
    for seed in seeds:
        own = samples(seed, OWN)
        for growth in growths:
            this = samples(seed, f"{mode}/{growth}")
            if own is None or this is None or math.isinf(own):
                continue
            noise = decode(NoiseScale, raw.values[f"{name}/{seed}/noise"]["noise"])
            reference = decode(WorkloadFacts, raw.values[f"{name}/{seed}/noise"]["facts"]).batch_samples
            found.append(
                Seen(
                    growth=growth,
                    noise=noise.value,
                    bound=noise.lower_bound,
                    reference=reference,
                    own_samples=own,
                    samples=this,
                )
            )
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tasks", nargs="*", choices=list(TASKS), help="all of them without")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=60.0, help="of all of it, at most")
    parser.add_argument("--trained-steps", type=int, default=200, help="of a look at the noise scale")
    parser.add_argument("--target", type=float, help="held-out loss that ends a run; the tasks' own without")
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES))
    parser.add_argument("--growths", nargs="+", type=int, default=[2, 4, 8, 16], metavar="K")
    parser.add_argument("--out", type=Path, default=Path("efficiency.json.gz"), metavar="FILE")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, with one thread each")
    args = parser.parse_args()
    args.tasks = args.tasks or list(TASKS)
    return args


def main() -> None:
    args = arguments()
    targets = {name: losses_of(name)[-1] if args.target is None else args.target for name in args.tasks}
    raw = RawFile(
        args.out,
        identity(
            "efficiency",
            trained_steps=args.trained_steps,
            device=args.device,
            unwarmed_factor=UNWARMED_FACTOR,
        ),
    )
    deadline = Deadline(args.minutes)
    looks = noises(targets, args.seeds, args.trained_steps, args.device)
    whole = measure(raw, looks, deadline, args.jobs)
    kinds = partial(kinds_of, modes=args.modes, growths=args.growths)
    trained = runs(raw, targets, args.seeds, args.device, kinds)
    if not (measure(raw, trained, deadline, args.jobs) and whole):
        print(f"{args.minutes:g} minutes were not enough for all runs", file=sys.stderr)
    for name, ended in targets.items():
        for mode in args.modes:
            for target in (*(loss for loss in losses_of(name) if loss > ended), ended):
                found = seen_in(raw, name, ended, target, mode, range(args.seeds), args.growths)
                if found:
                    print(table(f"{name}, to a loss of {target:g}, {MODES[mode]}", found), end="\n\n")


if __name__ == "__main__":
    main()
