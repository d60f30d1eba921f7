"""A DICOM file for sharing: its header made anew, its pixels as they are, unless boxes of them are to be blanked."""

import io
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Num
from pydicom import uid
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames

from vaejax.datasets import burned_in, dicom
from vaejax.errors import DataError
from vaejax.privacy import boxes, header, pseudonyms, streams
from vaejax.privacy.boxes import Box
from vaejax.privacy.copies import Copy

_FACE = "a head: a face can be rebuilt from its slices"
_CLEARED = "bits above those stored cleared, where an overlay may have been"
_TEXT = (
    "text may be burned into its pixels; look, then give --box={0}:row,column,height,width, or --box={0}:none if there is none"
)

_JPEG = {uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1}
_JPEG |= {uid.JPEGLSLossless, uid.JPEGLSNearLossless}
_JPEG_2000 = {uid.JPEG2000Lossless, uid.JPEG2000}


def copy(path: Path, key: bytes, name: str, masks: Sequence[Box]) -> Copy:
    """The file with nothing but technical facts in its header.

    The transfer syntax and the code words of the pixels stay, but a deflated file is written inflated. With boxes for its
    modality the pixels are decoded, blanked there and stored without compression.

    Args:
        path: the file.
        key: of the pseudonyms.
        name: of the new file, for files that do not say whose they are.
        masks: boxes to blank.

    Raises:
        DataError: the bare reason why the file cannot be shared; it holds no text of the header.
    """
    data = dicom.dataset(path)
    made = str(data.get("SOPClassUID", ""))
    if not any(keyword in data for keyword in header.PIXELS):
        raise DataError(f"no pixels to share ({uid.UID(made).name if made in uid.UID_dictionary else 'of an unknown class'})")
    if made not in uid.UID_dictionary:
        raise DataError("a SOP class that the standard does not know")
    shape = dicom.read_header(path).shape
    counts: Counter[str] = Counter()
    rules = header.rules(data, key, name)
    new = header.rebuilt(data, rules, counts)
    new.SOPInstanceUID = new.get("SOPInstanceUID") or pseudonyms.uid(key, name)
    modality = str(new.get("Modality", "OT"))
    areas = boxes.for_kind(masks, modality)
    if burned_in.suspected(data) and (areas is None or (not areas and new.get("BurnedInAnnotation") == "YES")):
        raise DataError(_TEXT.format(modality))
    notes = _masked(path, data, new, areas) if areas else _pixels(path, data, new, shape)
    if modality in ("CT", "MR", "PT") and new.get("BodyPartExamined") in dicom.HEADS:
        notes.append(_FACE)
    header.declared(new, rules, bool(areas))
    return Copy(_written(new), ".dcm", dict(counts), tuple(notes))


def _written(new: Dataset) -> bytes:
    new.file_meta.MediaStorageSOPClassUID = new.SOPClassUID
    new.file_meta.MediaStorageSOPInstanceUID = new.SOPInstanceUID
    file = io.BytesIO()
    new.save_as(file, enforce_file_format=True)
    return file.getvalue()


def _meta(syntax: str) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = uid.UID(syntax)
    return meta


def _pixels(path: Path, data: Dataset, new: Dataset, shape: tuple[int, int, int, int]) -> list[str]:
    """Sets the pixels of `new` to those of `data`; returns notes."""
    syntax = data.file_meta.TransferSyntaxUID
    field = data[next(keyword for keyword in header.PIXELS if keyword in data)]
    if not syntax.is_encapsulated:
        content, notes = _native(data, field, shape)
    else:
        frames, notes = _compressed(data, syntax, shape)
        if _overfull(path, data, frames, shape):
            _set(data, new, _cleared(dicom.raw(path), int(data.BitsStored)))
            return [*notes, _CLEARED, "pixels stored without compression"]
        content = encapsulate(frames)
    new.file_meta = _meta(syntax)
    new.add(DataElement(field.tag, field.VR, content))
    new[field.tag].is_undefined_length = syntax.is_encapsulated
    return notes


def _compressed(data: Dataset, syntax: str, shape: tuple[int, int, int, int]) -> tuple[list[bytes], list[str]]:
    """The frames without what stands between the code words."""
    tables = [data.get(keyword) for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")]
    extended = (tables[0], tables[1]) if all(isinstance(table, bytes) for table in tables) else None
    old = list(generate_frames(data.PixelData, number_of_frames=shape[0], extended_offsets=extended))
    if len(old) != shape[0]:
        raise DataError(f"{len(old)} of {shape[0]} frames")
    new = [_stream(frame, data, syntax, shape) for frame in old]
    changed = any(one.rstrip(b"\0") != other.rstrip(b"\0") for one, other in zip(old, new, strict=True))
    return new, ["what stood between or after compressed pixels removed"] if changed else []


def _overfull(path: Path, data: Dataset, frames: Sequence[bytes], shape: tuple[int, int, int, int]) -> bool:
    """Whether compressed grey values have bits above those stored; only then are they decoded."""
    allocated, stored = int(data.BitsAllocated), int(data.get("BitsStored", data.BitsAllocated))
    if stored >= allocated or int(data.get("SamplesPerPixel", 1)) > 1:
        return False
    if data.file_meta.TransferSyntaxUID == uid.RLELossless:
        kind = f">{'i' if data.get('PixelRepresentation') else 'u'}{allocated // 8}"
        values = np.concatenate([streams.expanded(frame, shape[1] * shape[2]).view(kind).ravel() for frame in frames])
    else:
        values = dicom.raw(path).ravel()
    return bool((values != _cleared(values, stored)).any())


def _stream(frame: bytes, data: Dataset, syntax: str, shape: tuple[int, int, int, int]) -> bytes:
    if syntax in _JPEG:
        return streams.jpeg(frame)
    if syntax in _JPEG_2000:
        return streams.jpeg2000(frame)
    if syntax == uid.RLELossless and int(data.BitsAllocated) > 1:
        return streams.run_lengths(frame, shape[1] * shape[2], int(data.SamplesPerPixel) * int(data.BitsAllocated) // 8)
    raise DataError("a transfer syntax that nobody here can look into")


def _native(data: Dataset, field: DataElement, shape: tuple[int, int, int, int]) -> tuple[bytes, list[str]]:
    """Exactly the pixels, without bits above those stored, where overlays used to be, and without bytes after the last one."""
    allocated, samples = int(data.BitsAllocated), int(data.get("SamplesPerPixel", 1))
    part = 2 / 3 if data.get("PhotometricInterpretation") == "YBR_FULL_422" else 1
    expected = math.ceil(math.prod(shape[:3]) * samples * allocated * part / 8)
    if len(field.value) < expected:
        raise DataError(f"{len(field.value)} bytes of pixels; expected {expected}")
    content, rest = field.value[:expected], field.value[expected:]
    notes = ["bytes after the pixels removed"] if rest.strip(b"\0") else []
    stored = int(data.get("BitsStored", allocated))
    if field.keyword == "PixelData" and allocated > 1 and stored < allocated:
        order = "<" if data.original_encoding[1] else ">"
        values = np.frombuffer(content, f"{order}{'i' if data.get('PixelRepresentation') else 'u'}{allocated // 8}")
        cleared = _cleared(values, stored)
        if (cleared != values).any():
            notes.append(_CLEARED)
            content = cleared.tobytes()
    return content + bytes(expected % 2), notes


def _cleared(values: Num[np.ndarray, "..."], stored: int) -> Num[np.ndarray, "..."]:
    """The values without their upper bits, unless these are zeros or repeat the sign."""
    unused = 8 * values.itemsize - stored
    clean = values << unused >> unused
    return np.where(values == clean & ((1 << stored) - 1), values, clean).astype(values.dtype)


def _masked(path: Path, data: Dataset, new: Dataset, areas: Sequence[tuple[int, int, int, int]]) -> list[str]:
    """Sets the pixels of `new` to those of `data` with boxes blanked; returns notes."""
    if int(data.BitsAllocated) == 1:
        raise DataError("single bits, which cannot be blanked")
    pixels = dicom.raw(path)
    if pixels.dtype.kind != "f":
        pixels = _cleared(pixels, int(data.get("BitsStored", data.BitsAllocated)))
    _set(data, new, boxes.blank(pixels, areas, bright=data.get("PhotometricInterpretation") == "MONOCHROME1"))
    return ["boxes of pixels blanked, the others stored without compression"]


def _set(data: Dataset, new: Dataset, pixels: Num[np.ndarray, "f h w c"]) -> None:
    """Sets the pixels of `new`, uncompressed, in the byte order of `data`: that of lookup tables, which stay as they are."""
    order = "<" if data.original_encoding[1] else ">"
    new.file_meta = _meta(uid.ExplicitVRLittleEndian if order == "<" else uid.ExplicitVRBigEndian)
    if pixels.shape[-1] == 3:
        new.PhotometricInterpretation, new.PlanarConfiguration = "RGB", 0
    keyword = next(keyword for keyword in header.PIXELS if keyword in data)
    content = pixels.astype(np.dtype(f"{order}{pixels.dtype.str[1:]}")).tobytes()
    setattr(new, keyword, content + bytes(len(content) % 2))
    if keyword == "PixelData":
        new["PixelData"].VR = "OB" if pixels.itemsize == 1 else "OW"
