"""The space on machines that one can picture."""

from __future__ import annotations

import pytest
from strategies import GIB, MIB, plain_gpu, plain_machine, plain_workload

from autotune.errors import UsageError
from autotune.settings import Settings
from autotune.space.candidates import Space, build_space, bundle, neighbours

CPU = plain_machine()
GPU = plain_machine(gpus=(plain_gpu(),))
YOURS = Settings.from_flat({"batch_size": 32})


def on_cpu(yours: Settings = YOURS, machine=CPU, workload=None, **options) -> Space:
    """The space of the plain network on the CPU."""
    return build_space(machine, workload or plain_workload(), yours, **options)


def on_gpu(yours: Settings = YOURS, machine=GPU, workload=None, **options) -> Space:
    """The space of the plain network on the GPU."""
    return build_space(machine, workload or plain_workload(device="cuda"), yours, **options)


def why(space: Space, name: str) -> str:
    """The reason why a knob is kept."""
    return next(kept.why for kept in space.kept if kept.knob == name)


@pytest.mark.parametrize(
    ("cpus", "ladder"),
    [
        (1, (0, 1, 2)),
        (2, (0, 1, 2, 3, 4)),
        (4, (0, 1, 2, 3, 4, 6, 8)),
        (8, (0, 1, 2, 3, 4, 6, 8, 12, 16)),
        (10, (0, 1, 2, 3, 4, 6, 8, 10, 12, 16, 20)),
        (128, (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)),
    ],
)
def test_worker_ladder(cpus, ladder):
    """Every number up to four, then coarser, to twice the CPUs and never over 64."""
    assert on_cpu(machine=plain_machine(usable_cpus=cpus)).values("num_workers") == ladder


def test_yours_is_on_the_ladder():
    """A worker count, prefetch and thread count that no ladder has is there because the user runs it."""
    yours = YOURS.replace(num_workers=7, prefetch_factor=5, cpu_threads=5)
    space = on_cpu(yours)
    assert 7 in space.values("num_workers")
    assert space.values("prefetch_factor") == (None, 2, 4, 5, 8)
    assert 5 in space.values("cpu_threads")


def test_little_shared_memory_bounds_the_workers():
    """Batches in flight must fit /dev/shm: 64 MiB hold one worker's batches of 16 MiB and no more."""
    space = on_cpu(
        machine=plain_machine(shm_free_bytes=64 * MIB), workload=plain_workload(batch_bytes=16 * MIB)
    )
    assert space.values("num_workers") == (0, 1)
    assert why(space, "prefetch_factor") == "no other value is possible here"


def test_few_file_descriptors_bound_the_workers():
    """With 256 descriptors there is no room for sixteen workers."""
    assert max(on_cpu(machine=plain_machine(nofile_soft=256)).values("num_workers")) < 16


def test_little_memory_bounds_spawned_workers():
    """A spawned worker imports torch for itself, so a gibibyte holds two where forked ones fit."""
    spawned = on_cpu(machine=plain_machine(memory_available_bytes=GIB, start_method="spawn"))
    forked = on_cpu(machine=plain_machine(memory_available_bytes=GIB))
    assert max(spawned.values("num_workers")) == 2
    assert max(forked.values("num_workers")) == 12


def test_workers_that_cannot_change_bound_the_batch():
    """Where four workers have to stay, only batches whose queue fits /dev/shm are tried."""
    yours = YOURS.replace(num_workers=4, prefetch_factor=2, persistent_workers=True)
    machine = plain_machine(shm_free_bytes=256 * MIB)
    workload = plain_workload(batch_bytes=8 * MIB, workers_fixed="the sampler counts them")
    assert on_cpu(yours, machine, workload, allow="recipe").values("batch_size") == (32, 48, 64)


def test_what_yours_does_is_known_to_run():
    """A precision, a pinning or a queue that the rules would not try is not held against the user's own."""
    machine = plain_machine(shm_free_bytes=MIB, gpus=(plain_gpu(capability=(7, 5), native_bf16=False),))
    yours = YOURS.replace(num_workers=4, prefetch_factor=8, precision="bfloat16")
    space = on_gpu(yours, machine=machine)
    assert space.legal(yours)
    assert "bfloat16" in space.values("precision")
    fewer = space.settings(num_workers=3)
    assert space.legal(fewer)
    assert not space.legal(space.settings(num_workers=6))


def test_exact_leaves_rounding_alone():
    """With allow="exact" only the loader and the transfer are searched, and the reason says so."""
    space = on_gpu(allow="exact")
    assert space.names == ("num_workers", "prefetch_factor", "pin_memory", "non_blocking")
    assert "rounding" in why(space, "precision")


def test_recipe_searches_the_batch_size():
    """Up to eight times the user's batch, or what they name, as far as fifty steps an epoch remain.

    Between two doublings lies half as much again, where a multiple of 8 does.
    """
    usual = (32, 48, 64, 96, 128, 192, 256)
    assert on_cpu(allow="recipe").values("batch_size") == usual
    assert on_cpu(allow="recipe", max_batch_size=600).values("batch_size") == (*usual, 384, 512)
    assert on_cpu(allow="recipe", max_batch_size=64).values("batch_size") == usual
    for own, sizes in (
        (50, (50, 72, 96, 144, 200, 296, 400)),
        (6, (6, 8, 12, 16, 24, 32, 48)),
        (3, (3, 6, 8, 12, 16, 24)),
        (100, (100, 144, 200, 296, 400, 600, 800)),
    ):
        space = on_cpu(
            YOURS.replace(batch_size=own), workload=plain_workload(batch_samples=own), allow="recipe"
        )
        assert space.values("batch_size") == sizes, "multiples of 8 where one lies little below"
    few = plain_workload(dataset_samples=4000)
    assert on_cpu(workload=few, allow="recipe", max_batch_size=600).values("batch_size") == (32, 48, 64)
    assert on_cpu(workload=few, allow="recipe").values("batch_size") == (32, 48, 64)
    tiny = plain_workload(dataset_samples=100)
    assert why(on_cpu(workload=tiny, allow="recipe"), "batch_size").startswith(
        "a larger one would leave fewer than 50"
    )
    assert "learned" in why(on_cpu(), "batch_size")


@pytest.mark.parametrize(
    ("changes", "knob", "reason"),
    [
        ({"iterable": True, "sharded": False}, "num_workers", "every sample would come once per worker"),
        ({"workers_fixed": "the sampler holds a lock"}, "num_workers", "the sampler holds a lock"),
        ({"workers_fixed": "the sampler holds a lock"}, "prefetch_factor", "no workers"),
        ({"workers_fixed": "the sampler holds a lock"}, "persistent_workers", "no workers"),
        ({"persistent_fixed": "set_epoch is called"}, "persistent_workers", "set_epoch is called"),
        ({"batch_size_fixed": "own batch sampler"}, "batch_size", "own batch sampler"),
        ({"optimizer_class": "Lion", "optimizer_family": "other"}, "batch_size", "Lion"),
        ({"optimizer_class": None, "optimizer_family": "other"}, "batch_size", "no optimizer was given"),
        ({"deterministic": True}, "cudnn_benchmark", "deterministic"),
        ({"has_conv2d": False}, "cudnn_benchmark", "no 2-D convolution"),
        ({"has_conv2d": False}, "channels_last", "no 2-D convolution"),
        ({"image_input": False}, "channels_last", "no 4-D tensor"),
        ({"fused_available": False}, "fused_optimizer", "SGD has no fused kernel"),
        ({}, "cpu_threads", "does not run on the CPU"),
        ({}, "keep_host_memory", "does not run on the CPU"),
        ({"device": "cpu"}, "pin_memory", "CUDA or XPU"),
        ({"device": "cpu"}, "non_blocking", "CUDA or XPU"),
        ({"device": "cpu"}, "cudnn_benchmark", "CUDA device"),
        ({"device": "mps"}, "pin_memory", "CUDA or XPU"),
        ({"device": "cpu"}, "precision", "no other value"),
        ({"device": "cpu", "autocast_fixed": "the step casts itself"}, "precision", "the step casts itself"),
    ],
)
def test_a_kept_knob_says_why(changes, knob, reason):
    """Each fact that rules a knob out is named in words."""
    space = on_gpu(workload=plain_workload(**{"device": "cuda", **changes}), allow="recipe")
    assert reason in why(space, knob)
    assert knob not in space.names


def test_without_a_loader_only_the_compute_side_is_tuned():
    """A loop of its own has no DataLoader, so no knob of it."""
    space = on_gpu(
        Settings(), workload=plain_workload(device="cuda", dataset_class=None, dataset_samples=None)
    )
    assert set(space.names) == {"precision", "cudnn_benchmark", "channels_last", "fused_optimizer"}
    assert "no DataLoader" in why(space, "non_blocking")


@pytest.mark.parametrize(
    ("gpu", "precisions"),
    [
        (plain_gpu(), ("float32", "tf32", "bfloat16", "float16")),
        (plain_gpu(capability=(7, 5), native_bf16=False), ("float32", "float16")),
        (plain_gpu(capability=(8, 0), native_bf16=False), ("float32", "tf32", "float16")),
    ],
)
def test_precisions_follow_the_hardware(gpu, precisions):
    """TF32 from capability 8.0, bfloat16 only where it is native, float16 on every CUDA device."""
    assert on_gpu(machine=plain_machine(gpus=(gpu,))).values("precision") == precisions


def test_precision_asks_the_device_that_trains():
    """With two different GPUs the index in the device's name decides."""
    machine = plain_machine(gpus=(plain_gpu(), plain_gpu(index=1, capability=(7, 0), native_bf16=False)))
    second = on_gpu(machine=machine, workload=plain_workload(device="cuda:1"))
    assert second.values("precision") == ("float32", "float16")


def test_a_step_that_casts_itself_can_still_use_tf32():
    """Autocast cannot be laid over the user's own, but TF32 is a flag beside it."""
    workload = plain_workload(device="cuda", autocast_fixed="the step casts itself")
    assert on_gpu(workload=workload).values("precision") == ("float32", "tf32")
    assert bundle(on_gpu(workload=workload)).compute.precision == "tf32"


def test_the_bundle_on_a_gpu():
    """One CPU stays with the loop; all is on that the hardware has and that costs little to try."""
    made = bundle(on_gpu(machine=plain_machine(usable_cpus=5, gpus=(plain_gpu(),))))
    assert made == Settings.from_flat(
        {
            "batch_size": 32,
            "num_workers": 4,
            "prefetch_factor": 2,
            "persistent_workers": True,
            "pin_memory": True,
            "non_blocking": True,
            "precision": "bfloat16",
            "channels_last": True,
            "fused_optimizer": True,
        }
    )


def test_the_bundle_on_a_cpu_leaves_the_cpus_to_the_model():
    """One worker on two CPUs, and one thread beside it; rounding stays float32 though bfloat16 is native."""
    made = bundle(on_cpu(machine=plain_machine(usable_cpus=2, cpu_native_bf16=True)))
    assert (made.loader.num_workers, made.compute.cpu_threads) == (1, 1)
    assert made.compute.precision == "float32"
    assert bundle(on_cpu()).loader.num_workers == 2


def test_keeping_memory_is_a_move_of_its_own():
    """It changes no number, so it is searched in every class; after it nothing else shares the process."""
    able = plain_machine(host_memory_fixed="")
    space = on_cpu(machine=able, allow="exact")
    assert space.values("keep_host_memory") == (False, True)
    assert not bundle(space).compute.keep_host_memory
    moves = neighbours(space, YOURS, "compute")
    assert ("keep_host_memory", YOURS.replace(keep_host_memory=True)) in moves


def test_the_bundle_takes_the_workers_that_fit():
    """Where shared memory holds fewer workers than the CPUs would take, it takes those."""
    machine = plain_machine(shm_free_bytes=64 * MIB, gpus=(plain_gpu(),))
    workload = plain_workload(device="cuda", batch_bytes=16 * MIB)
    assert bundle(on_gpu(machine=machine, workload=workload)).loader.num_workers == 1


def test_the_bundle_is_yours_where_nothing_applies():
    """Without a knob to move the first guess is what the user runs."""
    workload = plain_workload(dataset_class=None, has_conv2d=False, fused_available=False)
    assert bundle(on_cpu(Settings(), workload=workload)) == Settings()


def test_loader_moves_from_no_workers():
    """One worker first, then one for each CPU; then the same with the threads that leaves, and with all."""
    moves = neighbours(on_cpu(), YOURS, "loader")
    assert [(name, made.loader.num_workers, made.compute.cpu_threads) for name, made in moves] == [
        ("num_workers", 1, None),
        ("num_workers", 8, None),
        ("num_workers", 1, 8),
        ("num_workers", 8, 1),
        ("num_workers", 8, 8),
    ]


def test_workers_can_give_their_cores_back_to_the_step():
    """From one worker and one thread on two CPUs, none and two threads is a single move on a CPU alone."""
    space = on_cpu(machine=plain_machine(usable_cpus=2))
    here = space.settings(num_workers=1, cpu_threads=1)
    back = space.settings(num_workers=0, cpu_threads=2)
    assert back in [made for _, made in neighbours(space, here, "loader")]
    gpu = on_gpu()
    here = gpu.settings(num_workers=1)
    assert {made.compute.cpu_threads for _, made in neighbours(gpu, here, "loader")} == {None}


def test_every_setting_of_a_space_comes_once():
    """All that is legal, without doubles, as many as the space says."""
    space = on_cpu(machine=plain_machine(usable_cpus=2))
    every = list(space.every())
    assert len(every) == len(set(every)) == space.size
    assert all(space.legal(settings) for settings in every)


def test_loader_moves_go_up_first():
    """One step up and one down the ladder, for workers and for what they prefetch."""
    space = on_cpu()
    here = space.settings(num_workers=4, prefetch_factor=4)
    moves = [
        (name, made.loader.num_workers, made.loader.prefetch_factor)
        for name, made in neighbours(space, here, "loader")
        if made.compute == here.compute
    ]
    assert moves == [
        ("num_workers", 6, 4),
        ("num_workers", 3, 4),
        ("prefetch_factor", 4, 8),
        ("prefetch_factor", 4, 2),
    ]


def test_workers_that_start_anew_may_persist():
    """Where the user's workers start in every epoch, keeping them is a move of its own."""
    yours = YOURS.replace(num_workers=4, prefetch_factor=2)
    moves = dict(neighbours(on_cpu(yours), yours, "loader"))
    assert moves["persistent_workers"] == yours.replace(persistent_workers=True)
    fixed = on_cpu(yours, workload=plain_workload(persistent_fixed="set_epoch is called"))
    assert "persistent_workers" not in dict(neighbours(fixed, yours, "loader"))


def test_pinning_and_background_copies_move_as_a_pair():
    """Of the four pairs the background copy from unpinned memory is not tried."""
    moves = neighbours(on_gpu(), YOURS, "transfer")
    assert [(name, made.loader.pin_memory, made.transfer.non_blocking) for name, made in moves] == [
        ("pin_memory", True, True),
        ("pin_memory", True, False),
    ]


def test_a_background_copy_is_tried_where_pinning_is_fixed_off():
    """With pinning out of the question the copy alone is a move."""
    moves = neighbours(on_gpu(fixed={"pin_memory": False}), YOURS, "transfer")
    assert moves == (("non_blocking", YOURS.replace(non_blocking=True)),)


def test_compute_moves_reach_every_precision():
    """A precision moves to each of the others, a switch to its opposite."""
    moves = neighbours(on_gpu(), YOURS, "compute")
    assert [made.compute.precision for name, made in moves if name == "precision"] == [
        "tf32",
        "bfloat16",
        "float16",
    ]
    assert [name for name, _ in moves if name != "precision"] == [
        "cudnn_benchmark",
        "channels_last",
        "fused_optimizer",
    ]


def test_thread_moves_always_offer_one():
    """Torch's own number may be far too many, so one thread is never more than a move away."""
    threads = [
        made.compute.cpu_threads
        for name, made in neighbours(on_cpu(), YOURS, "compute")
        if name == "cpu_threads"
    ]
    assert threads == [8, 1]
    here = on_cpu().settings(cpu_threads=6)
    threads = [
        made.compute.cpu_threads
        for name, made in neighbours(on_cpu(), here, "compute")
        if name == "cpu_threads"
    ]
    assert threads == [8, 4, 1, None]


def test_fixing_a_number_of_workers_moves_the_start():
    """Candidates begin from yours with the fixed value, and yours stays what the user runs."""
    space = on_cpu(fixed={"num_workers": 3})
    assert space.start.loader.num_workers == 3
    assert space.start.loader.prefetch_factor == 2
    assert space.yours == YOURS
    assert why(space, "num_workers") == "you fixed it"


def test_fixing_what_only_workers_do_rules_out_loading_without():
    """A fixed prefetch factor or persistence needs workers, so candidates have at least one."""
    for fixed in ({"prefetch_factor": 4}, {"persistent_workers": True}):
        space = on_cpu(fixed=fixed)
        assert space.start.loader.num_workers == 1
        assert not space.legal(space.settings(num_workers=0, fused_optimizer=True))


@pytest.mark.parametrize(
    ("fixed", "text"),
    [
        ({"num_worker": 2}, "did you mean `num_workers`"),
        ({"num_workers": -1}, "at least 0"),
        ({"num_workers": True}, "at least 0"),
        ({"num_workers": "4"}, "at least 0"),
        ({"prefetch_factor": 0}, "at least 1"),
        ({"batch_size": None}, "at least 1"),
        ({"pin_memory": 1}, "True or False"),
        ({"precision": "bf16"}, "one of float32"),
        ({"precision": "bfloat"}, "did you mean `bfloat16`"),
        ({"precision": "bfloat16"}, "does not compute in bfloat16"),
        ({"pin_memory": True}, "CUDA or XPU"),
        ({"cudnn_benchmark": True}, "CUDA device"),
        ({"num_workers": 0, "prefetch_factor": 2}, "needs workers"),
        ({"num_workers": 100}, "more than 64"),
        ({"cpu_threads": 9}, "8 usable CPUs"),
        ({"batch_size": 60_000}, "50000 samples"),
    ],
)
def test_a_fixed_value_that_cannot_be_is_refused(fixed, text):
    """Unknown knobs, wrong types and what this machine cannot do are usage errors that say what is wrong."""
    with pytest.raises(UsageError) as caught:
        on_cpu(fixed=fixed)
    assert text in str(caught.value)


def test_fixing_workers_of_an_unsharded_stream_is_refused():
    """Not even on request does every sample come twice."""
    with pytest.raises(UsageError, match="fixed settings") as caught:
        on_cpu(workload=plain_workload(iterable=True, sharded=False), fixed={"num_workers": 2})
    assert "once per worker" in caught.value.why


def test_size_counts_each_setting_once():
    """Prefetching without workers is one setting, not four, and pinning without a device is none."""
    machine = plain_machine(usable_cpus=1)
    space = on_cpu(machine=machine, allow="exact")
    assert space.values("prefetch_factor") == (None, 2, 4, 8)
    # no workers once, one and two workers with three prefetch factors each
    assert space.size == 1 + 2 * 3


def test_a_value_outside_of_the_options_is_not_in_the_space():
    """Legal on the machine is not enough: the sampler could never draw it."""
    space = on_cpu()
    assert not space.legal(space.settings(num_workers=5))
    assert not space.legal(space.settings(batch_size=64))
    with pytest.raises(KeyError):
        space.settings(num_worker=1)
