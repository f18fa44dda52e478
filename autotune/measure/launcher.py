"""How bench processes come to life and are ended: forked from a warm server on Linux, spawned elsewhere."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from multiprocessing import reduction
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any, Protocol

import psutil

from autotune.errors import EnvironmentFault
from autotune.measure.payload import Payload

_PRELOAD = ("numpy", "torch", "torch._dynamo", "torch.utils.data", "torchvision", "PIL.Image")
_OURS = ("autotune.measure.session", "autotune.measure.bench", "autotune.measure.probe")
_START_S = 120.0


class BenchProcess:
    """A running bench process: a connection, and a way to end it with all its workers."""

    def __init__(self, connection: Any, pid: int, wait: Any) -> None:
        self.connection = connection
        self.pid = pid
        self._wait = wait
        self._status: int | None = None

    def kill(self) -> int:
        """End it and everything it started; its exit code (negative: the signal)."""
        if self._status is None:
            self.connection.close()  # one so young that it leads no group yet ends by that
            _kill_group(self.pid)
            self._status = self._wait()
        return self._status

    def wait(self) -> int:
        """Its exit code, once it has ended by itself; its workers are ended too."""
        if self._status is None:
            self._status = self._wait()
            _kill_group(self.pid)
            self.connection.close()
        return self._status


def _kill_group(pid: int) -> None:
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        return
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for one in (*process.children(recursive=True), process):
            with contextlib.suppress(psutil.Error):
                one.kill()


class Launcher(Protocol):
    """Starts bench processes for one payload."""

    def launch(self) -> BenchProcess:
        """A fresh bench process."""
        ...

    def mark_log(self) -> None:
        """What is written from now on is what `log_tail` shows."""
        ...

    def log_tail(self) -> str:
        """The last lines that bench processes wrote to their standard error since the mark."""
        ...

    def close(self) -> None:
        """End whatever is left."""
        ...


class _Log:
    """Where bench processes write: their output must not mix with the answer on our standard output."""

    def __init__(self, path: Path | None) -> None:
        self._temporary = path is None
        if path is None:
            descriptor, name = tempfile.mkstemp(prefix="autotune-", suffix=".log")
            os.close(descriptor)
            path = Path(name)
        self._path = path
        self.file = path.open("ab")
        self._read = path.open("rb", buffering=0)
        if self._temporary and os.name == "posix":  # at once: a process that is ended cleans nothing up
            self._remove()
        self._marked = 0

    def mark(self) -> None:
        with contextlib.suppress(OSError):
            self._marked = os.fstat(self._read.fileno()).st_size

    def tail(self, characters: int = 4000) -> str:
        try:
            size = os.fstat(self._read.fileno()).st_size
            self._read.seek(max(self._marked, size - characters))
            return self._read.read().decode(errors="replace")
        except OSError:
            return ""

    def close(self) -> None:
        self.file.close()
        self._read.close()
        if self._temporary:
            self._remove()

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            self._path.unlink()


class ForkLauncher:
    """Forks from a server that has torch imported: a fresh process in a tenth of a second."""

    def __init__(self, payload: Payload, log: Path | None = None) -> None:
        self._payload: Payload | None = payload
        self._log = _Log(log)
        self._server: subprocess.Popen[bytes] | None = None
        self._connection: Any = None
        self._lock = threading.Lock()

    def _ensure(self) -> None:
        if self._server is not None:
            return
        ours, theirs = socket.socketpair()
        self._server = subprocess.Popen(
            [*_python("fork_server"), str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self._log.file,
            stderr=self._log.file,
            start_new_session=True,  # a Ctrl-C at the terminal is for the parent, which ends this in order
        )
        theirs.close()
        self._connection = Connection(ours.detach())
        self._connection.send(
            [name for name in _PRELOAD if name in sys.modules or name.startswith("torch")] + list(_OURS)
        )
        self._connection.send(("payload", self._payload))
        self._payload = None  # a dataset held in memory can be large, and the server has it now

    def launch(self) -> BenchProcess:
        """A fresh bench process."""
        with self._lock:
            try:
                self._ensure()
                ours, theirs = socket.socketpair()
                self._connection.send(("fork",))
                reduction.send_handle(self._connection, theirs.fileno(), None)
                theirs.close()
                if not self._connection.poll(_START_S):
                    raise EOFError
                pid = self._connection.recv()
            except (EOFError, OSError) as error:
                raise _no_start(self._log, error) from None
        return BenchProcess(Connection(ours.detach()), pid, lambda: self._reap(pid))

    def _reap(self, pid: int) -> int:
        with self._lock:
            try:
                self._connection.send(("wait", pid))
                return int(self._connection.recv())
            except (EOFError, OSError):
                return -signal.SIGKILL

    def mark_log(self) -> None:
        """What is written from now on is what `log_tail` shows."""
        self._log.mark()

    def log_tail(self) -> str:
        """The last lines of standard error since the mark."""
        return self._log.tail()

    def close(self) -> None:
        """End the server, and with it every bench process."""
        if self._server is not None:
            self._connection.close()
            try:
                self._server.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait()
            self._server = None
        self._log.close()


class SpawnLauncher:
    """Starts a new interpreter for each bench process: everywhere, at the price of importing torch again."""

    def __init__(self, payload: Payload, log: Path | None = None) -> None:
        self._payload = payload
        self._log = _Log(log)
        self._running: list[BenchProcess] = []

    def launch(self) -> BenchProcess:
        """A fresh bench process."""
        key = secrets.token_bytes(16)
        with Listener(authkey=key) as listener:
            process = subprocess.Popen(
                _python("bench"),
                stdin=subprocess.PIPE,
                stdout=self._log.file,
                stderr=self._log.file,
                start_new_session=True,
            )
            assert process.stdin is not None, "it is a pipe"
            process.stdin.write(f"{listener.address}\n{key.hex()}\n".encode())
            process.stdin.close()
            connection = _accept(listener, process, self._log)
        connection.send(self._payload)
        bench = BenchProcess(connection, process.pid, process.wait)
        self._running.append(bench)
        return bench

    def mark_log(self) -> None:
        """What is written from now on is what `log_tail` shows."""
        self._log.mark()

    def log_tail(self) -> str:
        """The last lines of standard error since the mark."""
        return self._log.tail()

    def close(self) -> None:
        """End every bench process."""
        for bench in self._running:
            bench.kill()
        self._running.clear()
        self._log.close()


def _accept(listener: Listener, process: subprocess.Popen[bytes], log: _Log) -> Any:
    accepted: list[Any] = []

    def accept() -> None:
        with contextlib.suppress(OSError, EOFError):
            accepted.append(listener.accept())

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    deadline = time.monotonic() + _START_S
    while thread.is_alive() and process.poll() is None and time.monotonic() < deadline:
        thread.join(0.1)
    if not accepted:
        process.kill()
        process.wait()
        raise _no_start(log, None)
    return accepted[0]


def _no_start(log: _Log, error: Exception | None) -> EnvironmentFault:
    return EnvironmentFault(
        "no bench process could be started",
        why=str(error) if error is not None and str(error) else "it ended before it answered",
        fix='look at its output below, or measure in this process with runner="in_process"',
        detail=log.tail(),
    )


_START = """
import importlib.util, sys
sys.path[:] = filter(None, sys.path)
spec = importlib.util.spec_from_file_location("autotune", {init!r})
sys.modules["autotune"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["autotune"])
from autotune.measure.{module} import main
main()
"""


def _python(module: str) -> list[str]:
    """An interpreter that runs a module of this very package, wherever the parent found it.

    Not by `-m`, which looks into the current directory first: a user's own `autotune.py` is none of ours. Nor
    by PYTHONPATH: it would put all that is installed beside this package before the standard library, old
    backports of parts of it among that, and be handed on to whatever the user's code starts.
    """
    init = str(Path(__file__).absolute().parents[1] / "__init__.py")
    return [sys.executable, "-c", _START.format(init=init, module=module)]


def default_launcher(payload: Payload, log: Path | None = None) -> Launcher:
    """Fork where it is safe with torch loaded, spawn elsewhere."""
    if sys.platform == "linux":
        return ForkLauncher(payload, log)
    return SpawnLauncher(payload, log)
