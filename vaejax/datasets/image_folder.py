"""A folder of images (PNG, JPEG, TIFF, NPY): a sub-folder a class, with or without train, val and test folders above them.

Masks, where there are any, lie in a folder of their own, which is laid out in the same way.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from vaejax.config import DataConfig
from vaejax.datasets import isolation
from vaejax.datasets.image import check_mask, decode, decode_segmentation, shape_of
from vaejax.datasets.masks import masks_in, stem
from vaejax.datasets.source import Examples, Source, files_in, first_of, hash_files, reading
from vaejax.datasets.splits import NAMES
from vaejax.errors import DataError


def source(config: DataConfig) -> Source:
    """The images under `config.path`, sorted by path; class i is the i-th folder name in sorted order.

    With a folder `train`, the folders beside it are splits. Without class folders the images have no labels.
    Hidden files and notes (.txt, .md, .csv, .json) are passed over; any other file is an image or counts as unreadable.
    The mask of an image is the file under `config.masks` of the same relative path, of any suffix; others are nobody's.

    Raises:
        DataError: no such folder, no files in a class folder, files that are in no class or split folder, images without mask.
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
    masks = _masks(Path(config.masks), root, [name for name, _ in files]) if config.masks else {}
    hashed = files + [(f"mask of {name}", path) for name, path in masks.items()]
    return Source(
        hash_files(hashed),
        label_names,
        lambda: {split: _examples(root, found[split], label_names, masks, config) for split in found},
    )


def _examples(
    root: Path,
    files: list[tuple[str | None, Path]],
    label_names: tuple[str, ...] | None,
    masks: Mapping[str, Path],
    config: DataConfig,
) -> Examples:
    labels = np.array([label_names.index(name or "") for name, _ in files], np.int32) if label_names else None
    named = [(path.relative_to(root).as_posix(), path) for _, path in files]
    return of_files(named, [masks[name] for name, _ in named] if masks else None, config)._replace(labels=labels)


def of_files(files: Sequence[tuple[str, Path]], masks: Sequence[Path] | None, config: DataConfig) -> Examples:
    """Files of an image each (name and path), and those of their masks, as examples without labels."""
    names, paths = zip(*files, strict=True)
    read, read_mask = isolation.reader(decode, config), isolation.reader(_mask_of, config)
    segmentation = None if masks is None else reading(read_mask, list(zip(paths, masks, strict=True)))
    return Examples(len(files), reading(read, paths), paths=names, segmentation=segmentation)


def _mask_of(files: tuple[Path, Path]) -> UInt8[np.ndarray, "H W"]:
    """The mask of an image, from (the image's file, the mask's)."""
    try:
        mask = decode_segmentation(files[1])
        check_mask(mask, shape_of(files[0]))
    except DataError as error:
        raise DataError(f"its mask: {error}") from None
    return mask


def _masks(folder: Path, root: Path, names: list[str]) -> dict[str, Path]:
    """The mask of each image, by the image's name."""
    masks = masks_in(folder, root)
    missing = [name for name in names if stem(name) not in masks]
    if missing:
        raise DataError(
            f"data.masks={str(folder)!r}: expected a mask of each image, found none of {len(missing)} of {len(names)}: "
            f"{first_of(missing)}. Add them."
        )
    return {name: masks[stem(name)] for name in names}


def _split_folders(root: Path) -> dict[str, Path]:
    """The folder of each split; `root` is that of "train" where it has no folder `train`."""
    folders = [folder for folder in _visible(root.iterdir()) if folder.is_dir()]
    splits = {NAMES.get(folder.name.lower(), folder.name): folder for folder in folders}
    if not folders or ("train" not in splits and set(splits) - set(NAMES)):
        return {"train": root}
    loose = [path.name for path in files_in(root, "*")]
    if "train" not in splits or set(splits) - set(NAMES) or len(splits) < len(folders) or loose:
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
        raise DataError(f"{folder}: expected PNG, JPEG, TIFF or NPY images, found none. Check data.path.")
    files: list[tuple[str | None, Path]] = [(None, path) for path in loose]
    for label in classes:
        images = files_in(label, "**/*")
        if not images:
            raise DataError(f"{label}: expected the images of a class, found none. Add images or remove the folder.")
        files += [(label.name, path) for path in images]
    return files


def _visible(paths: Iterable[Path]) -> list[Path]:
    return sorted((path for path in paths if not path.name.startswith(".")), key=lambda path: path.as_posix())
