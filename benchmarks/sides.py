"""Sides: programs that do the same work, timed in turn, each in a process of its own that sleeps between its turns.

Run it on a machine that does nothing else. Taking turns evens out slow drifts, not contention: a program that divides its work
evenly among all cores waits for the slowest core, and loses far more to a busy neighbour than one whose threads take work as
they get to it. The processor time beside the wall time shows it, and the load before the start is printed.
"""

import contextlib
import datetime
import multiprocessing
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

LEAD = 8
"""Untimed steps at the start of a side's turn: its caches fill, and batches made ready in the meantime are used up."""


Run = Callable[[int], None]
"""Does so many training steps, and returns when the last one is done."""


class Side(NamedTuple):
    """One of the programs compared."""

    name: str
    build: Callable[[], Run]
    """Called in the side's own process, so it can be pickled: a module's function, or a `functools.partial` of one."""


class Times(NamedTuple):
    """Seconds a step, one number a round."""

    wall: list[float]
    processor: list[float]
    """Of all threads together."""

    @property
    def median(self) -> float:
        """Wall time a step."""
        return statistics.median(self.wall)


def interleave(sides: Sequence[Side], rounds: int, steps: int) -> dict[str, Times]:
    """Times every side, by name. What comes before the first round, building and compiling, is not counted."""
    times = {side.name: Times([], []) for side in sides}
    with contextlib.ExitStack() as stack:
        started = {side.name: stack.enter_context(_start(side)) for side in sides}
        for _ in range(rounds):
            for name, connection in started.items():
                connection.send(steps)
                wall, processor = connection.recv()
                times[name].wall.append(wall)
                times[name].processor.append(processor)
    return times


def table(times: dict[str, Times], batch_size: int) -> str:
    """Markdown: medians over the rounds, the range of the wall time, and the images a second of its median."""
    lines = ["| side | ms a step | range over rounds | processor ms a step | images/s |", "|---|---:|---:|---:|---:|"]
    for name, (wall, processor) in times.items():
        median, low, high, work = (1e3 * x for x in (times[name].median, min(wall), max(wall), statistics.median(processor)))
        lines.append(f"| {name} | {median:.2f} | {low:.2f} to {high:.2f} | {work:.2f} | {1e3 * batch_size / median:,.0f} |")
    return "\n".join(lines)


def circumstances(packages: Sequence[str]) -> str:
    """What a number depends on: machine, its load up to now, versions, date and command. To be asked before the clock runs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    python = ".".join(str(part) for part in sys.version_info[:3])
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    return "\n".join(
        [
            f"Machine: {_processor()}, {cores} cores, {memory:.0f} GiB; load in the minute before: {os.getloadavg()[0]:.1f}.",
            f"Versions: Python {python}, {versions}.",
            f"Date: {datetime.date.today()}. Command: `python {shlex.join(sys.argv)}`.",
        ]
    )


@contextlib.contextmanager
def _start(side: Side) -> Iterator[Connection]:
    """A process that is ready to take turns, until the connection to it is closed."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_take_turns, args=(side.build, theirs))
    process.start()
    theirs.close()  # the process has the only other end, so that its death ends the wait below
    try:
        ours.recv()
        yield ours
    finally:
        ours.close()
        process.join()


def _take_turns(build: Callable[[], Run], connection: Connection) -> None:
    """Answers each number of steps with the seconds a step, by the wall and of all threads together."""
    run = build()
    run(LEAD)
    connection.send("ready")
    with contextlib.suppress(EOFError):  # the other end was closed
        while True:
            steps = connection.recv()
            run(LEAD)
            wall, processor = time.perf_counter(), time.process_time()
            run(steps)
            connection.send(((time.perf_counter() - wall) / steps, (time.process_time() - processor) / steps))


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown processor"
