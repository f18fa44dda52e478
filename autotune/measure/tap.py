"""Gradients on their way to the parameters, as the backward pass makes them: before any clipping."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.optim import Optimizer


class GradientSum:
    """Gradients by the number of their parameter, added up in float32 or wider."""

    def __init__(self) -> None:
        self._by_parameter: dict[int, torch.Tensor] = {}

    def __bool__(self) -> bool:
        return bool(self._by_parameter)

    @property
    def by_parameter(self) -> Mapping[int, torch.Tensor]:
        """What has been added up."""
        return self._by_parameter

    def add(self, number: int, gradient: torch.Tensor) -> None:
        """Add one gradient; it may be changed in place afterwards."""
        gradient = gradient.detach().coalesce() if gradient.is_sparse else gradient.detach()
        wide = torch.promote_types(gradient.dtype, torch.float32)
        known = self._by_parameter.get(number)
        if known is None:
            self._by_parameter[number] = gradient.to(wide) if gradient.dtype != wide else gradient.clone()
        elif known.is_sparse:  # torch adds sparse to dense, not the other way round
            self._by_parameter[number] = gradient.to(wide) + known
        else:
            known.add_(gradient)

    def absorb(self, other: GradientSum) -> None:
        """Add all of another sum, which is not used again."""
        if not self._by_parameter:
            self._by_parameter = other._by_parameter
            return
        for number, gradient in other._by_parameter.items():
            self.add(number, gradient)

    def norm(self) -> float:
        """The norm over all parameters."""
        return _norm(self._by_parameter.values())

    def square(self) -> float:
        """The squared norm over all parameters."""
        norm = self.norm()
        return norm * norm  # a power of floats raises where a product is infinite


class GradientTap:
    """Sees each gradient on its way to the parameters that optimizers hold."""

    def __init__(self, optimizers: Iterable[Optimizer]) -> None:
        self._optimizers = list(optimizers)
        held = {id(p): p for o in self._optimizers for group in o.param_groups for p in group["params"]}
        self.parameters = [p for p in held.values() if p.requires_grad]
        """Those that are watched; their places are the numbers in a `GradientSum`."""
        self._seen = GradientSum()
        self._asked: dict[int, int] = {}
        self._handles = [p.register_hook(self._seer(number)) for number, p in enumerate(self.parameters)]

    def _seer(self, number: int) -> Callable[[torch.Tensor], None]:
        def see(gradient: torch.Tensor) -> None:
            self._seen.add(number, gradient)

        return see

    @contextlib.contextmanager
    def standing_still(self) -> Iterator[None]:
        """Within it no optimizer steps, so that all gradients belong to the same weights."""
        own = [vars(optimizer).get("step") for optimizer in self._optimizers]  # a scheduler puts one there
        for number, optimizer in enumerate(self._optimizers):
            optimizer.step = self._counter(number)  # type: ignore[method-assign]
        try:
            yield
        finally:
            for optimizer, step in zip(self._optimizers, own):
                del optimizer.step  # the class's own shows again
                if step is not None:
                    optimizer.step = step  # type: ignore[method-assign]

    def _counter(self, number: int) -> Callable[..., Any]:
        def stand_still(closure: Any = None) -> Any:
            self._asked[number] = self._asked.get(number, 0) + 1
            return None if closure is None else closure()

        return stand_still

    @property
    def asked(self) -> int:
        """Steps that the optimizer, or the busiest of several, was asked for while it stood still."""
        return max(self._asked.values(), default=0)

    def take(self) -> GradientSum:
        """What came since the last time; several backward passes in one step add up."""
        seen, self._seen = self._seen, GradientSum()
        return seen

    def weights(self) -> float:
        """A figure that changes when the weights do."""
        norm = _norm(p.detach() for p in self.parameters)
        return norm * norm

    def close(self) -> None:
        """Let gradients go."""
        for handle in self._handles:
            handle.remove()


def _norm(tensors: Iterable[torch.Tensor]) -> float:
    dense = [t.coalesce().values() if t.is_sparse else t for t in tensors]
    return float(torch.nn.utils.get_total_norm(dense))
