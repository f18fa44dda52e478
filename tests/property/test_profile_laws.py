from __future__ import annotations

import json
import re
import string
import typing
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from profile_samples import sample_profile

from autotune.codec import encode
from autotune.errors import ProfileError
from autotune.outcome import (
    BatchChoice,
    BatchRow,
    Decay,
    DecayShape,
    Interval,
    Kept,
    LargeBatch,
    NoiseScale,
    Objective,
    Recipe,
    VerdictKind,
    Worth,
)
from autotune.profile import document
from autotune.profile.schema import (
    SCHEMA,
    GpuSummary,
    MachineSummary,
    Measured,
    Profile,
    Side,
    WorkloadSummary,
)
from autotune.profile.store import slug
from autotune.profile.yaml_io import dumps, loads
from autotune.settings import CompileMode, Precision, Settings
from autotune.trial import FailureKind

TEXT = dumps(sample_profile())

_texts = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["no", "On", "null", "~", "1e-3", "08", "1:30", "2026-11-23", " a ", "a: b", "# c", "- x", ""]
    ),
)
_counts = st.integers(0, 2**60)
_floats = st.floats(allow_nan=False, allow_infinity=False)
_positive = st.floats(min_value=0, exclude_min=True, allow_nan=False, allow_infinity=False)
_rates = st.lists(st.floats(0, 10), min_size=1, max_size=3).map(tuple)
_intervals = st.none() | st.builds(
    Interval, value=_positive, low=_positive, high=_positive, confidence=st.floats(0, 1)
)
_knobs = st.sampled_from(list(Settings().flat()))
_knob_values = st.none() | st.booleans() | _counts | _texts


@st.composite
def _settings(draw: st.DrawFn) -> Settings:
    workers = draw(st.integers(0, 64))
    return Settings.from_flat(
        {
            "batch_size": draw(st.none() | st.integers(1, 2**40)),
            "num_workers": workers,
            "prefetch_factor": draw(st.none() | st.integers(1, 64)) if workers else None,
            "persistent_workers": bool(workers) and draw(st.booleans()),
            "pin_memory": draw(st.booleans()),
            "non_blocking": draw(st.booleans()),
            "precision": draw(st.sampled_from(typing.get_args(Precision))),
            "cudnn_benchmark": draw(st.booleans()),
            "channels_last": draw(st.booleans()),
            "fused_optimizer": draw(st.booleans()),
            "cpu_threads": draw(st.none() | st.integers(1, 512)),
            "compile": draw(st.none() | st.sampled_from(typing.get_args(CompileMode))),
        }
    )


_shares = st.floats(0, 1)
_decays = st.none() | st.builds(
    Decay,
    shape=st.sampled_from(typing.get_args(DecayShape)),
    samples=st.integers(1, 2**40),
    end=_shares,
    power=st.floats(0, 4),
    cooldown=_shares,
    rule=_texts,
)
_large = st.none() | st.builds(
    LargeBatch,
    optimizer=st.sampled_from(("LARS", "LAMB")),
    learning_rate=st.floats(0, 10),
    weight_decay=_shares,
    momentum=st.none() | _shares,
    betas=st.none() | st.tuples(_shares, _shares),
    warmup_samples=_counts,
    decay=_decays,
    rule=_texts,
)


@st.composite
def _recipes(draw: st.DrawFn) -> Recipe:
    rates = draw(_rates)
    return Recipe(
        batch_size=draw(st.integers(1, 2**40)),
        reference_batch_size=draw(st.integers(1, 2**40)),
        learning_rates=rates,
        reference_learning_rates=tuple(rate / 2 for rate in rates),
        lr_rule=draw(_texts),
        warmup_samples=draw(_counts),
        warmup_start=draw(st.none() | _shares),
        weight_decays=rates,
        reference_weight_decays=rates,
        weight_decay_rule=draw(_texts),
        beta2s=tuple(draw(st.none() | _shares) for _ in rates),
        reference_beta2s=tuple(draw(st.none() | _shares) for _ in rates),
        batch_norm_momenta=(draw(_shares),),
        reference_batch_norm_momenta=(draw(_shares),),
        ema_power=draw(st.floats(0, 100)),
        accumulation_steps=draw(st.integers(1, 64)),
        decay=draw(_decays),
        large_batch=draw(_large),
        notes=draw(_tuples(_texts)),
    )


def _tuples(items: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(items, max_size=2).map(tuple)


_sides = st.builds(
    Side,
    samples_per_s=st.none() | _positive,
    runs=_counts,
    wait_share=st.none() | _floats,
    peak_device_bytes=st.none() | _counts,
    peak_host_bytes=st.none() | _counts,
)
_sizes = st.integers(1, 2**40)
_rows = st.builds(
    BatchRow,
    batch_size=_sizes,
    samples_per_s=st.builds(Interval, value=_floats, low=_floats, high=_floats),
    peak_bytes=st.none() | _counts,
    efficiency=st.none() | _floats,
    goodput=st.none() | _floats,
    epochs_to_match=st.none() | _floats,
    samples_to_match=st.none() | _counts,
    steps=st.none() | _counts,
    caps=_tuples(_texts),
)
_batches = st.none() | st.builds(
    BatchChoice,
    rows=_tuples(_rows),
    reference=_sizes,
    recommended=_sizes,
    max_throughput=_sizes,
    objective=st.sampled_from(typing.get_args(Objective)),
    gain=_floats,
    verified=st.booleans(),
    limited_by=_tuples(_texts),
)
_noises = st.none() | st.builds(
    NoiseScale,
    value=st.none() | _floats,
    low=_floats,
    high=st.none() | _floats,
    lower_bound=st.floats(0, 1e12),
    micro_samples=_counts,
    micro_batches=_counts,
    steps=_counts,
    skipped=_counts,
    at=_texts,
)
_measured = st.builds(
    Measured,
    verdict=st.sampled_from(typing.get_args(VerdictKind)),
    sentence=_texts,
    ratio=_intervals,
    pairs=_counts,
    yours=_sides,
    best=_sides,
    yours_settings=_settings(),
    worth=_tuples(st.builds(Worth, knob=_knobs, yours=_knob_values, best=_knob_values, ratio=_intervals)),
    kept=_tuples(st.builds(Kept, knob=_knobs, value=_knob_values, why=_texts)),
    trials=_counts,
    failures=st.dictionaries(st.sampled_from(typing.get_args(FailureKind)), _counts, max_size=3),
    epochs=st.none() | _sizes,
    elapsed_s=_floats,
    budget_s=_floats,
    stop_reason=_texts,
    notes=_tuples(_texts),
    batch=_batches,
    noise=_noises,
)
_machines = st.builds(
    MachineSummary,
    system=_texts,
    cpu_name=_texts,
    usable_cpus=_counts,
    memory_bytes=_counts,
    torch_version=_texts,
    cuda_version=st.none() | _texts,
    python_version=_texts,
    start_method=_texts,
    gpus=_tuples(st.builds(GpuSummary, index=_counts, name=_texts, memory_bytes=_counts, driver=_texts)),
)
_workloads = st.builds(
    WorkloadSummary,
    model_class=_texts,
    parameters=_counts,
    dataset_class=st.none() | _texts,
    dataset_samples=st.none() | _counts,
    device=_texts,
    batch_samples=_counts,
    optimizer_class=st.none() | _texts,
    loss=_texts,
)
_profiles = st.builds(
    Profile,
    schema=st.just(SCHEMA),
    autotune_version=_texts,
    created=_texts,
    name=_texts,
    settings=_settings(),
    recipe=st.none() | _recipes(),
    measured=_measured,
    machine=_machines,
    workload=_workloads,
)


@settings(max_examples=60, deadline=None)
@given(_profiles)
def test_reading_undoes_writing(profile: Profile):
    """Any profile comes back as it was, and writing it again gives the same text."""
    text = dumps(profile)
    again = loads(text)
    assert again == profile
    assert dumps(again) == text


@settings(max_examples=30, deadline=None)
@given(_profiles)
def test_what_is_written_has_as_many_values_as_are_counted_in_reading(profile: Profile):
    """So that what is refused for its size in reading is refused in writing, and nothing else is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(document, "MAX_VALUES", document.values_in(encode(profile)))
        assert loads(dumps(profile)) == profile
        patch.setattr(document, "MAX_VALUES", document.MAX_VALUES - 1)
        with pytest.raises(ProfileError, match="more than"):
            loads(dumps(profile))


@settings(max_examples=60, deadline=None)
@given(_measured, _settings())
def test_a_sample_counts_for_something_under_any_settings(measured: Measured, chosen: Settings):
    """Whatever a file holds, the weight is a positive number; 1 for the batch of *yours*."""
    assert 0 < measured.weight(chosen) < float("inf")
    same = chosen.replace(batch_size=measured.yours_settings.loader.batch_size)
    assert measured.weight(same) == 1.0


@settings(max_examples=40, deadline=None)
@given(_profiles)
def test_other_readers_get_the_same_values(profile: Profile):
    """A YAML 1.1 reader sees the very values that were written."""
    assert yaml.safe_load(dumps(profile)) == encode(profile)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every key whose name and type the schema fixes."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = []
    for key, item in items:
        found += [(*path, key), *([] if key == "failures" else _paths(item, (*path, key)))]
    return found


_TREE = encode(sample_profile())
_PATHS = _paths(_TREE)


def _mutated(path: tuple[Any, ...], change: str) -> tuple[str, str]:
    """The sample as JSON with one thing changed, and a text that stands in the changed line."""
    tree = json.loads(json.dumps(_TREE))
    parent = tree
    for step in path[:-1]:
        parent = parent[step]
    if change == "rename" and isinstance(parent, dict):
        items = [(f"{key}_zz" if key == path[-1] else key, value) for key, value in parent.items()]
        parent.clear()
        parent.update(items)
        return json.dumps(tree, indent=1), f'"{path[-1]}_zz"'
    key, old = path[-1], parent[path[-1]]
    parent[key] = "zz" if isinstance(old, dict) else {"zz": 1}
    mark = '"zz"' if isinstance(old, dict) else "{"
    return json.dumps(tree, indent=1), mark if isinstance(key, int) else f'"{key}": {mark}'


@pytest.mark.parametrize("change", ["rename", "retype"])
@settings(max_examples=60, deadline=None)
@given(path=st.sampled_from(_PATHS))
def test_one_wrong_key_or_type_is_found_in_its_line(change: str, path: tuple[Any, ...]):
    """Whichever key is misspelt and whichever value is of another type, the error points at its line."""
    text, mark = _mutated(path, change)
    with pytest.raises(ProfileError) as caught:
        loads(text)
    places = [int(line) for line in re.findall(r"--> profile:(\d+):\d+", str(caught.value))]
    assert any(mark in text.splitlines()[line - 1] for line in places)


_HOSTILE = [
    *string.printable,
    "\x00",
    "\x85",
    "\u2028",
    "\ufeff",
    "é",
    "\U0001f600",
    "\\U99999999",
    "&a ",
    "*a",
    "!!x ",
    "---\n",
]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, len(TEXT)), st.integers(0, 20), st.lists(st.sampled_from(_HOSTILE), max_size=3)
        ),
        min_size=1,
        max_size=4,
    )
)
def test_a_damaged_text_is_a_profile_or_a_profile_error(edits: list[tuple[int, int, list[str]]]):
    """However a file was cut and scribbled over, nothing else ever comes out."""
    text = TEXT
    for start, removed, inserted in edits:
        text = text[:start] + "".join(inserted) + text[start + removed :]
    _expect_profile_or_place(text)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(TEXT)), st.integers(0, 9), st.binary(max_size=4))
def test_damaged_bytes_are_a_profile_or_a_profile_error(start: int, removed: int, inserted: bytes):
    """The same for bytes, which need not be text at all."""
    data = TEXT.encode()
    _expect_profile_or_place(data[:start] + inserted + data[start + removed :])


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet=":-?[]{}&*!|>'\"%@`#, \n\tab1.~<=\\xU", max_size=30) | st.binary(max_size=20))
def test_noise_is_a_profile_error(noise: str | bytes):
    """A few characters that YAML gives a meaning to, in any order, are no profile and no crash."""
    with pytest.raises(ProfileError, match=r"--> profile:\d+:\d+"):
        loads(noise)


def _expect_profile_or_place(text: str | bytes) -> None:
    try:
        outcome: Profile | str = loads(text)
    except ProfileError as error:
        outcome = str(error)
    assert isinstance(outcome, Profile) or re.search(r"--> profile:\d+:\d+", outcome)


@settings(max_examples=200)
@given(st.text(max_size=100))
def test_a_slug_never_leaves_its_folder(name: str):
    """Letters, digits, dots, hyphens and underscores, begun by a letter or digit, and short."""
    assert re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,79}", slug(name))
