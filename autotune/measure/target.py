"""A TARGET on the command line, `train.py:make` or `package.module:make`, to a Workload."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from autotune.errors import AutotuneError, TargetError
from autotune.workload import Workload

_SHAPE = "write it as file.py:function or package.module:function, such as train.py:make"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a workload's factory is found."""

    text: str
    """As the user wrote it."""
    module: str
    """The name to import it under; of a file, its name without `.py`."""
    path: Path | None
    """The file, absolute; None for a module."""
    attribute: str
    """The factory in it, dotted where it is nested."""


def parse_target(text: str) -> Target:
    """What `text` points at. Nothing of the user's is run.

    Raises:
        TargetError: for another shape, and for a file or a module that is not there.
    """
    place, colon, attribute = text.rpartition(":")
    if not colon or not place or os.sep in attribute:
        raise TargetError(f"`{text}` names no function", why="there is no `:name` at its end", fix=_SHAPE)
    if not all(part.isidentifier() for part in attribute.split(".")):
        raise TargetError(f"`{attribute}` cannot be the name of a function", why=f"in `{text}`", fix=_SHAPE)
    if place.endswith(".py") or os.sep in place:
        path = _existing_file(place)
        return Target(text=text, module=path.stem, path=path, attribute=attribute)
    _check_module(place)
    return Target(text=text, module=place, path=None, attribute=attribute)


def load_target(target: Target) -> Workload:
    """Import the target, call its factory, and take what it returns as a Workload.

    The file's directory, or the current one, joins `sys.path`, so that other processes can import it again.

    Raises:
        TargetError: where one of the three fails; `detail` is the user's own traceback.
        AutotuneError: where the factory itself raised one.
    """
    module = _imported(target)
    factory = _looked_up(module, target)
    value = _called(factory, target) if callable(factory) and not _is_model(factory) else factory
    try:
        return Workload.of(value)
    except AutotuneError as error:
        raise TargetError(f"{target.text}: {error.what}", why=error.why, fix=error.fix) from error


def _existing_file(place: str) -> Path:
    path = Path(place).expanduser()
    if not path.is_file():
        siblings = sorted(p.name for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        raise TargetError(
            f"there is no file {place}",
            why=f"looked in {path.parent.resolve()}",
            fix=_suggestion(path.name, siblings) or "check the path",
        )
    if path.suffix != ".py" or "." in path.stem:
        raise TargetError(
            f"{place} cannot be imported",
            why="a file is imported under its name without `.py`, and that name must hold no dot",
            fix="rename the file, such as to train.py",
        )
    return path.resolve()


def _check_module(name: str) -> None:
    top = name.partition(".")[0]
    if not all(part.isidentifier() for part in name.split(".")):
        raise TargetError(f"`{name}` is neither a file nor a module", fix=_SHAPE)
    if top in sys.modules or PathFinder.find_spec(top, [os.getcwd(), *sys.path]) is not None:
        return
    here = [p.name for p in Path().glob("*.py")]
    modules = [Path(n).stem for n in here] + [p.parent.name for p in Path().glob("*/__init__.py")]
    raise TargetError(
        f"there is no module `{top}`",
        why="neither the current directory nor an installed package has it",
        fix=_suggestion(top, sorted(modules)) or "run it where the module is, or name a file: train.py:make",
    )


def _imported(target: Target) -> ModuleType:
    folder = str(target.path.parent) if target.path else os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        if target.path is None:
            return importlib.import_module(target.module)
        return _imported_file(target.module, target.path)
    except AutotuneError:
        raise
    except ModuleNotFoundError as error:
        # A missing part of the target's own name is ours to explain; any other is the user's import.
        if target.path is None and error.name and f"{target.module}.".startswith(f"{error.name}."):
            raise TargetError(
                f"there is no module `{error.name}`", why=f"in `{target.text}`", fix="check the dotted name"
            ) from error
        raise _broken(
            target, error, f"`pip install` what provides `{error.name}`, or fix the import"
        ) from error
    except SystemExit as error:
        raise TargetError(
            f"importing {target.module} ended the program",
            why="the file does its work as soon as it is imported",
            fix='put that part under `if __name__ == "__main__":`',
            detail=_user_traceback(error),
        ) from error
    except Exception as error:
        raise _broken(target, error, "make the import work; the traceback is below") from error


def _imported_file(name: str, path: Path) -> ModuleType:
    known = sys.modules.get(name)
    if known is not None:
        if getattr(known, "__file__", None) and Path(str(known.__file__)).resolve() == path:
            return known
        raise TargetError(
            f"the file {path.name} has the name of another module",
            why=f"`{name}` is imported already, from {getattr(known, '__file__', None) or 'Python itself'}",
            fix="rename the file",
        )
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, "a file that ends in .py has a loader"
    assert spec.loader is not None, "a file that ends in .py has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _is_model(value: Any) -> bool:
    """Whether it is a model itself: it can be called like a function, and makes none."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def _broken(target: Target, error: Exception, fix: str) -> TargetError:
    return TargetError(
        f"{target.module} cannot be imported",
        why=f"{type(error).__name__}: {error}",
        fix=fix,
        detail=_user_traceback(error),
    )


def _looked_up(module: ModuleType, target: Target) -> Any:
    value: Any = module
    for part in target.attribute.split("."):
        if not hasattr(value, part):
            names = [n for n in dir(value) if not n.startswith("_") and callable(getattr(value, n, None))]
            own = [n for n in names if getattr(getattr(value, n), "__module__", None) == target.module]
            raise TargetError(
                f"{target.module} has no `{part}`",
                why=f"asked for by `{target.text}`",
                fix=_suggestion(part, names)
                or _listing(own)
                or "define it: a function that returns a Workload",
            )
        value = getattr(value, part)
    return value


def _called(factory: Any, target: Target) -> Any:
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        raise TargetError(
            f"`{target.attribute}` cannot be called without arguments",
            why=f"it is {target.attribute}{inspect.signature(factory)}: {error}",
            fix="give its arguments defaults, or write a function without arguments around it",
        ) from error
    except ValueError:
        pass  # built-in, no signature to read: the call will tell
    try:
        return factory()
    except AutotuneError:
        raise
    except (Exception, SystemExit) as error:
        raise TargetError(
            f"`{target.attribute}` raised {type(error).__name__}",
            why=str(error),
            fix="make the function work when it is called on its own; the traceback is below",
            detail=_user_traceback(error),
        ) from error


def _user_traceback(error: BaseException) -> str:
    """The traceback without the frames of this file and of the import machinery."""
    whole = traceback.TracebackException.from_exception(error)
    whole.stack = traceback.StackSummary.from_list(
        [f for f in whole.stack if f.filename != __file__ and not f.filename.startswith("<frozen importlib")]
    )
    return "".join(whole.format()).rstrip()


def _suggestion(wrong: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(wrong, list(known), n=1)
    return f"did you mean `{close[0]}`?" if close else ""


def _listing(names: list[str]) -> str:
    return f"there are: {', '.join(names[:8])}" if names else ""
