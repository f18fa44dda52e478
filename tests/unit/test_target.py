"""A TARGET on the command line: what is accepted, and what each mistake is told."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from autotune.errors import EmptyDatasetError, TargetError
from autotune.measure.target import load_target, parse_target

TRAIN = """
import autotune

class Model: pass

def make():
    return autotune.Workload(Model, [1, 2, 3])

def pair():
    return (Model(), [1, 2, 3])

def sized(batch, lr=0.1):
    return make()

def broken():
    return {}["weights"]

def leaves():
    raise SystemExit(3)

def ours():
    from autotune.errors import EmptyDatasetError
    raise EmptyDatasetError("nothing there")

def number():
    return 3

ready = make()

from torch.nn import Identity
instance = Identity()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory; what is imported from it is forgotten again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def script(folder: Path) -> Path:
    """A training script."""
    path = folder / "train_photos.py"
    path.write_text(TRAIN)
    return path


@pytest.mark.parametrize("text", ["train.py", ":make", "train.py:", "train.py:ma ke", "a b:make", "x:"])
def test_other_shapes_are_told_the_shape(text: str, folder: Path) -> None:
    """A target without a place or a name cannot be loaded; the fix shows one that can."""
    with pytest.raises(TargetError) as raised:
        parse_target(text)
    assert "train.py:make" in raised.value.fix


@pytest.mark.parametrize("attribute", ["make", "pair", "ready"])
def test_a_file_gives_its_workload(script: Path, attribute: str) -> None:
    """A function, a pair and a ready Workload all do."""
    workload = load_target(parse_target(f"train_photos.py:{attribute}"))
    assert workload.dataset == [1, 2, 3]


def test_a_file_is_imported_under_its_name_so_that_others_can_import_it(script: Path) -> None:
    """Workers unpickle by module name: the file's folder must be on the path, under that name."""
    workload = load_target(parse_target(f"{script}:make"))
    assert workload.model.__module__ == "train_photos"
    assert str(script.parent) in sys.path


def test_a_module_is_imported_from_the_current_directory(script: Path) -> None:
    """`train_photos:make` works without the `.py`."""
    assert load_target(parse_target("train_photos:make")).dataset == [1, 2, 3]


def test_parsing_runs_nothing_of_the_users(folder: Path) -> None:
    """A typing mistake elsewhere must not cost a minute of imports."""
    (folder / "slow.py").write_text("raise AssertionError('was run')")
    assert parse_target("slow.py:make").module == "slow"
    assert parse_target("slow:make").module == "slow"


@pytest.mark.parametrize(
    ("text", "fix"), [("train_photo.py:make", "train_photos.py"), ("train_photo:make", "train_photos")]
)
def test_a_missing_file_or_module_gets_a_suggestion(script: Path, text: str, fix: str) -> None:
    """The nearest name that exists."""
    with pytest.raises(TargetError) as raised:
        parse_target(text)
    assert raised.value.fix == f"did you mean `{fix}`?"


def test_a_missing_name_gets_a_suggestion(script: Path) -> None:
    """The nearest callable of the module."""
    with pytest.raises(TargetError) as raised:
        load_target(parse_target("train_photos.py:mak"))
    assert raised.value.fix == "did you mean `make`?"


def test_a_missing_submodule_is_not_blamed_on_the_user_code(folder: Path) -> None:
    """`json.nothing` is a wrong name, not a broken import."""
    with pytest.raises(TargetError, match=r"there is no module `json\.nothing`"):
        load_target(parse_target("json.nothing:make"))


def test_a_missing_import_inside_shows_where(folder: Path) -> None:
    """The user's own traceback, without the frames of the loader."""
    (folder / "needs.py").write_text("import not_installed_anywhere\n")
    with pytest.raises(TargetError) as raised:
        load_target(parse_target("needs.py:make"))
    assert "needs.py" in raised.value.detail
    assert "not_installed_anywhere" in raised.value.fix
    assert "measure/target.py" not in raised.value.detail
    assert "needs" not in sys.modules


def test_a_syntax_error_shows_its_line(folder: Path) -> None:
    """A file that is no Python is an expected error, not a crash."""
    (folder / "torn.py").write_text("def make(:\n")
    with pytest.raises(TargetError) as raised:
        load_target(parse_target("torn.py:make"))
    assert "def make(:" in raised.value.detail


def test_a_script_without_a_main_guard_is_told_about_it(folder: Path) -> None:
    """`sys.exit()` at import would end the tuner without a word."""
    (folder / "runs.py").write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(TargetError) as raised:
        load_target(parse_target("runs.py:make"))
    assert "__main__" in raised.value.fix


def test_a_factory_with_arguments_shows_its_signature(script: Path) -> None:
    """The user sees which argument is in the way."""
    with pytest.raises(TargetError) as raised:
        load_target(parse_target("train_photos.py:sized"))
    assert "sized(batch, lr=0.1)" in raised.value.why


def test_a_factory_that_raises_shows_the_users_traceback(script: Path) -> None:
    """The line that failed, and nothing of the loader."""
    with pytest.raises(TargetError) as raised:
        load_target(parse_target("train_photos.py:broken"))
    assert "KeyError" in raised.value.what
    assert '{}["weights"]' in raised.value.detail
    assert "measure/target.py" not in raised.value.detail


def test_a_factory_that_exits_does_not_end_the_tuner(script: Path) -> None:
    """`raise SystemExit` in the factory is its failure, with its place."""
    with pytest.raises(TargetError, match="raised SystemExit"):
        load_target(parse_target("train_photos.py:leaves"))


def test_an_error_of_ours_comes_through_as_it_is(script: Path) -> None:
    """It says better what is wrong than a wrapper could."""
    with pytest.raises(EmptyDatasetError):
        load_target(parse_target("train_photos.py:ours"))


def test_something_that_is_no_workload_is_named(script: Path) -> None:
    """The target stands in the message, since the factory is what has to change."""
    with pytest.raises(TargetError, match=r"train_photos\.py:number: the factory returned no workload"):
        load_target(parse_target("train_photos.py:number"))


def test_a_model_is_not_called_as_a_function(script: Path) -> None:
    """A module in the file is no factory: its own complaint of missing inputs would lead nowhere."""
    with pytest.raises(TargetError) as raised:
        load_target(parse_target("train_photos.py:instance"))
    assert "returned no workload" in raised.value.what
    assert "Identity" in raised.value.why


def test_a_file_with_the_name_of_another_module_is_refused(folder: Path) -> None:
    """`json.py` would be imported as the library's json by every worker."""
    (folder / "json.py").write_text("def make(): ...\n")
    with pytest.raises(TargetError) as raised:
        load_target(parse_target("json.py:make"))
    assert raised.value.fix == "rename the file"


def test_a_file_name_with_a_dot_in_it_is_refused(folder: Path) -> None:
    """`train.v2` would be read as module v2 of package train."""
    (folder / "train.v2.py").write_text("")
    with pytest.raises(TargetError, match=r"train\.v2\.py cannot be imported"):
        parse_target("train.v2.py:make")
