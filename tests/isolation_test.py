"""A file that takes too much, or breaks its reader, costs that file alone."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vaejax.config import DataConfig, from_dict
from vaejax.datasets import arrays, idx, image, image_folder, isolation, load
from vaejax.errors import ConfigError, DataError

LIMITS = isolation.Limits(1.0, 2**30)


def planted(path: Path) -> np.ndarray:
    """A decoder that does what the file's name says."""
    if "loops" in path.name:
        while True:
            pass
    if "hangs" in path.name:  # in C, with the interpreter's lock held: no thread of this process runs any more
        ctypes.pythonapi.usleep.argtypes = [ctypes.c_uint]
        ctypes.pythonapi.usleep(900_000_000)
    if "sleeps" in path.name:
        time.sleep(1.0)
        return np.zeros(0)
    if "allocates" in path.name:
        return np.ones(2**31, np.uint8)
    if "hides" in path.name:  # as decoders do
        try:
            np.ones(2**31, np.uint8)
        except Exception as error:
            raise DataError("a damaged file") from error
    if "aborts" in path.name:
        os.abort()
    if "exits" in path.name:
        os._exit(3)
    if "crashes" in path.name:
        ctypes.string_at(0)
    if "refuses" in path.name:
        raise DataError("no image")
    if "errs" in path.name:
        raise KeyError("a bug")
    return image.decode(path)


def planted_set(*_: Path) -> None:
    os.abort()


def process_of(_: Path) -> int:
    return os.getpid()


REASONS = {
    "loops": r"^took longer than 1 s$",
    "hangs": r"^took longer than 1 s$",
    "allocates": r"^needed more than 1 GiB$",
    "hides": r"^needed more than 1 GiB$",
    "aborts": r"^killed its reader \(SIGABRT\)$",
    "exits": r"^killed its reader \(status 3\)$",
    "crashes": r"^killed its reader \(SIGSEGV\)$",
    "refuses": r"^no image$",
}


@pytest.mark.parametrize(("kind", "reason"), REASONS.items())
def test_a_hostile_file_gives_one_error_with_its_reason_in_time(kind, reason):
    isolation.isolated(LIMITS, process_of, Path())  # the start of a process is not the file's time
    start = time.monotonic()
    with pytest.raises(DataError, match=reason):
        isolation.isolated(LIMITS, planted, Path(kind))
    assert time.monotonic() - start < 6
    assert isolation.isolated(LIMITS, process_of, Path()) != os.getpid()  # the next call is answered


def test_a_bug_of_a_decoder_is_no_users_mistake():
    with pytest.raises(KeyError, match="a bug"):
        isolation.isolated(LIMITS, planted, Path("errs"))


def test_a_process_serves_many_files_until_it_breaks():
    first, second = (isolation.isolated(LIMITS, process_of, Path()) for _ in range(2))
    assert first == second
    with pytest.raises(isolation.Exceeded):
        isolation.isolated(LIMITS, planted, Path("aborts"))
    assert isolation.isolated(LIMITS, process_of, Path()) != first


def test_an_answer_that_nobody_waited_for_is_nobodys():
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    limits = isolation.Limits(20.0, 2**30)
    first = isolation.isolated(limits, process_of, Path())
    old = signal.signal(signal.SIGALRM, interrupted)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(KeyboardInterrupt):
            isolation.isolated(limits, planted, Path("sleeps"))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, old)
    assert isinstance(second := isolation.isolated(limits, process_of, Path()), int)
    assert second != first


def test_trusted_files_are_decoded_here():
    assert isolation.reader(process_of, DataConfig()) is process_of


def test_a_folder_with_hostile_files_is_prepared_without_them(tmp_path, monkeypatch):
    root = tmp_path / "images"
    root.mkdir()
    for number in range(20):
        Image.fromarray(np.full((5, 4), number, np.uint8)).save(root / f"{number:02}.png")
    hostile = ("loops", "hides", "aborts")
    for kind in hostile:
        Image.fromarray(np.zeros((5, 4), np.uint8)).save(root / f"{kind}.png")
    monkeypatch.setattr(image_folder, "decode", planted)
    monkeypatch.setattr("vaejax.datasets.shards.SIZE", 7)
    fields = {"untrusted": True, "file_seconds": 0.5, "file_memory": 1.0, "validation_fraction": 0.2, "workers": 2}
    config = DataConfig(name="image_folder", path=str(root), on_error="skip", **fields)
    data = load(config, tmp_path / "cache")
    assert dict(data.skipped).keys() == {f"{kind}.png" for kind in hostile}
    assert dict(data.skipped)["loops.png"] == "took longer than 0.5 s"
    assert sum(split.n for split in data.splits.values()) == 20


@pytest.mark.parametrize(("module", "function"), [(arrays, "read"), (idx, "_examples")])
def test_a_file_that_is_a_whole_data_set_is_told_with_what_to_do(tmp_path, monkeypatch, module, function):
    for name in ("aborts.npz", "train-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        (tmp_path / name).touch()
    path = tmp_path / "aborts.npz" if module is arrays else tmp_path
    monkeypatch.setattr(module, function, planted_set)
    config = DataConfig(name=module.__name__.split(".")[-1], path=str(path), untrusted=True)
    with pytest.raises(DataError, match=r"(aborts\.npz|images-idx3-ubyte): killed its reader \(SIGABRT\).*data\.file_memory"):
        load(config, tmp_path / "cache")


def test_what_is_prepared_within_limits_has_a_name_of_its_own(tmp_path):
    for number in range(9):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(np.full((5, 4), number, np.uint8)).save(tmp_path / "images" / f"{number}.png")
    fields = {"name": "image_folder", "path": str(tmp_path / "images"), "validation_fraction": 0.2}
    changes = ({}, {"untrusted": True}, {"untrusted": True, "file_seconds": 9.0}, {"file_seconds": 9.0})
    sets = [load(DataConfig(**fields, **change), tmp_path / "cache") for change in changes]
    assert len({data.fingerprint for data in sets[:3]}) == 3
    assert sets[0].fingerprint == sets[3].fingerprint
    for data in sets:
        np.testing.assert_array_equal(
            data.splits["test"].read(np.arange(2))["image"], sets[0].splits["test"].read(np.arange(2))["image"]
        )


def test_tfds_cannot_be_isolated():
    with pytest.raises(ConfigError, match=r"data\.untrusted=True contradicts data\.name='tfds:mnist'"):
        from_dict({"data": {"name": "tfds:mnist", "untrusted": True}})


def test_a_reader_ends_with_the_process_that_started_it(tmp_path):
    code = (
        "import os; from pathlib import Path; from tests import isolation_test as t; from vaejax.datasets import isolation;"
        "print(isolation.isolated(t.LIMITS, t.process_of, Path())); os._exit(0)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    deadline = time.monotonic() + 5
    while Path(f"/proc/{done.stdout.strip()}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(f"/proc/{done.stdout.strip()}").exists()
