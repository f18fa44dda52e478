"""Every error says what, why and what to do, under a code of its own."""

from __future__ import annotations

import copy
import pickle
import re

import pytest

from autotune import errors
from autotune.errors import AutotuneError, AutotuneWarning, ProfileMismatchWarning


def subclasses(cls: type[AutotuneError]) -> list[type[AutotuneError]]:
    """All below `cls` that the module itself defines."""
    below = [sub for sub in cls.__subclasses__() if sub.__module__ == errors.__name__]
    return below + [deeper for sub in below for deeper in subclasses(sub)]


ALL = subclasses(AutotuneError)


def test_codes_are_unique() -> None:
    """A code names one kind of error."""
    codes = [cls.code for cls in (AutotuneError, *ALL)]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"AT-E\d\d", code) for code in codes)


def test_the_docstring_lists_exactly_the_errors_there_are() -> None:
    """The tree at the top of the module is complete, with the right codes."""
    listed = dict(re.findall(r"[|`]-- (\w+)\s+(AT-E\d\d)", errors.__doc__ or ""))
    assert listed == {cls.__name__: cls.code for cls in ALL}


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_an_error_travels_between_processes(cls: type[AutotuneError]) -> None:
    """Pickled or copied, class and all four parts come back."""
    error = cls("it broke", why="it was old", fix="buy a new one", detail="Traceback ...")
    for back in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(back) is cls
        assert (back.what, back.why, back.fix, back.detail) == (
            "it broke",
            "it was old",
            "buy a new one",
            "Traceback ...",
        )
        assert str(back) == str(error)


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_an_error_renders_what_why_and_fix_in_this_order(cls: type[AutotuneError]) -> None:
    """The code and the fact first, the detail last; lines that go on are indented below their own."""
    text = str(cls("it broke", why="old\nand wet", fix="buy a new one", detail="Traceback\n  line\n"))
    assert text.split("\n") == [
        f"error[{cls.code}]: it broke",
        "  why   old",
        "        and wet",
        "  fix   buy a new one",
        "",
        "Traceback",
        "  line",
    ]


def test_what_has_nothing_to_say_takes_no_line() -> None:
    """An error with a fact alone is one line."""
    assert str(AutotuneError("it broke")) == "error[AT-E00]: it broke"


def test_every_class_says_when_it_is_raised() -> None:
    """The docstring is what `explain` shows."""
    assert all(cls.__doc__ and cls.__doc__ != AutotuneError.__doc__ for cls in ALL)


def test_a_mismatch_is_a_warning_that_can_be_filtered_alone() -> None:
    """It is one of ours and a UserWarning."""
    assert issubclass(ProfileMismatchWarning, AutotuneWarning)
    assert issubclass(AutotuneWarning, UserWarning)
