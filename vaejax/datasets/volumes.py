"""A folder of DICOM and NIfTI files, at any depth: every frame or slice is an image, and a patient is in one split.

How a volume becomes images says `vaejax.datasets.stacks`.
"""

import contextlib
import functools
import hashlib
import math
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Num, UInt8
from rich.console import Console

from vaejax.config import DataConfig
from vaejax.datasets import geometry, stacks, workers
from vaejax.datasets.masks import Masks, mask_of, masks_in, of_files
from vaejax.datasets.source import Examples, Source, hash_files, reading
from vaejax.datasets.stacks import Volume
from vaejax.errors import DataError

_QUANTILES = 2001
"""Of a volume, that stand for its voxels where percentiles are those of all volumes."""

_OF_DICOM = 2
"""Raised when what DICOM files give changes, such as by 2, a CT's linear window half a unit lower, as the standard has it."""

_SINCE = ("slice_range", "spacing", "block", "normalize")
"""Fields that count in the contents where they are not their defaults, so that what was prepared without them stays."""


def source(config: DataConfig) -> Source:
    """All slices of all volumes under `config.path`, in the order of their first paths.

    A series of DICOM files is sorted by position, where its slices are parallel and each has a place of its own. Its patient is
    the PatientID, or where there is none the series; a NIfTI file, whose header knows no patient, counts as a patient.
    `config.window`, or a CT's own, or percentiles say what is black and white. NaN is black. With `config.masks`, each volume
    has a mask (`vaejax.datasets.masks`), and the slices are segmentations, too.

    Raises:
        DataError: no such folder, no files in it, or the libraries that read them are absent.
    """
    root = Path(config.path or "")
    if not root.is_dir():
        raise DataError(
            f"{root}: expected a folder of DICOM and NIfTI files, found {'a file' if root.exists() else 'none'}. "
            "Check data.path."
        )
    stacks.require_libraries("data.name='volumes'")
    named = stacks.named_in(root)
    if not named:
        raise DataError(f"{root}: expected DICOM or NIfTI files, found none. Check data.path.")
    masks = None if config.masks is None else masks_in(Path(config.masks), root)
    contents = contents_of(named, config, None if masks is None else masks.items())
    own = None if masks is None else of_files([name for name, _ in named], masks)
    return Source(contents, None, lambda: {"train": examples(stacks.find(named, config), own, config)})


def contents_of(files: Iterable[tuple[str, Path]], config: DataConfig, masks: Iterable[tuple[str, Path]] | None = None) -> str:
    """sha256 hex of the files of volumes, and of the settings that say which images they give."""
    files = list(files)
    asked = f"{hash_files(files)} {config.slice_axis} {config.slice_content} {config.window}"
    asked += f" dicom={_OF_DICOM}" if any(name and not stacks.is_nifti(name) for name, _ in files) else ""
    for name in _SINCE:
        value = getattr(config, name)
        asked += f" {name}={value}" if value != getattr(DataConfig, name) else ""
    if masks is not None:
        asked += f" masks={hash_files(masks)}"
    return hashlib.sha256(asked.encode()).hexdigest()


def _measured(volumes: list[Volume], config: DataConfig) -> tuple[float, float] | None:
    """The percentiles of all volumes that have no window, each with the same weight; None where there is no such volume."""
    quantiles = [found for found in workers.each(_quantiles, volumes, config.workers) if found is not None]
    if not quantiles:
        return None
    low, high = np.percentile(np.concatenate(quantiles), stacks.PERCENTILES)
    return float(low), float(high)


def _quantiles(volume: Volume) -> Num[np.ndarray, " q"] | None:
    """What stands for the voxels of a volume; None where it has a window, or colours, or cannot be read."""
    try:
        stack = volume.read()
        if stack.own or stack.voxels.shape[-1] > 1:
            return None
        return np.quantile(stacks.finite(stack), np.linspace(0.0, 1.0, _QUANTILES))
    except DataError:  # told when its slices are read
        return None


# --- examples


class _Slice(NamedTuple):
    """An example: of which volume, which slice, where its image begins in the volume's file, its mask behind; or why not.

    Its spacing is that of the prepared slices, rows and columns, mm.
    """

    volume: int
    place: int
    shape: tuple[int, ...] = ()
    start: int = 0
    reason: str = ""
    spacing: tuple[float, float, float] = (math.nan,) * 3


def examples(volumes: list[Volume], masks: Masks | None, config: DataConfig) -> Examples:
    """The slices that are wanted and have content enough; a volume that cannot be read is one example that says why.

    They wait in files of a private temporary folder, so that no volume is decoded twice; it goes with what reads them here.
    Where files may show text, the terminal says how many.
    """
    text = sum(volume.text for volume in volumes)
    if text:
        Console(stderr=True).print(
            f"{text} DICOM files may show text in their pixels, such as a name, which a model can learn: look at them, "
            "and blank it with `vaejax deidentify`."
        )
    measured = _measured(volumes, config) if config.normalize == "dataset" and not config.window else None
    with _blaming_the_temporary_folder(), contextlib.ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="vaejax-"))  # mode 0700
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        write = functools.partial(_written, folder, masks, config, measured)
        parts = list(workers.each(write, list(enumerate(volumes)), config.workers))
        chosen = [part for slices in parts for part in slices]
        reasons = {part.volume: part.reason for part in chosen if part.reason}
        if len(reasons) == len(volumes):
            raise DataError(
                f"none of {len(volumes)} volumes can be read ({volumes[0].paths[0]}: {reasons[0]}). Check data.path."
            )
        if not chosen:
            raise DataError(
                f"data.slice_content={config.slice_content}: no slice in data.slice_range={config.slice_range} has as much. "
                "Choose less, or a wider range."
            )
        read = reading(functools.partial(_image, folder), chosen)
        segmentation = reading(functools.partial(_segmentation, folder), chosen) if masks is not None else None
        weakref.finalize(read, stack.pop_all().close)  # not of its copies in other processes
    owners = sorted({volume.patient for number, volume in enumerate(volumes) if number not in reasons})
    numbers = {owner: number for number, owner in enumerate(owners)}  # what is unreadable is nobody's, and stays in train
    patients = np.array([-1 if part.volume in reasons else numbers[volumes[part.volume].patient] for part in chosen])
    paths = tuple(f"{volumes[part.volume].paths[0]}, slice {part.place}" for part in chosen)
    of_volumes, spacing = np.array([part.volume for part in chosen]), np.array([part.spacing for part in chosen], np.float32)
    return Examples(len(chosen), read, None, paths, patients, segmentation, measured, of_volumes, spacing)


@contextlib.contextmanager
def _blaming_the_temporary_folder() -> Iterator[None]:
    """All that is written here is written there; decoders give no OSError."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"TMPDIR={tempfile.gettempdir()!r}: the slices could not be kept there while they are prepared: {error}. "
            "Check free space and permissions, or set the environment variable TMPDIR to another folder."
        ) from error


def _written(
    folder: Path,
    masks: Masks | None,
    config: DataConfig,
    measured: tuple[float, float] | None,
    numbered: tuple[int, Volume],
) -> list[_Slice]:
    """Writes the wanted slices of a volume; says where they are, or why there are none."""
    number, volume = numbered
    try:
        images, segmentation, spacing = _slices(volume, masks, config, measured)
        blocks = stacks.blocks_of(images, config.block)
    except DataError as error:
        return [_Slice(number, 0, reason=str(error))]
    written = []
    with (folder / str(number)).open("wb") as file:
        for place in stacks.wanted(images, config):
            written.append(_Slice(number, place, blocks.shape[1:], file.tell(), spacing=spacing))
            file.write(blocks[place].tobytes())
            file.write(b"" if segmentation is None else segmentation[place].tobytes())
    return written


def _image(folder: Path, part: _Slice) -> Float32[np.ndarray, "H W C"]:
    return _kept(folder, part, part.start, np.float32, part.shape)


def _segmentation(folder: Path, part: _Slice) -> UInt8[np.ndarray, "H W"]:
    return _kept(folder, part, part.start + 4 * math.prod(part.shape), np.uint8, part.shape[:2])


def _kept(folder: Path, part: _Slice, start: int, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
    """An array of an example, or why there is none."""
    if part.reason:
        raise DataError(part.reason)
    return np.fromfile(folder / str(part.volume), dtype, math.prod(shape), offset=start).reshape(shape)


def _slices(
    volume: Volume, masks: Masks | None, config: DataConfig, measured: tuple[float, float] | None
) -> tuple[Float32[np.ndarray, "n h w c"], UInt8[np.ndarray, "n h w"] | None, tuple[float, float, float]]:
    """The slices of a volume, the classes of their pixels where masks are wanted, and `stacks.spacing_of` it."""
    stack = volume.read()
    axes = stacks.axes_of(stack, config)
    segmentation = None if masks is None else geometry.there(mask_of(volume, stack, masks, config), axes)
    images = stacks.images_of(stack, axes, stacks.scale_of(stack, config, measured))
    height, width = config.image_size or images.shape[1:3]
    fitted = geometry.fitted(images.shape[1:3], (height, width), config.resize)
    return images, segmentation, stacks.spacing_of(stack, axes, fitted)
