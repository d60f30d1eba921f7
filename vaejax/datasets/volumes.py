"""A folder of DICOM and NIfTI files, at any depth: every frame or slice is an image, and a patient is in one split."""

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Num

from vaejax.config import DataConfig
from vaejax.datasets import isolation, workers
from vaejax.datasets.source import Examples, Source, files_in, hash_files
from vaejax.errors import DataError

PERCENTILES = (0.5, 99.5)
"""Of the voxels of a volume: what becomes black and white where no window says."""

DARK = 0.1
"""A pixel brighter than this share of white is content."""

_NO_IMAGES = {".yaml", ".yml", "DICOMDIR"}
"""Suffixes or names of what lies beside the images, besides notes."""


class Volume(NamedTuple):
    """What is read at once: a NIfTI file, or the DICOM files of a series.

    Attributes:
        paths: relative to the folder.
        patient: what keeps the images of a patient together; it goes nowhere.
        slices: reads it, as float32 images [n, H, W, C] in [0, 1]. Raises DataError with the bare reason.
    """

    paths: tuple[str, ...]
    patient: str
    slices: Callable[[], Float32[np.ndarray, "n H W C"]]


def source(config: DataConfig) -> Source:
    """All slices of all volumes under `config.path`, in the order of their first paths.

    A series of DICOM files is sorted by position, where its slices are parallel and each has a place of its own. Its patient is
    the PatientID, or where there is none the series; a NIfTI file, whose header knows no patient, counts as a patient.
    `config.window`, or a CT's own, or the percentiles of a volume say what is black and white. NaN is black.

    Raises:
        DataError: no such folder, no files in it, or the libraries that read them are absent.
    """
    root = Path(config.path or "")
    if not root.is_dir():
        raise DataError(
            f"{root}: expected a folder of DICOM and NIfTI files, found {'a file' if root.exists() else 'none'}. "
            "Check data.path."
        )
    try:
        import nibabel  # noqa: F401  # whether it is there
        import pydicom  # noqa: F401
    except ImportError as error:
        raise DataError(f"data.name='volumes': needs {error.name}. Install 'vaejax[medical]'.") from error
    files = [path for path in files_in(root, "**/*") if not {path.suffix.lower(), path.name} & _NO_IMAGES]
    if not files:
        raise DataError(f"{root}: expected DICOM or NIfTI files, found none. Check data.path.")
    named = [(path.relative_to(root).as_posix(), path) for path in files]
    asked = f"{hash_files(named)} {config.slice_axis} {config.slice_content} {config.window}"
    contents = hashlib.sha256(asked.encode()).hexdigest()
    return Source(contents, None, lambda: {"train": _examples(_volumes(named, config), config)})


class _Slices:
    """i -> the place-th slice of a volume. The volume read last is kept: slices are read one after the other."""

    def __init__(self, chosen: list[tuple[Volume, int]]) -> None:
        self._chosen = chosen
        self._held: tuple[Volume, np.ndarray] | None = None

    def __reduce__(self) -> tuple:  # pickled without the voxels held
        return _Slices, (self._chosen,)

    def __call__(self, i: int) -> Num[np.ndarray, "H W C"]:
        volume, place = self._chosen[i]
        held = self._held
        if held is None or held[0] is not volume:
            held = self._held = None  # before the next is read: two may be too much
            held = self._held = (volume, volume.slices())
        return held[1][place]


def _examples(volumes: list[Volume], config: DataConfig) -> Examples:
    """The slices that have content enough; a volume that cannot be read is one example that says why when it is read."""
    found = list(workers.each(functools.partial(_places, config.slice_content), volumes, config.workers))
    unreadable = {number for number, (_, reason) in enumerate(found) if reason}
    if len(unreadable) == len(volumes):
        raise DataError(f"none of {len(volumes)} volumes can be read ({volumes[0].paths[0]}: {found[0][1]}). Check data.path.")
    chosen = [(number, place) for number, (places, _) in enumerate(found) for place in places]
    if not chosen:
        raise DataError(f"data.slice_content={config.slice_content}: no slice has as much. Choose less.")
    owners = sorted({volume.patient for number, volume in enumerate(volumes) if number not in unreadable})
    numbers = {owner: number for number, owner in enumerate(owners)}  # what is unreadable is nobody's, and stays in train
    patients = np.array([-1 if number in unreadable else numbers[volumes[number].patient] for number, _ in chosen])
    paths = tuple(f"{volumes[number].paths[0]}, slice {place}" for number, place in chosen)
    return Examples(len(chosen), _Slices([(volumes[number], place) for number, place in chosen]), None, paths, patients)


def _places(least: float, volume: Volume) -> tuple[list[int], str]:
    """The slices of a volume with at least this share of content; or the first alone, and why it cannot be read."""
    try:
        content = (volume.slices() > DARK).mean(axis=(1, 2, 3))
    except DataError as error:
        return [0], str(error)
    return [int(place) for place in np.flatnonzero(content >= least)], ""


def _volumes(files: list[tuple[str, Path]], config: DataConfig) -> list[Volume]:
    whole = [file for file in files if _is_nifti(file[0])]
    parts = [file for file in files if not _is_nifti(file[0])]
    found = [Volume((name,), name, functools.partial(_of_nifti, path, config)) for name, path in whole]
    series: dict[str, list[tuple[str, Path, str | None]]] = {}
    groupings = workers.each(functools.partial(_grouping, config), parts, config.workers)
    for (name, path), (own, patient) in zip(parts, groupings, strict=True):
        series.setdefault(own, []).append((name, path, patient))
    for own, members in series.items():
        names, paths, patients = zip(*members, strict=True)
        known = sorted({patient for patient in patients if patient})
        if len(known) > 1:
            raise DataError(
                f"{names[0]} and {len(names) - 1} other files: one series of {len(known)} patients. Mend their headers."
            )
        found.append(Volume(names, known[0] if known else own, functools.partial(_of_series, paths, config)))
    return sorted(found, key=lambda volume: volume.paths)


def _is_nifti(name: str) -> bool:
    return name.lower().endswith((".nii", ".nii.gz"))


def _grouping(config: DataConfig, file: tuple[str, Path]) -> tuple[str, str | None]:
    """Series and patient of a DICOM file; a file that cannot be read is alone, and says why when it is read."""
    from vaejax.datasets import dicom

    name, path = file
    try:
        header = isolation.reader(dicom.read_header, config)(path)
    except DataError:
        return name, None
    return header.series or name, header.patient


def _of_nifti(path: Path, config: DataConfig) -> Float32[np.ndarray, "n H W C"]:
    """Slices across `config.slice_axis` of the volume turned to RAS+, as a radiologist sees them.

    Rows run from the head down, or from the front to the back; columns from the patient's right to the left, or from the
    front to the back.
    """
    from vaejax.datasets import nifti

    volume = nifti.canonical(isolation.reader(nifti.decode, config)(path))
    count = int(np.prod(volume.voxels.shape[3:-1] if volume.colour else volume.voxels.shape[3:]))
    if count != 1:
        raise DataError(f"{count} volumes in one file; expected one")
    voxels = volume.voxels.reshape(*volume.voxels.shape[:3], -1)
    across = np.moveaxis(voxels, config.slice_axis, 0)
    images = across[:, ::-1, ::-1].swapaxes(1, 2)
    return _grey(images, config, None) if not volume.colour else images.astype(np.float32) / np.float32(255.0)


def _of_series(paths: Iterable[Path], config: DataConfig) -> Float32[np.ndarray, "n H W C"]:
    """The frames of all files of a series, sorted by position where they have one."""
    from vaejax.datasets import dicom

    decode = isolation.reader(dicom.decode, config)
    pictures = [decode(path) for path in paths]
    shapes = {picture.pixels.shape[1:] for picture in pictures}
    if len(shapes) > 1:
        raise DataError(f"frames of several sizes in a series: {', '.join(map(str, sorted(shapes)))}")
    frames = np.concatenate([picture.pixels for picture in pictures])
    positions = [picture.header.positions for picture in pictures]
    orientations = [picture.header.orientations for picture in pictures]
    known = [part for part in (*positions, *orientations) if part is not None]
    if len(frames) > 1 and len(known) == 2 * len(pictures):
        with contextlib.suppress(DataError):  # scouts and series in time have no order along a line: that of their paths
            frames = frames[dicom.order(np.concatenate(known[: len(pictures)]), np.concatenate(known[len(pictures) :]))]
    if frames.shape[-1] > 1:
        return frames.astype(np.float32) / np.float32(np.iinfo(frames.dtype).max)
    header = pictures[0].header
    return _grey(frames, config, header.windows[0] if header.modality == "CT" and header.windows else None)


def _grey(
    images: Num[np.ndarray, "n H W 1"], config: DataConfig, own: tuple[float, float] | None
) -> Float32[np.ndarray, "n H W 1"]:
    """To [0, 1] by the window asked for, by the images' own, or by percentiles of all of them."""
    window = config.window or own
    if window:
        low, high = window[0] - window[1] / 2.0, window[0] + window[1] / 2.0
    else:
        finite = images[np.isfinite(images)]
        if not finite.size:
            raise DataError("no finite voxel")
        low, high = np.percentile(finite, PERCENTILES)
    scaled = np.empty(images.shape, np.float32)
    for place, image in enumerate(images):  # one at a time: a series may be of gigabytes
        known = np.nan_to_num(image.astype(np.float64), nan=low, posinf=high, neginf=low)
        scaled[place] = np.clip((known - low) / max(high - low, 1e-12), 0.0, 1.0)
    return scaled
