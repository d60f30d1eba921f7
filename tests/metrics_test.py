"""Metrics against tf.image, numpy and scipy."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import linalg, stats

from vaejax import metrics

RANDOM = np.random.default_rng(0)


def pair(height: int, width: int, channels: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Smooth images, and the same with noise, in [0, 1]."""
    images = (np.cumsum(np.cumsum(RANDOM.normal(size=(3, height, width, channels)), axis=1), axis=2) % 20) / 20
    others = np.clip(images + noise * RANDOM.normal(size=images.shape), 0, 1)
    return np.float32(images), np.float32(others)


@pytest.mark.parametrize(("shape", "noise"), [((11, 11, 1), 0.3), ((28, 28, 1), 0.1), ((20, 33, 3), 0.02)])
def test_psnr_and_ssim_equal_those_of_tf_image(shape, noise):
    images, others = pair(*shape, noise)
    np.testing.assert_allclose(metrics.psnr(images, others), tf.image.psnr(images, others, 1.0), rtol=1e-4)
    np.testing.assert_allclose(metrics.ssim(images, others), tf.image.ssim(images, others, 1.0), atol=2e-4)


def test_an_image_without_error_counts_as_the_cap_and_is_wholly_similar():
    images, others = pair(12, 12, 1, 0.1)
    others[1] = images[1]
    assert metrics.psnr(images, others)[1] == metrics.PSNR_CAP == 100.0
    assert metrics.psnr(images, others)[0] < 40
    np.testing.assert_allclose(metrics.ssim(images, images), 1.0, atol=1e-5)


@pytest.mark.parametrize("shape", [(10, 28, 1), (28, 10, 1), (1, 1, 3)])
def test_ssim_refuses_images_smaller_than_its_window(shape):
    images = np.zeros((2, *shape), np.float32)
    assert not metrics.has_ssim(shape)
    with pytest.raises(ValueError, match=f"{shape[0]}, {shape[1]}.*at least 11"):
        metrics.ssim(images, images)


def test_has_ssim_looks_at_the_sides_and_not_at_the_channels():
    assert metrics.has_ssim((11, 40, 1))


def test_mse_is_the_mean_over_all_but_the_batch():
    images, others = pair(5, 6, 2, 0.3)
    np.testing.assert_allclose(metrics.mse(images, others), ((images - others) ** 2).reshape(3, -1).mean(1), rtol=1e-5)


def test_bits_per_dim_of_uniform_levels_are_their_bits():
    nats = np.array([12 * np.log(256.0), 12 * np.log(2.0)])
    np.testing.assert_allclose(metrics.bits_per_dim(nats, 12), [8.0, 1.0])


def test_active_units_are_those_that_vary_over_the_data():
    spread = np.array([0.05, 0.09, 0.11, 1.0])
    codes = np.where(np.arange(1000)[:, None] % 2, 1.0, -1.0) * spread + 100.0
    assert metrics.active_units(codes.astype(np.float32)) == 2


def test_summary_has_the_standard_error_of_scipy():
    values = RANDOM.normal(3.0, 2.0, 50)
    got = metrics.summary(values.astype(np.float32), "nats")
    assert got["mean"] == pytest.approx(values.mean(), rel=1e-6)
    assert got["sem"] == pytest.approx(stats.sem(values), rel=1e-6)
    assert (got["n"], got["unit"]) == (50, "nats")
    assert metrics.summary(np.array([2.0]), "dB") == {"mean": 2.0, "sem": None, "n": 1, "unit": "dB"}


def features(n: int, seed: int, d: int = 6) -> np.ndarray:
    """Correlated features, float32."""
    random = np.random.default_rng(seed)
    return np.float32(random.normal(size=(n, d)) @ random.normal(size=(d, d)) + random.normal(size=d))


@pytest.mark.parametrize(("n", "m"), [(50, 80), (4, 30)])
def test_the_frechet_distance_is_that_of_scipy_and_symmetric(n, m):
    """Of four vectors in six dimensions the covariance has no inverse."""
    first, second = features(n, 0), features(m, 1)
    one, two = (np.cov(np.float64(part), rowvar=False) for part in (first, second))
    shift = np.float64(first).mean(axis=0) - np.float64(second).mean(axis=0)
    expected = shift @ shift + np.trace(one + two - 2.0 * linalg.sqrtm(one @ two).real)
    assert metrics.frechet(first, second) == pytest.approx(expected, rel=1e-5)
    assert metrics.frechet(second, first) == pytest.approx(metrics.frechet(first, second), rel=1e-6)


def test_the_frechet_distance_of_equal_sets_is_zero_and_a_shift_adds_its_square():
    first, second = np.float64(features(60, 0)), np.float64(features(60, 1))
    assert metrics.frechet(first, first) == pytest.approx(0.0, abs=1e-9)
    assert metrics.frechet(first, first[::-1]) == pytest.approx(0.0, abs=1e-9)
    shift = np.array([3.0, 0.0, -4.0, 0.0, 0.0, 12.0])
    assert metrics.frechet(first + shift, first) == pytest.approx(169.0)
    centred = second - second.mean(axis=0) + first.mean(axis=0)
    assert metrics.frechet(centred + shift, first) == pytest.approx(metrics.frechet(centred, first) + 169.0)


def test_the_frechet_distance_of_scaled_features_is_known():
    """Between N(0, C) and N(0, s^2 C): (s - 1)^2 tr C."""
    first = np.float64(features(60, 0))
    first -= first.mean(axis=0)
    expected = 4.0 * np.trace(np.cov(first, rowvar=False))
    assert metrics.frechet(first, 3.0 * first) == pytest.approx(expected)


def test_perplexity_is_the_number_of_codes_that_would_be_as_various():
    assert metrics.perplexity(np.array([0, 40, 0])) == 1.0
    for codes in (2, 7):
        assert metrics.perplexity(np.repeat([0, 13], [5, codes])) == pytest.approx(codes)
    counts = np.array([5, 0, 1, 30])
    assert metrics.perplexity(counts) == pytest.approx(np.exp(stats.entropy(counts)))
