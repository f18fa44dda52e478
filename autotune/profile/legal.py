"""Values that have the right type and still cannot be applied.

They are looked for in the raw document, so that they are shown beside all else that is wrong with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

from autotune.codec import Path, Problem

_SETTINGS: tuple[Path, ...] = (("settings",), ("measured", "yours_settings"))

_LEAST: dict[Path, int] = {
    ("loader", "batch_size"): 1,
    ("loader", "num_workers"): 0,
    ("loader", "prefetch_factor"): 1,
    ("compute", "cpu_threads"): 1,
}
_LEAST_IN_RECIPE: dict[Path, int] = {
    ("recipe", "batch_size"): 1,
    ("recipe", "reference_batch_size"): 1,
    ("recipe", "warmup_samples"): 0,
    ("recipe", "accumulation_steps"): 1,
    ("recipe", "reference_accumulation_steps"): 1,
    ("recipe", "decay", "samples"): 1,
    ("recipe", "large_batch", "warmup_samples"): 0,
    ("recipe", "large_batch", "decay", "samples"): 1,
}
_LEAST_IN_MEASURED: dict[Path, int] = {
    ("measured", "batch", "reference"): 1,
    ("measured", "batch", "recommended"): 1,
    ("measured", "batch", "max_throughput"): 1,
    ("measured", "pairs"): 0,
    ("measured", "trials"): 0,
    ("measured", "epochs"): 1,
}
_RATES: tuple[Path, ...] = (("measured", "yours", "samples_per_s"), ("measured", "best", "samples_per_s"))
_ENDS = ("low", "value", "high")
_PAIRS = ("learning_rates", "weight_decays", "beta2s", "batch_norm_momenta")
"""Lists in the recipe, each with another of the same length that begins with `reference_`."""
_SHARES = ("beta2s", "reference_beta2s", "batch_norm_momenta", "reference_batch_norm_momenta")
_PARTS: tuple[Path, ...] = (
    ("recipe", "warmup_start"),
    ("recipe", "decay", "end"),
    ("recipe", "decay", "cooldown"),
    ("recipe", "large_batch", "momentum"),
    ("recipe", "large_batch", "warmup_start"),
    ("recipe", "large_batch", "decay", "end"),
    ("recipe", "large_batch", "decay", "cooldown"),
)
"""Parts of something, from 0 to 1."""
_NOT_NEGATIVE: tuple[Path, ...] = (
    ("measured", "noise", "lower_bound"),
    ("recipe", "ema_power"),
    ("recipe", "decay", "power"),
    ("recipe", "large_batch", "learning_rate"),
    ("recipe", "large_batch", "weight_decay"),
    ("recipe", "large_batch", "decay", "power"),
    *_PARTS,
)


def illegal_values(document: Any) -> list[Problem]:
    """What in a profile's raw document torch would refuse. Values of a wrong type are left to the decoder."""
    found = [problem for base in _SETTINGS for problem in _in_settings(document, base)]
    for path, least in (*_LEAST_IN_RECIPE.items(), *_LEAST_IN_MEASURED.items()):
        found += _below(document, path, least)
    return [*found, *_in_numbers(document), *_in_figures(document), *_in_rates(document)]


def _in_settings(document: Any, base: Path) -> Iterator[Problem]:
    for path, least in _LEAST.items():
        yield from _below(document, (*base, *path), least)
    loader = _at(document, (*base, "loader"))
    if not isinstance(loader, Mapping):
        return
    workers = loader.get("num_workers", 0)
    if workers != 0 or isinstance(workers, bool):
        return
    for name, idle in (("prefetch_factor", "null"), ("persistent_workers", "false")):
        value = loader.get(name)
        if value is True or (_whole(value) and value > 0):
            yield Problem(
                path=(*base, "loader", name),
                message="needs worker processes, and `num_workers` is 0",
                hint=f"write `{name}: {idle}`, or raise `num_workers`",
            )


def _in_numbers(document: Any) -> Iterator[Problem]:
    for path in _NOT_NEGATIVE:
        value = _at(document, path)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            continue
        if value < 0:
            yield Problem(path=path, message=f"must not be negative, found {value}")
        elif path in _PARTS and value > 1:
            yield Problem(path=path, message=f"must be at most 1, found {value}")


def _in_figures(document: Any) -> Iterator[Problem]:
    """Rates and ratios that are not above zero: logarithms and quotients are taken of them."""
    figures = [(path, _at(document, path)) for path in _RATES]
    figures += [(path, _at(document, path)) for path in (("measured", "ratio", end) for end in _ENDS)]
    worth = _at(document, ("measured", "worth"))
    for index, one in enumerate(worth if isinstance(worth, list) else []):
        figures += [(("measured", "worth", index, "ratio", end), _at(one, ("ratio", end))) for end in _ENDS]
    for path, value in figures:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value <= 0:
            yield Problem(path=path, message=f"must be more than 0, found {value}")


def _in_rates(document: Any) -> Iterator[Problem]:
    for own in _PAIRS:
        names = (own, f"reference_{own}")
        lists = [_at(document, ("recipe", name)) for name in names]
        for name, values in zip(names, lists):
            yield from _in_list(name, values if isinstance(values, list) else [])
        if all(isinstance(values, list) for values in lists) and len(lists[0]) != len(lists[1]):
            yield Problem(
                path=("recipe", own),
                message=f"holds {len(lists[0])} values, and `{names[1]}` holds {len(lists[1])}",
                hint="give one value for each in both",
            )


def _in_list(name: str, values: list[Any]) -> Iterator[Problem]:
    for index, value in enumerate(values):
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            continue
        if value < 0:
            yield Problem(path=("recipe", name, index), message=f"must not be negative, found {value}")
        elif name in _SHARES and value > 1:
            yield Problem(path=("recipe", name, index), message=f"must be at most 1, found {value}")


def _below(document: Any, path: Path, least: int) -> Iterator[Problem]:
    value = _at(document, path)
    if _whole(value) and value < least:
        yield Problem(path=path, message=f"must be at least {least}, found {value}")


def _whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _at(document: Any, path: Path) -> Any:
    for step in path:
        if not isinstance(document, Mapping) or step not in document:
            return None
        document = document[step]
    return document
