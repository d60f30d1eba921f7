"""Sides: programs that do the same work, timed in turn, each in a process of its own that sleeps between its turns.

Run it on a machine that does nothing else. Taking turns evens out slow drifts, not contention: a program that divides its work
evenly among all cores waits for the slowest core, and loses far more to a busy neighbour than one whose threads take work as
they get to it. The processor time beside the wall time shows it, and the load before the start is printed.
"""

import contextlib
import datetime
import multiprocessing
import os
import resource
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
    huge_pages: bool = False
    """Whether its process asks for large arrays in huge pages, as the command `vaejax` does and Python alone does not."""


class Times(NamedTuple):
    """Seconds a step, one number a round, and what a side cost beside them."""

    wall: list[float]
    processor: list[float]
    """Of all threads together."""
    start: float
    """Seconds of building, compiling and the first steps; imports not included."""
    memory: list[float]
    """Peak resident MiB after each round, beyond what the process held when all was imported."""

    @property
    def median(self) -> float:
        """Wall time a step."""
        return statistics.median(self.wall)


class Ratio(NamedTuple):
    """One row of the table of `make bench`."""

    what: str
    value: float
    """How many times the peer's speed vaejax has."""
    peer: str
    aim: float
    note: str = ""
    """Such as the shares of the machine's ceiling, and the memory."""


def interleave(sides: Sequence[Side], rounds: int, steps: int) -> dict[str, Times]:
    """Times every side, by name. What comes before the first round, building and compiling, is told apart."""
    times = {}
    with contextlib.ExitStack() as stack:
        started = {}
        for side in sides:
            started[side.name], seconds = stack.enter_context(_start(side))
            times[side.name] = Times([], [], seconds, [])
        for _ in range(rounds):
            for name, connection in started.items():
                connection.send(steps)
                wall, processor, memory = connection.recv()
                times[name].wall.append(wall)
                times[name].processor.append(processor)
                times[name].memory.append(memory)
    return times


def table(times: dict[str, Times], batch_size: int) -> str:
    """Markdown: medians over the rounds, the range of the wall time, images a second of its median, start and memory."""
    lines = [
        "| side | ms a step | range over rounds | processor ms a step | images/s | start, s | peak MiB |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, (wall, processor, start, memory) in times.items():
        median, low, high, work = (1e3 * x for x in (times[name].median, min(wall), max(wall), statistics.median(processor)))
        lines.append(
            f"| {name} | {median:.2f} | {low:.2f} to {high:.2f} | {work:.2f} | {1e3 * batch_size / median:,.0f} "
            f"| {start:.1f} | {max(memory):.0f} |"
        )
    return "\n".join(lines)


def ratios(rows: Sequence[Ratio]) -> str:
    """Markdown: what was measured against what."""
    lines = ["| what | vaejax / peer | aim | peer | |", "|---|---:|---:|---|---|"]
    return "\n".join(lines + [f"| {row.what} | {row.value:.2f} | {row.aim:g} | {row.peer} | {row.note} |" for row in rows])


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
def _start(side: Side) -> Iterator[tuple[Connection, float]]:
    """A process that is ready to take turns, until the connection to it is closed; and the seconds it took to be."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_take_turns, args=(side.build, theirs))
    os.environ["GLIBC_TUNABLES"] = f"glibc.malloc.hugetlb={int(side.huge_pages)}"  # read as a process starts
    process.start()
    theirs.close()  # the process has the only other end, so that its death ends the wait below
    try:
        yield ours, ours.recv()
    finally:
        ours.close()
        process.join()


def _take_turns(build: Callable[[], Run], connection: Connection) -> None:
    """Answers each number of steps with the seconds a step, by the wall and of all threads together, and the peak memory."""
    before, start = _peak(), time.perf_counter()
    run = build()
    run(LEAD)
    connection.send(time.perf_counter() - start)
    with contextlib.suppress(EOFError):  # the other end was closed
        while True:
            steps = connection.recv()
            run(LEAD)
            wall, processor = time.perf_counter(), time.process_time()
            run(steps)
            wall, processor = (time.perf_counter() - wall) / steps, (time.process_time() - processor) / steps
            connection.send((wall, processor, _peak() - before))


def _peak() -> float:
    """The most memory that this process has held, MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux: `getrusage` would count what the parent held when it started this process
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown processor"
