"""What a study is of: earlier trials count where it is the same. Pure."""

from __future__ import annotations

from typing import Any

from autotune.outcome import Objective
from autotune.recipe.guard import CHECKED
from autotune.space.candidates import Space


def _looks(space: Space) -> bool:
    """Whether larger batches are judged by gradients."""
    return "batch_size" in space.names and space.workload.step_samples is None


def _learning(space: Space) -> dict[str, Any]:
    """What noise scale, pilots and compared steps depend on, where something searched is judged by them."""
    workload = space.workload
    if not (_looks(space) or set(CHECKED) & set(space.names)):
        return {}
    return {
        "loss": workload.loss,
        "learning_rates": list(workload.learning_rates),
        "weight_decays": list(workload.weight_decays),
        "beta2s": list(workload.beta2s),
    }


def identity(
    space: Space, *, epochs: int | None, objective: Objective, warm: int | None = None
) -> dict[str, Any]:
    """What must be equal for earlier trials to count: machine, workload, *yours*, the knobs."""
    machine, workload = space.machine, space.workload
    return {
        "system": machine.system,
        "cpu": machine.cpu_name,
        "usable_cpus": machine.usable_cpus,
        "gpus": [gpu.name for gpu in machine.gpus],
        "torch": machine.torch_version,
        "model": workload.model_class,
        "parameters": workload.parameters,
        "dataset": workload.dataset_class,
        "dataset_samples": workload.dataset_samples,
        "batch_samples": workload.batch_samples,
        **({"step_samples": workload.step_samples} if workload.step_samples is not None else {}),
        "optimizer": workload.optimizer_class,
        "device": workload.device,
        "yours": space.yours.key(),
        "searched": {option.knob: list(option.values) for option in space.options},
        "fixed": {knob: space.start.flat()[knob] for knob in sorted(space.fixed)},
        "epochs": epochs,
        **({"objective": objective} if "batch_size" in space.names else {}),
        **_learning(space),
        **({"warm": warm} if warm is not None and _looks(space) else {}),
        "machine": machine.fingerprint(),
        "workload": workload.fingerprint(),
    }
