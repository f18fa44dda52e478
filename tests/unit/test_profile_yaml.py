from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from profile_samples import BEST, YOURS, interval, sample_profile
from strategies import plain_workload

import autotune
from autotune.codec import encode
from autotune.errors import ProfileError
from autotune.outcome import Kept, Worth
from autotune.profile import yaml_io
from autotune.profile.document import MAX_BYTES, values_in
from autotune.profile.schema import SCHEMA, Profile
from autotune.profile.yaml_io import dumps, loads
from autotune.recipe.scaling import scale_recipe
from autotune.result import Tuned

TESTS = Path(__file__).parents[1]
TEXT = dumps(sample_profile())


def _error(text: str | bytes, source: str = "best.yaml") -> str:
    with pytest.raises(ProfileError) as caught:
        loads(text, source=source)
    shown = str(caught.value)
    assert re.search(rf"--> {re.escape(source)}:\d+:\d+", shown), shown
    return shown


def _changed(old: str, new: str) -> str:
    assert TEXT.count(old) == 1, old
    return TEXT.replace(old, new)


def _line_of(text: str, part: str) -> int:
    return text[: text.index(part)].count("\n") + 1


def test_the_written_profile_is_the_golden_file(golden: Callable[[str, str], None]):
    """The whole file, comments and their alignment included, reads as the golden does."""
    golden("profile.yaml", TEXT.removesuffix("\n"))


def test_it_reads_what_it_wrote():
    """Writing and reading gives the same profile."""
    assert loads(TEXT) == sample_profile()
    assert loads(TEXT.encode()) == sample_profile()


@pytest.mark.parametrize("version", range(1, SCHEMA + 1))
def test_every_schema_ever_written_can_be_read(version: int):
    """For each schema number there is a sample file, and it still loads."""
    profile = loads((TESTS / "profiles" / f"v{version}.yaml").read_bytes())
    assert profile.settings.loader.num_workers == 8
    assert profile.measured.ratio == interval(1.92346, 1.881, 1.962)


def test_readers_of_yaml_1_1_see_the_same_values():
    """`no`, small numbers, versions and dates are written so that PyYAML does not take them for others."""
    assert yaml.safe_load(TEXT) == encode(sample_profile())


@pytest.mark.parametrize("line_end", ["\r\n", "\r"])
def test_line_ends_of_other_systems_are_read(line_end: str):
    """A file that went through another editor is the same profile; so is one with a byte order mark."""
    assert loads(TEXT.replace("\n", line_end)) == sample_profile()
    assert loads(b"\xef\xbb\xbf" + TEXT.encode()) == sample_profile()


def test_comments_say_what_each_setting_is_worth():
    """Changed settings carry yours and their worth, unchanged ones say so, kept ones say why."""
    measured = replace(
        sample_profile().measured,
        worth=(Worth(knob="num_workers", yours=0, best=8, ratio=interval(0.996, 0.95, 1.2)),),
        kept=(
            Kept(knob="pin_memory", value=True, why="you fixed\nit"),
            Kept(knob="batch_size", value=64, why="x" * 200),
        ),
    )
    lines = dumps(replace(sample_profile(), measured=measured)).splitlines()
    found = {line.split(":")[0].strip(): line.partition("# ")[2] for line in lines[8:22] if "#" in line}
    assert found["num_workers"] == "yours: 0; worth -0.4 % (-5.0 to 20)"
    assert found["prefetch_factor"] == "yours: null; worth not measured alone"
    assert found["pin_memory"] == "yours: false; kept: you fixed it"
    assert found["batch_size"].startswith("as yours; kept:")
    assert found["batch_size"].endswith("...")
    assert found["non_blocking"] == "as yours"


def test_a_ratio_says_what_it_compares():
    """Where yours stays, the ratio is a candidate's that the profile does not hold, and the file says so."""
    assert "} # samples/s of best over yours\n" in TEXT
    assert "} # the best candidate's samples/s over yours\n" in dumps(
        replace(sample_profile(), settings=YOURS)
    )


def test_settings_left_out_are_torchs_defaults():
    """A hand-written file need not spell out every setting."""
    start = TEXT.index("settings:")
    text = f"{TEXT[:start]}settings:\n  loader: {{num_workers: 2}}\n\n{TEXT[TEXT.index('recipe:') :]}"
    assert loads(text).settings == replace(
        YOURS, loader=replace(YOURS.loader, batch_size=None, num_workers=2)
    )


def test_all_problems_are_shown_at_once(golden: Callable[[str, str], None]):
    """A misspelt key, a wrong type, a wrong word and an illegal value: each with line, caret and help."""
    text = (
        TEXT.replace("    prefetch_factor: 4", "    prefetch_factr: 4")
        .replace("    pin_memory: true", "    pin_memory: yes ")
        .replace("precision: bfloat16", "precision: bfloat61")
        .replace("num_workers: 8", "num_workers: -1")
    )
    golden("profile_problems.txt", _error(text))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("lower_bound: 64.0", "lower_bound: -64.0", "`measured.noise.lower_bound`: must not be negative"),
        ("lower_bound: 64.0", "lower_bond: 64.0", "did you mean `lower_bound`?"),
        ("    reference: 64", "    reference: 0", "`measured.batch.reference`: must be at least 1"),
        ("objective: goodput", "objective: goodputs", "did you mean"),
    ],
)
def test_batches_and_noise_are_read_as_strictly_as_the_rest(old: str, new: str, message: str):
    """A misspelt key, a wrong word, a batch of nothing, a noise scale that cannot be."""
    assert message in _error(_changed(old, new))


def test_a_profile_without_a_batch_table_is_read():
    """Files written before there was one lack both keys, and count each sample alike."""
    start, end = TEXT.index("  batch:\n"), TEXT.index("machine:")
    profile = loads(TEXT[:start] + TEXT[end:])
    assert (profile.measured.batch, profile.measured.noise) == (None, None)
    assert profile.measured.weight(BEST.replace(batch_size=128)) == 1.0


def test_one_problem_is_the_headline():
    """With a single problem the error's first line says it; the place follows."""
    shown = _error(_changed("  usable_cpus: 16", "  usable_cpu: 16"))
    assert "unknown key `machine.usable_cpu`" in shown
    assert "did you mean `usable_cpus`?" in shown
    assert "`machine`: `usable_cpus` is missing" in shown


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: resnet50 on photos", "name: a\nname: b", "`name`: the key is there twice"),
        ("name: resnet50 on photos", "name: !!python/object/apply:os.system [ls]", "tags are not used"),
        ("name: resnet50 on photos", "name: !important text", "tags are not used"),
        ("name: resnet50 on photos", "name: &a text", "anchors are not used"),
        ("name: resnet50 on photos", "name: *a", "`name`: aliases are not used"),
        ("name: resnet50 on photos", "*a : text", "a key must be text"),
        ("name: resnet50 on photos", "<<: {name: a}", "unknown key `<<`"),
        ("name: resnet50 on photos", "1: text", "a key must be text"),
        ("name: resnet50 on photos", "? [a]\n: text", "a key must be text"),
        ("name: resnet50 on photos", "name: a: b", "not valid YAML"),
        ("name: resnet50 on photos", "name: 'open", "not valid YAML"),
        ("name: resnet50 on photos", "\tname: text", "a tab cannot stand here"),
        ("name: resnet50 on photos", "name:\ttext", "a tab cannot stand here"),
        ("name: resnet50 on photos", 'name: "\\U99999999"', "not valid YAML after this"),
        ("name: resnet50 on photos", "name: a\x07b", "U+0007 is not allowed"),
        ("name: resnet50 on photos", "name: 7", "`name`: expected text, found 7"),
        ("  wait_share: 0.02", "  wait_share: .nan", "expected a finite number, found .nan"),
        ("  wait_share: 0.02", "  wait_share: -.inf", "expected a finite number, found -.inf"),
        ("  wait_share: 0.02", "  wait_share: 1e999", "expected a finite number, found 1e999"),
        ("usable_cpus: 16", f"usable_cpus: {'9' * 5000}", "a number of 5000 digits is too long"),
        ("usable_cpus: 16", "usable_cpus:", "expected a whole number, found None"),
        ("parameters: 25557032", "parameters: true", "expected a whole number, found True"),
        ("schema: 1\n", "", "`schema` is missing"),
        ("schema: 1\n", "schema: '1'\n", "`schema`: expected a whole number, found '1'"),
        ("schema: 1\n", "schema: 0\n", "no profile has schema 0"),
        ("# written by autotune 0.1.0\n", "%YAML 1.1\n---\n", "YAML directives are not used"),
        ("    batch_size: 64   ", "    batch_size: 0    ", "must be at least 1, found 0"),
        ("    samples_per_s: 410.584", "    samples_per_s: 0.0", "must be more than 0, found 0.0"),
        ("    samples_per_s: 790.291", "    samples_per_s: -5", "must be more than 0, found -5"),
        ("value: 1.92346, low: 1.881", "value: 1.92346, low: 0", "`measured.ratio.low`: must be more than 0"),
        ("value: 1.49,", "value: -1.49,", "`measured.worth[0].ratio.value`: must be more than 0"),
        ("  pairs: 3", "  pairs: -3", "must be at least 0, found -3"),
        ("  epochs: null", "  epochs: 0", "must be at least 1, found 0"),
        ("    num_workers: 8", "    num_workers: -8", "must be at least 0, found -8"),
        ("    prefetch_factor: 4", "    prefetch_factor: 0", "must be at least 1, found 0"),
        ("    cpu_threads: null   ", "    cpu_threads: 0   ", "must be at least 1, found 0"),
        ("  learning_rates: [0.1, 1.0e-05]\n  ref", "  learning_rates: [0.1]\n  ref", "holds 1 values, and"),
        ("  learning_rates: [0.1, 1.0e-05]\n  ref", "  learning_rates: [0.1, -1]\n  ref", "not be negative"),
        ("  warmup_samples: 0", "  warmup_samples: -1", "must be at least 0, found -1"),
        ("  accumulation_steps: 1", "  accumulation_steps: 0", "must be at least 1, found 0"),
        ("  weight_decays: []", "  weight_decays: [0.1]", "holds 1 values, and"),
        ("  beta2s: []", "  beta2s: [1.5]", "must be at most 1, found 1.5"),
        ("  decay: null", "  decay: {shape: cosin, samples: 9}", "did you mean `cosine`?"),
        ("  decay: null", "  decay: {shape: wsd, samples: 9, cooldown: 2}", "must be at most 1, found 2"),
        ("  decay: null", "  decay: {shape: polynomial, samples: 9, power: -1}", "must not be negative"),
        ("  warmup_start: null", "  warmup_start: -0.1", "`recipe.warmup_start`: must not be negative"),
        ("  ema_power: 1.0", "  ema_power: -2", "`recipe.ema_power`: must not be negative"),
    ],
)
def test_a_bad_file_is_a_profile_error_with_its_place(old: str, new: str, message: str):
    """Whatever is wrong comes out as one error type that names the problem and points at it."""
    shown = _error(_changed(old, new))
    assert message in shown
    assert "Traceback" not in shown


def test_the_place_is_the_right_one():
    """Line and column are those of the value, counted from 1."""
    text = _changed("usable_cpus: 16", "usable_cpus: many")
    line = _line_of(text, "usable_cpus: many")
    assert f"--> best.yaml:{line}:16\n" in _error(text)


def test_workers_that_are_not_there_cannot_prefetch():
    """Settings that torch refuses together are found, each at its own line."""
    text = _changed("    num_workers: 8", "    num_workers: 0")
    shown = _error(text)
    assert shown.startswith("error[AT-E40]: 2 problems in best.yaml")
    for name in ("prefetch_factor", "persistent_workers"):
        line = _line_of(text, f"    {name}: ")
        message = f"`settings.loader.{name}`: needs worker processes, and `num_workers` is 0"
        assert re.search(rf"{message}\n +--> best.yaml:{line}:", shown), shown


def test_a_newer_schema_names_the_autotune_that_reads_it():
    """A profile from the future is not judged by the rules of today; it says what to install."""
    text = _changed("schema: 1\n", "schema: 2\nfuture: 1\n").replace('"0.1.0"', '"0.7.2"')
    shown = _error(text)
    assert "the profile has schema 2, and this autotune reads up to 1" in shown
    assert "autotune 0.7.2, which wrote it" in shown
    assert "future" not in shown


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no profile"),
        ("# only a comment\n", "holds no profile"),
        ("- a\n- b\n", "a profile is a mapping"),
        ("just text", "a profile is a mapping"),
        ("schema: 1\n---\nschema: 1\n", "a second document begins here"),
        ("[" * 3000, "nested more than 12 deep"),
        ("{a: " * 3000, "nested more than 12 deep"),
        ("- a\n" * 120_000, "more than 100000 values"),
        (b"schema: 1\nname: caf\xe9\n", "the byte 0xe9 is not UTF-8 text"),
        (b"\xff\xfes\x00", "the byte 0xff is not UTF-8 text"),
        ("a" * (MAX_BYTES + 1), "too large to be a profile"),
    ],
)
def test_what_is_no_profile_at_all_is_said_so(text: str | bytes, message: str):
    """Empty, foreign, enormous or hostile files end quickly, in one sentence and a place."""
    assert message in _error(text)


def _of_groups(count: int) -> Profile:
    """A profile of AdamW with so many param groups, as learning rates for each layer make them."""
    workload = plain_workload(
        optimizer_class="AdamW",
        optimizer_family="adam",
        learning_rates=tuple(1e-3 * 0.999**group for group in range(count)),
        weight_decays=(0.01,) * count,
        decoupled_weight_decay=True,
        beta2s=(0.999,) * count,
    )
    return replace(sample_profile(), recipe=scale_recipe(workload, 256, 64, epochs=10))


@pytest.mark.parametrize("groups", [1_700, 3_000])
def test_a_profile_of_many_param_groups_is_read_again(groups: int, tmp_path: Path):
    """One group for each parameter of a large model: what `save` writes, `load` reads."""
    profile = _of_groups(groups)
    path = Tuned(profile).save(tmp_path / "autotune.yaml")
    assert autotune.load(path).profile == profile


@pytest.mark.parametrize(
    ("limit", "size"),
    [("MAX_VALUES", values_in(encode(sample_profile()))), ("MAX_BYTES", len(TEXT.encode()))],
)
def test_a_profile_that_could_not_be_read_again_is_not_written(
    limit: str, size: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """One value or byte more than is read is told where there is still something to be done."""
    path = tmp_path / "autotune.yaml"
    monkeypatch.setattr(yaml_io, limit, size - 1)
    with pytest.raises(ProfileError) as caught:
        Tuned(sample_profile()).save(path)
    assert caught.value.what == "the profile is too large to be read again"
    assert "param groups" in caught.value.fix
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(yaml_io, limit, size)
    assert autotune.load(Tuned(sample_profile()).save(path)).profile == sample_profile()


def test_aliases_are_not_expanded():
    """A file whose aliases would unfold to a billion values is refused at the first of them."""
    bomb = "a: &a [x, x]\n" + "".join(
        f"{b}: &{b} [*{a}, *{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi")
    )
    shown = _error(bomb)
    assert "aliases are not used in a profile" in shown
    assert "more" in shown


def test_a_strangers_file_cannot_write_to_the_terminal():
    """Escape sequences in keys and values do not reach the error text."""
    shown = _error('schema: 1\n"a\\e[31mred": 1\nname: "\\e]0;x\\a"\n')
    assert "\x1b" not in shown
    assert "\x07" not in shown


def test_a_long_line_is_cut_around_the_problem():
    """An excerpt stays readable when the whole file is one line."""
    text = "{" + ", ".join(f"key_{i}: {i}" for i in range(200)) + "}"
    assert max(map(len, _error(text).splitlines())) < 300
    assert "and 189 more" in _error(text)


def test_a_name_that_is_no_utf8_can_be_written():
    """A file name with undecodable bytes, as a profile's name, does not spoil the file."""
    profile = replace(sample_profile(), name="caf\udce9")
    assert loads(dumps(profile).encode()).name == "caf?"


def test_no_recipe_is_written_as_null():
    """Without a change of batch size there is no recipe, and that survives the round trip."""
    profile = replace(sample_profile(), recipe=None, settings=BEST)
    assert "\nrecipe: null\n" in dumps(profile)
    assert loads(dumps(profile)) == profile
