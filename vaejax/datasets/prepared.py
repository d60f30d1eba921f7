"""Preparation: every image is converted once, checked, and kept in memory-mapped arrays named by a hash of all they depend on.

A prepared folder holds a file `<split>_<column>.npy` for each of image and segmentation, and of label, patient, volume and
spacing where known (`Split.columns`), `manifest.json` with their sha256, and, readable by their owner alone since paths can
carry names, `paths.json` (index to path) and `skipped.json`. It appears under its name only when it is whole. Until then
`.preparing-<name>` beside it holds the shards that are done (`vaejax.datasets.shards`), so that the same command goes on from
there after an interruption, and the lock of the one process that prepares. TFDS record shards were tried and left out: 70,000
images of 28x28 took 12 s through them and 1 s without, twice the disk, and nobody read the records again.
"""

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import Progress

from vaejax.config import DataConfig
from vaejax.datasets import shards, workers
from vaejax.datasets.image import WHITE
from vaejax.datasets.shards import Form, Plan, Record, Shard
from vaejax.datasets.source import Examples, Source, example_name
from vaejax.datasets.splits import arranged
from vaejax.errors import DataError

_READ = ("image", "label", "patient", "segmentation")
_COLUMNS = ("label", "patient", "volume", "spacing")
_FORMAT = 1  # raise it when preparation changes, so that what older versions prepared is not used


class Split(NamedTuple):
    """Random access to `n` examples.

    Attributes:
        n: number of examples.
        read: int [b], each in 0..n-1 -> {"image": stored dtype [b, H, W, C], and where known "label": int32 [b],
            "patient": int32 [b], numbers that tell patients apart and no more, "segmentation": uint8 [b, H, W]}.
        columns: what is known of all examples without reading an image: "label", "patient" as above; of slices "volume": int32
            [n], numbers that tell volumes apart, and "spacing": float32 [n, 3], mm from slice to slice, row to row and column
            to column, NaN where unknown.
    """

    n: int
    read: Callable[[np.ndarray], dict[str, np.ndarray]]
    columns: Mapping[str, np.ndarray] = {}


class DataSet(NamedTuple):
    """Images of one shape in fixed splits.

    Attributes:
        splits: "train", "val" and "test"; "calibration" where `data.calibration_fraction` sets it apart.
        image_shape: (H, W, C) of every image.
        white: the stored value that means 1.0: 255 for uint8, 65535 for uint16, 1 for float32.
        label_names: the name of label i, its number where the source has no names; None without labels.
        fingerprint: sha256 hex of the source's contents and the settings.
        skipped: (path relative to data.path, reason) of the files left out on request.
        window: what became 0 and 1 in every image, in the units of the files, where it was measured over all of them.
    """

    splits: dict[str, Split]
    image_shape: tuple[int, int, int]
    white: float
    label_names: tuple[str, ...] | None
    fingerprint: str
    skipped: tuple[tuple[str, str], ...]
    window: tuple[float, float] | None = None


def prepare(source: Source, config: DataConfig, cache: Path, drive: workers.Driver = workers.each) -> DataSet:
    """Opens the prepared images in `cache`; prepares them first where they are absent or damaged.

    The bytes are the same for any `drive`, any number of processes, and after any interruption.

    Raises:
        DataError: images are unreadable, or do not agree in size, channels or depth; or `cache` cannot be written.
    """
    fingerprint = _fingerprint(source, config)
    folder = cache / f"{config.name.replace(':', '-').replace('/', '-')}-{fingerprint[:16]}"
    if not _whole(folder):
        try:
            cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _alone(cache / f".preparing-{folder.name}") as work:
                if not _whole(folder):  # else another process prepared it while this one waited
                    if folder.exists():
                        _say(f"Prepared images in {folder} are damaged: preparing them again.")
                        shutil.rmtree(folder)
                    _prepare(folder, work, source, config, fingerprint, drive)
        except OSError as error:
            raise DataError(
                f"data.cache={str(cache)!r}: the images could not be prepared there: {error}. "
                "Check free space and permissions, or choose another folder."
            ) from error
    return _open(folder)


def _fingerprint(source: Source, config: DataConfig) -> str:
    settings = {name: getattr(config, name) for name in ("image_size", "channels", "resize", "validation_fraction", "on_error")}
    if config.untrusted:  # what takes too much is not among the images
        settings |= {"limits": [config.file_seconds, config.file_memory]}
    chosen = {name: getattr(config, name) for name in ("normal", "calibration_fraction") if getattr(config, name)}
    facts = {"format": _FORMAT, "name": config.name, "contents": source.contents, **settings, **chosen}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def _alone(work: Path) -> Iterator[Path]:
    """The folder `work`, for one process at a time; it is removed after success and errors, and stays after an interruption.

    The lock is on the folder itself, and ends with the process that holds it, however that ends.
    """
    handle = _locked(work)
    try:
        yield work
        shutil.rmtree(work)
    except BaseException as error:
        if isinstance(error, Exception) and not isinstance(error, workers.Lost):  # else an interruption
            shutil.rmtree(work, ignore_errors=True)
        with contextlib.suppress(OSError):
            work.rmdir()  # where nothing is done yet
        raise
    finally:
        os.close(handle)


def _locked(work: Path) -> int:
    while True:
        work.mkdir(mode=0o700, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # the process waited for may have removed it
            handle = os.open(work, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _say(f"Another process prepares the same images in {work}: waiting for it.")
                fcntl.flock(handle, fcntl.LOCK_EX)
            if work.exists() and os.path.samestat(os.fstat(handle), work.stat()):
                return handle
            os.close(handle)


def _prepare(folder: Path, work: Path, source: Source, config: DataConfig, fingerprint: str, drive: workers.Driver) -> None:
    splits = arranged(source.open(), config, source.label_names)
    plan = Plan(work, splits, _form(splits, config), config)
    pieces = shards.cut(splits)
    write = functools.partial(shards.write, plan)
    files = all(examples.paths is not None for examples in splits.values())  # else arrays, in this process's memory already
    if any(work.iterdir()):
        _say(f"Going on with the preparation that was interrupted in {work}.")
    with _progress(sum(examples.n for examples in splits.values())) as advance:
        for piece, _ in zip(pieces, drive(write, pieces, config.workers) if files else map(write, pieces), strict=True):
            advance(piece.stop - piece.start)
    records = {piece: shards.read(plan, piece) for piece in pieces}
    kept = {split: [i for piece in pieces if piece.split == split for i in records[piece].kept] for split in splits}
    unreadable = [entry for record in records.values() for entry in record.unreadable]
    _check(splits, kept, unreadable, source, config)
    with shards.appearing(folder, work) as whole:
        _join(whole, plan, records)
        _describe(whole, splits, kept, unreadable, source, plan.form, fingerprint)


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("preparing images", total=total)
        yield lambda count: progress.advance(task, count)


def _say(text: str) -> None:
    Console(stderr=True).print(text)


def _form(splits: dict[str, Examples], config: DataConfig) -> Form:
    """What the first readable image becomes, all others must become."""
    reason = ""
    for split, examples in splits.items():
        for i in range(examples.n):
            name = example_name(split, examples, i)
            try:
                image = examples.read(i)
            except DataError as error:
                reason = reason or f" ({name}: {error})"
                continue  # all are reported by their shards, if one is readable
            image = shards.converted(image, name, config)
            return Form(name, image.shape, image.dtype)
    raise DataError(f"data.name={config.name!r}: expected images, found none that can be read{reason}. Check data.path.")


def _join(folder: Path, plan: Plan, records: dict[Shard, Record]) -> None:
    """The rows of all shards as one .npy array for each column of each split."""
    for split, examples in plan.splits.items():
        pieces = [piece for piece in records if piece.split == split]
        rows = sum(len(records[piece].kept) for piece in pieces)
        for name, (shape, dtype) in shards.columns(examples, plan.form).items():
            with (folder / f"{split}_{name}.npy").open("wb") as file:
                facts = {"descr": dtype.str, "fortran_order": False, "shape": (rows, *shape)}
                np.lib.format.write_array_header_1_0(file, facts)
                for piece in pieces:
                    with shards.column(plan, piece, name).open("rb") as part:
                        shutil.copyfileobj(part, file)


def _check(
    splits: dict[str, Examples],
    kept: dict[str, list[int]],
    unreadable: list[tuple[str, str]],
    source: Source,
    config: DataConfig,
) -> None:
    """Stops at unreadable images unless they may be skipped, and where nothing is left of a split or a class."""
    if unreadable and config.on_error == "stop":
        names = "\n".join(f"  {name}: {reason}" for name, reason in unreadable)
        raise DataError(
            f"{len(unreadable)} unreadable images:\n{names}\nRepair or remove them, or leave them out with data.on_error=skip."
        )
    empty = [split for split in splits if not kept[split]]
    if empty:
        raise DataError(f"data.name={config.name!r}: expected images in every split, found none that can be read in {empty}.")
    if unreadable and source.label_names:
        labels = {split: examples.labels for split, examples in splits.items() if examples.labels is not None}
        seen = {int(label) for split in labels for label in labels[split][kept[split]]}
        lost = [name for label, name in enumerate(source.label_names) if label not in seen]
        if lost:
            raise DataError(
                f"data.name={config.name!r}: expected images of every class, found none that can be read of {lost}."
            )


def _describe(
    folder: Path,
    splits: dict[str, Examples],
    kept: dict[str, list[int]],
    unreadable: list[tuple[str, str]],
    source: Source,
    form: Form,
    fingerprint: str,
) -> None:
    """Writes what is known of the examples, their paths, skipped files, and last the manifest with the sha256 of each file."""
    for split, examples in splits.items():
        known = {
            "label": examples.labels,
            "patient": examples.patients,
            "volume": examples.volumes,
            "spacing": examples.spacing,
        }
        for column, values in known.items():
            if values is not None:
                dtype = np.float32 if column == "spacing" else np.int32
                np.save(folder / f"{split}_{column}.npy", values[kept[split]].astype(dtype))
    paths = {split: [examples.paths[i] for i in kept[split]] for split, examples in splits.items() if examples.paths}
    for name, content in {"paths.json": paths, "skipped.json": unreadable}.items():
        (folder / name).touch(mode=0o600)
        (folder / name).write_text(json.dumps(content))
    manifest = {
        "n": {split: len(rows) for split, rows in kept.items()},
        "image_shape": form.shape,
        "dtype": form.dtype.name,
        "white": WHITE[form.dtype.name],
        "label_names": source.label_names,
        "window": splits["train"].window,
        "fingerprint": fingerprint,
        "sha256": {path.name: shards.sha256(path) for path in sorted(folder.iterdir()) if path.is_file()},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2))


def _whole(folder: Path) -> bool:
    """Whether every file that the manifest names is as it was written."""
    try:
        sums = json.loads((folder / "manifest.json").read_text())["sha256"]
        return all(shards.sha256(folder / name) == expected for name, expected in sums.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _open(folder: Path) -> DataSet:
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    height, width, channels = manifest["image_shape"]
    return DataSet(
        splits={split: _split(folder, split, n) for split, n in manifest["n"].items()},
        image_shape=(height, width, channels),
        white=manifest["white"],
        label_names=tuple(manifest["label_names"] or _numbers(folder, manifest["n"])) or None,
        fingerprint=manifest["fingerprint"],
        skipped=tuple((path, reason) for path, reason in json.loads((folder / "skipped.json").read_text())),
        window=tuple(manifest["window"]) if manifest.get("window") else None,
    )


def _numbers(folder: Path, n: dict[str, int]) -> list[str]:
    """The labels 0, 1, ... up to the largest, as names; none where a split has no labels, or they are no classes."""
    files = [folder / f"{split}_label.npy" for split in n]
    if not all(file.exists() for file in files):
        return []
    labels = np.concatenate([np.load(file) for file in files])
    classes = int(labels.min()) >= 0 and int(labels.max()) < len(labels)
    return [str(label) for label in range(1 + int(labels.max()))] if classes else []


def _split(folder: Path, split: str, n: int) -> Split:
    files = {field: folder / f"{split}_{field}.npy" for field in (*_READ, *_COLUMNS)}
    found = {field: np.load(path, mmap_mode="r") for field, path in files.items() if path.exists()}
    read = {field: found[field] for field in _READ if field in found}
    columns = {field: found[field] for field in _COLUMNS if field in found}
    return Split(n, lambda indices: {field: np.asarray(column[indices]) for field, column in read.items()}, columns)
