"""A run as values that `json` can write: the answer first, then everything it was computed from. Pure."""

from __future__ import annotations

import math
from typing import Any

from autotune.codec import encode
from autotune.outcome import Outcome
from autotune.report.figures import break_even_s, failures, rival, sides
from autotune.settings import Settings


def outcome_json(outcome: Outcome, *, version: str = "", saved: str = "") -> dict[str, Any]:
    """The run as dicts, lists and scalars; a number that is not finite, which JSON lacks, is null.

    `yours` and `best` hold what the table shows; `trials` holds every block that was timed, so that each
    figure can be computed again.

    Args:
        outcome: what the run found.
        version: of autotune.
        saved: where the profile was saved; null in the result where it was not.
    """
    changed = outcome.best if outcome.best != outcome.yours else None
    shown = changed or rival(outcome)
    yours, other = sides(outcome, shown or outcome.yours)
    result = {
        "autotune": version,
        "name": outcome.name,
        "verdict": encode(outcome.verdict),
        "settings": encode(outcome.best),
        "changed": outcome.best.changed_from(outcome.yours),
        "recipe": encode(outcome.recipe),
        "batch": encode(outcome.batch),
        "noise_scale": encode(outcome.noise),
        "pilots": encode(outcome.pilots),
        "yours": {"settings": encode(outcome.yours), "measured": encode(yours)},
        "best": {"settings": encode(outcome.best), "measured": encode(other if changed else yours)},
        "tried": _tried(shown, encode(other)) if shown is not None and changed is None else None,
        "break_even_s": break_even_s(outcome),
        "worth": encode(outcome.worth),
        "kept": encode(outcome.kept),
        "ceilings": {
            "loader_samples_per_s": outcome.ceiling("loader"),
            "compute_samples_per_s": outcome.ceiling("compute"),
        },
        "failures": {group.kind: encode(group) for group in failures(outcome.trials)},
        "notes": list(outcome.notes),
        "stop_reason": outcome.stop_reason,
        "elapsed_s": outcome.elapsed_s,
        "budget_s": outcome.budget_s,
        "epochs": outcome.epochs,
        "study": outcome.study or None,
        "saved": saved or None,
        "machine": encode(outcome.machine),
        "workload": encode(outcome.workload),
        "trials": encode(outcome.trials),
    }
    return {key: _finite(value) for key, value in result.items()}


def _tried(settings: Settings, measured: Any) -> dict[str, Any]:
    return {"settings": encode(settings), "measured": measured}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
