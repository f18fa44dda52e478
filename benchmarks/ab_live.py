"""A/B in real time: a workload whose loader and step take set times, so that the true ratio is known.

    python benchmarks/ab_live.py --finals 10 --minutes 45 --raw ab-live.jsonl.gz

Prints one line per case: how often the candidate is declared faster than *yours*, and how often the interval
shown holds the truth. About a minute for each finals; started again with the same file it goes on.

Real processes, workers, queues and clocks, as in a run; only the work is made up. The worker sleeps until its
batch is due, a step spins until it is over; both keep to a timetable, so that what Python does in between
takes nothing from the truth. Both times have log-normal noise of 5 % from step to step, one in twenty takes
1.5 to 3 times as long, and each run as a whole is off by 1 %. The candidate is *yours* with
`fused_optimizer`, under which the side that bounds the step is faster by the gain of the case: 0, 5 or 10 %.

Workers must be forked: they see what the steps before their start have noted of the settings.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from live_finals import LiveCase, lines, play_live
from torch.utils.data import Dataset

from autotune.measure.payload import pickle_workload
from autotune.measure.process_runner import ProcessRunner
from autotune.search.cost import MAX_PAIRS, MIN_BLOCKS
from autotune.settings import LoaderSettings, Settings
from autotune.trial import TrialSpec
from autotune.workload import Workload

STEP_S = 0.008
"""Seconds of a step of *yours*."""
OTHER_SIDE = 0.5
"""What the side that does not bound the step takes, as a part of the one that does."""
BATCH = 8
WINDOW_S = 1.8
"""Timed seconds of a final in a run of three minutes."""
NOISE, OUTLIERS, RUN_NOISE = 0.05, 0.05, 0.01
SPUN_S = 0.0005
"""The last of a wait is spun: a sleep ends late."""


class Timetable:
    """Ends one piece of work after another at noisy set times, in whatever process it is used."""

    def __init__(self) -> None:
        self._pid = 0
        self._rng = random.Random()
        self._due_s = 0.0
        self._run = 1.0

    def keep(self, seconds: float, *, asleep: bool) -> None:
        """Wait until a piece of work that takes so long is done.

        Its time begins where that of the last one ended, unless that is longer ago than it takes: then
        there was nothing to do in between. So being woken late is made up for.
        """
        if self._pid != os.getpid():  # a worker is forked with the state of its parent: its noise is its own
            self._pid, self._rng, self._due_s = os.getpid(), random.Random(), 0.0
            self._run = self._rng.lognormvariate(0.0, RUN_NOISE)
        taken_s = seconds * self._run * self._rng.lognormvariate(0.0, NOISE)
        if self._rng.random() < OUTLIERS:
            taken_s *= self._rng.uniform(1.5, 3.0)
        now_s = time.perf_counter()
        begun_s = self._due_s if now_s - self._due_s < seconds else now_s
        self._due_s = begun_s + taken_s
        if asleep:
            time.sleep(max(0.0, self._due_s - SPUN_S - now_s))
        while time.perf_counter() < self._due_s:
            pass


_FETCHING = Timetable()
_STEPPING = Timetable()
_candidate = False
"""Whether the settings of the last step were the candidate's; a worker is forked with what it was then."""


class Timed(Dataset[Any]):
    """Batches that are due every so often, from one worker.

    Args:
        batch_s: seconds between two batches.
        gain: what the candidate is faster by.
    """

    def __init__(self, batch_s: float, gain: float) -> None:
        self.batch_s, self.gain = batch_s, gain

    def __len__(self) -> int:
        return 100_000

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[torch.Tensor]:
        _FETCHING.keep(self.batch_s / (1 + self.gain * _candidate), asleep=True)
        return [torch.zeros(4) for _ in indices]


class TimedStep:
    """A whole training step that ends when it is due.

    Args:
        step_s: seconds of it.
        gain: what the candidate is faster by.
    """

    def __init__(self, step_s: float, gain: float) -> None:
        self.step_s, self.gain = step_s, gain

    def __call__(self, kit: Any, batch: torch.Tensor) -> torch.Tensor:
        """Step, wait, and note whose settings these are."""
        global _candidate  # noqa: PLW0603  where a forked worker finds it
        _candidate = kit.settings.compute.fused_optimizer
        kit.zero_grad()
        loss = kit.model(batch).square().mean()
        kit.backward(loss)
        kit.optimizer_step()
        _STEPPING.keep(self.step_s / (1 + self.gain * _candidate), asleep=False)
        return loss.detach()


def workload(side: str, gain: float) -> Workload:
    """The made-up workload, its step bound by one side."""
    loader_s, step_s = (STEP_S, OTHER_SIDE * STEP_S) if side == "loader" else (OTHER_SIDE * STEP_S, STEP_S)
    return Workload(
        torch.nn.Linear(4, 1),
        Timed(loader_s, gain if side == "loader" else 0.0),
        train_step=TimedStep(step_s, gain if side == "compute" else 0.0),
        optimizer=partial(torch.optim.SGD, lr=1e-3),
        batch_size=BATCH,
        name=f"timed-{side}",
    )


def case(side: str, gain: float) -> LiveCase:
    """Finals of one truth."""
    yours = Settings(loader=LoaderSettings(batch_size=BATCH, num_workers=1, prefetch_factor=4))
    candidate = yours.replace(fused_optimizer=True)
    return LiveCase(
        name=f"bound by {side}, {gain:.0%}",
        start=lambda: ProcessRunner(pickle_workload(workload(side, gain))),
        field=lambda runner: (yours, candidate),
        spec=lambda runner: TrialSpec(
            settings=yours, stage="final", window_s=WINDOW_S, min_blocks=MIN_BLOCKS, fresh_process=True
        ),
        gain=gain,
        whole_run=False,  # starts are real, and so not known; the rate of the steps is
    )


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--finals", type=int, default=10, help="of each case")
    parser.add_argument("--gains", type=float, nargs="+", default=(0.0, 0.05, 0.10))
    parser.add_argument("--sides", nargs="+", choices=("compute", "loader"), default=("compute", "loader"))
    parser.add_argument("--pairs", type=int, default=MAX_PAIRS, help="of a finals, at most")
    parser.add_argument("--minutes", type=float, default=60.0, help="of all of it, at most")
    parser.add_argument("--raw", type=Path, default=Path("ab-live.jsonl.gz"), metavar="FILE")
    return parser.parse_args(argv)


def main() -> None:
    args = arguments(sys.argv[1:])
    multiprocessing.set_start_method("fork")
    # Under its own name, not as the script that runs: other processes import what they are handed.
    import ab_live

    cases = [ab_live.case(side, gain) for side, gain in itertools.product(args.sides, args.gains)]
    records = play_live(
        cases,
        args.raw,
        finals=args.finals,
        last=args.pairs,
        minutes=args.minutes,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    print("\n".join(lines(cases, records)))


if __name__ == "__main__":
    main()
