"""Preparation of DICOM slices by one worker and by two: time, memory, and whether the bytes are the same.

    python -m benchmarks.preparing
    python -m benchmarks.preparing --slices=400 --rounds=1 --few=100 --many=1000

(a) A folder of synthetic CT series is prepared by each number of workers in turn, each time in a new process and from nothing:
    seconds by the clock from its start to its end, those of processors of all its processes, the memory that the process and
    its workers took at most, each alone, and a sha256 over all that was prepared. Mind that a busy Linux shares its processors
    among sessions, not processes: only where nothing else runs does the clock tell what a second worker is good for.
(b) One worker and few or many of them: the memory must not grow.
"""

import argparse
import contextlib
import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from rich.console import Console
from rich.table import Table

from benchmarks.sides import circumstances
from vaejax.config import DataConfig
from vaejax.datasets import load

SERIES = 40
"""Slices of a series, which is read at once."""


class Measured(NamedTuple):
    """One preparation: seconds by the clock, and of processors, peak MiB of the process, and of its largest worker (0 without
    any), sha256 of all files.
    """

    seconds: float
    processors: float
    own: float
    workers: float
    sha256: str


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=2_000, help="(a) files; default: %(default)s")
    parser.add_argument("--size", type=int, default=256, help="side of a slice, pixels; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="(a) default: %(default)s")
    parser.add_argument("--few", type=int, default=500, help="(b) default: %(default)s")
    parser.add_argument("--many", type=int, default=5_000, help="(b) default: %(default)s")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        same = compare(Path(folder), given.slices, given.size, given.rounds)
        for count in (given.few, given.many):
            write(Path(folder) / "in", count, given.size)
            result = measured(Path(folder), 1)
            print(f"(b) {count:5} slices, one worker: {result.seconds:.1f} s, peak {result.own:.0f} MiB")
    print(circumstances(["numpy", "pydicom"]))
    return int(not same)


def compare(folder: Path, slices: int, size: int, rounds: int) -> bool:
    """(a); whether all bytes agree."""
    write(folder / "in", slices, size)
    found: dict[int, list[Measured]] = {1: [], 2: []}
    for _ in range(rounds):
        for workers, results in found.items():
            results.append(measured(folder, workers))
    columns = ("seconds (median)", "each", "of processors", "peak of the first, MiB", "of a worker, MiB", "sha256 of all files")
    table = Table("workers", *columns)
    for workers, results in found.items():
        times = [result.seconds for result in results]
        memory = (f"{max(getattr(result, part) for result in results):.0f}" for part in ("own", "workers"))
        hashes = " ".join(sorted({result.sha256[:16] for result in results}))
        spent = f"{statistics.median(result.processors for result in results):.2f}"
        each = " ".join(f"{seconds:.2f}" for seconds in times)
        table.add_row(str(workers), f"{statistics.median(times):.2f}", each, spent, *memory, hashes)
    Console(width=140).print(f"(a) {slices} slices of {size} x {size}, {rounds} rounds, in turn", table)
    one, two = (statistics.median(result.seconds for result in results) for results in found.values())
    print(f"two workers take {two / one:.2f} of the time of one")
    return len({result.sha256 for results in found.values() for result in results}) == 1


def measured(folder: Path, workers: int) -> Measured:
    """Prepares what lies in `folder / "in"` in a new process, and watches the memory of all that it starts."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    start, seen = time.perf_counter(), dict[int, tuple[float, float]]()
    code = "import sys; from benchmarks import preparing; preparing.once(*sys.argv[1:])"
    process = subprocess.Popen([sys.executable, "-c", code, str(folder), str(workers)], start_new_session=True)
    while process.poll() is None:
        seen |= {number: costs for number in members(process.pid) if (costs := costs_of(number))}
        time.sleep(0.05)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"the preparation ended with status {process.returncode}")
    digest = hashlib.sha256()
    for path in sorted((folder / "out").rglob("*")):
        digest.update(path.name.encode() + (path.read_bytes() if path.is_file() else b""))
    others = [peak for number, (_, peak) in seen.items() if number != process.pid]
    processors = sum(spent for spent, _ in seen.values())
    return Measured(seconds, processors, seen[process.pid][1], max(others, default=0.0), digest.hexdigest())


def once(folder: str, workers: str) -> None:
    """The work of the new process."""
    path = str(Path(folder) / "in")
    config = DataConfig(name="volumes", path=path, image_size=(128, 128), window=(40, 400), workers=int(workers))
    load(config, Path(folder) / "out")


def members(session: int) -> list[int]:
    """The processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            if int(path.read_text().rpartition(")")[2].split()[3]) == session:
                found.append(int(path.parent.name))
    return found


def costs_of(number: int) -> tuple[float, float] | None:
    """Seconds of processors that a process spent, and MiB that it held at most, so far; None where it has ended."""
    with contextlib.suppress(OSError, KeyError):
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{number}/status").read_text().splitlines())
        ticks = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[11:13]
        return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK"), int(lines["VmHWM"].split()[0]) / 1024
    return None


def write(folder: Path, count: int, size: int) -> None:
    """The files of series of CT slices, of ten of a body and noise."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    rng = np.random.default_rng(0)
    y, x = np.indices((size, size)) / size - 0.5
    bodies = [np.where(x**2 + 2 * y**2 < 0.1 + 0.01 * i, 40, -1000) + rng.integers(0, 60, (size, size)) for i in range(10)]
    for number in range(count):
        series, place = divmod(number, SERIES)
        data = Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        data.SOPClassUID, data.SOPInstanceUID = uid.CTImageStorage, f"1.2.{number}"
        data.Modality, data.PatientID, data.SeriesInstanceUID = "CT", f"p{series}", f"1.{series}"
        data.Rows = data.Columns = size
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
        data.ImagePositionPatient, data.ImageOrientationPatient = [0, 0, place], [1, 0, 0, 0, 1, 0]
        data.PixelData = (bodies[place % 10] + series).astype("<i2").tobytes()
        data["PixelData"].VR = "OW"
        data.save_as(folder / f"{number:05}.dcm", enforce_file_format=True)


if __name__ == "__main__":
    sys.exit(main())
