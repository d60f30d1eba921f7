"""Preparation: every image is converted once, checked, and kept in memory-mapped arrays named by a hash of all they depend on.

A prepared folder holds `<split>_image.npy` and `<split>_label.npy`, `manifest.json` with their sha256, and, readable by
their owner alone since paths can carry names, `paths.json` (index to path) and `skipped.json`. It appears under its name
only when it is whole. TFDS record shards in between were tried and left out: 70,000 images of 28x28 took 12 s through them
and 1 s without, twice the disk, and nobody read the records again.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import Progress

from vaejax.config import DataConfig
from vaejax.datasets.image import WHITE, resize, to_channels
from vaejax.datasets.source import Examples, Source
from vaejax.datasets.splits import complete, of_normals, set_apart
from vaejax.errors import DataError

_FORMAT = 1  # raise it when preparation changes, so that what older versions prepared is not used


class Split(NamedTuple):
    """Random access to `n` examples.

    Attributes:
        n: number of examples.
        read: int [b], each in 0..n-1 -> {"image": stored dtype [b, H, W, C], "label": int32 [b] where known}.
    """

    n: int
    read: Callable[[np.ndarray], dict[str, np.ndarray]]


class DataSet(NamedTuple):
    """Images of one shape in fixed splits.

    Attributes:
        splits: "train", "val" and "test"; "calibration" where `data.calibration_fraction` sets it apart.
        image_shape: (H, W, C) of every image.
        white: the stored value that means 1.0: 255 for uint8, 65535 for uint16, 1 for float32.
        label_names: the name of label i, its number where the source has no names; None without labels.
        fingerprint: sha256 hex of the source's contents and the settings.
        skipped: (path relative to data.path, reason) of the files left out on request.
    """

    splits: dict[str, Split]
    image_shape: tuple[int, int, int]
    white: float
    label_names: tuple[str, ...] | None
    fingerprint: str
    skipped: tuple[tuple[str, str], ...]


def prepare(source: Source, config: DataConfig, cache: Path) -> DataSet:
    """Opens the prepared images in `cache`; prepares them first where they are absent or damaged.

    Raises:
        DataError: images are unreadable, or do not agree in size, channels or depth; or `cache` cannot be written.
    """
    fingerprint = _fingerprint(source, config)
    folder = cache / f"{config.name.replace(':', '-').replace('/', '-')}-{fingerprint[:16]}"
    if folder.exists() and not _whole(folder):
        Console(stderr=True).print(f"Prepared images in {folder} are damaged: preparing them again.")
        shutil.rmtree(folder)
    if not folder.exists():
        try:
            _prepare(cache, folder, source, config, fingerprint)
        except OSError as error:
            raise DataError(
                f"data.cache={str(cache)!r}: the images could not be prepared there: {error}. "
                "Check free space and permissions, or choose another folder."
            ) from error
    return _open(folder)


def _prepare(cache: Path, folder: Path, source: Source, config: DataConfig, fingerprint: str) -> None:
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".preparing-", dir=cache))  # mode 0700
    try:
        _write(temporary, source, config, fingerprint)
        _publish(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _fingerprint(source: Source, config: DataConfig) -> str:
    settings = {name: getattr(config, name) for name in ("image_size", "channels", "resize", "validation_fraction", "on_error")}
    chosen = {name: getattr(config, name) for name in ("normal", "calibration_fraction") if getattr(config, name)}
    facts = {"format": _FORMAT, "name": config.name, "contents": source.contents, **settings, **chosen}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _publish(temporary: Path, folder: Path) -> None:
    try:
        temporary.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was faster
            raise


class _Example(NamedTuple):
    """The shape and dtype that all images share, and the name of the image that they were first seen in."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype


def _write(folder: Path, source: Source, config: DataConfig, fingerprint: str) -> None:
    splits = _splits(source, config)
    first = _first(splits, config)
    kept: dict[str, list[int]] = {}
    unreadable: list[tuple[str, str]] = []
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("preparing images", total=sum(examples.n for examples in splits.values()))
        for split, examples in splits.items():
            images = _images(split, examples, first, config, unreadable)
            kept[split] = _write_array(folder / f"{split}_image.npy", images, examples.n, first, lambda: progress.advance(task))
    _check(splits, kept, unreadable, source, config)
    _describe(folder, splits, kept, unreadable, source, first, fingerprint)


def _splits(source: Source, config: DataConfig) -> dict[str, Examples]:
    splits = complete(source.open(), config.validation_fraction, source.label_names)
    if config.normal:
        splits = of_normals(splits, config.normal, source.label_names)
    if config.calibration_fraction:
        splits = set_apart(splits, config.calibration_fraction, ["calibration"], source.label_names)
    return splits


def _write_array(
    path: Path, images: Iterator[np.ndarray | None], n: int, first: _Example, advance: Callable[[], None]
) -> list[int]:
    """Writes the images that are not None as one .npy array, one at a time; returns their numbers."""
    kept = []
    with path.open("wb") as file:

        def header(rows: int) -> None:  # of one length for any number of rows up to n: NumPy leaves room for it to grow
            facts = {"descr": first.dtype.str, "fortran_order": False, "shape": (rows, *first.shape)}
            np.lib.format.write_array_header_1_0(file, facts)

        header(n)
        for i, image in enumerate(images):
            advance()
            if image is not None:
                file.write(image.tobytes())
                kept.append(i)
        file.seek(0)
        header(len(kept))
    return kept


def _name(split: str, examples: Examples, i: int) -> str:
    return examples.paths[i] if examples.paths else f"{split} image {i}"


def _first(splits: dict[str, Examples], config: DataConfig) -> _Example:
    """What the first readable image becomes, all others must become."""
    reason = ""
    for split, examples in splits.items():
        for i in range(examples.n):
            try:
                image = examples.read(i)
            except DataError as error:
                reason = reason or f" ({_name(split, examples, i)}: {error})"
                continue  # all are reported by _images, if one is readable
            image = _converted(image, _name(split, examples, i), config)
            return _Example(_name(split, examples, i), image.shape, image.dtype)
    raise DataError(f"data.name={config.name!r}: expected images, found none that can be read{reason}. Check data.path.")


def _converted(image: np.ndarray, name: str, config: DataConfig) -> np.ndarray:
    try:
        image = to_channels(image, config.channels or image.shape[-1])
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
    height, width = config.image_size or image.shape[:2]
    return resize(image, (height, width), config.resize)


def _images(
    split: str, examples: Examples, first: _Example, config: DataConfig, unreadable: list[tuple[str, str]]
) -> Iterator[np.ndarray | None]:
    """Yields every image converted, or None where it is unreadable, which is noted in `unreadable`."""
    for i in range(examples.n):
        name = _name(split, examples, i)
        try:
            image = examples.read(i)
        except DataError as error:
            unreadable.append((name, str(error)))
            yield None
            continue
        image = _converted(image, name, config)
        _compare(_Example(name, image.shape, image.dtype), first)
        yield image


def _compare(found: _Example, first: _Example) -> None:
    facts = (
        ("height and width", "shape", slice(2), "Set data.image_size."),
        ("channels", "shape", slice(2, 3), "Set data.channels."),
    )
    for what, field, part, remedy in facts:
        one, other = getattr(first, field)[part], getattr(found, field)[part]
        if one != other:
            raise DataError(f"expected one {what}, found {one} in {first.name} and {other} in {found.name}. {remedy}")
    if found.dtype != first.dtype:
        raise DataError(
            f"expected one depth, found {first.dtype} in {first.name} and {found.dtype} in {found.name}. Bring them to one."
        )


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
    first: _Example,
    fingerprint: str,
) -> None:
    """Writes labels, paths, skipped files, and last the manifest with the sha256 of each file."""
    for split, examples in splits.items():
        if examples.labels is not None:
            np.save(folder / f"{split}_label.npy", examples.labels[kept[split]])
    paths = {split: [examples.paths[i] for i in kept[split]] for split, examples in splits.items() if examples.paths}
    for name, content in {"paths.json": paths, "skipped.json": unreadable}.items():
        (folder / name).touch(mode=0o600)
        (folder / name).write_text(json.dumps(content))
    manifest = {
        "n": {split: len(rows) for split, rows in kept.items()},
        "image_shape": first.shape,
        "dtype": first.dtype.name,
        "white": WHITE[first.dtype.name],
        "label_names": source.label_names,
        "fingerprint": fingerprint,
        "sha256": {path.name: _sha256(path) for path in sorted(folder.iterdir()) if path.is_file()},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _whole(folder: Path) -> bool:
    """Whether every file that the manifest names is as it was written."""
    try:
        sums = json.loads((folder / "manifest.json").read_text())["sha256"]
        return all(_sha256(folder / name) == expected for name, expected in sums.items())
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
    files = {field: folder / f"{split}_{field}.npy" for field in ("image", "label")}
    columns = {field: np.load(path, mmap_mode="r") for field, path in files.items() if path.exists()}
    return Split(n, lambda indices: {field: np.asarray(column[indices]) for field, column in columns.items()})
