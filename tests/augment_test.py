"""Changes of images against numpy, scipy and tf.image; draws against their distribution."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats

from vaejax import augment
from vaejax.config import AugmentConfig

ALL = AugmentConfig(rotate=30.0, zoom=0.2, crop=0.3, flip_horizontal=True, flip_vertical=True, brightness=0.1, contrast=0.2)
SEED = tf.constant([3, 5], tf.int64)


def images(batch: int = 4, height: int = 11, width: int = 8, channels: int = 2, seed: int = 0) -> tf.Tensor:
    return tf.constant(np.random.default_rng(seed).random((batch, height, width, channels), np.float32))


def apply(x: tf.Tensor, **parameters) -> np.ndarray:
    """The same known parameters for every image."""
    rows = {name: tf.constant([value] * x.shape[0]) for name, value in parameters.items()}
    return augment.apply(x, rows).numpy()


def resampled(x: tf.Tensor, matrix: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Bilinear interpolation by scipy; `matrix` and `shift` act on (row, column) counted from the centre."""
    centre = (np.array(x.shape[1:3]) - 1) / 2
    place = {"matrix": matrix, "offset": centre + shift - matrix @ centre, "order": 1, "mode": "grid-constant"}
    planes = [[ndimage.affine_transform(image[..., c], **place) for c in range(x.shape[-1])] for image in x.numpy()]
    return np.moveaxis(np.array(planes), 1, -1)


def test_the_table_holds_every_field_of_the_configuration_in_its_order():
    assert list(augment.OPERATIONS) == [field.name for field in dataclasses.fields(AugmentConfig)]


def test_nothing_asked_changes_no_bit():
    x = images()
    np.testing.assert_array_equal(augment.augment(x, SEED, AugmentConfig()), x)


@settings(max_examples=10, deadline=None)
@given(height=st.integers(1, 9), width=st.integers(1, 9), channels=st.integers(1, 4), seed=st.integers(0, 99))
def test_parameters_of_no_change_change_no_bit(height, width, channels, seed):
    x = images(2, height, width, channels, seed)
    nothing = {"rotate": 0.0, "zoom": 0.0, "crop": [0.0, 0.7, -0.3], "flip_horizontal": False, "flip_vertical": False}
    np.testing.assert_array_equal(apply(x, **nothing, brightness=0.0, contrast=0.0), x)


@settings(max_examples=10, deadline=None)
@given(height=st.integers(1, 9), width=st.integers(1, 9), seed=st.integers(0, 99))
def test_flips_equal_those_of_tf_image_and_undo_themselves(height, width, seed):
    x = images(2, height, width, seed=seed)
    np.testing.assert_array_equal(apply(x, flip_horizontal=True), tf.image.flip_left_right(x))
    np.testing.assert_array_equal(apply(x, flip_vertical=True), tf.image.flip_up_down(x))
    np.testing.assert_array_equal(apply(tf.constant(apply(x, flip_horizontal=True)), flip_horizontal=True), x)


@pytest.mark.parametrize(("degrees", "turns"), [(90.0, 1), (180.0, 2), (-90.0, 3)])
@pytest.mark.parametrize("side", [7, 8])
def test_quarter_turns_are_counter_clockwise_like_rot90(degrees, turns, side):
    x = images(height=side, width=side)
    np.testing.assert_allclose(apply(x, rotate=degrees), np.rot90(x, turns, axes=(1, 2)), atol=1e-5)


@pytest.mark.parametrize("degrees", [10.0, -37.5, 135.0])
def test_any_angle_equals_scipy_also_where_an_image_is_not_square(degrees):
    x = images()
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    expected = resampled(x, np.array([[cos, sin], [-sin, cos]]), np.zeros(2))
    np.testing.assert_allclose(apply(x, rotate=degrees), expected, atol=1e-5)


@pytest.mark.parametrize("change", [-0.4, 0.25, 0.9])
def test_zoom_magnifies_about_the_centre(change):
    x = images()
    np.testing.assert_allclose(apply(x, zoom=change), resampled(x, np.eye(2) / (1 + change), np.zeros(2)), atol=1e-5)


def test_a_crop_stretches_its_window_from_edge_to_edge():
    x = images(height=9, width=5)
    corner = apply(x, crop=[0.5, 1.0, -1.0])[:, ::2, ::2]  # half of each side, right and top; every second pixel is one of x
    np.testing.assert_allclose(corner, x[:, :5, 2:], atol=1e-6)
    ones = tf.ones([256, 12, 7, 1])
    np.testing.assert_allclose(augment.augment(ones, SEED, AugmentConfig(crop=0.9)), ones, atol=1e-5)


def test_changes_of_place_are_one_interpolation_in_the_order_of_the_table():
    x = images()
    angle = np.radians(20.0)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    zoomed = turn / 1.2
    centre = (np.array(x.shape[1:3]) - 1) / 2
    window = zoomed * 0.75
    shift = zoomed @ (0.25 * np.array([-0.5, 1.0]) * centre)
    expected = resampled(x, window @ np.diag([1.0, -1.0]), shift)
    got = apply(x, flip_horizontal=True, crop=[0.25, 1.0, -0.5], zoom=0.2, rotate=20.0)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_brightness_adds_and_contrast_scales_the_distance_to_each_channels_own_mean():
    x = images()
    np.testing.assert_allclose(apply(x, brightness=0.2), np.clip(x + 0.2, 0, 1), atol=1e-6)
    mean = np.mean(x, axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(apply(x, contrast=-0.3), mean + 0.7 * (x - mean), atol=1e-6)
    one_by_one = tf.stack([tf.image.adjust_contrast(image, 1.4) for image in x])
    np.testing.assert_allclose(apply(x, contrast=0.4), np.clip(one_by_one, 0, 1), atol=1e-6)


def test_each_image_has_parameters_of_its_own_and_values_stay_in_range():
    x = tf.tile(images(batch=1), [32, 1, 1, 1])
    y = augment.augment(x, SEED, ALL).numpy()
    assert len(np.unique(y.reshape(32, -1), axis=0)) == 32
    y = augment.augment(x, SEED, dataclasses.replace(ALL, brightness=1.0, contrast=1.0)).numpy()
    assert y.dtype == np.float32
    assert y.min() >= 0.0
    assert y.max() <= 1.0


def test_switching_an_operation_on_changes_no_other_draw():
    together = augment.draw(ALL, 6, SEED)
    assert set(together) == set(augment.OPERATIONS)
    off = AugmentConfig()
    for name, values in together.items():
        alone = augment.draw(dataclasses.replace(off, **{name: getattr(ALL, name)}), 6, SEED)
        assert set(alone) == {name}
        np.testing.assert_array_equal(alone[name], values)


def test_draws_follow_the_seed_alone():
    first, again = augment.draw(ALL, 6, SEED), augment.draw(ALL, 6, SEED)
    other = augment.draw(ALL, 6, tf.constant([3, 6], tf.int64))
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
    assert all(np.any(first[name] != other[name]) for name in ("rotate", "zoom", "crop", "brightness", "contrast"))
    assert abs(np.corrcoef(augment.draw(ALL, 2000, SEED)["rotate"], augment.draw(ALL, 2000, SEED)["zoom"])[0, 1]) < 0.07


def test_draws_are_uniform_over_their_ranges():
    drawn = {name: values.numpy() for name, values in augment.draw(ALL, 5000, SEED).items()}
    share, x, y = drawn.pop("crop").T
    ranges = {"rotate": 30.0, "zoom": 0.2, "brightness": 0.1, "contrast": 0.2}
    columns = [(drawn[name], -high, 2 * high) for name, high in ranges.items()]
    for values, low, length in [*columns, (share, 0.0, 0.3), (x, -1.0, 2.0), (y, -1.0, 2.0)]:
        assert stats.kstest(values, "uniform", args=(low, length)).pvalue > 1e-3
    for name in ("flip_horizontal", "flip_vertical"):
        assert stats.binomtest(int(drawn[name].sum()), 5000).pvalue > 1e-3


def phantom(batch: int, side: int = 48) -> np.ndarray:
    """Smooth random blobs, off the centre and without any symmetry, dark at the edge."""
    noise = np.random.default_rng(1).normal(size=(batch, side, side))
    blobs = np.stack([ndimage.gaussian_filter(image, 3.0) for image in noise])
    window = np.outer(np.hanning(side), np.hanning(side))
    return np.clip(0.5 + 3.0 * blobs * window - 0.2 * (1.0 - window), 0.0, 1.0).astype(np.float32)


@settings(max_examples=15, deadline=None)
@given(
    rotate=st.floats(-180.0, 180.0),
    zoom=st.floats(-0.5, 0.9),
    crop=st.tuples(st.floats(0.0, 0.6), st.floats(-1.0, 1.0), st.floats(-1.0, 1.0)),
    flips=st.tuples(st.booleans(), st.booleans()),
)
def test_a_segmentation_stays_with_its_image(rotate, zoom, crop, flips):
    """The threshold of the changed image is the changed threshold, but for pixels at the border of it."""
    grey = phantom(4)
    parameters = {"rotate": rotate, "zoom": zoom, "crop": list(crop), "flip_horizontal": flips[0], "flip_vertical": flips[1]}
    rows = {name: tf.constant([value] * 4) for name, value in parameters.items()}
    changed = augment.apply(tf.constant(grey[..., None]), rows).numpy()[..., 0]
    masks = augment.apply_to_segmentation(tf.constant((grey > 0.5).astype(np.uint8) * 9), rows).numpy()
    assert masks.dtype == np.uint8
    assert set(np.unique(masks)) <= {0, 9}
    # A pixel is at the border where any of the four that its value comes from is on the other side.
    inside = augment.apply(tf.constant((grey > 0.5).astype(np.float32)[..., None]), rows).numpy()[..., 0]
    sure = (inside < 1e-4) | (inside > 1 - 1e-4)
    np.testing.assert_array_equal(masks[sure] > 0, changed[sure] > 0.5)
    assert np.mean((masks > 0) == (changed > 0.5)) > 0.97


def test_a_segmentation_has_no_class_where_nothing_was_and_all_others_keep_theirs():
    masks = tf.constant(np.random.default_rng(0).integers(1, 256, (3, 9, 6), dtype=np.uint8))
    np.testing.assert_array_equal(augment.apply_to_segmentation(masks, {}), masks)
    flipped = augment.apply_to_segmentation(masks, {"flip_vertical": tf.constant([True, False, True])})
    np.testing.assert_array_equal(flipped, np.stack([masks[0][::-1], masks[1], masks[2][::-1]]))
    smaller = augment.apply_to_segmentation(masks, {"zoom": tf.constant([-0.5] * 3)}).numpy()
    assert not smaller[:, :2].any()
    assert smaller[:, 4, 2:4].all()
    grey = {"brightness": tf.constant([0.5] * 3), "contrast": tf.constant([0.5] * 3)}
    np.testing.assert_array_equal(augment.apply_to_segmentation(masks, grey), masks)


def test_a_share_of_a_batch_is_drawn_as_in_the_whole():
    whole, share = augment.draw(ALL, 8, SEED), augment.draw(ALL, 8, SEED, slice(2, 5))
    for name, values in whole.items():
        np.testing.assert_array_equal(share[name], values[2:5])
