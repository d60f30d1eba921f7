"""Points along the axes of an image: where a resize puts them, and the way back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vaejax.datasets import geometry, image

SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))
POLICIES = st.sampled_from(["pad", "crop", "stretch"])


@settings(max_examples=60, deadline=None)
@given(SIZES, SIZES, POLICIES, st.integers(0, 99))
def test_fitted_axes_say_what_a_resize_does(size, asked, policy, seed):
    values = np.random.default_rng(seed).uniform(size=size).astype(np.float32)
    axes = geometry.fitted(size, asked, policy)
    expected = image.resize(values[..., None], asked, policy)[..., 0]
    np.testing.assert_allclose(geometry.there(values, axes), expected, atol=2e-5)


@pytest.mark.parametrize(("n", "spacing", "asked"), [(40, 0.5, 1.0), (30, 1.0, 3.0), (12, 2.0, 1.0), (30, 1.2, 0.9)])
def test_another_spacing_is_that_of_pillow_where_the_extent_stays(n, spacing, asked):
    values = np.random.default_rng(0).uniform(size=(n, 1)).astype(np.float32)
    axis = geometry.spaced(n, spacing, asked)
    expected = Image.fromarray(values).resize((1, round(n * spacing / asked)), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(geometry.there(values, [axis]), np.array(expected), atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.floats(0.2, 5.0), st.floats(0.2, 5.0))
def test_spaced_points_have_the_asked_distance_and_the_middle_of_the_source(n, spacing, asked):
    axis = geometry.spaced(n, spacing, asked)
    np.testing.assert_allclose(axis.at.mean(), (n - 1) / 2, atol=1e-9)
    if axis != geometry.same(n):
        assert (axis.n - 1) * asked < n * spacing <= (axis.n + 2e-3) * asked  # no more than cover it
        np.testing.assert_allclose(np.diff(axis.at) * spacing, asked, rtol=1e-9)


def test_its_own_spacing_up_to_rounding_changes_nothing():
    values = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    axis = geometry.spaced(7, 0.7, np.float32(0.7))
    assert axis == geometry.same(7)
    np.testing.assert_array_equal(geometry.there(values, [axis]), values)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 30), st.integers(2, 30), st.floats(0.3, 3.0), POLICIES)
def test_a_ramp_comes_back_where_it_was(h, w, asked, policy):
    """Positions survive the composition of a spacing and a fitting: linear interpolation is exact for a line."""
    spaced = geometry.spaced(h, 1.0, asked), geometry.spaced(w, 1.0, asked)
    axes = [
        geometry.after(*pair)
        for pair in zip(spaced, geometry.fitted((spaced[0].n, spaced[1].n), (24, 20), policy), strict=True)
    ]
    for place, (axis, n) in enumerate(zip(axes, (h, w), strict=True)):
        points = np.broadcast_to(np.expand_dims(axis.at, 1 - place), (24, 20)).astype(np.float32)
        found = geometry.back(points, axes, np.nan)
        places = np.broadcast_to(np.expand_dims(np.arange(n), 1 - place), (h, w))
        low, high = axis.at[axis.first], axis.at[axis.last - 1]
        inside = np.isfinite(found)
        assert inside.any()
        np.testing.assert_allclose(found[inside], np.clip(places, low, high)[inside], atol=1e-4)


@pytest.mark.parametrize("policy", ["pad", "stretch"])
def test_nothing_is_lost_unless_it_was_cropped(policy):
    axes = geometry.fitted((31, 17), (16, 24), policy)
    assert np.isfinite(geometry.back(np.ones((16, 24), np.float32), axes, np.nan)).all()
    np.testing.assert_allclose(
        geometry.back(geometry.there(np.ones((31, 17)), axes), axes), 1.0, rtol=1e-6
    )  # no padding leaks in


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.floats(0.2, 5.0))
def test_another_spacing_loses_no_voxel(n, asked):
    axis = geometry.spaced(n, 1.0, asked)
    assert np.isfinite(geometry.back(np.ones(axis.n, np.float32), [axis], np.nan)).all()


def test_what_was_cropped_away_is_outside():
    axes = geometry.fitted((8, 20), (8, 8), "crop")
    found = geometry.back(np.ones((8, 8), np.float32), axes, np.nan)
    np.testing.assert_array_equal(np.isfinite(found).all(axis=0), (np.arange(20) >= 6) & (np.arange(20) < 14))
    assert geometry.back(np.ones((8, 8), np.uint8), axes).sum() == 64


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, bool])
def test_classes_stay_classes(dtype):
    mask = (np.add.outer(np.arange(20), np.arange(30)) > 25).astype(dtype) * np.array(1, dtype)
    axes = geometry.fitted((20, 30), (13, 17), "pad")
    there = geometry.there(mask, axes)
    assert there.dtype == geometry.back(there, axes).dtype == dtype
    assert set(np.unique(there)) <= set(np.unique(mask))


def test_half_a_voxel_aside_no_class_is_taken_twice():
    classes = np.tile(np.arange(9, dtype=np.uint8), (4, 1))
    np.testing.assert_array_equal(geometry.there(classes, geometry.fitted((4, 9), (4, 4), "crop"))[0], [3, 4, 5, 6])


def test_a_finer_grid_and_back_keeps_every_class():
    mask = np.random.default_rng(0).integers(0, 5, (9, 11)).astype(np.uint8)
    for asked in ((18, 22), (27, 33), (20, 25)):
        axes = geometry.fitted((9, 11), asked, "stretch")
        np.testing.assert_array_equal(geometry.back(geometry.there(mask, axes), axes), mask)


def test_a_coarser_grid_averages_so_that_nothing_aliases():
    stripes = np.tile(np.float32([0, 1]), 32)
    axis = geometry.spaced(64, 1.0, 4.0)
    np.testing.assert_allclose(geometry.there(stripes, [axis]), 0.5, atol=0.13)
