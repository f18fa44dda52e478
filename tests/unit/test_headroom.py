"""Settings that fill the GPU: what is said of them, and when they do not win."""

from __future__ import annotations

from dataclasses import replace

import pytest
from search_worlds import History, context, space_of
from strategies import GIB, plain_gpu

from autotune.search.cost import Costs
from autotune.search.finals import candidates, judged
from autotune.search.headroom import headroom_notes
from autotune.search.knowledge import Knowledge
from autotune.settings import Settings

SPACE = space_of(device="cuda", gpus=(plain_gpu(memory_bytes=100 * GIB),))
FAST = SPACE.settings(num_workers=2)


def know_of(*peaks: tuple[Settings, float, float], finals: int = 0) -> Knowledge:
    """*Yours* and others with their rate and their peak in GiB, and pairs of the finals of the last."""
    history = History()
    for settings, rate, peak in peaks:
        stage = "yours" if settings == SPACE.yours else "joint"
        history.ran(settings, rate, stage)
        filled = replace(history[-1].measurement, peak_device_bytes=round(peak * GIB))
        history[-1] = replace(history[-1], measurement=filled)
    for pair in range(finals):
        history.ran(SPACE.yours, peaks[0][1], "final", pair=pair)
        history.ran(peaks[-1][0], peaks[-1][1], "final", pair=pair)
    return Knowledge(context(SPACE), history)


@pytest.mark.parametrize(("peak", "told"), [(90.0, False), (94.9, False), (96.0, True), (100.0, True)])
def test_little_memory_left_is_told_with_the_figures(peak: float, told: bool) -> None:
    """Under 5 % free, by the highest peak of any run of the settings."""
    notes = headroom_notes(know_of((SPACE.yours, 100, 50), (FAST, 120, 20), (FAST, 120, peak)), FAST)
    assert bool(notes) == told
    if peak == 96.0:
        assert "reserve 96.0 GiB at their peak and leave 4.0 %" in notes[0]


def test_settings_that_fill_the_gpu_do_not_win() -> None:
    """Under 1 % free they are neither the incumbent nor a candidate, however fast."""
    full = know_of((SPACE.yours, 100, 50), (FAST, 200, 99.5))
    assert full.incumbent == SPACE.yours
    assert candidates(full, Costs(full)) == ()
    near = know_of((SPACE.yours, 100, 50), (FAST, 200, 98.5))
    assert near.incumbent == FAST
    assert candidates(near, Costs(near)) == (FAST,)


def test_where_yours_fills_it_as_well_they_may_win() -> None:
    """Then nothing gets worse by them."""
    know = know_of((SPACE.yours, 100, 99.5), (FAST, 200, 99.5))
    assert know.incumbent == FAST


def test_a_peak_that_only_the_finals_show_counts() -> None:
    """Yours stays, and the sentence says why."""
    know = know_of((SPACE.yours, 100, 50), (FAST, 200, 90), finals=6)
    assert judged(know, Costs(know)).winner == FAST
    history = History(know.history)
    filled = replace(history[-1].measurement, peak_device_bytes=round(99.9 * GIB))
    history[-1] = replace(history[-1], measurement=filled)
    cramped = Knowledge(context(SPACE), history)
    verdict = judged(cramped, Costs(cramped))
    assert (verdict.kind, verdict.winner) == ("kept", SPACE.yours)
    assert "memory" in verdict.sentence


def test_without_a_gpu_nothing_is_said() -> None:
    """The host's memory is no matter of this."""
    space = space_of()
    know = Knowledge(context(space), History().opened(space))
    assert know.free_share(space.yours) is None
    assert headroom_notes(know, space.yours) == ()
