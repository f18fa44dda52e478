"""Laws of a pilot's judgement, for any losses."""

from __future__ import annotations

from dataclasses import replace

import strategies  # noqa: F401  # its profile for shared machines
from hypothesis import given
from hypothesis import strategies as st

from autotune.codec import decode, encode
from autotune.outcome import Pilot
from autotune.recipe.pilot import (
    LOSS_LIMIT,
    TOO_NOISY,
    PilotRecord,
    PilotRun,
    judge_pilot,
    marks,
    priced_marks,
)
from autotune.settings import Settings

OWN = Settings().replace(batch_size=32)
LOSSES = st.floats(0.01, 10.0)
POINTS = st.tuples(LOSSES, LOSSES, LOSSES, LOSSES)
RUNS = st.builds(
    PilotRun,
    losses=POINTS,
    priced=POINTS,
    first=st.none() | LOSSES,
    most=LOSSES,
    steps=st.integers(30, 400),
)
CHANGED = st.builds(
    PilotRun,
    losses=st.one_of(POINTS, st.just((None,) * 4)),
    most=st.none() | LOSSES,
    finite=st.booleans(),
    steps=st.integers(1, 96),
)
RECORDS = st.builds(
    PilotRecord,
    settings=st.just(OWN.replace(batch_size=128)),
    reference=st.just(OWN),
    priced=st.floats(0.1, 1.0),
    warm_steps=st.integers(0, 100),
    samples=st.integers(1, 10**6),
    held_samples=st.integers(0, 512),
    first_loss=st.none() | LOSSES,
    run=CHANGED,
    reference_run=RUNS,
    again=st.none() | RUNS,
    refused=st.sampled_from(("", "", "", "no end")),
)


@given(record=RECORDS)
def test_every_record_is_judged_in_words_and_survives_json(record: PilotRecord) -> None:
    """With a reason, a limit of 2 % at least, and figures where it was compared."""
    found = judge_pilot(record)
    assert found.reason
    assert found.limit is None or found.limit >= 0.02
    assert (found.change is None) == (found.limit is None)
    assert decode(PilotRecord, encode(record)) == record
    assert decode(Pilot, encode(found)) == found


@given(record=RECORDS, more=st.floats(1.0, 3.0))
def test_a_higher_loss_is_never_judged_better(record: PilotRecord, more: float) -> None:
    """What is out stays out when its losses rise."""
    if judge_pilot(record).kind == "worse":
        higher = tuple(None if loss is None else more * loss for loss in record.run.losses)
        assert judge_pilot(replace(record, run=replace(record.run, losses=higher))).kind == "worse"


@given(record=RECORDS)
def test_what_is_as_good_as_counted_is_never_out(record: PilotRecord) -> None:
    """The user's own losses at the priced marks, without divergence."""
    calm = replace(record.reference_run, most=record.first_loss)
    even = PilotRun(losses=calm.priced, most=record.first_loss, steps=30)
    record = replace(record, run=even, reference_run=calm, again=calm, refused="")
    assert judge_pilot(record).kind == "same"


def near_a_limit(change: float, limit: float) -> bool:
    """Whether rounding may decide."""
    return min(abs(change - limit), abs(change - LOSS_LIMIT), abs(limit - TOO_NOISY)) < 1e-9


@given(record=RECORDS, scale=st.floats(0.1, 10.0))
def test_the_unit_of_the_loss_does_not_matter(record: PilotRecord, scale: float) -> None:
    """A loss twice as large everywhere changes no verdict, but for rounding at a limit."""
    found = judge_pilot(record)
    change, limit = found.change, found.limit
    near = change is not None and limit is not None and near_a_limit(change, limit)

    def scaled(run: PilotRun) -> PilotRun:
        return replace(
            run,
            losses=tuple(None if loss is None else scale * loss for loss in run.losses),
            priced=tuple(None if loss is None else scale * loss for loss in run.priced),
            first=None if run.first is None else scale * run.first,
            most=None if run.most is None else scale * run.most,
        )

    edge = any(
        run is not None and run.most is not None and abs(run.most - 3 * start) < 1e-9
        for run in (record.run, record.reference_run, record.again)
        for start in (record.first_loss or 0.0, record.reference_run.first or 0.0)
    )
    other = replace(
        record,
        run=scaled(record.run),
        reference_run=scaled(record.reference_run),
        again=None if record.again is None else scaled(record.again),
        first_loss=None if record.first_loss is None else scale * record.first_loss,
    )
    assert near or edge or judge_pilot(other).kind == found.kind


@given(
    steps=st.integers(30, 400), own=st.integers(1, 512), growth=st.integers(1, 8), priced=st.floats(0.1, 1)
)
def test_marks_lie_within_the_run(steps: int, own: int, growth: int, priced: float) -> None:
    """In order, whole batches, the last at the end; the user's own is never asked to go further."""
    reached = marks(steps, own * growth)
    assert list(reached) == sorted(reached)
    assert reached[-1] == steps * own * growth
    counted = priced_marks(reached, priced, own)
    assert all(mark % own == 0 and 0 < mark <= max(own, reached[-1]) for mark in counted)
