"""What a user may hand over, and what is refused before anything runs."""

from __future__ import annotations

from typing import Any

import pytest

from autotune.errors import UsageError
from autotune.workload import Workload


def model() -> None:
    """Stands for a model: a Workload does not look at it."""


def loss(output: Any, target: Any) -> None:
    """Stands for a loss."""


def step(model: Any, batch: Any) -> None:
    """Stands for a step."""


DATA = [1, 2, 3]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"loss": loss, "step": step}, "`loss` and `step`"),
        ({"loss": loss, "step": step, "train_step": step}, "`loss` and `step` and `train_step`"),
        ({"loss": "mse"}, "`loss`"),
        ({"collate_fn": 3}, "`collate_fn`"),
        ({"batch_size": 0}, "`batch_size`"),
        ({"batch_size": 2.0}, "`batch_size`"),
        ({"batch_size": True}, "`batch_size`"),
        ({"dataset": None, "step": step, "samples_per_step": -1}, "`samples_per_step`"),
        ({"dataset": None}, "no dataset"),
        ({"dataset": None, "loss": loss}, "no dataset"),
        ({"dataset": None, "step": step}, "`samples_per_step` is missing"),
    ],
)
def test_what_cannot_go_together_is_refused(fields: dict[str, Any], named: str) -> None:
    """The argument is named, and each refusal says what to do."""
    with pytest.raises(UsageError) as raised:
        Workload(**{"model": model, "dataset": DATA, **fields})
    assert named in raised.value.what
    assert raised.value.fix


def test_a_loop_without_a_loader_says_how_many_samples_a_step_has() -> None:
    """With `step` or `train_step`, and the count, nothing is missing."""
    assert Workload(model, step=step, samples_per_step=64).dataset is None
    assert Workload(model, train_step=step, samples_per_step=64).dataset is None


def test_a_factory_may_return_a_workload_a_pair_or_a_mapping() -> None:
    """All three say the same."""
    workload = Workload(model, DATA)
    assert Workload.of(workload) is workload
    assert Workload.of((model, DATA)) == workload
    assert Workload.of({"model": model, "dataset": DATA}) == workload
    assert Workload.of({"model": model, "dataset": DATA, "batch_size": 4}).batch_size == 4


@pytest.mark.parametrize(
    "returned",
    [None, model, (model,), (model, DATA, loss), [model, DATA], {"dataset": DATA}, {"model": 1, "data": 2}],
)
def test_a_factory_that_returns_something_else_is_told_so(returned: object) -> None:
    """What it returned is named, and what it should."""
    with pytest.raises(UsageError) as raised:
        Workload.of(returned)
    assert type(returned).__name__ in raised.value.why
    assert "autotune.Workload" in raised.value.fix


def test_a_mapping_with_an_unknown_key_names_the_key() -> None:
    """A misspelt field is not hidden behind the type of the whole."""
    with pytest.raises(UsageError) as raised:
        Workload.of({"model": model, "dataset": DATA, "batchsize": 4})
    assert "batchsize" in raised.value.why


def test_a_changed_copy_is_checked_like_a_new_one() -> None:
    """`with_` leaves the original alone and refuses what a new Workload refuses."""
    workload = Workload(model, DATA)
    assert workload.with_(batch_size=4).batch_size == 4
    assert workload.batch_size is None
    with pytest.raises(UsageError):
        workload.with_(batch_size=-4)
