"""Files from anywhere as prepared images, and results back in the geometry of those files.

A study is a PNG, JPEG, TIFF or NPY file, a NIfTI file, or a DICOM series. Its images are made as those that a run trained on;
what a model makes of them goes back to the grid of the file:
`study.save(folder, study.units(study.back(restored)), "reconstruction")`.
"""

import functools
import json
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int, Num, Shaped, UInt8
from PIL import Image, ImageDraw

from vaejax.config import DataConfig
from vaejax.datasets import DataSet, arrays, geometry, image, isolation, masks, stacks
from vaejax.datasets.geometry import Axis
from vaejax.datasets.source import NOTICE, hash_files
from vaejax.datasets.stacks import Stack, Volume
from vaejax.datasets.windows import Lut, Scale
from vaejax.errors import DataError

_STACKS = ("arrays", "medmnist")
"""Sources that take an NPY file for a stack of images, or of volumes, and not for one image."""
_LINE = 12  # pixels of a line of text in a margin, and
_LETTER = 7  # of the widest letter, generously
_NARROWEST = 10 * _LETTER  # the longest word fits


class Study(NamedTuple):
    """A file or series, opened. It is in memory; `read` gives one after the other.

    Attributes:
        id: 16 hex digits of the sha256 of the files' contents: no name.
        paths: of its files, relative to what was opened. They can carry names.
        files: where they lie.
        images: prepared for the run: in [0, 1], every slice of a volume.
        wanted: the slices that a training would take (`data.slice_range`, `data.slice_content`).
        stack: the source itself, as slices in its units. Its `unstacked` leads to the grid of the source as the source's own
            axes: [x, y, z, ...] of a NIfTI file in its own order, [n, h, w, ...] of a series sorted by position, [h, w, ...] of
            a picture turned as its EXIF says, and as the images of an NPY file lie.
        axes: where the slices, rows and columns of `images` lie among the source's.
        scale: from the source's units to [0, 1].
        colour: whether the source has several channels: colours, or alpha.
        whole: the type of grey levels or colours; None for values with a unit, and for floats.
        write: see `save`.
    """

    id: str
    paths: tuple[str, ...]
    files: tuple[Path, ...]
    images: Float32[np.ndarray, "n H W C"]
    wanted: Bool[np.ndarray, " n"]
    stack: Stack
    axes: tuple[Axis, Axis, Axis]
    scale: Scale | Lut
    colour: bool
    whole: np.dtype | None
    write: Callable[[Path, np.ndarray, str, bool], list[Path]]

    @property
    def voxels(self) -> Num[np.ndarray, "..."]:
        """The source itself, on its grid, in its units; channels last where there are several."""
        return self.stack.unstacked(self.stack.voxels if self.colour else self.stack.voxels[..., 0])

    def under(self, mask: Bool[np.ndarray, "n h w"]) -> Bool[np.ndarray, "N H W"]:
        """The pixels of `images` that are made of any voxel of a mask, which is cut as the slices of `stack` are."""
        return geometry.there(mask.astype(np.float32), self.axes) > 0

    def back(self, values: Shaped[np.ndarray, "n H W *C"]) -> Shaped[np.ndarray, "..."]:
        """Values at the pixels of `images`, on the grid of the source.

        Floats are interpolated linearly, and are NaN where the source was cropped away; integers and bools, such as masks, take
        the nearest value, and are 0 there. Of several channels, the middle one is that of the slice, but in colour.
        """
        if values.ndim == 4 and not (self.colour and values.shape[-1] > 1):
            values = values[..., values.shape[-1] // 2]
        outside = np.nan if values.dtype.kind == "f" else 0
        return self.stack.unstacked(geometry.back(values, self.axes, outside))

    def units(self, values: Float32[np.ndarray, "..."]) -> Num[np.ndarray, "..."]:
        """Values of [0, 1] in the units of the source, float32; or as grey levels or colours, where it has such: NaN as 0."""
        values = self.scale.units(values)
        if self.whole is None:
            return values
        return np.clip(np.rint(np.nan_to_num(values)), 0, np.iinfo(self.whole).max).astype(self.whole)

    def save(self, folder: Path, values: Shaped[np.ndarray, "..."], name: str, identify: bool = False) -> list[Path]:
        """Writes an array on the grid of the source, as `back` gives it, in the format of the source.

        A NIfTI file has the affine of its source; a DICOM series is a derived one in the place of its source
        (`vaejax.datasets.series.save`); an NPY file is one, values as they are; a picture is a PNG with a notice in a margin
        below, its pixels untouched: bools are black and white, other integers stay as they are, floats of [0, 1] have 16 bits
        (others are scaled, as the margin says).

        Args:
            folder: where ID_NAME.nii.gz, ID_NAME.png, ID_NAME.npy, or the folder ID_NAME goes.
            values: floats, integers or bools.
            name: what it shows, such as "reconstruction".
            identify: whether a DICOM series keeps the patient and study of its source.

        Returns:
            the files written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        return self.write(folder / f"{self.id}_{name}", values, name, identify)


def read(path: Path, config: DataConfig, data: DataSet) -> Iterator[Study]:
    """The studies in a file or folder, at any depth, sorted by path: each is opened when its turn comes.

    Args:
        path: a file, or a folder whose hidden files and notes are passed over.
        config: how the run's images were prepared: window, spacing, axis, block, fitting. All slices are given, whatever their
            content and range.
        data: the run's images, for their shape, and the window that was measured over all of them.

    Raises:
        DataError: no such path, no files in it, or one that cannot be read.
    """
    for volume in _found(path, config):
        try:
            yield _study(volume, config, data)
        except DataError as error:
            raise DataError(f"{volume.paths[0]}: {error}") from None


Compute = Callable[[Study, Int[np.ndarray, " b"]], Mapping[str, Any]]
"""(study, the numbers of some of its slices) -> arrays by name, [b, H, W] or [b, H, W, C], or numbers [b] or [b, d]."""


def results(
    found: Iterable[Study], compute: Compute, batch_size: int
) -> Iterator[tuple[Study, dict[str, Shaped[np.ndarray, "n ..."]]]]:
    """Every study with what `compute` makes of its images, `batch_size` at a time; the last slice fills up the last batch."""
    for study in found:
        parts: dict[str, list[np.ndarray]] = {}
        for start in range(0, len(study.images), batch_size):
            rows = np.minimum(np.arange(start, start + batch_size), len(study.images) - 1)
            for name, values in compute(study, rows).items():
                parts.setdefault(name, []).append(np.asarray(values))
        yield study, {name: np.concatenate(values)[: len(study.images)] for name, values in parts.items()}


def mask(path: Path, study: Study, config: DataConfig) -> Bool[np.ndarray, "n h w"]:
    """The voxels of a study where a file on its grid is not 0, cut as the slices of its `stack` are.

    A picture, or an NPY file, has an image file of its size; a volume has what `vaejax.datasets.masks` takes for its mask.

    Raises:
        DataError: no such file, or one of another size, or in another place.
    """
    try:
        found = _found(path, config)
        if len(found) != 1:
            raise DataError(f"expected one mask, found {len(found)}")
        if not isinstance(study.stack.source, Path):
            named = {masks.stem(name): (file,) for name, file in zip(found[0].paths, found[0].files, strict=True)}
            own = [named.get(masks.stem(name), found[0].files) for name in study.paths]
            return masks.placed(dict(zip(study.files, own, strict=True)), study.stack, config) != 0
        if found[0].files[0].suffix.lower() not in image.SUFFIXES:
            raise DataError("a volume; expected an image file, as its image is one")
        voxels = found[0].read().voxels
        masks.require_same_size(voxels, study.stack)
    except DataError as error:
        raise DataError(f"--mask={path}: {error}. Draw it on the image itself: 0 where it is seen.") from None
    return (voxels != 0).any(axis=-1)


def write_index(folder: Path, paths: Mapping[str, Sequence[str]]) -> Path:
    """Writes studies.json, which says which id is of which files; only its owner can read it, as paths can carry names.

    Those that are there already stay: their results lie in the folder, too.
    """
    file = folder / "studies.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    file.touch(mode=0o600)
    file.chmod(0o600)
    file.write_text(json.dumps(known | dict(paths), indent=2) + "\n")
    return file


# --- in


def _found(path: Path, config: DataConfig) -> list[Volume]:
    """What is to be read at once, a picture as a volume of one slice."""
    if not path.exists():
        raise DataError(f"{path}: expected a file or folder of images, found none.")
    named = [(path.name, path)] if path.is_file() else stacks.named_in(path)
    pictures = [(name, file) for name, file in named if file.suffix.lower() in image.SUFFIXES]
    others = [(name, file) for name, file in named if file.suffix.lower() not in image.SUFFIXES]
    if not named:
        raise DataError(f"{path}: expected PNG, JPEG, TIFF, NPY, NIfTI or DICOM files, found none.")
    if others:
        stacks.require_libraries(str(path))
    found = [Volume((name,), (file,), name, functools.partial(_of_picture, file, config)) for name, file in pictures]
    return sorted(found + stacks.find(others, config), key=lambda volume: volume.paths)


def _of_picture(file: Path, config: DataConfig) -> Stack:
    if _is_array(file) and config.name in _STACKS:
        return _of_array(file, config)
    pixels = isolation.reader(image.decode, config)(file)
    return Stack(pixels[np.newaxis], (None, None, None), None, lambda slices: slices[0], file)


def _of_array(file: Path, config: DataConfig) -> Stack:
    """All images of an NPY file, as the source of that name takes them."""
    pixels = isolation.reader(arrays.of_npy, config)(file)
    flat = pixels.reshape(-1, *pixels.shape[-3:])
    return Stack(flat, (None, None, None), None, lambda slices: slices.reshape(*pixels.shape[:-3], *slices.shape[1:]), file)


def _is_array(file: Path) -> bool:
    return file.suffix.lower() == ".npy"


def _study(volume: Volume, config: DataConfig, data: DataSet) -> Study:
    stack = volume.read()
    axes = stacks.axes_of(stack, config)
    if isinstance(stack.source, Path):  # a picture is fitted in its own levels, as those that were prepared
        slices, wanted = stack.voxels, list(range(len(stack.voxels)))
        scale: Scale | Lut = Scale(0.0, image.WHITE[stack.voxels.dtype.name])
    else:
        scale = stacks.scale_of(stack, config, data.window)
        slices = stacks.images_of(stack, axes, scale)
        wanted = stacks.wanted(slices, config)
        slices = stacks.blocks_of(slices, config.block)
    height, width, channels = data.image_shape
    fitted = [image.resize(image.to_channels(one, channels), (height, width), config.resize) for one in slices]
    rows, columns = geometry.fitted(slices.shape[1:3], (height, width), config.resize)
    levels = stack.voxels.dtype.kind != "f" and (isinstance(stack.source, Path) or stack.voxels.shape[-1] > 1)
    return Study(
        hash_files(("", file) for file in volume.files)[:16],
        volume.paths,
        volume.files,
        np.stack(fitted).astype(np.float32) / np.float32(image.WHITE[slices.dtype.name]),
        np.isin(np.arange(len(fitted)), wanted),
        stack,
        (axes[0], geometry.after(axes[1], rows), geometry.after(axes[2], columns)),
        scale,
        stack.voxels.shape[-1] > 1,
        stack.voxels.dtype if levels else None,
        _writer(stack),
    )


# --- out


def _writer(stack: Stack) -> Callable[[Path, np.ndarray, str, bool], list[Path]]:
    """How results of a study are written; it holds no voxels."""
    if isinstance(stack.source, Path) and _is_array(stack.source):
        return lambda path, values, name, identify: [_write_array(path.with_name(path.name + ".npy"), values)]
    if isinstance(stack.source, Path):
        return lambda path, values, name, identify: [_write_picture(path.with_name(path.name + ".png"), values, name)]

    from vaejax.datasets import nifti, series

    if isinstance(stack.source, nifti.Volume):
        header = stack.source._replace(voxels=np.zeros((1, 1, 1)))

        def write(path: Path, values: np.ndarray, name: str, identify: bool) -> list[Path]:
            file = path.with_name(path.name + ".nii.gz")
            nifti.save(
                file, values, header.affine, header._replace(colour=header.colour and values.ndim == 4), f"{name}: {NOTICE}"
            )
            return [file]

        return write
    source = stack.source._replace(pixels=np.zeros((0, 1, 1, 1)))
    return lambda path, values, name, identify: series.save(path, values, source, name, identify)


def _write_array(path: Path, values: Shaped[np.ndarray, "..."]) -> Path:
    """An NPY file: its format has no room for a notice."""
    np.save(path, values, allow_pickle=False)
    return path


def _write_picture(path: Path, values: Shaped[np.ndarray, "h w *C"], name: str) -> Path:
    """A PNG with a margin below."""
    pixels, note = _levels(values)
    white = np.iinfo(pixels.dtype).max
    width = max(pixels.shape[1], _NARROWEST)
    margin = (_margin(f"{name}: {NOTICE}{note}", width).astype(pixels.dtype) // 255) * white
    canvas = np.zeros((len(pixels) + len(margin), width, *pixels.shape[2:]), pixels.dtype)
    canvas[: len(pixels), : pixels.shape[1]] = pixels
    canvas[len(pixels) :] = margin if pixels.ndim == 2 else margin[..., np.newaxis]
    Image.fromarray(canvas).save(path)
    return path


def _levels(values: Shaped[np.ndarray, "h w *C"]) -> tuple[Num[np.ndarray, "h w *C"], str]:
    """Values as a PNG holds them, and what must be said about them."""
    if values.dtype.kind == "b":
        return values.astype(np.uint8) * np.uint8(255), ""
    if values.dtype.kind in "iu":
        if values.size and not 0 <= values.min() <= values.max() <= 65535:
            raise DataError(f"whole numbers from {values.min()} to {values.max()}; a PNG holds 0 to 65535")
        return values.astype(np.uint8 if values.max() < 256 else np.uint16), ""
    known = np.nan_to_num(values.astype(np.float64))
    low, high = min(float(known.min()), 0.0), max(float(known.max()), 1.0)
    note = "" if (low, high) == (0.0, 1.0) else f"; black is {low:.4g}, white is {high:.4g}"
    if values.ndim == 3:  # colours have 8 bits
        return np.rint((known - low) / (high - low) * 255).astype(np.uint8), note
    return np.rint((known - low) / (high - low) * 65535).astype(np.uint16), note


def _margin(text: str, width: int) -> UInt8[np.ndarray, "h w"]:
    """White text on black, as many lines as it needs; 0 or 255."""
    lines = textwrap.wrap(text, width // _LETTER)
    picture = Image.new("1", (width, _LINE * len(lines) + 2))
    ImageDraw.Draw(picture).multiline_text((1, 0), "\n".join(lines), fill=1, spacing=1)
    return np.array(picture).astype(np.uint8) * np.uint8(255)
