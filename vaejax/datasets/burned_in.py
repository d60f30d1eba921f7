"""Text that may be part of the pixels, such as a name in a corner, by what a DICOM header says of it."""

from pydicom.dataset import Dataset

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
