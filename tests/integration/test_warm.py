"""What a session makes of a least time of warm-up."""

from __future__ import annotations

import workloads as w

from autotune.measure import flags
from autotune.measure.loaders import parts_of
from autotune.measure.probe import machine_facts
from autotune.measure.session import Session
from autotune.settings import Settings
from autotune.trial import Measurement, TrialSpec
from autotune.workload import Workload


def test_on_a_cpu_no_clock_is_waited_for() -> None:
    """A CPU's clock rises within milliseconds: the trial takes no longer for having been asked."""
    workload = Workload(w.Net(), w.Rows(), optimizer=w.sgd, batch_size=16, device="cpu")
    session = Session(workload, parts_of(workload), flags.read_user_flags(), machine_facts)
    settings = Settings().replace(batch_size=16)
    found = session.run(TrialSpec(settings=settings, stage="final", window_s=0.05, least_warm_s=3600.0))
    assert isinstance(found, Measurement)
    assert found.peak_host_bytes is not None
