"""Preparation in shards: the same bytes for any number of processes and after any interruption, and no split in memory."""

import json
import multiprocessing
import os
import pickle
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.volumes_test import save_dicom, save_nifti
from vaejax import cli
from vaejax.config import DataConfig
from vaejax.datasets import image, image_folder, load, prepared, shards, volumes
from vaejax.datasets.source import Examples, Source, reading
from vaejax.errors import DataError, Terminated

ROOT = Path(__file__).parents[1]


def write_images(root: Path, n: int = 40) -> DataConfig:
    """Images of several sizes in two classes, two of them unreadable."""
    rng = np.random.default_rng(0)
    for number in range(n):
        path = root / "ab"[number % 2] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (7 + number % 3, 9), np.uint8)).save(path)
    for number in (4, 17):
        (root / "ab"[number % 2] / f"{number:03}.png").write_bytes(b"no image")
    return DataConfig(
        name="image_folder", path=str(root), image_size=(6, 8), on_error="skip", validation_fraction=0.2, workers=1
    )


def sums(cache: Path) -> dict[str, str]:
    """sha256 of every file that was prepared."""
    (folder,) = (path for path in cache.iterdir() if not path.name.startswith("."))
    return {path.name: shards.sha256(path) for path in folder.iterdir()}


@pytest.fixture
def small(monkeypatch) -> None:
    """Shards of seven examples."""
    monkeypatch.setattr(shards, "SIZE", 7)


def with_masks(n: int = 20) -> Source:
    """A source of files that need not be there: image i is filled with i, and so is its mask."""
    paths = tuple(f"{number}.png" for number in range(n))
    examples = Examples(n, reading(filled, range(n)), None, paths, None, reading(mask_of, range(n)))
    return Source("contents", None, lambda: {"train": examples})


def filled(number: int) -> np.ndarray:
    if number == 5:
        raise DataError("unreadable")
    return np.full((6, 4, 1), number, np.uint8)


def mask_of(number: int) -> np.ndarray:
    if number == 11:
        return np.zeros((5, 4), np.uint8)
    mask = np.zeros((6, 4), np.uint8)
    mask[: 1 + number % 6] = number
    return mask


def test_shards_cover_every_example_once(small):
    splits = {split: Examples(n, lambda i: None) for split, n in (("train", 15), ("val", 7), ("test", 1))}
    pieces = shards.cut(splits)
    assert [piece.stop - piece.start for piece in pieces] == [7, 7, 1, 7, 1]
    for split, examples in splits.items():
        covered = [i for piece in pieces if piece.split == split for i in range(piece.start, piece.stop)]
        assert covered == list(range(examples.n))


def test_the_bytes_are_those_of_any_size_of_shards_and_any_number_of_workers(tmp_path, monkeypatch):
    config = write_images(tmp_path / "images")
    load(config, tmp_path / "one")
    monkeypatch.setattr(shards, "SIZE", 7)
    load(config, tmp_path / "two")
    load(DataConfig(**{**vars(config), "workers": 2}), tmp_path / "three")
    assert sums(tmp_path / "one") == sums(tmp_path / "two") == sums(tmp_path / "three")
    assert len(load(config, tmp_path / "one").skipped) == 2


def test_images_and_segmentations_are_columns_of_one_order(tmp_path, small):
    config = DataConfig(on_error="skip", image_size=(12, 8), validation_fraction=0.2)
    data = prepared.prepare(with_masks(), config, tmp_path)
    assert dict(data.skipped) == {
        "5.png": "unreadable",
        "11.png": "a mask of 5 x 4 pixels; expected 6 x 4, as its image has",
    }
    for split in data.splits.values():
        batch = split.read(np.arange(split.n))
        assert (batch["segmentation"].shape, batch["segmentation"].dtype) == ((split.n, 12, 8), np.uint8)
        for picture, mask in zip(batch["image"], batch["segmentation"], strict=True):
            number = picture[0, 0, 0]
            np.testing.assert_array_equal(mask, image.resize_segmentation(mask_of(number), (12, 8), "pad"))
    manifest = json.loads(next(tmp_path.glob("*/manifest.json")).read_text())
    assert "train_segmentation.npy" in manifest["sha256"]
    assert "segmentation" not in load(write_images(tmp_path / "i"), tmp_path / "c").splits["train"].read(np.arange(2))


class Stop:
    """A driver that stops after some shards, as Ctrl-C would, and one that counts what is done."""

    def __init__(self, after: int) -> None:
        self.after, self.written = after, 0

    def __call__(self, function, items, workers):
        for number, item in enumerate(items):
            if number == self.after:
                raise Terminated("stopped")
            before = shards.whole(function.args[0], item)
            function(item)
            self.written += not before
            yield None


def test_whole_shards_are_kept_after_an_interruption_and_damaged_ones_done_again(tmp_path, small, capsys):
    config = write_images(tmp_path / "images")
    load(config, tmp_path / "unbroken")
    cache = tmp_path / "cache"
    with pytest.raises(Terminated):
        load(config, cache, Stop(4))
    (work,) = cache.iterdir()
    assert work.name.startswith(".preparing-image_folder-")
    assert stat.S_IMODE(work.stat().st_mode) == 0o700
    assert sorted(path.name for path in work.iterdir())[0] == "train-000000000"
    assert stat.S_IMODE((work / "train-000000000" / "record.json").stat().st_mode) == 0o600
    with (work / "train-000000007" / "image").open("r+b") as file:
        file.write(bytes(range(20)))
    (work / "train-000000014" / "record.json").write_text("{}")
    drive = Stop(99)
    load(config, cache, drive)
    total = len(shards.cut({"train": Examples(24, filled), "val": Examples(8, filled), "test": Examples(8, filled)}))
    assert drive.written == total - 2
    assert "interrupted" in capsys.readouterr().err
    assert sums(cache) == sums(tmp_path / "unbroken")
    assert len(list(cache.iterdir())) == 1


def test_shards_of_another_plan_are_not_taken_for_this_ones(tmp_path, small):
    """Where what can be read has changed, such as by a limit of time, numbers stand for other examples."""
    one, other = with_masks(20), with_masks(20)
    paths = tuple(f"other {number}.png" for number in range(20))
    other = other._replace(open=lambda: {"train": one.open()["train"]._replace(paths=paths)})
    config = DataConfig(on_error="skip", validation_fraction=0.2)
    with pytest.raises(Terminated):
        prepared.prepare(one, config, tmp_path, Stop(1))
    drive = Stop(99)
    prepared.prepare(other, config, tmp_path, drive)
    assert drive.written == 4


PREPARE = (
    "import sys; from pathlib import Path; from vaejax.datasets import load, shards;"
    "from tests import preparation_test; shards.SIZE = 7; load(preparation_test.config(sys.argv[1]), Path(sys.argv[2]))"
)


SET = ("name", "path", "image_size", "on_error", "validation_fraction", "workers")


def config(root: str) -> DataConfig:
    return DataConfig(name="image_folder", path=root, image_size=(6, 8), on_error="skip", validation_fraction=0.2, workers=2)


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(tmp_path, small, seed):
    write_images(tmp_path / "images", 400)
    load(DataConfig(**{**vars(config(str(tmp_path / "images"))), "workers": 1}), tmp_path / "unbroken")
    cache = tmp_path / "cache"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PREPARE, str(tmp_path / "images"), str(cache)]
    process = subprocess.Popen(command, env=environment)
    want = 1 + 10 * seed
    while len(list(cache.glob(".preparing-*/train-*/record.json"))) < want:
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    time.sleep(0.5)  # until its workers have ended, too
    kept = {path.parent.name for path in cache.glob(".preparing-*/*-*/record.json")}
    assert kept
    drive = Stop(999)
    load(DataConfig(**{**vars(config(str(tmp_path / "images"))), "workers": 1}), cache, drive)
    total = len(shards.cut({"train": Examples(240, filled), "val": Examples(80, filled), "test": Examples(80, filled)}))
    assert drive.written == total - len(kept)
    assert sums(cache) == sums(tmp_path / "unbroken")


def killed_once(path: Path) -> np.ndarray:
    """A decoder whose process is killed the first time that it meets a certain file, as for want of memory."""
    mark = path.parents[2] / "killed"
    if path.name == "030.png" and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return image.decode(path)


def test_a_killed_worker_is_an_interruption(tmp_path, small, monkeypatch):
    write_images(tmp_path / "images")
    load(config(str(tmp_path / "images")), tmp_path / "unbroken")
    monkeypatch.setattr(image_folder, "decode", killed_once)
    with pytest.raises(DataError, match="one of 2 worker processes was killed"):
        load(config(str(tmp_path / "images")), tmp_path / "cache")
    assert list((tmp_path / "cache").glob(".preparing-*"))
    load(config(str(tmp_path / "images")), tmp_path / "cache")
    assert sums(tmp_path / "cache") == sums(tmp_path / "unbroken")


@pytest.mark.parametrize("change", [{"workers": 2}, {"untrusted": True}])
def test_slices_of_volumes_are_the_same_from_other_processes(tmp_path, small, change):
    for number in range(6):
        save_nifti(tmp_path / "in" / f"{number}.nii.gz", np.arange(60, dtype=np.int16).reshape(5, 4, 3) + number)
        for place in range(3):
            pixels = np.full((4, 5), place + number)
            fields = {"PatientID": str(number), "SeriesInstanceUID": f"1.{number}"}
            save_dicom(tmp_path / "in" / f"{number}-{place}", pixels, -place, **fields)
    (tmp_path / "in" / "broken.nii").write_bytes(b"no image")
    fields = {"name": "volumes", "path": str(tmp_path / "in"), "window": (30, 60), "image_size": (4, 5), "on_error": "skip"}
    expected, found = (load(DataConfig(**fields | more), tmp_path / str(len(more))) for more in ({}, change))
    assert expected.skipped == found.skipped == (("broken.nii, slice 0", "not a NIfTI file"),)
    for name, split in expected.splits.items():
        rows = np.arange(split.n)
        np.testing.assert_array_equal(split.read(rows)["image"], found.splits[name].read(rows)["image"])


def test_a_volume_that_was_read_is_not_sent_along(tmp_path):
    save_nifti(tmp_path / "in" / "a.nii", np.zeros((100, 100, 20), np.float32))
    read = volumes.source(DataConfig(name="volumes", path=str(tmp_path / "in"))).open()["train"].read
    size = len(pickle.dumps(read))
    read(3)
    assert len(pickle.dumps(read)) == size < 10_000


def test_two_processes_prepare_once(tmp_path):
    write_images(tmp_path / "images", 60)
    command = [sys.executable, "-c", PREPARE, str(tmp_path / "images"), str(tmp_path / "cache")]
    both = [subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}) for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_an_error_leaves_nothing_behind(tmp_path, small):
    config = write_images(tmp_path / "images")
    with pytest.raises(DataError, match="2 unreadable images"):
        load(DataConfig(**{**vars(config), "on_error": "stop"}), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def peak(n: int, root: Path, answer) -> None:
    """Memory that the preparation of n images of 128 x 128 takes, KiB, in a process of its own."""
    examples = Examples(n, reading(noise, range(n)), None, tuple(map(str, range(n))))
    source = Source(str(n), None, lambda: {"train": examples})
    prepared.prepare(source, DataConfig(validation_fraction=0.1), root)
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    answer.put(int(lines["VmHWM"].split()[0]))


def noise(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 255, (128, 128, 1), np.uint8)


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    context = multiprocessing.get_context("spawn")
    found = []
    for n in (200, 4_000):  # 3 and 66 MB of pixels
        answer = context.Queue()
        process = context.Process(target=peak, args=(n, tmp_path, answer))
        process.start()
        found.append(answer.get(timeout=120))
        process.join()
    assert found[1] - found[0] < 12_000


def test_the_verb_prepares_and_no_more(tmp_path, capsys):
    write_images(tmp_path / "images")
    fields = {field: vars(config(str(tmp_path / "images")))[field] for field in SET}
    arguments = [f"--config.data.{name}={value}" for name, value in fields.items()]
    (tmp_path / "c.json").write_text("{}")
    command = ["prepare", f"--config={tmp_path / 'c.json'}", f"--workdir={tmp_path / 'runs' / 'x'}", *arguments]
    assert cli.main(command) == 0
    assert "22 train, 8 val, 8 test images of (6, 8, 1); 2 files left out" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["data"]
    assert cli.main([*command, "--config.data.nothing=1"]) == 1


def test_beam_gives_the_same_bytes(tmp_path, small):
    pytest.importorskip("apache_beam")
    from vaejax.datasets import beam

    config = write_images(tmp_path / "images")
    load(config, tmp_path / "one")
    for workers in (1, 2):
        odd = DataConfig(**{**vars(config), "image_size": None, "workers": workers})
        with pytest.raises(DataError, match=r"^expected one height and width, found .* Set data\.image_size\.$"):
            load(odd, tmp_path / "cache", beam.each)
        assert list((tmp_path / "cache").iterdir()) == []
        cache = tmp_path / f"beam {workers}"
        load(DataConfig(**{**vars(config), "workers": workers}), cache, beam.each)
        assert sums(cache) == sums(tmp_path / "one")


def test_without_beam_it_is_told_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    from vaejax.datasets import beam

    with pytest.raises(DataError, match=r"--runner=beam: needs apache_beam\. Install 'vaejax\[beam\]'"):
        load(write_images(tmp_path / "images"), tmp_path / "cache", beam.each)
