"""What a person sees while they wait: a bar on a terminal, a line now and then elsewhere."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vaejax import hosts

Item = TypeVar("Item")

console = Console(stderr=True, highlight=False, soft_wrap=True)
"""Where all that is said to a person goes; standard output is for results."""


SECONDS_BETWEEN_LINES = 10.0
"""Where there is no terminal, and so no bar."""


@contextlib.contextmanager
def bar(title: str, total: int, done: int = 0) -> Iterator[Callable[[int, str], None]]:
    """Shows progress with elapsed and remaining time; the function given takes the count done so far and a few words."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[words]}"),
    )
    if not hosts.first():
        yield lambda count, words: None
        return
    if not console.is_terminal:
        yield _lines(title, total)
        return
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=total, completed=done, words="")
        yield lambda count, words: progress.update(task, completed=count, words=words)


def _lines(title: str, total: int) -> Callable[[int, str], None]:
    last = time.monotonic()

    def show(count: int, words: str) -> None:
        nonlocal last
        if time.monotonic() - last > SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            console.print(f"{title} {count}/{total} {words}")

    return show


def track(items: Iterable[Item], title: str, total: int) -> Iterator[Item]:
    """The items, with a bar."""
    with bar(title, total) as show:
        for count, item in enumerate(items, 1):
            yield item
            show(count, "")
