"""What lies in a folder is counted rightly, told without names, and a configuration for it can be trained."""

import collections
import gzip
import json
import stat
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset

from vaejax import cli, config_file, experiment, inspection, inspection_report, runs, suggestion
from vaejax.config import Config, DataConfig, from_dict
from vaejax.datasets import Split, dicom, headers, load
from vaejax.datasets.guess import guess
from vaejax.errors import DataError
from vaejax.tally import Tally

NAME = "doe_jane"
"""In paths, and nowhere else."""


def save_png(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def save_dicom(path: Path, pixels: np.ndarray, **fields) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = uid.CTImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = uid.generate_uid()
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.PixelData = pixels.astype("<u2").tobytes()
    for name, value in fields.items():
        setattr(data, name, value)
    data["PixelData"].VR = "OW"
    data.save_as(path, enforce_file_format=True)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


@pytest.fixture
def folder(tmp_path) -> Path:
    """30 images of two classes in three splits; one of the test images is a training image, another damaged, one is flat."""
    root = tmp_path / "in"
    images = noise(30, 8, 8)
    images[20] = images[0]
    images[3] = 7
    for number, pixels in enumerate(images):
        split = "train" if number < 18 else "test" if number < 24 else "val"
        save_png(root / split / "ab"[number % 2] / f"{NAME}{number:02}.png", pixels)
    (root / "test" / "a" / f"{NAME}99.png").write_bytes(b"no image")
    return root


# --- which source


def _idx(root: Path) -> None:
    (root / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(struct.pack(">4B3I", 0, 0, 8, 3, 1, 2, 2) + bytes(4)))


def _nifti(root: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.eye(4)), root / "a.nii.gz")
    (root / "a.nii.gz").rename(root / "without_suffix.nii.gz")


def _dicom_without_suffix(root: Path) -> None:
    """One with its preamble, and one that begins with group 2, as old ones do."""
    save_dicom(root / "deep" / "IM0001", noise(4, 4))
    (root / "deep" / "IM0002").write_bytes((root / "deep" / "IM0001").read_bytes()[132:])


def _mixed(root: Path) -> None:
    save_dicom(root / "deep" / "IM0001", noise(4, 4))
    for number in range(2):
        save_png(root / f"{number}.png", noise(4, 4))


@pytest.mark.parametrize(
    ("make", "name", "why", "others"),
    [
        (_idx, "idx", "IDX files", 0),
        (_nifti, "volumes", "1 NIfTI files", 0),
        (_dicom_without_suffix, "volumes", "2 DICOM files", 0),
        (lambda root: save_png(root / "a" / "b.png", noise(2, 2)), "image_folder", "1 PNG files", 0),
        (lambda root: Image.fromarray(noise(2, 2)).save(root / "a.tif"), "image_folder", "1 TIFF files", 0),
        (lambda root: np.save(root / "a.npy", noise(2, 2)), "image_folder", "1 NPY files", 0),
        (_mixed, "image_folder", "2 PNG files, beside 1 others", 1),
    ],
)
def test_a_folder_is_told_by_its_files(tmp_path, make, name, why, others):
    make(tmp_path)
    assert guess(tmp_path) == (name, why, others)


@pytest.mark.parametrize(("keys", "name"), [(["train_images"], "medmnist"), (["images", "labels"], "arrays")])
def test_an_npz_is_told_by_its_arrays(tmp_path, keys, name):
    np.savez(tmp_path / "a.npz", **dict.fromkeys(keys, np.zeros(3)))
    assert guess(tmp_path / "a.npz").name == name


def test_a_table_is_a_manifest(tmp_path):
    for name in ("a.csv", "a.json"):
        (tmp_path / name).write_text("[]")
        assert guess(tmp_path / name).name == "manifest"


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda root: root / "absent", "found none"),
        (lambda root: root, "expected DICOM, NIfTI, PNG, JPEG, TIFF, NPY or IDX files"),
        (lambda root: (root / "one.dcm").write_bytes(b"") * 0 or root / "one.dcm", "Name the folder"),
        (lambda root: (root / "a.npz").write_bytes(b"\x93NUMPY") * 0 or root / "a.npz", "expected an .npz"),
        (lambda root: (root / "a.npz").write_bytes(b"PK") * 0 or root / "a.npz", "expected an .npz"),
        (lambda root: np.savez(root / "a.npz", x=1) or root, r"Name one of its files of \.npz"),
    ],
)
def test_what_no_source_reads_is_refused(tmp_path, make, told):
    with pytest.raises(DataError, match=told):
        guess(make(tmp_path))


# --- counts


@given(
    st.lists(
        arrays.arrays(st.sampled_from([np.uint8, np.uint16]), st.tuples(*[st.integers(1, 4)] * 2, st.sampled_from([1, 3]))),
        min_size=1,
        max_size=8,
    )
)
@settings(max_examples=60, deadline=None)
def test_running_counts_are_those_of_all_images_at_once(images):
    tally = Tally()
    for number, image in enumerate(images):
        tally.add("train", number, image)
    facts = tally.facts()
    scaled = [image / np.iinfo(image.dtype).max for image in images]
    together = np.concatenate([image.ravel() for image in scaled])
    stored = [(image // (1 if image.dtype == np.uint8 else 256)).ravel() for image in images]
    assert facts["histograms"]["train"] == np.bincount(np.concatenate(stored), minlength=256).tolist()
    assert facts["black"] == pytest.approx((together == 0).mean())
    assert facts["binary"] == bool(np.isin(together, (0, 1)).all())
    assert facts["grey"] == all((image == image[..., :1]).all() for image in images)
    assert facts["on_bytes"] == all(image.dtype == np.uint8 for image in images)
    assert facts["constant"] == sum(len(np.unique(image)) == 1 for image in images)
    assert facts["empty"] == sum((image > 0.1).mean() < 0.05 for image in scaled)
    assert {(h, w): n for h, w, n in facts["sizes"]} == collections.Counter(image.shape[:2] for image in images)
    different = {(image.shape, image.dtype, image.tobytes()) for image in images}
    assert facts["equal"]["copies"] == len(images) - len(different)


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 8), max_size=12), min_size=3, max_size=3))
def test_copies_are_in_one_group_and_those_in_several_splits_are_told(contents):
    tally, places = Tally(), collections.defaultdict(list)
    for split, own in zip(("train", "val", "test"), contents, strict=True):
        for i, value in enumerate(own):
            tally.add(split, i, np.full((2, 2, 1), value, np.uint8))
            places[value].append((split, i))
    groups = [group for group in places.values() if len(group) > 1]
    assert sorted(tally.groups.values()) == sorted(groups)
    across = [[list(place) for place in group] for group in groups if len({split for split, _ in group}) > 1]
    equal = tally.facts()["equal"]
    assert sorted(equal["across_splits"]) == sorted(across)
    assert (equal["groups"], equal["groups_across_splits"]) == (len(groups), len(across))
    assert equal["copies"] == sum(map(len, contents)) - len(places)


def test_equal_bytes_of_another_shape_or_type_are_another_image():
    tally = Tally()
    for number, image in enumerate((np.zeros((2, 3, 1)), np.zeros((3, 2, 1)), np.zeros((1, 3, 1)))):
        tally.add("train", number, image.astype(np.uint16 if number == 2 else np.uint8))
    assert tally.facts()["equal"]["copies"] == 0


@pytest.mark.parametrize(("levels", "told"), [(256, True), (255, False), (1000, False)])
def test_floats_on_the_grid_of_bytes_are_known(levels, told):
    tally = Tally()
    tally.add("train", 0, (np.arange(100, dtype=np.float32) / np.float32(levels - 1)).reshape(10, 10, 1))
    assert tally.facts()["on_bytes"] is told


def test_an_inspection_counts_what_was_planted(folder):
    found = inspection.inspect(DataConfig(name="image_folder", path=str(folder)), "30 PNG files")
    facts = found.facts
    assert (facts["images"], facts["unreadable"], facts["constant"], facts["files"]) == (30, 1, 1, 31)
    ((reason, count),) = facts["reasons"].items()
    assert (reason[:24], count) == ("neither a PNG nor a JPEG", 1)
    assert [part["images"] for part in facts["splits"].values()] == [18, 6, 6]
    assert list(facts["splits"]) == ["train", "val", "test"]
    assert facts["splits"]["train"]["labels"] == {"a": 9, "b": 9}
    assert facts["equal"] == {
        "copies": 1,
        "groups": 1,
        "groups_across_splits": 1,
        "across_splits": facts["equal"]["across_splits"],
    }
    (group,) = facts["equal"]["across_splits"]
    assert [split for split, _ in group] == ["train", "test"]
    assert [Path(path).name for path in found.private["equal"][0]] == [f"{NAME}00.png", f"{NAME}20.png"]
    assert [Path(entry["path"]).name for entry in found.private["unreadable"]] == [f"{NAME}99.png"]
    assert {label: len(images) for label, images in found.examples.items()} == {"a": 8, "b": 8}
    told = " ".join(facts["suspicious"])
    for words in ("unreadable images or files: 1", "images of one value: 1", "across splits, so that", "equal another one"):
        assert words in told
    assert NAME not in json.dumps(facts)


def test_a_patient_in_two_splits_is_a_number_on_the_page_and_a_name_on_the_terminal(tmp_path, capsys):
    folder, lines = tmp_path / "in", ["path,patient,split"]
    for i, (patient, split) in enumerate(zip("abcab", ("train", "val", "test", "val", "val"), strict=True)):
        save_png(folder / f"{NAME}{i}.png", noise(1, 8, 8)[0])
        lines.append(f"{NAME}{i}.png,{patient},{split}")
    (folder / "table.csv").write_text("\n".join(lines))
    assert cli.main(["inspect", str(folder / "table.csv"), f"--output={tmp_path / 'out'}"]) == 0
    assert f"such as {NAME}0.png (train) and {NAME}3.png (val)" in capsys.readouterr().err.replace("\n", " ")
    for name in ("inspection.html", "inspection.json"):
        page = (tmp_path / "out" / name).read_text()
        assert "found 1 in several" in page
        assert NAME not in page


def test_examples_are_chosen_by_the_seed(folder):
    config = DataConfig(name="image_folder", path=str(folder))
    first, again, other = (inspection.inspect(config, "", seed).examples["a"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_label_in_one_split_only_is_told(folder):
    for path in (folder / "val" / "b").iterdir():
        path.rename(folder / "val" / "a" / f"{path.stem}b.png")
    (folder / "val" / "b").rmdir()
    facts = inspection.inspect(DataConfig(name="image_folder", path=str(folder)), "").facts
    assert "label b: no images in val" in facts["suspicious"]


def test_splits_that_training_would_make_keep_patients_whole(tmp_path):
    for number in range(10):
        voxels = np.random.default_rng(number).integers(0, 900, (6, 5, 4)).astype(np.int16)
        affine = np.diag([1.0, 2.0, 3.0, 1.0])
        nibabel.save(nibabel.Nifti1Image(voxels, affine), tmp_path / f"{number}.nii.gz")
    facts = inspection.inspect(DataConfig(name="volumes", path=str(tmp_path)), "").facts
    assert facts["patients"] == 10
    assert facts["validation_fraction"] == 0.2  # fewer than 20 patients
    assert {name: part["patients"] for name, part in facts["splits"].items()} == {"train": 6, "val": 2, "test": 2}
    assert facts["headers"]["spacings"] == [[1.0, 2.0, 3.0, 10]]
    assert facts["headers"]["stored"] == {"int16": 10}
    assert any("patients, few" in sentence for sentence in facts["suspicious"])


@pytest.fixture
def cohort(tmp_path) -> Path:
    """60 images, of which every third is ill, by patients of two; no splits."""
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    labels = np.array(["ill", "well", "well"])[np.arange(60) // 2 % 3]
    rows = [{"path": f"{i}.png", "label": label, "patient": str(i // 2)} for i, label in enumerate(labels.tolist())]
    for i, image in enumerate(images):
        save_png(tmp_path / "in" / f"{i}.png", image)
    (tmp_path / "in" / "t.json").write_text(json.dumps(rows))
    return tmp_path / "in" / "t.json"


@pytest.mark.usefixtures("quick_steps")
@pytest.mark.parametrize(
    "fields",
    [{}, {"normal": ("well",)}, {"normal": ("well",), "calibration_fraction": 0.2}, {"calibration_fraction": 0.1},
     {"validation_fraction": 0.3}],
    ids=str,
)  # fmt: skip
def test_the_splits_shown_are_those_of_the_suggested_configuration(tmp_path, cohort, fields):
    config = DataConfig(name="manifest", path=str(cohort), **fields)
    found = inspection.inspect(config, "")
    choices = suggestion.suggest(found.facts, config, 1.0)
    data = load(suggestion.configuration(choices).data, tmp_path / "cache")
    expected = {}
    for name, split in data.splits.items():
        rows = split.read(np.arange(split.n))
        labels = {label: int((rows["label"] == number).sum()) for number, label in enumerate(("ill", "well"))}
        patients = len(np.unique(rows["patient"]))
        expected[name] = {"images": split.n, "unreadable": 0, "patients": patients, "labels": labels}
    assert found.facts["splits"] == expected
    kept = sum(split.n for split in data.splits.values())
    assert (found.facts["images"], found.facts["left_out"]) == (kept, 60 - kept)
    assert ("left out" in dict(inspection_report.summary(found.facts))) == bool(fields.get("normal"))
    assert not [sentence for sentence in found.facts["suspicious"] if "no images in" in sentence]
    inspection_report.write(epath.Path(tmp_path / "out"), found, None)
    page = (tmp_path / "out" / "inspection.html").read_text()
    assert all(f"data.{name} = " in page for name in ("validation_fraction", *fields))
    assert ("<th>calibration</th>" in page) == ("calibration_fraction" in fields)


@pytest.mark.parametrize("fields", [{"normal": ("healthy",)}, {"calibration_fraction": 0.01}], ids=str)
def test_splits_that_cannot_be_made_are_told_and_nothing_is_suggested(cohort, fields):
    config = DataConfig(name="manifest", path=str(cohort), **fields)
    facts = inspection.inspect(config, "").facts
    assert facts["suspicious"][0].startswith("no splits can be made: ")
    assert (facts["images"], list(facts["splits"])) == (60, ["train"])
    with pytest.raises(DataError, match=f"no configuration: no splits can be made: .*{next(iter(fields))}"):
        suggestion.suggest(facts, config, 1.0)


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")
def test_headers_are_counted_by_their_codes_alone(tmp_path):
    place = {"ImagePositionPatient": [0, 0, 0], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [0.5, 0.25]}
    said = {"BurnedInAnnotation": "YES", "BodyPartExamined": "HEAD", "PatientID": NAME, "SeriesInstanceUID": "1.2"}
    save_dicom(tmp_path / "a.dcm", noise(4, 4), Modality="CT", SliceThickness=3.0, **place, **said)
    save_dicom(
        tmp_path / "b.dcm",
        noise(4, 4),
        Modality="CT",
        SeriesInstanceUID="1.2",
        BurnedInAnnotation="NO",
        BodyPartExamined="BRAIN",
    )
    save_dicom(tmp_path / "c.dcm", noise(4, 4), Modality=NAME, BodyPartExamined="CHEST")
    (tmp_path / "d.dcm").write_bytes(b"damaged")
    counted = headers.count(sorted(tmp_path.iterdir()), DataConfig())
    assert counted == {
        "files": 3,
        "series": 2,
        "modality": {"CT": 2, "unknown": 1},
        "stored": {"12 bits": 3},
        "spacings": [[None, None, None, 2], [0.5, 0.25, 3.0, 1]],
        "text": 1,
        "head": 2,
    }
    assert [dicom.read_header(tmp_path / f"{name}.dcm").text for name in "abc"] == [True, False, False]
    assert headers.count([tmp_path / "d.dcm"], DataConfig()) is None


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")
def test_all_files_of_the_series_of_a_table_are_counted(tmp_path):
    for i in range(6):
        place = {"ImagePositionPatient": [0, 0, i], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
        save_dicom(tmp_path / f"{i}.dcm", noise(4, 4, seed=i), Modality="CT", SeriesInstanceUID=f"1.{i // 2}", **place)
    (tmp_path / "t.csv").write_text("path\n" + "".join(f"{i}.dcm\n" for i in range(6)))
    facts = inspection.inspect(DataConfig(name="manifest", path=str(tmp_path / "t.csv")), "").facts
    assert (facts["files"], facts["images"], facts["patients"]) == (6, 6, 3)
    assert (facts["headers"]["files"], facts["headers"]["series"]) == (6, 3)


def test_nothing_that_can_be_read_is_an_error(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"none that can be read \(a\.png: neither a PNG nor a JPEG"):
        inspection.inspect(DataConfig(name="image_folder", path=str(tmp_path)), "")


# --- what is unlike the training images


def images_of(n: int, seed: int = 0) -> np.ndarray:
    """Gratings of one wave or more in any direction, float32 [n, 12, 12, 1]."""
    rng = np.random.default_rng(seed)
    angle, phase, waves, strength = rng.uniform([0, 0, 1, 0.2], [np.pi, 2 * np.pi, 1.5, 0.3], (n, 4)).T[
        ..., np.newaxis, np.newaxis
    ]
    y, x = np.mgrid[:12, :12] / 12
    along = np.cos(angle) * x + np.sin(angle) * y
    return (0.5 + strength * np.sin(2 * np.pi * waves * along + phase)).astype(np.float32)[..., np.newaxis]


def seen_in(images: np.ndarray) -> inspection.Ranges:
    return inspection.ranges(Split(len(images), lambda rows: {"image": images[rows]}), 1.0)


def test_ranges_are_quantiles_of_what_was_trained_on():
    images = images_of(300)
    seen = seen_in(images)
    flat = images.reshape(300, -1).astype(np.float64)
    grain = [
        np.concatenate([np.abs(np.diff(x, axis=0)).ravel(), np.abs(np.diff(x, axis=1)).ravel()]).mean() for x in images[..., 0]
    ]
    expected = {
        "mean": flat.mean(axis=1),
        "contrast": flat.std(axis=1),
        "shadow": np.quantile(flat, 0.01, axis=1),
        "middle": np.median(flat, axis=1),
        "light": np.quantile(flat, 0.99, axis=1),
        "grain": np.array(grain),
    }
    assert seen.keys() == expected.keys() == inspection.TRAITS.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(seen[name], np.quantile(values, (0.001, 0.999)), atol=1e-5)


def test_ranges_do_not_depend_on_the_stored_type():
    images = np.round(images_of(50) * 255)
    stored = Split(50, lambda rows: {"image": images[rows].astype(np.uint8)})
    for name, ends in inspection.ranges(stored, 255.0).items():
        np.testing.assert_allclose(ends, seen_in(images / np.float32(255))[name], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x: 0.4 * x, "mean"),
        (lambda x: np.clip(x + 0.6, 0, 1), "median"),
        (lambda x: 0.5 + 0.02 * (x - 0.5), "standard deviation"),
        (lambda x: np.clip(x + np.random.default_rng(0).normal(0, 0.3, x.shape), 0, 1), "difference of neighbours"),
        (lambda x: x * np.float32(np.nan), "mean nan"),
    ],
    ids=["darker", "brighter", "flat", "noisy", "not a number"],
)
def test_images_of_another_kind_are_outside(change, reason):
    seen, images = seen_in(images_of(500)), images_of(50, seed=1)
    found = inspection.outside(seen, change(images).astype(np.float32))
    assert found.rows.all()
    assert all(reason in words for words in found.reasons)


def test_images_of_the_same_kind_are_inside():
    """Of 2,000 new images, at most one in a thousand is outside: the ranges leave out one in 500 a trait, and are widened."""
    found = inspection.outside(seen_in(images_of(2_000)), images_of(2_000, seed=1))
    assert found.rows.sum() <= 2
    assert [bool(words) for words in found.reasons] == found.rows.tolist()


def test_outside_is_told_image_by_image():
    seen, images = seen_in(images_of(200)), images_of(6, seed=1)
    images[[1, 4]] = 0
    found = inspection.outside(seen, images)
    assert np.flatnonzero(found.rows).tolist() == [1, 4]
    assert found.reasons[1].startswith("mean 0.000, in training 0.")
    assert inspection.count_outside(seen, [images[:4], images[4:]]) == {"images": 2, "of": 6}


def test_a_run_keeps_the_ranges_of_its_training_images(tmp_path):
    images = noise(40, 8, 8)
    np.savez(tmp_path / "a.npz", train_images=images, val_images=images[:5], test_images=images[:5] // 8)
    run = runs.create(str(tmp_path / "run"), from_dict({"data": {"name": "medmnist", "path": str(tmp_path / "a.npz")}}))
    scaled = (images / np.float32(255))[..., np.newaxis].astype(np.float32)
    for name, ends in seen_in(scaled).items():
        np.testing.assert_allclose(runs.ranges_of(run)[name], ends, atol=1e-6)


# --- a configuration


def facts_of(**changes) -> dict:
    """Of 4,000 grey images of bytes, 28 x 28, in three splits."""
    parts = {"train": 3_200, "val": 400, "test": 400}
    return {
        "source": "image_folder",
        "why": "4,000 PNG files",
        "images": 4_000,
        "validation_fraction": 0.1,
        "problem": "",
        "splits": {name: {"images": n, "unreadable": 0, "patients": None, "labels": None} for name, n in parts.items()},
        "unreadable": 0,
        "sizes": [[28, 28, 4_000]],
        "channels": {"1": 4_000},
        "dtypes": {"uint8": 4_000},
        "binary": False,
        "grey": True,
        "on_bytes": True,
        "empty": 0,
        "suspicious": [],
    } | changes


@pytest.fixture
def quick_steps(monkeypatch) -> None:
    """A step takes 50 ms."""
    monkeypatch.setattr(suggestion, "seconds_a_step", lambda config, image_shape: 0.05)


def suggested(tmp_path: Path, minutes: float = 15.0, data: dict | None = None, **changes) -> Config:
    """By way of the file."""
    facts = facts_of(**changes)
    choices = suggestion.suggest(facts, DataConfig(name="image_folder", path="somewhere", **(data or {})), minutes)
    (tmp_path / "config.py").write_text(suggestion.text(choices, facts))
    config = config_file.load(tmp_path / "config.py")
    assert config == suggestion.configuration(choices)
    return config


def few(n: int, patients: int | None = None) -> dict:
    return {name: {"images": n, "unreadable": 0, "patients": patients, "labels": None} for name in ("train", "val", "test")}


@pytest.mark.usefixtures("quick_steps")
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"model.likelihood": "discretized_logistic", "data.image_size": (28, 28), "model.features": (32, 64)}),
        ({"binary": True}, {"model.likelihood": "bernoulli", "data.binarization": "dynamic", "augment.brightness": 0.0}),
        ({"dtypes": {"uint16": 4_000}, "on_bytes": False}, {"model.likelihood": "gaussian", "data.channels": 1}),
        ({"channels": {"3": 4_000}, "grey": True}, {"data.channels": 1}),
        ({"channels": {"3": 4_000}, "grey": False}, {"data.channels": 3}),
        ({"channels": {"1": 3_000, "3": 1_000}, "grey": False}, {"data.channels": 3}),
        ({"sizes": [[512, 400, 4_000]]}, {"data.image_size": (64, 48)}),
        ({"sizes": [[49, 35, 3_000], [20, 20, 1_000]]}, {"data.image_size": (48, 36)}),
        ({"sizes": [[64, 64, 4_000]]}, {"model.features": (32, 64, 64)}),
        ({"unreadable": 3}, {"data.on_error": "skip"}),
        ({"splits": few(20_000)}, {"data.batch_size": 128, "model.latent_size": 64, "augment.rotate": 0.0}),
        ({"splits": few(40)}, {"data.batch_size": 8, "model.latent_size": 8, "training.steps": 500}),
        ({"splits": few(3)}, {"data.batch_size": 3, "training.steps": 200}),
        ({"splits": few(3_200, patients=88)}, {"training.steps": 500}),
        ({"splits": few(3_200, patients=3_000)}, {"training.steps": 5_000}),
    ],
)
def test_a_suggestion_loads_and_follows_the_numbers(tmp_path, changes, expected):
    config = suggested(tmp_path, **changes)
    for field, value in expected.items():
        section, name = field.split(".")
        assert getattr(getattr(config, section), name) == value, field


@pytest.mark.usefixtures("quick_steps")
def test_steps_fill_the_time_but_not_more_epochs_than_serve(tmp_path):
    """At 50 ms a step."""
    assert suggested(tmp_path, minutes=1.0).training.steps == 900
    assert suggested(tmp_path, minutes=2.0).training.steps == 1_800
    assert suggested(tmp_path, minutes=1_000.0).training.steps == 100 * 3_200 // 64
    assert suggested(tmp_path, minutes=0.2).evaluation.samples == 23  # 1.8 s, for 400 images at 0.195 ms each
    assert suggested(tmp_path, minutes=15.0).evaluation.samples == 100


@pytest.mark.usefixtures("quick_steps")
def test_what_was_asked_for_stays(tmp_path):
    asked = {"image_size": (16, 16), "batch_size": 24, "resize": "stretch"}
    data = suggested(tmp_path, data=asked, sizes=[[9, 9, 1], [8, 8, 1]]).data
    assert {name: getattr(data, name) for name in asked} == asked


@pytest.mark.usefixtures("quick_steps")
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"dtypes": {"uint8": 1, "uint16": 1}}, "several depths"),
        ({"channels": {"1": 1, "4": 1}}, "1 and 4 channels"),
        (
            {"validation_fraction": None, "splits": {"train": few(1)["train"]}, "problem": "no splits: few"},
            "no splits: few",
        ),
    ],
)
def test_what_cannot_be_trained_on_is_said(tmp_path, changes, told):
    with pytest.raises(DataError, match=told):
        suggested(tmp_path, **changes)


def test_words_of_the_quotes_of_a_path_do_no_harm(tmp_path, monkeypatch):
    monkeypatch.setattr(suggestion, "seconds_a_step", lambda config, image_shape: 0.05)
    odd = 'a "b" \\ é'
    choices = suggestion.suggest(facts_of(), DataConfig(name="image_folder", path=str(tmp_path / odd)), 1.0)
    (tmp_path / "config.py").write_text(suggestion.text(choices, facts_of()))
    assert config_file.load(tmp_path / "config.py").data.path == str(tmp_path.resolve() / odd)
    assert odd not in inspection_report.without_path(suggestion.text(choices, facts_of()))


@pytest.mark.usefixtures("compiled_quickly")
def test_a_step_is_timed():
    config = from_dict({"model": {"network": "mlp", "hidden": (4,), "latent_size": 2}, "data": {"batch_size": 4}})
    assert 0.0 < suggestion.seconds_a_step(config, (4, 4, 1)) < 5.0


# --- the verb


@pytest.mark.usefixtures("quick_steps")
def test_the_verb_leaves_a_page_without_names_and_a_configuration_that_opens(tmp_path, folder, capsys):
    output = tmp_path / "out"
    assert cli.main(["inspect", str(folder), f"--output={output}", "--minutes=1"]) == 0
    shown, told = capsys.readouterr()
    assert "image_folder (31 PNG files)" in shown
    assert f"unreadable: test/a/{NAME}99.png: neither a PNG nor a JPEG" in told
    assert sorted(path.name for path in output.iterdir()) == ["config.py", "inspection.html", "inspection.json", "private"]
    page = (output / "inspection.html").read_text()
    assert NAME not in page + (output / "inspection.json").read_text()
    assert str(tmp_path) not in page + (output / "inspection.json").read_text()
    assert page.count("data:image/png;base64,") == 3  # two labels and the grey levels
    assert "http" not in page
    private = output / "private"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (private, private / "files.json")] == [0o700, 0o600]
    assert len(json.loads((private / "files.json").read_text())["unreadable"]) == 1
    run = runs.create(str(tmp_path / "run"), config_file.load(output / "config.py"))
    assert run.model.image_shape == (8, 8, 1)
    assert next(experiment.evaluation_batches(run, "val", 2))["image"].shape == (2, 8, 8, 1)


@pytest.mark.usefixtures("quick_steps")
def test_a_configuration_says_what_to_inspect(tmp_path, folder, capsys):
    file = tmp_path / "asked.json"
    file.write_text(json.dumps({"data": {"name": "image_folder", "path": str(folder)}}))
    for arguments in ([str(file)], ["--config.data.name=image_folder", f"--config.data.path={folder}"]):
        assert cli.main(["inspect", *arguments, f"--output={tmp_path / 'out'}", "--config.data.image_size=(16, 16)"]) == 0
        assert config_file.load(tmp_path / "out" / "config.py").data.image_size == (16, 16)
        assert "image_folder (as configured)" in capsys.readouterr().out


def test_a_mistake_is_told_in_one_line_and_leaves_nothing(tmp_path, capsys):
    assert cli.main(["inspect", str(tmp_path / "absent"), f"--output={tmp_path / 'out'}"]) == 1
    assert capsys.readouterr().err.startswith(f"vaejax: {tmp_path / 'absent'}: expected a folder or file")
    assert not (tmp_path / "out").exists()


def test_without_a_suggestion_the_one_before_goes(tmp_path, folder):
    found = inspection.inspect(DataConfig(name="image_folder", path=str(folder)), "")
    output = epath.Path(tmp_path / "out")
    inspection_report.write(output, found, "suggested")
    assert (output / "config.py").read_text() == "suggested"
    inspection_report.write(output, found, None)
    assert not (output / "config.py").exists()
    assert "A configuration to start from" not in (output / "inspection.html").read_text()


def test_a_folder_that_cannot_be_written_is_named(tmp_path, folder):
    (tmp_path / "file").touch()
    found = inspection.inspect(DataConfig(name="image_folder", path=str(folder)), "")
    with pytest.raises(DataError, match=r"--output=.*file/out: expected a folder to write to"):
        inspection_report.write(epath.Path(tmp_path / "file" / "out"), found, None)


@pytest.mark.usefixtures("quick_steps")
def test_real_breast_images_have_one_across_splits(tmp_path, real_data, capsys):
    """A test image of BreastMNIST is one of training."""
    output = tmp_path / "out"
    assert cli.main(["inspect", str(real_data / "medmnist" / "breastmnist.npz"), f"--output={output}"]) == 0
    facts = json.loads((output / "inspection.json").read_text())
    assert {name: part["images"] for name, part in facts["splits"].items()} == {"train": 546, "val": 78, "test": 156}
    with np.load(real_data / "medmnist" / "breastmnist.npz", allow_pickle=False) as file:
        images = {name: file[f"{name}_images"] for name in ("train", "val", "test")}
    for group in facts["equal"]["across_splits"]:
        first, *others = [images[split][i] for split, i in group]
        assert all((first == other).all() for other in others)
    together = np.concatenate(list(images.values())).reshape(780, -1)
    assert facts["equal"]["copies"] == 780 - len(np.unique(together, axis=0)) == 1
