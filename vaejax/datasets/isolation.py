"""Files that nobody vouches for: decoded in a process of its own, which ends where a file takes too much of it.

A decoder that never returns, takes all memory or crashes then costs one file, which counts as unreadable, and not the run.
It is no prison for a decoder that was taken over: that process may still read and write what its user may.
"""

import functools
import os
import resource
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

from vaejax.config import DataConfig
from vaejax.datasets import workers
from vaejax.errors import DataError

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")

_OUT_OF_MEMORY = 86  # exit status


class Exceeded(DataError):
    """A file took more than it may, or the process that decoded it died; the message is the bare reason."""


class Limits(NamedTuple):
    """What a file may take: seconds by the clock, and bytes of the address space of the process that decodes it."""

    seconds: float
    bytes: int


def reader(decode: Callable[Arguments, Answer], config: DataConfig) -> Callable[Arguments, Answer]:
    """`decode`, a function that a module names; where files are untrusted, in a process of its own (`isolated`)."""
    if not config.untrusted:
        return decode
    return functools.partial(isolated, Limits(config.file_seconds, round(config.file_memory * 2**30)), decode)


def data_set(read: Callable[..., Answer], config: DataConfig, path: Path, *more: Path) -> Answer:
    """`read(path, *more)` as by a `reader`, where the file is a whole data set: what goes wrong is nothing to skip.

    Raises:
        DataError: it took more than it may, with what to do.
    """
    try:
        return reader(read, config)(path, *more)
    except Exceeded as error:
        raise DataError(f"{path}: {error}. Raise data.file_seconds or data.file_memory, if you trust it.") from None


def isolated(limits: Limits, function: Callable[..., Answer], *arguments: Any) -> Answer:
    """`function(*arguments)`, called in another process, which is kept for the next call.

    Raises:
        Exceeded: it took more than `limits`, or the process died.
        Exception: what `function` raises.
    """
    key = (threading.get_ident(), limits)  # a thread waits for its own answers alone
    child = _running.get(key)
    if child is None or not child.process.is_alive():
        child = _running[key] = _started(limits)
    try:
        child.connection.send((function, arguments))
        answer = child.connection.recv()
    except (EOFError, ConnectionError):
        child.process.join()
        raise Exceeded(_reason(child.process.exitcode, limits)) from None
    except BaseException:  # an interruption: the next call would take this one's answer for its own
        del _running[key]
        child.process.kill()
        raise
    if isinstance(answer, Exception):
        raise answer
    return answer


class _Child(NamedTuple):
    process: ForkServerProcess
    connection: Connection


_running: dict[tuple[int, Limits], _Child] = {}


def _started(limits: Limits) -> _Child:
    ours, theirs = workers.context().Pipe()
    process = workers.context().Process(target=_serve, args=(theirs, limits), daemon=True)
    process.start()
    theirs.close()  # so that the end of the process is the end of the pipe
    return _Child(process, ours)


def _serve(connection: Connection, limits: Limits) -> None:
    """Answers calls until the pipe ends. SIGALRM ends the process, whatever it is doing: no handler, no lock, no thread."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (limits.bytes, limits.bytes))
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_REAL, limits.seconds)
        try:
            answer = _answer(function, arguments)
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            connection.send(answer)
        except MemoryError:
            os._exit(_OUT_OF_MEMORY)  # at once: what is left of the memory may not do for more


def _answer(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    try:
        return function(*arguments)
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:  # decoders turn all that they meet into an error of theirs
            if isinstance(cause, MemoryError):
                raise cause from None
            cause = cause.__cause__ or cause.__context__
        return error


def _reason(status: int | None, limits: Limits) -> str:
    if status == -signal.SIGALRM:
        return f"took longer than {limits.seconds:g} s"
    if status == _OUT_OF_MEMORY:
        return f"needed more than {limits.bytes / 2**30:.3g} GiB"
    return f"killed its reader ({signal.Signals(-status).name if status and status < 0 else f'status {status}'})"
