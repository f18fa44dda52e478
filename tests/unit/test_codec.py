"""Values to JSON and back, and every problem of a document at its place."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from autotune.codec import CodecError, Problem, decode, encode
from autotune.settings import LoaderSettings, Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    """A value inside another."""

    count: int
    share: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    """A value with every kind of field."""

    name: str
    inner: Inner
    flag: bool = False
    kind: Literal["red", "green"] = "red"
    many: tuple[Inner, ...] = ()
    pair: tuple[int, str] = (0, "")
    limit: int | None = None
    knob: int | bool | str | None = None
    by_name: dict[str, Inner] = field(default_factory=dict)


FULL = Outer(
    name="x",
    inner=Inner(count=1),
    flag=True,
    kind="green",
    many=(Inner(count=2, share=1.5),),
    pair=(3, "c"),
    limit=4,
    knob=True,
    by_name={"a": Inner(count=5)},
)


def problems(cls: type, data: Any) -> list[Problem]:
    """What is wrong with `data`."""
    with pytest.raises(CodecError) as raised:
        decode(cls, data)
    return raised.value.problems


def changed(**changes: Any) -> dict[str, Any]:
    """A good document with some values changed."""
    return {**encode(FULL), **changes}


def test_a_value_comes_back_from_json() -> None:
    """With all kinds of fields, through text."""
    assert decode(Outer, json.loads(json.dumps(encode(FULL)))) == FULL


def test_what_is_left_out_takes_its_default() -> None:
    """Fields added later do not break documents written before."""
    assert decode(Outer, {"name": "x", "inner": {"count": 1}}) == Outer(name="x", inner=Inner(count=1))


def test_a_whole_number_passes_for_a_number() -> None:
    """JSON and YAML write 1.0 as 1; it comes back as a float."""
    share = decode(Inner, {"count": 1, "share": 2}).share
    assert (share, type(share)) == (2.0, float)


def test_true_is_no_number_and_one_is_not_true() -> None:
    """Python holds True == 1; a document does not."""
    assert decode(Outer, changed(knob=True)).knob is True
    assert type(decode(Outer, changed(knob=1)).knob) is int
    assert [p.path for p in problems(Outer, changed(inner={"count": True}))] == [("inner", "count")]
    assert [p.path for p in problems(Outer, changed(flag=1))] == [("flag",)]


@pytest.mark.parametrize(
    ("change", "path", "expected"),
    [
        ({"name": 3}, ("name",), "text"),
        ({"inner": []}, ("inner",), "a mapping"),
        ({"inner": {"count": "1"}}, ("inner", "count"), "a whole number"),
        ({"inner": {"count": 1.0}}, ("inner", "count"), "a whole number"),
        ({"inner": {"count": 1, "share": "much"}}, ("inner", "share"), "a number"),
        ({"flag": "yes"}, ("flag",), "true or false"),
        ({"many": {}}, ("many",), "a list"),
        ({"many": "ab"}, ("many",), "a list"),
        ({"many": [{"count": 1}, {"count": None}]}, ("many", 1, "count"), "a whole number"),
        ({"pair": [1]}, ("pair",), "a list of 2"),
        ({"pair": [1, 2]}, ("pair", 1), "text"),
        ({"by_name": {"a": 1}}, ("by_name", "a"), "a mapping"),
        ({"by_name": []}, ("by_name",), "a mapping"),
        ({"limit": "x"}, ("limit",), "a whole number"),
        ({"kind": "grene"}, ("kind",), "one of 'red', 'green'"),
    ],
)
def test_a_wrong_value_is_named_with_its_path(
    change: dict[str, Any], path: tuple[str | int, ...], expected: str
) -> None:
    """From the top to the place, with what was expected there."""
    (problem,) = problems(Outer, changed(**change))
    assert problem.path == path
    assert problem.message.startswith(f"expected {expected}, found ")
    assert not problem.on_key


def test_all_problems_are_found_at_once() -> None:
    """A reader fixes a file in one go."""
    found = problems(Outer, {"inner": {"count": "x", "shape": 1}, "flag": 0})
    assert {(p.path, p.on_key) for p in found} == {
        (("inner", "shape"), True),
        (("inner", "count"), False),
        (("flag",), False),
        ((), True),
    }
    assert any(p.message == "`name` is missing" for p in found)


def test_a_misspelt_key_is_met_with_the_right_one() -> None:
    """Did you mean; else what is known there."""
    (near,) = problems(Settings, {"loader": {"num_workres": 2}})
    assert (near.path, near.hint) == (("loader", "num_workres"), "did you mean `num_workers`?")
    (far,) = problems(LoaderSettings, {"zzz": 2})
    assert far.hint.startswith("known here: batch_size, num_workers")


def test_a_misspelt_choice_is_met_with_the_right_one() -> None:
    """The same for values of a fixed list."""
    (problem,) = problems(Settings, {"compute": {"precision": "bfloat"}})
    assert problem.hint == "did you mean `bfloat16`?"


def test_a_number_beyond_all_floats_is_a_problem_not_a_crash() -> None:
    """A document can hold any number of digits."""
    (problem,) = problems(Inner, {"count": 1, "share": 10**400})
    assert problem.path == ("share",)


def test_a_long_value_is_shown_short() -> None:
    """A message stays one line."""
    (problem,) = problems(Inner, {"count": "x" * 500})
    assert len(problem.message) < 80


def test_the_error_reads_as_one_line_per_problem() -> None:
    """Where nobody knows lines and columns, path and message are there."""
    with pytest.raises(CodecError, match=r"inner\.count: expected a whole number"):
        decode(Outer, changed(inner={"count": "x"}))


def test_a_document_that_is_no_mapping_is_a_problem_at_the_top() -> None:
    """A list or nothing at all in place of a document."""
    for data in (None, [], "x"):
        (problem,) = problems(Outer, data)
        assert problem.path == ()
