"""Nothing of the user's is changed: model, optimizer, random states, switches, whatever way a run ends."""

from __future__ import annotations

import copy
import hashlib
import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch
import workloads as w

import autotune
from autotune.errors import AutotuneError
from autotune.search.listener import SilentListener
from autotune.trial import TrialSpec


def fingerprint(model: torch.nn.Module, optimizer: torch.optim.Optimizer, dataset: Any) -> dict[str, str]:
    """A hash of each thing that must not change."""
    state: dict[str, Any] = {
        "weights": [p.detach() for p in model.parameters()],
        "memory order": [p.stride() for p in model.parameters()],
        "buffers": list(model.buffers()),
        "gradients": [p.grad for p in model.parameters()],
        "train flag": [m.training for m in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "hooks": [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()],
        "optimizer": optimizer.state_dict(),
        "python random": random.getstate(),
        "numpy random": np.random.get_state(),
        "torch random": torch.get_rng_state(),
        "threads": torch.get_num_threads(),
        "grad mode": torch.is_grad_enabled(),
        "default dtype": str(torch.get_default_dtype()),
        "matmul precision": torch.get_float32_matmul_precision(),
        "cudnn": (
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.allow_tf32,
        ),
        "dataset": vars(dataset),
        "parameters": [id(p) for p in model.parameters()],
    }
    return {name: hashlib.sha256(_bytes(value)).hexdigest() for name, value in state.items()}


def _bytes(value: Any) -> bytes:
    if isinstance(value, torch.Tensor):
        return value.contiguous().numpy().tobytes()
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, dict):
        return b"".join(_bytes(key) + _bytes(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return b"|".join(_bytes(item) for item in value)
    return pickle.dumps(value)


class Interrupts(SilentListener):
    """Presses Ctrl-C at a given trial."""

    def __init__(self, at: int) -> None:
        self.at = at

    def trial_started(self, number: int, spec: TrialSpec, remaining_s: float) -> None:
        if number == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("runner", ["process", "in_process"])
@pytest.mark.parametrize("ending", ["well", "failing", "interrupted"])
def test_the_users_state_is_what_it_was(runner: str, ending: str, tmp_path: Any) -> None:
    """Weights, buffers, optimizer state, .grad, flags and random states hash the same before and after."""
    model = w.Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    dataset = w.RaisesAt(3) if ending == "failing" else w.Rows()
    rows = w.Rows()
    torch.nn.functional.cross_entropy(model(rows.x[:8]), rows.y[:8]).backward()
    optimizer.step()
    model.eval()
    random.seed(5), np.random.seed(6), torch.manual_seed(7)
    before = fingerprint(model, optimizer, dataset)
    options: dict[str, Any] = {
        "optimizer": optimizer,
        "batch_size": 16,
        "device": "cpu",  # a process that opens CUDA takes a third of such a budget to start
        "budget": 25,
        "runner": runner,
        "storage": str(tmp_path / "study.journal"),
        "shuffle": False,
        "listener": Interrupts(2) if ending == "interrupted" else None,
    }
    if ending == "failing":
        with pytest.raises(AutotuneError):
            autotune.find_best(model, dataset, **options)
    else:
        best = autotune.find_best(model, dataset, **options)
        assert best.complete == (ending == "well")
    after = fingerprint(model, optimizer, dataset)
    assert {name for name in before if before[name] != after[name]} == set()


def test_a_users_dataloader_is_not_drawn_from(tmp_path: Any) -> None:
    """Sampler, generator and iterator of a DataLoader handed over stay where they were."""
    generator = torch.Generator().manual_seed(3)
    loader = torch.utils.data.DataLoader(w.Rows(), batch_size=16, shuffle=True, generator=generator)
    before = generator.get_state().clone()
    expected = copy.deepcopy(generator)
    for runner in ("process", "in_process"):
        autotune.find_best(
            w.Net(),
            loader,
            optimizer=w.sgd,
            device="cpu",
            budget=25,
            runner=runner,
            storage=str(tmp_path / runner),
        )
    assert torch.equal(before, generator.get_state())
    assert torch.equal(torch.randperm(9, generator=expected), torch.randperm(9, generator=generator))
