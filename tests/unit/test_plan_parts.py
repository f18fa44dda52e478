"""Partial trials: the ladder of workers, and the best parts put together."""

from __future__ import annotations

from dataclasses import replace

import pytest
from search_worlds import History, context, space_of

from autotune.search.cost import Costs
from autotune.search.knowledge import Knowledge
from autotune.search.parts import _compute_variants, describe_change, next_part, next_workers, predicted
from autotune.settings import Settings
from autotune.space.candidates import bundle
from autotune.trial import Block

LADDER = (0, 1, 2, 4, 8)


@pytest.mark.parametrize(
    ("rates", "enough", "expected"),
    [
        ({}, None, 2),
        ({2: 100}, None, 4),
        ({2: 100, 4: 190}, None, 8),
        ({2: 100, 4: 101}, None, None),
        ({2: 100, 4: 190}, 150, None),
        ({2: 100}, 90, 1),
        ({2: 100, 1: 95}, 90, None),
        ({2: 100, 1: 50}, 90, None),
    ],
)
def test_ladder_is_walked_until_it_stops_paying(rates, enough, expected):
    """Up while each rung brings 3 % and the step is not fed yet; down while it still is, never to none."""
    assert next_workers(LADDER, 2, rates, enough) == expected


def gpu_space():
    """Sixteen CPUs and an image model on a machine whose step has many switches."""
    return space_of(usable_cpus=16, has_conv2d=True, image_input=True, fused_available=True)


def part_of(space, history, sides):
    """The next partial trial with plenty of time."""
    know = Knowledge(context(space), history)
    return next_part(know, Costs(know), 200.0, sides)


def opened(space, *, part_s):
    """A history whose partial trials cost `part_s` and whose full ones cost 12 s."""
    history = History().ran(space.yours, 100, "yours", wait=0.5, wall_s=12.0)
    history.ran(space.yours, 300, "ceiling", "loader", wall_s=part_s)
    return history.ran(space.yours, 300, "ceiling", "compute", wall_s=part_s)


def test_parts_are_tried_where_they_are_cheap():
    """A side with many values whose partial trials are cheap is ordered by them first."""
    space = gpu_space()
    spec = part_of(space, opened(space, part_s=3.0), ("compute", "loader"))
    assert (spec.stage, spec.mode) == ("compute", "compute")


def test_parts_are_skipped_where_they_save_nothing():
    """Partial trials that cost as much as full ones are not run."""
    space = gpu_space()
    assert part_of(space, opened(space, part_s=12.0), ("compute", "loader")) is None


def test_parts_of_a_closed_side_are_skipped():
    """What cannot matter is not measured, not even cheaply."""
    space = gpu_space()
    assert part_of(space, opened(space, part_s=3.0), ("loader",)).mode == "loader"
    assert part_of(space, opened(space, part_s=3.0), ()) is None


def test_best_parts_are_joined():
    """Each knob takes the value that was better alone; full settings of these are what to try."""
    space = gpu_space()
    history = opened(space, part_s=3.0)
    better = space.settings(channels_last=True)
    worse = space.settings(fused_optimizer=True)
    history.ran(better, 400, "compute", "compute").ran(worse, 290, "compute", "compute")
    know = Knowledge(context(space), history)
    assert predicted(know) == (better,)


def test_what_the_step_gained_is_tried_with_the_users_own_loader_too():
    """Where the advice is slower than *yours*, its workers may be to blame; a switch of the step is not."""
    space = space_of(usable_cpus=2, has_conv2d=True, image_input=True, cpu_native_bf16=True)
    advice = bundle(space)
    better = space.settings(**{**_searched(space, advice), "precision": "bfloat16"})
    history = opened(space, part_s=3.0).ran(advice, 60)
    history.ran(advice, 200, "compute", "compute").ran(better, 400, "compute", "compute")
    assert predicted(Knowledge(context(space), history))[0] == space.settings(precision="bfloat16")
    history = opened(space, part_s=3.0).ran(advice, 150)
    history.ran(advice, 200, "compute", "compute").ran(better, 400, "compute", "compute")
    assert predicted(Knowledge(context(space), history))[0] == better


def _searched(space, settings):
    return {name: value for name, value in settings.flat().items() if name in space.names}


def test_a_part_that_is_better_by_chance_is_left_alone():
    """A tenth faster means nothing where the blocks of either side differ by as much."""

    def unsteady(rate):
        return tuple(
            Block(steps=4, samples=round(rate * share), elapsed_s=1.0, wait_s=0.0)
            for share in (0.9, 1.1, 0.92, 1.08)
        )

    space = gpu_space()
    history = opened(space, part_s=3.0)
    better = space.settings(fused_optimizer=True)
    history.ran(better, 330, "compute", "compute")
    assert predicted(Knowledge(context(space), history)) == (better,)
    for number, rate in ((2, 300), (3, 330)):
        measured = replace(history[number].measurement, blocks=unsteady(rate))
        history[number] = replace(history[number], measurement=measured)
    assert predicted(Knowledge(context(space), history)) == ()


def test_change_is_described_by_knob():
    """The reason of a trial names what moved, from what to what."""
    assert describe_change(Settings(), Settings().replace(num_workers=2)) == "num_workers 0 -> 2"


def test_on_shared_cpus_the_step_is_also_tried_with_the_threads_that_leave_room_for_workers():
    """Alone the step wants every CPU; the other switches that paid are tried with both numbers of threads."""
    space = space_of(fused_available=True)
    base = bundle(space)
    assert base.compute.cpu_threads is not None
    wide, slow = base.replace(cpu_threads=4), base.replace(fused_optimizer=not base.compute.fused_optimizer)
    history = History().opened(space).ran(base, 120)
    history.ran(base, 100, "compute", "compute").ran(wide, 180, "compute", "compute")
    history.ran(slow, 150, "compute", "compute")
    threads = [s.compute.cpu_threads for s in predicted(Knowledge(context(space), history))]
    assert threads[:2] == [base.compute.cpu_threads, 4]


def test_kept_memory_is_no_part_but_a_move_of_its_own() -> None:
    """With it among the best parts each final would start a process, and a short budget hold two pairs."""
    space = space_of(gpus=(), device="cpu", host_memory_fixed="", optimizer_class="SGD")
    assert "keep_host_memory" in space.names
    history = History().opened(space)
    know = Knowledge(context(space), history)
    assert not any(settings.compute.keep_host_memory for settings in _compute_variants(know))
