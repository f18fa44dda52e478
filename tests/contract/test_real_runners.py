"""The runners that measure for real keep the contract of the seam."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import workloads as w
from runner_contract import StepsContract

from autotune.measure.inprocess import InProcessRunner
from autotune.measure.payload import pickle_workload
from autotune.measure.process_runner import ProcessRunner
from autotune.measure.seam import Runner
from autotune.workload import Workload

ROWS = Workload(w.Net(), w.Rows(), optimizer=w.sgd, batch_size=16)


class RealRunnerContract(StepsContract):
    """The contract, with one runner for all tests of a class, as in a run."""

    def test_closing_twice_is_safe(self) -> None:  # type: ignore[override]
        """The second close finds nothing to do; the shared runner stays open for the other tests."""
        for runner in (InProcessRunner(ROWS), ProcessRunner(pickle_workload(ROWS))):
            runner.describe()
            runner.close()
            runner.close()


class TestProcessRunner(RealRunnerContract):
    """Trials in a bench process."""

    @pytest.fixture(scope="class")
    @classmethod
    def runner(cls) -> Iterator[Runner]:
        """One bench process."""
        with ProcessRunner(pickle_workload(ROWS)) as runner:
            yield runner


class TestInProcessRunner(RealRunnerContract):
    """Trials in this process."""

    @pytest.fixture(scope="class")
    @classmethod
    def runner(cls) -> Iterator[Runner]:
        """One session."""
        runner = InProcessRunner(ROWS)
        yield runner
        runner.close()


class TestOwnProcess:
    """What only a process of the user's own asks for."""

    def test_its_allocator_is_left_alone(self) -> None:
        """Nothing could put it back, so it is not searched there; a bench process ends with its run."""
        runner = InProcessRunner(ROWS)
        assert "your own process" in runner.describe().machine.host_memory_fixed
        runner.close()


class TestWithoutLoader(RealRunnerContract):
    """A loop that makes its own batches."""

    @pytest.fixture(scope="class")
    @classmethod
    def runner(cls) -> Iterator[Runner]:
        """A step that draws its rows itself."""
        workload = Workload(w.Net(), step=w.draw_rows, optimizer=w.sgd, samples_per_step=8)
        with ProcessRunner(pickle_workload(workload)) as runner:
            yield runner
