"""Yours, tuned and the two ceilings of the tuned settings, on one machine in one run.

    python benchmarks/one_gpu.py photos-resnet50 tensors-resnet50 char-lm-gpu --budget 2m --out results.json

After the tuner is done, *yours* and the tuned settings are measured again in alternating order, in fresh
processes, beside the ceilings of the tuned settings (the loader alone, the step alone); what is printed is
made from those. The ceilings run in the process of the tuned settings: where the host launches small kernels,
one process differs from the next by more than a loop from its ceiling.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from real_workloads import WORKLOADS

import autotune
from autotune.codec import encode
from autotune.measure.payload import pickle_workload
from autotune.measure.process_runner import ProcessRunner
from autotune.report.progress import LineListener
from autotune.trial import Measurement, TrialSpec


def case(name: str, budget: str, rounds: int, window_s: float, allow: autotune.api.Allow) -> dict[str, Any]:
    """Tune one workload, then measure what was found once more."""
    workload = WORKLOADS[name]()
    with ProcessRunner(pickle_workload(workload)) as runner:
        started = time.monotonic()
        best = autotune.find_best(
            workload,
            budget=budget,
            allow=allow,
            runner=runner,
            listener=LineListener(lambda t: print(t, file=sys.stderr)),
        )
        tuning_s = time.monotonic() - started
        print(best, flush=True)
        rates: dict[str, list[float]] = {"yours": [], "tuned": [], "loader": [], "compute": []}
        raw = []
        for number in range(rounds):
            base = TrialSpec(settings=best.settings, stage="joint", window_s=window_s, timeout_s=200)
            together = [
                ("tuned", base),
                ("compute", replace(base, mode="compute")),
                ("loader", replace(base, mode="loader")),
            ]
            if number % 2:
                together = [together[1], together[0], together[2]]
            together[0] = (together[0][0], replace(together[0][1], fresh_process=True))
            own = ("yours", replace(base, settings=best.outcome.yours, fresh_process=True))
            for label, spec in [own, *together] if number % 2 == 0 else [*together, own]:
                outcome = runner.run(spec)
                raw.append({"side": label, "spec": encode(spec), "outcome": encode(outcome)})
                if isinstance(outcome, Measurement):
                    rates[label].append(outcome.samples_per_s)
    return {
        "workload": name,
        "tuning_s": tuning_s,
        "settings": encode(best.settings),
        "yours_settings": encode(best.outcome.yours),
        "verdict": best.outcome.verdict.sentence,
        "changed": best.settings.changed_from(best.outcome.yours),
        "rates": rates,
        "machine": encode(best.outcome.machine),
        "trials": [encode(trial) for trial in best.outcome.trials],
        "raw": raw,
    }


def ranged(shares: list[float]) -> str:
    """Median, least and most; nothing where no round has all sides."""
    return f"{median(shares):.3f} ({min(shares):.3f} to {max(shares):.3f})" if shares else "unknown share"


def summary(result: dict[str, Any]) -> str:
    """Rows of a workload: median samples/s of each side (slowest to fastest round), then what they say."""
    rate = {label: median(values) if values else float("nan") for label, values in result["rates"].items()}
    shares = [
        tuned / min(loader, compute)
        for tuned, loader, compute in zip(*(result["rates"][side] for side in ("tuned", "loader", "compute")))
    ]
    names = {"yours": "yours", "tuned": "tuned", "loader": "loader alone", "compute": "step alone"}
    rows = [
        f"{result['workload']:<18} {names[label]:<13} {rate[label]:>9.1f}"
        f"  ({min(values, default=rate[label]):.1f} to {max(values, default=rate[label]):.1f})"
        for label, values in result["rates"].items()
    ]
    rows.append(
        f"{result['workload']:<18} {rate['tuned'] / rate['yours']:.2f}x yours,"
        f" {ranged(shares)} of the lower ceiling,"
        f" tuned in {result['tuning_s']:.0f} s"
    )
    return "\n".join(rows)


def main() -> None:
    """Run the cases named and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workloads", nargs="+", choices=list(WORKLOADS))
    parser.add_argument("--budget", default="2m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--window-s", type=float, default=3.0)
    parser.add_argument("--allow", choices=("exact", "numerics", "recipe"), default="recipe")
    parser.add_argument("--out", type=Path, default=None, help="where the raw data goes, as JSON")
    args = parser.parse_args()
    results = []
    for name in args.workloads:
        results.append(case(name, args.budget, args.rounds, args.window_s, args.allow))
        if args.out is not None:
            args.out.write_text(json.dumps({"python": platform.python_version(), "cases": results}))
        print(summary(results[-1]), flush=True)


if __name__ == "__main__":
    main()
