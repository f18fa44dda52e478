"""What a look at a workload tells the recipe: the optimizer's numbers, and which layers the model has."""

from __future__ import annotations

from typing import Any

import torch
import workloads as w
from torch import nn

from autotune.facts import WorkloadFacts
from autotune.measure.inprocess import InProcessRunner
from autotune.recipe.scaling import scale_recipe
from autotune.workload import Workload


class Attending(w.Net):
    """Holds a layer of attention that it does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 1)


def facts(model: nn.Module, optimizer: Any) -> WorkloadFacts:
    runner = InProcessRunner(Workload(model, w.Rows(), optimizer=optimizer, batch_size=16))
    try:
        return runner.describe().workload
    finally:
        runner.close()


def grouped(params: Any) -> torch.optim.Optimizer:
    """AdamW with an undecayed group."""
    first, *others = params
    return torch.optim.AdamW(
        [{"params": [first]}, {"params": others, "weight_decay": 0.0, "lr": 1e-4}],
        lr=1e-3,
        weight_decay=0.1,
        betas=(0.9, 0.98),
    )


def test_the_optimizers_numbers_are_seen_group_by_group() -> None:
    """Rates, weight decay and its kind, beta2, BatchNorm's momentum; and whether anything attends."""
    seen = facts(w.Net(), grouped)
    assert (seen.learning_rates, seen.weight_decays) == ((1e-3, 1e-4), (0.1, 0.0))
    assert (seen.decoupled_weight_decay, seen.beta2s) == (True, (0.98, 0.98))
    assert (seen.batch_norm_momenta, seen.has_attention) == ((0.1,), False)
    assert facts(Attending(), grouped).has_attention


def test_without_an_optimizer_no_number_is_known() -> None:
    """The one that measures is nobody's choice, and the recipe says that nothing is scaled."""
    seen = facts(w.Net(), None)
    assert seen.learning_rates == seen.weight_decays == seen.beta2s == ()
    recipe = scale_recipe(seen, 32, 16)
    assert any("no optimizer was given" in note for note in recipe.notes)
