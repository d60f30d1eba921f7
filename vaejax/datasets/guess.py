"""Which source reads what lies at a path, told by the names and the first bytes of the files."""

import collections
import zipfile
from pathlib import Path
from typing import NamedTuple

from vaejax.datasets import npy
from vaejax.datasets.source import NOTES, files_in
from vaejax.errors import DataError

_TABLES = {".csv", ".json"}
_KINDS = {"DICOM": "volumes", "NIfTI": "volumes"} | dict.fromkeys(("PNG", "JPEG", "TIFF", "NPY"), "image_folder")
_BEGINNINGS = {b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"\x93NUMPY": "NPY"}
_SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF", ".npy": "NPY"}


class Guess(NamedTuple):
    """A source for what was found.

    Attributes:
        name: for `data.name`.
        why: what was found, in counts.
        others: files that this source does not read.
    """

    name: str
    why: str
    others: int = 0


def guess(path: Path) -> Guess:
    """The source of a folder (images, DICOM, NIfTI, IDX) or a file (.npz, .npy, .csv or .json manifest).

    Of a folder that holds several kinds of files, the source is that of most of them.

    Raises:
        DataError: nothing there, or nothing that a source reads.
    """
    if not path.exists():
        raise DataError(f"{path}: expected a folder or file of images, found none. Check the path.")
    return _of_folder(path) if path.is_dir() else _of_file(path)


def _of_file(path: Path) -> Guess:
    suffix = path.suffix.lower()
    if suffix == ".npz":
        try:
            with zipfile.ZipFile(path) as archive:
                names = npy.members(archive)
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(f"{path}: expected an .npz of plain arrays, found something else ({error}).") from error
        name = "medmnist" if "train_images" in names else "arrays"
        return Guess(name, f"{len(names)} arrays, {'with' if name == 'medmnist' else 'without'} train_images")
    if suffix == ".npy":
        return Guess("arrays", "one array")
    if suffix in _TABLES:
        return Guess("manifest", "a table of images")
    raise DataError(
        f"{path}: expected a folder, an .npz or .npy file, or a manifest (.csv, .json), found {suffix or 'no suffix'!r}. "
        "Name the folder that it lies in."
    )


def _of_folder(folder: Path) -> Guess:
    if any(folder.glob("train-images-idx3-ubyte*")):
        return Guess("idx", "IDX files")
    files = files_in(folder, "**/*")
    kinds = collections.Counter(_kind(path) for path in files)
    sources = collections.Counter(
        {name: sum(kinds[kind] for kind in _KINDS if _KINDS[kind] == name) for name in _KINDS.values()}
    )
    (name, count), *_ = sources.most_common()
    if not count:
        suffixes = sorted({path.suffix.lower() for path in folder.iterdir() if path.suffix.lower() in {".npz", *NOTES}})
        one = f" Name one of its files of {', '.join(suffixes)}." if suffixes else ""
        raise DataError(f"{folder}: expected DICOM, NIfTI, PNG, JPEG, TIFF, NPY or IDX files at any depth, found none.{one}")
    why = " and ".join(f"{kinds[kind]:,} {kind} files" for kind in _KINDS if kinds[kind] and _KINDS[kind] == name)
    others = sum(kinds.values()) - count
    return Guess(name, why + (f", beside {others:,} others" if others else ""), others)


def _kind(path: Path) -> str:
    """The kind of a file; "" for one that no source of a folder reads."""
    try:
        with path.open("rb") as file:
            head = file.read(352)
    except OSError:
        head = b""
    name = path.name.lower()
    if head[128:132] == b"DICM" or head[:2] in (b"\x02\0", b"\x08\0") or name.endswith((".dcm", ".dicom")):
        return "DICOM"
    if head[344:347] == b"n+1" or head[4:7] == b"n+2" or name.endswith((".nii", ".nii.gz")):
        return "NIfTI"
    known = (kind for beginning, kind in _BEGINNINGS.items() if head.startswith(beginning))
    return next(known, _SUFFIXES.get(path.suffix.lower(), ""))
