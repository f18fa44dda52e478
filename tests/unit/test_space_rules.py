"""The rules of going together, settings by settings."""

from __future__ import annotations

import itertools

from strategies import MIB, plain_gpu, plain_machine, plain_workload

from autotune.settings import Settings
from autotune.space.rules import canonical, simplicity, violations

CPU = plain_machine()
GPU = plain_machine(gpus=(plain_gpu(),))
YOURS = Settings.from_flat({"batch_size": 32})


def test_a_larger_batch_takes_more_shared_memory():
    """The bytes in flight grow with the batch size that is tried, not with the one that was seen."""
    machine = plain_machine(shm_free_bytes=100 * MIB)
    workload = plain_workload(batch_bytes=16 * MIB)
    small = YOURS.replace(num_workers=1, prefetch_factor=2, persistent_workers=True)
    assert violations(small, machine, workload) == ()
    assert "/dev/shm" in violations(small.replace(batch_size=64), machine, workload)[0]


def test_pinned_copies_take_memory_too():
    """A queue that fills half of the free memory does not fit a second time in pinned pages."""
    machine = plain_machine(memory_available_bytes=1000 * MIB, gpus=(plain_gpu(),))
    workload = plain_workload(device="cuda", batch_bytes=100 * MIB)
    loading = YOURS.replace(num_workers=2, prefetch_factor=2, persistent_workers=True)
    assert violations(loading, machine, workload) == ()
    assert "of memory" in violations(loading.replace(pin_memory=True), machine, workload)[0]


def test_canonical_writes_out_what_torch_would_do():
    """The default prefetch is named, workers persist, and what does nothing on a CPU is off."""
    odd = YOURS.replace(num_workers=2, pin_memory=True, non_blocking=True, cudnn_benchmark=True)
    made = canonical(odd, CPU, plain_workload())
    assert made == YOURS.replace(num_workers=2, prefetch_factor=2, persistent_workers=True)
    kept = canonical(odd, CPU, plain_workload(), keep_persistent=True)
    assert not kept.loader.persistent_workers
    threads = YOURS.replace(cpu_threads=4)
    assert canonical(threads, GPU, plain_workload(device="cuda")) == YOURS
    without = YOURS.replace(prefetch_factor=2, persistent_workers=True)
    assert canonical(without, CPU, plain_workload()) == YOURS


def test_memory_is_kept_for_steps_on_a_cpu_where_the_allocator_can_be_told():
    """Elsewhere the reason is given; what *yours* does already may stay."""
    keeping, able = YOURS.replace(keep_host_memory=True), plain_machine(host_memory_fixed="")
    assert violations(keeping, able, plain_workload()) == ()
    here = plain_machine(host_memory_fixed="you set MALLOC_TRIM_THRESHOLD_")
    assert violations(keeping, here, plain_workload()) == (
        "keep_host_memory does not apply: you set MALLOC_TRIM_THRESHOLD_",
    )
    assert violations(keeping, here, plain_workload(), yours=keeping) == ()
    (why,) = violations(keeping, able, plain_workload(device="cuda"))
    assert why.endswith("the model does not run on the CPU")
    assert canonical(keeping, able, plain_workload(device="cuda")) == YOURS


def test_kept_memory_changes_no_number():
    """Among equals it is put behind none that rounds otherwise, and before none that does without it."""
    keeping = YOURS.replace(keep_host_memory=True)
    assert simplicity(YOURS) < simplicity(keeping) < simplicity(YOURS.replace(channels_last=True))


def test_simplicity_orders_ties():
    """Lower class first, then fewer workers, then less prefetch, then no pinning."""
    base = YOURS.replace(num_workers=2, prefetch_factor=2)
    ordered = [
        base,
        base.replace(pin_memory=True),
        base.replace(prefetch_factor=4),
        base.replace(num_workers=3),
        base.replace(fused_optimizer=True),
        base.replace(precision="tf32"),
        base.replace(precision="bfloat16"),
        base.replace(batch_size=64),
    ]
    keys = [simplicity(each) for each in ordered]
    assert all(one < next_one for one, next_one in itertools.pairwise(keys))
