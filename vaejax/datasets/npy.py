"""One array of NumPy's own format (.npy, or a member of an .npz): its header is checked before memory is taken.

Nothing is ever unpickled.
"""

import math
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import numpy as np

from vaejax.errors import DataError

MAGIC = b"\x93NUMPY"
_RATIO = 1032  # deflate gives no more bytes for one
_CHUNK = 2**24


class _Header(NamedTuple):
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def read(stream: BinaryIO, held: int, most: int) -> np.ndarray:
    """The array of a stream.

    Args:
        stream: at its beginning.
        held: bytes that the stream can give.
        most: bytes that the array may take.

    Raises:
        DataError: the bare reason: another format, Python objects, an array that is cut short, or larger than `held` or `most`.
    """
    header = _header(stream, held)
    if header.size > most:
        raise DataError(f"an array of {header.size} bytes claimed; at most {most} are allowed")
    content = np.empty(header.size, np.uint8)
    for first in range(0, header.size, _CHUNK):
        wanted = min(_CHUNK, header.size - first)
        part = stream.read(wanted)
        if len(part) < wanted:
            raise DataError(f"an array that is cut short after {first + len(part)} of {header.size} bytes")
        content[first : first + wanted] = np.frombuffer(part, np.uint8)
    return content.view(header.dtype).reshape(header.shape, order="F" if header.fortran else "C")


def shape_of(stream: BinaryIO, held: int) -> tuple[int, ...]:
    """The shape of the array of a stream, whose values are not read. Raises DataError as `read`."""
    return _header(stream, held).shape


def mapped(path: Path) -> np.ndarray:
    """The array of a .npy file, mapped into memory, so that it may be of any size.

    Raises:
        DataError: the bare reason, as for `read`.
    """
    with path.open("rb") as file:
        header = _header(file, path.stat().st_size)
        start = file.tell()
    if not header.size:
        return np.empty(header.shape, header.dtype)
    return np.memmap(path, header.dtype, "r", start, header.shape, "F" if header.fortran else "C")


def members(archive: zipfile.ZipFile) -> list[str]:
    """The names of the arrays of an .npz file, sorted."""
    return sorted({name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")})


def member(archive: zipfile.ZipFile, name: str, most: int) -> np.ndarray:
    """One array of an .npz file, stored or deflated, of at most `most` bytes.

    Raises:
        DataError: its name and the reason, as for `read`.
    """
    info = archive.getinfo(f"{name}.npy")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{name}: an array that is packed as NumPy packs none")
    try:
        with archive.open(info) as stream:
            return read(cast(BinaryIO, stream), min(info.file_size, info.compress_size * _RATIO), most)
    except DataError as error:
        raise DataError(f"{name}: {error}") from None


def _header(stream: BinaryIO, held: int) -> _Header:
    """Checked against what the stream can hold."""
    try:
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[np.lib.format.read_magic(stream)]
        header = _Header(*read_header(stream))
    except (zipfile.BadZipFile, zlib.error, EOFError):  # the archive's fault
        raise
    except Exception:  # damaged headers make NumPy raise almost anything
        raise DataError("no array of NumPy's format") from None
    if header.dtype.hasobject:
        raise DataError("Python objects, which are never read; expected plain arrays")
    if not header.dtype.itemsize or min(header.shape, default=0) < 0:
        raise DataError("an array of no possible size")
    if header.size > held - stream.tell():
        raise DataError(f"an array of {header.size} bytes claimed, more than the file can hold")
    return header
