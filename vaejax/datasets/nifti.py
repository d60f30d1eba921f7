"""One NIfTI file (https://nifti.nimh.nih.gov): its voxels, and where they lie in the patient; and the way back to a file.

Nothing else of a header is read, or written but for a note: no description, no name of a file, no extension.
"""

import gzip
import math
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import nibabel as nib
import numpy as np
from jaxtyping import Float, Num
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform

from vaejax.datasets.source import decoding, size_of
from vaejax.errors import DataError

MAX_BYTES = 512 * 2**20
"""Of a file, of its decompressed stream, of the voxels that it claims. Decoding takes three times as much at worst."""

_SCANNER = 1  # the code of coordinates in the scanner
_RATIO = 1032  # deflate gives no more bytes for one
_CHUNK = 2**20  # voxels rescaled at once: in float64, whatever the result
_COLOURS = {3: np.dtype([(name, "u1") for name in "RGB"]), 4: np.dtype([(name, "u1") for name in "RGBA"])}
_MILLIMETRES = {1: 1000.0, 2: 1.0, 3: 0.001}  # by the code of the unit of length: m, mm, um; 0 stands for mm


class Volume(NamedTuple):
    """A decoded file.

    Attributes:
        voxels: [x, y, z] or [x, y, z, t, ...]; a last axis of 3 or 4 where `colour`.
        affine: from indices (i, j, k, 1) to mm to the right, front and head.
        spacing: of the voxels along the first three axes, mm: the lengths of the affine's columns.
        colour: whether the last axis is RGB or RGBA.
        space: NIfTI's code of the space that the affine leads to (1: scanner, 2: aligned, 3: Talairach, 4: MNI).
        steps: of the axes after the third, in the file's own units (often seconds).
    """

    voxels: Num[np.ndarray, "x y z ..."]
    affine: Float[np.ndarray, "4 4"]
    spacing: tuple[float, float, float]
    colour: bool = False
    space: int = _SCANNER
    steps: tuple[float, ...] = ()


def decode(path: Path, max_bytes: int = MAX_BYTES) -> Volume:
    """The volume of a .nii or .nii.gz file (by its content, not its name), NIfTI-1 or -2, of either byte order.

    Voxels keep their integer type where the scaling is trivial (slope 1 or none, intercept 0); else, and for floats, they are
    float32 of stored * slope + intercept, computed in float64. NaN and infinities stay as they are: what they stand for is the
    data set's to know. Arrays of fewer than three axes get axes of 1. Axes are not turned; see `canonical`.
    The affine is the sform, else the qform, else the spacing alone, as nibabel chooses.

    Args:
        path: the file.
        max_bytes: of the file, of its decompressed stream, of the voxels; all are checked before they are allocated.

    Raises:
        DataError: the bare reason why the file is unreadable; it never holds text of the header.
    """
    with decoding("NIfTI"):
        size = size_of(path, max_bytes)
        with path.open("rb") as file:
            compressed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            with gzip.open(file) if compressed else file as opened:
                stream = cast(BinaryIO, opened)
                header, start = _header(stream.read(540))
                return _volume(stream, header, start, size * (_RATIO if compressed else 1), max_bytes)


def canonical(volume: Volume) -> Volume:
    """The volume with its axes permuted and flipped to run as nearly as can be to the right, front and head (RAS+)."""
    return turned(volume, np.eye(4))


def turned(volume: Volume, affine: Float[np.ndarray, "4 4"]) -> Volume:
    """The volume with its axes permuted and flipped to run as those of `affine` do; no voxel changes its value or place.

    So `turned(canonical(volume), volume.affine)` is `volume` again.
    """
    turn = ornt_transform(io_orientation(volume.affine), io_orientation(affine))
    placed = volume.affine @ inv_ornt_aff(turn, volume.voxels.shape[:3])
    return volume._replace(voxels=apply_orientation(volume.voxels, turn), affine=placed, spacing=_lengths(placed))


def encode(
    voxels: Num[np.ndarray, "x y z ..."], affine: Float[np.ndarray, "4 4"], like: Volume | None = None, note: str = ""
) -> bytes:
    """A .nii file: NIfTI-1, or -2 where an axis is longer than 32767.

    Args:
        voxels: bool (written as uint8), integers, or floats (written as float32), never rescaled.
        affine: mm. NIfTI-1 keeps float32 of it.
        like: the source, from which the code of the space, the steps of further axes, and whether the last axis is
            colour are taken.
        note: the header's description, at most 79 letters of ASCII.

    Raises:
        DataError: voxels or an affine that the format cannot hold.
    """
    with decoding("NIfTI"):
        like = like or Volume(voxels, affine, _lengths(affine))
        _check_affine(affine)
        if like.colour:
            voxels = np.ascontiguousarray(voxels, np.uint8).view(_COLOURS[voxels.shape[-1]])[..., 0]
        elif voxels.dtype.kind in "bf":
            voxels = voxels.astype(np.uint8 if voxels.dtype.kind == "b" else np.float32)
        kind = nib.Nifti2Image if max(voxels.shape) > 32767 else nib.Nifti1Image
        image = kind(voxels, affine, dtype=voxels.dtype)
        image.header.set_xyzt_units("mm")
        image.header["descrip"] = note.encode()
        image.header.set_zooms(
            (*_lengths(affine), *like.steps[: voxels.ndim - 3], *[1.0] * (voxels.ndim - 3 - len(like.steps)))
        )
        image.set_sform(affine, like.space)
        image.set_qform(affine, like.space)
        if not np.allclose(image.get_qform(), affine, atol=1e-3):  # a sheared affine, which rotations cannot hold
            image.set_qform(affine, 0)
        return image.to_bytes()


def save(
    path: Path,
    voxels: Num[np.ndarray, "x y z ..."],
    affine: Float[np.ndarray, "4 4"],
    like: Volume | None = None,
    note: str = "",
) -> None:
    """`encode` into a file, compressed if its name ends in .gz; the same voxels always give the same bytes."""
    content = encode(voxels, affine, like, note)
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def _header(head: bytes) -> tuple[nib.Nifti1Header, int]:
    """The header, and where the voxels begin."""
    if len(head) < 348:
        raise DataError("an empty file" if not head else "not a NIfTI file")
    if head[344:348] == b"n+1\0":
        header: nib.Nifti1Header = nib.Nifti1Header(head[:348], check=False)
    elif head[4:12] == b"n+2\0\r\n\x1a\n":
        header = nib.Nifti2Header(head, check=False)
    elif head[344:348] == b"ni1\0" or head[4:8] == b"ni2\0":
        raise DataError("the header of a pair of files (.hdr, .img), which are not supported; convert it to .nii")
    else:
        raise DataError("not a NIfTI file")
    offset = float(header["vox_offset"]) or float(header["sizeof_hdr"] + 4)
    if not header["sizeof_hdr"] <= offset <= 2**53 or offset != int(offset):
        raise DataError("voxels at no possible place in the file")
    return header, int(offset)


def _volume(stream: BinaryIO, header: nib.Nifti1Header, start: int, size: int, max_bytes: int) -> Volume:
    """The volume, of a stream of at most `size` bytes."""
    rank = int(header["dim"][0])
    if not 1 <= rank <= 7 or min(header["dim"][1 : rank + 1]) < 1:
        raise DataError("axes of no possible length")
    shape = (*(int(length) for length in header["dim"][1 : rank + 1]), *[1] * (3 - rank))
    stored, scale = _stored(header), _scale(header)
    dtype = np.dtype(np.float32) if scale or stored.kind == "f" else stored.newbyteorder("=")
    n = math.prod(shape)
    if max(start + n * stored.itemsize, n * dtype.itemsize) > max_bytes:
        raise DataError(f"{n} voxels of {stored.itemsize} bytes claimed; at most {max_bytes} bytes are allowed")
    if start + n * stored.itemsize > size:
        raise DataError(f"{n * stored.itemsize} bytes of voxels claimed, more than the file can hold")
    affine = _affine(header)
    voxels = _voxels(stream, start, stored, scale, np.empty(n, dtype)).reshape(shape, order="F")
    if stored.names is not None:
        voxels = np.stack([voxels[name] for name in stored.names], axis=-1)
    space = int(header["sform_code"]) or int(header["qform_code"]) or _SCANNER
    steps = tuple(float(step) if math.isfinite(step) and step > 0 else 1.0 for step in header["pixdim"][4 : rank + 1])
    return Volume(voxels, affine, _lengths(affine), stored.names is not None, space if 1 <= space <= 5 else _SCANNER, steps)


def _stored(header: nib.Nifti1Header) -> np.dtype:
    try:
        stored = np.dtype(header.get_data_dtype())
    except (KeyError, nib.spatialimages.HeaderDataError):
        raise DataError("a type of voxels that is not known") from None
    if stored.kind not in "iufV" or (stored.kind == "f" and stored.itemsize > 8) or not stored.itemsize:
        raise DataError(f"voxels of type {stored.name}, which is not supported")
    return stored


def _scale(header: nib.Nifti1Header) -> tuple[float, float] | None:
    """Slope and intercept; None where they change nothing."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if _stored(header).names is not None or not math.isfinite(slope) or slope == 0 or (slope, intercept) == (1, 0):
        return None
    if not math.isfinite(intercept):
        raise DataError("an intercept that is not finite")
    return slope, intercept


def _voxels(
    stream: BinaryIO, start: int, stored: np.dtype, scale: tuple[float, float] | None, values: np.ndarray
) -> Num[np.ndarray, " n"]:
    """`values` filled from `start` on, a chunk at a time."""
    stream.seek(start)
    for first in range(0, len(values), _CHUNK):
        n = min(_CHUNK, len(values) - first)
        content = stream.read(n * stored.itemsize)
        if len(content) < n * stored.itemsize:
            raise DataError(f"voxels that are cut short after {first + len(content) // stored.itemsize} of {len(values)}")
        part = np.frombuffer(content, stored)
        values[first : first + n] = part if scale is None else part * np.float64(scale[0]) + scale[1]
    stream.read(1)  # at its end, a gzip stream checks its sum
    return values


def _affine(header: nib.Nifti1Header) -> Float[np.ndarray, "4 4"]:
    """From indices to mm."""
    affine = np.array(header.get_best_affine(), np.float64)
    affine[:3] *= _MILLIMETRES.get(int(header["xyzt_units"]) & 7, 1.0)
    _check_affine(affine)
    return affine


def _check_affine(affine: np.ndarray) -> None:
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise DataError("an affine that is not finite or cannot be inverted")


def _lengths(affine: np.ndarray) -> tuple[float, float, float]:
    """Of the first three columns."""
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0)
    return float(x), float(y), float(z)
