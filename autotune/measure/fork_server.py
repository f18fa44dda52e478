"""A small process that has torch imported and forks a bench process on demand.

Importing torch takes seconds; the finals want a fresh process for each block. It never touches CUDA and
never brings a workload up, so what it forks is clean. Linux only: elsewhere bench processes are spawned.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import traceback
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any


def main() -> None:
    """Serve fork requests on the file descriptor given as first argument until it closes."""
    connection = Connection(int(sys.argv[1]))
    del sys.argv[1:]  # code of the user's that is run here may parse its arguments: none are meant for it
    children: set[int] = set()
    held: list[Any] = []
    for name in connection.recv():
        with contextlib.suppress(Exception):  # a module that does not import here fails where it is used
            importlib.import_module(name)
    try:
        while True:
            request = connection.recv()
            if request[0] == "payload":
                held[:] = [request[1]]
            elif request[0] == "fork":
                descriptor = reduction.recv_handle(connection)
                children.add(_fork(connection, descriptor, held))
            elif request[0] == "wait":
                connection.send(_reap(request[1]))
                children.discard(request[1])
    except (EOFError, OSError):
        pass
    finally:
        for pid in children:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)


def _fork(connection: Connection, descriptor: int, held: list[Any]) -> int:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setsid()
            connection.close()
            from autotune.measure.bench import serve

            serve(Connection(descriptor), held)
            status = 0
        except BaseException:
            with contextlib.suppress(OSError, ValueError):
                traceback.print_exc()  # the process ends here, and its last words are all that tells why
        finally:
            # On a full disk they raise, and what was forked must not go on as a server.
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError):
                    stream.flush()
            os._exit(status)
    os.close(descriptor)
    connection.send(pid)
    return pid


def _reap(pid: int) -> int:
    """Exit code of a bench process; negative for the signal that ended it, as in `subprocess`."""
    try:
        _, status = os.waitpid(pid, 0)
    except ChildProcessError:
        return 0
    return os.waitstatus_to_exitcode(status)
