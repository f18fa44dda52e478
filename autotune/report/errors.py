"""An error as text for people and as values for programs. Pure."""

from __future__ import annotations

import textwrap

from autotune.errors import AutotuneError


def error_text(error: AutotuneError, width: int = 80) -> str:
    """The error's own parts, wrapped to `width`; `detail`, such as a traceback, is left as it is."""
    lines = _wrapped(f"error[{error.code}]: ", error.what, width, follow=2)
    for name, text in (("why", error.why), ("fix", error.fix)):
        if text:
            lines += _wrapped(f"  {name:<6}", text, width, follow=8)
    if error.detail:
        lines += ["", error.detail.rstrip()]
    return "\n".join(lines)


def error_json(code: str, what: str, *, why: str = "", fix: str = "", detail: str = "") -> dict[str, object]:
    """What stands on stdout with `--json` where there is no answer."""
    parts = {"code": code, "what": what, "why": why, "fix": fix}
    return {"error": {**parts, "detail": detail} if detail else parts}


def _wrapped(head: str, text: str, width: int, follow: int) -> list[str]:
    """Lines of `text`, each wrapped on its own so that listings in it stay listings."""
    result: list[str] = []
    for number, line in enumerate(text.rstrip().split("\n")):
        first = head if number == 0 else " " * follow
        result += textwrap.wrap(
            line,
            width,
            initial_indent=first,
            subsequent_indent=" " * follow,
            break_long_words=False,
            break_on_hyphens=False,
        ) or [first.rstrip()]
    return result
