"""Whole finals, played by a run's own rules on whatever measures; what is counted over many of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from autotune.outcome import Verdict
from autotune.search.cost import MAX_PAIRS
from autotune.search.verdict import decided, judge, pairs, unless_disturbed
from autotune.settings import Settings
from autotune.space.rules import simplicity
from autotune.trial import Failure, Measurement, Trial, TrialSpec

Measure = Callable[[TrialSpec], Measurement | Failure]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finals:
    """One finals: *yours* first in `field`, then the candidates."""

    field: tuple[Settings, ...]
    trials: tuple[Trial, ...]
    verdict: Verdict
    """What the user would be told."""
    undisturbed: Verdict
    """The same without asking whether most runs were disturbed."""

    @property
    def rounds(self) -> int:
        """Pairs that were run, counted ones or not."""
        return max((trial.spec.pair or 0 for trial in self.trials), default=-1) + 1

    def log_ratios(self, samples: int | None) -> list[list[float]]:
        """For each candidate the pairs that the verdict is made from."""
        yours, *others = self.field
        return [
            [round(log, 6) for log in pairs(yours, other, self.trials, samples=samples, epochs=None)]
            for other in others
        ]


def play(
    measure: Measure,
    field: Sequence[Settings],
    *,
    samples: int | None = None,
    last: int = MAX_PAIRS,
    spec: TrialSpec | None = None,
) -> Finals:
    """Alternating pairs until decided, or until there are `last`; then the verdict.

    Args:
        measure: runs one side of a pair.
        field: *yours*, then the candidates.
        samples: length of an epoch; None compares steady rates.
        last: pairs that the budget holds.
        spec: what all runs have in common; settings, stage and pair are put in.
    """
    yours, *others = field
    made = spec or TrialSpec(settings=yours, stage="final")
    trials: list[Trial] = []
    for pair in range(last):
        for settings in field if pair % 2 == 0 else tuple(reversed(field)):
            asked = _final(made, settings, pair)
            found = measure(asked)
            failure = found if isinstance(found, Failure) else None
            measurement = None if isinstance(found, Failure) else found
            trials.append(Trial(number=len(trials), spec=asked, measurement=measurement, failure=failure))
        if decided(yours, others, trials, samples=samples, epochs=None):
            break
    told = judge(yours, others, trials, samples=samples, epochs=None, simpler=simplicity)
    return Finals(
        field=tuple(field),
        trials=tuple(trials),
        verdict=unless_disturbed(told, yours, trials),
        undisturbed=told,
    )


def _final(spec: TrialSpec, settings: Settings, pair: int) -> TrialSpec:
    return TrialSpec(
        settings=settings,
        stage="final",
        pair=pair,
        window_s=spec.window_s,
        min_blocks=spec.min_blocks,
        fresh_process=spec.fresh_process,
        seed=spec.seed,
        timeout_s=spec.timeout_s,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """What came of many finals whose truth is known; one candidate each."""

    finals: int
    wins: int
    """Finals in which the candidate was declared faster."""
    compared: int
    """Finals with an interval to show."""
    covered: int
    """Of these, those whose interval holds the true ratio."""
    shown: float
    """Geometric mean of the ratios shown."""
    rounds: float
    """Pairs on average."""

    def __str__(self) -> str:
        low, high = share_interval(self.wins, self.finals)
        covers = f"{self.covered / self.compared:5.1%}" if self.compared else "    -"
        return (
            f"wins {self.wins / self.finals:6.2%} (95 %: {low:.2%} to {high:.2%})  interval covers {covers}"
            f"  shown {self.shown:.3f}  pairs {self.rounds:4.1f}  n {self.finals}"
        )


def count(verdicts: Sequence[tuple[Verdict, int]], gain: float) -> Count:
    """The count over verdicts, each with the rounds that it took, where `1 + gain` is true."""
    ratios = [told.ratio for told, _ in verdicts if told.ratio is not None]
    logs = [math.log(ratio.value) for ratio in ratios]
    return Count(
        finals=len(verdicts),
        wins=sum(told.kind == "faster" for told, _ in verdicts),
        compared=len(ratios),
        covered=sum(ratio.low <= 1 + gain <= ratio.high for ratio in ratios),
        shown=math.exp(math.fsum(logs) / len(logs)) if logs else float("nan"),
        rounds=sum(rounds for _, rounds in verdicts) / max(1, len(verdicts)),
    )


def share_interval(hits: int, of: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact interval of a probability from a count (Clopper and Pearson, Biometrika 26, 1934).

    Args:
        hits: how often it happened, 0 to `of`.
        of: how often it could have, at least once.
        confidence: the least coverage.
    """
    tail = (1 - confidence) / 2
    low = 0.0 if hits == 0 else _root(lambda p: 1 - _at_most(hits - 1, of, p) < tail)
    high = 1.0 if hits == of else _root(lambda p: _at_most(hits, of, p) > tail)
    return low, high


def _root(under: Callable[[float], bool]) -> float:
    """Where a property of probabilities, true from 0 up to a point, ends."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if under(middle) else (low, middle)
    return low


def _at_most(hits: int, of: int, probability: float) -> float:
    """P(X <= hits) for X binomial, 0 < probability < 1."""
    yes, no = math.log(probability), math.log1p(-probability)
    logs = (
        math.lgamma(of + 1) - math.lgamma(k + 1) - math.lgamma(of - k + 1) + k * yes + (of - k) * no
        for k in range(hits + 1)
    )
    return math.fsum(math.exp(log) for log in logs)


def raw_of(finals: Finals, samples: int | None, **labels: Any) -> dict[str, Any]:
    """What is kept of a finals: enough to judge it again by another rule of pairs."""
    ratio = finals.verdict.ratio
    return {
        **labels,
        "verdict": finals.verdict.kind,
        "ratio": None if ratio is None else [ratio.value, ratio.low, ratio.high],
        "log_ratios": finals.log_ratios(samples),
    }
