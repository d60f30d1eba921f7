"""The frames of one DICOM file, from the bytes of its pixel data.

Sections named like C.7.6 are those of the DICOM standard, PS3.3; A.4 and G.3 are of PS3.5.
"""

import math
import struct
from collections.abc import Iterator
from typing import NamedTuple

import imagecodecs
import numpy as np
from jaxtyping import Num
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels import get_decoder

from vaejax.errors import DataError

KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
"""Of what holds pixels."""

_JPEG = {uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1}
_JPEG_LS = {uid.JPEGLSLossless, uid.JPEGLSNearLossless}
_JPEG_2000 = {uid.JPEG2000Lossless, uid.JPEG2000}
_NATIVE = {
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
}


class Layout(NamedTuple):
    """How the pixels of a file are stored: checked, and within the caps."""

    frames: int
    rows: int
    columns: int
    samples: int
    photometric: str
    allocated: int  # bits
    stored: int  # bits
    signed: bool
    dtype: np.dtype

    @property
    def extremes(self) -> tuple[int, int]:
        """Of the stored values; both 0 for floats."""
        if self.dtype.kind == "f":
            return 0, 0
        return (-(1 << (self.stored - 1)), (1 << (self.stored - 1)) - 1) if self.signed else (0, (1 << self.stored) - 1)


def decoded(data: Dataset, layout: Layout) -> Iterator[np.ndarray]:
    """Every frame [h, w, samples], in the stored type, colour as RGB; never fewer than the file claims."""
    syntax = data.file_meta.TransferSyntaxUID
    n = 0
    for frame, rgb in _native(data, layout) if syntax in _NATIVE else _encapsulated(data, layout, syntax):
        frame = frame.reshape(layout.rows, layout.columns, layout.samples)
        if layout.samples == 3 and not rgb:
            frame = _rgb(frame)
        yield frame
        n += 1
        if n == layout.frames:
            return
    raise DataError(f"{n} of {layout.frames} frames")


def _native(data: Dataset, layout: Layout) -> Iterator[tuple[np.ndarray, bool]]:
    """Frames that are not compressed, each with whether it is RGB already."""
    found, expected = len(data[next(keyword for keyword in KEYWORDS if keyword in data)].value), _native_bytes(layout)
    if found < expected:
        raise DataError(f"{found} bytes of pixels; expected {expected}")
    for frame, _ in get_decoder(data.file_meta.TransferSyntaxUID).iter_array(data, raw=True):
        yield frame, layout.photometric == "RGB"


def _native_bytes(layout: Layout) -> int:
    bits = layout.allocated * layout.frames * layout.rows * layout.columns * layout.samples
    return math.ceil(bits * (2 / 3 if layout.photometric == "YBR_FULL_422" else 1) / 8)


def _encapsulated(data: Dataset, layout: Layout, syntax: str) -> Iterator[tuple[np.ndarray, bool]]:
    """Compressed frames (A.4), each with whether it is RGB already."""
    if syntax not in _JPEG | _JPEG_LS | _JPEG_2000 | {uid.RLELossless}:
        name = uid.UID(syntax).name if syntax in uid.UID_dictionary else "an unknown one"
        raise DataError(f"no decoder for its transfer syntax ({name})")
    tables = [data.get(keyword) for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")]
    extended = (tables[0], tables[1]) if all(isinstance(table, bytes) for table in tables) else None
    for stream in generate_frames(data.PixelData, number_of_frames=layout.frames, extended_offsets=extended):
        if syntax == uid.RLELossless:
            yield _run_lengths(stream, layout), layout.photometric == "RGB"
            continue
        yield _codec(stream, syntax, layout), syntax in _JPEG or layout.photometric in ("RGB", "YBR_ICT", "YBR_RCT")


def _run_lengths(stream: bytes, layout: Layout) -> np.ndarray:
    """RLE (G.3): a plane of bytes for each byte of each sample, the most significant first, packed like PackBits."""
    if layout.allocated == 1:
        raise DataError("RLE of single bits, for which there is no decoder")
    size, planes = layout.rows * layout.columns, layout.samples * layout.dtype.itemsize
    n, *starts = struct.unpack("<16I", stream[:64])
    if n != planes:
        raise DataError(f"{n} RLE segments; expected {planes}")
    content = np.zeros((layout.samples, layout.dtype.itemsize, size), np.uint8)
    for plane, start, end in zip(content.reshape(planes, size), starts, [*starts[1:n], len(stream)], strict=False):
        segment = imagecodecs.packbits_decode(stream[start:end], out=size) if 64 <= start < end <= len(stream) else b""
        if len(segment) != size:
            raise DataError("an RLE segment that is cut short")
        plane[:] = np.frombuffer(segment, np.uint8)
    samples = np.ascontiguousarray(np.moveaxis(content, 1, 2)).view(layout.dtype.newbyteorder(">"))[..., 0]
    return _signed_bits(samples.T.astype(layout.dtype), layout.stored, layout.signed)


def _codec(stream: bytes, syntax: str, layout: Layout) -> np.ndarray:
    """A frame [h, w] or [h, w, 3] of a JPEG, JPEG-LS or JPEG 2000 stream; its own header must agree before it is decoded."""
    rows, columns, samples, precision, named = (
        _siz(stream) if syntax in _JPEG_2000 else _sof(stream, (0xF7,) if syntax in _JPEG_LS else _FRAMES)
    )
    if (rows, columns, samples) != (layout.rows, layout.columns, layout.samples):
        raise DataError(
            f"a frame of {rows} x {columns} pixels of {samples} samples; "
            f"expected {layout.rows} x {layout.columns} of {layout.samples}"
        )
    if syntax in _JPEG_LS:
        frame = imagecodecs.jpegls_decode(stream)
    elif syntax in _JPEG_2000:
        frame = imagecodecs.jpeg2k_decode(stream)
    else:  # libjpeg takes three samples for YCbCr if no marker tells
        plain = "RGB" if layout.photometric == "RGB" and not named else None
        frame = imagecodecs.jpeg8_decode(stream, colorspace=plain, outcolorspace=plain)
    frame = _signed_bits(frame, precision, layout.signed)
    stored = frame.astype(layout.dtype)
    if frame.itemsize > stored.itemsize and (stored != frame).any():
        raise DataError(f"samples of {precision} bits; expected {8 * stored.itemsize}")
    return stored


def _signed_bits(samples: np.ndarray, bits: int, signed: bool) -> np.ndarray:
    """The lowest `bits` of every sample, read as two's complement or not: codecs know less of signs than the header."""
    samples = np.ascontiguousarray(samples).view(f"{'i' if signed else 'u'}{samples.itemsize}")
    unused = 8 * samples.itemsize - bits
    return samples << unused >> unused if unused > 0 else samples


_FRAMES = (0xC0, 0xC1, 0xC2, 0xC3)  # the markers that begin a frame of Huffman codes


def _sof(stream: bytes, frames: tuple[int, ...]) -> tuple[int, int, int, int, bool]:
    """Rows, columns, samples and precision of a JPEG or JPEG-LS stream, and whether a marker names its colours."""
    i, named = 2, False
    while stream[:2] == b"\xff\xd8" and i + 10 <= len(stream) and stream[i] == 0xFF:
        marker, length = stream[i + 1], int.from_bytes(stream[i + 2 : i + 4])
        if marker == 0xFF:  # a filling byte
            i += 1
            continue
        if marker in frames:
            precision, rows, columns, samples = struct.unpack(">BHHB", stream[i + 4 : i + 10])
            return rows, columns, samples, precision, named
        named |= stream[i + 4 : i + 8] == b"JFIF" or stream[i + 4 : i + 9] == b"Adobe"
        i += 2 + length
    raise DataError("a frame that is no JPEG stream")


def _siz(stream: bytes) -> tuple[int, int, int, int, bool]:
    """The same of a JPEG 2000 stream, whose colours are always told by the DICOM header."""
    start = stream.find(b"\xff\x4f\xff\x51", 0, 4096)  # some writers leave the boxes of a JP2 file around it
    if start < 0 or start + 43 > len(stream):
        raise DataError("a frame that is no JPEG 2000 stream")
    right, bottom, left, top = struct.unpack(">4I", stream[start + 8 : start + 24])
    samples, depth = struct.unpack(">HB", stream[start + 40 : start + 43])
    return bottom - top, right - left, samples, (depth & 0x7F) + 1, False


def _rgb(frame: Num[np.ndarray, "h w 3"]) -> Num[np.ndarray, "h w 3"]:
    """YBR_FULL of 8 bits as RGB (C.7.6.3.1.2)."""
    if frame.dtype != np.uint8:
        raise DataError("YBR of other than 8 bits, which is not supported")
    y, blue, red = np.moveaxis(frame.astype(np.float32), -1, 0)
    blue, red = blue - 128, red - 128
    rgb = np.stack([y + 1.402 * red, y - 0.344136 * blue - 0.714136 * red, y + 1.772 * blue], axis=-1)
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)
