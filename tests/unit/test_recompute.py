"""Every figure of a report can be computed again from what is stored."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from search_worlds import fake_runner, run_fake

from autotune.codec import decode, encode
from autotune.outcome import Outcome
from autotune.report.figures import sides
from autotune.report.jsonview import outcome_json
from autotune.report.text import render
from autotune.report.view import view_of
from autotune.search.verdict import counted_pairs
from autotune.trial import TrialSpec
from autotune.units import format_bytes, format_duration, format_percent, format_rate

DOCS = Path(__file__).parents[2] / "docs" / "measuring.md"


def passing_neighbour(spec: TrialSpec) -> tuple[str, ...]:
    """Every fourth pair is disturbed, so that not all that is stored counts alike."""
    return ("busy_machine",) if spec.pair is not None and spec.pair % 4 == 1 else ()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    """A noisy run of a fake machine, and its journal."""
    journal = tmp_path_factory.mktemp("study") / "study.journal"
    runner = fake_runner(noise=0.02, seed=3, marks=passing_neighbour)
    return run_fake(runner, 600.0, storage=str(journal)), journal


def test_the_stored_run_gives_the_same_report(run: tuple[Outcome, Path]) -> None:
    """Written as JSON and read back, the outcome is the same and renders the same text."""
    outcome, _ = run
    again = decode(Outcome, json.loads(json.dumps(encode(outcome))))
    assert again == outcome
    assert render(view_of(again, version="1")) == render(view_of(outcome, version="1"))
    assert outcome.verdict.kind == "faster"


def test_figures_do_not_rest_on_anything_but_the_trials(run: tuple[Outcome, Path]) -> None:
    """With the finals' blocks of the winner twice as long in the stored run, its rate is shown halved."""
    outcome, _ = run
    before = sides(outcome, outcome.best)[1]
    data = json.loads(json.dumps(encode(outcome)))
    for trial in data["trials"]:
        if trial["spec"]["stage"] == "final" and trial["spec"]["settings"] == encode(outcome.best):
            for block in trial["measurement"]["blocks"]:
                block["elapsed_s"] *= 2
    slower = sides(decode(Outcome, data), outcome.best)[1]
    assert before is not None
    assert slower is not None
    assert slower.samples_per_s == pytest.approx(before.samples_per_s / 2, rel=0.05)


def test_the_documented_lines_give_the_verdict(
    run: tuple[Outcome, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code in the documentation, run beside the journal, ends with the run's own verdict."""
    outcome, journal = run
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 15
    monkeypatch.chdir(journal.parent)
    values: dict = {}
    exec(compile(code, str(DOCS), "exec"), values)
    assert outcome.workload.dataset_samples == 50_000
    assert values["verdict"] == outcome.verdict


def blocks_rate(measured: dict) -> float:
    """Samples/s of a trial by hand: undisturbed blocks after the transient, if two are left."""
    settled = [b for b in measured["blocks"] if "transient" not in b["marks"]] or measured["blocks"]
    clean = [b for b in settled if not {"busy_machine", "throttled", "alloc_retry"} & set(b["marks"])]
    counted = clean if len(clean) >= 2 else settled
    return sum(b["samples"] for b in counted) / sum(b["elapsed_s"] for b in counted)


def run_rate(measured: dict, samples: int) -> float:
    """Samples/s over an epoch with its restart."""
    return samples / (measured["restart_s"] + samples / blocks_rate(measured))


def by_pair(data: dict, stage: str, settings: dict) -> dict[int, dict]:
    """What these settings measured in each pair of a stage."""
    return {
        t["spec"]["pair"]: t["measurement"]
        for t in data["trials"]
        if t["spec"]["stage"] == stage and t["spec"]["settings"] == settings and t["spec"]["pair"] is not None
    }


def mean_ratio(over: dict[int, dict], under: dict[int, dict], pairs: list[int], samples: int) -> float:
    """Geometric mean of the ratios of pairs."""
    logs = [math.log(run_rate(over[p], samples) / run_rate(under[p], samples)) for p in pairs]
    return math.exp(sum(logs) / len(logs))


@pytest.fixture(scope="module")
def shown(run: tuple[Outcome, Path]) -> dict:
    """What `--json` writes."""
    return json.loads(json.dumps(outcome_json(run[0])))


def counted(shown: dict, run: tuple[Outcome, Path]) -> list[int]:
    """The pairs that count."""
    outcome, samples = run[0], run[0].workload.dataset_samples
    return list(counted_pairs(outcome.yours, outcome.best, outcome.trials, samples=samples, epochs=None))


def test_both_rates_and_their_ratio_follow_from_the_blocks(run: tuple[Outcome, Path], shown: dict) -> None:
    """Rates, ratio, waiting and peak of both sides, by hand from the blocks of the pairs that count."""
    pairs, samples = counted(shown, run), shown["workload"]["dataset_samples"]
    sides_found = {}
    for side in ("yours", "best"):
        trials = by_pair(shown, "final", shown[side]["settings"])
        sides_found[side] = trials
        logs = [math.log(run_rate(trials[p], samples)) for p in pairs]
        told = shown[side]["measured"]
        assert told["samples_per_s"] == pytest.approx(math.exp(sum(logs) / len(logs)))
        assert told["trials"] == len(pairs) == shown["verdict"]["pairs"]
        assert told["peak_bytes"] == max(trials[p]["peak_host_bytes"] for p in pairs)
        timed = {p: sum(b["elapsed_s"] for b in trials[p]["blocks"]) for p in pairs}
        waits = {
            p: sum(b["wait_s"] for b in trials[p]["blocks"]) / timed[p] for p in pairs
        }  # every block of these trials waits for the same part of its time
        wait = sum(waits[p] * timed[p] for p in pairs) / sum(timed.values())
        assert told["wait_share"] == pytest.approx(wait)
    ratio = mean_ratio(sides_found["best"], sides_found["yours"], pairs, samples)
    assert shown["verdict"]["ratio"]["value"] == pytest.approx(ratio)


def test_worths_follow_from_the_blocks(shown: dict) -> None:
    """Each setting's worth is the winner over the winner without it, in the pairs of the worth runs."""
    samples, best = shown["workload"]["dataset_samples"], shown["best"]["settings"]
    winner = by_pair(shown, "worth", best)
    told = {w["knob"]: w["ratio"]["value"] for w in shown["worth"] if w["ratio"]}
    assert {"num_workers", "channels_last"} <= set(told)
    compute = {**best["compute"], "channels_last": False}
    without = by_pair(shown, "worth", {**best, "compute": compute})
    pairs = sorted(winner.keys() & without.keys())
    assert told["channels_last"] == pytest.approx(mean_ratio(winner, without, pairs, samples))


def test_ceilings_and_break_even_follow_from_the_blocks(shown: dict) -> None:
    """Each side alone by its own trial; what the tuning took over what the winner saves in a second."""
    for mode in ("loader", "compute"):
        (found,) = (
            t["measurement"]
            for t in shown["trials"]
            if (t["spec"]["stage"], t["spec"]["mode"]) == ("ceiling", mode)
        )
        assert shown["ceilings"][f"{mode}_samples_per_s"] == pytest.approx(blocks_rate(found))
    gain = shown["verdict"]["ratio"]["value"] - 1
    assert shown["break_even_s"] == pytest.approx(shown["elapsed_s"] / gain)


def test_the_text_says_the_figures_of_the_json(run: tuple[Outcome, Path], shown: dict) -> None:
    """Rates, the time of an epoch, waiting, peak, worth, ceilings and break-even, as they are rounded."""
    text = " ".join(render(view_of(run[0])).split())
    samples = shown["workload"]["dataset_samples"]
    for side in ("yours", "best"):
        told = shown[side]["measured"]
        for figure in (
            format_rate(told["samples_per_s"]),
            format_duration(samples / told["samples_per_s"]),
            f"{told['wait_share'] * 100:.0f} %",
            format_bytes(told["peak_bytes"]),
        ):
            assert figure in text
    worths = [format_percent(w["ratio"]["value"]) for w in shown["worth"] if w["ratio"]]
    rates = [format_rate(rate) for rate in shown["ceilings"].values()]
    for figure in (*worths, *rates, f"pays back after {format_duration(shown['break_even_s'])}"):
        assert figure in text
