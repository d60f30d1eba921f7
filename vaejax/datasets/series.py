"""A DICOM series: the frames of all its files in one order, and a derived series in its place.

Sections named like C.7.6.1 are those of the DICOM standard, PS3.3.
"""

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Num, Shaped
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import dcmread
from pydicom.sequence import Sequence
from pydicom.valuerep import DSfloat

from vaejax.datasets import dicom
from vaejax.datasets.source import NOTICE, decoding
from vaejax.errors import DataError

_IRREGULAR = 0.01  # share by which the gaps between slices may differ
_KEPT = (uid.CTImageStorage, uid.MRImageStorage)  # classes that results of theirs fit in; others become secondary captures
_TECHNICAL: dict[
    str, dict[str, str | None]
] = {  # what those classes require (C.8.2.1, C.8.3.1), and what stands for it where the source lacks it
    uid.CTImageStorage: {"KVP": None, "AcquisitionNumber": None, "PatientPosition": None},
    uid.MRImageStorage: {
        "ScanningSequence": "RM",
        "SequenceVariant": "NONE",
        "ScanOptions": None,
        "MRAcquisitionType": None,
        "RepetitionTime": None,
        "EchoTime": None,
        "EchoTrainLength": None,
        "PatientPosition": None,
    },
    uid.SecondaryCaptureImageStorage: {"PatientOrientation": None},
}
_CONDITIONAL = ("InversionTime", "TriggerTime")  # what goes with some sequences of MR
_STUDY = ("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName")
_PATIENT = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex")
_READ = ["SOPClassUID", "SOPInstanceUID", "FrameOfReferenceUID", *_CONDITIONAL, *_STUDY, *_PATIENT]
_READ += [keyword for keywords in _TECHNICAL.values() for keyword in keywords]
_PADDING = 0  # the stored value of what is not known


class Frame(NamedTuple):
    """Where a frame lies: the number in its file counts from 0."""

    path: Path
    number: int


class Series(NamedTuple):
    """Frames in one order.

    Attributes:
        pixels: one channel in the modality's units, or RGB.
        frames: where each was read.
        header: of the first file.
        positions: of the centre of each frame's first pixel, mm; None where unknown.
        orientations: of each frame: the direction along a row, and down a column; None where unknown.
        spacing: mm between slices, rows and columns; None where unknown or unequal.
    """

    pixels: Num[np.ndarray, "n h w c"]
    frames: tuple[Frame, ...]
    header: dicom.Header
    positions: Float[np.ndarray, "n 3"] | None
    orientations: Float[np.ndarray, "n 2 3"] | None
    spacing: tuple[float | None, float | None, float | None]


def decode(paths: Iterable[Path], read: Callable[[Path], dicom.Picture] = dicom.decode) -> Series:
    """The frames of all files of a series, sorted by position where they have one, else in the order of `paths`.

    Args:
        paths: of its files.
        read: decodes one of them.

    Raises:
        DataError: the bare reason why a file is unreadable, or the frames are of several sizes.
    """
    files = list(paths)
    pictures = [read(path) for path in files]
    shapes = {picture.pixels.shape[1:] for picture in pictures}
    if len(shapes) > 1:
        raise DataError(f"frames of several sizes in a series: {', '.join(map(str, sorted(shapes)))}")
    pixels = np.concatenate([picture.pixels for picture in pictures])
    frames = [Frame(path, i) for path, picture in zip(files, pictures, strict=True) for i in range(len(picture.pixels))]
    positions = _joined([picture.header.positions for picture in pictures])
    orientations = _joined([picture.header.orientations for picture in pictures])
    header, gap = pictures[0].header, pictures[0].header.gap
    if positions is not None and orientations is not None and len(frames) > 1:
        gap = None
        with contextlib.suppress(DataError):  # scouts and series in time have no order along a line: that of their paths
            rows = dicom.order(positions, orientations)
            pixels, frames = pixels[rows], [frames[row] for row in rows]
            positions, orientations = positions[rows], orientations[rows]
            gap = _gap(positions)
    rows_apart, columns_apart = header.spacing or (None, None)
    return Series(pixels, tuple(frames), header, positions, orientations, (gap, rows_apart, columns_apart))


def _joined(parts: list[np.ndarray | None]) -> np.ndarray | None:
    """All parts as one array; None where one is unknown."""
    known = [part for part in parts if part is not None]
    return np.concatenate(known) if len(known) == len(parts) else None


def _gap(positions: Float[np.ndarray, "n 3"]) -> float | None:
    """Between neighbouring slices, mm; None where that differs."""
    gaps = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    middle = float(np.median(gaps))
    return middle if np.abs(gaps - middle).max() <= _IRREGULAR * middle else None


def affine(series: Series) -> Float[np.ndarray, "4 4"]:
    """From (column, row, slice, 1) to mm to the right, front and head, as of a NIfTI file.

    Raises:
        DataError: the bare reason: frames whose place is unknown, or not one behind the other at equal distances.
    """
    between, rows, columns = series.spacing
    if len(series.frames) == 1:
        between = between or series.header.thickness or 1.0  # what no voxel depends on
    if series.positions is None or series.orientations is None or not (between and rows and columns):
        raise DataError("of a series whose slices have no places at equal distances, which a NIfTI file needs")
    along, down = series.orientations[0]
    placed = np.eye(4)
    placed[:3] = np.stack([along * columns, down * rows, np.cross(along, down) * between, series.positions[0]], axis=1)
    if len(series.frames) > 1:
        placed[:3, 2] = (series.positions[-1] - series.positions[0]) / (len(series.frames) - 1)
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ placed


def last_pixels(series: Series) -> Float[np.ndarray, "n 3"] | None:
    """Where the centre of each frame's last pixel lies, mm; None where it is unknown."""
    if series.positions is None or series.orientations is None or series.header.spacing is None:
        return None
    (height, width), (rows, columns) = series.pixels.shape[1:3], series.header.spacing
    reach = np.array([(width - 1) * columns, (height - 1) * rows])
    return series.positions + np.einsum("k,nkd->nd", reach, series.orientations)


def save(folder: Path, values: Shaped[np.ndarray, "n h w ..."], series: Series, name: str, identify: bool) -> list[Path]:
    """Writes a derived series: one file a frame, each in the place of its source, to which it refers.

    Integers and bools are stored as they are, in 16 bits in CT and MR images; floats as 16 bits with slope and intercept, so
    within 1/131068 of their range; NaN is PixelPaddingValue. It has the class of a CT or MR source, else it is a secondary
    capture, as colours are; values of MONOCHROME1 sources are those of `vaejax.datasets.dicom`, larger is brighter. As series
    and instance it is new.

    Args:
        folder: is made, and gets 0001.dcm, 0002.dcm, ...
        values: [n, h, w], or RGB of uint8 [n, h, w, 3].
        series: the source.
        name: what it shows, such as "reconstruction".
        identify: whether patient and study are those of the source. Else the patient is nameless, with a hash for an ID, and
            the study is a new one, the same for all results of one study.

    Raises:
        DataError: values that DICOM cannot hold, or a source without the identifiers that a reference needs.
    """
    stored, slope, intercept = _stored(values)
    padded = values.dtype.kind == "f" and bool(np.isnan(values).any())
    folder.mkdir(parents=True, exist_ok=True)
    own, written = uid.generate_uid(), []
    for i in range(len(values)):
        with decoding("DICOM"):
            source = dcmread(series.frames[i].path, stop_before_pixels=True, force=True, specific_tags=_READ)
            data = _derived(source, series, i, name, identify, colour=values.ndim == 4)
            data.SeriesInstanceUID = own
            _put_pixels(data, stored[i], slope, intercept, padded)
            written.append(folder / f"{i + 1:04}.dcm")
            data.save_as(written[-1], enforce_file_format=True)
    return written


def save_made(folder: Path, values: Shaped[np.ndarray, "n h w ..."], name: str) -> list[Path]:
    """Writes images without a source as a series of secondary captures, of a nameless patient: 0001.dcm, 0002.dcm, ...

    Args:
        folder: is made.
        values: [n, h, w], or RGB of uint8 [n, h, w, 3], stored as by `save`.
        name: what they show, such as "sample".
    """
    stored, slope, intercept = _stored(values)
    folder.mkdir(parents=True, exist_ok=True)
    study, own, written = uid.generate_uid(), uid.generate_uid(), list[Path]()
    for i in range(len(values)):
        data = _new(uid.SecondaryCaptureImageStorage, name, i)
        for keyword in (*_PATIENT, *_STUDY):
            setattr(data, keyword, None)
        data.StudyInstanceUID, data.SeriesInstanceUID, data.PatientID = study, own, study.rpartition(".")[2][-16:]
        data.Modality = "OT"
        _put_pixels(data, stored[i], slope, intercept, padded=False)
        written.append(folder / f"{i + 1:04}.dcm")
        data.save_as(written[-1], enforce_file_format=True)
    return written


def _stored(values: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Values in a type that DICOM holds, and how to come back to them."""
    if values.dtype.kind == "b":
        return values.astype(np.uint8), 1.0, 0.0
    if values.dtype.kind in "iu":
        kind = next((k for k in ("u1", "u2", "i2") if _fits(values, np.dtype(k))), None)
        if kind is None:
            raise DataError(f"whole numbers from {values.min()} to {values.max()}; DICOM images hold 16 bits")
        return values.astype(kind), 1.0, 0.0
    known = values[np.isfinite(values)].astype(np.float64)
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
    slope = float(_decimal((high - low) / 65534 or 1.0))  # as the file will say it
    intercept = float(_decimal(low - slope))
    grey = np.clip(np.rint((values.astype(np.float64) - intercept) / slope), 1, 65535)
    return np.nan_to_num(grey, nan=_PADDING).astype(np.uint16), slope, intercept


def _decimal(value: float) -> DSfloat:
    """As a file says it: a decimal string of 16 characters at most."""
    return DSfloat(float(value), auto_format=True)


def _fits(values: np.ndarray, kind: np.dtype) -> bool:
    return not values.size or (np.iinfo(kind).min <= values.min() and values.max() <= np.iinfo(kind).max)


def _new(kind: uid.UID, name: str, i: int) -> Dataset:
    """The i-th file of a class, with what is said of every result."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = kind
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = uid.generate_uid()
    data.SpecificCharacterSet = "ISO_IR 192"  # UTF-8, whatever names and texts are copied
    if kind == uid.SecondaryCaptureImageStorage:
        data.ConversionType = "WSD"
    data.ImageType = ["DERIVED", "SECONDARY", "AXIAL" if kind == uid.CTImageStorage else "OTHER"]
    data.SeriesDescription = f"{name}: {NOTICE}"[:64]
    data.DerivationDescription = f"{name} by a variational autoencoder (vaejax): {NOTICE}, research use only"
    data.BurnedInAnnotation, data.Manufacturer = "NO", "vaejax"
    data.SeriesNumber, data.InstanceNumber, data.Laterality = None, i + 1, None
    return data


def _derived(source: Dataset, series: Series, i: int, name: str, identify: bool, colour: bool) -> Dataset:
    """All but the pixels of the i-th file; colours fit in neither CT nor MR images."""
    missing = [keyword for keyword in ("SOPClassUID", "SOPInstanceUID") if not source.get(keyword)]
    if missing:
        raise DataError(f"without {missing[0]}, so that no result can refer to it")
    kind = source.SOPClassUID if source.SOPClassUID in _KEPT and not colour else uid.SecondaryCaptureImageStorage
    data = _new(kind, name, i)
    _put_owner(data, source, identify)
    technical = _TECHNICAL[kind] | {
        keyword: None for keyword in _CONDITIONAL if kind == uid.MRImageStorage and keyword in source
    }
    for keyword, default in technical.items():
        setattr(data, keyword, source.get(keyword, default))
    data.Modality = series.header.modality or "OT"
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
    if len({frame.path for frame in series.frames}) < len(series.frames):
        reference.ReferencedFrameNumber = series.frames[i].number + 1
    data.SourceImageSequence = Sequence([reference])
    _put_geometry(data, source, series, i)
    return data


def _put_owner(data: Dataset, source: Dataset, identify: bool) -> None:
    """Patient and study: those of the source, or none that anybody could name."""
    for keyword in (*_PATIENT, *_STUDY):
        setattr(data, keyword, source.get(keyword) if identify else None)
    if not identify or not data.StudyInstanceUID:
        seed = str(source.get("StudyInstanceUID") or source.SOPInstanceUID)
        data.StudyInstanceUID = uid.generate_uid(entropy_srcs=["vaejax", seed])
    if not identify:
        data.PatientID = data.StudyInstanceUID.rpartition(".")[2][-16:]
        data.PatientIdentityRemoved, data.DeidentificationMethod = "YES", "patient and study left out"


def _put_geometry(data: Dataset, source: Dataset, series: Series, i: int) -> None:
    """The place of the i-th frame (C.7.6.2), as far as it is known."""
    if source.get("FrameOfReferenceUID"):
        data.FrameOfReferenceUID, data.PositionReferenceIndicator = source.FrameOfReferenceUID, None
    if series.positions is not None:
        data.ImagePositionPatient = [_decimal(x) for x in series.positions[i]]
    if series.orientations is not None:
        data.ImageOrientationPatient = [_decimal(x) for x in series.orientations[i].ravel()]
    if series.header.spacing:
        data.PixelSpacing = [_decimal(x) for x in series.header.spacing]
    data.SliceThickness = None if series.header.thickness is None else _decimal(series.header.thickness)
    if series.spacing[0] is not None:
        data.SpacingBetweenSlices = _decimal(series.spacing[0])


def _put_pixels(data: Dataset, stored: Num[np.ndarray, "h w ..."], slope: float, intercept: float, padded: bool) -> None:
    if data.SOPClassUID in _KEPT and stored.itemsize == 1:
        stored = stored.astype(np.uint16)  # all that these classes allow (C.8.2.1, C.8.3.1)
    colour, signed = stored.ndim == 3, stored.dtype.kind == "i"
    data.Rows, data.Columns = stored.shape[:2]
    data.SamplesPerPixel, data.PhotometricInterpretation = (3, "RGB") if colour else (1, "MONOCHROME2")
    if colour:
        data.PlanarConfiguration = 0
    else:
        data.RescaleSlope, data.RescaleIntercept = (_decimal(x) for x in (slope, intercept))
        data.RescaleType = "US"
    data.BitsAllocated = data.BitsStored = 8 * stored.itemsize
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(signed)
    if padded:
        data.PixelPaddingValue = _PADDING
    content = stored.astype(stored.dtype.newbyteorder("<")).tobytes()
    data.PixelData = content + b"\0" * (len(content) % 2)
    data["PixelData"].VR = "OB" if stored.itemsize == 1 else "OW"
