"""Which failure is behind an exception, an exit status or last words."""

from __future__ import annotations

import errno
import gc
import pickle
import signal
import typing
import weakref
from collections.abc import Callable

import pytest
import torch
from torch._utils import ExceptionWrapper

from autotune.errors import DatasetError, NonFiniteLossError, NotPicklableError
from autotune.measure import classify as module
from autotune.measure.classify import (
    HINTS,
    MESSAGES,
    classify,
    classify_exit,
    failure,
    stacks_at_deadline,
    user_traceback,
)
from autotune.trial import FailureKind

WORKER = "in DataLoader worker process 1"


def raised(function: Callable[[], object]) -> Exception:
    """What `function` raises."""
    try:
        function()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def load_sample() -> None:
    """A dataset that fails, as a user would write it."""
    raise KeyError("label")


def from_worker(function: Callable[[], object]) -> Exception:
    """What the training process sees of an exception in a worker, made by torch itself."""
    try:
        function()
    except Exception:
        wrapper = ExceptionWrapper(where=WORKER)
    return raised(wrapper.reraise)


def test_every_kind_has_a_sentence_and_a_way_out() -> None:
    """No failure is shown without both."""
    kinds = set(typing.get_args(FailureKind))
    assert set(MESSAGES) == kinds
    assert set(HINTS) == kinds
    assert all(failure(kind).message and failure(kind).hint for kind in kinds)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of", "oom_device"),
        ("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported", "oom_device"),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "oom_device"),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "oom_device"),
        ("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if", "oom_device"),
        ("HIP out of memory. Tried to allocate 20.00 MiB", "oom_device"),
        ("MPS backend out of memory (MPS allocated: 9.0 GB, other allocations:", "oom_device"),
        ("XPU out of memory. Tried to allocate 20.00 MiB", "oom_device"),
        ("Triton Error [CUDA]: out of memory", "oom_device"),
        ("err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9", "oom_host"),
        ("[Errno 12] Cannot allocate memory", "oom_host"),
        ("unable to write to file </torch_123_45_6>: No space left on device (28)", "shm"),
        ("unable to allocate shared memory(shm) for file </torch_1_2_3>: Success (0)", "shm"),
        ("DataLoader worker (pid 12) is killed by signal: Bus error. It is possible that", "shm"),
        ("[Errno 28] No space left on device: '/dev/shm/sem.x'", "shm"),
        ("received 0 items of ancdata", "file_descriptors"),
        ("[Errno 24] Too many open files: '/data/1.jpg'", "file_descriptors"),
        ("unable to open shared memory object </torch_1>: Too many open files (24)", "file_descriptors"),
        ("DataLoader worker (pid 77) is killed by signal: Segmentation fault. ", "worker_crash"),
        ("DataLoader worker (pid(s) 12, 13) exited unexpectedly", "worker_crash"),
        ("DataLoader worker (pid 5) exited unexpectedly with exit code 3. Details are", "worker_crash"),
        ("before the\n        current process has finished its bootstrapping phase.", "worker_crash"),
        ("CUDA error: an illegal memory access was encountered", "sticky_cuda"),
        ("CUDA error: device-side assert triggered", "sticky_cuda"),
        ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling", "sticky_cuda"),
        ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR", "sticky_cuda"),
        ("DataLoader timed out after 5 seconds", "timeout"),
        ("Function 'DivBackward0' returned nan values in its 0th output.", "non_finite"),
        ("Can't pickle <function <lambda> at 0x7f>: attribute lookup failed", "pickle"),
        ("cannot pickle '_thread.lock' object", "pickle"),
        ("Can't get local object 'main.<locals>.Dataset'", "pickle"),
        ("out of resource: shared memory, Required: 262144, Hardware limit: 101376.", "compile_error"),
        ("Cannot re-initialize CUDA in forked subprocess. To use CUDA with", "user_error"),
        ("mat1 and mat2 shapes cannot be multiplied (32x784 and 100x10)", "user_error"),
        ("Storage size calculation overflowed with sizes=[99999999999]", "user_error"),
        ("[Errno 28] No space left on device: '/home/me/torch_project/cache.bin'", "user_error"),
    ],
)  # fmt: skip
def test_texts_that_give_a_failure_away(text: str, kind: FailureKind) -> None:
    """Torch raises most of them as a plain RuntimeError."""
    found = classify(RuntimeError(text), phase="full")
    assert (found.kind, bool(found.message), bool(found.hint)) == (kind, True, True)
    assert "\n" not in found.message


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.OutOfMemoryError("no words"), "oom_device"),
        (torch.AcceleratorError("an error without a known text"), "sticky_cuda"),
        (MemoryError(), "oom_host"),
        (pickle.PicklingError("odd"), "pickle"),
        (NotPicklableError("a model", fix="name it"), "pickle"),
        (NonFiniteLossError("the loss is nan"), "non_finite"),
        (torch._dynamo.exc.Unsupported("graph break"), "compile_error"),
        (OSError(errno.ENOSPC, "No space left on device"), "user_error"),
        (SystemExit(3), "user_error"),
    ],
)
def test_classes_that_give_a_failure_away(error: BaseException, kind: FailureKind) -> None:
    """Where torch has a class for it, the text does not matter."""
    assert classify(error, phase="compute").kind == kind


def test_our_own_errors_keep_their_words() -> None:
    """What, fix and detail become message, hint and traceback."""
    found = classify(
        DatasetError("index 3 raised", fix="leave it out", detail="Traceback ..."), phase="loader"
    )
    assert (found.kind, found.message, found.hint, found.traceback) == (
        "user_error",
        "index 3 raised",
        "leave it out",
        "Traceback ...",
    )


def test_the_memory_asked_for_is_said() -> None:
    """The size tells how far off the batch is."""
    found = classify(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB."), phase="full")
    assert found.message == "the device ran out of memory when asked for 2.50 GiB"


def test_a_users_error_keeps_its_traceback() -> None:
    """The sentence names the error and what was being done; the traceback leads to the line."""
    found = classify(raised(load_sample), phase="full")
    assert found.message == "KeyError: 'label' (in a training step)"
    assert 'raise KeyError("label")' in found.traceback


def test_an_unknown_phase_is_said_as_it_is() -> None:
    """A caller may name what it does in its own words."""
    assert (
        classify(ValueError("bad"), phase="in the first step").message
        == "ValueError: bad (in the first step)"
    )


def test_a_workers_error_comes_with_the_workers_traceback() -> None:
    """Torch packs it into the text of an exception of the same class."""
    found = classify(from_worker(load_sample), phase="full")
    assert found.kind == "user_error"
    assert found.message == f"KeyError: 'label' ({WORKER})"
    assert found.traceback.startswith("Traceback (most recent call last):")
    assert "in load_sample" in found.traceback
    assert "Caught" not in found.traceback


def test_torchs_frames_are_left_out() -> None:
    """Only the user's own lines remain, and a multi-line message is kept whole."""
    text = (
        f"Caught ValueError {WORKER}.\nOriginal Traceback (most recent call last):\n"
        '  File "/venv/lib/python3.12/site-packages/torch/utils/data/_utils/worker.py", line 3, in _loop\n'
        "    data = fetcher.fetch(index)\n"
        "           ^^^^^^^^^^^^^^^^^^^^\n"
        '  File "/home/me/data.py", line 9, in __getitem__\n'
        "    return decode(self.files[i])\n"
        "ValueError: not an image\nit is text\n"
    )
    found = classify(ValueError(text), phase="loader")
    assert found.message == f"ValueError: not an image ({WORKER})"
    assert found.traceback.splitlines() == [
        "Traceback (most recent call last):",
        '  File "/home/me/data.py", line 9, in __getitem__',
        "    return decode(self.files[i])",
        "ValueError: not an image",
        "it is text",
    ]


def test_a_workers_source_lines_are_not_its_error() -> None:
    """A line of code that speaks of memory does not make an error one of memory."""

    def guarded() -> None:
        raise ValueError("broken") if "CUDA out of memory" else None

    assert classify(from_worker(guarded), phase="loader").kind == "user_error"


@pytest.mark.parametrize(
    ("inner", "kind"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "file_descriptors"),
        (MemoryError(), "oom_host"),
        (RuntimeError("unable to write to file </torch_1_2>: No space left on device (28)"), "shm"),
    ],
)
def test_what_a_worker_ran_out_of(inner: Exception, kind: FailureKind) -> None:
    """A limit reached inside a worker is that limit, not the user's error."""

    def run_out() -> None:
        raise inner

    assert classify(from_worker(run_out), phase="full").kind == kind


def raised_in(file: str, error: Exception) -> Exception:
    """`error` with a traceback that goes through a function of `file`."""
    names = {"error": error}
    exec(compile("def act():\n    raise error", file, "exec"), names)
    return raised(names["act"])  # type: ignore[arg-type]


@pytest.mark.parametrize("file", ["multiprocessing/synchronize.py", "multiprocessing/heap.py"])
def test_a_full_shm_seen_by_multiprocessing_itself(file: str) -> None:
    """Its locks and buffers lie in /dev/shm, and their error names no file."""
    full = OSError(errno.ENOSPC, "No space left on device")
    assert classify(raised_in(f"/usr/lib/python3.12/{file}", full), phase="full").kind == "shm"


@pytest.mark.parametrize(
    "error", [ConnectionResetError(104, "reset"), EOFError(), FileNotFoundError(2, "no")]
)
def test_a_batch_whose_worker_has_died(error: Exception) -> None:
    """The batch is fetched from its worker, so a dead one is first seen as a broken connection."""
    sharer = "/usr/lib/python3.12/multiprocessing/resource_sharer.py"
    assert classify(raised_in(sharer, error), phase="full").kind == "worker_crash"
    assert (
        classify(raised_in("/home/me/data.py", error.with_traceback(None)), phase="full").kind == "user_error"
    )


def test_a_worker_that_dies_while_we_classify(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch raises from its SIGCHLD handler, at any line of the main thread; that error says more."""
    late = RuntimeError("DataLoader worker (pid 9) is killed by signal: Segmentation fault. ")
    real, calls = module.user_traceback, []

    def interrupted(error: BaseException) -> str:
        calls.append(error)
        if len(calls) == 1:
            raise late
        return real(error)

    monkeypatch.setattr(module, "user_traceback", interrupted)
    found = classify(ConnectionResetError(104, "reset"), phase="full")
    assert found.message == "a DataLoader worker ended: Segmentation fault"


@pytest.mark.parametrize(
    ("oom_killed", "kind"), [(None, "oom_host"), (True, "oom_host"), (False, "worker_crash")]
)
def test_a_worker_killed_outright(oom_killed: bool | None, kind: FailureKind) -> None:
    """SIGKILL is a memory kill unless the kernel's counter says otherwise."""
    error = RuntimeError("DataLoader worker (pid 9) is killed by signal: Killed. ")
    assert classify(error, phase="full", oom_killed=oom_killed).kind == kind


def test_a_worker_that_vanished_while_the_kernel_killed() -> None:
    """Torch does not always see the signal; the counter does."""
    error = RuntimeError("DataLoader worker (pid(s) 9) exited unexpectedly")
    assert classify(error, phase="full", oom_killed=True).kind == "oom_host"
    assert classify(error, phase="full").message == MESSAGES["worker_crash"]


def test_nothing_of_the_exception_is_kept() -> None:
    """Its frames hold the failed step's tensors."""

    class Holder:
        pass

    def hold() -> tuple[weakref.ref[Holder], object]:
        kept = Holder()
        try:
            raise ValueError(kept)
        except ValueError as error:
            return weakref.ref(kept), (classify(error, phase="full"), user_traceback(error))

    gc.disable()
    try:
        reference, results = hold()
        assert results
        assert reference() is None
    finally:
        gc.enable()


def test_an_exception_that_cannot_be_printed() -> None:
    """A broken __str__ of the user's loses the text, not the trial."""

    class OddError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    assert classify(OddError(), phase="full").message == "OddError (in a training step)"


def test_a_long_text_is_cut() -> None:
    """One sentence stays one that can be read."""
    assert len(classify(ValueError("x" * 5000), phase="full").message) <= 200


@pytest.mark.parametrize(
    ("code", "kind", "said"),
    [
        (-signal.SIGSEGV, "process_crash", "SIGSEGV"),
        (139, "process_crash", "SIGSEGV"),
        (-signal.SIGKILL, "process_crash", "SIGKILL"),
        (-signal.SIGBUS, "shm", "SIGBUS"),
        (1, "process_crash", "exit code 1"),
        (0, "process_crash", "exit code 0"),
        (-200, "process_crash", "signal 200"),
    ],
)
def test_exit_statuses(code: int, kind: FailureKind, said: str) -> None:
    """Signals are named, however the status writes them."""
    found = classify_exit(code, oom_killed=False, stderr_tail="")
    assert (found.kind, said in found.message, bool(found.hint)) == (kind, True, True)


def test_a_process_killed_for_memory() -> None:
    """The kernel's counter decides."""
    assert classify_exit(-9, oom_killed=True, stderr_tail="").kind == "oom_host"


@pytest.mark.parametrize(
    ("tail", "kind"),
    [
        ("ERROR: Unexpected bus error encountered in worker. ... insufficient shared memory (shm).\n", "shm"),
        ("terminate called ...\n  what():  CUDA error: an illegal memory access was", "sticky_cuda"),
        ("terminate called after throwing an instance of 'std::bad_alloc'", "oom_host"),
        ("ValueError: cannot pickle this joke", "process_crash"),
    ],
)  # fmt: skip
def test_last_words_explain_an_abort(tail: str, kind: FailureKind) -> None:
    """What C++ printed before abort() is all there is."""
    found = classify_exit(-signal.SIGABRT, oom_killed=False, stderr_tail=tail)
    assert found.kind == kind
    assert found.traceback == tail.strip()


def test_an_exit_code_comes_with_the_last_line() -> None:
    """A Python error at the top of a script ends in its own line."""
    found = classify_exit(1, oom_killed=False, stderr_tail="Traceback ...\nImportError: no module\n")
    assert found.message.endswith("exit code 1: ImportError: no module")


def test_a_process_at_its_deadline_says_where_it_was() -> None:
    """All threads from the last mark on, whatever was written before; nothing where it wrote nothing."""
    stacks = 'Timeout (0:00:08)!\nThread 0x00 (most recent call first):\n  File "data.py", line 3 in read'
    assert stacks_at_deadline(f"a warning\nTimeout (0:00:02)!\n{stacks}\n") == stacks
    assert stacks_at_deadline("a warning\n") == ""
