"""Runs trials in the user's own process: where it is asked for, or nothing can be sent to another.

The model is a copy; flags, thread counts and random states are put back after every call. A trial that
hangs or dies takes the user's process with it: the bench process exists because of that.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from torch import nn

from autotune.errors import ModelError
from autotune.facts import MachineFacts
from autotune.measure import compiling, flags, loaders, optimizers
from autotune.measure.probe import machine_facts
from autotune.measure.seam import Description, GradientSpec, NumericsSpec, PilotSpec
from autotune.measure.session import Session
from autotune.recipe.guard import NumericsRecord
from autotune.recipe.noise_scale import GradientStats
from autotune.recipe.pilot import PilotRecord
from autotune.trial import Failure, Measurement, TrialSpec
from autotune.workload import Workload


class InProcessRunner:
    """A Runner without another process."""

    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        self._session: Session | None = None

    def _ready(self) -> Session:
        if self._session is None:
            compiling.check_travels(self._workload.model)
            user_flags = flags.read_user_flags()
            parts = loaders.parts_of(self._workload)
            # One deepcopy for both: the copied optimizer must hold the copied model's parameters.
            frozen = optimizers.freeze_optimizer(self._workload.optimizer)
            memo = {id(parts.dataset): parts.dataset} if parts is not None else {}
            loss = self._workload.loss
            # A loss with weights of its own is trained too; any other is a function, and needs no copy.
            weighted = loss if isinstance(loss, nn.Module) else None
            model, optimizer, copied_loss = _copied((self._workload.model, frozen, weighted), memo)
            own = self._workload.with_(model=model, optimizer=optimizer, loss=copied_loss or loss)
            private = loaders.private_copy(parts) if parts is not None else None
            self._session = Session(own, private, user_flags, _machine_facts)
        return self._session

    def describe(self) -> Description:
        """The machine, the workload and *yours*.

        Raises:
            AutotuneError: where the workload cannot be run at all.
        """
        with flags.preserved():
            return self._ready().describe()

    def run(self, spec: TrialSpec) -> Measurement | Failure:
        """Run `spec` here; `timeout_s` cannot be enforced without another process."""
        with flags.preserved():
            return self._ready().run(spec)

    def probe_gradients(self, spec: GradientSpec) -> GradientStats | Failure:
        """Sums of the copy's gradients."""
        with flags.preserved():
            return self._ready().probe_gradients(spec)

    def compare_numerics(self, spec: NumericsSpec) -> NumericsRecord | Failure:
        """The same steps of the copy under both settings."""
        with flags.preserved():
            return self._ready().compare_numerics(spec)

    def pilot(self, spec: PilotSpec) -> PilotRecord | Failure:
        """The copy trained in both batch sizes."""
        with flags.preserved():
            return self._ready().pilot(spec)

    def close(self) -> None:
        """Let the copy go."""
        self._session = None


def _machine_facts() -> MachineFacts:
    """Of this machine, without what a trial could not put back in the user's own process."""
    return replace(
        machine_facts(),
        host_memory_fixed="a trial in your own process could not put it back",
        compile_fixed="a trial in your own process would drop what you compiled in it",
    )


def _copied(live: tuple[Any, Any, Any], memo: dict[int, Any]) -> tuple[Any, Any, Any]:
    """Copies of model, optimizer and loss that share what those share.

    Raises:
        ModelError: where a copy cannot be made, or could not be trained.
    """
    why = "a copy of it has parameters that an optimizer refuses"
    try:
        model, optimizer, loss = copy.deepcopy(live, memo)
        parts = model.values() if isinstance(model, dict) else [model]
        modules = [part for part in parts if isinstance(part, nn.Module)]
        if all(p.is_leaf for module in modules for p in module.parameters()):
            return model, optimizer, loss
    except Exception as error:  # copying runs the user's own code
        why = f"{type(error).__name__}: {error}"
    raise ModelError(
        "the model cannot be copied",
        why=why,
        fix="pass a function that makes it: the tuner trains a copy, never your own model",
    )
