"""Names planted wherever a file can hold one: none is left in what is written for sharing, or by training; all pixels are."""

import base64
import gzip
import json
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import imagecodecs
import nibabel
import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from pydicom import uid
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence

from vaejax import cli
from vaejax.datasets import dicom, image, nifti

KEY = "correct horse battery staple"
RNG = np.random.default_rng(0)
OLD_UID = "1.2.840.48151623"


class Plants(dict[str, str]):
    """Where something was planted, and what."""

    def __call__(self, where: str, what: str | None = None) -> str:
        self[where] = what or f"ZYX{len(self):03d}QV"
        return self[where]

    def found(self, content: bytes) -> set[str]:
        """Where in the world it was planted, of all that is in `content` in some encoding, in capitals or not."""
        lower = content.lower()
        return {
            where
            for where, what in self.items()
            if any(form.lower() in lower for form in _forms(what)) or any(form in content for form in _base64(what))
        }

    def left(self, folder: Path, private: bool = False) -> dict[str, set[str]]:
        """What is found in the names and contents of all files under a folder, but those that their owner alone may read."""
        left: dict[str, set[str]] = {}
        for path in folder.rglob("*"):
            if path.is_file() and (private or stat.S_IMODE(path.stat().st_mode) != 0o600):
                content = path.read_bytes()
                unpacked = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else b""
                name = path.relative_to(folder).as_posix()
                left[name] = self.found(content + unpacked + name.encode())
        return {name: found for name, found in left.items() if found}


def _forms(what: str) -> Iterator[bytes]:
    for encoding in ("utf-8", "latin-1", "utf-16-le", "utf-16-be"):
        yield what.encode(encoding)


def _base64(what: str) -> Iterator[bytes]:
    """The letters that are the same whatever stands before and after it, for each of the three ways to begin."""
    for skip in range(3):
        content = bytes(skip) + what.encode()
        whole = len(content) // 3 * 3
        yield base64.b64encode(content[:whole])[4 if skip else 0 :]


def item(**fields: object) -> Dataset:
    data = Dataset()
    for keyword, value in fields.items():
        setattr(data, keyword, value)
    return data


def slice_of(pixels: np.ndarray, **fields: object) -> Dataset:
    data = item(
        SOPClassUID=uid.CTImageStorage, Modality="CT", Rows=pixels.shape[0], Columns=pixels.shape[1], SamplesPerPixel=1,
        PhotometricInterpretation="MONOCHROME2", BitsAllocated=16, BitsStored=16, HighBit=15, PixelRepresentation=0,
        RescaleSlope="1", RescaleIntercept="-1024", PixelSpacing=[0.5, 0.75], SliceThickness="2.5",
        ImagePositionPatient=[1, 2, 3], ImageOrientationPatient=[1, 0, 0, 0, 1, 0], PixelData=pixels.astype("<u2").tobytes(),
    )  # fmt: skip
    data["PixelData"].VR = "OW"
    for keyword, value in fields.items():
        setattr(data, keyword, value)
    return data


def everywhere(data: Dataset, plant: Plants) -> None:
    """Plants into a header, in every place that a header has."""
    data.StudyInstanceUID, data.SeriesInstanceUID = plant("study", f"{OLD_UID}.1.7"), plant("series", f"{OLD_UID}.2.7")
    data.SOPInstanceUID, data.FrameOfReferenceUID = plant("instance", f"{OLD_UID}.3.7"), plant("frame", f"{OLD_UID}.4.7")
    data.PatientBirthDate, data.StudyDate = plant("birth", "19600401"), plant("date", "20190213")
    data.AcquisitionDateTime = f"20190213{plant('time', '134507.654321')}+0100"
    data.StudyTime = data.ContentTime = plant["time"]
    data.SeriesNumber = plant("a number of a patient as that of a series", "48151623")
    for keyword in (
        *("PatientName", "PatientID", "OtherPatientIDs", "PatientAddress", "PatientTelephoneNumbers", "PatientSex"),
        *("PatientComments", "AdditionalPatientHistory", "EthnicGroup", "MedicalAlerts", "ReferringPhysicianName"),
        *("OperatorsName", "PerformingPhysicianName", "InstitutionName", "InstitutionAddress", "StationName"),
        *("StudyDescription", "SeriesDescription", "ProtocolName", "AccessionNumber", "StudyID", "DeviceSerialNumber"),
        *("Manufacturer", "ManufacturerModelName", "SoftwareVersions", "ImageComments", "ClinicalTrialSubjectID"),
        *("ContrastBolusAgent", "RequestingService", "DerivationDescription", "LossyImageCompressionMethod"),
        *("BodyPartExamined", "PatientPosition", "ScanOptions", "FilterType", "SpecificCharacterSet", "RescaleType"),
    ):
        setattr(data, keyword, plant(keyword))
    data.ImageType = ["ORIGINAL", "PRIMARY", plant("ImageType")]
    nested(data, plant)
    bulk(data, plant)


def nested(data: Dataset, plant: Plants) -> None:
    """In sequences, those that stay among them, and in private fields."""
    deep = item(TextValue=plant("text of a report"), ContentSequence=[item(PersonName=plant("a person in a report"))])
    data.ContentSequence = [deep]
    data.RequestAttributesSequence = [item(ScheduledProcedureStepDescription=plant("request"))]
    data.OriginalAttributesSequence = [item(ModifiedAttributesSequence=[item(PatientName=plant("a name before"))])]
    code = item(CodeValue="1", CodingSchemeDesignator="99X", CodeMeaning=plant("a code"))
    referred = plant("reference", f"{OLD_UID}.5.7")
    data.ReferencedImageSequence = [item(ReferencedSOPInstanceUID=referred, PurposeOfReferenceCodeSequence=[code])]
    data.SharedFunctionalGroupsSequence = [item(FrameContentSequence=[item(FrameComments=plant("comment of a frame"))])]
    table = item(LUTDescriptor=[2, 0, 16], LUTExplanation=plant("a table's name"))
    table.LUTData = b"\0\0\xff\xff" + plant("after a table").encode()
    table["LUTDescriptor"].VR, table["LUTData"].VR = "US", "OW"
    data.VOILUTSequence = [table]
    block = data.private_block(0x0099, plant("a private creator"), create=True)
    block.add_new(1, "LO", plant("a private field"))
    block.add_new(2, "SQ", Sequence([item(PatientName=plant("in a private sequence"))]))
    within = item(PixelSpacing=[1, 1])
    within.private_block(0x0099, "X", create=True).add_new(1, "UN", plant("private in a sequence").encode("utf-16-le"))
    data.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence = [within]
    data.add(DataElement(0x0018FFF1, "UN", plant("a field that nobody knows").encode()))
    data.add(DataElement(0x00180060, "LO", plant("text in a number's field")))  # KVP


def bulk(data: Dataset, plant: Plants) -> None:
    """In what is no text."""
    data.add(DataElement(0x60003000, "OW", plant("an overlay").encode()))
    data.add(DataElement(0x60001500, "LO", plant("an overlay's label")))
    data.add(DataElement(0x50003000, "OW", plant("a curve").encode("utf-16-le")))
    data.add(DataElement(0x50000022, "LO", plant("a curve's label")))
    icon = item(Rows=2, Columns=2, PixelData=base64.b64encode(plant("an icon").encode()))
    icon["PixelData"].VR = "OB"
    data.IconImageSequence = [icon]
    data.ICCProfile = plant("a colour profile").encode() + b" "
    data.EncapsulatedDocument = plant("a document").encode()
    data.MAC = plant("a signature").encode()
    data.add(DataElement(0xFFFCFFFC, "OB", plant("padding").encode()))


def save(path: Path, data: Dataset, plant: Plants, syntax: str = uid.ExplicitVRLittleEndian) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data.preamble = plant("preamble").encode().ljust(128, b"\0")
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.file_meta.MediaStorageSOPClassUID, data.file_meta.MediaStorageSOPInstanceUID = data.SOPClassUID, data.SOPInstanceUID
    data.file_meta.SourceApplicationEntityTitle = plant("AE title")
    data.file_meta.ImplementationVersionName = plant("version")
    data.file_meta.PrivateInformationCreatorUID = plant("creator of private information", f"{OLD_UID}.6.7")
    data.file_meta.PrivateInformation = plant("private information").encode()
    data.save_as(path, enforce_file_format=True)
    return path


def share(source: Path, target: Path, monkeypatch, *arguments: str) -> dict:
    monkeypatch.setenv("VAEJAX_KEY", KEY)
    assert cli.main(["deidentify", str(source), str(target), *arguments]) == 0
    return json.loads((target / "deidentification.json").read_text())


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, of the values planted
def test_none_of_the_names_planted_in_a_dicom_file_is_left_and_all_pixels_are(tmp_path, monkeypatch, capsys):
    plant = Plants()
    pixels = RNG.integers(0, 256, (8, 16)).astype("<u2")
    hidden = np.frombuffer(plant("above the bits stored").encode().ljust(16, b"X"), np.uint8)
    stored = pixels.copy()
    pixels[0] = stored[0] = 0
    stored[0] |= hidden.astype("<u2") << 8
    data = slice_of(stored, BitsStored=8, HighBit=7)
    data.PixelData += plant("after the pixels").encode()
    everywhere(data, plant)
    path = save(tmp_path / "in" / plant("folder") / f"{plant('file')}.dcm", data, plant)
    assert len(plant) >= 75
    assert plant.found(path.read_bytes() + str(path).encode()) == plant.keys()

    report = share(tmp_path / "in", tmp_path / "out", monkeypatch)
    assert plant.left(tmp_path / "out", private=True) == {}
    assert plant.found(capsys.readouterr().out.encode()) == set()
    (copy,) = (tmp_path / "out").rglob("*.dcm")
    np.testing.assert_array_equal(dicom.raw(copy)[0, ..., 0], pixels)
    np.testing.assert_array_equal(dicom.decode(copy).pixels, dicom.decode(path).pixels)
    before, after = dicom.read_header(path), dicom.read_header(copy)
    for fact in ("shape", "modality", "spacing", "thickness", "windows"):
        assert getattr(before, fact) == getattr(after, fact)
    assert KEY not in (tmp_path / "out" / "deidentification.json").read_text()
    assert report["files"][copy.stem]["private"] == 5
    names = tmp_path / "out-names.json"
    assert json.loads(names.read_text()) == {copy.stem: path.relative_to(tmp_path / "in").as_posix()}
    assert stat.S_IMODE(names.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o700


def _jpeg(content: bytes, *texts: str) -> bytes:
    """A JPEG stream with texts in a comment, in application segments, as a thumbnail, and after its end."""
    segments = b"".join(
        b"\xff" + bytes([marker]) + (len(text) + 2).to_bytes(2) + text.encode()
        for marker, text in zip((0xFE, 0xE1, 0xEF, 0xE2), texts, strict=False)
    )
    return content[:2] + segments + content[2:] + texts[-1].encode()


def _streams(pixels: np.ndarray, plant: Plants) -> dict[str, tuple[str, bytes]]:
    """Frames of every kind of compression with texts in them, by the name of the kind."""
    boxes, codes = imagecodecs.jpeg2k_encode(pixels, codecformat="jp2", level=0, reversible=True).split(b"jp2c")
    text, start = plant("comment of JPEG 2000").encode(), 4 + int.from_bytes(codes[4:6])
    codes = codes[:start] + b"\xff\x64" + (4 + len(text)).to_bytes(2) + b"\0\1" + text + codes[start:]
    xml = b"\0\0\0\x10xml " + plant("box of JP2").encode()
    boxed = boxes[:-4] + xml + (8 + len(codes)).to_bytes(4) + b"jp2c" + codes + plant("after JPEG 2000").encode()
    runs = imagecodecs.packbits_encode(pixels.tobytes())
    run = np.array([1, 64, *[0] * 14], "<u4").tobytes()[:-8] + plant("offsets of RLE")[:8].encode() + runs
    return {
        "JPEG": (uid.JPEGLosslessSV1, _jpeg(imagecodecs.ljpeg_encode(pixels), *(plant(f"JPEG {i}") for i in range(4)))),
        "JPEG-LS": (uid.JPEGLSLossless, _jpeg(imagecodecs.jpegls_encode(pixels), *(plant(f"JPEG-LS {i}") for i in range(4)))),
        "JPEG 2000": (uid.JPEG2000Lossless, boxed),
        "RLE": (uid.RLELossless, run + plant("after RLE").encode()),
    }


@pytest.mark.parametrize("kind", ["JPEG", "JPEG-LS", "JPEG 2000", "RLE"])
def test_no_text_is_left_between_compressed_pixels(tmp_path, monkeypatch, kind):
    plant = Plants()
    pixels = RNG.integers(0, 256, (8, 16)).astype(np.uint8)
    syntax, stream = _streams(pixels, plant)[kind]
    plants = Plants({where: what for where, what in plant.items() if where in plant.found(stream)})
    assert plants
    data = slice_of(pixels, BitsAllocated=8, BitsStored=8, HighBit=7, SOPInstanceUID="1.2.3")
    data.PixelData = encapsulate([stream, stream])
    data.NumberOfFrames = 2
    data["PixelData"].VR, data["PixelData"].is_undefined_length = "OB", True
    save(tmp_path / "in" / "a.dcm", data, Plants(), syntax)
    report = share(tmp_path / "in", tmp_path / "out", monkeypatch)
    assert plants.left(tmp_path / "out", private=True) == {}
    (copy,) = (tmp_path / "out").rglob("*.dcm")
    np.testing.assert_array_equal(dicom.raw(copy)[..., 0], [pixels, pixels])
    assert "compressed pixels removed" in str(report["files"][copy.stem]["notes"])


# --- pictures and NIfTI files


def pictures(folder: Path, plant: Plants) -> dict[str, Path]:
    folder.mkdir(parents=True)
    grey = RNG.integers(0, 65536, (9, 7)).astype(np.uint16)
    colour = RNG.integers(0, 256, (9, 7, 3)).astype(np.uint8)
    paths = {kind: folder / f"{plant(f'file {kind}')}.{kind}" for kind in ("png", "jpg", "tif")}
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Patient", plant("text of PNG"))
    texts.add_itxt("Patient", plant("international text of PNG"), zip=False)
    texts.add(b"prVt", plant("private chunk of PNG").encode())
    Image.fromarray(grey).save(paths["png"], pnginfo=texts, icc_profile=plant("profile of PNG").encode())
    paths["png"].write_bytes(paths["png"].read_bytes() + plant("after PNG").encode())
    exif = Image.Exif()
    exif[0x010E], exif[0x013B], exif[0x0112] = plant("description in EXIF"), plant("artist in EXIF"), 6
    Image.fromarray(colour).save(
        paths["jpg"], exif=exif, comment=plant("comment of JPEG").encode(), xmp=plant("XMP of JPEG").encode()
    )
    paths["jpg"].write_bytes(paths["jpg"].read_bytes() + plant("after JPEG").encode())
    tags = {270: plant("description of TIFF"), 315: plant("artist of TIFF"), 65000: plant("private tag of TIFF")}
    Image.fromarray(colour).save(paths["tif"], tiffinfo=tags)
    planted = plant.found(b"".join(path.name.encode() + path.read_bytes() for path in paths.values()))
    assert planted == plant.keys() - {"profile of PNG"}  # which is deflated
    return paths


def test_none_of_the_names_planted_in_pictures_is_left_and_all_pixels_are(tmp_path, monkeypatch):
    plant = Plants()
    paths = pictures(tmp_path / "in" / "class", plant)
    report = share(tmp_path / "in", tmp_path / "out", monkeypatch)
    assert plant.left(tmp_path / "out", private=True) == {}
    names = {old.rpartition(".")[2]: name for name, old in json.loads((tmp_path / "out-names.json").read_text()).items()}
    copies = {path.stem: path for path in (tmp_path / "out").rglob("*.*") if path.stem in report["files"]}
    for kind in ("png", "jpg"):  # the photograph is turned: six columns wide, by its orientation, which stays
        np.testing.assert_array_equal(image.decode(copies[names[kind]]), image.decode(paths[kind]))
    assert image.decode(copies[names["jpg"]]).shape == (7, 9, 3)
    assert image.decode(copies[names["png"]]).dtype == np.uint16
    np.testing.assert_array_equal(image.decode(copies[names["tif"]]), np.array(Image.open(paths["tif"])))
    assert copies[names["tif"]].suffix == ".png"


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_none_of_the_names_planted_in_a_nifti_file_is_left_and_all_voxels_are(tmp_path, monkeypatch, kind, suffix):
    plant = Plants()
    affine = np.array([[0, 2, 0, 5], [1, 0, 0, -7], [0, 0, 3, 9], [0, 0, 0, 1.0]])
    volume = kind(RNG.integers(-99, 99, (4, 5, 6)).astype(np.int16), affine)
    volume.header["descrip"], volume.header["aux_file"] = plant("descrip"), plant("aux_file")
    volume.header["intent_name"] = plant("intent_name")
    if kind is nibabel.Nifti1Image:
        volume.header["db_name"], volume.header["data_type"] = plant("db_name"), plant("data_type")
    volume.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", plant("extension").encode()))
    volume.header.set_slope_inter(2, 1)
    content = volume.to_bytes() + plant("after the voxels").encode()
    path = tmp_path / "in" / f"{plant('file')}{suffix}"
    path.parent.mkdir()
    if suffix == ".nii":
        path.write_bytes(content)
    else:
        with path.open("wb") as file, gzip.GzipFile(plant("gzip name"), "wb", fileobj=file, mtime=1) as packed:
            packed.write(content)
    assert plant.found(path.read_bytes() + content + path.name.encode()) == plant.keys()
    share(tmp_path / "in", tmp_path / "out", monkeypatch)
    assert plant.left(tmp_path / "out", private=True) == {}
    (copy,) = (tmp_path / "out").glob(f"*{suffix}")
    before, after = nibabel.load(path), nibabel.load(copy)
    np.testing.assert_array_equal(np.asarray(after.dataobj), np.asarray(before.dataobj))
    np.testing.assert_array_equal(after.affine, before.affine)
    assert nifti.decode(copy).spacing == nifti.decode(path).spacing
    assert copy.read_bytes()[4:8] == bytes(4) or suffix == ".nii"


# --- training


SMALL = {
    "data.batch_size": 8, "data.image_size": "(16,16)", "data.channels": 1,
    "model.network": "mlp", "model.hidden": "(8,)", "model.latent_size": 2,
    "training.steps": 4, "training.checkpoint_every": 2, "training.log_every": 1, "evaluation.samples": 2,
}  # fmt: skip


def train(run: Path, source: Path, name: str) -> None:
    fields = SMALL | {"data.name": name, "data.path": source, "data.cache": run.parent / "cache"}
    assert cli.main(["train", f"--workdir={run}", *(f"--config.{field}={value}" for field, value in fields.items())]) == 0
    assert (run / "evaluation.json").exists()
    assert (run / "report" / "index.html").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_none_of_the_names_planted_in_volumes_is_left_by_training(tmp_path):
    plant = Plants()
    for number in range(8):
        data = slice_of(RNG.integers(0, 4096, (16, 16)))
        everywhere(data, plant)
        data.PatientID, data.SeriesInstanceUID = f"{plant('PatientID')}{number}", f"{OLD_UID}.2.7.{number}"
        save(tmp_path / "in" / f"{plant(f'folder {number}')}" / f"{plant(f'file {number}')}.dcm", data, plant)
        volume = nibabel.Nifti1Image(RNG.integers(0, 99, (16, 16, 2)).astype(np.int16), np.eye(4))
        volume.header["descrip"] = plant("descrip")
        nibabel.save(volume, tmp_path / "in" / f"{plant(f'volume {number}')}.nii.gz")
    train(tmp_path / "runs" / "run", tmp_path / "in", "volumes")
    assert plant.left(tmp_path / "runs") == {}
    assert {name.rpartition("/")[2] for name in plant.left(tmp_path / "runs", private=True)} == {"paths.json"}


@pytest.mark.slow
def test_none_of_the_names_planted_in_pictures_is_left_by_training(tmp_path):
    plant = Plants()
    folder = tmp_path / "in" / "class"
    paths = pictures(folder, plant)
    for kind in ("jpg", "tif"):
        paths[kind].unlink()
    for number in range(24):
        shutil.copy(paths["png"], folder / f"{plant(f'file {number}')}.png")
    train(tmp_path / "runs" / "run", tmp_path / "in", "image_folder")
    assert plant.left(tmp_path / "runs") == {}
    assert {name.rpartition("/")[2] for name in plant.left(tmp_path / "runs", private=True)} == {"paths.json"}
