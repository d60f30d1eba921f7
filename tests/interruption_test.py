"""SIGTERM asks, and work stops at the next safe point."""

import os
import signal
import threading

import pytest

from vaejax.errors import Terminated
from vaejax.interruption import at_once, on_sigterm


@pytest.fixture
def outer():
    """A handler that stands outside of the block, and the signals it got."""
    got: list[int] = []

    def handler(number: int, _) -> None:
        got.append(number)

    previous = signal.signal(signal.SIGTERM, handler)
    yield handler, got
    signal.signal(signal.SIGTERM, previous)


def _terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_the_signal_only_asks(outer):
    with pytest.raises(Terminated), on_sigterm() as interruption:
        assert not interruption.requested
        _terminate()
        assert interruption.requested
        _terminate()  # twice is the same
        assert interruption.requested
    assert outer[1] == []


def test_the_handler_before_is_there_again_afterwards(outer):
    with on_sigterm():
        assert signal.getsignal(signal.SIGTERM) is not outer[0]
    assert signal.getsignal(signal.SIGTERM) is outer[0]
    with pytest.raises(ZeroDivisionError), on_sigterm():
        _ = 1 / 0
    assert signal.getsignal(signal.SIGTERM) is outer[0]
    _terminate()
    assert outer[1] == [signal.SIGTERM]


def test_nobody_asks_outside_of_the_main_thread(outer):
    seen = []

    def work() -> None:
        with on_sigterm() as interruption:
            seen.append(signal.getsignal(signal.SIGTERM) is outer[0])
            seen.append(interruption.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True, False]


def test_a_request_that_nobody_noticed_is_told_at_the_end(outer):
    done = []
    with pytest.raises(Terminated, match="SIGTERM"), on_sigterm():
        _terminate()
        done.append("to the end")
    assert done == ["to the end"]


def test_an_error_goes_before_a_request(outer):
    with pytest.raises(ZeroDivisionError), on_sigterm():
        _terminate()
        _ = 1 / 0


def test_at_once_is_at_once(outer):
    done = []
    with pytest.raises(Terminated, match="SIGTERM"), at_once():
        with pytest.raises(Terminated), on_sigterm():
            _terminate()
            done.append("asked")
        _terminate()
        done.append("not reached")
    assert done == ["asked"]
    assert signal.getsignal(signal.SIGTERM) is outer[0]
