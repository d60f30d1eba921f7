"""Which mask is whose, by paths alone; and masks of DICOM series, in every form that they come in."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from volumes_test import save_dicom

from vaejax import studies
from vaejax.config import DataConfig
from vaejax.datasets import DataSet, dicom, load, volumes
from vaejax.datasets.masks import masks_in, of_files, stem
from vaejax.datasets.source import Examples
from vaejax.errors import DataError

ROW, COLUMN = np.array([0.8, 0.6, 0.0]), np.array([-0.36, 0.48, -0.8])
NORMAL = np.cross(ROW, COLUMN)
SPACING = (2.5, 0.75, 1.5)
"""Between slices, rows and columns, mm."""
FIRST = np.array([-20.125, 33.0, 7.5])
SHAPE = (6, 8, 10)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a/b.png", "a/b"), ("a.b/c.nii.gz", "a.b/c"), ("A.NII.GZ", "A"), ("a.nii", "a"), ("a.Nii.gZ", "a"), ("a", "a"),
     ("a.b/c", "a.b/c"),      ("1.2.840.10008.17", "1.2.840.10008.17"),
     ("1.2.840.17.dcm", "1.2.840.17"), ("x/IM.0001", "x/IM.0001"), ("a.v1.tiff", "a.v1"),
     ("a.gz", "a"), ("anii.gz", "anii"), ("p1.nii/a.dcm", "p1.nii/a")],
)  # fmt: skip
def test_a_stem_has_no_suffix_and_no_more_is_cut(name, expected):
    assert stem(name) == expected


@given(st.lists(st.integers(0, 99), min_size=2, max_size=8), st.sampled_from(["", ".dcm", ".nii", ".NII.GZ", ".png", ".jp2"]))
def test_names_that_are_uids_stay_apart(numbers, suffix):
    name = ".".join(map(str, numbers))
    assert stem(f"scan/{name}{suffix}") == f"scan/{name}"


def files(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_masks_go_by_the_file_then_by_its_folder_then_by_all_that_lies_there(tmp_path):
    names = ("p1/a.dcm", "p2.nii.gz", "p3/x", "p3/y", "p3/b.png", "p3/z/w", "p4/a.nii", "p5/a.nii.gz", "notes.md")
    folder = files(tmp_path / "masks", *names)
    (tmp_path / "in").mkdir()
    found = of_files(
        ["p1/a.dcm", "p1/b.dcm", "p2/a", "p2/1.2.3", "p3/a", "p4/a", "p4/b", "p5/a.nii", "p5/b.nii", "p6/a"],
        masks_in(folder, tmp_path / "in"),
    )
    names = {name: [path.relative_to(folder).as_posix() for path in paths] for name, paths in found.items()}
    assert names == {
        "p1/a.dcm": ["p1/a.dcm"], "p1/b.dcm": ["p1/a.dcm"], "p2/a": ["p2.nii.gz"], "p2/1.2.3": ["p2.nii.gz"],
        "p3/a": ["p3/x", "p3/y"], "p4/a": ["p4/a.nii"], "p5/a.nii": ["p5/a.nii.gz"],
    }  # fmt: skip


# --- masks of series


def classes_at(left: np.ndarray) -> np.ndarray:
    """Of points in mm to the left, back and head, [..., 3]: their distances from the first, in steps, tell them apart."""
    steps = np.stack([NORMAL, COLUMN, ROW], axis=1) / SPACING
    return (np.rint((left - FIRST) @ steps) @ [1, 2, 3] % 7).astype(np.uint8)


def places(slices: int) -> np.ndarray:
    """Of the first voxels of the slices, mm."""
    return FIRST + np.arange(slices)[:, None] * SPACING[0] * NORMAL


def grid() -> np.ndarray:
    """The classes of the series' voxels."""
    rows, columns = np.mgrid[: SHAPE[1], : SHAPE[2]][..., None]
    return np.stack([classes_at(place + rows * SPACING[1] * COLUMN + columns * SPACING[2] * ROW) for place in places(SHAPE[0])])


def save_slice(path: Path, number: int, pixels: np.ndarray, series: str, move: float = 0.0, **other) -> None:
    fields = {"ImagePositionPatient": [round(float(x), 6) for x in places(SHAPE[0])[number] + move * NORMAL],
              "ImageOrientationPatient": [*ROW, *COLUMN], "PixelSpacing": [SPACING[1], SPACING[2]]}  # fmt: skip
    save_dicom(path, pixels, **{"SeriesInstanceUID": series, "PatientID": series, **fields, **other})


@pytest.fixture
def series(tmp_path) -> Path:
    """Three series that are their own masks, their files named as UIDs, in no order."""
    for patient in range(3):
        for number, pixels in enumerate(grid()):
            name = f"p{patient}/ct/1.2.{(5 * number) % 6}"
            save_slice(tmp_path / "in" / name, number, pixels.astype(np.int16), f"1.{patient}")
    return tmp_path / "in"


def by_name(masks: Path, patient: int) -> None:
    for number, pixels in enumerate(grid()):
        save_slice(masks / f"p{patient}/ct/1.2.{(5 * number) % 6}.dcm", number, pixels.astype(np.int16), f"2.{patient}")


def by_position(masks: Path, patient: int) -> None:
    for number, pixels in enumerate(grid()):
        save_slice(masks / f"p{patient}/ct/{9 - number}", number, pixels.astype(np.int16), f"2.{patient}")


def as_pictures(masks: Path, patient: int) -> None:
    for number, pixels in enumerate(grid()):
        (masks / f"p{patient}/ct").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(masks / f"p{patient}/ct/1.2.{(5 * number) % 6}.png")


def as_nifti(codes: str, masks: Path, patient: int) -> None:
    """Its axes as `codes` say; every voxel has the class of where it lies in the world, which runs to the right and front."""
    steps = {"x": SPACING[2] * ROW, "y": SPACING[1] * COLUMN, "z": SPACING[0] * NORMAL}
    lengths = dict(zip("zyx", SHAPE, strict=True))
    affine, start = np.eye(4), FIRST.copy()
    for axis, code in enumerate(codes):
        step, n = steps[code.lower()], lengths[code.lower()]
        start += (n - 1) * step * code.isupper()
        affine[:3, axis] = -step if code.isupper() else step
    affine[:3, 3] = start
    shape = [lengths[code.lower()] for code in codes]
    left = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    (masks / f"p{patient}").mkdir(parents=True, exist_ok=True)
    world = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    nibabel.save(nibabel.Nifti1Image(classes_at(left), world), masks / f"p{patient}" / "ct.nii.gz")


def cut(images: Path, **fields) -> Examples:
    return volumes.source(DataConfig(name="volumes", path=str(images), window=(4, 8), **fields)).open()["train"]


WAYS = {"names": by_name, "positions": by_position, "pictures": as_pictures} | {
    codes: lambda *place, codes=codes: as_nifti(codes, *place) for codes in ("xyz", "xYz", "Zyx", "yxZ", "XzY")
}


@pytest.mark.parametrize("way", WAYS)
def test_a_mask_of_a_series_lies_on_its_image(series, tmp_path, way):
    for patient in range(3):
        WAYS[way](tmp_path / "masks", patient)
    examples = cut(series, masks=str(tmp_path / "masks"))
    assert examples.n == 3 * SHAPE[0]
    for i in range(examples.n):
        np.testing.assert_array_equal(examples.segmentation(i), grid()[i % SHAPE[0]])
        np.testing.assert_allclose(examples.read(i)[..., 0] * 8, grid()[i % SHAPE[0]], atol=1e-6)


def test_masks_of_series_are_prepared_and_resampled_with_their_images(series, tmp_path):
    for patient, way in enumerate((by_name, by_position, WAYS["Zyx"])):
        way(tmp_path / "masks", patient)
    fields = {"masks": str(tmp_path / "masks"), "validation_fraction": 0.3, "spacing": (0.75, 0.75, 1.25), "block": 3}
    data = load(DataConfig(name="volumes", path=str(series), window=(4, 8), **fields), tmp_path / "cache")
    rows = [split.read(np.arange(split.n)) for split in data.splits.values()]
    assert {row["segmentation"].shape for row in rows} == {(12, 8, 20)}
    assert len({row["segmentation"].tobytes() for row in rows}) == 1  # whatever form they came in


def fewer(masks: Path) -> None:
    by_position(masks, 2)
    (masks / "p2/ct/9").unlink()


def moved(masks: Path) -> None:
    for number, pixels in enumerate(grid()):
        save_slice(masks / f"p2/ct/{number}", number, pixels.astype(np.int16), "2.2", move=0.5)


def stretched(masks: Path) -> None:
    for number, pixels in enumerate(grid()):
        spacing = [SPACING[1], 1.1 * SPACING[2]]
        save_slice(masks / f"p2/ct/{number}", number, pixels.astype(np.int16), "2.2", PixelSpacing=spacing)


def inverse(masks: Path) -> None:
    for number, pixels in enumerate(grid()):
        fields = {"PhotometricInterpretation": "MONOCHROME1", "PixelRepresentation": 0, "BitsStored": 8, "HighBit": 7}
        save_slice(masks / f"p2/ct/{number}", number, 255 * (pixels > 3).astype(np.int16), "2.2", **fields)


def moved_nifti(masks: Path) -> None:
    as_nifti("xyz", masks, 2)
    path = masks / "p2" / "ct.nii.gz"
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine + 0.3 * np.eye(4, k=3)), path)


def one_picture(masks: Path) -> None:
    as_pictures(masks, 2)
    (masks / "p2/ct/1.2.3.png").unlink()


def large(masks: Path) -> None:
    for number, pixels in enumerate(grid()):
        save_slice(masks / f"p2/ct/{number}", number, 300 * pixels.astype(np.int16), "2.2")


@pytest.mark.parametrize(
    ("make", "message"),
    [(fewer, "its mask: 5 x 8 x 10 slices, rows and columns; expected 6 x 8 x 10"), (moved, "its mask: lies elsewhere"),
     (moved_nifti, "its mask: lies elsewhere"), (stretched, "its mask: lies elsewhere"), (inverse, "its mask: in MONOCHROME1"),
     (one_picture, "no mask .* for 1 of its 6 files"), (large, "no classes"),
     (lambda masks: None, "no mask of this relative path in data.masks$")],
    ids=["fewer", "moved", "moved NIfTI", "stretched", "inverse", "one picture", "large", "none"],
)  # fmt: skip
def test_a_mask_that_does_not_fit_its_series_is_told(series, tmp_path, make, message):
    for patient in range(2):
        by_name(tmp_path / "masks", patient)
    make(tmp_path / "masks")
    examples = cut(series, masks=str(tmp_path / "masks"))
    assert examples.n == 2 * SHAPE[0] + 1
    with pytest.raises(DataError, match=message):
        examples.segmentation(examples.n - 1)


def test_a_nifti_mask_needs_slices_at_equal_distances(series, tmp_path):
    (series / "p2/ct/1.2.5").unlink()
    for patient in range(3):
        as_nifti("xyz", tmp_path / "masks", patient)
    examples = cut(series, masks=str(tmp_path / "masks"))
    with pytest.raises(DataError, match="its mask: of a series whose slices have no places at equal distances"):
        examples.segmentation(examples.n - 1)


@pytest.mark.parametrize("placed", ["in", "masks"])
@pytest.mark.parametrize("alike", [True, False], ids=["alike", "otherwise"])
def test_where_one_side_has_no_places_files_are_paired_by_name(tmp_path, placed, alike):
    for number, pixels in enumerate(grid()[:4]):
        for folder, name in (("in", f"IM{number}"), ("masks", f"IM{number}" if alike else f"mask{number}")):
            place = {"ImagePositionPatient": [0, 0, -3.0 * number], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
            fields = place if folder == placed else dict.fromkeys(place)
            save_dicom(tmp_path / folder / "p" / name, pixels.astype(np.int16), **fields)
    if not alike:
        with pytest.raises(DataError, match="its mask: its places are unknown"):
            cut(tmp_path / "in", masks=str(tmp_path / "masks"))
        return
    examples = cut(tmp_path / "in", masks=str(tmp_path / "masks"))
    found = np.stack([examples.segmentation(i) for i in range(examples.n)])
    np.testing.assert_array_equal(found, grid()[:4][::-1] if placed == "in" else grid()[:4])
    for i, mask in enumerate(found):
        np.testing.assert_allclose(examples.read(i)[..., 0] * 8, mask, atol=1e-6)


@pytest.mark.parametrize("codes", ["LPS", "ASR", "PIL"])
def test_the_axes_of_a_nifti_mask_may_run_otherwise_than_those_of_its_image(tmp_path, codes):
    classes = np.random.default_rng(0).integers(0, 3, (5, 6, 7)).astype(np.uint8)
    affine = np.array([[0, 0, -3.0, 9], [-1, 0, 0, 7], [0, 2, 0, 5], [0, 0, 0, 1]])
    image = nibabel.Nifti1Image(classes, affine)
    turn = nibabel.orientations.ornt_transform(nibabel.io_orientation(affine), nibabel.orientations.axcodes2ornt(codes))
    for name, one in (("in", nibabel.Nifti1Image(4.0 * classes, affine)), ("masks", image.as_reoriented(turn))):
        (tmp_path / name).mkdir()
        nibabel.save(one, tmp_path / name / "a.nii.gz")
    for axis in range(3):
        examples = cut(tmp_path / "in", masks=str(tmp_path / "masks"), slice_axis=axis)
        for i in range(examples.n):
            np.testing.assert_allclose(examples.read(i)[..., 0] * 2, examples.segmentation(i))


def test_a_result_of_real_series_is_their_mask(real_data, tmp_path):
    """What `vaejax.studies` writes of three MR studies, under names of its own, lies on them when it comes back as masks."""
    root = real_data / "hippocampus_msd" / "dicom"
    expected = []
    for folder in sorted(path for path in root.glob("*/*") if path.is_dir()):
        shape = dicom.read_header(next(folder.iterdir())).shape[1:]
        (study,) = studies.read(folder, DataConfig(name="volumes", path="unused"), DataSet({}, shape, 1.0, None, "", ()))
        mask = (study.images[..., 0] > 0.5).astype(np.uint8)
        (study.save(tmp_path / "made", study.back(mask), "mask")[0].parent).rename(tmp_path / folder.name)
        (tmp_path / "masks" / folder.parent.name).mkdir(parents=True)
        (tmp_path / folder.name).rename(tmp_path / "masks" / folder.parent.name / folder.name)
        expected.extend(mask)
    examples = volumes.source(DataConfig(name="volumes", path=str(root), masks=str(tmp_path / "masks"))).open()["train"]
    assert examples.n == len(expected) == 107
    for i, mask in enumerate(expected):
        np.testing.assert_array_equal(examples.segmentation(i), mask)
        np.testing.assert_array_equal(examples.read(i)[..., 0] > 0.5, mask)
