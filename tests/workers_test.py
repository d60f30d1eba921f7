"""Work in other processes comes back in order, and no process outlives the one that started it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vaejax.datasets import workers
from vaejax.errors import DataError

ROOT = Path(__file__).parents[1]


def square(number: int) -> int:
    time.sleep(0.02 * (number % 3))  # so that some end before those that began earlier
    return number * number


def process_of(_: int) -> int:
    time.sleep(0.05)
    return os.getpid()


def refuse(number: int) -> int:
    if number in (3, 5):
        raise DataError(f"item {number}")
    return number


def die(number: int) -> int:
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def linger(folder: Path) -> None:
    (folder / str(os.getpid())).touch()
    time.sleep(60)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_results_come_in_the_order_of_the_items(count):
    assert list(workers.each(square, range(30), count)) == [number * number for number in range(30)]


def test_one_worker_is_this_process_and_several_are_others():
    assert set(workers.each(process_of, range(3), 1)) == {os.getpid()}
    found = set(workers.each(process_of, range(8), 2))
    assert os.getpid() not in found
    assert len(found) == 2
    assert list(workers.each(process_of, [], 2)) == []
    assert list(workers.each(process_of, [0], 0)) == [os.getpid()]  # not more of them than items


@pytest.mark.parametrize("count", [1, 2])
def test_the_first_error_in_the_order_of_items_is_raised(count):
    found = []
    with pytest.raises(DataError, match="item 3"):
        for number in workers.each(refuse, range(8), count):
            found.append(number)
    assert found == [0, 1, 2]


def test_a_killed_worker_is_told():
    with pytest.raises(DataError, match=r"one of 2 worker processes was killed.*data\.workers"):
        list(workers.each(die, range(8), 2))


def alive(number: int) -> bool:
    status = Path(f"/proc/{number}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def started(folder: Path, count: int) -> list[int]:
    deadline = time.monotonic() + 30
    while len(list(folder.iterdir())) < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return [int(path.name) for path in folder.iterdir()]


@pytest.mark.parametrize("with_signal", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_the_process_that_started_them(tmp_path, with_signal):
    code = (
        "import signal, sys; from pathlib import Path; from tests import workers_test; from vaejax.datasets import workers;"
        "signal.signal(signal.SIGINT, signal.default_int_handler);"  # in a background shell it is ignored, and inherited
        "list(workers.each(workers_test.linger, [Path(sys.argv[1])] * 2, 2))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )
    numbers = started(tmp_path, 2)
    assert all(map(alive, numbers))
    process.send_signal(with_signal)
    process.wait(60)
    deadline = time.monotonic() + 5
    while any(map(alive, numbers)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(alive, numbers))
