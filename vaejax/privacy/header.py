"""The header of a DICOM file made anew from what `profile` lets stay."""

import datetime
import re
from collections import Counter
from typing import Any, NamedTuple

from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag
from pydicom.uid import UID_dictionary

from vaejax.errors import DataError
from vaejax.privacy import profile, pseudonyms

PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")

_METHOD = "vaejax: allow-list within PS3.15 E basic profile, dates moved"
_CODES = {
    "113100": "Basic Application Confidentiality Profile",
    "113107": "Retain Longitudinal Temporal Information Modified Dates Option",
    "113101": "Clean Pixel Data Option",
}
"""Of DeidentificationMethodCodeSequence (PS3.16, CID 7050)."""


class Rules(NamedTuple):
    """What a header is made anew by.

    Attributes:
        key: of the pseudonyms.
        patient: the pseudonym.
        days: how far dates are moved back.
    """

    key: bytes
    patient: str
    days: int


def rules(data: Dataset, key: bytes, name: str) -> Rules:
    """The rules of the file's patient, known by the PatientID; else by name and birth date; else by the study, or the file.

    Args:
        data: the old header.
        key: of the pseudonyms.
        name: of the file.
    """
    old, named, born, study = (
        str(_value(data, keyword) or "").strip(" \0")
        for keyword in ("PatientID", "PatientName", "PatientBirthDate", "StudyInstanceUID")
    )
    identity = f"id {old}" if old else f"name {named} {born}" if named else f"study {study}" if study else f"file {name}"
    return Rules(key, pseudonyms.pseudonym(key, "patient", identity), pseudonyms.days(key, identity))


def _value(data: Dataset, keyword: str) -> Any:
    try:
        return data.get(keyword)
    except Exception:  # a damaged field makes pydicom raise almost anything
        return None


def rebuilt(data: Dataset, rules: Rules, counts: Counter[str]) -> Dataset:
    """A header with what may stay of `data` and its sequences, pixels aside; `counts` is added to.

    Raises:
        DataError: a field cannot stay without which the pixels mean something else.
    """
    result = Dataset()
    for tag in list(data.keys()):
        keyword = _keyword(tag)
        if tag.is_private:
            counts["private"] += 1
        elif keyword not in PIXELS:
            action, value = _treated(data, tag, keyword, rules, counts)
            counts[action] += 1
            if value is None and keyword in profile.ESSENTIAL:
                raise DataError(f"{keyword} is not what the standard allows, or cannot be looked into")
            if value is not None:
                result.add(value)
    return result


def declared(header: Dataset, rules: Rules, masked: bool) -> None:
    """Writes into a header whose it is now, and what was done to it."""
    header.SpecificCharacterSet = "ISO_IR 192"  # UTF-8: meanings of codes have letters beyond ASCII
    header.PatientID = header.PatientName = rules.patient
    header.PatientIdentityRemoved = "YES"
    header.DeidentificationMethod = _METHOD
    header.DeidentificationMethodCodeSequence = []
    for code, meaning in _CODES.items():
        if code != "113101" or masked:
            header.DeidentificationMethodCodeSequence.append(_code("DCM", code, meaning))
    header.LongitudinalTemporalInformationModified = "MODIFIED"
    if masked:
        header.BurnedInAnnotation = "NO"


def _keyword(tag: BaseTag) -> str:
    """The name of a field; nothing for overlays and curves, whose names stand for many fields."""
    keyword = keyword_for_tag(tag)
    return keyword if keyword and tag_for_keyword(keyword) == tag else ""


def _treated(data: Dataset, tag: BaseTag, keyword: str, rules: Rules, counts: Counter[str]) -> tuple[str, DataElement | None]:
    """What is done to a field, and what takes its place."""
    kind = dictionary_VR(keyword) if keyword else ""
    if keyword in ("PatientID", "PatientName"):
        return "replaced", DataElement(tag, kind, rules.patient)
    if keyword in profile.EMPTIED:
        return "emptied", DataElement(tag, kind, [] if kind == "SQ" else None)
    if keyword in profile.DUMMIES:
        return "replaced", DataElement(tag, kind, profile.DUMMIES[keyword])
    try:
        field = data[tag]
    except Exception:  # a damaged field makes pydicom raise almost anything
        return "removed", None
    if field.VR not in kind.split(" or "):
        return "removed", None
    if kind == "UI":
        return _uids(field, rules)
    if keyword in profile.DATES:
        date = _moved(str(field.value), rules.days)
        return "replaced" if date else "emptied", DataElement(tag, kind, date)
    if field.is_empty and keyword in profile.names():
        return "kept", DataElement(tag, field.VR, None)
    value: Any = None
    if keyword in profile.SEQUENCES and isinstance(field.value, Sequence):
        value = [rebuilt(item, rules, counts) for item in field.value]
    elif keyword in profile.CODES and isinstance(field.value, Sequence):
        value = [item for item in map(_coded, field.value) if item] or None
    elif keyword in profile.TABLES:
        value = _table(field.value, data.get(profile.TABLES[keyword]))
    elif keyword in profile.NUMBERS or keyword in profile.TERMS:
        value = profile.allowed(keyword, _values(field))
    return ("removed", None) if value is None else ("kept", DataElement(tag, field.VR, value))


def _values(field: DataElement) -> list[Any]:
    value = field.value
    return list(value) if isinstance(value, MultiValue | list) else [] if value in (None, "") else [value]


def _coded(item: Dataset) -> Dataset | None:
    """A code in the standard's own words; None where it is not the standard's."""
    found = profile.coded(str(_value(item, "CodingSchemeDesignator")), str(_value(item, "CodeValue")))
    return _code(*found) if found else None


def _code(scheme: str, value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodingSchemeDesignator, item.CodeValue, item.CodeMeaning = scheme, value, meaning
    return item


def _uids(field: DataElement, rules: Rules) -> tuple[str, DataElement | None]:
    """UIDs of the standard, such as the class of an image, stay; all others are mapped."""
    old = [str(value) for value in _values(field)]
    new = [value if value in UID_dictionary else pseudonyms.uid(rules.key, value) for value in old]
    return "kept" if new == old else "replaced", DataElement(field.tag, "UI", new)


def _moved(text: str, days: int) -> str | None:
    """The date of a DA or DT value, `days` before, without the time of day; None where it is none."""
    found = re.match(r"(\d{4})(\d\d)(\d\d)(?=$|[\d.+ -])", text.strip(" \0"))
    try:
        date = datetime.date(*map(int, found.groups())) - datetime.timedelta(days) if found else None
    except (ValueError, OverflowError):
        return None
    return f"{date:%Y%m%d}".rjust(8, "0") if date else None


def _table(content: Any, descriptor: Any) -> Any:
    """A lookup table of as many entries as its descriptor says (0 stands for 65536); None where there are fewer."""
    try:
        n = int(descriptor[0]) & 0xFFFF or 65536
    except (TypeError, ValueError, IndexError):
        return None
    if isinstance(content, bytes):  # two bytes an entry, or for 8 bits one
        length = 2 * n if len(content) >= 2 * n else n
        return content[:length] + bytes(length % 2) if len(content) >= length else None
    entries = list(content) if isinstance(content, MultiValue | list) else [content]
    return entries[:n] if len(entries) >= n and all(isinstance(entry, int) for entry in entries) else None
