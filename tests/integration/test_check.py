"""`autotune check` on a real workload in real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import workloads as w

from autotune.measure.payload import pickle_workload
from autotune.measure.process_runner import ProcessRunner
from autotune.outcome import Interval, Outcome, Verdict
from autotune.profile.schema import profile_of
from autotune.profile.yaml_io import dumps

AUTOTUNE = [sys.executable, "-c", "from autotune.cli.main import run; run()"]
BUDGET_S = 60 if torch.cuda.is_available() else 20
"""Each new process that opens CUDA takes seconds: in 20 there is time for two pairs."""


@pytest.mark.slow
def test_a_gain_that_never_was_is_found_out_and_another_torch_refused(tmp_path: Path) -> None:
    """A profile that claims 3x for a needless worker is stale; one of another torch does not fit."""
    with ProcessRunner(pickle_workload(w.make())) as runner:
        here = runner.describe()
    claimed = here.yours.replace(num_workers=1, prefetch_factor=2)
    ratio = Interval(value=3.0, low=2.9, high=3.1)
    outcome = Outcome(
        machine=here.machine,
        workload=here.workload,
        name="rows",
        yours=here.yours,
        verdict=Verdict(kind="faster", winner=claimed, ratio=ratio, pairs=5),
    )
    saved = profile_of(outcome, created="2026-11-23T10:00:00+00:00", version="0.1.0")
    other = replace(saved, machine=replace(saved.machine, torch_version="1.0.0"))
    (tmp_path / "here.yaml").write_text(dumps(saved))
    (tmp_path / "other.yaml").write_text(dumps(other))

    codes, found = zip(*(_check(tmp_path, name) for name in ("here.yaml", "other.yaml")))
    assert codes == (4, 3)
    assert [f["check"] for f in found] == ["stale", "unfit"]
    assert found[0]["pairs"] >= 4
    assert found[0]["ratio"]["high"] < 2.9
    assert [d["what"] for d in found[1]["differences"] if d["matters"]] == ["torch"]


def _check(folder: Path, profile: str) -> tuple[int, dict]:
    target = f"{Path(w.__file__)}:make"
    ran = subprocess.run(
        [*AUTOTUNE, "check", profile, target, "--json", "--quiet", "--budget", f"{BUDGET_S}s"],
        cwd=folder,
        env={**os.environ, "AUTOTUNE_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stdout, ran.stderr
    return ran.returncode, json.loads(ran.stdout)
