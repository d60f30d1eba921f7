"""A table of files, and folders of masks: what belongs to what, and every way to get it wrong."""

import csv
import json
import pickle
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset

from vaejax.config import DataConfig, from_dict
from vaejax.datasets import image_folder, load, manifest
from vaejax.datasets.source import Examples
from vaejax.datasets.splits import complete
from vaejax.errors import ConfigError, DataError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (12, 6, 5), dtype=np.uint8)


@pytest.fixture
def files(tmp_path) -> Path:
    """Twelve images `i.png` (of several kinds), and masks of two classes."""
    (tmp_path / "masks").mkdir()
    for i, pixels in enumerate(IMAGES):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png", "TIFF" if i % 3 == 1 else "PNG")
        Image.fromarray(np.uint8(pixels > 128) * 255).save(tmp_path / "masks" / f"{i}.png")
    np.save(tmp_path / "0.npy", IMAGES[0])
    return tmp_path


def table(folder: Path, rows: list[dict], kind: str = "csv") -> DataConfig:
    path = folder / f"table.{kind}"
    if kind == "json":
        path.write_text(json.dumps(rows))
    else:
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    return DataConfig(name="manifest", path=str(path), validation_fraction=0.25)


def stack(part: Examples) -> np.ndarray:
    return np.stack([part.read(i)[..., 0] for i in range(part.n)])


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_a_table_says_all_that_is_known(files, kind):
    names = ["train"] * 8 + ["val"] * 2 + ["test"] * 2
    rows = [
        {"path": f"./{i}.png", "patient": f"p{i // 2}", "label": "ab"[i % 2], "mask": f"masks/{i}.png", "split": names[i]}
        for i in range(12)
    ]
    source = manifest.source(table(files, rows, kind))
    assert source.label_names == ("a", "b")
    found = source.open()
    assert {split: part.n for split, part in found.items()} == {"train": 8, "val": 2, "test": 2}
    start = 0
    for part in found.values():
        chosen = np.arange(start, start + part.n)
        np.testing.assert_array_equal(stack(part), IMAGES[chosen])
        np.testing.assert_array_equal([part.segmentation(i) for i in range(part.n)], IMAGES[chosen] > 128)
        np.testing.assert_array_equal(part.labels, chosen % 2)
        assert part.paths == tuple(f"{i}.png" for i in chosen)
        np.testing.assert_array_equal(part.patients == part.patients[0], chosen // 2 == start // 2)
        start += part.n
    assert complete(found, 0.1, source.label_names) is found


def test_paths_alone_are_enough_and_splits_are_made(files):
    config = table(files, [{"path": "0.npy"}, *({"path": f"{i}.png"} for i in range(1, 12))])
    data = load(config, files / "cache")
    assert {split: part.n for split, part in data.splits.items()} == {"train": 6, "val": 3, "test": 3}
    assert data.label_names is None


def test_patients_are_kept_whole_and_their_names_go_nowhere(files):
    rows = [{"path": f"{i}.png", "patient": f"Jane Roe {i // 2}", "label": i % 4 // 2} for i in range(12)]
    source = manifest.source(table(files, rows))
    splits = complete(source.open(), 0.34, source.label_names)
    assert {split: part.n for split, part in splits.items()} == {"train": 4, "val": 4, "test": 4}
    assert source.label_names is None
    for part in splits.values():
        assert sorted(part.labels.tolist()) == [0, 0, 1, 1]
        assert all(
            int(path[:-4]) // 2 == int(other[:-4]) // 2 for path, other in zip(part.paths[::2], part.paths[1::2], strict=True)
        )
    load(table(files, [row | {"label": "a"} for row in rows]), files / "cache")
    content = b"".join(path.read_bytes() for path in (files / "cache").rglob("*") if path.is_file())
    assert content
    assert b"Jane Roe" not in content


@pytest.mark.parametrize(("labels", "expected"), [(["10", "2", "-1"], [10, 2, -1]), ([0, 1, 0], [0, 1, 0])])
def test_whole_numbers_are_the_labels_themselves(files, labels, expected):
    rows = [{"path": f"{i}.png", "label": label} for i, label in enumerate(labels)]
    source = manifest.source(table(files, rows, "json"))
    assert source.label_names is None
    assert source.open()["train"].labels.tolist() == expected


def rows_of(count: int, **columns) -> list[dict]:
    return [{"path": f"{i}.png", **{name: values[i] for name, values in columns.items()}} for i in range(count)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"path": "0.png", "lable": "a"}], r"row 1: expected the columns path, patient, .*, found the column 'lable'"),
        ([{"patient": "a"}], "expected path in every row, found none in 1 of 1: row 1"),
        ([{"path": "0.png"}, {"path": ""}], "expected path in every row, found none in 1 of 2: row 2"),
        (
            rows_of(9, label=["a", *[""] * 7, "b"]),
            r"label in every row or in none, found none in 7 of 9: row 2, .*row 6, \.\.\.",
        ),
        (rows_of(3, patient=["a", "", "b"]), "patient in every row or in none, found none in 1 of 3: row 2"),
        (rows_of(2, mask=["masks/0.png", ""]), "mask in every row or in none, found none in 1 of 2: row 2"),
        (rows_of(2, split=["train", ""]), "split in every row or in none"),
        (rows_of(3, split=["train", "dev", "test"]), "expected the splits train, val and test, found 'dev'"),
        (rows_of(2, split=["val", "test"]), "examples in the split train, found none"),
        (rows_of(2, label=["a", "1"]), "all names or all whole numbers, found 'a' and '1'"),
        ([{"path": "0.png"}, {"path": "./0.png"}], "every path once, found 1 again: 0.png"),
        ([{"path": "../0.png"}], r"inside of the table's folder, found others: \.\./0\.png"),
        ([{"path": "masks/../../x.png"}], "inside of the table's folder"),
        ([{"path": "/etc/hosts"}], "inside of the table's folder, found others: /etc/hosts"),
        ([{"path": "0.png", "mask": "../m.png"}], "inside of the table's folder"),
        ([{"path": "0.png"}, {"path": "x.png"}, {"path": "y.png"}], r"found none in 2 of 3 places: x\.png, y\.png"),
        ([{"path": "0.png", "mask": "masks/x.png"}], r"found none in 1 of 2 places: masks/x\.png"),
        ([{"path": "masks"}], "found none in 1 of 1 places: masks"),
        ([{"path": "0.png"}, {"path": "table.csv"}], "expected images or volumes, found both: 0.png and table.csv"),
    ],
)
def test_a_table_that_contradicts_itself_is_refused(files, rows, message):
    with pytest.raises(DataError, match=message) as caught:
        manifest.source(table(files, rows)).open()
    assert str(caught.value).startswith(str(files / "table.csv"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "expected rows, found none"),
        ("t.csv", b"path\n", "expected rows, found none"),
        ("t.csv", b"path,label\n0.png,a,b\n", "row 1: .* found more fields than columns"),
        ("t.csv", b"path;label\n0.png;a\n", "found the column 'path;label'"),
        ("t.csv", b"path\n\xff\xfe.png\n", "expected a table in UTF-8"),
        ("t.csv", b'path\n"0.png\n', "expected a table in UTF-8"),
        ("t.json", b"{", "expected a table in UTF-8"),
        ("t.json", b"[" * 100_000, "expected a table in UTF-8"),
        ("t.json", b'{"path": "0.png"}', "expected a list of objects"),
        ("t.json", b'["0.png"]', "expected a list of objects"),
        ("t.json", b'[{"path": "0.png", "label": 1.5}]', "label: expected text or a whole number, found float"),
        ("t.json", b'[{"path": "0.png", "label": true}]', "label: expected text or a whole number, found bool"),
        ("t.json", b'[{"path": ["0.png"]}]', "path: expected text or a whole number, found list"),
        ("t.txt", b"path\n0.png\n", r"expected a table of files \(.csv or .json\), found another file"),
    ],
)
def test_a_file_that_is_no_table_is_refused(files, name, content, message):
    (files / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        manifest.source(DataConfig(name="manifest", path=str(files / name)))


def test_a_field_of_volumes_is_refused_of_images(files):
    config = table(files, rows_of(3))
    with pytest.raises(ConfigError, match=r"data\.block=3: is of volumes .* and the table lists images"):
        manifest.source(DataConfig(name="manifest", path=config.path, block=3))


def test_no_table_is_told(tmp_path):
    with pytest.raises(DataError, match=r"found none\. Check data\.path"):
        manifest.source(DataConfig(name="manifest", path=str(tmp_path / "t.csv")))


def test_a_patient_in_two_splits_is_refused(files):
    rows = rows_of(3, patient=["a", "b", "a"], split=["train", "val", "test"])
    with pytest.raises(DataError, match="found 1 in several") as caught:
        load(table(files, rows), files / "cache")
    assert caught.value.__notes__ == ["such as 0.png (train) and 2.png (test)"]


def test_contents_follow_the_table_and_every_file(files):
    rows = rows_of(3, mask=[f"masks/{i}.png" for i in range(3)])
    contents = [manifest.source(table(files, rows)).contents]
    for name in ("1.png", "masks/2.png"):
        (files / name).write_bytes((files / name).read_bytes() + b"x")
        contents.append(manifest.source(table(files, rows)).contents)
    contents.append(manifest.source(table(files, [row | {"label": "a"} for row in rows])).contents)
    assert len(set(contents)) == 4
    assert manifest.source(table(files, [row | {"label": "a"} for row in rows])).contents == contents[-1]


# --- volumes


def save_nifti(path: Path, voxels: np.ndarray) -> None:
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([-1.0, 1.0, 2.0, 1.0])), path)


def save_dicom(path: Path, frames: np.ndarray, patient: str, **fields) -> None:
    """A secondary capture of one frame, or several."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = uid.SecondaryCaptureImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = uid.generate_uid()
    data.Modality, data.PatientID, data.SeriesInstanceUID = "CR", patient, uid.generate_uid()
    data.NumberOfFrames, data.Rows, data.Columns = frames.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation = 7, 0
    data.PixelData = frames.astype(np.uint8).tobytes()
    for name, value in fields.items():
        setattr(data, name, value)
    data["PixelData"].VR = "OB"
    data.save_as(path, enforce_file_format=True)


def of_volumes(folder: Path, rows: list[dict], **fields) -> dict[str, Examples]:
    config = table(folder, rows)
    settings = {"window": (128, 255), **fields}
    return manifest.source(DataConfig(name="manifest", path=config.path, **settings)).open()


def test_slices_of_a_volume_share_its_row(tmp_path):
    for i in range(4):
        voxels = np.full((5, 4, 3), 10 * i, np.int16) + np.arange(3, dtype=np.int16)
        save_nifti(tmp_path / f"{i}.nii.gz", voxels)
        save_nifti(tmp_path / f"mask{i}.nii.gz", np.uint8(voxels % 2 * (i + 1)))
    order = [2, 0, 3, 1]  # not that of the names
    rows = [
        {
            "path": f"{i}.nii.gz",
            "mask": f"mask{i}.nii.gz",
            "label": f"k{i}",
            "patient": f"p{i % 2}",
            "split": ["train", "test"][i % 2],
        }
        for i in order
    ]
    found = of_volumes(tmp_path, rows)
    for split, owners in (("train", [2, 0]), ("test", [3, 1])):
        part = found[split]
        values = np.concatenate([10 * i + np.arange(3) for i in owners])
        np.testing.assert_allclose(stack(part)[:, 0, 0], (values - 0.5) / 255.0, atol=2e-3)
        classes = [part.segmentation(i)[0, 0] for i in range(part.n)]
        np.testing.assert_array_equal(classes, values % 2 * (values // 10 + 1))
        assert part.labels.tolist() == np.repeat(owners, 3).tolist()
        assert len(set(part.patients.tolist())) == 1
    assert found["train"].patients[0] != found["test"].patients[0]


def test_dicom_files_are_of_their_headers_patient_unless_told(tmp_path):
    for i in range(4):
        save_dicom(tmp_path / f"{i}.dcm", np.full((1 + i, 5, 4), 60 * i), f"JaneRoe{i // 2}")
        np.save(tmp_path / f"{i}.npy", np.uint8(np.full((5, 4), i)))
    rows = [{"path": f"{i}.dcm"} for i in range(4)]
    (part,) = of_volumes(tmp_path, rows).values()
    assert part.patients.tolist() == [0] * 3 + [1] * 7
    np.testing.assert_allclose(stack(part)[:, 0, 0], np.repeat([0, 60, 120, 180], [1, 2, 3, 4]) / 255.0, atol=3e-3)
    (told,) = of_volumes(tmp_path, [row | {"patient": "ab"[i % 2]} for i, row in enumerate(rows)]).values()
    assert told.patients.tolist() == [0, 1, 1, 0, 0, 0, 1, 1, 1, 1]
    (one,) = of_volumes(tmp_path, [{"path": "0.dcm", "mask": "0.npy"}]).values()
    np.testing.assert_array_equal(one.segmentation(0), np.zeros((5, 4)))


@pytest.mark.parametrize(
    ("path", "mask", "message"),
    [
        ("3.dcm", "mask.npy", "only a single frame"),
        ("0.dcm", "mask.nii", "no places at equal distances"),
        ("0.dcm", "small.npy", "2 x 2 pixels"),
    ],
)
def test_a_mask_that_does_not_fit_its_dicom_file_is_told(tmp_path, path, mask, message):
    for i in (0, 3):
        save_dicom(tmp_path / f"{i}.dcm", np.zeros((1 + i, 5, 4)), "Doe")
    np.save(tmp_path / "mask.npy", np.zeros((5, 4), np.uint8))
    np.save(tmp_path / "small.npy", np.zeros((1, 2), np.uint8).repeat(2, 0))
    save_nifti(tmp_path / "mask.nii", np.zeros((5, 4, 1), np.uint8))
    with pytest.raises(DataError, match=message):
        of_volumes(tmp_path, [{"path": path, "mask": mask}])


@pytest.fixture
def series(tmp_path) -> list[dict]:
    """Rows of two DICOM series of three slices, alternating, the slices of the first from the last to the first."""
    uids = [uid.generate_uid() for _ in range(2)]
    rows = []
    for i in range(6):
        place = i // 2 if i % 2 else 2 - i // 2
        where = {"ImagePositionPatient": [0, 0, place], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
        value = 100 * (i % 2) + 10 * place
        save_dicom(tmp_path / f"{i}.dcm", np.full((1, 5, 4), value), f"p{i % 2}", SeriesInstanceUID=uids[i % 2], **where)
        np.save(tmp_path / f"{i}.npy", np.full((5, 4), value // 10, np.uint8))
        said = {"patient": f"p{i % 2}", "label": "ba"[i % 2], "split": ["train", "test"][i % 2]}
        rows.append({"path": f"{i}.dcm", "mask": f"{i}.npy", **said})
    return rows


def test_files_of_one_series_are_one_volume_sorted_by_position(tmp_path, series):
    found = of_volumes(tmp_path, series, block=3)
    for number, split in enumerate(("train", "test")):
        part = found[split]
        own = np.array([[0, 0, 10], [0, 10, 20], [10, 20, 20]]) + 100 * number
        np.testing.assert_allclose(np.stack([part.read(i)[0, 0] for i in range(part.n)]), own / 255.0, atol=2e-3)
        assert [part.segmentation(i)[0, 0] for i in range(3)] == [10 * number, 10 * number + 1, 10 * number + 2]
        assert part.labels.tolist() == [1 - number] * 3
        assert len(set(part.patients.tolist())) == 1
    whole = [row | {"mask": f"{i % 2}.nii"} for i, row in enumerate(series)]
    for i in range(2):
        save_nifti(tmp_path / f"{i}.nii", np.zeros((4, 5, 3), np.uint8))
    with pytest.raises(DataError, match="no places at equal distances"):  # these files tell no spacing of pixels
        of_volumes(tmp_path, whole)["train"].segmentation(0)


@pytest.mark.parametrize("field", ["patient", "label", "split", "mask"])
def test_a_series_of_one_mind(tmp_path, series, field):
    series[4][field] = series[1][field] if field != "mask" else series[0][field]
    message = rf"table\.csv: expected one {field} of a DICOM series, found 2 in its 3 files, as of 0\.dcm and [24]\.dcm"
    with pytest.raises(DataError, match=message):
        of_volumes(tmp_path, series)


# --- folders of masks


def folder(files: Path, **fields) -> DataConfig:
    """The images of `files` in a folder of their own, of two classes."""
    for i in range(12):
        for kind in ("images", "masks"):
            place = files / "data" / kind / "ab"[i % 2]
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{i}.png").write_bytes((files / ("masks" if kind == "masks" else "") / f"{i}.png").read_bytes())
    root = files / "data"
    return DataConfig(name="image_folder", path=str(root / "images"), masks=str(root / "masks"), **fields)


def test_the_mask_of_an_image_has_its_relative_path_and_any_suffix(files):
    config = folder(files)
    np.save(files / "data" / "masks" / "a" / "4.npy", np.full((6, 5), 3))
    (files / "data" / "masks" / "a" / "4.png").unlink()
    (files / "data" / "masks" / "b" / "of_nobody.png").write_bytes(b"")
    part = image_folder.source(config).open()["train"]
    for i, path in enumerate(part.paths):
        number = int(Path(path).stem)
        expected = np.full((6, 5), 3) if number == 4 else IMAGES[number] > 128
        np.testing.assert_array_equal(part.segmentation(i), expected)
        np.testing.assert_array_equal(part.read(i)[..., 0], IMAGES[number])


def test_examples_of_files_can_be_read_by_other_processes(files):
    part = pickle.loads(pickle.dumps(image_folder.source(folder(files)).open()["train"]))
    assert part.read(3).shape == (6, 5, 1)
    assert part.segmentation(3).shape == (6, 5)


def test_masks_count_in_the_contents_and_without_them_nothing_changes(files):
    config = folder(files)
    without = DataConfig(name="image_folder", path=config.path)
    first = image_folder.source(config).contents
    assert image_folder.source(without).open()["train"].segmentation is None
    assert image_folder.source(without).contents != first
    path = files / "data" / "masks" / "a" / "0.png"
    path.write_bytes((files / "masks" / "1.png").read_bytes())
    assert image_folder.source(config).contents != first


def test_missing_masks_are_counted_and_named(files):
    config = folder(files)
    for i in range(0, 12, 2):
        (files / "data" / "masks" / "a" / f"{i}.png").unlink()
    with pytest.raises(
        DataError, match=r"a mask of each image, found none of 6 of 12: a/0\.png, a/10\.png, .*, \.\.\.\. Add them"
    ):
        image_folder.source(config)


def _no_masks(root: Path) -> None:
    (root / "masks").rename(root / "elsewhere")


def _masks_inside(root: Path) -> None:
    (root / "masks").rename(root / "images" / "masks")
    (root / "masks").symlink_to(root / "images" / "masks")


def _two_masks(root: Path) -> None:
    np.save(root / "masks" / "a" / "0.npy", np.zeros((6, 5)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_no_masks, "data.masks=.*: expected a folder of masks beside the images, found none"),
        (_masks_inside, "beside the images, found one inside data.path"),
        (_two_masks, "expected one mask of an image, found 0.npy and 0.png"),
    ],
)
def test_a_folder_of_masks_that_cannot_be_used_says_why(files, change, message):
    config = folder(files)
    change(files / "data")
    with pytest.raises(DataError, match=message):
        image_folder.source(config)


def test_a_mask_of_another_size_is_told_when_it_is_read(files):
    config = folder(files)
    Image.fromarray(np.uint8(IMAGES[0].T > 9)).save(files / "data" / "masks" / "a" / "0.png")
    part = image_folder.source(config).open()["train"]
    with pytest.raises(DataError, match="its mask: a mask of 5 x 6 pixels; expected 6 x 5"):
        part.segmentation(0)


def test_masks_are_of_sources_that_have_such_a_folder():
    with pytest.raises(ConfigError, match=r"data\.masks='m': .*'manifest'; arrays and a manifest name their own"):
        from_dict({"data": {"name": "manifest", "path": "t.csv", "masks": "m"}})
