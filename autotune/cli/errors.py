"""Exit codes, and the one place where exceptions become them."""

from __future__ import annotations

import os
import platform
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from autotune.cli.streams import say, write_answer
from autotune.errors import AutotuneError

OK = 0
EXPECTED = 1
USAGE = 2
UNFIT = 3
DOUBTFUL = 4
BUG = 70
INTERRUPTED = 130


def guarded(call: Callable[[], Any], *, as_json: bool) -> int:
    """Run `call`, which gives an exit code or nothing, and turn whatever it raises into one.

    Args:
        call: the work.
        as_json: whether a failure is also written to stdout as JSON.
    """
    try:
        code = call()
    except click.ClickException as error:
        error.show()
        _as_json(as_json, "usage", error.format_message(), fix="see --help")
        return error.exit_code
    except AutotuneError as error:
        return failed(error, as_json=as_json)
    except (KeyboardInterrupt, click.Abort):
        say("interrupted before there was an answer")
        _as_json(as_json, "interrupted", "interrupted before there was an answer")
        return INTERRUPTED
    except Exception as error:
        return _crashed(error, as_json=as_json)
    return code if isinstance(code, int) else OK


def failed(error: AutotuneError, *, as_json: bool) -> int:
    """Show an expected error; its exit code."""
    from autotune.report.errors import error_text

    say(error_text(error))
    _as_json(as_json, error.code, error.what, why=error.why, fix=error.fix, detail=error.detail)
    return EXPECTED


def _as_json(wanted: bool, code: str, what: str, **parts: str) -> None:
    if wanted:
        import json

        from autotune.report.errors import error_json

        write_answer(json.dumps(error_json(code, what, **parts), indent=2))


def _crashed(error: Exception, *, as_json: bool) -> int:
    what = f"autotune itself failed: {type(error).__name__}: {error}"
    saved = _save_crash(error)
    if saved is None:
        say("".join(traceback.format_exception(error)).rstrip())
    say(what)
    say(f"This is a bug of autotune. The traceback is in {saved}" if saved else "This is a bug of autotune.")
    _as_json(as_json, "bug", what, fix=f"report it with {saved}" if saved else "report it")
    return BUG


def _save_crash(error: Exception) -> Path | None:
    """Write the traceback below the user's state directory; None where that cannot be done."""
    import platformdirs

    home = os.environ.get("AUTOTUNE_HOME")
    base = Path(home).expanduser() if home else platformdirs.user_state_path("autotune", appauthor=False)
    path = base / "crashes" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    head = f"python {platform.python_version()} on {platform.system()}\n{' '.join(sys.argv)}\n\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(head + "".join(traceback.format_exception(error)), encoding="utf-8")
    except OSError:
        return None
    return path
