"""Laws of the step-time model, over worlds of chance."""

from __future__ import annotations

import math
import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from search_worlds import History, context, random_rate, space_of

from autotune.search.knowledge import Knowledge
from autotune.search.predict import predicted_log_rates, predictions
from autotune.space.candidates import Space

SPACES: tuple[Space, ...] = (
    space_of(has_conv2d=True, image_input=True),
    space_of(allow="recipe", fused_available=True),
    space_of(dataset_class=None, dataset_samples=None, batch_size=None, fused_available=True),
)


def history_of(space: Space, seed: int, trials: int, factor: float = 1.0) -> History:
    """*Yours*, both ceilings where there is a loader, and moves by chance in a world of chance."""
    rate, chance = random_rate(seed, 0.4), random.Random(seed)
    history = History().ran(space.yours, factor * rate(space.yours, "full"), "yours")
    if space.workload.has_loader:
        for mode in ("loader", "compute"):
            history.ran(space.yours, factor * rate(space.yours, mode), "ceiling", mode)
    for _ in range(trials):
        made = space.settings(**{o.knob: chance.choice(o.values) for o in space.options})
        history.ran(made, factor * rate(made, "full"))
    return history


@settings(deadline=None, max_examples=25)
@given(which=st.integers(0, 2), seed=st.integers(0, 10**6), trials=st.integers(0, 12))
def test_predictions_are_finite_legal_new_and_in_order(which: int, seed: int, trials: int) -> None:
    """Whatever was measured: figures are finite, settings untried and legal, the largest gain first."""
    space = SPACES[which]
    know = Knowledge(context(space), history_of(space, seed, trials))
    found = predictions(know)
    assert all(math.isfinite(p.log_rate) and p.sd > 0 and p.gain >= 0 for p in found)
    assert all(p.settings not in know.full and space.legal(p.settings) for p in found)
    assert [p.gain for p in found] == sorted((p.gain for p in found), reverse=True)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10**6), trials=st.integers(0, 12))
def test_the_same_history_gives_the_same_predictions(seed: int, trials: int) -> None:
    """Nothing but the history decides."""
    space = SPACES[0]
    first, second = (
        predictions(Knowledge(context(space), history_of(space, seed, trials))) for _ in range(2)
    )
    assert first == second


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10**6), trials=st.integers(0, 8), factor=st.floats(0.1, 10))
def test_a_machine_twice_as_fast_is_predicted_twice_as_fast(seed: int, trials: int, factor: float) -> None:
    """The unit of the rates does not matter: leads stay what they are, where starts cost nothing."""
    space = SPACES[0]
    untried = [p.settings for p in predictions(Knowledge(context(space), history_of(space, seed, trials)))]
    slow, fast = (
        predicted_log_rates(Knowledge(context(space), history_of(space, seed, trials, scale)), untried[:20])
        for scale in (1.0, factor)
    )
    assert np.allclose(fast[0] - slow[0], math.log(factor), atol=0.02)
    assert np.allclose(fast[1], slow[1], atol=0.02)
