"""Every figure of a report can be computed again from what is stored."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from search_worlds import fake_runner, run_fake

from autotune.codec import decode, encode
from autotune.outcome import Outcome
from autotune.report.figures import sides
from autotune.report.text import render
from autotune.report.view import view_of
from autotune.trial import TrialSpec

DOCS = Path(__file__).parents[2] / "docs" / "measuring.md"


def passing_neighbour(spec: TrialSpec) -> tuple[str, ...]:
    """Every fourth pair is disturbed, so that not all that is stored counts alike."""
    return ("busy_machine",) if spec.pair is not None and spec.pair % 4 == 1 else ()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    """A noisy run of a fake machine, and its journal."""
    journal = tmp_path_factory.mktemp("study") / "study.journal"
    runner = fake_runner(noise=0.02, seed=3, marks=passing_neighbour)
    return run_fake(runner, 300.0, storage=str(journal)), journal


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
