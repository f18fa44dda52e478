"""Laws of the values that everything else speaks in."""

from __future__ import annotations

import dataclasses
import json
import string
import types
import typing
from typing import Any

import pytest
import strategies
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.codec import CodecError, decode, encode
from autotune.errors import UsageError
from autotune.facts import MachineFacts, WorkloadFacts
from autotune.outcome import Outcome
from autotune.settings import Settings
from autotune.trial import Block, Failure, Measurement, Trial, TrialSpec
from autotune.units import (
    format_bytes,
    format_duration,
    format_percent,
    format_rate,
    parse_duration_s,
)

LEAVES: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(-(2**60), 2**60),
    float: st.floats(allow_nan=False),
    bool: st.booleans(),
    str: st.text(max_size=4),
    type(None): st.none(),
}


def anything(hint: Any) -> st.SearchStrategy[Any]:
    """Every value that a type hint of the vocabulary allows, with every field drawn."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Trial:
        return trials()
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return st.builds(
            hint,
            **{f.name: st.deferred(lambda h=hints[f.name]: anything(h)) for f in dataclasses.fields(hint)},
        )
    if origin in (typing.Union, types.UnionType):
        return st.one_of([anything(arg) for arg in args])
    if origin is typing.Literal:
        return st.sampled_from(args)
    if origin is tuple and args[1:] == (...,):
        return st.lists(anything(args[0]), max_size=2).map(tuple)
    if origin is tuple:
        return st.tuples(*(anything(arg) for arg in args))
    return LEAVES[hint]


def trials() -> st.SearchStrategy[Trial]:
    """Trials with one outcome each."""
    fields = {"number": LEAVES[int], "spec": anything(TrialSpec)}
    return st.builds(Trial, measurement=anything(Measurement), **fields) | st.builds(
        Trial, failure=anything(Failure), **fields
    )


@pytest.mark.parametrize("cls", [Settings, TrialSpec, Trial, MachineFacts, WorkloadFacts, Outcome])
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_what_is_written_is_read_back(cls: type, data: st.DataObject) -> None:
    """Any value of the vocabulary survives encoding, JSON text and decoding."""
    value = data.draw(anything(cls))
    text = json.dumps(encode(value))
    assert decode(cls, json.loads(text)) == value


@settings(deadline=None)
@given(value=strategies.settings(), data=st.data())
def test_a_document_with_a_stranger_in_it_is_refused(value: Settings, data: st.DataObject) -> None:
    """One unknown key anywhere is one problem, at that key."""
    document = encode(value)
    group = data.draw(st.sampled_from([*document, None]))
    place = document if group is None else document[group]
    key = data.draw(st.text(string.ascii_lowercase, min_size=1).filter(lambda name: name not in place))
    place[key] = 1
    with pytest.raises(CodecError) as raised:
        decode(Settings, document)
    (problem,) = raised.value.problems
    assert problem.path == ((key,) if group is None else (group, key))
    assert problem.on_key


@settings(deadline=None)
@given(value=strategies.settings())
def test_flat_and_from_flat_are_inverse(value: Settings) -> None:
    """No knob is lost or added."""
    assert Settings.from_flat(value.flat()) == value


@settings(deadline=None)
@given(one=strategies.settings(), other=strategies.settings())
def test_the_changes_lead_from_one_to_the_other(one: Settings, other: Settings) -> None:
    """Applying what differs gives the other, and nothing differs from itself."""
    changes = one.changed_from(other)
    assert other.replace(**changes) == one
    assert (changes == {}) == (one == other)
    assert set(changes) == set(other.changed_from(one))


@settings(deadline=None)
@given(one=strategies.settings(), other=strategies.settings())
def test_keys_are_equal_exactly_for_equal_settings(one: Settings, other: Settings) -> None:
    """A key can stand for the settings."""
    assert (one.key() == other.key()) == (one == other)
    assert one.key() == Settings.from_flat(one.flat()).key()


@settings(deadline=None)
@given(h=st.integers(0, 99), m=st.integers(0, 999), s=st.integers(0, 999), gap=st.sampled_from(["", " "]))
def test_a_duration_is_the_sum_of_its_parts(h: int, m: int, s: int, gap: str) -> None:
    """Hours, minutes and seconds, those that are there."""
    text = gap.join(f"{count}{unit}" for count, unit in ((h, "h"), (m, "m"), (s, "s")) if count)
    if text:
        assert parse_duration_s(text) == 3600 * h + 60 * m + s


@settings(deadline=None)
@given(text=st.text(alphabet="0123456789.hms min-e", max_size=8))
def test_a_text_is_a_duration_or_a_usage_error(text: str) -> None:
    """No text gives another exception, and no duration is zero, negative or without an end."""
    try:
        seconds = parse_duration_s(text)
    except UsageError:
        return
    assert 0 < seconds < float("inf")


@settings(deadline=None)
@given(seconds=st.floats(1e-4, 1e6))
def test_a_shown_duration_is_near_the_true_one(seconds: float) -> None:
    """What is printed can be given back, and is off by less than rounding."""
    text = format_duration(seconds)
    shown = float(text.removesuffix(" ms")) / 1e3 if text.endswith(" ms") else parse_duration_s(text)
    tolerance = 31 if "h" in text else 0.51 if "m" in text.removesuffix(" ms") else 0.051 * max(seconds, 1e-4)
    assert abs(shown - seconds) <= tolerance


@settings(deadline=None)
@given(value=st.floats(0, 1e15))
def test_three_digits_are_enough_for_everything(value: float) -> None:
    """Rates and bytes never show more than three digits that mean something."""
    rate = format_rate(value).replace(",", "").replace(".", "").strip("0")
    assert len(rate) <= 3
    amount, unit = format_bytes(value).split()
    assert float(amount) < 1000 or unit == "TiB"


@settings(deadline=None)
@given(ratio=st.floats(0.01, 100))
def test_the_sign_of_a_change_is_never_wrong(ratio: float) -> None:
    """A plus is a gain, a minus a loss, none is nothing."""
    text = format_percent(ratio)
    sign = {"+": 1, "-": -1}.get(text[0], 0)
    assert sign == 0 or (sign > 0) == (ratio > 1)
    assert (sign == 0) == (float(text.split()[0]) == 0)


@settings(deadline=None)
@given(
    rate=st.floats(1e-2, 1e5),
    starts=st.tuples(*[st.floats(0, 100)] * 3),
    samples=st.integers(1, 10**7),
    epochs=st.integers(1, 500),
)
def test_starts_only_ever_cost(rate: float, starts: tuple[float, ...], samples: int, epochs: int) -> None:
    """The effective rate is never above the steady one, and grows with the number of epochs."""
    block = Block(steps=1, samples=8, elapsed_s=8 / rate, wait_s=0.0)
    warmup_s, startup_s, restart_s = starts
    found = Measurement(
        blocks=(block,), warmup_s=warmup_s, startup_s=startup_s + restart_s, restart_s=restart_s
    )
    short = found.effective_samples_per_s(samples, epochs)
    longer = found.effective_samples_per_s(samples, epochs + 1)
    assert short <= longer * (1 + 1e-9)
    assert longer <= found.effective_samples_per_s(samples) * (1 + 1e-9)
    assert found.effective_samples_per_s(samples) <= found.samples_per_s * (1 + 1e-9)
