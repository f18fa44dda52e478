"""What it costs a step that batches are delivered beside it, even where none of them is late.

    python benchmarks/delivery.py tensors-resnet50 --workers 8 --precision bfloat16 --out delivery.json

A thread of the training process takes each batch from the workers' shared memory, copies it to pinned memory
and gives the shared pages back. What that takes from the threads that launch kernels shows where batches are
fetched and thrown away beside the step. One line for each way to run, in alternating rounds in one process:
median samples/s, slowest and fastest.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from real_workloads import WORKLOADS

from autotune.measure.batches import map_tensors
from autotune.measure.feed import LoaderFeed
from autotune.measure.flags import read_user_flags
from autotune.measure.loaders import parts_of
from autotune.measure.probe import machine_facts
from autotune.measure.session import Session
from autotune.settings import Settings
from autotune.space.rules import canonical

STEPS = 40
WARM = 20
"""Steps before the timed ones: more than batches in flight."""


class Bench:
    """A workload under the settings in question, with one batch on the device and one on the host."""

    def __init__(self, name: str, workers: int, precision: str) -> None:
        workload = WORKLOADS[name]()
        self.parts = parts_of(workload)
        self.session = Session(workload, self.parts, read_user_flags(), machine_facts)
        told = self.session.describe()
        accelerated = told.workload.accelerated
        wanted = told.yours.replace(
            num_workers=workers,
            pin_memory=True,
            non_blocking=True,
            precision=precision,
            channels_last=accelerated and told.workload.has_conv2d,
            fused_optimizer=told.workload.fused_available,
        )
        self.settings: Settings = canonical(wanted, told.machine, told.workload)
        self.kit = self.session.make_kit(self.settings)
        self.host, self.samples = self.session.held_batch(self.settings.loader.batch_size)
        self.resident = self.kit.to_device(self.host)

    def rate(self, step: Callable[[Any], Any] | None, *, fed: bool) -> float:
        """Samples/s of `step` on each batch, or of the batches alone, after some that are not counted."""
        assert self.parts is not None
        feed = LoaderFeed(self.parts, self.settings.loader) if fed else None
        started = 0.0
        try:
            if feed is not None:
                feed.start()
            for done in range(WARM + STEPS):
                if done == WARM:
                    self.session.clock.synchronize()
                    started = time.perf_counter()
                batch = feed.next()[0] if feed is not None else None
                if step is not None:
                    step(batch)
            self.session.clock.synchronize()
            return STEPS * self.samples / (time.perf_counter() - started)
        finally:
            if feed is not None:
                feed.close()

    def ways(self) -> dict[str, Callable[[], float]]:
        """What is compared."""
        pinned = map_tensors(self.host, torch.Tensor.pin_memory) if torch.cuda.is_available() else self.host
        return {
            "step alone": lambda: self.rate(lambda _: self.kit.step(self.resident), fed=False),
            "step and copy to the device": lambda: self.rate(lambda _: self.kit.step(pinned), fed=False),
            "step alone, batches thrown away": lambda: self.rate(
                lambda _: self.kit.step(self.resident), fed=True
            ),
            "the real step": lambda: self.rate(self.kit.step, fed=True),
            "loader alone": lambda: self.rate(None, fed=True),
        }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workload", choices=list(WORKLOADS))
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=None, help="where the raw rates go, as JSON")
    args = parser.parse_args()
    bench = Bench(args.workload, args.workers, args.precision)
    ways = bench.ways()
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(args.rounds):
        for name in list(ways) if number % 2 == 0 else reversed(list(ways)):
            rates[name].append(ways[name]())
    print(f"{args.workload}, batches of {bench.samples}: {bench.settings.key()}")
    for name, found in rates.items():
        print(f"{name:<32} {median(found):>9.1f} samples/s  ({min(found):.1f} to {max(found):.1f})")
    if args.out is not None:
        args.out.write_text(json.dumps({"settings": bench.settings.key(), "rates": rates}))


if __name__ == "__main__":
    main()
