"""Text that may be part of the pixels, such as a name in a corner, by what a DICOM header says of it."""

from collections.abc import Iterable
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.filereader import dcmread

OFTEN = frozenset(("US", "IVUS", "BDUS", "SC", "OT", "XA", "RF", "XC", "ES", "GM", "OP", "OPT", "ECG", "IO", "PX", "SM"))
"""Modalities whose pixels often show text: it is there unless the header says that it is not."""


_CAPTURED = "1.2.840.10008.5.1.4.1.1.7"
"""Secondary capture: screenshots and scanned films, whatever their modality; the classes of several frames continue it."""

_TYPES = ("SCREEN", "DOSE", "PROTOCOL", "REPORT")
"""Words of ImageType that scanners give to pages of text."""

FIELDS = ("BurnedInAnnotation", "Modality", "SOPClassUID", "ImageType")
"""What `suspected` reads."""


def suspected(data: Dataset) -> bool:
    """Whether text may be burned in: the header says so, or is silent where such images often show some.

    A header that says NO is believed; it is often wrong, so look at the images.
    """
    said, modality, made, kind = (str(data.get(field) or "").strip().upper() for field in FIELDS)
    often = not modality or modality in OFTEN or made.startswith(_CAPTURED) or any(word in kind for word in _TYPES)
    return said != "NO" and (bool(said) or often)


def count(paths: Iterable[Path]) -> int:
    """How many of these DICOM files may show text in their pixels, which are not read. A file that cannot be read is none."""
    return sum(map(_suspected_in, paths))


def warning(paths: Iterable[Path]) -> str | None:
    """What to say before training on these DICOM files, in a number and not in names; None where there is nothing to say."""
    n = count(paths)
    told = "DICOM files may show text in their pixels, such as a name, which a model can learn"
    return f"{n} {told}: look at them, and blank it with `vaejax deidentify`." if n else None


def _suspected_in(path: Path) -> bool:
    try:
        return suspected(dcmread(path, force=True, stop_before_pixels=True, specific_tags=list(FIELDS)))
    except Exception:  # damaged files make pydicom raise almost anything; whoever reads the pixels says so
        return False
