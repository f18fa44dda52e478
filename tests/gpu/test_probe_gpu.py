"""What a real driver and a real GPU say."""

from __future__ import annotations

import pytest
import torch

from autotune.measure.nvml import visible_gpus
from autotune.measure.probe import machine_facts

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_torch_and_the_driver_agree() -> None:
    """Name, memory and capability are the same whether CUDA is opened or not."""
    pytest.importorskip("pynvml")
    quiet, opened = machine_facts(initialise_cuda=False).gpus, machine_facts().gpus
    assert [(g.name, g.capability) for g in quiet] == [(g.name, g.capability) for g in opened]
    for without, with_cuda in zip(quiet, opened, strict=True):
        assert without.memory_bytes == pytest.approx(with_cuda.memory_bytes, rel=0.05)
        assert with_cuda.driver
        assert with_cuda.free_bytes is not None
        assert 0 < with_cuda.free_bytes <= without.memory_bytes


def test_our_own_process_is_not_another() -> None:
    """A context of our own adds nothing to the processes counted on the GPU."""
    pytest.importorskip("pynvml")
    before = machine_facts().gpus[0].other_processes
    held = torch.zeros(1 << 20, device="cuda")
    assert machine_facts().gpus[0].other_processes == before
    assert held.is_cuda
    assert len(visible_gpus((), None)) >= 1
