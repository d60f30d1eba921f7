"""Compressed pixels without what is written between them: comments, application data, bytes after the end.

The code words of the pixels are never touched: nothing is decoded, so nothing is lost.
"""

import struct
from collections.abc import Iterator

import imagecodecs
import numpy as np
from jaxtyping import UInt8

from vaejax.errors import DataError

_SCAN, _END = 0xDA, 0xD9
_PIXELS = {*range(0xC0, 0xD8), _END, _SCAN, *range(0xDB, 0xE0), 0xF7, 0xF8}
"""Markers without which there are no pixels: frames, tables, scans, restarts."""
_APPLICATION = range(0xE0, 0xF0)
_ALONE = (0x01, *range(0xD0, 0xD8))  # markers without a segment
_COLOURS = {0xE0: (b"JFIF\0", 14), 0xEE: (b"Adobe", 12), 0xE8: (b"mrfx", 5)}
"""Application segments that say how colours are meant (JFIF, Adobe, and JPEG-LS of HP), and how many bytes of them say it."""

_CODESTREAM = b"\xff\x4f\xff\x51"
_COMMENT_2000, _TILE, _DATA, _END_2000 = 0xFF64, 0xFF90, 0xFF93, b"\xff\xd9"
_HEADERS_2000 = {*range(0xFF50, 0xFF65), _TILE}


def jpeg(stream: bytes) -> bytes:
    """A JPEG or JPEG-LS stream (T.81, T.87) without application segments, comments and whatever follows its end.

    What is left of JFIF and Adobe segments says how to read the colours, and no more: no thumbnail.

    Raises:
        DataError: it is none, or cut short.
    """
    parts = [b"\xff\xd8"]
    for marker, segment in _segments(stream):
        if marker in _COLOURS and segment[4:].startswith(_COLOURS[marker][0]):
            start, length = _COLOURS[marker]
            content = segment[4 : 4 + length]
            if start == b"JFIF\0":
                content = content[:12].ljust(12, b"\0") + b"\0\0"  # no columns and rows of a thumbnail
            parts.append(segment[:2] + struct.pack(">H", 2 + len(content)) + content)
        elif marker in _PIXELS:
            parts.append(segment)
    return b"".join(parts)


def application(stream: bytes) -> Iterator[tuple[int, bytes]]:
    """The number n and the content of every APPn segment of a JPEG stream. Raises as `jpeg`."""
    return ((marker - 0xE0, segment[4:]) for marker, segment in _segments(stream) if marker in _APPLICATION)


def _segments(stream: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and bytes, marker included, of all between the start and the end; code words belong to the scan before them."""
    if stream[:2] != b"\xff\xd8":
        raise DataError("no JPEG stream")
    i = 2
    while i + 2 <= len(stream) and stream[i] == 0xFF:
        marker = stream[i + 1]
        if marker == 0xFF:  # a filling byte
            i += 1
            continue
        length = 2 if marker in _ALONE or marker == _END else 2 + int.from_bytes(stream[i + 2 : i + 4])
        end = _after_scan(stream, i + length) if marker == _SCAN else i + length
        if end > len(stream) or end < i + 2:
            break
        yield marker, stream[i:end]
        if marker == _END:
            return
        i = end
    raise DataError("a JPEG stream that is cut short or damaged")


def _after_scan(stream: bytes, i: int) -> int:
    """Where the next marker begins: 0xFF before a byte of 0x80 or more that is no restart. What is below is a code word."""
    while True:
        i = stream.find(b"\xff", i)
        if i < 0 or i + 1 >= len(stream):
            raise DataError("a JPEG stream that is cut short or damaged")
        if stream[i + 1] >= 0x80 and stream[i + 1] not in _ALONE and stream[i + 1] != 0xFF:
            return i
        i += 1 if stream[i + 1] == 0xFF else 2


def jpeg2000(stream: bytes) -> bytes:
    """The code stream (T.800) of a JPEG 2000 stream or JP2 file, its comments zeroed, without boxes around it.

    Raises:
        DataError: it is none, or damaged.
    """
    start = stream.find(_CODESTREAM)
    if start < 0:
        raise DataError("no JPEG 2000 stream")
    content = bytearray(stream[start:])
    i, after_tile = 2, 0
    while content[i : i + 2] != _END_2000:
        marker, length = struct.unpack(">HH", content[i : i + 4].ljust(4, b"\0"))
        if marker == _DATA:
            i = after_tile
            continue
        if marker not in _HEADERS_2000 or length < 2:
            raise DataError("a JPEG 2000 stream that is cut short or damaged")
        if marker == _COMMENT_2000:
            content[i + 6 : i + 2 + length] = bytes(max(length - 4, 0))
        if marker == _TILE:  # of length 0 where it goes up to the end, a marker that no code word contains
            part = int.from_bytes(content[i + 6 : i + 10])
            after_tile = max(i + part if part else content.find(_END_2000, i), i + 12)
        i += 2 + length
    return bytes(content[: i + 2])


def run_lengths(stream: bytes, size: int, planes: int) -> bytes:
    """An RLE frame (PS3.5 G) with nothing between and after its segments.

    Args:
        stream: the frame.
        size: of a decoded segment: rows times columns.
        planes: how many segments there are: samples times bytes of a sample.

    Raises:
        DataError: damaged.
    """
    if len(stream) < 64:
        raise DataError("an RLE frame that is cut short")
    n, *starts = struct.unpack("<16I", stream[:64])
    if n != planes:
        raise DataError(f"{n} RLE segments; expected {planes}")
    segments = []
    for start, end in zip(starts, [*starts[1:n], len(stream)], strict=False):
        segment = stream[start : _after_runs(stream, start, end, size)]
        segments.append(segment + b"\0" * (len(segment) % 2))
    offsets = [64 + sum(map(len, segments[:i])) for i in range(n)]
    return struct.pack("<16I", n, *offsets, *[0] * (15 - n)) + b"".join(segments)


def expanded(stream: bytes, size: int) -> UInt8[np.ndarray, "size n"]:
    """The n bytes of each of `size` pixels of an RLE frame that `run_lengths` gave, the most significant first."""
    n, *starts = struct.unpack("<16I", stream[:64])
    ends = [*starts[1:n], len(stream)]
    planes = [imagecodecs.packbits_decode(stream[start:end], out=size) for start, end in zip(starts, ends, strict=False)]
    return np.stack([np.frombuffer(plane, np.uint8) for plane in planes], axis=-1)


def _after_runs(stream: bytes, i: int, end: int, size: int) -> int:
    """Where the runs end that stand for `size` bytes."""
    while size > 0 and i < min(end, len(stream)):
        code = stream[i]
        literal = code < 128
        i += 2 + code if literal else 1 if code == 128 else 2
        size -= 1 + code if literal else 0 if code == 128 else 257 - code
    if size > 0 or i > min(end, len(stream)):
        raise DataError("an RLE segment that is cut short")
    return i
