"""SIGTERM as a request where work is resumed, and at once where it is done again."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

from vaejax.errors import Terminated

_STOPPED = "stopped by SIGTERM; run the same command again."


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


@contextlib.contextmanager
def on_sigterm() -> Iterator[Interruption]:
    """Within the block SIGTERM only asks; outside of the main thread, where no handler can be set, nobody asks.

    Raises:
        Terminated: at the end of a block that was asked to stop and did not notice.
    """
    interruption = Interruption()
    with _handling(interruption.request):
        yield interruption
    if interruption.requested:
        raise Terminated(_STOPPED)


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Within the block SIGTERM raises Terminated wherever work stands: for work that is not resumed but done again."""

    def stop() -> None:
        raise Terminated(_STOPPED)

    with _handling(stop):
        yield


@contextlib.contextmanager
def _handling(respond: Callable[[], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: respond())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
