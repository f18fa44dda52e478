"""Laws of the judgement of a comparison of steps."""

from __future__ import annotations

from dataclasses import replace

import strategies  # noqa: F401  # its profile for shared machines
from hypothesis import given
from hypothesis import strategies as st

from autotune.codec import decode, encode
from autotune.recipe.guard import (
    COSINE_LIMIT,
    LOSS_LIMIT,
    LOSS_LIMIT_ALONE,
    NORM_LIMIT,
    GradientMatch,
    NumericsRecord,
    NumericsRun,
    NumericsStep,
    judge_numerics,
    late_steps,
)
from autotune.settings import Settings

YOURS = Settings()
LOSSES = st.floats(1e-3, 1e3)
STEPS = st.builds(
    NumericsStep,
    loss=st.none() | st.floats(-1e6, 1e6),
    gradient_norm=st.none() | st.floats(0, 1e6),
    finite=st.booleans(),
    skipped=st.booleans(),
)
RUNS = st.builds(
    NumericsRun, steps=st.lists(STEPS, max_size=40).map(tuple), scale=st.none() | st.floats(1e-6, 1e6)
)
MATCHES = st.builds(
    GradientMatch,
    cosine=st.floats(-1, 1),
    norm_ratio=st.floats(0, 10),
    worst_cosine=st.floats(-1, 1),
    worst_parameter=st.sampled_from(("", "head.weight")),
)
RECORDS = st.builds(
    NumericsRecord,
    settings=st.just(YOURS.replace(precision="bfloat16")),
    reference=st.just(YOURS),
    run=RUNS,
    reference_run=RUNS,
    again=st.none() | RUNS,
    gradients=st.none() | MATCHES,
    gradients_again=st.none() | MATCHES,
    refused=st.sampled_from(("", "", "no time")),
)


def plain(losses: list[float]) -> NumericsRun:
    """A run of finite steps with these losses."""
    return NumericsRun(steps=tuple(NumericsStep(loss=loss, gradient_norm=1.0) for loss in losses))


@given(RECORDS)
def test_every_record_has_a_judgement_with_a_reason(record):
    """Whatever was seen: no exception, and never a silent answer; the record survives JSON."""
    found = judge_numerics(record)
    assert found.kind in ("same", "worse", "unknown")
    assert found.reason
    assert decode(NumericsRecord, encode(record)) == record


@given(st.lists(LOSSES, min_size=16, max_size=40), st.none() | MATCHES)
def test_a_run_is_the_same_as_itself(losses, again):
    """However noisy the reference is."""
    match = GradientMatch(cosine=1.0, norm_ratio=1.0)
    record = NumericsRecord(
        settings=YOURS.replace(precision="bfloat16"),
        reference=YOURS,
        run=plain(losses),
        reference_run=plain(losses),
        gradients=match,
        gradients_again=again,
    )
    assert judge_numerics(record).kind == "same"


CLOSE = st.builds(GradientMatch, cosine=st.floats(COSINE_LIMIT, 1), norm_ratio=st.floats(0.96, 1.04))
"""Gradients that agree, so that the losses decide."""


@given(
    st.lists(LOSSES, min_size=16, max_size=40), st.floats(-0.8, 0.8), st.one_of(CLOSE, MATCHES), st.booleans()
)
def test_the_limits_are_where_they_are_said_to_be(losses, change, match, looked):
    """A change of the loss, a cosine or a norm beyond its limit is worse, others are not.

    Where nobody looked at what another order of the batches does, a change of the loss has to be far larger
    to be worse, and beyond the usual limit is not called the same.
    """
    late = late_steps(len(losses))
    shown = [loss * (1 + change) if n >= len(losses) - late else loss for n, loss in enumerate(losses)]
    # A loss that has fallen far is held against the first one: keep to those that have not.
    level = sum(losses[-late:]) / late
    losses[0] = min(losses[0], 10 * level)
    record = NumericsRecord(
        settings=YOURS.replace(precision="bfloat16"),
        reference=YOURS,
        run=plain(shown),
        reference_run=plain(losses),
        again=plain(losses) if looked else None,
        gradients=match,
    )
    gradient = max(COSINE_LIMIT - match.cosine, abs(match.norm_ratio - 1) - NORM_LIMIT)
    loss = abs(change) - LOSS_LIMIT
    far = loss if looked else abs(change) - LOSS_LIMIT_ALONE
    if any(abs(each) < 1e-6 for each in (gradient, loss, far)):
        return  # rounding decides
    expected = "worse" if max(gradient, far) > 0 else "unknown" if loss > 0 else "same"
    assert judge_numerics(record).kind == expected


@given(RECORDS, st.floats(-1, 1), st.floats(0, 3))
def test_noise_only_widens_the_limits(record, cosine, ratio):
    """What passes beside a quiet reference passes beside one that differs from itself."""
    quiet = replace(record, again=None, gradients_again=None)
    if judge_numerics(quiet).kind == "same":
        noisy = replace(quiet, gradients_again=GradientMatch(cosine=cosine, norm_ratio=ratio))
        assert judge_numerics(noisy).kind == "same"
        assert judge_numerics(replace(quiet, again=record.again)).kind == "same"
