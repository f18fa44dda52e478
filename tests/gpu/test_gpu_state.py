"""What a real GPU says of its clock beside each block."""

from __future__ import annotations

import time

import pytest
import torch

from autotune.measure.device import DeviceClock

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_a_working_gpu_tells_its_clock_and_does_so_quickly() -> None:
    """Clock and temperature are plausible under load, and a reading costs well under a block."""
    pytest.importorskip("pynvml")
    clock = DeviceClock(torch.device("cuda", 0))
    held = torch.randn(4096, 4096, device="cuda")
    for _ in range(50):
        held = torch.nn.functional.normalize(held @ held)
    found = clock.gpu_state()
    clock.synchronize()
    assert found is not None
    assert found.mhz is not None
    assert 200 < found.mhz < 5000
    assert found.celsius is not None
    assert 10 < found.celsius < 110
    started = time.perf_counter()
    for _ in range(20):
        clock.gpu_state()
    assert (time.perf_counter() - started) / 20 < 0.01
