"""De-identification: pseudonyms, what may stay of a header, boxes, streams, and what a folder becomes."""

import contextlib
import json
import re
import stat
import uuid
from pathlib import Path

import imagecodecs
import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydicom import uid
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filereader import dcmread

from vaejax import cli
from vaejax.config import DataConfig
from vaejax.datasets import burned_in, dicom, image, load, nifti
from vaejax.errors import ConfigError, DataError
from vaejax.privacy import boxes, dicom_file, folder, nifti_file, pictures, profile, pseudonyms, streams

KEY = b"correct horse battery staple"
RNG = np.random.default_rng(0)


def save(path: Path, pixels: np.ndarray | None = None, syntax: str = uid.ExplicitVRLittleEndian, **fields: object) -> Path:
    """A DICOM file of one frame [h, w] or [h, w, 3]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RNG.integers(0, 4096, (6, 8)).astype(np.uint16) if pixels is None else pixels
    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID, data.Modality = uid.MRImageStorage, uid.generate_uid(), "MR"
    data.Rows, data.Columns = pixels.shape[:2]
    data.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    data.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    data.BitsAllocated = data.BitsStored = 8 * pixels.itemsize
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(pixels.dtype.kind == "i")
    if pixels.ndim == 3:
        data.PlanarConfiguration = 0
    order = ">" if syntax == uid.ExplicitVRBigEndian else "<"
    data.PixelData = pixels.astype(f"{order}{pixels.dtype.str[1:]}").tobytes()
    data["PixelData"].VR = "OB" if pixels.itemsize == 1 else "OW"
    for keyword, value in fields.items():
        setattr(data, keyword, value)
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.save_as(path, enforce_file_format=bool(data.SOPClassUID))
    return path


def shared(path: Path, *masks: str, name: str = "name") -> Dataset:
    """The header of what a file becomes, which is written beside it."""
    copy = dicom_file.copy(path, KEY, name, [boxes.parse(text) for text in masks])
    path.with_suffix(".shared").write_bytes(copy.content)
    return dcmread(path.with_suffix(".shared"))


# --- pseudonyms


def test_a_key_comes_from_a_file_or_the_environment(tmp_path, monkeypatch):
    (tmp_path / "key").write_bytes(KEY + b"\n")
    assert pseudonyms.read_key(str(tmp_path / "key")) == KEY
    monkeypatch.setenv("VAEJAX_KEY", KEY.decode())
    assert pseudonyms.read_key(None) == KEY


@pytest.mark.parametrize("key", [None, "", "fifteen bytes!!", "   fifteen bytes!!   "])
def test_without_a_key_or_with_a_short_one_nothing_is_done_and_it_is_not_shown(tmp_path, monkeypatch, capsys, key):
    save(tmp_path / "in" / "a.dcm")
    monkeypatch.delenv("VAEJAX_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("VAEJAX_KEY", key)
    assert cli.main(["deidentify", str(tmp_path / "in"), str(tmp_path / "out")]) == 1
    message = capsys.readouterr().err
    assert "VAEJAX_KEY" in message
    assert "fifteen" not in message
    assert not (tmp_path / "out").exists()


def test_a_key_file_that_is_absent_or_short_is_named(tmp_path):
    with pytest.raises(ConfigError, match="nowhere: No such file"):
        pseudonyms.read_key(str(tmp_path / "nowhere"))
    (tmp_path / "short").write_bytes(b"0123456789abcde")
    with pytest.raises(ConfigError, match="at least 16 bytes, found 15"):
        pseudonyms.read_key(str(tmp_path / "short"))


@given(st.text(), st.text())
def test_pseudonyms_depend_on_the_old_name_and_the_key_alone(one, other):
    for make in (pseudonyms.uid, lambda key, old: pseudonyms.pseudonym(key, "patient", old)):
        assert make(KEY, one) == make(KEY, one)
        assert (make(KEY, one) == make(KEY, other)) == (one == other)
        assert make(KEY, one) != make(KEY + b"!", one)
    assert pseudonyms.pseudonym(KEY, "patient", one) != pseudonyms.pseudonym(KEY, "path", one)
    assert 1 <= pseudonyms.days(KEY, one) <= pseudonyms.MAX_DAYS


def test_a_uid_is_a_valid_uuid_under_its_root():
    for number in range(100):
        new = uid.UID(pseudonyms.uid(KEY, str(number)))
        assert new.is_valid
        assert uuid.UUID(int=int(new.removeprefix("2.25."))).variant == uuid.RFC_4122


# --- headers


def test_what_stays_by_name_is_known_to_the_standard():
    assert [keyword for keyword in profile.names() if tag_for_keyword(keyword) is None] == []
    tables = (
        profile.NUMBERS,
        profile.TERMS,
        profile.DATES,
        profile.EMPTIED,
        profile.DUMMIES,
        profile.SEQUENCES,
        profile.CODES,
        profile.TABLES,
    )
    assert len(set(profile.names())) == sum(map(len, tables))  # no field is in two of them


@given(st.sampled_from(sorted(profile.NUMBERS | profile.TERMS.keys())), st.lists(st.text(min_size=7, max_size=16), max_size=3))
def test_text_never_stays_as_a_number_or_a_coded_word(keyword, values):
    kept = profile.allowed(keyword, values) or []
    assert all(
        re.fullmatch(r"\s*[+-]?[\d.eE+-]+\s*", value) or value in profile.TERMS.get(keyword, ()) or value == "OTHER"
        for value in kept
    )


@pytest.mark.parametrize(
    ("keyword", "values", "kept"),
    [
        ("KVP", ["120"], True), ("KVP", ["120 Doe"], False), ("KVP", ["1", "2"], False),
        ("PixelSpacing", ["0.5", "1e-3"], True), ("DiffusionBValue", [1000.0], True),
        ("SeriesNumber", ["123456"], True), ("SeriesNumber", ["1234567"], False), ("SliceLocation", ["-19600401.5"], False),
        ("RadionuclideTotalDose", ["370000000"], True), ("Rows", [512], True), ("Rows", ["512"], False),
    ],
)  # fmt: skip
def test_numbers_stay_where_they_are_numbers(keyword, values, kept):
    assert profile.allowed(keyword, values) == (values if kept else None)


def test_words_stay_where_they_are_the_standards():
    assert profile.allowed("ImageType", ["ORIGINAL", "DOE", "AXIAL"]) == ["ORIGINAL", "OTHER", "AXIAL"]
    assert profile.allowed("BodyPartExamined", ["DOE"]) is None
    assert profile.allowed("BodyPartExamined", ["CHEST "]) == ["CHEST"]


def test_a_patient_has_one_pseudonym_and_keeps_intervals(tmp_path):
    first = save(
        tmp_path / "a.dcm", PatientID="4711 ", PatientName="Doe^Jane", StudyDate="20190227", StudyInstanceUID="1.2.3.4"
    )
    later = save(tmp_path / "b.dcm", PatientID="4711", PatientName="Doe", StudyDate="20190302", StudyInstanceUID="1.2.3.4",
                 AcquisitionDateTime="20190302101112.5")  # fmt: skip
    other = save(tmp_path / "c.dcm", PatientID="4712", StudyDate="20190227", StudyInstanceUID="1.2.3.5")
    one, two, three = map(shared, (first, later, other))
    assert one.PatientID == two.PatientID == str(one.PatientName) != three.PatientID
    assert re.fullmatch("[0-9a-f]{32}", one.PatientID)
    assert one.StudyInstanceUID == two.StudyInstanceUID != three.StudyInstanceUID
    days = [np.datetime64(f"{date[:4]}-{date[4:6]}-{date[6:]}") for date in (one.StudyDate, two.StudyDate, three.StudyDate)]
    assert days[1] - days[0] == np.timedelta64(3, "D")
    assert days[0] != days[2]
    assert np.datetime64("2019-02-27") > days[0]
    assert two.AcquisitionDateTime == two.StudyDate


def test_a_patient_without_a_number_is_known_by_name_else_study_else_file(tmp_path):
    named = [
        shared(save(tmp_path / f"{i}.dcm", PatientName="Doe", PatientBirthDate="19600401", PatientID=""), name=str(i))
        for i in range(2)
    ]
    assert named[0].PatientID == named[1].PatientID
    assert named[0].PatientBirthDate == ""
    study = [shared(save(tmp_path / f"{i}.dcm", StudyInstanceUID="1.2.3"), name=str(i)) for i in range(2)]
    assert study[0].PatientID == study[1].PatientID != named[0].PatientID
    alone = [shared(save(tmp_path / f"{i}.dcm"), name=str(i)) for i in range(2)]
    assert alone[0].PatientID != alone[1].PatientID


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, of the values planted
@pytest.mark.parametrize("date", ["", "1960", "19601301", "Doe", "00010101", "20190227 Doe", "2019\\2020"])
def test_a_date_that_cannot_be_moved_is_emptied(tmp_path, date):
    new = shared(save(tmp_path / "a.dcm", PatientID="1", AcquisitionDateTime=date))
    assert re.fullmatch("|[0-9]{8}", str(new.AcquisitionDateTime or ""))


def test_references_lead_to_what_they_meant(tmp_path):
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = uid.MRImageStorage, "1.2.3.9"
    new = shared(save(tmp_path / "a.dcm", SOPInstanceUID="1.2.3.8", ReferencedImageSequence=[item]))
    target = shared(save(tmp_path / "b.dcm", SOPInstanceUID="1.2.3.9"))
    assert (
        new.ReferencedImageSequence[0].ReferencedSOPInstanceUID
        == target.SOPInstanceUID
        == target.file_meta.MediaStorageSOPInstanceUID
    )
    assert new.ReferencedImageSequence[0].ReferencedSOPClassUID == uid.MRImageStorage


def test_codes_of_the_standard_stay_in_its_own_words_and_others_go(tmp_path):
    items = [Dataset() for _ in range(3)]
    for item, (scheme, value) in zip(items, [("SRT", "T-A0100"), ("99DOE", "1"), ("SCT", "Doe")], strict=True):
        item.CodingSchemeDesignator, item.CodeValue, item.CodeMeaning = scheme, value, "Doe^Jane"
    new = shared(save(tmp_path / "a.dcm", AnatomicRegionSequence=items, ViewCodeSequence=items[1:]))
    (code,) = new.AnatomicRegionSequence
    assert (code.CodingSchemeDesignator, code.CodeValue, code.CodeMeaning) == ("SCT", "12738006", "Brain")
    assert "ViewCodeSequence" not in new


def test_what_was_done_is_declared(tmp_path):
    new = shared(save(tmp_path / "a.dcm"))
    assert (new.PatientIdentityRemoved, new.LongitudinalTemporalInformationModified) == ("YES", "MODIFIED")
    assert [item.CodeValue for item in new.DeidentificationMethodCodeSequence] == ["113100", "113107"]
    assert len(new.DeidentificationMethod) <= 64


def test_a_head_is_warned_of(tmp_path):
    told = [dicom_file.copy(save(tmp_path / "a.dcm", BodyPartExamined=part), KEY, "", ()).notes for part in ("BRAIN", "CHEST")]
    assert "face" in str(told[0])
    assert told[1] == ()


@pytest.mark.parametrize(
    "syntax",
    [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian, uid.DeflatedExplicitVRLittleEndian],
)
@pytest.mark.parametrize(("dtype", "stored"), [("u1", 8), ("u2", 16), ("u2", 12), ("i2", 12), ("i2", 16), ("i4", 32)])
def test_pixels_and_their_encoding_stay(tmp_path, syntax, dtype, stored):
    signed = dtype[0] == "i"
    low, high = (-(2 ** (stored - 1)), 2 ** (stored - 1)) if signed else (0, 2**stored)
    pixels = RNG.integers(low, high, (7, 9)).astype(dtype)
    path = save(tmp_path / "a.dcm", pixels, syntax, BitsStored=stored, HighBit=stored - 1)
    new = shared(path)
    assert new.PixelData == dcmread(path).PixelData
    assert new.file_meta.TransferSyntaxUID in (syntax, uid.ExplicitVRLittleEndian)
    np.testing.assert_array_equal(dicom.raw(path.with_suffix(".shared"))[0, ..., 0], pixels)


@pytest.mark.parametrize("syntax", [uid.RLELossless, uid.JPEG2000Lossless])
@pytest.mark.parametrize("hidden", [False, True])
def test_compressed_pixels_stay_so_unless_bits_above_those_stored_are_used(tmp_path, syntax, hidden):
    pixels = RNG.integers(0, 256, (16, 16)).astype(np.uint16)
    old = pixels + np.uint16(256) * ord("D") if hidden else pixels
    planes = [imagecodecs.packbits_encode(plane.tobytes()) for plane in ((old >> 8).astype(np.uint8), old.astype(np.uint8))]
    planes = [plane + bytes(len(plane) % 2) for plane in planes]
    run = np.array([2, 64, 64 + len(planes[0]), *[0] * 13], "<u4").tobytes() + b"".join(planes)
    stream = run if syntax == uid.RLELossless else imagecodecs.jpeg2k_encode(old, codecformat="j2k", level=0, reversible=True)
    path = save(tmp_path / "a.dcm", pixels, BitsStored=8, HighBit=7)
    data = dcmread(path)
    data.PixelData = encapsulate([stream])
    data["PixelData"].VR, data["PixelData"].is_undefined_length = "OB", True
    data.file_meta.TransferSyntaxUID = syntax
    data.save_as(path)
    new = shared(path)
    assert new.file_meta.TransferSyntaxUID == (uid.ExplicitVRLittleEndian if hidden else syntax)
    np.testing.assert_array_equal(dicom.raw(path.with_suffix(".shared"))[0, ..., 0], pixels)


def test_a_palette_stays_without_what_follows_it(tmp_path):
    tables = {f"{colour}PaletteColorLookupTable{part}": value for colour in ("Red", "Green", "Blue")
              for part, value in (("Descriptor", [256, 0, 8]), ("Data", bytes(range(256)) + b"Doe^Jane"))}  # fmt: skip
    path = save(
        tmp_path / "a.dcm", RNG.integers(0, 256, (6, 8)).astype(np.uint8), PhotometricInterpretation="PALETTE COLOR", **tables
    )
    shared(path)
    assert b"Doe" in path.read_bytes()
    assert b"Doe" not in path.with_suffix(".shared").read_bytes()
    np.testing.assert_array_equal(dicom.decode(path.with_suffix(".shared")).pixels, dicom.decode(path).pixels)


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, of the values planted
@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"PixelSpacing": [1, 2, 3]}, "PixelSpacing"),
        ({"SegmentedRedPaletteColorLookupTableData": b"\0\0"}, "SegmentedRed"),
        ({"ImagePositionPatient": ["19600401", 0, 0]}, "ImagePositionPatient"),
        ({"RescaleSlope": "", "RescaleIntercept": None}, None),
        ({"RescaleSlope": "1", "RescaleIntercept": "-2147483648"}, None),
    ],
)
def test_a_file_that_would_mean_something_else_is_refused(tmp_path, fields, told):
    path = save(tmp_path / "a.dcm", **fields)
    if told:
        with pytest.raises(DataError, match=f"{told}.* is not what the standard allows"):
            shared(path)
    else:
        shared(path)
        np.testing.assert_array_equal(dicom.decode(path.with_suffix(".shared")).pixels, dicom.decode(path).pixels)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"SOPClassUID": uid.BasicTextSRStorage, "PixelData": None}, "Basic Text SR Storage"),
        ({"SOPClassUID": uid.EncapsulatedPDFStorage, "PixelData": None}, "Encapsulated PDF Storage"),
        ({"SOPClassUID": uid.GrayscaleSoftcopyPresentationStateStorage, "PixelData": None}, "Presentation State"),
        ({"SOPClassUID": "1.2.840.4711"}, "a SOP class that the standard does not know"),
    ],
)
def test_files_that_are_no_images_are_refused_by_what_they_are(tmp_path, fields, reason):
    path = tmp_path / "a.dcm"
    save(path, **{keyword: value for keyword, value in fields.items() if value})
    if "PixelData" in fields:
        data = dcmread(path)
        del data.PixelData
        data.save_as(path)
    with pytest.raises(DataError, match=re.escape(reason) if "PixelData" not in fields else reason):
        dicom_file.copy(path, KEY, "", ())


# --- text in pixels


@pytest.mark.parametrize(
    ("fields", "suspected"),
    [
        ({"Modality": "MR"}, False), ({"Modality": "US"}, True), ({"Modality": "US", "BurnedInAnnotation": "NO"}, False),
        ({"Modality": "MR", "BurnedInAnnotation": "YES"}, True), ({"Modality": "MR", "BurnedInAnnotation": "PERHAPS"}, True),
        ({"Modality": "CT", "ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, True), ({"Modality": ""}, True),
        ({"Modality": "CT", "SOPClassUID": uid.SecondaryCaptureImageStorage}, True),
        ({"Modality": "CT", "SOPClassUID": uid.MultiFrameGrayscaleByteSecondaryCaptureImageStorage}, True),
    ],
)  # fmt: skip
def test_text_is_suspected_where_it_is_told_or_usual(tmp_path, fields, suspected):
    path = save(tmp_path / "a.dcm", **fields)
    assert burned_in.suspected(dcmread(path)) == suspected
    assert dicom.read_header(path).text == suspected
    if suspected:
        with pytest.raises(DataError, match="text may be burned"):
            shared(path)
    else:
        shared(path)


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian, uid.ImplicitVRLittleEndian])
@pytest.mark.parametrize("colour", [False, True])
def test_boxes_are_blanked_and_nothing_else(tmp_path, syntax, colour):
    pixels = RNG.integers(20, 255, (12, 10, 3) if colour else (12, 10)).astype(np.uint8 if colour else np.uint16)
    path = save(tmp_path / "a.dcm", pixels, syntax, Modality="US", BurnedInAnnotation="YES")
    new = shared(path, "US:0,0,2,10", "MR:0,0,12,10", "9,8,99,99")
    expected = pixels.copy()
    expected[:2] = expected[9:, 8:] = pixels.min()
    np.testing.assert_array_equal(dicom.raw(path.with_suffix(".shared"))[0].reshape(pixels.shape), expected)
    assert new.BurnedInAnnotation == "NO"
    assert "113101" in [item.CodeValue for item in new.DeidentificationMethodCodeSequence]


def test_compressed_pixels_are_blanked_and_stored_as_they_are(tmp_path):
    pixels = RNG.integers(0, 256, (16, 16)).astype(np.uint8)
    path = save(tmp_path / "a.dcm", pixels)
    data = dcmread(path)
    data.Modality, data.PhotometricInterpretation = "US", "MONOCHROME1"
    data.PixelData = encapsulate([imagecodecs.jpegls_encode(pixels)])
    data["PixelData"].is_undefined_length = True
    data.file_meta.TransferSyntaxUID = uid.JPEGLSLossless
    data.save_as(path)
    new = shared(path, "4,4,4,4")
    pixels[4:8, 4:8] = pixels.max()  # what is shown black
    assert new.file_meta.TransferSyntaxUID == uid.ExplicitVRLittleEndian
    np.testing.assert_array_equal(dicom.raw(path.with_suffix(".shared"))[0, ..., 0], pixels)


def test_who_has_looked_can_say_that_there_is_no_text_but_not_against_the_header(tmp_path):
    path = save(tmp_path / "a.dcm", Modality="US")
    assert "BurnedInAnnotation" not in shared(path, "US:none")
    with pytest.raises(DataError, match="text may be burned"):
        shared(save(path, Modality="US", BurnedInAnnotation="YES"), "US:none")


def test_before_training_text_is_warned_of_in_numbers(tmp_path, capsys):
    for i, modality in enumerate(("US", "US", "MR", "MR", "MR")):
        save(tmp_path / "images" / "Doe" / f"{i}.dcm", Modality=modality, PatientID=str(i), SeriesInstanceUID=f"1.2.{i}")
    load(DataConfig(name="volumes", path=str(tmp_path / "images")), tmp_path / "cache")
    told = " ".join(capsys.readouterr().err.split())
    assert "2 DICOM files may show text in their pixels" in told
    assert "Doe" not in told


def test_a_box_outside_of_an_image_is_refused(tmp_path):
    with pytest.raises(DataError, match="row 6, column 0, outside of 6 x 8"):
        shared(save(tmp_path / "a.dcm"), "6,0,1,1")


@pytest.mark.parametrize("text", ["", "1,2,3", "1,2,3,4,5", "a,b,c,d", "us:1,2,3,4", "none", "-1,0,1,1", "0,0,0,5", "US:"])
def test_a_box_that_cannot_be_read_is_told(text):
    with pytest.raises(ConfigError, match="--box="):
        boxes.parse(text)


# --- streams


@given(st.data())
def test_a_damaged_stream_is_refused_or_shortened_and_nothing_else(data):
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    kind = data.draw(st.sampled_from(["jpeg", "jpegls", "jpeg2000", "run_lengths"]))
    stream = bytearray({
        "jpeg": lambda: imagecodecs.jpeg8_encode(pixels), "jpegls": lambda: imagecodecs.jpegls_encode(pixels),
        "jpeg2000": lambda: imagecodecs.jpeg2k_encode(pixels, codecformat="j2k"),
        "run_lengths": lambda: np.array([1, 64, *[0] * 14], "<u4").tobytes() + imagecodecs.packbits_encode(pixels.tobytes()),
    }[kind]())  # fmt: skip
    for _ in range(data.draw(st.integers(0, 3))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    stream = stream[: data.draw(st.integers(0, len(stream)))]
    clean = {"jpegls": streams.jpeg, "run_lengths": lambda content: streams.run_lengths(content, 256, 1)}.get(kind) or getattr(
        streams, kind
    )
    with contextlib.suppress(DataError):
        assert len(clean(bytes(stream))) <= len(stream) + 1


# --- pictures


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_pictures_of_every_kind_keep_their_pixels(tmp_path, mode, suffix):
    if mode == "I;16":
        old = Image.fromarray(RNG.integers(0, 65536, (5, 7)).astype(np.uint16))
    else:
        old = (
            Image.fromarray(RNG.integers(0, 256, (5, 7, 4)).astype(np.uint8))
            .convert("RGB" if mode == "P" else mode)
            .convert(mode)
        )
    old.save(tmp_path / f"a.{suffix}")
    copy = pictures.copy(tmp_path / f"a.{suffix}", ())
    (tmp_path / "b.png").write_bytes(copy.content)
    with Image.open(tmp_path / "b.png") as new:
        expected = np.array(old.convert({"1": "L", "P": "RGB"}.get(mode, mode)))
        np.testing.assert_array_equal(np.array(new), expected)


def test_16_bits_of_colour_stay(tmp_path):
    pixels = RNG.integers(0, 65536, (5, 7, 3)).astype(np.uint16)
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(pixels))
    np.testing.assert_array_equal(imagecodecs.png_decode(pictures.copy(tmp_path / "a.png", ()).content), pixels)
    (tmp_path / "a.tif").write_bytes(imagecodecs.tiff_encode(pixels, photometric="rgb"))
    np.testing.assert_array_equal(imagecodecs.png_decode(pictures.copy(tmp_path / "a.tif", ()).content), pixels)


@pytest.mark.parametrize(("order", "photometric"), [(order, kind) for order in "<>" for kind in ("minisblack", "miniswhite")])
def test_a_tiff_file_looks_the_same_afterwards(tmp_path, order, photometric):
    pixels = RNG.integers(0, 65536, (5, 7)).astype(np.uint16)
    (tmp_path / "a.tif").write_bytes(imagecodecs.tiff_encode(pixels.copy(), photometric=photometric, byteorder=order))
    expected = 65535 - pixels if photometric == "miniswhite" else pixels
    np.testing.assert_array_equal(imagecodecs.png_decode(pictures.copy(tmp_path / "a.tif", ()).content), expected)


@pytest.mark.parametrize("suffix", ["tif", "png"])
def test_several_pages_or_frames_are_refused(tmp_path, suffix):
    pages = [Image.new("L", (4, 4), 9 * number) for number in range(3)]
    pages[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=pages[1:])
    with pytest.raises(DataError, match=r"3 frames (or pages )?in one file"):
        pictures.copy(tmp_path / f"a.{suffix}", ())


def test_the_code_words_of_a_photograph_stay_until_it_is_blanked(tmp_path):
    Image.fromarray(RNG.integers(0, 256, (16, 16, 3)).astype(np.uint8)).save(tmp_path / "a.jpg", quality=70)
    old = np.array(Image.open(tmp_path / "a.jpg"))
    copy = pictures.copy(tmp_path / "a.jpg", ())
    assert copy.suffix == ".jpg"
    assert copy.content[-100:] == (tmp_path / "a.jpg").read_bytes()[-100:]
    blanked = pictures.copy(tmp_path / "a.jpg", [boxes.parse("PICTURE:0,0,3,16")])
    assert blanked.suffix == ".png"
    old[:3] = old.min()
    np.testing.assert_array_equal(imagecodecs.png_decode(blanked.content), old)


@pytest.mark.parametrize("orientation", range(10))
def test_photographs_are_turned_as_before(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RNG.integers(0, 256, (8, 16, 3)).astype(np.uint8)).save(tmp_path / "a.jpg", exif=exif, subsampling=0)
    for masks in ((), [boxes.parse("PICTURE:0,0,1,1")]):
        copy = pictures.copy(tmp_path / "a.jpg", masks)
        (tmp_path / f"b{copy.suffix}").write_bytes(copy.content)
        one, other = image.decode(tmp_path / "a.jpg"), image.decode(tmp_path / f"b{copy.suffix}")
        assert one.shape == other.shape
        assert (one != other).any(axis=-1).sum() <= len(masks)  # the pixel of the box


def test_what_the_standard_wants_of_common_classes_is_there_if_only_empty(tmp_path):
    """Types 1 and 2 of segmentations, dose, nuclear medicine, PET, mammography and angiography."""
    wanted = {"ContentDescription": "Doe", "OperatorsName": "Doe", "SeriesTime": "101010", "CollimatorType": "PARA",
              "DetectorType": "DIRECT", "CountsAccumulated": 1234567, "NumberOfDetectors": 2, "NumberOfEnergyWindows": 1,
              "RadiationSetting": "GR", "PositionerType": "CARM", "OrganExposed": "BREAST"}  # fmt: skip
    copy = dicom_file.copy(save(tmp_path / "a", **wanted, DetectorInformationSequence=[Dataset()]), KEY, "id", ())
    (tmp_path / "b").write_bytes(copy.content)
    new = dcmread(tmp_path / "b")
    for keyword in ("ContentDescription", "OperatorsName", "CollimatorType", "DetectorType", "CountsAccumulated"):
        assert new[keyword].is_empty, keyword
    assert len(new.DetectorInformationSequence) == 0
    for keyword in ("NumberOfDetectors", "NumberOfEnergyWindows", "RadiationSetting", "PositionerType", "OrganExposed"):
        assert new[keyword].value == wanted[keyword], keyword
    assert new.SeriesTime == "000000"


# --- folders


@pytest.fixture
def cohort(tmp_path) -> Path:
    """Images of two patients in folders, a report, a page of text burned in, a photograph, and notes."""
    root = tmp_path / "in"
    for name in ("Doe Jane/a.dcm", "Doe Jane/b", "train/Roe/c.dcm"):
        save(root / name, PatientID=name.split("/")[0])
    save(root / "Doe Jane/page.dcm", Modality="US")
    (root / "Doe Jane/report.pdf").write_bytes(b"%PDF Doe")
    (root / "Doe Jane/.hidden").write_bytes(b"Doe")
    (root / "readme.txt").write_text("Doe")
    Image.new("L", (4, 4)).save(root / "Doe Jane/photograph.png")
    return root


def test_a_folder_becomes_one_of_opaque_names(cohort, tmp_path):
    report = folder.deidentify(cohort, tmp_path / "out", KEY, on_error="skip")
    written = [path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*") if path.is_file()]
    ids = {path.stem for path in written if path.stem != "deidentification"}
    assert ids == report["files"].keys()
    assert len(ids) == 4
    assert sorted(report["refused"].values())[0] == "no DICOM, NIfTI, PNG, JPEG or TIFF file"
    assert len(report["refused"]) == 2
    assert report["left_out"] == 2
    assert sum(path.parts[0] == "train" for path in written) == 1
    assert all(
        re.fullmatch(r"([0-9a-f]{32}|train)(/[0-9a-f]{32})*\.(dcm|png)|deidentification\.(json|md)", path.as_posix())
        for path in written
    )
    names = json.loads((tmp_path / "out-names.json").read_text())
    assert names.keys() == ids | report["refused"].keys()
    assert {(cohort / name).is_file() for name in names.values()} == {True}
    assert json.loads((tmp_path / "out" / "deidentification.json").read_text()).keys() == {"files", "refused", "left_out"}
    page = (tmp_path / "out" / "deidentification.md").read_text()
    assert all(name in page for name in names)
    assert not {"Doe", "Roe", "page", "photograph", "report.pdf"} & set(re.findall(r"[\w.]+", page))


def test_a_copy_trains_as_its_source_does(tmp_path):
    for number in range(4):
        save(tmp_path / "in" / f"{number}.dcm", PatientID=f"Doe {number // 2}", SeriesInstanceUID=f"1.2.{number}")
        voxels = RNG.integers(0, 99, (6, 8, 2)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(voxels, np.diag([2, 1, 3, 1.0])), tmp_path / "in" / f"{number}.nii.gz")
    folder.deidentify(tmp_path / "in", tmp_path / "out", KEY)
    seen = []
    for root in ("in", "out"):
        config = DataConfig(name="volumes", path=str(tmp_path / root), image_size=(8, 8))
        data = load(config, tmp_path / "cache")
        images = [image.tobytes() for split in data.splits.values() for image in split.read(np.arange(split.n))["image"]]
        seen.append(sorted(images))
    assert seen[0] == seen[1]
    assert len(seen[0]) == 12


def test_a_dicom_file_that_begins_like_a_tiff_file_is_a_dicom_file(tmp_path):
    path = save(tmp_path / "in" / "a.dcm")
    path.write_bytes(b"II*\0" + path.read_bytes()[4:])
    report = folder.deidentify(tmp_path / "in", tmp_path / "out", KEY)
    assert [facts["kind"] for facts in report["files"].values()] == [".dcm"]


def test_the_same_key_gives_the_same_copies_and_another_key_others(cohort, tmp_path):
    for name, key in (("one", KEY), ("two", KEY), ("three", KEY + b"!")):
        folder.deidentify(cohort, tmp_path / name, key, on_error="skip")
    one, two, three = ({path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.dcm")}
                       for name in ("one", "two", "three"))  # fmt: skip
    assert one == two
    assert not one.keys() & three.keys()


def test_what_cannot_be_shared_stops_and_leaves_nothing(cohort, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VAEJAX_KEY", KEY.decode())
    assert cli.main(["deidentify", str(cohort), str(tmp_path / "out")]) == 1
    assert "--on-error=skip" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_the_program_shows_what_was_done_without_names(cohort, tmp_path, capsys):
    (tmp_path / "key").write_bytes(KEY)
    arguments = [
        "deidentify",
        str(cohort),
        str(tmp_path / "out"),
        f"--key-file={tmp_path / 'key'}",
        "--on-error=skip",
        "--box=US:0,0,1,8",
    ]
    assert cli.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "1 files: boxes of pixels blanked" in shown
    assert "1 files: refused: no DICOM, NIfTI, PNG, JPEG or TIFF file" in shown
    assert not {"Doe", "Roe", "horse"} & set(re.findall(r"\w+", shown))


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("in", "outside of"),
        ("in/out", "outside of"),
        ("", "outside of"),
        ("used", "expected nothing"),
        ("a/b", "expected a folder to write to"),
    ],
)
def test_a_target_that_cannot_be_used_is_told(cohort, tmp_path, target, told):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(DataError, match=told):
        folder.deidentify(cohort, tmp_path / target, KEY)


@pytest.mark.parametrize("at", ["pathlib.Path.rename", "json.dump"])
def test_the_same_command_finishes_what_was_interrupted(cohort, tmp_path, monkeypatch, at):
    """After the names are there and before the copies are; and while the names are written."""

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr(at, interrupt)
        folder.deidentify(cohort, tmp_path / "out", KEY, on_error="skip")
    names = tmp_path / "out-names.json"
    assert names.exists() == (at != "json.dump")
    assert not (tmp_path / "out").exists()
    left = names.read_bytes() if names.exists() else None
    if left:
        with pytest.raises(DataError, match=r"out-names\.json: .* of another key: the only way back"):
            folder.deidentify(cohort, tmp_path / "out", b"another key of 32 bytes or more..", on_error="skip")
    folder.deidentify(cohort, tmp_path / "out", KEY, on_error="skip")
    assert left in (None, names.read_bytes())
    assert stat.S_IMODE(names.stat().st_mode) == 0o600
    assert (tmp_path / "out" / "deidentification.json").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out", "out-names.json"]


def test_names_of_an_earlier_copy_are_not_overwritten(cohort, tmp_path):
    (tmp_path / "out-names.json").touch()
    with pytest.raises(DataError, match=r"out-names\.json: expected nothing"):
        folder.deidentify(cohort, tmp_path / "out", KEY)


@pytest.mark.parametrize(("source", "told"), [("absent", "found none"), ("empty", "expected images, found none")])
def test_a_source_without_images_is_told(tmp_path, source, told):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=told):
        folder.deidentify(tmp_path / source, tmp_path / "out", KEY)


@pytest.mark.parametrize(
    "content", [b"", b"\x89PNG\r\n\x1a\nDoe", b"\xff\xd8\xff\xe0Doe", b"II*\0Doe", b"\0" * 128 + b"DICMDoe", b"\x08\0Doe"]
)
def test_a_damaged_file_is_refused_without_its_text(tmp_path, content):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.nii").write_bytes(content)
    report = folder.deidentify(tmp_path / "in", tmp_path / "out", KEY, on_error="skip")
    (reason,) = report["refused"].values()
    assert "Doe" not in reason
    assert report["files"] == {}


# --- real files


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, of values in these files
def test_real_files_keep_their_pixels_and_lose_their_names(real_data, tmp_path):
    masks = [boxes.Box(kind, None) for kind in ("US", "SC", "OT", "XA", "RF", "NM", "CR")]
    done = 0
    for path in sorted((real_data / "formats" / "dicom").glob("*/*")):
        try:
            copy, pixels = dicom_file.copy(path, KEY, "name", masks), dicom.raw(path)
        except DataError:
            continue
        (tmp_path / "copy").write_bytes(copy.content)
        np.testing.assert_array_equal(dicom.raw(tmp_path / "copy"), pixels)
        np.testing.assert_array_equal(dicom.decode(tmp_path / "copy").pixels, dicom.decode(path).pixels)
        old = dicom.dataset(path)
        texts = (
            str(value)
            for field in old
            for value in (field.value if field.VM > 1 else [field.value])
            if field.VR in ("LO", "PN", "SH", "LT", "ST", "UT")
        )
        names = {text.strip().encode() for text in texts if len(text.strip()) > 5}
        assert {name for name in names if name in copy.content} == set()
        done += 1
    assert done >= 38


def test_real_volumes_keep_their_voxels_and_geometry(real_data, tmp_path):
    done = 0
    for path in sorted((real_data / "formats" / "nifti").glob("*/*.nii*")):
        copy = nifti_file.copy(path)
        (tmp_path / "copy").write_bytes(copy.content)
        one, other = nifti.decode(path), nifti.decode(tmp_path / "copy")
        np.testing.assert_array_equal(one.voxels, other.voxels)
        np.testing.assert_array_equal(one.affine, other.affine)
        assert (one.spacing, one.space, one.steps) == (other.spacing, other.space, other.steps)
        done += 1
    assert done >= 9


def test_the_map_is_its_owners_alone(cohort, tmp_path):
    folder.deidentify(cohort, tmp_path / "out", KEY, on_error="skip")
    assert stat.S_IMODE((tmp_path / "out-names.json").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o700
