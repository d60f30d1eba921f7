"""A folder of DICOM and NIfTI files: slices as a radiologist sees them, sorted, scaled, and patients kept whole."""

import tempfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset

from vaejax.config import DataConfig
from vaejax.datasets import load, stacks, volumes
from vaejax.errors import ConfigError, DataError


def config(root: Path, **fields) -> DataConfig:
    return DataConfig(name="volumes", path=str(root), validation_fraction=0.25, **fields)


def save_nifti(path: Path, voxels: np.ndarray, affine: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4) if affine is None else affine), path)


def save_dicom(path: Path, pixels: np.ndarray, place: float = 0.0, **fields) -> None:
    """One frame of a series, at `place` mm along the body."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = uid.MRImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = uid.generate_uid()
    data.Modality, data.PatientID, data.SeriesInstanceUID = "MR", "Doe", "1.2.3"
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 1
    data.ImagePositionPatient, data.ImageOrientationPatient = [0.0, 0.0, place], [1, 0, 0, 0, 1, 0]
    data.PixelData = pixels.astype("<i2").tobytes()
    for name, value in fields.items():
        setattr(data, name, value)
    data["PixelData"].VR = "OW"
    data.save_as(path, enforce_file_format=True)


def ramp(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.int16).reshape(shape)


def found(folder: Path) -> list[stacks.Volume]:
    return stacks.find([(path.name, path) for path in sorted(folder.iterdir())], DataConfig())


def slices(volume: stacks.Volume, **fields) -> np.ndarray:
    images, *_ = volumes._slices(volume, None, DataConfig(**fields), None)
    return images


def images(folder: Path, cache: Path, **fields) -> dict[str, np.ndarray]:
    data = load(config(folder, **fields), cache)
    return {name: split.read(np.arange(split.n))["image"] for name, split in data.splits.items()}


@pytest.fixture
def cohort(tmp_path) -> Path:
    """Eight patients, the i-th with voxels around 100 i, so that a slice tells whose it is."""
    for number in range(8):
        voxels = np.full((5, 4, 3), 100 * number, np.int16)
        voxels[:, 0] += 50
        save_nifti(tmp_path / "in" / f"p{number}.nii.gz", voxels)
    return tmp_path / "in"


@pytest.mark.parametrize(("axis", "seen"), [(0, (4, 3)), (1, (5, 3)), (2, (5, 4))])
def test_slices_are_seen_as_a_radiologist_does(tmp_path, axis, seen):
    """The head above, the front above; the patient's right on the left of the image."""
    voxels = ramp(5, 4, 3)
    for number in range(3):
        save_nifti(tmp_path / "in" / f"{number}.nii", voxels)
    source = volumes.source(config(tmp_path / "in", slice_axis=axis, window=(30, 60)))
    examples = source.open()["train"]
    assert examples.n == 3 * voxels.shape[axis]
    for place in range(voxels.shape[axis]):
        image = examples.read(place)[..., 0]
        assert image.shape == seen[::-1]
        plane = np.take(voxels, place, axis)  # its first axis to the right or front, its second to the front or head
        np.testing.assert_allclose(image[0, 0], plane[-1, -1] / 60.0, atol=1e-6)
        np.testing.assert_allclose(image[-1, 0], plane[-1, 0] / 60.0, atol=1e-6)
        np.testing.assert_allclose(image[0, -1], plane[0, -1] / 60.0, atol=1e-6)


def test_any_orientation_of_the_file_gives_the_same_slices(tmp_path):
    voxels, affine = ramp(5, 4, 3), np.diag([2.0, 2.0, 3.0, 1.0])
    turned = voxels[::-1].transpose(2, 0, 1)
    other = np.zeros((4, 4))
    other[:, 3] = (8.0, 0.0, 0.0, 1.0)  # the first voxel of the turned file is the last one to the right
    other[2, 0], other[0, 1], other[1, 2] = 3.0, -2.0, 2.0
    for number in range(3):
        save_nifti(tmp_path / "one" / f"{number}.nii", voxels, affine)
        save_nifti(tmp_path / "two" / f"{number}.nii", turned, other)
    one, two = (volumes.source(config(tmp_path / name)).open()["train"] for name in ("one", "two"))
    assert one.n == two.n
    for i in range(one.n):
        np.testing.assert_array_equal(one.read(i), two.read(i))


def test_a_series_is_sorted_by_position_whatever_its_files_are_called(tmp_path):
    frames = ramp(4, 3, 5)
    for name, place in (("a", 30.0), ("b", 10.0), ("c", 20.0), ("d", 0.0)):
        save_dicom(tmp_path / "in" / f"{name}.dcm", frames[int(place / 10)], place)
    (volume,) = found(tmp_path / "in")
    np.testing.assert_allclose(slices(volume, window=(30, 60))[..., 0], np.clip(frames / 60.0, 0, 1), atol=1e-6)
    assert volume.patient == "Doe"


def test_slices_without_an_order_come_in_that_of_their_paths(tmp_path):
    """A series in time has several frames at one place."""
    for number, name in enumerate("cab"):
        save_dicom(tmp_path / "in" / name, np.full((3, 5), number))
    (volume,) = found(tmp_path / "in")
    np.testing.assert_allclose(slices(volume, window=(1, 2))[:, 0, 0, 0], [0.5, 1.0, 0.0])


def test_a_file_without_patient_belongs_to_that_of_its_series(tmp_path):
    for name, patient in (("a", ""), ("b", "Doe")):
        save_dicom(tmp_path / "in" / name, ramp(3, 5), ord(name), PatientID=patient)
    (volume,) = found(tmp_path / "in")
    assert volume.patient == "Doe"
    save_dicom(tmp_path / "in" / "c", ramp(3, 5), 5.0, PatientID="Roe")
    with pytest.raises(DataError, match="one series of 2 patients"):
        found(tmp_path / "in")


@pytest.mark.parametrize("patients", [3, 4, 5])
def test_half_of_few_patients_leaves_some_to_train(tmp_path, patients):
    for number in range(patients):
        save_nifti(tmp_path / "in" / f"{number}.nii", ramp(5, 4, 3))
    data = load(DataConfig(name="volumes", path=str(tmp_path / "in"), validation_fraction=0.5), tmp_path / "cache")
    assert all(split.n for split in data.splits.values())
    assert sum(split.n for split in data.splits.values()) == 3 * patients


def test_nothing_readable_is_told_with_the_first_reason(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.dcm").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"none of 3 volumes can be read \(0\.dcm: "):
        load(config(tmp_path), tmp_path / "cache")


def test_a_patient_is_in_one_split(cohort, tmp_path):
    splits = images(cohort, tmp_path / "cache", window=(400, 800))
    owners = {name: {round(float(image.min()) * 8) for image in split} for name, split in splits.items()}
    assert {name: len(numbers) for name, numbers in owners.items()} == {"train": 4, "val": 2, "test": 2}
    assert set.union(*owners.values()) == set(range(8))
    assert all(len(split) == 3 * len(owners[name]) for name, split in splits.items())  # with all three slices


def test_a_batch_tells_whose_the_slices_are(cohort, tmp_path):
    for split in load(config(cohort, window=(400, 800)), tmp_path / "cache").splits.values():
        rows = split.read(np.arange(split.n))
        shades = [round(float(image.min()) * 8) for image in rows["image"]]
        assert rows["patient"].dtype == np.int32
        assert (
            len(set(shades)) == len(set(rows["patient"].tolist())) == len({*zip(shades, rows["patient"].tolist(), strict=True)})
        )


def test_series_of_one_patient_stay_together(tmp_path):
    for number in range(12):
        for study in range(2):
            fields = {"PatientID": f"p{number}", "SeriesInstanceUID": f"1.{number}.{study}"}
            save_dicom(tmp_path / "in" / f"{study}" / f"{number}.dcm", np.full((3, 5), number), **fields)
    splits = images(tmp_path / "in", tmp_path / "cache", window=(6, 12))
    owners = {name: [round(float(image.max()) * 12) for image in split] for name, split in splits.items()}
    assert all(sorted(numbers) == sorted(2 * list(set(numbers))) for numbers in owners.values())
    data = load(config(tmp_path / "in", window=(6, 12)), tmp_path / "cache")
    told = {name: split.read(np.arange(split.n))["patient"] for name, split in data.splits.items()}
    pairs = {(owner, int(number)) for name in owners for owner, number in zip(owners[name], told[name], strict=True)}
    assert len({owner for owner, _ in pairs}) == len({number for _, number in pairs}) == len(pairs) == 12


def test_too_few_patients_are_told(tmp_path):
    for number in range(2):
        save_nifti(tmp_path / "in" / f"{number}.nii", ramp(5, 4, 3))
    with pytest.raises(DataError, match="expected at least 3 patients, one for every split, found 2"):
        load(config(tmp_path / "in"), tmp_path / "cache")


def test_percentiles_of_a_volume_are_black_and_white_and_nan_is_black(tmp_path):
    voxels = np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32) * 1e6
    voxels[0, 0, 0] = np.nan
    for number in range(3):
        save_nifti(tmp_path / "in" / f"{number}.nii", voxels)
    examples = volumes.source(config(tmp_path / "in")).open()["train"]
    grey = np.stack([examples.read(i) for i in range(20)])
    assert (grey.min(), grey.max()) == (0.0, 1.0)
    assert grey[0, -1, -1] == 0.0
    low, high = np.nanpercentile(voxels, stacks.PERCENTILES)
    np.testing.assert_allclose(grey[3, 5, 7, 0], np.clip((voxels[12, 14, 3] - low) / (high - low), 0, 1), atol=1e-6)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (None, [0, 200 / 399, 1, 398 / 399]),  # LINEAR: C.11.2.1.2.1
        ("LINEAR", [0, 200 / 399, 1, 398 / 399]),
        ("LINEAR_EXACT", [0, 0.5, 1, 398 / 400]),
        ("SIGMOID", 1 / (1 + np.exp([2, 0, -2, -1.98]))),
    ],
)
def test_a_ct_takes_its_own_window_as_the_standard_means_it_unless_told(tmp_path, function, expected):
    fields = {"Modality": "CT", "WindowCenter": 40, "WindowWidth": 400}
    fields |= {"VOILUTFunction": function} if function else {}
    save_dicom(tmp_path / "in" / "a", np.array([[-160, 40, 240, 238]]), **fields)
    (volume,) = found(tmp_path / "in")
    np.testing.assert_allclose(slices(volume)[0, 0, :, 0], expected, atol=1e-6)
    np.testing.assert_allclose(slices(volume, window=(240, 400))[0, 0, :3, 0], [0.0, 0.0, 0.5], atol=1e-6)


@pytest.mark.parametrize(("values", "taken"), [([0, 40, 250, 255], True), ([0, 250, 40, 255], False)])
def test_a_ct_without_a_window_takes_its_table_where_that_rises(tmp_path, values, taken):
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [4, 100, 8], values
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    pixels = np.array([[99, 100, 101, 102, 103, 200]])
    save_dicom(tmp_path / "in" / "a", pixels, Modality="CT", VOILUTSequence=[table])
    (volume,) = found(tmp_path / "in")
    low, high = np.percentile(pixels, stacks.PERCENTILES)
    expected = np.array([0, 0, 40, 250, 255, 255]) / 255 if taken else np.clip((pixels[0] - low) / (high - low), 0, 1)
    np.testing.assert_allclose(slices(volume)[0, 0, :, 0], expected, atol=1e-6)


def test_slices_without_content_are_left_out(tmp_path):
    voxels = np.zeros((4, 4, 5), np.int16)
    voxels[:2, :, 2] = 100
    voxels[0, :, 3] = 100
    for number in range(3):
        save_nifti(tmp_path / "in" / f"{number}.nii", voxels)
    counts = [volumes.source(config(tmp_path / "in", slice_content=c)).open()["train"].n for c in (0.0, 0.2, 0.4)]
    assert counts == [15, 6, 3]
    with pytest.raises(DataError, match=r"data\.slice_content=0\.9"):
        volumes.source(config(tmp_path / "in", slice_content=0.9)).open()


def test_unreadable_files_are_all_named_or_skipped_and_counted(cohort, tmp_path):
    (cohort / "broken.dcm").write_bytes(b"no image")
    (cohort / "cut.nii.gz").write_bytes((cohort / "p0.nii.gz").read_bytes()[:40])
    (cohort / "README.md").write_text("not an image")
    with pytest.raises(DataError, match=r"(?s)2 unreadable images:.*broken\.dcm.*cut\.nii\.gz"):
        load(config(cohort), tmp_path / "cache")
    data = load(config(cohort, on_error="skip"), tmp_path / "cache")
    assert {path for path, _ in data.skipped} == {"broken.dcm, slice 0", "cut.nii.gz, slice 0"}


def test_no_name_of_a_patient_is_prepared(tmp_path):
    for number in range(4):
        save_dicom(tmp_path / "in" / f"{number}", ramp(6, 5), PatientID=f"JaneRoe{number}", SeriesInstanceUID=f"1.{number}")
    load(config(tmp_path / "in"), tmp_path / "cache")
    content = b"".join(path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert content
    assert b"JaneRoe" not in content


@pytest.mark.parametrize("window", [(40,), (40, 0), (1, 2, 3)])
def test_a_window_has_a_centre_and_a_width(tmp_path, window):
    with pytest.raises(ConfigError, match=r"data\.window"):
        from vaejax.config import from_dict

        from_dict({"data": {"name": "volumes", "path": str(tmp_path), "window": window}})


def test_the_hippocampus_is_prepared_by_patient(real_data, tmp_path):
    data = load(config(real_data / "hippocampus_msd" / "images", image_size=(48, 48)), tmp_path / "cache")
    assert data.image_shape == (48, 48, 1)
    assert sum(split.n for split in data.splits.values()) > 3_000


# --- how volumes come in, and with which masks


def cut(folder: Path, **fields):
    return volumes.source(config(folder, **fields)).open()["train"]


@pytest.fixture
def three(tmp_path) -> Path:
    """Volumes of 10 slices, the i-th of the value 10 i, at 1 x 2 x 3 mm."""
    for number in range(3):
        save_nifti(
            tmp_path / "in" / f"{number}.nii", ramp(10)[None, None] * 10 + np.zeros((6, 4, 1), "i2"), np.diag([1, 2, 3, 1])
        )
    return tmp_path / "in"


def test_a_range_of_slices_is_taken(three):
    examples = cut(three, slice_range=(0.2, 0.5), window=(45, 90))
    assert examples.n == 9
    np.testing.assert_allclose([examples.read(i)[0, 0, 0] * 90 for i in range(3)], [20, 30, 40], rtol=1e-6)
    assert [path.rpartition(" ")[2] for path in examples.paths[:3]] == ["2", "3", "4"]


def test_slices_are_resampled_to_a_spacing(three):
    assert cut(three).read(0).shape == (4, 6, 1)
    assert cut(three, spacing=(1.0, 2.0)).read(0).shape == (8, 3, 1)
    assert cut(three, spacing=(2.0, 1.0), slice_axis=1).n == 12
    examples = cut(three, spacing=(2.0, 1.0, 6.0), window=(45, 90))  # every other slice, of two and a bit
    assert examples.n == 15
    middles = [examples.read(i)[0, 0, 0] * 90 for i in range(5)]
    np.testing.assert_allclose(middles[1:4], [25, 45, 65], atol=1e-4)


def test_a_spacing_needs_that_of_the_file(tmp_path):
    for name, place in (("a", 0.0), ("b", 1.0), ("c", 5.0)):
        save_dicom(tmp_path / "in" / name, ramp(3, 5), place, PixelSpacing=[1, 1])
    assert cut(tmp_path / "in", spacing=(2.0, 1.0)).n == 3
    with pytest.raises(DataError, match="the distance of its slices is unknown or not the same"):
        cut(tmp_path / "in", spacing=(2.0, 1.0, 1.0))


def test_a_block_has_its_slice_in_the_middle_and_neighbours_beside(three):
    examples = cut(three, block=3, window=(45, 90))
    blocks = np.stack([examples.read(i)[0, 0] for i in range(10)]) * 90
    np.testing.assert_allclose(blocks[[0, 4, 9]], [[0, 0, 10], [30, 40, 50], [80, 90, 90]], atol=1e-4)
    assert load(config(three, block=7), three.parent / "cache").image_shape == (4, 6, 7)


def test_colours_have_no_blocks(tmp_path):
    save_nifti(tmp_path / "a.nii", np.zeros((4, 4, 4), [(name, "u1") for name in "RGB"]))
    with pytest.raises(DataError, match="in colour"):
        cut(tmp_path, block=3)


def test_percentiles_of_all_volumes_are_recorded(tmp_path):
    rng = np.random.default_rng(0)
    voxels = [rng.normal(1000 * number, 100, (12, 12, 12)).astype(np.float32) for number in range(4)]
    for number, part in enumerate(voxels):
        save_nifti(tmp_path / "in" / f"{number}.nii", part)
    expected = np.percentile(voxels, stacks.PERCENTILES)
    data = load(config(tmp_path / "in", normalize="dataset"), tmp_path / "cache")
    np.testing.assert_allclose(data.window, expected, atol=5)
    examples = cut(tmp_path / "in", normalize="dataset")
    low, high = examples.window
    grey = np.clip((voxels[2][::-1, ::-1, 0].T - low) / (high - low), 0, 1)
    np.testing.assert_allclose(examples.read(24)[..., 0], grey, atol=1e-5)
    assert load(config(tmp_path / "in"), tmp_path / "cache").window is None


def test_each_way_to_cut_has_contents_of_its_own(three):
    """And the defaults of new fields leave those of old ones, so that runs outlive them."""
    ways = [{}, {"slice_range": (0.0, 0.9)}, {"spacing": (1, 1)}, {"spacing": (1, 2)}, {"block": 3}, {"normalize": "dataset"}]
    assert len({volumes.source(config(three, **way)).contents for way in ways}) == len(ways)
    assert volumes.source(config(three)).contents == volumes.source(config(three, slice_range=(0, 1), block=1)).contents


def test_a_volume_is_decoded_once(three, monkeypatch):
    from vaejax.datasets import nifti

    calls, decode = [], nifti.decode
    monkeypatch.setattr(nifti, "decode", lambda path: calls.append(path) or decode(path))
    load(config(three, slice_content=0.1, slice_axis=0), three.parent / "cache")
    assert len(calls) == 3


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_temporary_folder_is_blamed_and_not_the_cache(three, tmp_path, monkeypatch, workers):
    """/dev/full in the place of the files where slices wait: of the first, by a link that is there before."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    (folder / "0").symlink_to("/dev/full")
    make = tempfile.mkdtemp
    monkeypatch.setattr("tempfile.mkdtemp", lambda **asked: str(folder) if asked["prefix"] == "vaejax-" else make(**asked))
    with pytest.raises(DataError, match=r"^TMPDIR=.*No space left.*set the environment variable TMPDIR"):
        load(config(three, workers=workers), tmp_path / "cache")


def test_masks_are_cut_and_turned_with_their_images(tmp_path):
    """An image that is its own mask, in any orientation, at any spacing: one is where the other is."""
    rng = np.random.default_rng(0)
    for number in range(3):
        classes = (rng.uniform(size=(8, 9, 5)) > 0.5).astype(np.uint8) * (number + 1)
        affine = np.array([[0, 0, -3.0, 9], [-1, 0, 0, 7], [0, 2, 0, 5], [0, 0, 0, 1]])
        save_nifti(tmp_path / "in" / "a" / f"{number}.nii.gz", classes.astype(np.float32), affine)
        save_nifti(tmp_path / "masks" / "a" / f"{number}.nii", classes, affine)
    masks = str(tmp_path / "masks")
    for axis in range(3):
        examples = cut(tmp_path / "in", masks=masks, slice_axis=axis, window=(2, 4))
        for i in range(examples.n):
            mask = examples.segmentation(i)
            assert mask.dtype == np.uint8
            np.testing.assert_allclose(examples.read(i)[..., 0] * 4, mask, atol=1e-6)
    coarse = cut(tmp_path / "in", masks=masks, window=(2, 4), spacing=(2.0, 1.5), block=3)
    assert coarse.segmentation(0).shape == coarse.read(0).shape[:2]
    assert set(np.unique(coarse.segmentation(0))) <= {0, 1}


def _moved(affine: np.ndarray) -> np.ndarray:
    return affine + 0.5 * np.eye(4, k=3)


@pytest.mark.parametrize(
    ("voxels", "affine", "message"),
    [(np.zeros((6, 4, 9), "u1"), None, "its mask: 9 x 4 x 6 slices, rows and columns; expected 10 x 4 x 6"),
     (np.zeros((6, 4, 10), "u1"), _moved(np.diag([1.0, 2, 3, 1])), "lies elsewhere"),
     (np.full((6, 4, 10), 0.5), None, "no classes"), (np.full((6, 4, 10), 256.0), None, "no classes"),
     (None, None, "no mask of this relative path")],
    ids=["shape", "affine", "fractions", "large", "missing"],
)  # fmt: skip
def test_a_mask_that_does_not_fit_is_told_like_an_unreadable_image(three, voxels, affine, message):
    masks = three.parent / "masks"
    for number in range(3 if voxels is not None else 2):
        fits = number < 2
        mask = np.zeros((6, 4, 10), "u1") if fits else voxels
        save_nifti(masks / f"{number}.nii", mask, np.diag([1, 2, 3, 1]) if fits or affine is None else affine)
    examples = cut(three, masks=str(masks))
    assert examples.n == 21
    for read in (examples.read, examples.segmentation):
        with pytest.raises(DataError, match=message):
            read(20)


def test_masks_are_elsewhere_one_a_volume_and_of_nifti(three, tmp_path):
    with pytest.raises(DataError, match=r"data\.masks=.*expected a folder"):
        cut(three, masks=str(tmp_path / "none"))
    (three / "labels").mkdir()
    with pytest.raises(DataError, match=r"found one inside data\.path, so that its files count as images"):
        cut(three, masks=str(three / "labels"))
    for suffix in (".nii", ".nii.gz"):
        save_nifti(tmp_path / "twice" / f"1{suffix}", np.zeros((6, 4, 10), "u1"))
    with pytest.raises(DataError, match=r"expected one mask of an image, found 1\.nii and 1\.nii\.gz"):
        cut(three, masks=str(tmp_path / "twice"))
    save_dicom(tmp_path / "dicom" / "a", ramp(3, 5))
    with pytest.raises(DataError, match=r"no mask of this relative path"):
        cut(tmp_path / "dicom", masks=str(three))


def test_other_masks_are_other_contents(three, tmp_path):
    contents = set()
    for value in range(2):
        for number in range(3):
            save_nifti(tmp_path / "masks" / f"{number}.nii", np.full((6, 4, 10), value, "u1"))
        contents.add(volumes.source(config(three, masks=str(tmp_path / "masks"))).contents)
    assert len(contents | {volumes.source(config(three)).contents}) == 3


@pytest.mark.parametrize("fields", [{"slice_range": (0.5, 0.5)}, {"slice_range": (0.1,)}, {"spacing": (1.0,)}, {"block": 4}])
def test_fields_of_volumes_have_their_number_of_values(tmp_path, fields):
    from vaejax.config import from_dict

    with pytest.raises(ConfigError, match=rf"data\.{next(iter(fields))}=.*expected"):
        from_dict({"data": {"name": "volumes", "path": str(tmp_path), **fields}})


def test_labels_of_the_hippocampus_lie_on_their_images(real_data):
    folder = real_data / "hippocampus_msd"
    examples = cut(folder / "images", masks=str(folder / "labels"), spacing=(1.0, 1.0), slice_range=(0.4, 0.6))
    assert examples.n > 500
    classes = [set(np.unique(examples.segmentation(i))) for i in range(0, examples.n, 10)]
    assert set.union(*classes) == {0, 1, 2}
    assert all(examples.segmentation(i).shape == examples.read(i).shape[:2] for i in range(0, examples.n, 10))
