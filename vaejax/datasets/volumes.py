"""A folder of DICOM and NIfTI files, at any depth: every frame or slice is an image, and a patient is in one split.

A volume is decoded to a `Stack` of slices in its own units; `scale_of`, `axes_of`, `images_of` and `blocks_of` are the pure
steps from there to prepared images, and `Stack.unstacked` and `Scale.units` the way back (`vaejax.studies`).
"""

import contextlib
import functools
import hashlib
import math
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Num, Shaped, UInt8
from rich.console import Console

from vaejax.config import DataConfig
from vaejax.datasets import geometry, isolation, workers
from vaejax.datasets.geometry import Axis
from vaejax.datasets.image import check_mask, decode_segmentation, to_classes
from vaejax.datasets.source import Examples, Source, files_in, hash_files, reading
from vaejax.errors import DataError

PERCENTILES = (0.5, 99.5)
"""Of the voxels of a volume, or of all volumes: what becomes black and white where no window says."""

DARK = 0.1
"""A pixel brighter than this share of white is content."""

_NO_IMAGES = {".yaml", ".yml", "DICOMDIR"}
"""Suffixes or names of what lies beside the images, besides notes."""

_QUANTILES = 2001
"""Of a volume, that stand for its voxels where percentiles are those of all volumes."""

_APART = 0.1
"""Voxels by which a corner of a mask may lie beside that of its volume."""

_SINCE = ("slice_range", "spacing", "block", "normalize")
"""Fields that count in the contents where they are not their defaults, so that what was prepared without them stays."""


class Scale(NamedTuple):
    """From a file's units to grey values in [0, 1], and back.

    Attributes:
        low: becomes 0; of a sigmoid, centre - width / 2.
        high: becomes 1; of a sigmoid, centre + width / 2.
        sigmoid: 1 / (1 + exp(-4 t)) of the distance t from the centre in widths (DICOM C.11.2.1.3.1), instead of a line.
    """

    low: float
    high: float
    sigmoid: bool = False

    def grey(self, values: Num[np.ndarray, "..."]) -> Float32[np.ndarray, "..."]:
        """Values in units as grey values; NaN is black."""
        known = np.nan_to_num(values.astype(np.float64), nan=-np.inf, posinf=np.inf, neginf=-np.inf)
        if self.sigmoid:
            line = (np.clip(known, -1e300, 1e300) - (self.low + self.high) / 2) / (self.high - self.low)
            return (0.5 + 0.5 * np.tanh(2.0 * line)).astype(np.float32)
        return ((np.clip(known, self.low, self.high) - self.low) / max(self.high - self.low, 1e-12)).astype(np.float32)

    def units(self, grey: Float32[np.ndarray, "..."]) -> Float32[np.ndarray, "..."]:
        """Grey values in units, NaN as it is. What lay beyond black or white is not known any more."""
        line = grey.astype(np.float64)
        if self.sigmoid:
            line = 0.5 + 0.5 * np.arctanh(np.clip(2.0 * line - 1.0, -0.9999, 0.9999))
        return (self.low + line * (self.high - self.low)).astype(np.float32)


class Stack(NamedTuple):
    """A decoded volume as slices, as a radiologist sees them.

    Attributes:
        voxels: in the file's units, or colours.
        spacing: mm between slices, rows and columns; None where unknown or unequal.
        own: the window that a CT brings along.
        unstacked: an array of slices [n, h, w, ...] in the order and orientation of the file.
        source: the `vaejax.datasets.nifti.Volume` or `vaejax.datasets.series.Series` that it was read as.
    """

    voxels: Num[np.ndarray, "n h w c"]
    spacing: tuple[float | None, float | None, float | None]
    own: Scale | None
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


def source(config: DataConfig) -> Source:
    """All slices of all volumes under `config.path`, in the order of their first paths.

    A series of DICOM files is sorted by position, where its slices are parallel and each has a place of its own. Its patient is
    the PatientID, or where there is none the series; a NIfTI file, whose header knows no patient, counts as a patient.
    `config.window`, or a CT's own, or percentiles say what is black and white. NaN is black. With `config.masks`, each NIfTI
    volume has a mask of the same relative path on the same grid, and the slices are segmentations, too.

    Raises:
        DataError: no such folder, no files in it, or the libraries that read them are absent.
    """
    root = Path(config.path or "")
    if not root.is_dir():
        raise DataError(
            f"{root}: expected a folder of DICOM and NIfTI files, found {'a file' if root.exists() else 'none'}. "
            "Check data.path."
        )
    require_libraries("data.name='volumes'")
    named = named_in(root)
    if not named:
        raise DataError(f"{root}: expected DICOM or NIfTI files, found none. Check data.path.")
    masks = None if config.masks is None else _masks(Path(config.masks), root)
    contents = contents_of(named, config, None if masks is None else masks.items())
    own = None if masks is None else {name: masks[stem] for name, _ in named if (stem := _stem(name)) in masks}
    return Source(contents, None, lambda: {"train": examples(find(named, config), own, config)})


def contents_of(files: Iterable[tuple[str, Path]], config: DataConfig, masks: Iterable[tuple[str, Path]] | None = None) -> str:
    """sha256 hex of the files of volumes, and of the settings that say which images they give."""
    asked = f"{hash_files(files)} {config.slice_axis} {config.slice_content} {config.window}"
    for name in _SINCE:
        value = getattr(config, name)
        asked += f" {name}={value}" if value != getattr(DataConfig, name) else ""
    if masks is not None:
        asked += f" masks={hash_files(masks)}"
    return hashlib.sha256(asked.encode()).hexdigest()


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


def scale_of(stack: Stack, config: DataConfig, measured: tuple[float, float] | None) -> Scale:
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
        return Scale(centre - width / 2.0, centre + width / 2.0)
    if stack.own:
        return stack.own
    if measured:
        return Scale(*measured)
    low, high = np.percentile(_finite(stack), PERCENTILES)
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


def images_of(stack: Stack, axes: tuple[Axis, Axis, Axis], scale: Scale) -> Float32[np.ndarray, "n h w c"]:
    """The slices at `axes` as grey values or colours in [0, 1]."""
    grey = np.empty(stack.voxels.shape, np.float32)
    for place, voxels in enumerate(stack.voxels):  # one at a time: a series may be of gigabytes
        grey[place] = scale.grey(voxels)
    return np.clip(geometry.there(grey, axes), 0.0, 1.0) if axes != tuple(map(geometry.same, grey.shape[:3])) else grey


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


def _finite(stack: Stack) -> Num[np.ndarray, " m"]:
    finite = stack.voxels[np.isfinite(stack.voxels)]
    if not finite.size:
        raise DataError("no finite voxel")
    return finite


def _measured(volumes: list[Volume], config: DataConfig) -> tuple[float, float] | None:
    """The percentiles of all volumes that have no window, each with the same weight; None where there is no such volume."""
    quantiles = [found for found in workers.each(_quantiles, volumes, config.workers) if found is not None]
    if not quantiles:
        return None
    low, high = np.percentile(np.concatenate(quantiles), PERCENTILES)
    return float(low), float(high)


def _quantiles(volume: Volume) -> Num[np.ndarray, " q"] | None:
    """What stands for the voxels of a volume; None where it has a window, or colours, or cannot be read."""
    try:
        stack = volume.read()
        if stack.own or stack.voxels.shape[-1] > 1:
            return None
        return np.quantile(_finite(stack), np.linspace(0.0, 1.0, _QUANTILES))
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


def examples(volumes: list[Volume], masks: dict[str, Path] | None, config: DataConfig) -> Examples:
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
    with contextlib.ExitStack() as stack:
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


def _written(
    folder: Path,
    masks: dict[str, Path] | None,
    config: DataConfig,
    measured: tuple[float, float] | None,
    numbered: tuple[int, Volume],
) -> list[_Slice]:
    """Writes the wanted slices of a volume; says where they are, or why there are none."""
    number, volume = numbered
    try:
        images, segmentation, spacing = _slices(volume, masks, config, measured)
        blocks = blocks_of(images, config.block)
    except DataError as error:
        return [_Slice(number, 0, reason=str(error))]
    written = []
    with (folder / str(number)).open("wb") as file:
        for place in wanted(images, config):
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
    volume: Volume, masks: dict[str, Path] | None, config: DataConfig, measured: tuple[float, float] | None
) -> tuple[Float32[np.ndarray, "n h w c"], UInt8[np.ndarray, "n h w"] | None, tuple[float, float, float]]:
    """The slices of a volume, the classes of their pixels where masks are wanted, and `spacing_of` it."""
    stack = volume.read()
    axes = axes_of(stack, config)
    segmentation = None if masks is None else geometry.there(_mask(volume, stack, masks, config), axes)
    images = images_of(stack, axes, scale_of(stack, config, measured))
    height, width = config.image_size or images.shape[1:3]
    fitted = geometry.fitted(images.shape[1:3], (height, width), config.resize)
    return images, segmentation, spacing_of(stack, axes, fitted)


def wanted(images: Float32[np.ndarray, "n h w c"], config: DataConfig) -> list[int]:
    """The slices in the range asked for with content enough."""
    middles = (np.arange(len(images)) + 0.5) / len(images)
    within = (middles >= config.slice_range[0]) & (middles <= config.slice_range[1])
    content = (images > DARK).mean(axis=(1, 2, 3))
    return [int(place) for place in np.flatnonzero(within & (content >= config.slice_content))]


# --- masks


def _masks(folder: Path, root: Path) -> dict[str, Path]:
    """Every file in a folder of masks by its relative path without suffix."""
    if not folder.is_dir():
        raise DataError(f"data.masks={str(folder)!r}: expected a folder, found none. Check it.")
    if folder.resolve().is_relative_to(root.resolve()):
        raise DataError(f"data.masks={str(folder)!r}: lies in data.path, so that its files count as images. Put it elsewhere.")
    masks: dict[str, Path] = {}
    for name, path in named_in(folder):
        other = masks.setdefault(_stem(name), path)
        if other != path:
            raise DataError(f"data.masks: {other.name} and {path.name} are masks of one volume. Remove one of them.")
    return masks


def _stem(name: str) -> str:
    """A relative path without its suffix, or both of `.nii.gz`."""
    return str(Path(name.removesuffix(".gz") if is_nifti(name) else name).with_suffix("").as_posix())


def _mask(volume: Volume, stack: Stack, masks: dict[str, Path], config: DataConfig) -> UInt8[np.ndarray, "n h w"]:
    """The mask of a volume, cut as its slices are."""
    from vaejax.datasets import nifti

    path = masks.get(volume.paths[0])
    if path is None:
        raise DataError("no mask of this relative path in data.masks")
    try:
        if not isinstance(stack.source, nifti.Volume):
            return _mask_of_frame(path, stack, config)
        mask = _of_nifti(path, config)
    except DataError as error:
        raise DataError(f"its mask: {error}") from None
    require_same_grid(mask.source, stack.source, stack.source.voxels.shape[:3])
    if mask.voxels.shape[-1] != 1:
        raise DataError("its mask is in colour")
    return to_classes(mask.voxels[..., 0])


def require_same_grid(mask: Any, image: Any, shape: tuple[int, ...]) -> None:
    """Raises DataError, the bare reason, where the mask of a NIfTI image (`nifti.Volume`) of a shape lies elsewhere."""
    corners = np.indices((2, 2, 2)).reshape(3, -1).T * shape
    apart = (mask.affine - image.affine) @ np.c_[corners, np.ones(8)].T
    if mask.voxels.shape[:3] != shape:
        raise DataError(f"its mask has {mask.voxels.shape[:3]} voxels; expected {shape}")
    if np.linalg.norm(apart, axis=0).max() > _APART * min(image.spacing):
        raise DataError("its mask lies elsewhere (another affine). Resample it to the grid of the image.")


def _mask_of_frame(path: Path, stack: Stack, config: DataConfig) -> UInt8[np.ndarray, "1 h w"]:
    """The mask, an image file, of a DICOM file of one frame: pixel on pixel."""
    if len(stack.voxels) != 1 or is_nifti(path.name):
        raise DataError("of a DICOM series, or no image file; only a single frame has one. Convert both to NIfTI.")
    mask = isolation.reader(decode_segmentation, config)(path)
    check_mask(mask, stack.voxels.shape[1:3])
    return mask[None]


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
    """Slices across `config.slice_axis` of the volume turned to RAS+.

    Rows run from the head down, or from the front to the back; columns from the patient's right to the left, or from the
    front to the back.
    """
    from vaejax.datasets import nifti

    decoded, slice_axis = isolation.reader(nifti.decode, config)(path), config.slice_axis
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
    own, header = None, found.header
    if header.modality == "CT" and header.windows:
        centre, width = header.windows[0]
        own = Scale(centre - width / 2.0, centre + width / 2.0, header.function == "SIGMOID")
    return Stack(found.pixels, found.spacing, own, lambda slices: slices, found)
