"""In which width of numbers the search compiles."""

from __future__ import annotations

from typing import Any

import pytest
from search_worlds import History, context, space_of

from autotune.facts import GpuFacts
from autotune.recipe.guard import Numerics
from autotune.search.cost import Costs
from autotune.search.knowledge import Knowledge
from autotune.search.moves import next_compiled
from autotune.settings import Settings
from autotune.space.candidates import Space

GPU = GpuFacts(index=0, name="H100", memory_bytes=80 << 30, capability=(9, 0), native_bf16=True)


def gpu_space(**changes: Any) -> Space:
    """Of a convolution net on that GPU."""
    told: dict[str, Any] = {"compile_fixed": "", "leaf_modules": 35, **changes}
    return space_of(device="cuda:0", gpus=(GPU,), has_conv2d=True, image_input=True, **told)


def compiled(space: Space, history: History, **changes: object) -> Settings:
    """What the search compiles first."""
    know = Knowledge(context(space, **changes), history)
    spec = next_compiled(know, Costs(know), ("compute",))
    assert spec is not None
    assert spec.settings.compute.compile == "reduce-overhead"
    return spec.settings


@pytest.mark.parametrize(
    ("bf16", "fp16", "wanted"),
    [
        (270.0, 280.0, "bfloat16"),  # a tenth slower: the host launches the casts as well
        (None, 280.0, "float16"),
        (220.0, 200.0, "float32"),  # the device itself is slower so
        (None, None, "float32"),  # not measured
    ],
)
def test_half_the_width_is_compiled_where_the_host_may_have_hidden_its_gain(
    bf16: float | None, fp16: float | None, wanted: str
) -> None:
    """What launches kernels one by one is bound by their number; what is compiled, by the device."""
    space = gpu_space()
    history = History().opened(space, wait=0.01)
    for precision, rate in (("bfloat16", bf16), ("float16", fp16)):
        if rate is not None:
            history.ran(space.yours.replace(precision=precision), rate, "compute", "compute")
    assert compiled(space, history).compute.precision == wanted


def test_a_precision_that_trains_worse_is_not_compiled() -> None:
    """What was seen of it as it is written speaks against it; the other half width may be tried."""
    space = gpu_space()
    history = History().opened(space, wait=0.01)
    found = []
    for precision in ("bfloat16", "float16"):
        history.ran(space.yours.replace(precision=precision), 290.0, "compute", "compute")
        found.append(
            Numerics(
                kind="worse" if precision == "bfloat16" else "same",
                reason="losses",
                settings=space.yours.replace(precision=precision),
                reference=space.yours,
            )
        )
    assert compiled(space, history, numerics=tuple(found)).compute.precision == "float16"


@pytest.mark.parametrize(("bf16", "wanted"), [(870.0, "bfloat16"), (700.0, "float32")])
def test_half_the_width_is_judged_by_the_nearest_pair_of_steps(bf16: float, wanted: str) -> None:
    """The incumbent puts together what was measured apart, so that its own step alone was never measured."""
    space = gpu_space()
    last = space.yours.replace(channels_last=True)
    history = History().opened(space, wait=0.01)
    for settings, rate in (
        (space.yours.replace(precision="bfloat16"), 100.0),  # further off
        (last, 1000.0),
        (last.replace(precision="bfloat16"), bf16),
        (last.replace(precision="bfloat16", cudnn_benchmark=True), 1100.0),
    ):
        history.ran(settings, rate, "compute", "compute")
    incumbent = last.replace(cudnn_benchmark=True)
    history.ran(incumbent, 200.0)
    found = compiled(space, history)
    assert found.compute.cudnn_benchmark
    assert found.compute.precision == wanted
