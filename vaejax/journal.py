"""The numbers of a training as they come: `metrics.jsonl`, one JSON object a line, and the same as TensorBoard events.

A cloud store has no append: there, both grow on a disk and are copied when they are flushed.
"""

import json
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from etils import epath

from vaejax import hosts, runs, storage


class Journal:
    """Appends to a run's journal; a context manager, since two files are open.

    A run that goes on after `step` first drops the lines beyond it, which belong to steps that were lost. Of several processes,
    the first writes.
    """

    def __init__(self, directory: epath.Path, step: int) -> None:
        """Opens the journal of a run directory at `step`."""
        self._events = None
        if not hosts.first():
            return
        from tensorboardX import SummaryWriter

        self._directory, kept = directory, [row for row in read(directory) if row["step"] <= step]
        self._copied = tempfile.TemporaryDirectory(prefix="vaejax-") if storage.is_url(directory) else None
        place = epath.Path(self._copied.name) if self._copied else directory
        self._file = place / "metrics.jsonl"
        runs.write_text(self._file, "".join(json.dumps(row) + "\n" for row in kept))
        self._events = SummaryWriter(str(place / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        """Adds the values of a split ("train", "val") at a step."""
        if self._events is None:
            return
        with self._file.open("a") as file:
            file.write(json.dumps({"step": step, "split": split, **values}) + "\n")
        for name, value in values.items():
            self._events.add_scalar(f"{split}/{name}", value, step)

    def flush(self) -> None:
        """Writes out what is buffered, so that what is then saved at this step has its journal."""
        if self._events is None:
            return
        self._events.flush()
        if self._copied:
            storage.upload(Path(self._copied.name), self._directory)

    def __enter__(self) -> Self:
        """The journal itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Writes out what is buffered."""
        if self._events is None:
            return
        try:
            self.flush()
        finally:
            self._events.close()
            if self._copied:
                self._copied.cleanup()


def read(directory: epath.Path) -> list[dict[str, Any]]:
    """All lines of a run's journal; a last line that was cut off by a kill is left out."""
    file = directory / "metrics.jsonl"
    with storage.explained(file):
        lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]
