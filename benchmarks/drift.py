"""Whole searches on made-up machines whose speed changes meanwhile: what measuring *yours* again brings.

    python benchmarks/drift.py [SCALE] [--raw FILE]

Prints one line per case; SCALE multiplies the number of simulated searches, `--raw` keeps each of them as
JSON.

Each case plays the search of a run, without the finals, by the very rules of a run; only the sampler is
replaced by chance. The true gains of the settings are known, and the machine's speed follows a path. Each
search is played twice: as it is, and without measuring *yours* again and without correcting for the drift.
"behind" is how far the settings that the search ends with are behind the best that it ran, in truth; "gain"
is their true gain over *yours*.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from autotune.search.context import PlanContext
from autotune.search.cost import Costs
from autotune.search.decision import Run, Sample
from autotune.search.drift import Drift
from autotune.search.knowledge import Knowledge
from autotune.search.plan import next_move, sampled
from autotune.settings import Settings
from autotune.space.candidates import build_space
from autotune.testing import FakeClock, FakeRunner, fake_description
from autotune.trial import Measurement, Mode, Trial, TrialSpec

BUDGET_S = 600.0
SEARCH_S = 150.0
"""About what a search takes of that; the drift is over it, and over with it."""
RUNS = 60
SIZE = 0.10
SPREAD = 0.04
"""Standard deviation of what each value of a knob does to the log rate."""

Speed = Callable[[float, float], float]
"""From the part of `SEARCH_S` that is over, and a chance number in 0 to 1, to the machine's log speed."""
SPEEDS: dict[str, Speed] = {
    "steady": lambda part, at: 0.0,
    "slower": lambda part, at: -SIZE * part,
    "faster": lambda part, at: SIZE * part,
    "step down": lambda part, at: -SIZE * (part > 0.1 + 0.8 * at),
    "wave": lambda part, at: SIZE / 2 * math.sin(2 * math.pi * (part + at)),
}


class World:
    """A machine with known gains, a known path of its speed, and noise from run to run."""

    def __init__(self, seed: int, speed: Speed, noise: float) -> None:
        self.seed, self.speed = seed, speed
        self.chance = random.Random(seed)
        self.at = self.chance.random()
        self.clock = FakeClock()
        told = fake_description(has_conv2d=True, image_input=True, fused_available=True)
        self.space = build_space(told.machine, told.workload, told.yours, allow="numerics")
        self.runner = FakeRunner(
            self.rate, noise=noise, seed=seed, clock=self.clock, description=told, startup_s=lambda s: 0.0
        )

    def gain(self, settings: Settings) -> float:
        """True log gain over *yours*."""
        changed = settings.changed_from(self.space.yours).items()
        return sum(random.Random(f"{self.seed} {knob} {value}").gauss(0, SPREAD) for knob, value in changed)

    def rate(self, settings: Settings, mode: Mode) -> float:
        """Samples/s at this moment."""
        log_speed = self.speed(min(self.clock() / SEARCH_S, 1.0), self.at)
        return 400.0 * math.exp(self.gain(settings) + log_speed) * (1.0 if mode == "full" else 1.5)

    def search(self) -> Knowledge:
        """What a search finds."""
        self.runner.describe()
        history: list[Trial] = []
        while (spec := self._next(history)) is not None:
            found = self.runner.run(spec)
            if not isinstance(found, Measurement):  # the end of the time for the search
                break
            history.append(Trial(number=len(history), spec=spec, measurement=found))
        return Knowledge(self._context(), history)

    def _context(self) -> PlanContext:
        left_s = BUDGET_S - self.clock()
        return PlanContext(space=self.space, budget_s=BUDGET_S, remaining_s=left_s, seed=self.seed)

    def _next(self, history: list[Trial]) -> TrialSpec | None:
        context = self._context()
        move = next_move(context, history)
        if isinstance(move, Run):
            return move.spec
        if not isinstance(move, Sample):
            return None
        know = Knowledge(context, history)
        costs = Costs(know)
        for _ in range(25):
            drawn = {option.knob: self.chance.choice(option.values) for option in self.space.options}
            settings = self.space.settings(**drawn)
            run = sampled(know, costs, move.room_s, settings)
            if run is not None:
                return run.spec
        return None


@contextmanager
def uncorrected() -> Iterator[None]:
    """The search as it would be without a reference."""
    with (
        mock.patch("autotune.search.plan._reference", return_value=None),
        mock.patch("autotune.search.knowledge.estimate", return_value=Drift()),
    ):
        yield


def played(seed: int, speed: Speed, noise: float) -> dict[str, Any]:
    """One search and what it lost."""
    world = World(seed, speed, noise)
    know = world.search()
    gains = {settings: world.gain(settings) for settings in know.full}
    return {
        "seed": seed,
        "gain": gains[know.incumbent],
        "behind": max(gains.values()) - gains[know.incumbent],
        "trials": len(know.history),
        "search_s": world.clock(),
        "references": len(know.full[know.yours]) - 1,
        "steady": know.drift.steady,
    }


def case(name: str, noise: float, runs: int) -> list[dict[str, Any]]:
    """A line about many searches, with and without the reference, and all of them."""
    with_it = [played(seed, SPEEDS[name], noise) for seed in range(runs)]
    with uncorrected():
        without = [played(seed, SPEEDS[name], noise) for seed in range(runs)]

    def mean(found: list[dict[str, Any]], key: str) -> float:
        return statistics.fmean(run[key] for run in found)

    better = [b["gain"] - a["gain"] for a, b in zip(without, with_it)]
    error = statistics.stdev(better) / math.sqrt(runs)
    print(
        f"{name:<9}  noise {noise:4.1%}"
        f"  behind {mean(with_it, 'behind'):5.2%} (without {mean(without, 'behind'):5.2%})"
        f"  gain {mean(with_it, 'gain'):6.2%} (without {mean(without, 'gain'):6.2%},"
        f" difference {statistics.fmean(better):+.2%} +- {error:.2%})"
        f"  yours again {mean(with_it, 'references'):3.1f} of"
        f" {mean(with_it, 'trials'):4.1f} trials  n {runs}",
        flush=True,
    )
    kinds = (("reference", with_it), ("none", without))
    return [{"case": name, "noise": noise, "kind": kind, **run} for kind, found in kinds for run in found]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("scale", nargs="?", type=float, default=1.0)
    options.add_argument("--raw", type=Path)
    given = options.parse_args()
    started = time.perf_counter()
    runs = max(2, round(given.scale * RUNS))
    raw = [record for name in SPEEDS for noise in (0.01, 0.03) for record in case(name, noise, runs)]
    if given.raw is not None:
        given.raw.write_text(json.dumps(raw), encoding="utf-8")
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
