"""Steps under two settings on a CUDA device."""

from __future__ import annotations

import pytest
import torch
import workloads as w

from autotune.measure.inprocess import InProcessRunner
from autotune.measure.seam import NumericsSpec
from autotune.recipe.guard import NumericsRecord, judge_numerics
from autotune.workload import Workload

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("precision", ["tf32", "bfloat16", "float16"])
def test_ordinary_models_train_the_same_on_the_gpu(precision: str) -> None:
    """With channels_last and a fused optimizer; the switches are off again afterwards."""
    workload = Workload(w.ConvNet(), w.Pictures(), optimizer=w.sgd, batch_size=16, device="cuda")
    runner = InProcessRunner(workload)
    yours = runner.describe().yours.replace(precision="float32")
    wanted = yours.replace(precision=precision, channels_last=True, fused_optimizer=True)
    before = torch.get_float32_matmul_precision()
    found = runner.compare_numerics(NumericsSpec(settings=wanted, reference=yours))
    assert isinstance(found, NumericsRecord), found
    assert judge_numerics(found).kind == "same", found
    assert torch.get_float32_matmul_precision() == before


def test_tf32_of_one_run_is_not_left_for_the_next() -> None:
    """The reference after it is float32 again, so that it repeats itself to the last bits."""
    workload = Workload(w.Net(), w.Rows(), optimizer=w.sgd, batch_size=16, device="cuda")
    runner = InProcessRunner(workload)
    yours = runner.describe().yours
    found = runner.compare_numerics(NumericsSpec(settings=yours.replace(precision="tf32"), reference=yours))
    assert isinstance(found, NumericsRecord), found
    assert found.gradients is not None
    assert found.gradients_again is not None
    assert 1 - found.gradients_again.cosine < (1 - found.gradients.cosine) / 10
