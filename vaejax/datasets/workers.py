"""Work divided among processes of this machine: one function, many items, results in the order of the items."""

import collections
import concurrent.futures
import functools
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from typing import Any, TypeVar

from vaejax.errors import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")


class Lost(DataError):
    """A process was killed from outside; what was done before is done."""


_AHEAD = 4  # items a process that may wait: enough to keep it busy, and few enough to keep memory flat


Driver = Callable[[Callable[[Any], None], Sequence[Any], int], Iterator[None]]
"""How a function is called for many items: `each`, or `vaejax.datasets.beam.each`."""


@functools.cache
def context() -> ForkServerContext:
    """What starts new processes: quickly, from one that has imported this package, and has nothing else of this process."""
    context = multiprocessing.get_context("forkserver")
    decoders = [f"{__package__}.{name}" for name in ("dicom", "nifti")] if "pydicom" in sys.modules else []
    context.set_forkserver_preload([__package__, *decoders])
    return context


def each(function: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Iterator[Result]:
    """`function` of every item, in `workers` processes (0: one a processor); 1: in this one, like `map`.

    Where there are several, `function`, items and results are pickled, the function once a process. Processes are new ones,
    not forks of this one, whose threads they would not have; and they end when this process does, however it ends.

    Raises:
        Lost: a process was killed.
        Exception: what `function` raises first, in the order of items.
    """
    workers = min(workers or os.cpu_count() or 1, len(items))
    if workers <= 1:
        yield from map(function, items)
        return
    theirs, ours = context().Pipe(duplex=False)
    waiting: collections.deque[concurrent.futures.Future] = collections.deque()
    with concurrent.futures.ProcessPoolExecutor(workers, context(), _begin, (theirs, function)) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(_call, item))
                if len(waiting) > _AHEAD * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise Lost(
                f"one of {workers} worker processes was killed, perhaps for want of memory. The same command goes on from what "
                f"is done; choose fewer data.workers than {workers} if it happens again."
            ) from error
        finally:
            ours.close()  # ends those that are still at work, where this one was stopped
            pool.shutdown(cancel_futures=True)


_function: Callable[[Any], Any]
"""What a worker process was started for."""


def _begin(lifeline: Connection, function: Callable[[Any], Any]) -> None:
    global _function
    _function = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the first one decides
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()


def _end_with(lifeline: Connection) -> None:
    """Nothing is ever sent: it is readable when its other end is closed, by the first process or by its death."""
    lifeline.poll(None)
    os._exit(1)


def _call(item: Any) -> Any:
    return _function(item)
