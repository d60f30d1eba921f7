"""A folder of PNG and JPEG files: a sub-folder a class, with or without train, val and test folders above them."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from vaejax.config import DataConfig
from vaejax.datasets import isolation
from vaejax.datasets.image import decode
from vaejax.datasets.source import Examples, Source, files_in, hash_files, reading
from vaejax.errors import DataError

_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def source(config: DataConfig) -> Source:
    """The images under `config.path`, sorted by path; class i is the i-th folder name in sorted order.

    With a folder `train`, the folders beside it are splits. Without class folders the images have no labels.
    Hidden files and notes (.txt, .md, .csv, .json) are passed over; any other file is an image or counts as unreadable.

    Raises:
        DataError: no such folder, no files in a class folder, or files that are in no class or split folder.
    """
    root = Path(config.path or "")
    if not root.is_dir():
        raise DataError(f"{root}: expected a folder of images, found {'a file' if root.exists() else 'none'}. Check data.path.")
    found = {split: _files(folder) for split, folder in _split_folders(root).items()}
    names = {name for pairs in found.values() for name, _ in pairs}
    if None in names and len(names) > 1:
        raise DataError(f"{root}: expected class folders in every split or in none, found both. Sort the images.")
    label_names = tuple(sorted(name for name in names if name is not None)) or None
    files = [(path.relative_to(root).as_posix(), path) for pairs in found.values() for _, path in pairs]
    read = isolation.reader(decode, config)
    return Source(
        hash_files(files), label_names, lambda: {split: _examples(root, found[split], label_names, read) for split in found}
    )


def _examples(
    root: Path,
    files: list[tuple[str | None, Path]],
    label_names: tuple[str, ...] | None,
    read: Callable[[Path], np.ndarray],
) -> Examples:
    labels = np.array([label_names.index(name or "") for name, _ in files], np.int32) if label_names else None
    paths = tuple(path.relative_to(root).as_posix() for _, path in files)
    return Examples(len(files), reading(read, [path for _, path in files]), labels, paths)


def _split_folders(root: Path) -> dict[str, Path]:
    """The folder of each split; `root` is that of "train" where it has no folder `train`."""
    folders = [folder for folder in _visible(root.iterdir()) if folder.is_dir()]
    splits = {_SPLITS.get(folder.name.lower(), folder.name): folder for folder in folders}
    if not folders or ("train" not in splits and set(splits) - set(_SPLITS)):
        return {"train": root}
    loose = [path.name for path in files_in(root, "*")]
    if "train" not in splits or set(splits) - set(_SPLITS) or len(splits) < len(folders) or loose:
        found = ", ".join(sorted([folder.name for folder in folders] + loose))
        raise DataError(
            f"{root}: expected the folder train, and beside it at most val and test, found {found}. Sort the files."
        )
    return dict(sorted(splits.items()))


def _files(folder: Path) -> list[tuple[str | None, Path]]:
    """(class, path) of every image of a split."""
    classes = [path for path in _visible(folder.iterdir()) if path.is_dir()]
    loose = files_in(folder, "*")
    if classes and loose:
        names = ", ".join(path.name for path in loose)
        raise DataError(f"{folder}: expected images in class folders only, found beside these: {names}. Move them into one.")
    if not classes and not loose:
        raise DataError(f"{folder}: expected PNG or JPEG images, found none. Check data.path.")
    files: list[tuple[str | None, Path]] = [(None, path) for path in loose]
    for label in classes:
        images = files_in(label, "**/*")
        if not images:
            raise DataError(f"{label}: expected the images of a class, found none. Add images or remove the folder.")
        files += [(label.name, path) for path in images]
    return files


def _visible(paths: Iterable[Path]) -> list[Path]:
    return sorted((path for path in paths if not path.name.startswith(".")), key=lambda path: path.as_posix())
