"""Verdicts where the true time of a step is known: a loader and a compute side, with noise in every step.

    python benchmarks/step_truth.py [SCALE] [--raw FILE] [--only TEXT]

Prints one line per case: how often the candidate wins, with the exact interval of that share, and how often
the interval shown holds the true ratio. About ten minutes on one core; SCALE multiplies the number of
simulated finals (1,000 per case). `--only` plays the cases whose line holds the text. `--raw` keeps every
pair of every finals as JSON lines, compressed.

`known_truth.py` makes up the rate of a whole run. Its noise is not lowered by measuring longer, so it is the
harder test of the verdict, and it says nothing of how a run is measured. Here each step has its time: the
loader makes batches beside the step and waits when its queue is full, so a step takes the longer of both
sides in the long run. Both sides have log-normal noise from step to step; one step in twenty takes 1.5 to 3
times as long; the machine slows down by 10 % over the finals; and a run as a whole is off by 1 %, which no
averaging within it lowers. The product's own loop (`autotune.measure.timing`) passes over the first steps
and cuts the rest into blocks, on a clock that only the steps move. Then pairs are judged as in a run of five
minutes, up to the pairs that are set aside (`FINAL_PAIRS`) or that there are at most (`MAX_PAIRS`).
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import itertools
import json
import random
import sys
import time
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal
from unittest import mock

import numpy as np
import torch
from played_finals import Finals, count, play, raw_of

from autotune.measure import timing
from autotune.measure.device import DeviceClock
from autotune.measure.load import Load
from autotune.search.cost import FINAL_PAIRS, MAX_PAIRS, MIN_BLOCKS, window_s
from autotune.settings import LoaderSettings, Settings
from autotune.testing import FakeClock
from autotune.trial import Measurement, TrialSpec

Side = Literal["loader", "compute", "both"]

STEP_S = 0.01
"""Seconds of a step of *yours*, noise aside."""
OTHER_SIDE = 0.6
"""What the side that does not bound the step takes, as a part of the one that does."""
BUDGET_S = 300.0
"""Of a run as it is without `budget=`."""
WINDOW_S = 1.5 * window_s(BUDGET_S, STEP_S)
"""Timed seconds of a final."""
OUTLIERS = 0.05
DRIFT = 0.10
RUN_NOISE = 0.01
SAMPLES = 32
WORKERS = 2
YOURS = Settings(loader=LoaderSettings(batch_size=SAMPLES, num_workers=WORKERS, prefetch_factor=2))
CANDIDATE = YOURS.replace(pin_memory=True)
"""Other settings by name alone: a longer queue would be faster in truth where both sides bound the step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One truth, played many times."""

    gain: float
    """True ratio of the candidate over *yours*, less one."""
    noise: float = 0.02
    """Standard deviation of a step's log time, on both sides."""
    side: Side = "compute"
    """What bounds the step, and is faster in the candidate."""
    last: int = MAX_PAIRS
    """Pairs that the budget holds."""

    def __str__(self) -> str:
        return (
            f"gain {self.gain:4.0%}  step noise {self.noise:4.0%}  bound by {self.side:<7}"
            f"  up to {self.last:>2} pairs"
        )


class TwoSides:
    """A loader with a queue, and a step beside it; stands in for a feed and is the step as well.

    Args:
        loader_s: seconds between two batches, when nothing holds the loader up.
        compute_s: seconds of a step that need not wait.
        noise: of both, from step to step.
        queue: batches that the loader makes ahead.
        clock: moved by waiting and by steps.
        seed: of the noise.
    """

    first_batch_s = 0.0
    epochs = 0

    def __init__(
        self,
        loader_s: float,
        compute_s: float,
        *,
        noise: float,
        queue: int,
        clock: FakeClock,
        seed: int,
    ) -> None:
        rng = np.random.default_rng(seed)
        self._loader = noisy(loader_s, noise, rng)
        self._compute = noisy(compute_s, noise, rng)
        self.in_flight, self.clock = queue, clock
        self.restarts_s: list[float] = []
        self._made_s = clock()
        self._taken: deque[float] = deque([self._made_s] * queue, maxlen=queue)

    def next(self) -> tuple[None, int]:
        """The next batch, as soon as it is made."""
        begun_s = max(self._made_s, self._taken[0])
        self._made_s = begun_s + next(self._loader)
        self.clock.now_s = max(self.clock.now_s, self._made_s)
        self._taken.append(self.clock.now_s)
        return None, SAMPLES

    def step(self, batch: object) -> None:
        """A step on it."""
        self.clock.now_s += next(self._compute)


def noisy(seconds: float, noise: float, rng: np.random.Generator) -> Iterator[float]:
    """Times of one side of a step without end; drawn many at once, which is most of the speed."""
    while True:
        drawn = seconds * rng.lognormal(0.0, noise, 500)
        slow = np.where(rng.random(500) < OUTLIERS, rng.uniform(1.5, 3.0, 500), 1.0)
        yield from (drawn * slow).tolist()


class Machine:
    """Runs trials on the two sides, slowing down as time goes by."""

    def __init__(self, case: Case, seed: int) -> None:
        self.case, self.rng, self.clock = case, random.Random(seed), FakeClock()
        self.span_s = 2 * case.last * (WINDOW_S + 10 * STEP_S)

    def run(self, spec: TrialSpec) -> Measurement:
        """What the product's loop measures."""
        case, settings = self.case, spec.settings
        factor = STEP_S * self.rng.lognormvariate(0.0, RUN_NOISE) * (1 + DRIFT * self.clock() / self.span_s)
        bound_s = factor / (1 + case.gain) if settings == CANDIDATE else factor
        other_s = bound_s if case.side == "both" else OTHER_SIDE * factor
        loader_s, compute_s = (bound_s, other_s) if case.side == "loader" else (other_s, bound_s)
        queue = WORKERS * (settings.loader.prefetch_factor or 2)
        sides = TwoSides(
            loader_s,
            compute_s,
            noise=case.noise,
            queue=queue,
            clock=self.clock,
            seed=self.rng.getrandbits(32),
        )
        feed: Any = sides
        step: Any = sides.step
        timer = timing.BlockTimer(step, feed, DeviceClock(torch.device("cpu")), WORKERS, float("inf"))
        blocks, stopped = timing.measure_blocks(timer, spec, timer.discard(spec.window_s))
        return Measurement(blocks=blocks, stopped=stopped)


class _Alone:
    """Nobody else uses the machine."""

    def start(self) -> None:
        """Nothing to read."""

    def stop(self) -> Load:
        """Nothing seen."""
        return Load()


class _Unweighed:
    """Nobody asks how much memory there is."""

    def sample(self) -> None:
        """Nothing to read."""


@contextlib.contextmanager
def passing(clock: FakeClock) -> Iterator[None]:
    """The product's loop reads this clock, and looks neither for neighbours nor at memory."""
    with (
        mock.patch.object(timing, "time", SimpleNamespace(perf_counter=clock)),
        mock.patch.object(timing, "LoadMeter", _Alone),
        mock.patch.object(timing, "MemoryMeter", _Unweighed),
    ):
        yield


def finals(case: Case, seed: int) -> Finals:
    """Whole finals and their verdict."""
    machine = Machine(case, seed)
    spec = TrialSpec(settings=YOURS, stage="final", window_s=WINDOW_S, min_blocks=MIN_BLOCKS)
    with passing(machine.clock):
        return play(machine.run, (YOURS, CANDIDATE), last=case.last, spec=spec)


def report(case: Case, runs: int) -> list[dict[str, Any]]:
    """Many finals of a case, a line about them, and their pairs."""
    first = zlib.crc32(str(case).encode())
    played = [finals(case, first + 1000 * run) for run in range(runs)]
    counted = count([(one.verdict, one.rounds) for one in played], case.gain)
    print(f"{'A/B' if case.gain else 'A/A'}  {case}  {counted}", flush=True)
    return [raw_of(one, None, case=str(case), gain=case.gain) for one in played]


def cases() -> Sequence[Case]:
    """Every gain at every noise with all pairs; the rest for what else may matter."""
    gains = (0.0, 0.01, 0.02, 0.03, 0.05, 0.10, 0.30)
    grid = [Case(gain=gain, noise=noise) for noise, gain in itertools.product((0.02, 0.05, 0.10), gains)]
    sides: tuple[Side, ...] = ("loader", "both")
    others = [Case(gain=gain, noise=0.05, side=side) for side, gain in itertools.product(sides, (0.0, 0.05))]
    short = [Case(gain=gain, noise=0.05, last=FINAL_PAIRS) for gain in (0.0, 0.03, 0.05)]
    return (*grid, *others, *short)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("scale", nargs="?", type=float, default=1.0, help="times 1,000 finals for each case")
    options.add_argument("--raw", type=Path, metavar="FILE", help="where the pairs are kept, as .jsonl.gz")
    options.add_argument("--only", default="", metavar="TEXT", help="cases whose line holds this")
    given = options.parse_args(sys.argv[1:])
    started = time.perf_counter()
    chosen = [case for case in cases() if given.only in str(case)]
    raw = [record for case in chosen for record in report(case, max(1, round(1000 * given.scale)))]
    if given.raw is not None:
        with gzip.open(given.raw, "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in raw)
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
