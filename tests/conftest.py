"""What all tests share: golden files, compared as whole texts, and a process that keeps nothing of a test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from autotune.measure import host_memory

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--update-golden` writes what the code gives today; look at the diff before committing it."""
    parser.addoption("--update-golden", action="store_true", help="rewrite the files in tests/golden")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`golden(name, text)` fails unless tests/golden/name holds exactly `text`."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"{text}\n", encoding="utf-8")
        assert path.read_text(encoding="utf-8") == f"{text}\n"

    return compare


@pytest.fixture(autouse=True)
def no_memory_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test begins as if nothing was told to keep memory: a kit in an earlier one may have, for good."""
    monkeypatch.setattr(host_memory, "_kept", False)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread for torch: beside a busy neighbour, a step on several can be many times slower."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
