"""Who won, how sure that is, and what each changed setting brings.

A candidate is compared with *yours* by the pairs of the finals alone: both ran fresh, one after the other,
and the search's own figures, from which the candidates were picked, play no part. What they are picked by
flatters them.

Two things would still make chance look like a gain, and both are paid for: asking of several candidates
(Bonferroni), and looking before all pairs are in. The finals may end early at `LOOKS`, by the much stricter
`LOOK_ERROR`, which leaves nearly all of the error to the last look (Haybittle and Peto's rule for trials that
are watched). So a win takes more than the 95 % interval that is shown: `WIN_ERROR`.
`benchmarks/known_truth.py` runs the whole procedure on settings whose true ratio is known.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from autotune.measure.stats import ratio_interval, typical
from autotune.outcome import Interval, Verdict
from autotune.settings import Settings
from autotune.trial import Stage, Trial

MIN_PAIRS = 4
"""Fewer pairs win nothing."""
LOOKS = (5, 8, 12)
"""Numbers of complete pairs after which the finals may stop early."""
CONFIDENCE = 0.95
"""What the interval that is shown holds with, for all candidates together."""
SHOWN_ERROR = 0.04
"""Error it is computed at: finals that stop once an interval is narrow stop at some that are so by chance."""
WIN_ERROR = 0.010
"""Error probability, both sides, of the interval that must lie above 1 for a win."""
LOOK_ERROR = 0.002
"""The same for ending the finals early: because of a win, or because none is left to be had."""
OUTLIER_PRICE = 4.0
"""Pairs from which outliers were taken look steadier than they are: their errors count so many times.

Of the interval that is shown as well as of the one that a win takes.
"""
NOTHING_ABOVE = 1.03
"""An interval that ends under this leaves no gain worth more pairs: *yours* is kept rather than unsure."""
HOPELESS_BELOW = 1.01
"""The finals stop early when no candidate can still be this much faster."""
FINE_ENOUGH = 0.02
"""Half width of a winner's interval at which the finals stop early; a quarter of the gain also does."""

Weight = Callable[[Settings], float]
"""What a sample teaches under settings, relative to *yours*: 1 for the same batch size."""

_ROUNDING = 1e-9  # relative; equal rates may differ by this much after scaling and logarithms


def alike(settings: Settings) -> float:
    """The weight where a sample is a sample."""
    return 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Standing:
    settings: Settings
    ratio: Interval
    """At `CONFIDENCE`, to be shown."""
    sure: Interval
    """At the error that was asked for."""
    pairs: int

    @property
    def rank(self) -> tuple[float, str]:
        return (self.ratio.value, self.settings.key())


def pairs(
    yours: Settings,
    candidate: Settings,
    finals: Sequence[Trial],
    *,
    samples: int | None,
    epochs: int | None,
    stage: Stage = "final",
    weight: Weight = alike,
) -> tuple[float, ...]:
    """Log ratios of effective samples/s, candidate over *yours*, for each pair with both measured.

    Args:
        yours: the other side of each pair.
        candidate: the side whose gain is asked for.
        finals: any trials; those of another stage, of a partial mode or without a pair number do not count.
        samples: length of an epoch, None where unknown.
        epochs: length of the user's run, None where unknown.
        stage: whose pairs are meant.
        weight: what a sample counts for on either side.
    """
    theirs = _log_rates(yours, finals, samples, epochs, stage)
    ours = _log_rates(candidate, finals, samples, epochs, stage)
    worth = math.log(weight(candidate) / weight(yours))
    return tuple(ours[pair] - theirs[pair] + worth for pair in sorted(ours.keys() & theirs.keys()))


def counted_pairs(
    yours: Settings,
    candidate: Settings,
    finals: Sequence[Trial],
    *,
    samples: int | None,
    epochs: int | None,
) -> tuple[int, ...]:
    """The numbers of the pairs that a verdict's ratio is computed from: all but the outliers.

    The arguments are those of `pairs`; weights shift all pairs alike, so they do not matter here.
    """
    theirs = _log_rates(yours, finals, samples, epochs, "final")
    ours = _log_rates(candidate, finals, samples, epochs, "final")
    common = sorted(ours.keys() & theirs.keys())
    counts = typical([ours[pair] - theirs[pair] for pair in common])
    return tuple(pair for pair, count in zip(common, counts) if count)


def judge(
    yours: Settings,
    candidates: Sequence[Settings],
    finals: Sequence[Trial],
    *,
    samples: int | None,
    epochs: int | None,
    simpler: Callable[[Settings], tuple[Any, ...]],
    weight: Weight = alike,
    price: Callable[[Settings], float] = alike,
) -> Verdict:
    """The verdict over the finals.

    A candidate wins when it failed in none of them, has `MIN_PAIRS` pairs, and is surely faster, with the
    error `WIN_ERROR`. Of winners that the fastest does not surely beat, pair by pair,
    the simplest is taken. Where none wins *yours* stays: `kept` when nothing worth more pairs is left to be
    found, `unsure` when it might be. `ratio` is then that of the best candidate, to show what was compared.
    What asks more of the user has a price: the ratio that it must reach over *yours*, and over those who ask
    less.

    From six pairs on an outlier among them is left out, at the price of `OUTLIER_PRICE` (see `typical`).

    The interval shown holds with 95 % for all candidates together. By simulation of whole finals of up to 15
    pairs that stop when `decided` (`benchmarks/known_truth.py`; one candidate, run noise of 2 %, no outliers
    where not said; outliers are 5 % of the runs, 10 to 30 % slow):

        truly equal    one wins in 1.0 %; in 1.7 and 1.3 % with two and three candidates (600 finals each;
                       of 60,000 with pairs drawn at random 0.7 % in all three); with outliers in 0.2 %
        3 % faster     wins in 80 %
        5 % faster     wins in 37 % after 5 pairs, in 93 % with up to 9, in 100 % with up to 15; with outliers
                       in 90 %, where it would in 58 % of 12 with all pairs counted
        10 % faster    wins in 100 %
        covered        the interval shown holds the true ratio in 92 to 98 %, 99 % with several equals
        bias           the value shown is at most 0.6 % too high, as it is the best of several
    Slower than *yours* in every pair means out of the question, so such a candidate does not widen the
    interval of the others.

    Args:
        yours: what the user runs today.
        candidates: what was compared with it; *yours* among them is passed over.
        finals: any trials; only the paired ones of the finals count.
        samples: length of an epoch, None where unknown.
        epochs: length of the user's run, None where unknown.
        simpler: a sort key, smallest for the settings that are cheapest to live with.
        weight: what a sample counts for under settings.
        price: the ratio that settings must reach for what they ask of the user; 1 for nothing.
    """
    rivals = _rivals(yours, candidates)
    sound = [rival for rival in rivals if not _failed(rival, finals)]
    standings = _standings(yours, sound, finals, samples, epochs, error=WIN_ERROR, weight=weight)
    winners = [s for s in standings if _wins(s) and s.ratio.value >= price(s.settings)]
    if not winners:
        return _no_winner(yours, rivals, sound, standings, finals)
    fastest = max(winners, key=lambda s: s.rank)

    def surely_slower(standing: _Standing) -> bool:
        beaten_by = pairs(
            standing.settings, fastest.settings, finals, samples=samples, epochs=epochs, weight=weight
        )
        if len(beaten_by) < 2:
            return False
        lead = ratio_interval(beaten_by, confidence=CONFIDENCE)
        asks = price(fastest.settings) / price(standing.settings)
        return lead.low > 1 + _ROUNDING and lead.value >= asks

    tied = [s for s in winners if s is fastest or not surely_slower(s)]
    best = min(tied, key=lambda s: (simpler(s.settings), -s.ratio.value, s.settings.key()))
    return Verdict(
        kind="faster",
        winner=best.settings,
        ratio=best.ratio,
        pairs=best.pairs,
        sentence=f"{_value(best.ratio)} yours ({_range(best.ratio)}), confirmed in {best.pairs} fresh pairs",
    )


def unless_disturbed(verdict: Verdict, yours: Settings, finals: Sequence[Trial]) -> Verdict:
    """The verdict, or `unsure` where most finals were disturbed and the gain is not beyond doubt.

    Pairs share most of what disturbs them, but settings differ in how they suffer from it: a neighbour on
    the CPUs slows many workers more than few. So for a win the low end of the interval must then clear
    `NOTHING_ABOVE`, and the sentence says beside the ratio what it was measured beside.

    Args:
        verdict: by `judge`.
        yours: what the user runs today.
        finals: any trials; only those of the finals that measured count.
    """
    disturbed, count = disturbed_finals(finals)
    if verdict.kind != "faster" or verdict.ratio is None or 2 * disturbed <= count:
        return verdict
    if verdict.ratio.low > NOTHING_ABOVE:
        though = f"{verdict.sentence}, though something else disturbed {disturbed} of {count} finals"
        return dataclasses.replace(verdict, sentence=though)
    figures = f"{_value(verdict.ratio)}, {_range(verdict.ratio)}, {verdict.pairs} pairs"
    why = f"something else disturbed {disturbed} of {count} finals, too many for so small a gain ({figures})"
    return dataclasses.replace(verdict, kind="unsure", winner=yours, sentence=f"yours stays: {why}")


def disturbed_finals(trials: Iterable[Trial]) -> tuple[int, int]:
    """How many finals were disturbed, and how many measured."""
    finals = [
        t.measurement
        for t in trials
        if t.spec.stage == "final" and not t.spec.epoch_edge and t.measurement is not None
    ]
    return sum(found.disturbed for found in finals), len(finals)


def disturbed_search(yours: Settings, trials: Iterable[Trial]) -> tuple[int, int]:
    """Of the search's trials of other settings, how many something else spoiled, and how many measured.

    Spoiled: mostly disturbed, or given up after a disturbed block.
    """
    found = [
        t.measurement
        for t in trials
        if t.measurement is not None and t.spec.mode == "full" and t.spec.pair is None and t.settings != yours
    ]
    hasty = [m.stopped == "gave_up" and any(block.disturbed for block in m.blocks) for m in found]
    return sum(m.disturbed or gave_up for m, gave_up in zip(found, hasty)), len(found)


def decided(
    yours: Settings,
    candidates: Sequence[Settings],
    finals: Sequence[Trial],
    *,
    samples: int | None,
    epochs: int | None,
    weight: Weight = alike,
) -> bool:
    """Whether more pairs would not change what the user is told. Ask after each pair.

    True when no candidate is left that has not failed. Else only after `LOOKS` complete pairs (both sides
    measured, for every candidate left), and then when the fastest winner's interval is fine enough or no
    candidate can be faster by anything worth having. Between the looks the answer is no: stopping at the
    first lucky pair is how equal settings come to look different.
    """
    sound = [rival for rival in _rivals(yours, candidates) if not _failed(rival, finals)]
    if not sound:
        return True
    complete = set.intersection(
        *(set(_log_rates(s, finals, samples, epochs, "final")) for s in (yours, *sound))
    )
    if len(complete) not in LOOKS:
        return False
    trials = [t for t in finals if t.spec.pair in complete]
    standings = _standings(yours, sound, trials, samples, epochs, error=LOOK_ERROR, weight=weight)
    winners = [s for s in standings if _wins(s)]
    if not winners:
        return all(max(s.sure.high, s.ratio.high) < HOPELESS_BELOW for s in standings)
    ratio = max(winners, key=lambda s: s.rank).ratio
    return (ratio.high - ratio.low) / 2 <= max(FINE_ENOUGH, (ratio.value - 1) / 4)


def _rivals(yours: Settings, candidates: Iterable[Settings]) -> tuple[Settings, ...]:
    return tuple(s for s in dict.fromkeys(candidates) if s != yours)


def _failed(settings: Settings, finals: Iterable[Trial]) -> bool:
    return any(t.failure is not None and t.spec.stage == "final" and t.settings == settings for t in finals)


def _log_rates(
    settings: Settings, trials: Iterable[Trial], samples: int | None, epochs: int | None, stage: Stage
) -> dict[int, float]:
    """Mean log effective samples/s of these settings by pair number."""
    found: dict[int, list[float]] = {}
    for trial in trials:
        spec = trial.spec
        if spec.stage != stage or spec.mode != "full" or spec.pair is None or trial.measurement is None:
            continue
        if trial.settings == settings:
            found.setdefault(spec.pair, []).append(_log_rate(trial, samples, epochs))
    return {pair: _mean(logs) for pair, logs in found.items()}


def _log_rate(trial: Trial, samples: int | None, epochs: int | None) -> float:
    assert trial.measurement is not None
    return math.log(trial.measurement.effective_samples_per_s(samples, epochs))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)  # rounded once, so that the order of trials does not show


def _standings(
    yours: Settings,
    sound: Sequence[Settings],
    finals: Sequence[Trial],
    samples: int | None,
    epochs: int | None,
    *,
    error: float,
    weight: Weight,
) -> tuple[_Standing, ...]:
    """Every candidate with at least two pairs, with intervals that hold for all of them together."""
    ratios = {s: pairs(yours, s, finals, samples=samples, epochs=epochs, weight=weight) for s in sound}
    ratios = {s: found for s, found in ratios.items() if len(found) >= 2}
    # a candidate that loses every pair cannot win by chance either, so it takes no share of the error
    in_question = max(1, sum(1 for found in ratios.values() if max(found) >= -_ROUNDING))
    return tuple(_standing(settings, found, in_question, error) for settings, found in ratios.items())


def _standing(settings: Settings, log_ratios: Sequence[float], in_question: int, error: float) -> _Standing:
    counted = [value for value, counts in zip(log_ratios, typical(log_ratios)) if counts]
    share = in_question * (OUTLIER_PRICE if len(counted) < len(log_ratios) else 1.0)
    shown = ratio_interval(counted, confidence=1 - SHOWN_ERROR / share)
    return _Standing(
        settings=settings,
        ratio=dataclasses.replace(shown, confidence=CONFIDENCE),
        # By Student's t alone: the bootstrap guards against outliers, which are gone, at the price of power.
        sure=ratio_interval(counted, confidence=1 - error / share, resamples=0),
        pairs=len(counted),
    )


def _wins(standing: _Standing) -> bool:
    low = min(standing.sure.low, standing.ratio.low)
    return standing.pairs >= MIN_PAIRS and low > 1 + _ROUNDING


def _no_winner(
    yours: Settings,
    rivals: Sequence[Settings],
    sound: Sequence[Settings],
    standings: Sequence[_Standing],
    finals: Sequence[Trial],
) -> Verdict:
    if not sound:
        why = "each of the others failed in the finals" if rivals else "nothing was faster in the search"
        at_edge = (t.failure for t in finals if t.spec.epoch_edge and t.failure is not None)
        if (failure := next(at_edge, None)) is not None:
            why = f"what was faster failed across the end of an epoch: {failure.message}"
        return Verdict(kind="kept", winner=yours, sentence=f"yours stays: {why}")
    if not standings:
        return Verdict(kind="unsure", winner=yours, sentence="yours stays: there was no time for the finals")
    best = max(standings, key=lambda s: s.rank)
    surely_small = len(standings) == len(sound) and all(s.ratio.high < NOTHING_ABOVE for s in standings)
    sure = surely_small or _wins(best)  # a win that is not worth its price is no matter of more pairs
    figures = f"({_value(best.ratio)}, {_range(best.ratio)}, {best.pairs} pairs)"
    if not sure and best.pairs < MIN_PAIRS:
        why = f"{best.pairs} pairs are too few to tell ({_value(best.ratio)} so far)"
    elif not sure:
        why = f"the finals were too noisy to tell {figures}"
    elif best.ratio.high < 1:
        why = f"the best candidate was slower {figures}"
    elif _wins(best):
        why = f"the best candidate's gain is too small for what it asks {figures}"
    elif best.ratio.low > 1:
        why = f"the best candidate's gain is too small to be sure of {figures}"
    else:
        why = f"the best candidate was within noise {figures}"
    return Verdict(
        kind="kept" if sure else "unsure",
        winner=yours,
        ratio=best.ratio,
        pairs=best.pairs,
        sentence=f"yours stays: {why}",
    )


def _value(ratio: Interval) -> str:
    return f"{ratio.value:.{_digits(ratio)}f}x"


def _range(ratio: Interval) -> str:
    digits = _digits(ratio)
    return f"{ratio.confidence * 100:.0f} %: {ratio.low:.{digits}f} to {ratio.high:.{digits}f}"


def _digits(ratio: Interval) -> int:
    """Two decimals; three where an end would read 1.00 and so hide on which side of it it lies."""
    return 3 if any(abs(end - 1) < 0.005 for end in (ratio.low, ratio.high)) else 2
