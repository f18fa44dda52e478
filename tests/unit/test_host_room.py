"""No batch is tried that the machine's memory is not expected to hold, where steps run in it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from search_worlds import History, context, space_of

from autotune.search.batch_moves import batch_kept, worth_trying
from autotune.search.host_room import overfull
from autotune.search.knowledge import Knowledge

GIB = 1 << 30
CPU = {"learning_rates": (0.1,), "weight_decays": (0.0,), "device": "cpu", "gpus": ()}


def known(peaks: dict[int, float], **facts: object) -> Knowledge:
    """What a search knows whose trials took so many GiB, by their batch size; 12 GiB were free."""
    space = space_of(allow="recipe", **{**CPU, **facts})
    history = History()
    for size, gib in peaks.items():
        stage = "joint" if history else "yours"
        history.ran(space.yours.replace(batch_size=size), 100.0 + size, stage)
        measured = replace(history[-1].measurement, peak_host_bytes=round(gib * GIB))
        history[-1] = replace(history[-1], measurement=measured)
    return Knowledge(context(space, objective="throughput"), history)


@pytest.mark.parametrize(
    ("peaks", "size", "fits"),
    [
        ({64: 4.0}, 128, True),
        ({64: 6.0}, 128, False),
        ({64: 4.0}, 256, False),
        ({64: 5.0, 128: 7.0}, 256, False),
        ({64: 5.0, 128: 5.5}, 256, True),
        ({64: 5.0, 128: 4.9}, 1024, True),
        ({64: 11.5}, 64, True),
        ({}, 128, True),
    ],
)
def test_a_batch_must_be_expected_to_fit(peaks: dict[int, float], size: int, fits: bool) -> None:
    """One peak grows with the batch as a whole, two give a line; what ran has room, whatever it took."""
    know = known(peaks)
    assert (overfull(know, know.yours.replace(batch_size=size)) == "") == fits


def test_a_gpu_runs_full_by_itself() -> None:
    """There the batch is in the device's memory, and running out of that costs one trial."""
    from strategies import plain_gpu

    know = known({64: 11.0}, device="cuda", gpus=(plain_gpu(),))
    assert overfull(know, know.yours.replace(batch_size=512)) == ""


def test_what_does_not_fit_is_not_tried_and_the_report_says_why() -> None:
    """With the figures: what was expected, and what was free."""
    know = known({64: 8.0})
    assert not worth_trying(know, know.yours.replace(batch_size=128))
    assert worth_trying(known({64: 2.0}), know.yours.replace(batch_size=128))
    (kept,) = batch_kept(know)
    assert kept.why.endswith("expected to take 12.0 GiB of memory, and 12.0 GiB was free at the start")


def test_half_as_much_again_is_tried_where_twice_does_not_fit() -> None:
    """Of 12 GiB that were free, 14 are too many and 10.5 are not."""
    know = known({64: 7.0})
    assert not worth_trying(know, know.yours.replace(batch_size=128))
    assert worth_trying(know, know.yours.replace(batch_size=96))
