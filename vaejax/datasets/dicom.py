"""One DICOM file: its pixels in the modality's units, its geometry, and no more of its header than grouping needs.

Sections named like C.11.2 are those of the DICOM standard, PS3.3; A.5 is of PS3.5.
"""

import io
import logging
import math
import re
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.filereader import dcmread, read_dataset, read_preamble
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag

from vaejax.datasets import burned_in, dicom_frames
from vaejax.datasets.dicom_frames import Layout
from vaejax.datasets.source import decoding, size_of
from vaejax.datasets.windows import FUNCTIONS, Lut
from vaejax.errors import DataError

MAX_BYTES = 512 * 2**20
"""Of a file, of its inflated stream, and of the pixels that it claims. Decoding takes about three times as much at worst."""
MAX_FRAMES = 100_000
HEADS = {"BRAIN", "FACE", "HEAD", "HEADNECK", "JAW", "MANDIBLE", "MAXILLA", "ORBIT", "SKULL"}
"""Of the terms for BodyPartExamined (PS3.16, annex L)."""
_DEFERRED = 2**16  # bytes of a field that a header needs not hold in memory: the pixels

# The log of pydicom repeats values of the header, names among them.
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)

_GREY = {"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"}
_COLOUR = {"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"}
_PALETTES = tuple(
    f"{kind}{colour}PaletteColorLookupTable{part}"
    for colour in ("Red", "Green", "Blue")
    for kind, part in (("", "Descriptor"), ("", "Data"), ("Segmented", "Data"))
)
# All that is ever read of a header.
_TAGS = [
    Tag(keyword)
    for keyword in (
        *("SeriesInstanceUID", "PatientID", "BodyPartExamined", *burned_in.FIELDS),
        *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PlanarConfiguration", "PhotometricInterpretation"),
        *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
        *("RescaleSlope", "RescaleIntercept", "DoseGridScaling", "ModalityLUTSequence"),
        *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
        *("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
        *("ImagePositionPatient", "ImageOrientationPatient", "GridFrameOffsetVector"),
        *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
        *("ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
        *_PALETTES,
        *dicom_frames.KEYWORDS,
    )
]


class Header(NamedTuple):
    """What is known of a file beside its pixels. Lengths are in mm, in the patient's system: to the left, back, and head.

    Attributes:
        shape: (frames, rows, columns, channels).
        modality: "CT", "MR", ...; None where absent or no code.
        windows: (centre, width) pairs for `windows.window`, in the units of the decoded pixels; the first frame's.
        function: how they are meant: "LINEAR", "LINEAR_EXACT" or "SIGMOID".
        luts: tables in the same units, instead of a window, or besides.
        spacing: between the centres of rows, and of columns; None where unknown. That of projections is at the detector.
        thickness: of a slice.
        gap: between the centres of neighbouring slices, as the file claims; the positions know better.
        positions: of the centre of each frame's first pixel, or None where unknown.
        orientations: of each frame: the direction along a row, and down a column; None where unknown.
        series: SeriesInstanceUID, and
        patient: PatientID. For grouping alone: hash them before they are kept.
        bits: stored a sample.
        text: whether the pixels may show text (see `vaejax.datasets.burned_in`).
        head: whether a part of the head is said to be shown.
        mirrored: whether the decoded pixels are, as of MONOCHROME1.
    """

    shape: tuple[int, int, int, int]
    modality: str | None
    windows: tuple[tuple[float, float], ...]
    function: str
    luts: tuple[Lut, ...]
    spacing: tuple[float, float] | None
    thickness: float | None
    gap: float | None
    positions: Float[np.ndarray, "f 3"] | None
    orientations: Float[np.ndarray, "f 2 3"] | None
    series: str | None
    patient: str | None
    bits: int
    text: bool
    head: bool
    mirrored: bool


class Picture(NamedTuple):
    """A decoded file.

    Attributes:
        pixels: one channel in the modality's units, or RGB.
        header: what is known beside.
    """

    pixels: Num[np.ndarray, "f h w c"]
    header: Header


def decode(path: Path, max_bytes: int = MAX_BYTES) -> Picture:
    """The pixels of the file as the standard's grey-scale or colour pipeline gives them before any window.

    One channel: stored values in their own integer type where the modality changes nothing; else float32 of
    stored * slope + intercept, or of the Modality LUT (C.11.1), such as HU, or Gy of a dose. Float pixel data become float32.
    Where slope and intercept do not fit in float32, the result is rounded to it. MONOCHROME1 is mirrored so that larger is
    brighter: a value v becomes s - v, with s the sum of the smallest and largest values that the stored bits (or the Modality
    LUT) can give, 0 for float pixel data; windows and tables of the header are mirrored with it, `raw` is not.
    Colour: RGB of uint8 to uint32; YBR converted (C.7.6.3.1.2), palettes expanded (C.7.6.3.1.5), planes interleaved.

    Args:
        path: the file.
        max_bytes: of the file, of its inflated stream, of the pixels; all are checked before they are allocated.

    Raises:
        DataError: the bare reason why the file is unreadable; it never holds text of the header.
    """
    with decoding("DICOM"):
        data = _read(path, max_bytes)
        layout = _layout(data, max_bytes)
        header = _header(data, layout)
        scales = [_scale(data, layout, i) for i in range(layout.frames)]
        palette = [_table(data, colour) for colour in ("Red", "Green", "Blue")] if layout.photometric == "PALETTE COLOR" else []
        changed = layout.dtype.kind == "f" or any(scale is not None for scale in scales)
        dtype = np.result_type(*(table.values for table in palette)) if palette else np.float32 if changed else layout.dtype
        _check_size(header.shape, np.dtype(dtype), max_bytes)
        pixels = np.empty(header.shape, dtype)
        for i, frame in enumerate(dicom_frames.decoded(data, layout)):
            if palette:
                frame = np.concatenate([table.look_up(frame) for table in palette], axis=-1)
            pixels[i] = _units(frame, scales[i], layout)
        return Picture(pixels, header)


def raw(path: Path, max_bytes: int = MAX_BYTES) -> Num[np.ndarray, "f h w c"]:
    """The values as stored, in their own type: no rescale, no palette, MONOCHROME1 as it is; colour is RGB nevertheless.

    Raises:
        DataError: as `decode`.
    """
    with decoding("DICOM"):
        data = _read(path, max_bytes)
        layout = _layout(data, max_bytes)
        stored = np.empty((layout.frames, layout.rows, layout.columns, layout.samples), layout.dtype)
        for i, frame in enumerate(dicom_frames.decoded(data, layout)):
            stored[i] = frame
        return stored


def read_header(path: Path, max_bytes: int = MAX_BYTES) -> Header:
    """What is known of a file beside its pixels, which stay undecoded.

    Raises:
        DataError: as `decode`, as far as the header goes.
    """
    with decoding("DICOM"):
        data = _read(path, max_bytes, defer_size=_DEFERRED)
        return _header(data, _layout(data, max_bytes))


def order(
    positions: Float[np.ndarray, "n 3"], orientations: Float[np.ndarray, "n 2 3"], tolerance: float = 1e-3
) -> Int[np.ndarray, " n"]:
    """The rows of slices sorted by how far they lie along their common normal, whatever their instance numbers say.

    The normal is the cross product of the directions of row and column (C.7.6.2.1.1).

    Args:
        positions: of each slice, mm.
        orientations: of each slice: two unit vectors.
        tolerance: mm (positions) and length (directions) up to which two are the same.

    Raises:
        DataError: slices that are not parallel, or two at one place.
    """
    if np.abs(orientations - orientations[:1]).max() > tolerance:
        raise DataError("slices that are not parallel, so that they have no order")
    along = positions @ np.cross(orientations[0, 0], orientations[0, 1])
    rows = np.argsort(along, kind="stable")
    same = np.count_nonzero(np.diff(along[rows]) <= tolerance)
    if same:
        raise DataError(f"{same} of {len(rows)} slices lie where another one does")
    return rows


def dataset(path: Path, max_bytes: int = MAX_BYTES) -> Dataset:
    """All fields of the file, as pydicom reads them, with the transfer syntax of what is read in `file_meta`.

    Names and texts are among them: for `vaejax.privacy` alone, which leaves them out.

    Raises:
        DataError: as `decode`.
    """
    with decoding("DICOM"):
        return _read(path, max_bytes, tags=None)


# --- the file and its fields


def _read(path: Path, max_bytes: int, defer_size: int | None = None, tags: list[BaseTag] | None = _TAGS) -> Dataset:
    """The fields of `tags`, or all, with the transfer syntax in `file_meta`; those above `defer_size` bytes are passed over."""
    size_of(path, max_bytes)
    with path.open("rb") as file:
        start = file.read(132)
        if start[128:] != b"DICM" and start[:2] not in (b"\x02\0", b"\x08\0"):  # old files begin with group 2 or 8
            raise DataError("not a DICOM file" if start else "an empty file")
        file.seek(0)
        read_preamble(file, force=True)
        meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
        if meta.get("TransferSyntaxUID") == uid.DeflatedExplicitVRLittleEndian:
            data = dcmread(_inflated(file.read(), max_bytes), specific_tags=tags)
        else:
            file.seek(0)
            data = dcmread(file, force=True, specific_tags=tags, defer_size=defer_size)
    if "TransferSyntaxUID" not in data.file_meta:  # files without meta information were never compressed
        implicit, little = data.original_encoding
        syntax = uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
        data.file_meta.TransferSyntaxUID = syntax
    return data


def _inflated(stream: bytes, max_bytes: int) -> io.BytesIO:
    """A raw deflate stream (A.5), inflated only as far as allowed, as an explicit little-endian file."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    body = inflater.decompress(stream, max_bytes + 1)
    if len(body) > max_bytes:
        raise DataError(f"a deflated stream of more than {max_bytes} bytes")
    if not inflater.eof:
        raise DataError("a deflated stream that is cut short")
    syntax = uid.ExplicitVRLittleEndian.encode() + b"\0"
    file = io.BytesIO()
    file.write(bytes(128) + b"DICM" + struct.pack("<HH2sH", 2, 0x10, b"UI", len(syntax)) + syntax)
    file.write(body)  # not joined first: that would take as much memory again
    file.seek(0)
    return file


def _numbers(data: Dataset, keyword: str) -> tuple[float, ...]:
    """The values of a numeric field; none where it is absent or empty."""
    try:
        value = data.get(keyword)
        if value is None or value == "":
            return ()
        values = tuple(float(item) for item in (value if isinstance(value, MultiValue | list) else [value]))
    except (ValueError, TypeError, ArithmeticError, NotImplementedError):
        raise DataError(f"{keyword} is no number") from None
    if not all(map(math.isfinite, values)):
        raise DataError(f"{keyword} is not finite")
    return values


def _whole(data: Dataset, keyword: str, default: int | None = None) -> int:
    values = _numbers(data, keyword) or (() if default is None else (default,))
    if len(values) != 1 or values[0] != int(values[0]):
        raise DataError(f"{keyword} is no whole number" if values else f"without {keyword}")
    return int(values[0])


def _text(data: Dataset, keyword: str) -> str | None:
    return str(data.get(keyword) or "").strip(" \0") or None


def _holder(data: Dataset, group: str, keyword: str, frame: int = 0) -> Dataset:
    """Where a frame's field is: in its own functional group, in the shared one (C.7.6.16), or in the file's own fields."""
    for groups, i in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        items = data.get(groups) or []
        found = items[i].get(group) if i < len(items) else None
        if found and keyword in found[0]:
            return found[0]
    return data


def _layout(data: Dataset, max_bytes: int) -> Layout:
    present = [keyword for keyword in dicom_frames.KEYWORDS if keyword in data]
    if len(present) != 1:
        raise DataError("more than one kind of pixel data" if present else "no pixel data, or cut short before their end")
    real = present[0] != "PixelData"
    rows, columns = _whole(data, "Rows"), _whole(data, "Columns")
    frames, samples = _whole(data, "NumberOfFrames", 1) or 1, _whole(data, "SamplesPerPixel", 1)
    allocated = _whole(data, "BitsAllocated")
    stored = allocated if real else _whole(data, "BitsStored", allocated)
    signed = bool(_whole(data, "PixelRepresentation", 0))
    photometric = _text(data, "PhotometricInterpretation") or ""
    if min(rows, columns, frames) < 1:
        raise DataError(f"{frames} frames of {rows} x {columns} pixels")
    if frames > MAX_FRAMES:
        raise DataError(f"{frames} frames; at most {MAX_FRAMES} are allowed")
    if photometric not in (_GREY if samples == 1 else _COLOUR if samples == 3 else ()):
        raise DataError(f"a colour model that is not supported, with {samples} samples a pixel")
    if allocated not in ((32, 64) if real else (1, 8, 16, 32)) or not 1 <= stored <= allocated:
        raise DataError(f"{stored} bits stored in {allocated}")
    if not real and _whole(data, "HighBit", stored - 1) >= stored:
        raise DataError("samples in the upper bits, which are not supported")
    dtype = np.dtype(f"{'f' if real else 'i' if signed else 'u'}{max(1, allocated // 8)}")
    _check_size((frames, rows, columns, samples), dtype, max_bytes)
    data.NumberOfFrames, data.BitsStored = frames, stored  # what pydicom is to read
    return Layout(frames, rows, columns, samples, photometric, allocated, stored, signed, dtype)


def _check_size(shape: tuple[int, ...], dtype: np.dtype, max_bytes: int) -> None:
    claimed = math.prod(shape) * dtype.itemsize
    if claimed > max_bytes:
        raise DataError(f"{claimed} bytes of pixels claimed; at most {max_bytes} are allowed")


def _header(data: Dataset, layout: Layout) -> Header:
    measures = [
        _numbers(_holder(data, "PixelMeasuresSequence", keyword), keyword)
        for keyword in ("PixelSpacing", "SliceThickness", "SpacingBetweenSlices")
    ]
    spacing = measures[0] or _numbers(data, "ImagerPixelSpacing") or _numbers(data, "NominalScannedPixelSpacing")
    thickness, gap = (values[0] if values and values[0] > 0 else None for values in measures[1:])
    modality = _text(data, "Modality")
    positions, orientations = _geometry(data, layout.frames)
    windows, function, luts = _windows(data, layout)
    channels = 3 if layout.photometric == "PALETTE COLOR" else layout.samples
    return Header(
        (layout.frames, layout.rows, layout.columns, channels),
        modality if re.fullmatch("[A-Z0-9]{2,16}", modality or "") else None,
        windows,
        function,
        luts,
        (spacing[0], spacing[1]) if len(spacing) == 2 and min(spacing) > 0 else None,
        thickness,
        gap,
        positions,
        orientations,
        _text(data, "SeriesInstanceUID"),
        _text(data, "PatientID"),
        layout.stored,
        burned_in.suspected(data),
        (_text(data, "BodyPartExamined") or "") in HEADS,
        layout.photometric == "MONOCHROME1",
    )


def _geometry(data: Dataset, frames: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Positions [f, 3] and orientations [f, 2, 3] (C.7.6.2.1.1)."""
    own = frames == 1 or "PerFrameFunctionalGroupsSequence" in data  # else the one position is the first frame's
    offsets = np.array(_numbers(data, "GridFrameOffsetVector"))
    n = frames if own else 1
    found = [
        [_numbers(_holder(data, group, keyword, i), keyword) for i in range(n)]
        for group, keyword in (
            ("PlanePositionSequence", "ImagePositionPatient"),
            ("PlaneOrientationSequence", "ImageOrientationPatient"),
        )
    ]
    positions = np.array(found[0]) if all(len(values) == 3 for values in found[0]) else None
    orientations = np.array(found[1]).reshape(n, 2, 3) if all(len(values) == 6 for values in found[1]) else None
    if own:
        return positions, orientations
    if orientations is not None:
        orientations = np.repeat(orientations, frames, axis=0)
    if positions is None or orientations is None or len(offsets) != frames:
        return None, orientations
    normal = np.cross(orientations[0, 0], orientations[0, 1])  # a dose grid (C.8.8.3.2)
    return positions + (offsets - offsets[0])[:, None] * normal, orientations


# --- values


class _Scale(NamedTuple):
    """From stored values to the modality's units."""

    slope: float
    intercept: float
    table: Lut | None


def _scale(data: Dataset, layout: Layout, frame: int) -> _Scale | None:
    """The change of a frame; None where the modality changes nothing, or does not apply: float pixel data and colour."""
    if layout.dtype.kind == "f" or layout.photometric not in ("MONOCHROME1", "MONOCHROME2"):
        return None
    tables = data.get("ModalityLUTSequence")
    if tables:
        return _Scale(1.0, 0.0, _lut(tables[0], data))
    holder = _holder(data, "PixelValueTransformationSequence", "RescaleSlope", frame)
    slope = (_numbers(holder, "RescaleSlope") or _numbers(data, "DoseGridScaling") or (1.0,))[0]
    intercept = (_numbers(holder, "RescaleIntercept") or (0.0,))[0]
    if slope == 0:
        raise DataError("RescaleSlope is 0")
    return None if (slope, intercept) == (1, 0) else _Scale(slope, intercept, None)


def _units(frame: np.ndarray, scale: _Scale | None, layout: Layout) -> np.ndarray:
    """Stored values [h, w, c] in the modality's units, MONOCHROME1 mirrored."""
    mirrored = layout.photometric == "MONOCHROME1"
    if mirrored and frame.dtype.kind != "f":
        frame = np.clip(frame, *layout.extremes)  # a codec may give more bits than are said to be stored
    if scale is not None:
        frame = scale.table.look_up(frame) if scale.table else frame * scale.slope + scale.intercept
    return _mirror(scale, layout) - frame if mirrored else frame


def _mirror(scale: _Scale | None, layout: Layout) -> float:
    """The sum of the smallest and the largest value that a frame can have; an int where all values are."""
    if scale is not None and scale.table is not None:
        return int(scale.table.values.min()) + int(scale.table.values.max())
    both = sum(layout.extremes)
    return both if scale is None else scale.slope * both + 2 * scale.intercept


def _windows(data: Dataset, layout: Layout) -> tuple[tuple[tuple[float, float], ...], str, tuple[Lut, ...]]:
    """Windows, their function, and VOI LUTs of the first frame, mirrored where the pixels are."""
    holder = _holder(data, "FrameVOILUTSequence", "WindowCenter")
    function = _text(holder, "VOILUTFunction") or "LINEAR"
    function = function if function in FUNCTIONS else "LINEAR"
    pairs = zip(_numbers(holder, "WindowCenter"), _numbers(holder, "WindowWidth"), strict=False)
    windows = tuple((centre, width) for centre, width in pairs if width >= (1 if function == "LINEAR" else 1e-6))
    luts = tuple(_lut(item, data) for item in data.get("VOILUTSequence") or [])
    if layout.photometric != "MONOCHROME1":
        return windows, function, luts
    both = _mirror(_scale(data, layout, 0), layout)
    shift = 1 if function == "LINEAR" else 0  # LINEAR has its middle at centre - 0.5
    windows = tuple((both + shift - centre, width) for centre, width in windows)
    luts = tuple(Lut(both - (lut.first + len(lut.values) - 1), lut.white - lut.values[::-1], lut.white) for lut in luts)
    return windows, function, luts


def _lut(item: Dataset, data: Dataset) -> Lut:
    """A Modality or VOI LUT (C.11.1.1)."""
    return _entries(_numbers(item, "LUTDescriptor"), item.get("LUTData"), data)


def _table(data: Dataset, colour: str) -> Lut:
    """A palette's table of one colour (C.7.6.3.1.5, C.7.6.3.1.6), segmented (C.7.9.2) or not."""
    descriptor = _numbers(data, f"{colour}PaletteColorLookupTableDescriptor")
    segments = data.get(f"Segmented{colour}PaletteColorLookupTableData")
    if segments is None:
        return _entries(descriptor, data.get(f"{colour}PaletteColorLookupTableData"), data)
    n, first, bits = _descriptor(descriptor, data)
    words = np.frombuffer(segments, _words(data) if bits > 8 else "u1")
    return Lut(first, _expanded(words, n).astype("u2" if bits > 8 else "u1"), (1 << bits) - 1)


def _descriptor(values: tuple[float, ...], data: Dataset) -> tuple[int, int, int]:
    """Entries (0 stands for 65536), first input (signed where pixels are), bits an entry."""
    if len(values) != 3 or not 8 <= values[2] <= 16:
        raise DataError("a lookup table whose descriptor cannot be read")
    n, first, bits = (int(value) for value in values)
    if first >= 32768 and _whole(data, "PixelRepresentation", 0):
        first -= 65536
    return (n & 0xFFFF) or 65536, first, bits


def _entries(values: tuple[float, ...], content: object, data: Dataset) -> Lut:
    n, first, bits = _descriptor(values, data)
    if isinstance(content, bytes):  # two bytes an entry, or for 8 bits one
        wide = _words(data) if len(content) >= 2 * n else np.dtype("u1")
        entries = np.frombuffer(content, wide, len(content) // wide.itemsize)
    else:
        entries = np.atleast_1d(np.array(content if content is not None else [], np.int64))
    if len(entries) < n:
        raise DataError(f"a lookup table of {len(entries)} entries; expected {n}")
    entries = entries[:n].astype("u1" if bits == 8 else "u2")
    return Lut(first, entries, (1 << bits) - 1)


def _words(data: Dataset) -> np.dtype:
    """16 bits in the byte order of the file."""
    return np.dtype("<u2" if data.original_encoding[1] else ">u2")


def _expanded(words: np.ndarray, n: int) -> np.ndarray:
    """The `n` entries that segments of a table stand for: runs of values (0), or straight lines to a value (1)."""
    parts, i, done = [np.zeros(0)], 0, 0
    while done < n:
        code, count = int(words[i]), int(words[i + 1])
        if code == 0:
            part, i = words[i + 2 : i + 2 + count].astype(float), i + 2 + count
        elif code == 1 and done:
            part, i = np.linspace(parts[-1][-1], float(words[i + 2]), count + 1)[1:], i + 3
        else:
            raise DataError("a segmented palette of a kind that is not supported")
        if not part.size:
            raise DataError("a segmented palette that is cut short")
        parts.append(part)
        done += len(part)
    return np.rint(np.concatenate(parts)[:n])
