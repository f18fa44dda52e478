"""A neighbour's burst is not taken for slow settings, nor a search full of them for an answer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from search_worlds import History, context, space_of

from autotune.measure import timing
from autotune.measure.device import DeviceClock
from autotune.measure.feed import HeldFeed
from autotune.measure.load import Load
from autotune.search.cost import Costs
from autotune.search.finals import judged
from autotune.search.knowledge import Knowledge
from autotune.search.verdict import disturbed_search
from autotune.settings import Settings
from autotune.trial import Block, Measurement, Stopped, Trial, TrialSpec

SPACE = space_of(has_conv2d=True, image_input=True)
FAST = SPACE.settings(num_workers=2)
CLEAN, BUSY = Load(foreign_cpus=0.0, waited_share=0.0), Load(foreign_cpus=1.0, waited_share=0.5)


class SlowFeed(HeldFeed):
    """At most 2,000 samples/s, and seldom less than half of that."""

    def next(self) -> tuple[Any, int]:
        time.sleep(0.002)
        return None, 4


def timed(
    monkeypatch: pytest.MonkeyPatch, loads: list[Load], **asked: Any
) -> tuple[tuple[Block, ...], Stopped]:
    """Blocks of a trial whose n-th block saw the n-th load, the last one from then on."""
    seen: Iterator[Load] = iter([*loads[:-1]] + [loads[-1]] * 1000)

    class Meter:
        def start(self) -> None:
            """Nothing to read."""

        def stop(self) -> Load:
            return next(seen)

    monkeypatch.setattr(timing, "LoadMeter", Meter)
    timer = timing.BlockTimer(None, SlowFeed(None, 4), DeviceClock(torch.device("cpu")), 0, float("inf"))
    spec = TrialSpec(**{"settings": Settings(), "stage": "joint", "window_s": 0.08, **asked})
    return timing.measure_blocks(timer, spec, 0.002)


def test_a_burst_is_no_reason_to_give_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two blocks that nothing disturbed end a trial far behind; a busy one before them says nothing."""
    blocks, stopped = timed(monkeypatch, [BUSY, CLEAN], give_up_below=3000.0)
    assert (stopped, len(blocks)) == ("gave_up", 3)


def test_on_a_machine_that_is_always_busy_the_window_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks being alike disturbed, none of them ends the trial early, and it ends all the same."""
    blocks, stopped = timed(monkeypatch, [BUSY], give_up_below=3000.0)
    assert stopped == "window"
    assert all(block.disturbed for block in blocks)


def test_no_neighbour_explains_settings_that_are_hopeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two disturbed blocks are enough where they are a thousand times too slow."""
    blocks, stopped = timed(monkeypatch, [BUSY], give_up_below=2e6)
    assert (stopped, len(blocks)) == ("gave_up", 2)


def searched(*marks_and_ends: tuple[tuple[str, ...], Stopped]) -> History:
    """*Yours* at 100 samples/s and trials of another setting at 50, with these marks on their two blocks."""
    history = History().opened(SPACE)
    for marks, stopped in marks_and_ends:
        blocks = tuple(
            Block(steps=8, samples=50, elapsed_s=1.0, wait_s=0.1, marks=(mark,) if mark else ())
            for mark in marks
        )
        spec = TrialSpec(settings=FAST, stage="joint")
        found = Measurement(blocks=blocks, stopped=stopped, wall_s=3.0)
        history.append(Trial(number=len(history), spec=spec, measurement=found))
    return history


@pytest.mark.parametrize(
    ("marks", "stopped", "spoiled"),
    [
        (("", ""), "window", 0),
        (("", ""), "gave_up", 0),
        (("busy_machine", ""), "window", 0),
        (("busy_machine", ""), "gave_up", 1),
        (("busy_machine", "busy_machine"), "window", 1),
    ],
)
def test_which_trials_something_else_spoiled(marks: tuple[str, ...], stopped: Stopped, spoiled: int) -> None:
    """Those mostly disturbed, and those given up after a disturbed block; runs of *yours* are none."""
    assert disturbed_search(SPACE.yours, searched((marks, stopped))) == (spoiled, 1)


def test_a_search_that_was_disturbed_is_not_sure_that_nothing_is_faster() -> None:
    """Half of the trials spoiled and nobody in the finals: no answer, and the sentence says why."""
    history = searched((("busy_machine", "busy_machine"), "window"), (("", ""), "window"))
    know = Knowledge(context(SPACE, search_over="done"), history)
    verdict = judged(know, Costs(know))
    assert (verdict.kind, verdict.winner) == ("unsure", SPACE.yours)
    assert verdict.sentence == "yours stays: something else disturbed 1 of 2 trials of other settings"


def test_a_search_that_was_hardly_disturbed_keeps_yours() -> None:
    """One burst among three trials leaves the other two to say that nothing is faster."""
    quiet = (("", ""), "window")
    history = searched((("busy_machine", "busy_machine"), "window"), quiet, quiet)
    know = Knowledge(context(SPACE, search_over="done"), history)
    assert judged(know, Costs(know)).kind == "kept"
