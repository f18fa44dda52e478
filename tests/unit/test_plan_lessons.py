"""What failures forbid."""

from __future__ import annotations

import pytest
from search_worlds import History

from autotune.search.lessons import dropped, would_fail
from autotune.settings import Settings


def workers(count, prefetch=2, **changes):
    """Settings with so many workers."""
    return (
        Settings()
        .replace(num_workers=count, prefetch_factor=prefetch, persistent_workers=True, batch_size=64)
        .replace(**changes)
    )


@pytest.mark.parametrize("kind", ["shm", "oom_host", "file_descriptors"])
def test_a_full_queue_forbids_longer_ones(kind):
    """What did not fit with 4 x 2 batches in flight is not tried with more on any axis, but with fewer."""
    history = History().failed(workers(4), kind)
    assert would_fail(workers(8), history)
    assert would_fail(workers(4, 4), history)
    assert would_fail(workers(4, channels_last=True), history)
    assert not would_fail(workers(2, 8), history)
    assert not would_fail(workers(4, batch_size=32), history)


def test_device_memory_forbids_larger_batches_unless_numbers_are_narrower():
    """A batch that did not fit is not tried larger, nor with other workers; in half the width it may fit."""
    history = History().failed(workers(4, batch_size=256), "oom_device")
    assert would_fail(workers(0, None, batch_size=512), history)
    assert not would_fail(workers(4, batch_size=128), history)
    assert not would_fail(workers(4, batch_size=256, precision="bfloat16"), history)


def test_device_memory_is_not_blamed_on_a_batch_that_ran():
    """Where as large a batch ran in numbers as wide, the step's other switches are to blame."""
    ran = workers(2, batch_size=256)
    history = History().ran(ran, 100).failed(workers(2, batch_size=256, channels_last=True), "oom_device")
    assert not would_fail(workers(4, batch_size=256), history)
    assert not would_fail(workers(2, batch_size=256, fused_optimizer=True), history)
    assert would_fail(workers(4, batch_size=256, channels_last=True), history)
    assert would_fail(workers(4, batch_size=512, channels_last=True), history)
    assert not would_fail(workers(4, batch_size=128, channels_last=True), history)


@pytest.mark.parametrize("kind", ["shm", "oom_host", "file_descriptors", "timeout"])
def test_a_queue_is_not_blamed_where_a_longer_one_ran(kind):
    """A failure that more workers did not meet says nothing of them, nor of more; it is not tried again."""
    history = History().ran(workers(4), 100).failed(workers(2), kind)
    assert not would_fail(workers(8), history)
    assert would_fail(workers(2), history)


def test_what_ran_before_it_failed_rules_out_itself_alone():
    """Another program may have held the memory: others like it are not given up for that."""
    history = History().ran(workers(2), 100).failed(workers(2), "oom_device", "final")
    assert not would_fail(workers(4), history)
    assert would_fail(workers(2), history)


def test_device_memory_blames_the_kernel_search_first():
    """Where cudnn_benchmark was on, the same batch may fit without its workspace."""
    history = History().failed(workers(4, cudnn_benchmark=True), "oom_device")
    assert not would_fail(workers(4), history)
    assert would_fail(workers(2, cudnn_benchmark=True), history)


def test_host_memory_that_a_step_alone_exceeds_forbids_as_large_batches():
    """Without workers no queue is to blame: as large a batch would not fit with workers either."""
    history = History().failed(workers(0, None, batch_size=256), "oom_host")
    assert would_fail(workers(0, None, batch_size=512), history)
    assert would_fail(workers(2, batch_size=256), history)
    assert not would_fail(workers(2, batch_size=128), history)


def test_a_timeout_forbids_the_same_step_with_as_many_workers():
    """What hung is not tried with a longer queue; another way to compute, or fewer workers, may be."""
    history = History().failed(workers(4), "timeout")
    assert would_fail(workers(8), history)
    assert not would_fail(workers(2), history)
    assert not would_fail(workers(4, precision="bfloat16"), history)


def test_a_failed_step_alone_forbids_it_with_any_loader():
    """A compute trial that failed says the same of every loader, and nothing of other compute settings."""
    history = History().failed(workers(0, None, channels_last=True), "user_error", "compute", "compute")
    assert would_fail(workers(4, channels_last=True), history)
    assert not would_fail(workers(4), history)


def test_a_value_that_failed_twice_and_never_ran_is_dropped():
    """float16 that fails with two loaders is not tried with a third."""
    history = History().failed(workers(2, precision="float16"), "non_finite")
    third = workers(8, precision="float16")
    assert not would_fail(third, history)
    history.ran(workers(4), 100).ran(workers(2), 100).failed(workers(4, precision="float16"), "compile_error")
    assert dropped(history) == (("precision", "float16"),)
    assert would_fail(third, history)


def test_a_value_that_ran_once_is_never_dropped():
    """Two failures elsewhere do not outweigh a measurement."""
    history = History().ran(workers(1, precision="float16"), 100)
    history.failed(workers(2, precision="float16"), "user_error")
    history.failed(workers(4, precision="float16"), "user_error")
    assert not [pair for pair in dropped(history) if pair[0] == "precision"]


def test_a_side_that_failed_alone_and_ran_in_full_forbids_nothing():
    """A loader trial that hangs where the real step runs well is an accident, not a lesson."""
    history = History().ran(workers(0, None), 100, "yours")
    history.failed(workers(0, None), "timeout", "ceiling", "loader")
    assert not would_fail(workers(4), history)
    assert not would_fail(workers(0, None, channels_last=True), history)


def test_a_loader_trial_says_nothing_of_compute():
    """Values that a partial trial does not use are neither proved nor blamed by it."""
    history = History()
    for count in (1, 2):
        history.failed(workers(count, precision="float16"), "worker_crash", "loader", "loader")
    assert ("precision", "float16") not in dropped(history)
