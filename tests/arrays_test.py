"""Plain arrays: MedMNIST's layout, columns beside one array, volumes as slices, and headers that claim too much."""

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from vaejax.config import DataConfig
from vaejax.datasets import arrays, load, npy
from vaejax.datasets.source import Examples
from vaejax.errors import DataError

RNG = np.random.default_rng(0)


def pixels(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def config(path: Path) -> DataConfig:
    return DataConfig(name="arrays", path=str(path), validation_fraction=0.25)


def splits(path: Path) -> dict[str, Examples]:
    return arrays.source(config(path)).open()


def saved(path: Path, **values) -> dict[str, Examples]:
    np.savez_compressed(path / "x.npz", **values)
    return splits(path / "x.npz")


def stack(examples: Examples) -> np.ndarray:
    return np.stack([examples.read(i) for i in range(examples.n)])


def masks(examples: Examples) -> np.ndarray:
    assert examples.segmentation is not None
    return np.stack([examples.segmentation(i) for i in range(examples.n)])


@pytest.mark.parametrize("fortran", [False, True])
def test_an_npy_is_mapped_and_split(tmp_path, fortran):
    images = pixels(12, 5, 4)
    np.save(tmp_path / "x.npy", np.asfortranarray(images) if fortran else images)
    part = splits(tmp_path / "x.npy")["train"]
    np.testing.assert_array_equal(stack(part)[..., 0], images)
    data = load(config(tmp_path / "x.npy"), tmp_path / "cache")
    assert {name: split.n for name, split in data.splits.items()} == {"train": 6, "val": 3, "test": 3}


def test_big_endian_and_wide_floats_become_what_is_prepared(tmp_path):
    for stored, dtype in ((pixels(3, 5, 4).astype(">u2"), np.uint16), (RNG.random((3, 5, 4)), np.float32)):
        np.save(tmp_path / "x.npy", stored)
        found = stack(splits(tmp_path / "x.npy")["train"])
        assert found.dtype == dtype
        np.testing.assert_array_equal(found[..., 0], stored.astype(dtype))


def test_columns_beside_the_images_say_what_is_known_of_them(tmp_path):
    images, drawn = pixels(6, 5, 4, 3), pixels(6, 5, 4) // 50
    names = np.array(["train", "test", "train", "Validation", "train", "test"])
    patients = np.array(["b", "a", "b", "d", "c", "a"])
    found = saved(
        tmp_path,
        images=images,
        labels=np.arange(6),
        masks=drawn,
        split=names,
        patients=patients,
        names=np.array(list("abcdef")),
    )
    rows = {"train": [0, 2, 4], "val": [3], "test": [1, 5]}
    assert list(found) == list(rows)
    for split, chosen in rows.items():
        np.testing.assert_array_equal(stack(found[split]), images[chosen])
        np.testing.assert_array_equal(masks(found[split]), drawn[chosen])
        assert found[split].labels.tolist() == chosen
    assert (found["train"].patients[0], found["test"].patients[0]) == (found["train"].patients[1], found["test"].patients[1])
    assert len({*found["train"].patients, *found["val"].patients, *found["test"].patients}) == 4


def test_slices_of_volumes_are_images_of_one_patient(tmp_path):
    volumes = {"train": pixels(8, 7, 5, 6), "test": pixels(2, 7, 5, 6)}
    values = {f"{split}_images": images for split, images in volumes.items()}
    values |= {f"{split}_labels": np.arange(len(images))[:, None] % 2 for split, images in volumes.items()}
    values |= {f"{split}_segmentation": np.uint8(images > 99) * 255 for split, images in volumes.items()}
    found = saved(tmp_path, **values)
    for split, images in volumes.items():
        part = found[split]
        np.testing.assert_array_equal(stack(part)[..., 0], images.reshape(-1, 5, 6))
        np.testing.assert_array_equal(masks(part), images.reshape(-1, 5, 6) > 99)
        np.testing.assert_array_equal(part.labels, np.repeat(np.arange(len(images)) % 2, 7))
    together = np.concatenate([found["train"].patients, found["test"].patients])
    np.testing.assert_array_equal(together, np.repeat(np.arange(10), 7))
    data = load(config(tmp_path / "x.npz"), tmp_path / "cache")
    assert {name: split.n for name, split in data.splits.items()} == {"train": 42, "val": 14, "test": 14}


def test_volumes_with_channels_and_patients(tmp_path):
    images = pixels(3, 7, 5, 6, 2)
    (part,) = saved(tmp_path, images=images, patients=np.array([8, 5, 8])).values()
    np.testing.assert_array_equal(stack(part), images.reshape(-1, 5, 6, 2))
    np.testing.assert_array_equal(part.patients, np.repeat([1, 0, 1], 7))
    found = saved(tmp_path, images=images, split=np.array(["test", "train", "test"]))
    np.testing.assert_array_equal(stack(found["train"]), images[1])
    np.testing.assert_array_equal(stack(found["test"]), images[[0, 2]].reshape(-1, 5, 6, 2))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pictures": pixels(3, 5, 4)}, "expected either the array images, or train_images .* found no array"),
        ({"val_images": pixels(3, 5, 4)}, "or train_images .* found val_images"),
        ({"images": pixels(3, 5, 4), "train_images": pixels(3, 5, 4)}, "expected either"),
        ({"images": pixels(3, 5, 4), "lables": np.zeros(3)}, "found the array lables. Did you mean labels"),
        ({"images": pixels(3, 5, 4), "labels": np.zeros(3)}, "labels: expected 3, whole numbers, .* found float64"),
        ({"images": pixels(3, 5, 4), "labels": np.zeros((2, 1), int)}, r"found int64 of shape \(2,\)"),
        ({"images": pixels(3, 5, 4), "labels": np.array([0, 2**31, 1])}, "labels: .* to 2147483647, found 0 to 2147483648"),
        (
            {"images": pixels(3, 5, 4), "labels": np.array([0, 2**63, 1], np.uint64)},
            "labels: .* 0 to 9223372036854775808",
        ),
        ({"images": pixels(3, 5, 4), "patients": np.zeros((3, 2), int)}, r"patients: .* found int64 of shape \(3, 2\)"),
        ({"images": pixels(3, 5, 4), "split": np.zeros(3, int)}, "split: expected 3, text"),
        ({"images": pixels(3, 5, 4), "split": np.array(["train", "dev", "test"])}, "train, val and test, found 'dev'"),
        ({"images": pixels(3, 5, 4), "split": np.array(["train", "", "test"])}, "found 1 without any"),
        ({"images": pixels(2, 5, 4), "split": np.array(["val", "test"])}, "split train, found none"),
        ({"images": pixels(3, 5, 4), "masks": pixels(3, 4, 5)}, r"segmentation: .* \(3, 5, 4\), found \(3, 4, 5\)"),
        ({"images": pixels(3, 5, 4), "masks": np.full((3, 5, 4), 0.5)}, "segmentation: a mask whose values are no classes"),
        (
            {"train_images": pixels(3, 5, 4), "test_images": pixels(3, 5, 4), "test_labels": np.zeros(3, int)},
            "test_labels alone",
        ),
        ({"images": pixels(3, 5)}, r"found \(3, 5\)"),
        ({"images": np.uint8(3)}, r"found \(\)"),
        ({"train_images": pixels(3, 5, 4), "patients": np.arange(3)}, "found the arrays patients without images"),
        ({"train_images": pixels(3, 5, 4), "test_labels": np.arange(3)}, "found the arrays test_labels without images"),
    ],
)
def test_arrays_that_contradict_each_other_are_refused(tmp_path, values, message):
    with pytest.raises(DataError, match=message):
        saved(tmp_path, **values)


def test_masks_under_both_names_are_refused(tmp_path):
    with pytest.raises(DataError, match="expected masks or segmentation, found both"):
        saved(tmp_path, images=pixels(3, 5, 4), masks=pixels(3, 5, 4), segmentation=pixels(3, 5, 4))


def test_arrays_read_by_another_process_can_be_sent_back(tmp_path):
    found = saved(tmp_path, images=pixels(3, 5, 4), masks=pixels(3, 5, 4) // 50)
    sent = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(stack(sent["train"]), stack(found["train"]))
    np.testing.assert_array_equal(masks(sent["train"]), masks(found["train"]))


@pytest.mark.parametrize("name", ["nowhere.npz", "."])
def test_no_file_is_told(tmp_path, name):
    with pytest.raises(DataError, match=r"expected a file of arrays .* found (none|a folder)\. Check data\.path"):
        splits(tmp_path / name)


# --- what a file claims


def header(shape: tuple[int, ...], dtype: str = "|u1") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def packed(path: Path, content: bytes, kind: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", kind) as archive:
        archive.writestr("images.npy", content)
    return path


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (header((2**20, 2**10, 2**10)) + bytes(64), zipfile.ZIP_DEFLATED, "images: an array of 1099511627776 bytes claimed"),
        (header((3, 5, 4)) + bytes(30), zipfile.ZIP_DEFLATED, "images: an array .*(cut short|can hold)"),
        (header((3, 5, 4)) + bytes(60), zipfile.ZIP_LZMA, "packed as NumPy packs none"),
        (header((3, 5, 4), "|O") + bytes(60), zipfile.ZIP_STORED, "Python objects, which are never read"),
    ],
)
def test_a_member_is_checked_by_its_header(tmp_path, content, kind, message):
    with pytest.raises(DataError, match=message):
        splits(packed(tmp_path / "x.npz", content, kind))


def test_a_member_larger_than_allowed_is_not_unpacked(tmp_path, monkeypatch):
    path = packed(tmp_path / "x.npz", header((1000, 10, 10)) + bytes(100_000))
    assert splits(path)["train"].n == 1000
    monkeypatch.setattr(arrays, "MAX_BYTES", 99_999)
    monkeypatch.setattr(npy.np, "empty", lambda *_: pytest.fail("memory was taken"))
    with pytest.raises(DataError, match="100000 bytes claimed; at most 99999"):
        splits(path)


@pytest.mark.parametrize("side", [1, 100])
def test_a_flipped_bit_is_found_by_the_sum_of_the_member(tmp_path, side):
    path = packed(tmp_path / "x.npz", header((50, side, side)) + pixels(50 * side * side).tobytes(), zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    content[190] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"plain arrays, found something else \(Bad CRC-32"):
        splits(path)


def test_an_npy_shorter_than_its_header_says_is_refused(tmp_path):
    (tmp_path / "x.npy").write_bytes(header((50, 10, 10)) + bytes(4999))
    with pytest.raises(DataError, match="more than the file can hold"):
        splits(tmp_path / "x.npy")


# --- real files


def test_the_slices_of_adrenal_glands(real_data):
    found = splits(real_data / "medmnist" / "adrenalmnist3d.npz")
    assert {split: part.n for split, part in found.items()} == {"train": 33_264, "val": 2_744, "test": 8_344}
    assert {split: len(set(part.patients.tolist())) for split, part in found.items()} == {"train": 1188, "val": 98, "test": 298}


def test_chest_radiographs_with_lungs(real_data):
    found = splits(real_data / "cxr_lung_shenzhen" / "cxr_lung_128.npz")
    assert {split: part.n for split, part in found.items()} == {"train": 453, "val": 81, "test": 32}
    assert sum(np.bincount(part.labels) for part in found.values()).tolist() == [279, 287]
    for part in found.values():
        assert 0.15 < masks(part).mean() < 0.35  # lungs, of which the air is dark
        assert stack(part)[masks(part) == 1].mean() < stack(part)[masks(part) == 0].mean() + 10
