"""Laws of reports: they hold for every run, not for the sampled screens alone."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import report_samples as samples
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import settings

from autotune.measure.stats import typical
from autotune.outcome import Kept, Outcome
from autotune.report.figures import sides
from autotune.report.progress import trial_line
from autotune.report.text import render
from autotune.report.view import view_of
from autotune.search.verdict import judge, pairs
from autotune.settings import Settings
from autotune.trial import Trial

RATES = st.lists(st.tuples(st.integers(1, 10**6), st.integers(1, 10**6)), min_size=1, max_size=8)
WORD = st.text(st.characters(categories=("L", "N", "P")), min_size=1, max_size=30)
PROSE = st.lists(WORD, min_size=1, max_size=40).map(" ".join)


def finals(rates: list[tuple[int, int]], best: Settings) -> tuple[Trial, ...]:
    """One pair for each two rates."""
    found: list[Trial] = []
    for pair, both in enumerate(rates):
        found += [
            replace(trial, spec=replace(trial.spec, pair=pair))
            for trial in samples.finals(2 * pair, samples.YOURS, best, both, pairs=1)
        ]
    return tuple(found)


@given(RATES, st.integers(0, 2**32))
def test_the_rates_shown_have_the_ratio_that_the_verdict_has(rates: list[tuple[int, int]], seed: int) -> None:
    """Rates are pooled as pairs are: their quotient is the paired ratio, in any order of trials."""
    trials = list(finals(rates, samples.WINNER))
    random.Random(seed).shuffle(trials)
    yours, best = sides(samples.won(trials=tuple(trials)), samples.WINNER)
    logs = pairs(samples.YOURS, samples.WINNER, trials, samples=50_000, epochs=None)
    logs = tuple(log for log, counts in zip(logs, typical(logs)) if counts)
    assert yours is not None
    assert best is not None
    assert math.isclose(best.samples_per_s / yours.samples_per_s, math.exp(math.fsum(logs) / len(logs)))


@given(
    st.floats(0.97, 1.03),
    st.sampled_from((0.0, 0.001, 0.01)),
    st.lists(st.floats(-1, 1), min_size=4, max_size=8),
    st.sampled_from((1.0, 1.05)),
)
@example(1.02, 0.001, [0.0, 1.0, -1.0, 0.5, -0.5], 1.05)  # a sure gain, under its price
@example(0.98, 0.001, [0.0, 1.0, -1.0, 0.5, -0.5], 1.0)
def test_yours_is_within_noise_of_the_best_where_the_verdict_says_so(
    level: float, noise: float, wobble: list[float], price: float
) -> None:
    """Of what is surely faster or slower the report does not say that it is noise."""
    rates = [(10**6, round(10**6 * level * math.exp(noise * each))) for each in wobble]
    trials = finals(rates, samples.WINNER)
    verdict = judge(
        samples.YOURS,
        [samples.WINNER],
        trials,
        samples=None,
        epochs=None,
        simpler=lambda _: (),
        price=lambda _: price,
    )
    headline = view_of(samples.kept(verdict=verdict, trials=trials)).headline
    opening, _, why = headline.partition("). ")
    if verdict.kind == "kept":
        assert ("within noise" in opening) == ("within noise" in why)


@given(settings(), settings(), PROSE, PROSE, PROSE, WORD)
def test_reports_keep_to_80_columns(
    yours: Settings, best: Settings, note: str, why: str, reason: str, name: str
) -> None:
    """Whatever the settings and the words, no line of prose or table is wider."""
    outcome: Outcome = samples.won(
        yours=yours,
        verdict=replace(samples.won().verdict, winner=best),
        trials=finals([(400, 500)], best),
        worth=(),
        notes=(note,),
        kept=(Kept(knob="batch_size", value=64, why=why),),
        stop_reason=reason,
        name=name,
        study="",
    )
    assert max(map(len, render(view_of(outcome, version="0.1.0")).splitlines())) <= 80


@given(settings(), settings(), st.floats(0.01, 100), st.floats(0, 10**5))
def test_a_trial_is_always_one_line(
    yours: Settings, tried: Settings, ratio: float, remaining_s: float
) -> None:
    """One event, one line, whatever was tried."""
    trial = samples.trial(3, tried, samples.measured(500))
    line = trial_line(trial, yours, ratio, remaining_s=remaining_s)
    assert len(line.splitlines()) == 1
    assert line.endswith(" left")
