"""Masks beside images: which file is whose, and the classes of the voxels of a volume, cut as its slices are."""

import collections
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Float, Num, UInt8

from vaejax.config import DataConfig
from vaejax.datasets import isolation, stacks
from vaejax.datasets.image import SUFFIXES, check_mask, decode_segmentation, to_classes
from vaejax.datasets.stacks import Stack, Volume, is_nifti, named_in
from vaejax.errors import DataError

Masks = Mapping[str, tuple[Path, ...]]
"""The name of a file of a volume -> the files that hold its mask. Those of all files of a volume are the volume's."""

_APART = 0.1
"""Voxels by which those of a mask may lie beside those of its volume."""


INSIDE = "one inside data.path, so that its files count as images"


def misplaced(folder: str, found: str) -> DataError:
    """What `data.masks` is wrong for."""
    return DataError(f"data.masks={folder!r}: expected a folder of masks beside the images, found {found}.")


def stem(name: str) -> str:
    """A relative path without its suffix, or both of `.nii.gz`; digits alone, as at the end of a UID, are no suffix."""
    return re.sub(r"(\.nii\.gz|\.[^./]*[^./\d][^./]*)$", "", name, flags=re.IGNORECASE)


def masks_in(folder: Path, images: Path) -> dict[str, Path]:
    """Every file in the folder of masks by the `stem` of its relative path.

    Raises:
        DataError: no such folder, one inside of `images`, or two files of one stem.
    """
    inside = folder.resolve().is_relative_to(images.resolve())
    if inside or not folder.is_dir():
        raise misplaced(str(folder), INSIDE if inside else "a file" if folder.exists() else "none")
    masks: dict[str, Path] = {}
    for name, path in named_in(folder):
        other = masks.setdefault(stem(name), path)
        if other != path:
            raise DataError(f"data.masks: expected one mask of an image, found {other.name} and {path.name}. Remove one.")
    return masks


def of_files(names: Iterable[str], masks: Mapping[str, Path]) -> dict[str, tuple[Path, ...]]:
    """The masks of files of volumes, by their names; a file without one is left out.

    A mask has the relative path of its file. A DICOM file that has none such has that of its folder: the file of the folder's
    relative path, or all DICOM files in it, whatever they are called.

    Args:
        names: relative paths of the files of volumes.
        masks: see `masks_in`.
    """
    folders: dict[str, tuple[Path, ...]] = collections.defaultdict(tuple)
    for own, path in masks.items():
        if not is_nifti(path.name) and path.suffix.lower() not in SUFFIXES:
            folders[PurePosixPath(own).parent.as_posix()] += (path,)
    found = {}
    for name in names:
        folder = "" if is_nifti(name) else PurePosixPath(name).parent.as_posix()
        whole = masks.get(stem(name)) or masks.get(folder)
        found[name] = (whole,) if whole else folders.get(folder, ())
    return {name: paths for name, paths in found.items() if paths}


def mask_of(volume: Volume, stack: Stack, masks: Masks, config: DataConfig) -> UInt8[np.ndarray, "n h w"]:
    """The classes of the voxels of a volume, cut as its slices are.

    A NIfTI file on the volume's grid, its axes in any order and direction; or, of a DICOM series, one of as many frames at the
    same places, or, where only one of both knows its places, a DICOM file of each of its files; or an image file of each of its
    files, where they are of one frame.

    Raises:
        DataError: the bare reason: no mask, one that cannot be read, or that does not fit.
    """
    lacking = [name for name in volume.paths if name not in masks]
    if lacking:
        number = f" for {len(lacking)} of its {len(volume.paths)} files" if len(lacking) < len(volume.paths) else ""
        raise DataError(f"no mask of this relative path in data.masks{number}")
    files = {file: masks[name] for file, name in zip(volume.files, volume.paths, strict=True)}
    try:
        return to_classes(placed(files, stack, config))
    except DataError as error:
        raise DataError(f"its mask: {error}") from None


def placed(files: Mapping[Path, tuple[Path, ...]], stack: Stack, config: DataConfig) -> Num[np.ndarray, "n h w"]:
    """The values of a mask at the voxels of a volume, cut as its slices are; see `mask_of`.

    Args:
        files: each file of the volume -> those that hold its mask.
        stack: the volume.
        config: how it was read.

    Raises:
        DataError: the bare reason: one that cannot be read, or that does not fit.
    """
    from vaejax.datasets import nifti

    own = tuple(dict.fromkeys(file for each in files.values() for file in each))
    if isinstance(stack.source, nifti.Volume) or (len(own) == 1 and is_nifti(own[0].name)):
        values = _of_nifti(own[0], stack, config)
    elif any(path.suffix.lower() in SUFFIXES for path in own):
        values = _of_pictures(files, stack, config)
    else:
        values = _of_series(own, files, stack, config)
    require_same_size(values, stack)
    if values.shape[3:] not in ((), (1,)):
        raise DataError("colours, or several values a voxel; expected one class")
    return values.reshape(values.shape[:3])


def require_same_size(values: Num[np.ndarray, "..."], stack: Stack) -> None:
    """Raises DataError, the bare reason, where a mask has not as many slices, rows and columns as its image."""
    if values.shape[:3] != stack.voxels.shape[:3]:
        found, expected = (" x ".join(map(str, shape[:3])) for shape in (values.shape, stack.voxels.shape))
        raise DataError(f"{found} slices, rows and columns; expected {expected}, as its image has")


def _of_nifti(path: Path, stack: Stack, config: DataConfig) -> Num[np.ndarray, "n h w c"]:
    from vaejax.datasets import nifti, series

    decoded, source = isolation.reader(nifti.decode, config)(path), stack.source
    affine = source.affine if isinstance(source, nifti.Volume) else series.affine(source)
    mask = nifti.turned(decoded, affine)
    corners = np.indices((2, 2, 2)).reshape(3, -1).T * np.subtract(mask.voxels.shape[:3], 1)
    _check_places(((mask.affine - affine) @ np.c_[corners, np.ones(8)].T).T, stack)
    if isinstance(source, nifti.Volume):
        return stacks.cut(mask, config.slice_axis).voxels
    return mask.voxels.reshape(*mask.voxels.shape[:3], -1).transpose(2, 1, 0, 3)


def _of_series(
    own: tuple[Path, ...], files: Mapping[Path, tuple[Path, ...]], stack: Stack, config: DataConfig
) -> Num[np.ndarray, "n h w c"]:
    from vaejax.datasets import dicom, series

    mask, source = series.decode(own, isolation.reader(dicom.decode, config)), stack.source
    if mask.header.mirrored:
        raise DataError("in MONOCHROME1, so that nobody knows which value stands for none. Store it in MONOCHROME2")
    if (mask.positions is None) != (source.positions is None):
        return mask.pixels[_rows(files, mask.frames, source.frames)]
    for mine, theirs in ((mask.positions, source.positions), (series.last_pixels(mask), series.last_pixels(source))):
        if mine is not None and theirs is not None and len(mine) == len(theirs):
            _check_places(mine - theirs, stack)
    return mask.pixels


def _rows(
    files: Mapping[Path, tuple[Path, ...]], mine: Sequence[tuple[Path, int]], theirs: Sequence[tuple[Path, int]]
) -> list[int]:
    """Which of the frames (file, number) of a mask is that of each frame of its image, where each file has one of its own."""
    wanted = [(files[path][0], number) for path, number in theirs]
    if sorted(wanted) != sorted(mine):
        raise DataError(
            "its places are unknown: either it or its image does not say where the slices lie, and their files do not match "
            "one to one by name. Name each file of the mask as the one that it is of"
        )
    rows = {frame: row for row, frame in enumerate(mine)}
    return [rows[frame] for frame in wanted]


def _of_pictures(files: Mapping[Path, tuple[Path, ...]], stack: Stack, config: DataConfig) -> UInt8[np.ndarray, "n h w"]:
    """Image files, pixel on pixel, in the order that the slices were sorted to."""
    frames = stack.source.frames
    if len(frames) > len({own[0] for own in files.values()}):
        raise DataError("an image file, which only a single frame has. Make it a NIfTI file, or a DICOM series")
    classes = [isolation.reader(decode_segmentation, config)(files[frame.path][0]) for frame in frames]
    for one in classes:
        check_mask(one, stack.voxels.shape[1:3])
    return np.stack(classes)


def _check_places(apart: Float[np.ndarray, "n m"], stack: Stack) -> None:
    """Raises DataError where points of a mask lie `apart` mm, further columns 0, from those of its volume."""
    smallest = min((length for length in stack.spacing if length), default=1.0)
    if np.linalg.norm(apart, axis=1).max() > _APART * smallest:
        raise DataError("lies elsewhere than its image. Resample it to the grid of the image")
