"""The bench process: brings one workload up and runs trials on it until it is told to stop.

It is no daemon (it starts DataLoader workers), leads a process group of its own (so that one signal ends it
with all its workers) and leaves no trial running past its deadline, even when nobody is left to end it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import pickle
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

from autotune.errors import AutotuneError
from autotune.trial import Failure, TrialSpec

_GRACE_S = 0.25
"""Past the deadline, before the process says where it hangs and ends: whoever asked has given up by then."""
_STDERR = 2
"""The descriptor itself: user code may have put something else in the place of `sys.stderr`."""


def serve(connection: Connection, held: list[Any]) -> None:
    """Answer requests until the other end closes. Replies are (`ok` | `error` | `crash`, value).

    Args:
        connection: to whoever asks.
        held: the payload alone, and the only reference to it: emptied once the workload is up. The bytes of a
            dataset in memory would be counted with the dataset itself, as held by training.
    """
    from autotune.measure.payload import enter

    enter(held[0])
    session: Any = None
    while True:
        try:
            request, argument = connection.recv()
        except (EOFError, OSError):
            return
        if request == "stop":
            return
        try:
            # Making the workload counts, and is the user's own code: what hangs there is to be told as well.
            with _ended_after((argument if request == "describe" else argument.timeout_s) + _GRACE_S):
                if session is None:
                    session = _session(held[0])
                    held.clear()
                reply = "ok", _answer(session, request, argument)
        except AutotuneError as error:
            reply = ("error", error)
        except Exception as error:  # the parent must hear of it, whatever it is
            import traceback

            reply = ("crash", f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
        _send(connection, reply)


def _session(payload: Any) -> Any:
    from autotune.measure import host_memory
    from autotune.measure.flags import read_user_flags
    from autotune.measure.payload import unpack
    from autotune.measure.probe import machine_facts
    from autotune.measure.session import Session
    from autotune.measure.signals import calm_worker_deaths

    calm_worker_deaths()
    host_memory.settle()
    started = time.perf_counter()
    workload, parts = unpack(payload)
    # What lives now lives as long as the process: collecting it again and again would disturb what is timed.
    gc.collect()
    gc.freeze()
    making_s = time.perf_counter() - started
    return Session(workload, parts, payload.user_flags or read_user_flags(), machine_facts, making_s=making_s)


def _answer(session: Any, request: str, argument: Any) -> Any:
    if request == "describe":
        return session.describe()
    if request == "gradients":
        return session.probe_gradients(argument)
    if request == "numerics":
        return session.compare_numerics(argument)
    if request == "pilot":
        return session.pilot(argument)
    assert isinstance(argument, TrialSpec), "the only other request is a trial"
    return session.run(argument)


@contextlib.contextmanager
def _ended_after(seconds: float) -> Iterator[None]:
    """At the deadline the process ends, even when it hangs in C code and its parent is gone.

    By a thread that needs no interpreter, and not by a signal: alarms are the user's code's own.
    """
    faulthandler.dump_traceback_later(seconds, exit=True, file=_STDERR)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def _send(connection: Connection, reply: tuple[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError, OSError):
        try:
            connection.send(reply)
        except (TypeError, AttributeError, ValueError, pickle.PicklingError) as error:  # a detail of it
            connection.send(("crash", f"a reply could not be sent: {error}"))


def failure_of_crash(text: str) -> Failure:
    """A crash of the bench itself, as the outcome of the trial it happened in."""
    first, _, rest = text.partition("\n")
    return Failure(kind="process_crash", message=f"the trial ended with {first}", traceback=rest)


def main() -> None:
    """Entry of a bench process that was spawned: address and key come on standard input."""
    from multiprocessing.connection import Client

    address, key = sys.stdin.readline().strip(), bytes.fromhex(sys.stdin.readline().strip())
    with Client(address, authkey=key) as connection:
        serve(connection, [connection.recv()])
