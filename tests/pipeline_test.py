"""The stream of training batches: its order, its start at any step, its values."""

import subprocess
import sys
from itertools import islice

import numpy as np
import pytest
import tensorflow as tf

from vaejax import pipeline
from vaejax.config import AugmentConfig
from vaejax.datasets import Split
from vaejax.errors import DataError

OFF = AugmentConfig()
ON = AugmentConfig(rotate=20.0, zoom=0.1, crop=0.2, flip_vertical=True, brightness=0.1, contrast=0.1)


def split(n: int, dtype: str = "uint8", high: int = 255) -> Split:
    """Images of random values; the label of image i is i % 7."""
    stored = np.random.default_rng(n).integers(0, high, (n, 6, 5, 1), endpoint=True).astype(dtype)
    labels = (np.arange(n) % 7).astype(np.int32)
    return Split(n, lambda rows: {"image": stored[rows], "label": labels[rows]})


def batches(count: int, data: Split, batch_size: int, augment=OFF, white=255.0, levels=None, seed=0, first_step=0):
    stream = pipeline.training_batches(data, white, batch_size, augment, levels, seed, first_step)
    taken = list(islice(stream, count))
    stream.close()
    return taken


def order(n: int, epochs: int, seed: int) -> np.ndarray:
    """The epochs' orders [epochs, n]."""
    one = tf.function(lambda epoch: pipeline.epoch_order(epoch * n + tf.range(n, dtype=tf.int64), n, seed))
    return np.array([one(tf.constant(epoch, tf.int64)) for epoch in range(epochs)])


@pytest.mark.parametrize(("n", "batch_size"), [(1, 1), (10, 4), (10, 7), (23, 23), (50, 8)])
def test_every_epoch_is_a_permutation_though_batches_straddle(n, batch_size):
    epochs = 3
    taken = batches(-(-epochs * n // batch_size), split(n), batch_size)
    index = np.concatenate([batch["index"] for batch in taken])[: epochs * n].reshape(epochs, n)
    np.testing.assert_array_equal(np.sort(index, axis=1), np.tile(np.arange(n), (epochs, 1)))
    np.testing.assert_array_equal(index, order(n, epochs, seed=0))


def test_epochs_and_seeds_have_orders_of_their_own():
    # 400 epochs: the shuffle alone repeats itself after 256, because it uses 8 bits of each word of its key.
    orders = np.concatenate([order(40, 400, seed=0), order(40, 20, seed=1), order(40, 20, seed=257)])
    assert len(np.unique(orders, axis=0)) == len(orders)


def test_an_order_is_as_uneven_as_chance():
    # Images sorted by class, ten classes: the variance of a class's count in a batch is that of random draws, not less.
    n, batch = 54_000, 128
    classes = (order(n, 1, seed=0)[0] * 10 // n)[: n // batch * batch].reshape(-1, batch)
    counts = np.stack([np.sum(classes == k, axis=1) for k in range(10)])
    assert 0.92 < counts.var() / (batch * 0.1 * 0.9) < 1.08


@pytest.mark.parametrize(("first", "seed"), [(1, 0), (7, 2**31 - 1)])
def test_a_stream_started_later_equals_the_rest_of_one_from_the_start_bit_for_bit(first, seed):
    data = split(13)
    whole = batches(first + 3, data, 5, ON, levels=256, seed=seed)
    rest = batches(3, data, 5, ON, levels=256, seed=seed, first_step=first)
    for expected, got in zip(whole[first:], rest, strict=True):
        assert expected.keys() == got.keys()
        for name in expected:
            np.testing.assert_array_equal(got[name], expected[name])


def test_a_far_step_starts_at_once():
    far = batches(1, split(13), 5, ON, first_step=10**12)[0]
    near = batches(1, split(13), 5, ON)[0]
    assert np.any(far["image"] != near["image"])


def test_the_seed_changes_the_order_and_the_changes():
    a, b = (batches(1, split(30), 30, ON, seed=seed)[0] for seed in (0, 1))
    assert np.any(a["index"] != b["index"])
    a, b = (dict(zip(batch["index"], batch["image"], strict=True)) for batch in (a, b))
    assert not any(np.array_equal(a[i], b[i]) for i in range(30))


def test_each_step_changes_an_image_anew():
    first, second = batches(2, split(9), 9, ON)
    images = [batch["image"][np.argsort(batch["index"])] for batch in (first, second)]
    assert not any(np.array_equal(*pair) for pair in zip(*images, strict=True))


@pytest.mark.parametrize(("dtype", "white", "high"), [("uint8", 255.0, 255), ("uint16", 65535.0, 65535), ("float32", 1.0, 1)])
def test_without_changes_a_batch_holds_the_stored_images_over_white(dtype, white, high):
    data = split(12, dtype, high)
    for batch in batches(4, data, 5, white=white):
        stored = data.read(batch["index"])
        np.testing.assert_array_equal(batch["image"], stored["image"].astype(np.float32) / np.float32(white))
        np.testing.assert_array_equal(batch["label"], stored["label"])
        assert {name: (x.dtype.name, x.shape) for name, x in batch.items()} == {
            "image": ("float32", (5, 6, 5, 1)),
            "mask": ("bool", (5,)),
            "index": ("int32", (5,)),
            "label": ("int32", (5,)),
        }
        assert batch["mask"].all()


def test_images_without_labels_give_batches_without_labels():
    data = split(8)
    unlabelled = Split(8, lambda rows: {"image": data.read(rows)["image"]})
    assert batches(1, unlabelled, 4)[0].keys() == {"image", "mask", "index"}


@pytest.mark.parametrize("augment", [OFF, AugmentConfig(flip_horizontal=True, flip_vertical=True)])
def test_a_segmentation_goes_with_its_image_row_by_row(augment):
    images = np.random.default_rng(0).integers(0, 256, (12, 6, 5, 1), dtype=np.uint8)
    data = Split(12, lambda rows: {"image": images[rows], "segmentation": images[rows, :, :, 0] // 100})
    whole = batches(3, data, 6, augment)
    for batch in whole:
        assert (batch["segmentation"].dtype, batch["segmentation"].shape) == (np.int32, (6, 6, 5))
        np.testing.assert_array_equal(batch["segmentation"], np.round(batch["image"][..., 0] * 255).astype(int) // 100)
    stream = pipeline.training_batches(data, 255.0, 6, augment, None, 0, share=slice(2, 4))
    np.testing.assert_array_equal(next(stream)["segmentation"], whole[0]["segmentation"][2:4])
    stream.close()


@pytest.mark.parametrize("levels", [2, 16, 256])
def test_levels_put_changed_images_back_on_the_grid(levels):
    grid = np.arange(levels, dtype=np.float32) / np.float32(levels - 1)
    (fine,), (coarse,) = (batches(1, split(40), 40, ON, levels=number) for number in (None, levels))
    assert np.isin(coarse["image"], grid).all()
    assert not np.isin(fine["image"], grid).all()
    assert np.abs(coarse["image"] - fine["image"]).max() <= 0.5 / (levels - 1) + 1e-6
    assert fine["image"].min() >= 0.0
    assert fine["image"].max() <= 1.0


def test_a_batch_larger_than_the_split_is_refused_with_the_possible_size():
    with pytest.raises(DataError, match=r"data\.batch_size=9.*found 8\..*data\.batch_size=8"):
        pipeline.training_batches(split(8), 255.0, 9, OFF, None, 0)


def test_the_interpreter_ends_while_a_stream_is_open():
    program = """
import numpy as np
from vaejax.config import AugmentConfig
from vaejax.datasets import Split
from vaejax.pipeline import training_batches
stored = np.zeros((500, 28, 28, 1), np.uint8)
stream = training_batches(Split(500, lambda rows: {"image": stored[rows]}), 255.0, 128, AugmentConfig(), None, 0)
next(stream)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
