"""A volume decoded to a stack of slices in its own units; the pure steps from there to prepared images, and the way back.

`scale_of`, `axes_of`, `images_of` and `blocks_of` lead there, `Stack.unstacked` and `Scale.units` back (`vaejax.studies`).
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Num, Shaped

from vaejax.config import DataConfig
from vaejax.datasets import geometry, isolation, workers
from vaejax.datasets.geometry import Axis
from vaejax.datasets.source import files_in
from vaejax.datasets.windows import Lut, Scale, window
from vaejax.errors import DataError

DARK = 0.1
"""A pixel brighter than this share of white is content."""

PERCENTILES = (0.5, 99.5)
"""Of the voxels of a volume, or of all volumes: what becomes black and white where no window says."""

_NO_IMAGES = {".yaml", ".yml", "DICOMDIR"}
"""Suffixes or names of what lies beside the images, besides notes."""


class Stack(NamedTuple):
    """A decoded volume as slices, as a radiologist sees them.

    Attributes:
        voxels: in the file's units, or colours.
        spacing: mm between slices, rows and columns; None where unknown or unequal.
        own: the window or table that a CT brings along.
        unstacked: an array of slices [n, h, w, ...] in the order and orientation of the file.
        source: the `vaejax.datasets.nifti.Volume` or `vaejax.datasets.series.Series` that it was read as.
    """

    voxels: Num[np.ndarray, "n h w c"]
    spacing: tuple[float | None, float | None, float | None]
    own: Scale | Lut | None
    unstacked: Callable[[Shaped[np.ndarray, "n h w ..."]], Shaped[np.ndarray, "..."]]
    source: Any


class Volume(NamedTuple):
    """What is read at once: a NIfTI file, or the DICOM files of a series.

    Attributes:
        paths: relative to the folder.
        files: where they lie.
        patient: what keeps the images of a patient together; it goes nowhere.
        read: decodes it. Raises DataError with the bare reason.
        text: how many of the files may show text in their pixels.
    """

    paths: tuple[str, ...]
    files: tuple[Path, ...]
    patient: str
    read: Callable[[], Stack]
    text: int = 0


def require_libraries(asking: str) -> None:
    """Raises DataError where the libraries that decode volumes are absent."""
    try:
        import nibabel  # noqa: F401  # whether it is there
        import pydicom  # noqa: F401
    except ImportError as error:
        raise DataError(f"{asking}: needs {error.name}. Install 'vaejax[medical]'.") from error


def named_in(root: Path) -> list[tuple[str, Path]]:
    """Relative path and path of every file under `root` that may be of a volume, sorted."""
    files = [path for path in files_in(root, "**/*") if not {path.suffix.lower(), path.name} & _NO_IMAGES]
    return [(path.relative_to(root).as_posix(), path) for path in files]


def is_nifti(name: str) -> bool:
    """Whether a file is taken for NIfTI, by its name."""
    return name.lower().endswith((".nii", ".nii.gz"))


def find(files: Sequence[tuple[str, Path]], config: DataConfig) -> list[Volume]:
    """The volumes that files (name and path) are of, sorted; nothing but headers is read.

    Raises:
        DataError: a series of several patients.
    """
    whole = [file for file in files if is_nifti(file[0])]
    parts = [file for file in files if not is_nifti(file[0])]
    found = [Volume((name,), (path,), name, functools.partial(_of_nifti, path, config)) for name, path in whole]
    series: dict[str, list[tuple[str, Path, str | None, bool]]] = {}
    groupings = workers.each(functools.partial(_grouping, config), parts, config.workers)
    for (name, path), (own, patient, text) in zip(parts, groupings, strict=True):
        series.setdefault(own, []).append((name, path, patient, text))
    for own, members in series.items():
        names, paths, patients, texts = zip(*members, strict=True)
        known = sorted({patient for patient in patients if patient})
        if len(known) > 1:
            raise DataError(
                f"{names[0]} and {len(names) - 1} other files: one series of {len(known)} patients. Mend their headers."
            )
        read = functools.partial(_of_series, paths, config)
        found.append(Volume(names, paths, known[0] if known else own, read, sum(texts)))
    return sorted(found, key=lambda volume: volume.paths)


# --- from a decoded volume to prepared images


def scale_of(stack: Stack, config: DataConfig, measured: tuple[float, float] | None) -> Scale | Lut:
    """How grey values are made: the whole range of colours; else by the window asked for, the volume's own, or percentiles.

    Args:
        stack: the volume.
        config: its `window`.
        measured: the percentiles of all volumes, where they are wanted instead of this one's.
    """
    if stack.voxels.shape[-1] > 1:
        return Scale(0.0, float(np.iinfo(stack.voxels.dtype).max))
    if config.window:
        centre, width = config.window
        return window(centre, width, "LINEAR_EXACT")
    if stack.own:
        return stack.own
    if measured:
        return Scale(*measured)
    low, high = np.percentile(finite(stack), PERCENTILES)
    return Scale(float(low), float(high))


def axes_of(stack: Stack, config: DataConfig) -> tuple[Axis, Axis, Axis]:
    """Where the slices, rows and columns of `images_of` lie among those of the stack: as found, or `config.spacing` apart."""
    asked: tuple[float | None, ...] = (None, None, None)
    if config.spacing:
        rows, columns, *between = config.spacing
        asked = (between[0] if between else None, rows, columns)
    found = []
    for n, known, wanted, what in zip(stack.voxels.shape, stack.spacing, asked, ("slices", "rows", "columns"), strict=False):
        if wanted is not None and known is None:
            raise DataError(f"the distance of its {what} is unknown or not the same everywhere, which data.spacing needs")
        found.append(geometry.same(n) if wanted is None or known is None else geometry.spaced(n, known, wanted))
    return found[0], found[1], found[2]


def spacing_of(stack: Stack, axes: tuple[Axis, Axis, Axis], fitted: tuple[Axis, Axis]) -> tuple[float, float, float]:
    """The mm between the slices, rows and columns at `axes`, the latter two `fitted` to a size; NaN where unknown."""
    steps = (axes[0].step, axes[1].step * fitted[0].step, axes[2].step * fitted[1].step)
    known = (math.nan if mm is None else mm for mm in stack.spacing)
    slices, rows, columns = (mm * step for mm, step in zip(known, steps, strict=True))
    return slices, rows, columns


def images_of(stack: Stack, axes: tuple[Axis, Axis, Axis], scale: Scale | Lut) -> Float32[np.ndarray, "n h w c"]:
    """The slices at `axes` as grey values or colours in [0, 1]."""
    grey = np.empty(stack.voxels.shape, np.float32)
    for place, voxels in enumerate(stack.voxels):  # one at a time: a series may be of gigabytes
        grey[place] = scale.grey(voxels)
    return np.clip(geometry.there(grey, axes), 0.0, 1.0) if axes != tuple(map(geometry.same, grey.shape[:3])) else grey


def wanted(images: Float32[np.ndarray, "n h w c"], config: DataConfig) -> list[int]:
    """The slices in the range asked for with content enough."""
    middles = (np.arange(len(images)) + 0.5) / len(images)
    within = (middles >= config.slice_range[0]) & (middles <= config.slice_range[1])
    content = (images > DARK).mean(axis=(1, 2, 3))
    return [int(place) for place in np.flatnonzero(within & (content >= config.slice_content))]


def blocks_of(images: Num[np.ndarray, "n h w c"], size: int) -> Num[np.ndarray, "n h w channels"]:
    """Every slice with its neighbours in the channels: itself is channel `size // 2`. The ends have copies for neighbours.

    Raises:
        DataError: colours, whose channels are not free.
    """
    if size == 1:
        return images
    if images.shape[-1] > 1:
        raise DataError("in colour, and data.block is of grey slices")
    n = len(images)
    rows = np.clip(np.arange(n)[:, None] + np.arange(size) - size // 2, 0, n - 1)
    return np.moveaxis(images[..., 0][rows], 1, -1)


def finite(stack: Stack) -> Num[np.ndarray, " m"]:
    """All voxels but NaN and infinities. Raises DataError where there are none."""
    finite = stack.voxels[np.isfinite(stack.voxels)]
    if not finite.size:
        raise DataError("no finite voxel")
    return finite


# --- files


def _grouping(config: DataConfig, file: tuple[str, Path]) -> tuple[str, str | None, bool]:
    """Series and patient of a DICOM file, and whether it may show text; one that cannot be read says why when it is read."""
    from vaejax.datasets import dicom

    name, path = file
    try:
        header = isolation.reader(dicom.read_header, config)(path)
    except DataError:
        return name, None, False
    return header.series or name, header.patient, header.text


def _of_nifti(path: Path, config: DataConfig) -> Stack:
    from vaejax.datasets import nifti

    return cut(isolation.reader(nifti.decode, config)(path), config.slice_axis)


def cut(decoded: Any, slice_axis: int) -> Stack:
    """Slices across an axis of a `vaejax.datasets.nifti.Volume` turned to RAS+.

    Rows run from the head down, or from the front to the back; columns from the patient's right to the left, or from the
    front to the back.

    Raises:
        DataError: several volumes in one file.
    """
    from vaejax.datasets import nifti

    count = int(np.prod(decoded.voxels.shape[3:-1] if decoded.colour else decoded.voxels.shape[3:]))
    if count != 1:
        raise DataError(f"{count} volumes in one file; expected one")
    turned = nifti.canonical(decoded)
    across = np.moveaxis(turned.voxels.reshape(*turned.voxels.shape[:3], -1), slice_axis, 0)

    def unstacked(slices: Shaped[np.ndarray, "n h w ..."]) -> Shaped[np.ndarray, "x y z ..."]:
        voxels = np.moveaxis(slices.swapaxes(1, 2)[:, ::-1, ::-1], 0, slice_axis)
        return nifti.turned(turned._replace(voxels=voxels), decoded.affine).voxels

    columns, rows = (turned.spacing[axis] for axis in range(3) if axis != slice_axis)
    spacing = (turned.spacing[slice_axis], rows, columns)
    return Stack(across[:, ::-1, ::-1].swapaxes(1, 2), spacing, None, unstacked, decoded)


def _of_series(paths: Iterable[Path], config: DataConfig) -> Stack:
    """The frames of all files of a series, sorted by position where they have one."""
    from vaejax.datasets import dicom, series

    found = series.decode(paths, isolation.reader(dicom.decode, config))
    return Stack(found.pixels, found.spacing, _own(found.header), lambda slices: slices, found)


def _own(header: Any) -> Scale | Lut | None:
    """The first window of a CT, or else the first of its tables that rises: another leads nowhere back."""
    if header.modality != "CT":
        return None
    if header.windows:
        centre, width = header.windows[0]
        return window(centre, width, header.function)
    return next((table for table in header.luts if table.rises), None)
