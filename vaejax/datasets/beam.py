"""The same work as that of `vaejax.datasets.workers`, divided by Apache Beam."""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from vaejax.errors import DataError

Item = TypeVar("Item")


def each(function: Callable[[Item], None], items: Sequence[Item], workers: int) -> Iterator[None]:
    """`function` of every item, in `workers` processes of Beam's local runner (0: one a processor); what it returns is lost.

    Raises:
        DataError: Beam is absent, or `function` fails.
    """
    try:
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise DataError(f"--runner=beam: needs {error.name}. Install 'vaejax[beam]'.") from error
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)  # an error it tells with all it knows, paths among that
    mode = "in_memory" if workers == 1 else "multi_processing"
    options = PipelineOptions([], runner="FnApiRunner", direct_num_workers=workers, direct_running_mode=mode)
    try:
        with apache_beam.Pipeline(options=options) as pipeline:
            pipeline | apache_beam.Create(items) | apache_beam.Reshuffle() | "prepare" >> apache_beam.Map(function)
    except Exception as error:
        raise DataError(_reason(f"{type(error).__name__}: {error}")) from error
    yield from (None for _ in items)


def _reason(text: str) -> str:
    """The message of a DataError in what Beam tells of its processes, or all of that."""
    told = re.search(r"DataError: (.*?)(?: \[while running .*)?$", text, re.MULTILINE)
    return told[1] if told else f"--runner=beam: {text}"
