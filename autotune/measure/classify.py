"""Which kind of failure an exception, an exit status or a process's last words are. Pure functions.

torch tells most failures apart by text alone, so the texts stand here, and only here. Nothing of the
exception is kept: it would hold the failed step's tensors, and with them the memory that has to become free.
"""

from __future__ import annotations

import errno
import pickle
import re
import signal
import traceback
from collections.abc import Iterator
from dataclasses import dataclass

from autotune.errors import AutotuneError, NonFiniteLossError, NotPicklableError
from autotune.trial import Failure, FailureKind

MESSAGES: dict[FailureKind, str] = {
    "oom_device": "the device ran out of memory",
    "oom_host": "the machine ran out of memory",
    "shm": "shared memory (/dev/shm) is full",
    "file_descriptors": "the limit of open files is reached",
    "worker_crash": "a DataLoader worker ended without an exception",
    "process_crash": "the process that runs the trial ended",
    "pickle": "something cannot be sent to another process",
    "timeout": "the trial did not end in time",
    "sticky_cuda": "the device reported an error after which its process cannot go on",
    "non_finite": "the loss became NaN or infinite",
    "compile_error": "the model cannot be compiled",
    "user_error": "the workload's own code raised",
}
"""One sentence for each kind, where nothing more precise is known."""

HINTS: dict[FailureKind, str] = {
    "oom_device": "use a smaller batch, or end other processes that hold memory of the device",
    "oom_host": "use fewer workers, a smaller prefetch_factor or a smaller batch, "
    "or allow the container more memory",
    "shm": "use fewer workers or a smaller prefetch_factor, or give the container more shared memory "
    "(docker run --shm-size=8g, or --ipc=host)",
    "file_descriptors": "raise the limit (ulimit -n 65536), or call "
    'torch.multiprocessing.set_sharing_strategy("file_system") before training',
    "worker_crash": "load the dataset once with num_workers=0: it fails there with its own error",
    "process_crash": "run one training step under `python -X faulthandler` to see where it ends",
    "pickle": "define dataset, model and their functions at the top level of a module, without lambdas",
    "timeout": "look for a dataset that waits for a lock or the network; a library that holds threads "
    "(OpenCV, tokenizers) can block workers started by fork",
    "sticky_cuda": "run one step with CUDA_LAUNCH_BLOCKING=1 to see which call fails",
    "non_finite": "lower the learning rate, or keep float32",
    "compile_error": "train without compiling, or see the traceback for the operation that is not supported",
    "user_error": "the traceback shows where; the same step fails outside of the tuner too",
}
"""The way out for each kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Finding:
    """What a text or a class gives away; empty where the kind's own words will do."""

    kind: FailureKind
    message: str = ""
    hint: str = ""


def _rule(
    kind: FailureKind, pattern: str, message: str = "", hint: str = ""
) -> tuple[re.Pattern[str], _Finding]:
    return re.compile(pattern), _Finding(kind=kind, message=message, hint=hint)


# The order matters: a worker that dies of a full /dev/shm speaks of its signal too.
_RULES = (
    _rule("compile_error", r"out of resource: |No valid triton configs"),
    _rule("file_descriptors", r"Too many open files|received \d+ items of ancdata"),
    _rule(
        "shm",
        r"insufficient shared memory \(shm\)|out of shared memory\. Please|killed by signal: Bus error"
        r"|unable to (write to|resize|allocate shared memory\(shm\) for) file </torch_"
        r"|(</torch_|/dev/shm).*No space left on device|No space left on device.*/dev/shm",
    ),
    _rule(
        "oom_host",
        r"DefaultCPUAllocator: (can't allocate|not enough) memory|Cannot allocate memory|std::bad_alloc"
        r"|(?m:^MemoryError\b|^Caught \w*MemoryError in )",
    ),
    _rule(
        "oom_device",
        r"(?i:\b(cuda|hip|xpu|mps|gpu)\b\]?:?( error:| backend)? out of memory)|ERROR_OUT_OF_MEMORY"
        r"|C(UBLAS|UDNN)_STATUS_ALLOC_FAILED|(HIPBLAS_STATUS|miopenStatus)_?(ALLOC_FAILED|AllocFailed)",
    ),
    _rule(
        "oom_device",
        r"cuDNN error: CUDNN_STATUS_NOT_SUPPORTED",
        "cuDNN found no way to run a layer, most often for lack of device memory",
    ),
    _rule(
        "user_error",
        r"Cannot re-initialize CUDA in forked subprocess",
        "the dataset uses CUDA inside a worker process",
        "return CPU tensors from the dataset and move the batch in the training loop",
    ),
    _rule(
        "sticky_cuda",
        r"device-side assert",
        "a check inside a device kernel failed",
        "most often an index out of range, such as a label that is not below the number of classes; "
        "run one step on the CPU to see it",
    ),
    _rule(
        "sticky_cuda",
        r"\b(CUDA|HIP) error: |C(UBLAS|UDNN)_STATUS_(EXECUTION_FAILED|INTERNAL_ERROR|MAPPING_ERROR)",
    ),
    _rule(
        "worker_crash",
        r"before the\s+current process has finished its bootstrapping phase",
        "workers import the training script, which starts training again",
        'put what starts training below `if __name__ == "__main__":`',
    ),
    _rule("worker_crash", r"DataLoader worker \(pid.*\) (exited unexpectedly|is killed by signal)"),
    _rule("timeout", r"DataLoader timed out after", "the DataLoader's own timeout passed without a batch"),
    _rule("non_finite", r"returned nan values in its \d+th output"),
    _rule("pickle", r"(?i:can't|cannot) (pickle|get attribute|get local object)"),
)

_FATAL_KINDS: frozenset[FailureKind] = frozenset(
    {"shm", "file_descriptors", "oom_host", "oom_device", "sticky_cuda", "worker_crash"}
)
"""What a process's last words may explain: the rest is told by an exception or not at all."""

_PHASES = {
    "full": "in a training step",
    "compute": "in a training step on a held batch",
    "loader": "while batches were loaded",
}
_FROM_WORKER = re.compile(r"(?m:^Caught \S+ in (DataLoader worker process \d+|pin memory thread[^.\n]*))")
_FRAME = re.compile(r'^ *File "([^"]+)", line \d+')
_LIBRARY = re.compile(r"[/\\](site|dist)-packages[/\\]torch[/\\]|[/\\]autotune[/\\]measure[/\\]|^<frozen ")
_ASKED_FOR = re.compile(r"(?i:tried to allocate) ([\d.]+ ?\w+)")
_MAX_MESSAGE = 200
_MAX_TRACEBACK = 8000


def failure(kind: FailureKind, *, message: str = "", hint: str = "", traceback: str = "") -> Failure:
    """A Failure with the kind's own sentence and way out where none are given."""
    return Failure(
        kind=kind,
        message=message or MESSAGES[kind],
        hint=hint or HINTS[kind],
        traceback=traceback[-_MAX_TRACEBACK:],
    )


def classify(exception: BaseException, *, phase: str, oom_killed: bool | None = None) -> Failure:
    """The failure that an exception is.

    Args:
        exception: what left the workload's code; neither it nor a frame of it is kept.
        phase: what was being done: a trial's mode, or a phrase such as `in the first step`.
        oom_killed: whether the kernel killed a process of this group for memory meanwhile; None: not known.
    """
    if isinstance(exception, AutotuneError):
        return _from_ours(exception)
    try:
        return _classify(exception, phase, oom_killed)
    except RuntimeError as late:
        # torch's SIGCHLD handler raises wherever the main thread is when a worker dies, so here as well.
        return _classify(late, phase, oom_killed)


def _classify(exception: BaseException, phase: str, oom_killed: bool | None) -> Failure:
    text, full = _text(exception), user_traceback(exception)
    told = _said(text)
    if "exited unexpectedly" in text and exception.__cause__ is not None:
        told += f"\n{_text(exception.__cause__)}"  # torch puts the worker's signal there
    found = _certain(exception) or _match(told) or _likely(exception)
    raised = _raised(exception, text)
    if found is None:
        where = _FROM_WORKER.search(text)
        doing = f"in {where[1]}" if where else _PHASES.get(phase, phase)
        return failure("user_error", message=_clipped(f"{raised} ({doing})"), traceback=full)
    if found.kind == "worker_crash":
        found = _worker_crash(told, found, oom_killed)
    message = found.message or _with_size(found.kind, text)
    if found.kind in ("compile_error", "pickle"):
        message = _clipped(f"{message}: {raised}")
    return failure(found.kind, message=message, hint=found.hint, traceback=full)


def classify_exit(exitcode_or_signal: int, *, oom_killed: bool, stderr_tail: str) -> Failure:
    """The failure of a process that ended without an answer.

    Args:
        exitcode_or_signal: its exit code, or minus a signal's number; 128 plus the number is read so too.
        oom_killed: whether the kernel killed a process of this group for memory meanwhile.
        stderr_tail: the last that it wrote to stderr in this trial.
    """
    shown, number = stderr_tail.strip(), _signal_number(exitcode_or_signal)
    if oom_killed:
        return failure("oom_host", message="the kernel killed the trial for memory", traceback=shown)
    found = _match(shown, kinds=_FATAL_KINDS)
    if found is not None:
        message = found.message or _with_size(found.kind, shown)
        return failure(found.kind, message=message, hint=found.hint, traceback=shown)
    if number is None:
        ended = f"the process that runs the trial ended with exit code {exitcode_or_signal}"
        last = shown.splitlines()[-1:]
        return failure("process_crash", message=_clipped(": ".join([ended, *last])), traceback=shown)
    name = _signal_name(number)
    if name == "SIGBUS":
        return failure(
            "shm", message="the trial was ended by SIGBUS, as a full /dev/shm does", traceback=shown
        )
    from_outside = "another program or a memory watchdog ended it; look for it in the system's log"
    return failure(
        "process_crash",
        message=f"the process that runs the trial was ended by {name}",
        hint=from_outside if name in ("SIGKILL", "SIGTERM") else "",
        traceback=shown,
    )


def user_traceback(exception: BaseException) -> str:
    """The exception's traceback with the user's own frames, from the worker where it was raised in one.

    Frames of torch and of the measuring code are left out where others remain.
    """
    text = _text(exception)
    _, original, inside = text.partition("\nOriginal ")
    if not (original and _FROM_WORKER.search(text)):
        lines = traceback.format_exception(type(exception), exception, exception.__traceback__)
        inside = "".join(lines)
    return _without_library_frames(inside).strip()[-_MAX_TRACEBACK:]


def stacks_at_deadline(stderr: str) -> str:
    """Where a process that reached its deadline was, thread by thread, from what it wrote; empty without.

    The frames of torch stay: a loader that waits for a worker that will not answer is seen by them alone.
    """
    _, marker, stacks = stderr.rpartition("Timeout (")
    return f"{marker}{stacks}".strip()[-_MAX_TRACEBACK:] if marker else ""


def _from_ours(error: AutotuneError) -> Failure:
    kind: FailureKind = "user_error"
    if isinstance(error, NonFiniteLossError):
        kind = "non_finite"
    elif isinstance(error, NotPicklableError):
        kind = "pickle"
    return failure(kind, message=error.what, hint=error.fix, traceback=error.detail)


def _certain(exception: BaseException) -> _Finding | None:
    """What class, errno or place say, whatever the text."""
    if isinstance(exception, MemoryError):
        return _Finding(kind="oom_host")
    names = {cls.__name__ for cls in type(exception).__mro__ if cls.__module__.split(".")[0] == "torch"}
    if "OutOfMemoryError" in names:
        return _Finding(kind="oom_device")
    files = {frame.f_code.co_filename for frame, _ in traceback.walk_tb(exception.__traceback__)}
    places = {file.replace("\\", "/").rpartition("multiprocessing/")[2] for file in files}
    # A batch's memory is fetched from the worker that made it, and there is nobody to ask any more.
    if (
        isinstance(exception, (ConnectionError, EOFError, FileNotFoundError))
        and "resource_sharer.py" in places
    ):
        return _Finding(kind="worker_crash")
    # Queues and locks of multiprocessing lie in /dev/shm, and their error names no file.
    if getattr(exception, "errno", None) == errno.ENOSPC and places & {"synchronize.py", "heap.py"}:
        return _Finding(kind="shm")
    return None


def _likely(exception: BaseException) -> _Finding | None:
    """What the class says where the text was silent."""
    classes = type(exception).__mro__
    if any(cls.__module__.startswith(("torch._dynamo", "torch._inductor", "triton")) for cls in classes):
        return _Finding(kind="compile_error")
    if any(cls.__name__ == "AcceleratorError" and cls.__module__.startswith("torch") for cls in classes):
        return _Finding(kind="sticky_cuda")
    return _Finding(kind="pickle") if isinstance(exception, pickle.PickleError) else None


def _match(text: str, kinds: frozenset[FailureKind] | None = None) -> _Finding | None:
    for pattern, finding in _RULES:
        if (kinds is None or finding.kind in kinds) and pattern.search(text):
            return finding
    return None


def _said(text: str) -> str:
    """The text without a traceback's source lines: code that mentions an error is not the error."""
    if not _FROM_WORKER.search(text):
        return text
    return "\n".join(line for line in text.splitlines() if not line.startswith("  "))


def _worker_crash(told: str, found: _Finding, oom_killed: bool | None) -> _Finding:
    """A worker killed outright is a memory kill, unless the kernel's counter says that it was not."""
    if oom_killed:
        return _Finding(kind="oom_host", message="the kernel killed a DataLoader worker for memory")
    if oom_killed is None and "killed by signal: Killed" in told:
        message = "a DataLoader worker was killed, most likely for memory"
        return _Finding(kind="oom_host", message=message)
    how = re.search(r"killed by signal: (\w[\w ]*\w)|(exit code \d+)", told)
    if found.message or how is None:
        return found
    return _Finding(kind="worker_crash", message=f"a DataLoader worker ended: {how[1] or how[2]}")


def _raised(exception: BaseException, text: str) -> str:
    """`KeyError: 'label'`: the error in a line, as the process that raised it would print it."""
    lines = text.strip().splitlines()
    if not _FROM_WORKER.search(text):
        return ": ".join([type(exception).__name__, *lines[:1]])
    last_frame = max((i for i, line in enumerate(lines) if _FRAME.match(line)), default=0)
    after = [line for line in lines[last_frame + 1 :] if line and not line.startswith(" ")]
    return after[0] if after else type(exception).__name__


def _with_size(kind: FailureKind, text: str) -> str:
    asked = _ASKED_FOR.search(text)
    if kind not in ("oom_device", "oom_host") or asked is None:
        return MESSAGES[kind]
    return f"{MESSAGES[kind]} when asked for {asked[1]}"


def _without_library_frames(text: str) -> str:
    """The traceback without torch's frames, each of which is a `File` line and what is indented below."""
    kept = list(_own_lines(text.splitlines()))
    return "\n".join(kept) if any(_FRAME.match(line) for line in kept) else text


def _own_lines(lines: list[str]) -> Iterator[str]:
    skipping = False
    for line in lines:
        frame = _FRAME.match(line)
        if frame is not None:
            skipping = _LIBRARY.search(frame[1]) is not None
        elif not line.startswith("    "):
            skipping = False
        if not skipping:
            yield line


def _signal_number(code: int) -> int | None:
    if code < 0:
        return -code
    return code - 128 if 128 < code < 128 + 65 else None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _clipped(text: str) -> str:
    return text if len(text) <= _MAX_MESSAGE else text[: _MAX_MESSAGE - 3] + "..."


def _text(exception: BaseException) -> str:
    try:
        return str(exception)
    except Exception:  # a __str__ of the user's own that is broken
        return ""
