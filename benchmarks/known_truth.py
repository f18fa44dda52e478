"""Verdicts on made-up machines whose truth is known: wins where nothing differs, and gains that are missed.

    python benchmarks/known_truth.py [SCALE] [--raw FILE]

Prints one line per case, in under three minutes; SCALE multiplies the number of simulated finals. `--raw`
keeps every pair of every finals as JSON, to be judged again by another rule.

Each case plays whole finals with the very rules of a run: alternating pairs until decided, or until as many
pairs as fit. The machine (`autotune.testing.FakeRunner`) has a true ratio, noise from run to run and from
block to block, and where it is said: a drift of 10 % over the finals, and outliers: 5 % of the runs are 10 to
30 % slow. The last lines play whole tuning runs of five fake minutes on a machine where every setting is
truly equal.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autotune.measure.steady import mark_transient
from autotune.outcome import Verdict
from autotune.search.cost import FINAL_PAIRS, MAX_PAIRS
from autotune.search.engine import TuneOptions, tune
from autotune.search.listener import SilentListener
from autotune.search.verdict import decided, judge, pairs
from autotune.settings import LoaderSettings, Settings
from autotune.testing import FakeClock, FakeRunner, fake_description
from autotune.trial import Measurement, Mode, Trial, TrialSpec

OUTLIERS = 0.05
DRIFT = 0.10
RUN_S = 4.0
"""Fake seconds of one side of a pair, starts included."""
FIELD = tuple(Settings(loader=LoaderSettings(batch_size=64, num_workers=n)) for n in range(4))


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One truth, played many times."""

    gain: float = 0.0
    """True ratio of each candidate over *yours*, less one."""
    noise: float = 0.02
    """Standard deviation of a run's log rate."""
    candidates: int = 1
    drift: bool = False
    outliers: bool = False
    last: int = MAX_PAIRS
    """Pairs that the budget holds."""

    def __str__(self) -> str:
        extra = "+".join(name for name in ("drift", "outliers") if getattr(self, name)) or "-"
        return (
            f"gain {self.gain:4.0%}  noise {self.noise:4.0%}  {extra:<14}"
            f"  candidates {self.candidates}  up to {self.last:>2} pairs"
        )


class World:
    """A machine with a known truth."""

    def __init__(self, case: Case, seed: int) -> None:
        self.case, self.random = case, random.Random(seed)
        self.clock = FakeClock()
        self.span_s = RUN_S * (case.candidates + 1) * case.last
        self.runner = FakeRunner(
            self.rate, noise=case.noise, seed=seed + 1, clock=self.clock, startup_s=lambda s: 0.0
        )

    def rate(self, settings: Settings, mode: Mode) -> float:
        """Samples/s at this moment."""
        rate = 1000.0 * (1 if settings.loader.num_workers == 0 else 1 + self.case.gain)
        if self.case.drift:
            rate *= 1 - DRIFT * self.clock() / self.span_s
        if self.case.outliers and mode == "full" and self.random.random() < OUTLIERS:
            rate /= 1 + self.random.uniform(0.1, 0.3)
        return rate


def finals(case: Case, seed: int) -> tuple[Verdict, list[Trial]]:
    """Whole finals and their verdict."""
    world, field = World(case, seed), FIELD[: case.candidates + 1]
    trials: list[Trial] = []
    for pair in range(case.last):
        for settings in field if pair % 2 == 0 else field[::-1]:
            found = world.runner.run(
                TrialSpec(settings=settings, stage="final", pair=pair, window_s=RUN_S - 1.0)
            )
            assert isinstance(found, Measurement), "nothing fails here"
            measured = replace(found, blocks=mark_transient(found.blocks))
            spec = TrialSpec(settings=settings, stage="final", pair=pair)
            trials.append(Trial(number=len(trials), spec=spec, measurement=measured))
        if decided(field[0], field[1:], trials, samples=None, epochs=None):
            break
    return verdict(field, trials), trials


def verdict(field: Sequence[Settings], trials: Sequence[Trial]) -> Verdict:
    """As a run judges."""
    return judge(
        field[0], field[1:], trials, samples=None, epochs=None, simpler=lambda s: (s.loader.num_workers,)
    )


def play(case: Case, runs: int) -> list[dict[str, Any]]:
    """Many finals of a case, a line about them, and their pairs."""
    first = zlib.crc32(str(case).encode())
    found = [finals(case, first + 1000 * run) for run in range(runs)]
    wins = sum(told.kind == "faster" for told, _ in found)
    ratios = [told.ratio for told, _ in found if told.ratio is not None]
    covered = sum(ratio.low <= 1 + case.gain <= ratio.high for ratio in ratios)
    bias = math.exp(math.fsum(math.log(ratio.value) for ratio in ratios) / len(ratios)) / (1 + case.gain) - 1
    used = sum(max(t.spec.pair or 0 for t in trials) + 1 for _, trials in found) / runs
    kind = "A/A" if case.gain == 0 else "A/B"
    print(
        f"{kind}  {case}  wins {wins / runs:6.2%}  interval covers {covered / len(ratios):5.1%}"
        f"  shown/true {bias:+5.1%}  pairs {used:4.1f}  n {runs}",
        flush=True,
    )
    return [_raw(case, told, trials) for told, trials in found]


def _raw(case: Case, told: Verdict, trials: Sequence[Trial]) -> dict[str, Any]:
    logs = [
        [round(log, 6) for log in pairs(FIELD[0], other, trials, samples=None, epochs=None)]
        for other in FIELD[1 : case.candidates + 1]
    ]
    return {"case": str(case), "gain": case.gain, "verdict": told.kind, "log_ratios": logs}


def whole_runs(noise: float, runs: int) -> None:
    """Five fake minutes of tuning, on a machine where nothing makes a difference."""
    wins = 0
    for run in range(runs):
        clock = FakeClock()
        told = fake_description(has_conv2d=True, image_input=True)
        runner = FakeRunner(
            lambda s, mode: 1000.0 if mode == "full" else 2000.0,
            noise=noise,
            seed=run,
            clock=clock,
            description=told,
            startup_s=lambda s: 0.0,
        )
        outcome = tune(
            runner, TuneOptions(budget_s=300.0, allow="numerics", seed=run), SilentListener(), clock=clock
        )
        wins += outcome.verdict.kind == "faster"
    print(f"A/A  whole tuning runs of 5 min, noise {noise:4.0%}  wins {wins} of {runs}", flush=True)


def cases() -> list[tuple[Case, int]]:
    """What is played, and how often: A/A most, since one in a hundred is what is asked of it."""
    calm = [Case(noise=noise) for noise in (0.02, 0.05, 0.1)]
    hard = [Case(drift=True, outliers=True, noise=noise) for noise in (0.02, 0.05, 0.1)]
    field = [Case(candidates=2), Case(candidates=3), Case(candidates=2, drift=True, outliers=True)]
    short = [Case(last=5), Case(last=FINAL_PAIRS)]
    gains = [Case(gain=gain) for gain in (0.01, 0.03, 0.05, 0.1, 0.3)]
    five = [
        Case(gain=0.05, last=5),
        Case(gain=0.05, last=FINAL_PAIRS),
        Case(gain=0.05, candidates=2),
        Case(gain=0.05, drift=True),
        Case(gain=0.05, outliers=True),
        Case(gain=0.05, noise=0.05),
        Case(gain=0.1, noise=0.05, drift=True, outliers=True),
        Case(gain=0.3, noise=0.1, drift=True, outliers=True),
    ]
    return [(case, 600) for case in (*calm, *hard, *field, *short)] + [
        (case, 300) for case in (*gains, *five)
    ]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("scale", nargs="?", type=float, default=1.0)
    options.add_argument("--raw", type=Path)
    given = options.parse_args()
    started = time.perf_counter()
    raw = [record for case, runs in cases() for record in play(case, max(1, round(given.scale * runs)))]
    for noise in (0.01, 0.03):
        whole_runs(noise, max(1, round(given.scale * 6)))
    if given.raw is not None:
        given.raw.write_text(json.dumps(raw), encoding="utf-8")
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
