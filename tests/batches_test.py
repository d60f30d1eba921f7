"""Batches: the evaluation pass, the grid of grey levels, and Bernoulli draws that follow (key, step, index)."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaejax import batches
from vaejax.datasets import Split


def split(n: int, dtype: str = "uint8") -> Split:
    images = np.random.default_rng(0).integers(0, 256, (n, 3, 4, 2)).astype(dtype)
    labels = np.arange(n, dtype=np.int32) * 7
    return Split(n, lambda index: {"image": images[index], "label": labels[index]})


def grey(index: list[int], seed: int = 0) -> batches.Batch:
    images = np.random.default_rng(seed).random((100, 5, 6, 1))
    return batches.batch_of(images[index], np.array(index))


def test_batch_of_fills_in_the_contract():
    batch = batches.batch_of(np.full((3, 2, 2, 1), 0.5))
    assert (batch["image"].dtype, batch["mask"].dtype, batch["index"].dtype) == (np.float32, bool, np.int32)
    assert batch["mask"].all()
    np.testing.assert_array_equal(batch["index"], [0, 1, 2])
    np.testing.assert_array_equal(batches.batch_of(batch["image"], np.array([7, 1, 7]))["index"], [7, 1, 7])


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 20), batch_size=st.integers(1, 25))
def test_evaluation_sees_every_example_once_in_order_and_pads_with_real_rows(n, batch_size):
    source = split(n)
    passes = list(batches.evaluation(source, 255.0, batch_size, 256))
    rows = {name: np.concatenate([batch[name] for batch in passes]) for name in ("image", "mask", "index", "label")}
    assert all(len(batch["index"]) == batch_size for batch in passes)
    assert len(passes) == -(-n // batch_size)
    assert (rows["image"].dtype, rows["mask"].dtype, rows["index"].dtype) == (np.float32, bool, np.int32)
    np.testing.assert_array_equal(rows["index"][rows["mask"]], np.arange(n))
    stored = source.read(rows["index"])
    np.testing.assert_allclose(rows["image"], stored["image"] / 255.0, rtol=1e-6)
    np.testing.assert_array_equal(rows["label"], stored["label"])


@pytest.mark.parametrize(("dtype", "white"), [("uint8", 255.0), ("uint16", 65_535.0), ("float32", 1.0)])
def test_images_are_divided_by_white_and_left_alone_without_levels(dtype, white):
    source = split(4, dtype)
    batch = batches.of_rows(source, white, np.array([3, 0, 3]), None)
    np.testing.assert_allclose(batch["image"], source.read(np.array([3, 0, 3]))["image"] / white, rtol=1e-6)
    np.testing.assert_array_equal(batch["index"], [3, 0, 3])
    assert batch["mask"].all()


@settings(max_examples=40, deadline=None)
@given(levels=st.sampled_from([2, 3, 16, 256, 65_536]), seed=st.integers(0, 1000))
def test_quantize_rounds_to_the_nearest_level(levels, seed):
    x = np.random.default_rng(seed).random((2, 5, 5, 1), np.float32)
    rounded = batches.quantize(x, levels)
    level = np.float64(rounded) * (levels - 1)
    assert rounded.dtype == np.float32
    np.testing.assert_allclose(level, level.round(), atol=1e-7 * levels)
    assert np.abs(rounded - x).max() <= 0.5 / (levels - 1) + 1e-7
    np.testing.assert_array_equal(batches.quantize(rounded, levels), rounded)


def test_quantize_keeps_stored_levels_and_the_ends_and_does_nothing_without_levels():
    stored = np.arange(256, dtype=np.float32) / np.float32(255)
    np.testing.assert_array_equal(batches.quantize(stored, 256), stored)
    np.testing.assert_array_equal(batches.quantize(np.float32([0.0, 1.0]), 3), [0.0, 1.0])
    assert batches.quantize(stored, None) is stored


def test_a_static_draw_is_the_same_for_an_index_wherever_it_occurs():
    passes = batches.binarized([grey([4, 9, 2]), grey([9, 9, 30, 4])], jax.random.key(0))
    first, second = (np.asarray(batch["image"]) for batch in passes)
    np.testing.assert_array_equal(first[[1, 1, 0]], second[[0, 1, 3]])
    assert set(np.unique(first)) == {0.0, 1.0}
    assert first.dtype == np.float32


def test_a_dynamic_draw_differs_by_step_and_is_reached_from_any_first_step():
    passes = [grey([4, 9]), grey([4, 9]), grey([9, 4])]
    drawn = [np.asarray(batch["image"]) for batch in batches.binarized(passes, jax.random.key(0), first_step=5)]
    assert not np.array_equal(drawn[0], drawn[1])
    (resumed,) = batches.binarized(passes[2:], jax.random.key(0), first_step=7)
    np.testing.assert_array_equal(resumed["image"], drawn[2])
    (alone,) = batches.binarized([grey([4])], jax.random.key(0), first_step=7)
    np.testing.assert_array_equal(alone["image"][0], drawn[2][1])


def test_draws_differ_by_index_and_by_key():
    same = {"image": np.full((3, 8, 8, 1), 0.5, np.float32), "index": np.int32([0, 1, 2])}
    (zero,), (one,) = (batches.binarized([same], jax.random.key(seed)) for seed in (0, 1))
    assert len({np.asarray(image).tobytes() for image in (*zero["image"], *one["image"])}) == 6


def test_the_mean_of_many_draws_is_the_grey_value_and_the_ends_are_certain():
    values = np.linspace(0, 1, 11, dtype=np.float32)
    n = 4000
    image = np.broadcast_to(values[None, :, None], (n, 11, 1))
    (batch,) = batches.binarized([{"image": image, "index": np.arange(n, dtype=np.int32)}], jax.random.key(0))
    bound = 4.5 * np.sqrt(values * (1 - values) / n)
    assert (np.abs(np.asarray(batch["image"]).mean(axis=(0, 2)) - values) <= bound).all()


def test_binarized_leaves_the_other_fields_alone():
    batch = {**grey([4, 9]), "label": np.int32([1, 2])}
    (drawn,) = batches.binarized([batch], jax.random.key(0))
    assert all(drawn[name] is batch[name] for name in ("mask", "index", "label"))


def test_a_segmentation_is_of_the_batch_in_both_ways():
    masks = np.arange(4 * 3 * 4, dtype=np.uint8).reshape(4, 3, 4)
    images = split(4)
    source = Split(4, lambda index: {**images.read(index), "segmentation": masks[index]})
    *_, last = batches.evaluation(source, 255.0, 3, None)
    assert last["segmentation"].dtype == np.int32
    np.testing.assert_array_equal(last["segmentation"], masks[[3, 3, 3]])
    batch = batches.batch_of(np.zeros((4, 3, 4, 1)), segmentation=masks)
    np.testing.assert_array_equal(batch["segmentation"], masks)
    assert (batch["segmentation"].dtype, batch.keys()) == (np.int32, {"image", "mask", "index", "segmentation"})
