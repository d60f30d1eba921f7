"""SIGTERM as a request: work goes on to the next safe point, saves, and stops."""

import contextlib
import signal
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

from vaejax.errors import Terminated

Item = TypeVar("Item")


class Interruption:
    """Whether the process was asked to stop."""

    def __init__(self) -> None:
        """Starts without a request."""
        self._requested = threading.Event()

    @property
    def requested(self) -> bool:
        """True from the signal on."""
        return self._requested.is_set()

    def request(self) -> None:
        """Asks for a stop at the next safe point."""
        self._requested.set()

    def watch(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, until a stop is asked for.

        Raises:
            Terminated: before the next item, once it is.
        """
        for item in items:
            if self.requested:
                raise Terminated("stopped by SIGTERM; the same command goes on from here.")
            yield item


@contextlib.contextmanager
def on_sigterm() -> Iterator[Interruption]:
    """Within the block SIGTERM only asks; outside of the main thread, where no handler can be set, nobody asks."""
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: interruption.request())
    try:
        yield interruption
    finally:
        signal.signal(signal.SIGTERM, previous)
