"""Files from anywhere become images as in training, and results lie where their sources did."""

import json
import stat
import tracemalloc
from pathlib import Path

import jax
import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import uid
from volumes_test import save_dicom, save_nifti

from vaejax import checkpoints, cli, experiment, report, runs, studies, training
from vaejax.applications import reconstruction
from vaejax.config import DataConfig, from_dict
from vaejax.datasets import DataSet, geometry, load
from vaejax.datasets import series as dicom_series
from vaejax.errors import DataError
from vaejax.runs import Run
from vaejax.studies import Study

AXES = ["RAS", "LPS", "ASL", "SPR", "PIL"]
MAX_AFFINE_ERROR = 1e-5


def data(*shape: int, window: tuple[float, float] | None = None) -> DataSet:
    """What a study needs to know of a run's images."""
    return DataSet({}, (shape[0], shape[1], shape[2] if len(shape) == 3 else 1), 1.0, None, "", (), window)


def opened(path: Path, shape: tuple[int, ...], window: tuple[float, float] | None = None, **fields) -> list[Study]:
    return list(studies.read(path, DataConfig(name="volumes", path="unused", **fields), data(*shape, window=window)))


def oblique(codes: str, spacing: tuple[float, float, float], angle: float = 0.2) -> np.ndarray:
    turn, axes = np.eye(4), np.diag([0.0, 0, 0, 1])
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    turn[:3, 3] = 11.5, -7.25, 30
    for i, (axis, sign) in enumerate(nibabel.orientations.axcodes2ornt(codes)):
        axes[int(axis), i] = sign
    return turn @ axes @ np.diag([*spacing, 1])


def ball(shape: tuple[int, ...], spacing: tuple[float, ...]) -> np.ndarray:
    """Classes 1 and 2, the second inside of the first, away from the border: off centre, so that no flip hides."""
    places = np.moveaxis(np.indices(shape), 0, -1) * spacing
    extent = np.multiply(shape, spacing)
    distance = np.linalg.norm(places - extent * (0.45, 0.5, 0.55), axis=-1) / extent.min()
    return (distance < 0.38).astype(np.uint8) + (distance < 0.2)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """The smallest of those of the classes."""
    return min(2 * ((a == c) & (b == c)).sum() / ((a == c).sum() + (b == c).sum()) for c in np.unique(b) if c)


def there(study: Study, mask: np.ndarray, slices) -> np.ndarray:
    """A mask on the source's grid at the pixels of the images."""
    return geometry.there(slices(mask), study.axes)


# --- in


@pytest.mark.parametrize(
    "fields",
    [{}, {"slice_axis": 0, "resize": "crop"}, {"spacing": (1.0, 0.7)}, {"block": 3}, {"spacing": (2, 1, 1.5), "block": 5},
     {"window": (50, 80), "resize": "stretch"}, {"normalize": "dataset"}],
    ids=str,
)  # fmt: skip
def test_images_are_those_of_training(tmp_path, fields):
    rng = np.random.default_rng(0)
    for number in range(3):
        save_nifti(tmp_path / "in" / f"{number}.nii.gz", rng.normal(50 * number, 30, (12, 10, 8)), oblique("LPS", (1, 2, 3)))
    config = DataConfig(name="volumes", path=str(tmp_path / "in"), image_size=(16, 14), **fields)
    prepared = load(config, tmp_path / "cache")
    trained = np.concatenate([split.read(np.arange(split.n))["image"] for split in prepared.splits.values()])
    found = np.concatenate([study.images for study in studies.read(tmp_path / "in", config, prepared)])
    assert found.dtype == np.float32
    assert sorted(map(bytes, found)) == sorted(map(bytes, trained))  # bit for bit, whatever the splits


@pytest.mark.parametrize(("mode", "dtype", "white"), [("L", np.uint8, 255), ("I;16", np.uint16, 65535), ("RGB", np.uint8, 255)])
def test_pictures_are_those_of_training_and_come_back(tmp_path, mode, dtype, white):
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    pixels = rng.integers(0, white, (12, 40, 30) + ((3,) if mode == "RGB" else ())).astype(dtype)
    for number in range(12):
        Image.fromarray(pixels[number]).save(tmp_path / "in" / f"{number:02}.png")
    config = DataConfig(name="image_folder", path=str(tmp_path / "in"), image_size=(32, 32))
    prepared = load(config, tmp_path / "cache")
    trained = np.concatenate([split.read(np.arange(split.n))["image"] for split in prepared.splits.values()])
    found = list(studies.read(tmp_path / "in", config, prepared))
    images = np.concatenate([study.images for study in found])
    assert sorted(map(bytes, images)) == sorted(bytes(row) for row in trained.astype(np.float32) / np.float32(white))
    own = next(studies.read(tmp_path / "in" / "00.png", config, prepared._replace(image_shape=(40, 30, images.shape[-1]))))
    restored = own.units(own.back(own.images))
    assert restored.dtype == dtype
    np.testing.assert_array_equal(restored, pixels[0])  # through the model's size, which is its own
    (file,) = own.save(tmp_path / "out", restored, "reconstruction")
    written = np.array(Image.open(file))
    np.testing.assert_array_equal(written[:40, :30], pixels[0])  # nothing of them is written over
    assert written[40:].max() == white  # the notice
    assert len(written) >= 52


@pytest.mark.parametrize(("dtype", "white"), [(np.uint8, 255), (np.uint16, 65535)])
def test_tiff_files_are_pictures(tmp_path, dtype, white):
    pixels = np.random.default_rng(0).integers(0, white, (12, 10)).astype(dtype)
    Image.fromarray(pixels).save(tmp_path / "a.TIF", "TIFF")
    (study,) = opened(tmp_path / "a.TIF", (12, 10))
    np.testing.assert_array_equal(study.images[0, ..., 0], pixels / np.float32(white))
    (file,) = study.save(tmp_path / "out", study.units(study.back(study.images)), "reconstruction")
    assert file.suffix == ".png"
    np.testing.assert_array_equal(np.array(Image.open(file))[:12, :10], pixels)


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "n", "channels"),
    [("image_folder", (12, 10), "u1", 1, 1), ("image_folder", (12, 10, 3), "u2", 1, 3), ("image_folder", (12, 10), "f8", 1, 1),
     ("arrays", (5, 12, 10), "u1", 5, 1), ("arrays", (5, 12, 10, 3), "f4", 5, 3), ("medmnist", (2, 7, 12, 10), "u1", 14, 1),
     ("arrays", (2, 7, 12, 10, 3), ">u2", 14, 3)],
    ids=str,
)  # fmt: skip
def test_npy_files_are_arrays_as_they_are_in_training(tmp_path, name, shape, dtype, n, channels):
    rng = np.random.default_rng(0)
    white = 1.0 if "f" in dtype else np.iinfo(dtype).max
    values = rng.uniform(0, 1, shape).astype(dtype) if white == 1.0 else rng.integers(0, white, shape).astype(dtype)
    np.save(tmp_path / "a.npy", values)
    config = DataConfig(name=name, path="unused")
    (study,) = studies.read(tmp_path / "a.npy", config, data(12, 10, channels))
    assert study.images.shape == (n, 12, 10, channels)
    np.testing.assert_allclose(study.images, values.reshape(n, 12, 10, channels) / white, atol=1e-7)
    restored = study.units(study.back(study.images))
    (file,) = study.save(tmp_path / "out", restored, "reconstruction")
    written = np.load(file)
    assert file.name == f"{study.id}_reconstruction.npy"
    assert written.dtype == (np.float32 if white == 1.0 else np.dtype(dtype).newbyteorder("="))
    np.testing.assert_allclose(written, values, rtol=1e-6)
    (coarse,) = studies.read(tmp_path / "a.npy", config, data(8, 8, channels))
    assert coarse.back(np.ones((n, 8, 8), bool)).shape == shape[: len(shape) - (channels > 1)]


def test_an_npy_file_that_holds_no_images_is_told(tmp_path):
    np.save(tmp_path / "a.npy", np.full((3, 4, 5), 7.5))
    for name in ("arrays", "image_folder"):
        with pytest.raises(DataError, match=r"a\.npy: .*values from 0 to 1|a\.npy: an array of shape"):
            list(studies.read(tmp_path, DataConfig(name=name, path="unused"), data(4, 5)))


def test_ids_say_nothing_and_depend_on_contents_alone(tmp_path):
    for name in ("JaneRoe.nii", "other.nii"):
        save_nifti(tmp_path / "in" / name, np.arange(60.0).reshape(3, 4, 5))
    save_nifti(tmp_path / "in" / "third.nii", np.arange(60.0).reshape(3, 4, 5) + 1)
    found = opened(tmp_path / "in", (8, 8))
    assert [study.paths for study in found] == [("JaneRoe.nii",), ("other.nii",), ("third.nii",)]
    assert found[0].id == found[1].id != found[2].id
    assert all(len(study.id) == 16 for study in found)


def test_studies_are_opened_one_by_one(tmp_path):
    save_nifti(tmp_path / "a.nii", np.arange(60.0).reshape(3, 4, 5))
    (tmp_path / "b.nii").write_bytes(b"no volume")
    reading = studies.read(tmp_path, DataConfig(), data(8, 8))
    assert next(reading).paths == ("a.nii",)
    with pytest.raises(DataError, match=r"b\.nii: not a NIfTI file"):
        next(reading)


def test_memory_does_not_grow_with_the_number_of_studies(tmp_path):
    peaks = []
    for n in (2, 8):
        for number in range(n):
            save_nifti(tmp_path / str(n) / f"{number}.nii", np.full((40, 40, 40), number, np.float32))
        reading = studies.read(tmp_path / str(n), DataConfig(), data(40, 40))
        tracemalloc.start()
        assert sum(study.images.shape == (40, 40, 40, 1) for study in reading) == n
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


@pytest.mark.parametrize("name", ["none", "."])
def test_what_is_not_there_is_told(tmp_path, name):
    with pytest.raises(DataError, match="found none"):
        opened(tmp_path / name, (8, 8))


def test_a_picture_has_no_spacing(tmp_path):
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: the distance of its rows is unknown"):
        opened(tmp_path, (8, 8), spacing=(1.0, 1.0))


# --- NIfTI


@pytest.mark.parametrize("codes", AXES)
@pytest.mark.parametrize(
    ("size", "fields"),
    [((48, 48), {}), ((48, 40), {"slice_axis": 0}), ((36, 36), {"slice_axis": 1, "resize": "crop"}),
     ((64, 64), {"spacing": (0.8, 0.8)}), ((64, 64), {"spacing": (0.6, 0.7, 0.9), "slice_axis": 1})],
    ids=str,
)  # fmt: skip
def test_a_mask_comes_back_to_its_volume(tmp_path, codes, size, fields):
    spacing, shape = (0.8, 1.1, 1.6), (40, 36, 24)
    affine, mask = oblique(codes, spacing), ball(shape, spacing) > 0
    save_nifti(tmp_path / "a.nii.gz", mask * 100.0, affine)
    (study,) = opened(tmp_path, size, window=(0.0, 100.0), **fields)
    shown = (study.images[..., 0] > 0.5).astype(np.uint8)  # there as images go, so that errors of both ways do not cancel
    (file,) = study.save(tmp_path / "out", study.back(shown), "mask")
    image = nibabel.load(file)
    assert np.abs(image.affine - nibabel.load(tmp_path / "a.nii.gz").affine).max() < MAX_AFFINE_ERROR
    assert image.get_data_dtype() == np.uint8
    assert image.header["descrip"].item() == b"mask: derived, not for diagnosis"
    inside, found = np.isfinite(study.back(study.images)), np.asarray(image.dataobj)
    assert inside.all() == (fields.get("resize") != "crop")
    assert not found[~inside].any()
    assert dice(found[inside], mask[inside]) >= 0.98


def test_values_come_back_in_units_and_nan_where_cropped(tmp_path):
    voxels = np.random.default_rng(0).uniform(-900, 900, (12, 20, 6)).astype(np.float32)
    save_nifti(tmp_path / "a.nii", voxels, oblique("PIL", (1, 1, 2)))
    (study,) = opened(tmp_path, (12, 12), window=(-1000.0, 1000.0), resize="crop", slice_axis=2)
    restored = study.units(study.back(study.images))
    inside = np.isfinite(restored)
    assert restored.shape == voxels.shape
    assert (~inside).sum() == inside.sum()  # rows of 20 to 12, columns of 6 scaled to as many
    assert restored.dtype == np.float32
    (study,) = opened(tmp_path, (20, 6), window=(-1000.0, 1000.0), slice_axis=0)
    restored = study.units(study.back(study.images))
    (file,) = study.save(tmp_path / "out", restored, "reconstruction")
    size = study.images.shape[1:3]
    assert nibabel.load(file).shape == voxels.shape
    if size == tuple(axis.source for axis in study.axes[1:]):
        np.testing.assert_allclose(nibabel.load(file).get_fdata(), voxels, atol=2e-3)


@pytest.mark.parametrize("codes", AXES)
def test_at_its_own_size_a_volume_comes_back_as_it_was(tmp_path, codes):
    voxels = np.random.default_rng(0).uniform(0, 1e6, (6, 6, 6)).astype(np.float32)
    save_nifti(tmp_path / "a.nii", voxels, oblique(codes, (1, 1, 2)))
    for axis in range(3):
        (study,) = opened(tmp_path, (6, 6, 3), window=(0.0, 1e6), slice_axis=axis, block=3)
        np.testing.assert_allclose(study.units(study.back(study.images)), voxels, atol=1.0)


def test_a_sigmoid_window_is_undone(tmp_path):
    pixels = np.array([[-160, 40, 240]])
    fields = {"Modality": "CT", "WindowCenter": 40, "WindowWidth": 400, "VOILUTFunction": "SIGMOID"}
    save_dicom(tmp_path / "a", pixels, **fields)
    (study,) = opened(tmp_path, (1, 3))
    np.testing.assert_allclose(study.images.ravel(), 1 / (1 + np.exp([2, 0, -2])), atol=1e-6)
    np.testing.assert_allclose(study.units(study.back(study.images))[0], pixels, atol=0.1)


# --- DICOM


@pytest.fixture
def series(tmp_path) -> Path:
    """An oblique series whose file names are not in order, of nobody's real name."""
    row, column = np.array([0.8, 0.6, 0.0]), np.array([-0.36, 0.48, -0.8])
    mask = ball((10, 24, 30), (2.5, 0.7, 0.9))
    for number in range(10):
        position = np.array([-20.125, 33.0, 7.5]) + 2.5 * number * np.cross(row, column)
        fields = {
            "PixelSpacing": [0.7, 0.9], "ImagePositionPatient": [round(float(x), 6) for x in position],
            "ImageOrientationPatient": [*row, *column], "SliceThickness": 2.0, "FrameOfReferenceUID": "1.2.3.4",
            "StudyInstanceUID": "1.2.3.5", "PatientName": "Doe^Jane", "InstanceNumber": 10 - number, "StudyDate": "20200102",
        }  # fmt: skip
        save_dicom(tmp_path / "in" / f"{(7 * number) % 10}.dcm", 100 * mask[number].astype(np.int16) - 50, **fields)
    return tmp_path / "in"


def sources(folder: Path) -> list[pydicom.Dataset]:
    """Sorted along the normal, by pydicom alone."""
    files = [pydicom.dcmread(path) for path in folder.iterdir()]
    normal = np.cross(*np.reshape(files[0].ImageOrientationPatient, (2, 3)).astype(float))
    return sorted(files, key=lambda file: float(np.dot(np.array(file.ImagePositionPatient, float), normal)))


def test_a_derived_series_lies_where_its_source_does(series, tmp_path):
    (study,) = opened(series, (32, 32), window=(-50.0, 150.0))
    files = study.save(tmp_path / "out", study.units(study.back(study.images)), "reconstruction")
    assert len(files) == 10
    written = [pydicom.dcmread(file) for file in files]
    for source, result in zip(sources(series), written, strict=True):
        for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "Rows", "Columns"):
            assert result[keyword].value == source[keyword].value, keyword
        assert result.FrameOfReferenceUID == source.FrameOfReferenceUID
        assert result.SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
        assert result.SourceImageSequence[0].ReferencedSOPClassUID == source.SOPClassUID
        assert list(result.ImageType[:2]) == ["DERIVED", "SECONDARY"]
        units = result.pixel_array * float(result.RescaleSlope) + float(result.RescaleIntercept)
        np.testing.assert_allclose(units.mean(), source.pixel_array.mean(), atol=1.0)
    assert len({result.SOPInstanceUID for result in written}) == 10
    assert {result.SeriesInstanceUID for result in written}.isdisjoint({"1.2.3"})
    assert len({result.SeriesInstanceUID for result in written}) == 1


def test_a_derived_series_has_what_its_class_requires(series, tmp_path):
    """Types 1 and 2 of the modules of MR images (PS3.3, A.4), but for those of frames of reference and of contrast."""
    (study,) = opened(series, (24, 30))
    result = pydicom.dcmread(study.save(tmp_path / "out", study.back(study.images), "map")[0])
    with_value = (
        "SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID Modality ImageType SamplesPerPixel Rows Columns "
        "PhotometricInterpretation BitsAllocated BitsStored HighBit PixelSpacing ImageOrientationPatient "
        "ImagePositionPatient FrameOfReferenceUID ScanningSequence SequenceVariant"
    )
    present = (
        "PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime StudyID AccessionNumber ReferringPhysicianName "
        "SeriesNumber InstanceNumber PositionReferenceIndicator SliceThickness ScanOptions MRAcquisitionType EchoTime "
        "EchoTrainLength RepetitionTime Manufacturer PixelRepresentation PatientPosition"
    )
    assert [keyword for keyword in with_value.split() if not result.get(keyword)] == []
    assert [keyword for keyword in present.split() if keyword not in result] == []
    assert all(uid.UID(result[k].value).is_valid for k in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"))
    assert result.SOPClassUID == uid.MRImageStorage
    assert "not for diagnosis" in result.SeriesDescription
    assert "not for diagnosis" in result.DerivationDescription
    assert max(len(str(part)) for part in result.PixelSpacing) <= 16


@pytest.mark.parametrize("identify", [False, True])
def test_a_name_is_copied_only_when_asked(series, tmp_path, identify):
    (study,) = opened(series, (24, 30))
    files = study.save(tmp_path / "out", study.back(study.images), "map", identify)
    result = pydicom.dcmread(files[0])
    content = b"".join(file.read_bytes() for file in files)
    assert (b"Jane" in content, b"20200102" in content, result.PatientID == "Doe") == (identify,) * 3
    assert (result.StudyInstanceUID == "1.2.3.5") == identify
    assert result.PatientID
    again = pydicom.dcmread(study.save(tmp_path / "more", study.back(study.images), "mask", identify)[0])
    assert again.StudyInstanceUID == result.StudyInstanceUID  # results of a study come together
    assert again.PatientID == result.PatientID
    assert "Doe" not in str(files[0])


@pytest.mark.parametrize("fields", [{}, {"spacing": (0.7, 0.7)}, {"spacing": (0.7, 0.7, 2.0)}], ids=str)
def test_a_mask_comes_back_to_its_series(series, tmp_path, fields):
    mask = ball((10, 24, 30), (2.5, 0.7, 0.9))
    (study,) = opened(series, (48, 48), **fields)
    shown = there(study, mask, lambda mask: mask)
    files = study.save(tmp_path / "out", study.back(shown), "mask")
    written = np.stack([pydicom.dcmread(file).pixel_array for file in files])
    assert written.dtype == np.uint16  # the one size that MR images have
    assert dice(written, mask) > 0.98


def test_what_goes_with_a_sequence_stays_and_colours_are_no_mr_images(tmp_path):
    save_dicom(tmp_path / "in" / "a", np.zeros((4, 5)), ScanningSequence="IR", InversionTime=2500.0, PatientPosition="HFS")
    (study,) = opened(tmp_path / "in", (4, 5))
    result = pydicom.dcmread(study.save(tmp_path / "out", study.back(study.images), "map")[0])
    assert (result.ScanningSequence, result.InversionTime, result.PatientPosition) == ("IR", 2500.0, "HFS")
    assert "TriggerTime" not in result
    colour = pydicom.dcmread(study.save(tmp_path / "out", np.zeros((1, 4, 5, 3), np.uint8), "overlay")[0])
    assert (colour.SOPClassUID, colour.BitsAllocated) == (uid.SecondaryCaptureImageStorage, 8)
    assert "PatientOrientation" in colour


@pytest.mark.parametrize(
    ("characters", "name"), [("ISO_IR 100", "M\u00fcller^J\u00fcrgen"), ("ISO_IR 192", "\u5c71\u7530^\u592a\u90ce")]
)
def test_names_in_any_script_are_copied_as_they_are(tmp_path, characters, name):
    said = {"SpecificCharacterSet": characters, "PatientName": name, "StudyInstanceUID": "1.2.3.5"}
    save_dicom(tmp_path / "in" / "a", np.zeros((4, 5)), **said)
    (study,) = opened(tmp_path / "in", (4, 5))
    (file,) = study.save(tmp_path / "out", study.back(study.images), "map", identify=True)
    assert str(pydicom.dcmread(file).PatientName) == name


def test_what_was_cropped_away_is_padding(series, tmp_path):
    (study,) = opened(series, (24, 24), resize="crop")
    values = study.back(study.images)
    results = [pydicom.dcmread(file) for file in study.save(tmp_path / "out", values, "map")]
    stored = np.stack([result.pixel_array for result in results])
    assert results[0].PixelPaddingValue == 0
    np.testing.assert_array_equal(stored == 0, np.isnan(values))
    slope, intercept = float(results[0].RescaleSlope), float(results[0].RescaleIntercept)
    np.testing.assert_allclose(stored[stored > 0] * slope + intercept, values[stored > 0], atol=1e-5)


def test_a_constant_map_and_negative_classes_can_be_written(series, tmp_path):
    (study,) = opened(series, (24, 30))
    flat = pydicom.dcmread(study.save(tmp_path / "a", np.full((10, 24, 30), -3.25, np.float32), "map")[0])
    np.testing.assert_allclose(flat.pixel_array * float(flat.RescaleSlope) + float(flat.RescaleIntercept), -3.25)
    signed = pydicom.dcmread(study.save(tmp_path / "b", np.full((10, 24, 30), -3), "map")[0])
    np.testing.assert_array_equal(signed.pixel_array, -3)
    with pytest.raises(DataError, match="16 bits"):
        study.save(tmp_path / "c", np.full((10, 24, 30), 70_000), "map")


def test_colours_come_back_in_colour_and_other_classes_as_secondary_captures(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (6, 4, 3)).astype(np.uint8)
    colours = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0, "BitsAllocated": 8,
               "BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0, "SOPClassUID": uid.VLPhotographicImageStorage,
               "Modality": "XC"}  # fmt: skip
    save_dicom(tmp_path / "in" / "a", pixels[..., 0], PixelData=pixels.tobytes(), **colours)
    (study,) = opened(tmp_path / "in", (6, 4, 3))
    (file,) = study.save(tmp_path / "out", study.units(study.back(study.images)), "reconstruction")
    result = pydicom.dcmread(file)
    np.testing.assert_array_equal(result.pixel_array, pixels)
    assert result.SOPClassUID == uid.SecondaryCaptureImageStorage
    assert result.ConversionType == "WSD"
    assert result.SourceImageSequence[0].ReferencedSOPClassUID == uid.VLPhotographicImageStorage


def test_a_frame_of_several_is_named_in_its_reference(tmp_path):
    frames = np.arange(3 * 20, dtype=np.int16).reshape(3, 4, 5)
    save_dicom(tmp_path / "in" / "a", frames[0], NumberOfFrames=3, PixelData=frames.tobytes())
    (study,) = opened(tmp_path / "in", (4, 5))
    results = [pydicom.dcmread(file) for file in study.save(tmp_path / "out", frames, "mask")]
    assert [result.SourceImageSequence[0].ReferencedFrameNumber for result in results] == [1, 2, 3]
    np.testing.assert_array_equal([result.pixel_array for result in results], frames)
    assert all("ImagePositionPatient" not in result for result in results)  # the file has but the first one's


def test_alpha_is_no_slice(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (6, 4, 2)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (study,) = opened(tmp_path, (6, 4, 2))
    np.testing.assert_array_equal(study.units(study.back(study.images)), pixels)


# --- pictures and lists


@pytest.mark.parametrize(
    ("values", "expected"),
    [(np.eye(20, dtype=bool), 255 * np.eye(20)), (3 * np.eye(20, dtype=np.int64), 3 * np.eye(20)),
     (0.5 * np.eye(20), np.rint(32767.5 * np.eye(20))), (4.0 * np.eye(20), 65535 * np.eye(20))],
    ids=["mask", "classes", "map", "larger"],
)  # fmt: skip
def test_masks_and_maps_of_a_picture(tmp_path, values, expected):
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(tmp_path / "a.png")
    (study,) = opened(tmp_path, (20, 20))
    (file,) = study.save(tmp_path / "out", values, "map")
    np.testing.assert_array_equal(np.array(Image.open(file))[:20, :20], expected)


def test_results_do_not_depend_on_the_batch(tmp_path):
    save_nifti(tmp_path / "a.nii", np.random.default_rng(0).normal(size=(5, 5, 7)))
    seen = []

    def compute(study: Study, index: np.ndarray) -> dict[str, np.ndarray]:
        seen.append(len(index))
        return {"map": study.images[index, ..., 0] + index[:, None, None], "number": index}

    whole, parts = (
        next(studies.results(studies.read(tmp_path, DataConfig(), data(5, 5)), compute, size))[1] for size in (7, 3)
    )
    np.testing.assert_array_equal(whole["map"], parts["map"])
    assert whole["number"].tolist() == parts["number"].tolist() == list(range(7))
    assert set(seen) == {7, 3}


def test_the_list_of_paths_is_its_owners_alone(tmp_path):
    file = studies.write_index(tmp_path, {"abc": ["JaneRoe.nii"]})
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert json.loads(file.read_text()) == {"abc": ["JaneRoe.nii"]}
    studies.write_index(tmp_path, {"def": ["JohnDoe.nii"]})  # another verb, whose results lie beside those
    assert json.loads(file.read_text()) == {"abc": ["JaneRoe.nii"], "def": ["JohnDoe.nii"]}


def test_a_mask_marks_the_voxels_it_was_drawn_on_wherever_its_axes_run(tmp_path):
    lesion = np.zeros((8, 8, 8), np.int16)
    lesion[6, 2, 5] = 1

    def save(folder: str, pixels: np.ndarray, **fields) -> Path:
        """Sagittal, sorted along the normal, which runs to the right."""
        for number in range(8):
            place = {"ImagePositionPatient": [-3.0 * number, 0, 0], "ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}
            save_dicom(tmp_path / folder / f"IM{number}", pixels[number], **place | {"PixelSpacing": [1, 2]} | fields)
        return tmp_path / folder

    (study,) = opened(save("in", 100 * lesion), (8, 8))
    affine = dicom_series.affine(dicom_series.decode(sorted((tmp_path / "in").iterdir())))
    image = nibabel.Nifti1Image(lesion.transpose(2, 1, 0), affine)
    nibabel.save(image, tmp_path / "own.nii.gz")
    nibabel.save(nibabel.as_closest_canonical(image), tmp_path / "turned.nii.gz")
    config = DataConfig(name="volumes", path="unused")
    for path in (tmp_path / "own.nii.gz", tmp_path / "turned.nii.gz", save("drawn", lesion)):
        np.testing.assert_array_equal(studies.mask(path, study, config), lesion == 1)
    inverse = {"PhotometricInterpretation": "MONOCHROME1", "PixelRepresentation": 0}
    for name, fields, told in (
        ("far", {"ImagePositionPatient": [0, 0, 100]}, "lies elsewhere"),
        ("inverse", inverse, "MONOCHROME1"),
    ):
        with pytest.raises(DataError, match=told):
            studies.mask(save(name, lesion, **fields), study, config)


# --- of a run


@pytest.fixture(scope="module")
def run(tmp_path_factory, compiled_quickly) -> Run:
    """On blocks of three slices, with its first weights."""
    folder, rng = tmp_path_factory.mktemp("run"), np.random.default_rng(0)
    for number in range(4):
        save_nifti(folder / "in" / f"{number}.nii", rng.normal(size=(10, 12, 4)).astype(np.float32))
    values = {
        "data": {"name": "volumes", "path": str(folder / "in"), "image_size": (8, 8), "block": 3, "window": (0, 4)},
        "model": {"network": "mlp", "hidden": (4,), "latent_size": 2},
        "evaluation": {"batch_size": 3},
    }
    run = runs.create(str(folder / "run"), from_dict(values))
    state = training.init(run.model, training.objective_of(run.model, run.config), jax.random.key(0))
    with checkpoints.Writer(run.checkpoints, run.fingerprint) as writer:
        writer.save(1, state, {"loss": 1.0})
    return run


def test_a_run_reconstructs_a_folder_in_the_geometry_of_its_files(run, series, tmp_path, capsys):
    affine = oblique("PIL", (2, 1, 1))
    save_nifti(series / "JaneRoe.nii.gz", np.random.default_rng(1).normal(size=(9, 8, 7)).astype(np.float32), affine)
    arguments = ["reconstruct", str(run.directory), f"--input={series}", f"--output={tmp_path / 'out'}"]
    assert cli.main(arguments) == 0
    assert "2 studies" in capsys.readouterr().out
    index = json.loads((tmp_path / "out" / "studies.json").read_text())
    one, other = (next(id for id, paths in index.items() if (len(paths) == 1) == single) for single in (True, False))
    assert index[one] == ["JaneRoe.nii.gz"]
    image = nibabel.load(tmp_path / "out" / f"{one}_reconstruction.nii.gz")
    assert image.shape == (9, 8, 7)
    assert np.abs(image.affine - affine).max() < MAX_AFFINE_ERROR
    assert len(list((tmp_path / "out" / f"{other}_reconstruction").iterdir())) == 10
    assert not [path for path in (tmp_path / "out").rglob("*") if "Jane" in path.name or b"Jane" in path.name.encode()]
    (study,) = studies.read(series / "JaneRoe.nii.gz", run.config.data, run.data)
    params = experiment.restore(run).params
    expected = reconstruction.reconstruct(run.model, params, study.images)
    expected = study.units(study.back(np.asarray(expected)))
    np.testing.assert_allclose(image.get_fdata(), expected, atol=1e-4)
    assert -2 <= np.nanmin(expected) < np.nanmax(expected) <= 2  # the window of the run


def test_what_cannot_be_reconstructed_is_told_without_a_traceback(run, tmp_path, capsys):
    save_nifti(tmp_path / "0.nii", np.arange(60.0).reshape(3, 4, 5))
    (tmp_path / "a.nii").write_bytes(b"no volume")
    for path, message in ((tmp_path / "none", "found none"), (tmp_path, "a.nii: not a NIfTI file")):
        assert cli.main(["reconstruct", str(run.directory), f"--input={path}", f"--output={tmp_path / 'out'}"]) == 1
        assert message in capsys.readouterr().err
    (written,) = json.loads((tmp_path / "out" / "studies.json").read_text()).items()
    assert written[1] == ["0.nii"]
    assert (tmp_path / "out" / f"{written[0]}_reconstruction.nii.gz").exists()


def test_a_picture_of_blocks_shows_the_slice(run):
    blocks = np.random.default_rng(0).uniform(size=(1, 2, 8, 8, 5)).astype(np.float32)
    assert np.array_equal(report.grid(blocks), report.grid(blocks[..., 2:3]))


# --- real studies


def test_labels_of_the_hippocampus_come_back(real_data, tmp_path):
    """Their own spacing, padded to 64 x 64: nothing is lost but what nearest neighbours lose."""
    for path in sorted((real_data / "hippocampus_msd" / "labels").glob("*.nii*"))[:12]:
        label = nibabel.load(path)
        mask = np.asarray(label.dataobj).astype(np.uint8)
        image = path.parent.with_name("images") / path.name
        (study,) = opened(image, (64, 64), spacing=(1.0, 1.0))
        shown = there(study, mask, lambda mask: mask.transpose(2, 1, 0)[:, ::-1, ::-1])
        (file,) = study.save(tmp_path, study.back(shown), "mask")
        assert dice(np.asarray(nibabel.load(file).dataobj), mask) >= 0.98
        assert np.abs(nibabel.load(file).affine - label.affine).max() < MAX_AFFINE_ERROR


def test_real_series_are_overlaid(real_data, tmp_path):
    for number, folder in enumerate(sorted((real_data / "hippocampus_msd" / "dicom").iterdir())):
        (study,) = opened(folder, (64, 64), spacing=(1.0, 1.0))
        files = study.save(tmp_path / str(number), study.units(study.back(study.images)), "reconstruction")
        originals = sources(next(folder.iterdir()))
        for source, file in zip(originals, files, strict=True):
            result = pydicom.dcmread(file)
            for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
                assert result[keyword].value == source[keyword].value
            units = result.pixel_array * float(result.RescaleSlope) + float(result.RescaleIntercept)
            seen = np.clip(source.pixel_array, study.scale.low, study.scale.high)
            assert np.corrcoef(units.ravel(), seen.ravel())[0, 1] > 0.98  # a pixel aside, it is 0.93
