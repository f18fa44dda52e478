"""The switches and random states of torch: set for a trial, then as they were."""

from __future__ import annotations

import dataclasses
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from autotune.measure.flags import (
    UserFlags,
    apply_flags,
    preserved,
    read_user_flags,
    seed_everything,
    user_precision,
    write_user_flags,
)
from autotune.settings import ComputeSettings

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _switches() -> Iterator[None]:
    """Whatever a test sets is unset with torch's own words, not with ours."""
    cudnn = torch.backends.cudnn
    before = (cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, torch.get_float32_matmul_precision())
    yield
    cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32 = before[:3]
    torch.set_float32_matmul_precision(before[3])
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)
    torch.set_deterministic_debug_mode(0)


def upset(*, and_raise: bool = False) -> None:
    """Turn every switch that we or a user's step may touch."""
    cudnn = torch.backends.cudnn
    cudnn.benchmark, cudnn.deterministic = not cudnn.benchmark, not cudnn.deterministic
    cudnn.allow_tf32 = not cudnn.allow_tf32
    torch.set_float32_matmul_precision("medium")
    torch.set_num_threads(2)
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    torch.set_deterministic_debug_mode(1)
    if and_raise:
        raise RuntimeError("upset")


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.parametrize("on", [False, True])
def test_every_switch_is_put_back(precision: str, on: bool) -> None:
    """From whatever the user had, also when the block raises."""
    torch.backends.cudnn.benchmark = torch.backends.cudnn.deterministic = on
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = not on
    before = read_user_flags()
    with pytest.raises(RuntimeError, match="upset"), preserved():
        upset(and_raise=True)
    assert read_user_flags() == before
    assert torch.is_grad_enabled()
    assert torch.get_float32_matmul_precision() == precision


def test_every_random_state_is_put_back() -> None:
    """Python's, NumPy's and torch's go on as if nothing had been drawn."""
    seed_everything(3)
    expected = (random.random(), np.random.random(), torch.rand(3))
    seed_everything(3)
    with preserved():
        seed_everything(17)
        random.random(), np.random.random(), torch.rand(100)
    assert random.random() == expected[0]
    assert np.random.random() == expected[1]
    assert torch.equal(torch.rand(3), expected[2])


def test_a_seed_gives_the_same_numbers_again() -> None:
    """To all three generators."""
    drawn = []
    for _ in range(2):
        seed_everything(2**32 + 5)
        drawn.append((random.random(), np.random.random(), torch.rand(1).item()))
    assert drawn[0] == drawn[1]


def test_another_process_can_be_made_like_the_users() -> None:
    """All that was read is written; reading again gives the same."""
    upset()
    torch.backends.cudnn.deterministic = True
    wanted = read_user_flags()
    assert (wanted.num_threads, wanted.default_dtype) == (2, "torch.float64")
    assert (wanted.cudnn_deterministic, wanted.deterministic_mode) == (True, 1)
    upset()
    torch.set_default_dtype(torch.float32)
    torch.set_num_threads(1)
    torch.set_deterministic_debug_mode(2)
    write_user_flags(wanted)
    assert read_user_flags() == wanted


def test_either_way_of_asking_for_the_same_numbers_counts() -> None:
    """The switch of cuDNN, or the one for all operations."""
    assert not read_user_flags().deterministic
    torch.backends.cudnn.deterministic = True
    assert read_user_flags().deterministic
    torch.backends.cudnn.deterministic = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert read_user_flags().deterministic


@pytest.mark.parametrize(
    ("precision", "device", "expected"),
    [
        ("highest", "cuda", "float32"),
        ("high", "cuda", "tf32"),
        ("medium", "cuda", "tf32"),
        ("high", "cpu", "float32"),
        ("high", "mps", "float32"),
    ],
)
def test_what_float32_means_to_the_user(precision: str, device: str, expected: str) -> None:
    """TF32 is something of CUDA devices."""
    torch.set_float32_matmul_precision(precision)
    assert user_precision(read_user_flags(), device) == expected


def switched(yours: UserFlags, **compute: Any) -> tuple[str, bool, bool]:
    """Matrix precision, convolutions in TF32 and cudnn.benchmark while these settings are applied."""
    with preserved():
        apply_flags(ComputeSettings(**compute), yours, "cuda")
        return (
            torch.get_float32_matmul_precision(),
            torch.backends.cudnn.allow_tf32,
            torch.backends.cudnn.benchmark,
        )


def test_settings_set_the_switches_of_a_gpu() -> None:
    """tf32 takes convolutions along; everything else leaves them and the user's own precision alone."""
    yours = read_user_flags()
    assert switched(yours) == ("highest", True, False)
    assert switched(yours, precision="tf32", cudnn_benchmark=True) == ("high", True, True)
    assert switched(yours, precision="bfloat16") == ("highest", True, False)
    torch.backends.cudnn.allow_tf32 = False
    yours = read_user_flags()
    assert switched(yours) == ("highest", False, False)
    assert switched(yours, precision="tf32") == ("high", True, False)


def test_settings_go_from_what_the_user_had() -> None:
    """A user's own TF32 is the tf32 that is tried; float32 takes it away, but not from convolutions."""
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.benchmark = True
    yours = read_user_flags()
    assert switched(yours, precision="tf32", cudnn_benchmark=True) == ("medium", True, True)
    assert switched(yours, precision="float32") == ("highest", True, False)
    assert switched(yours, precision="float16") == ("medium", True, False)


def test_elsewhere_only_the_threads_are_set() -> None:
    """No switch of a GPU is touched for a CPU; without a number the threads stay too."""
    torch.set_float32_matmul_precision("high")
    before = read_user_flags()
    with preserved():
        apply_flags(ComputeSettings(cpu_threads=2, cudnn_benchmark=True, precision="tf32"), before, "cpu")
        assert read_user_flags() == dataclasses.replace(before, num_threads=2)
        apply_flags(ComputeSettings(), before, "cpu")
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 1


NEWER_API = """
import json, os, sys, warnings
import torch
from autotune.measure import flags
from autotune.settings import ComputeSettings


def quietly(read):
    try:
        return read()
    except RuntimeError:
        return "raises"


def seen():
    b = torch.backends
    return [
        *(x.fp32_precision for x in (b, b.cuda.matmul, b.cudnn, b.cudnn.conv, b.cudnn.rnn)),
        *(x.fp32_precision for x in (b.mkldnn, b.mkldnn.matmul, b.mkldnn.conv, b.mkldnn.rnn)),
        quietly(torch.get_float32_matmul_precision),
        quietly(lambda: b.cudnn.allow_tf32),
        quietly(lambda: b.cuda.matmul.allow_tf32),
    ]


def look(user):
    exec(user)
    before, yours = seen(), flags.read_user_flags()
    b, found = torch.backends, {"user": user, "yours": flags.user_precision(yours, "cuda"), "changed": []}
    found["was"] = [b.cuda.matmul.fp32_precision, b.cudnn.conv.fp32_precision]
    for precision in ("tf32", "float32", "bfloat16"):
        with flags.preserved():
            flags.apply_flags(ComputeSettings(precision=precision), yours, "cuda")
            found[precision] = [b.cuda.matmul.fp32_precision, b.cudnn.conv.fp32_precision]
        found["changed"] += [precision] if seen() != before else []
    torch.set_float32_matmul_precision("medium")
    flags.write_user_flags(yours)
    found["changed"] += ["write"] if seen() != before else []
    print(json.dumps(found), flush=True)


warnings.simplefilter("ignore")
torch.set_num_threads(1)
for user in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        look(user)
        os._exit(0)
    os.waitpid(child, 0)
"""

USERS = {
    "torch.backends.fp32_precision = 'tf32'": "tf32",
    "torch.backends.cuda.matmul.fp32_precision = 'tf32'": "tf32",
    "torch.backends.cuda.matmul.fp32_precision = 'ieee'": "float32",
    "torch.backends.cudnn.fp32_precision = 'ieee'": "float32",
    "torch.backends.cudnn.conv.fp32_precision = 'ieee'": "float32",
    "torch.backends.mkldnn.matmul.fp32_precision = 'bf16'": "float32",
}
"""What a user wrote, and the precision that this is."""


@pytest.fixture(scope="module")
def newer() -> dict[str, Any]:
    """What was found for each user, in a process each: the older API may raise for good after the newer."""
    command = [sys.executable, "-c", NEWER_API, *USERS]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["user"]: line for line in lines}


@pytest.mark.parametrize("user", USERS)
def test_a_user_of_the_newer_api_gets_it_back(user: str, newer: dict[str, Any]) -> None:
    """Every value of it, and even that the older one cannot be read beside it."""
    found = newer[user]
    matrices, convolutions = found["was"]
    assert found["yours"] == USERS[user] == ("tf32" if matrices == "tf32" else "float32")
    assert found["tf32"] == ["tf32", "tf32"]
    assert found["float32"] == ["ieee" if matrices == "tf32" else matrices, convolutions]
    assert found["bfloat16"] == found["was"]
    assert found["changed"] == []
