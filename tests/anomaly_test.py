"""Scores and maps: each is what its formula says, larger where an image is stranger, and of one image at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from vaejax import distributions as dist
from vaejax import metrics, models
from vaejax.applications import anomaly
from vaejax.applications.reconstruction import reconstruct
from vaejax.config import AnomalyConfig, ModelConfig
from vaejax.errors import FamilyError
from vaejax.keys import of_examples
from vaejax.screening import SCORES

pytestmark = pytest.mark.usefixtures("compiled_quickly")

SHAPE = (22, 23, 2)
SETTINGS = AnomalyConfig(samples=3, steps=4)
FAMILIES = {
    "vae": {"network": "mlp", "hidden": (8,), "latent_size": 3},
    "levels": {"network": "mlp", "hidden": (8,), "latent_size": 3, "likelihood": "discretized_logistic", "scale": "pixel"},
    "hierarchical": {"family": "hierarchical", "network": "resnet", "features": (4,), "blocks": 1, "latent_size": 2},
    "vq": {"family": "vq", "network": "cnn", "features": (4,), "codes": 4, "latent_size": 2},
}


@functools.cache
def built(family: str = "vae") -> tuple[models.Model, models.Params]:
    model = models.build(ModelConfig(**FAMILIES[family]), SHAPE)
    return model, jax.tree.map(lambda leaf: leaf + 0.03, jax.jit(model.init)(jax.random.key(0)))


def images(batch: int = 4, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).random((batch, *SHAPE)), jnp.float32)


def scored(name: str, family: str = "vae", rows: slice = slice(None), settings: AnomalyConfig = SETTINGS) -> anomaly.Scores:
    model, params = built(family)
    look = jax.jit(lambda x, keys: anomaly.score(model, params, x, keys, name, settings))
    return look(images()[rows], keys(rows))


def keys(rows: slice = slice(None)) -> jax.Array:
    return of_examples(jax.random.key(5), jnp.arange(4)[rows])


def near(got: jax.Array, expected: jax.Array, tolerance: float = 1e-4) -> None:
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=1e-5)


DEFINED = [(family, name) for family in FAMILIES for name in SCORES if family != "vq" or name not in ("rate", "restoration")]


@pytest.mark.parametrize(("family", "name"), DEFINED)
def test_every_score_has_a_number_an_image_and_one_a_pixel_and_looks_at_one_image_at_a_time(family, name):
    found, alone = scored(name, family), scored(name, family, slice(2, 3))
    assert found.value.shape == (4,)
    assert found.map.shape == (4, *SHAPE[:2])
    assert np.isfinite(found.value).all()
    assert np.isfinite(found.map).all()
    assert len(np.unique(np.asarray(found.value))) == 4
    near(found.value[2:3], alone.value)
    near(found.map[2:3], alone.map, 1e-3)


@pytest.mark.parametrize("name", ["rate", "restoration"])
def test_a_score_that_a_family_does_not_have_is_refused_with_the_reason(name):
    with pytest.raises(FamilyError, match=f"anomaly.score='{name}': not defined .* codes"):
        scored(name, "vq")


def test_small_images_have_no_ssim():
    model = models.build(ModelConfig(network="mlp"), (8, 12, 1))
    assert "window of 11" in (anomaly.undefined(model, "ssim") or "")
    assert "half the size" in (anomaly.undefined(models.build(ModelConfig(network="mlp"), (40, 21, 1)), "two_scale_ssim") or "")
    assert anomaly.undefined(model, "error") is None


def test_the_likelihood_is_the_importance_sampled_one_and_its_map_adds_up_to_the_distortion():
    model, params = built()
    inference = jax.jit(lambda x: model.infer(params, x, keys(), 3))(images())
    log_likelihood = np.float64(dist.log_prob(inference.likelihood, images()))
    found = scored("likelihood")
    weights = log_likelihood - np.float64(inference.log_ratio)
    near(found.value, -(np.logaddexp.reduce(weights, axis=0) - np.log(3)))
    near(found.map.sum(axis=(1, 2)), -log_likelihood.mean(axis=0))


def test_error_and_ssim_are_those_of_the_reconstruction():
    model, params = built()
    restored = jax.jit(lambda x: reconstruct(model, params, x))(images())
    near(scored("error").value, metrics.mse(images(), restored))
    smooth = ndimage.gaussian_filter(np.float64(images() - restored), (0, 1.5, 1.5, 0), mode="constant", radius=(0, 5, 5, 0))
    near(scored("error").map, (smooth**2).mean(axis=-1), 1e-3)
    near(scored("ssim").value, 1.0 - metrics.ssim(images(), restored))
    inside = 1.0 - scored("ssim").map[:, 5:-5, 5:-5]
    near(inside.mean(axis=(1, 2)), metrics.ssim(images(), restored))


def whole_ssim(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Wang et al. 2004, eq. 13, in float64, around every pixel of images mirrored at their edges."""
    window = functools.partial(ndimage.gaussian_filter, sigma=(0, 1.5, 1.5, 0), mode="mirror", radius=(0, 5, 5, 0))
    one, two = window(first), window(second)
    variances, covariance = window(first**2) - one**2 + window(second**2) - two**2, window(first * second) - one * two
    light = (2 * one * two + 0.01**2) / (one**2 + two**2 + 0.01**2)
    return (light * (2 * covariance + 0.03**2) / (variances + 0.03**2)).mean(axis=(1, 2, 3))


def dissimilarities() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """1 - SSIM of reconstructions at full and at half size, and their mean squared errors."""
    model, params = built()
    restored = jax.jit(lambda x: reconstruct(model, params, x))(images())
    halves = [np.float64(x)[:, :22, :22].reshape(4, 11, 2, 11, 2, 2).mean(axis=(2, 4)) for x in (images(), restored)]
    error = ((np.float64(images()) - np.float64(restored)) ** 2).mean(axis=(1, 2, 3))
    return 1.0 - np.float64(metrics.ssim(images(), restored)), 1.0 - whole_ssim(*halves), error


def test_two_scale_ssim_is_the_geometric_mean_of_ssim_inside_and_of_half_the_size_with_its_edges():
    fine, coarse, _ = dissimilarities()
    near(scored("two_scale_ssim").value ** 2 / fine, coarse, 1e-3)


@pytest.mark.parametrize("difference", [anomaly.two_scale_ssim, anomaly.ssim_and_error])
def test_an_image_restored_exactly_has_no_difference(difference):
    same = images()
    found = difference(same, same)
    assert np.abs(found.value).max() < 1e-3
    assert np.abs(found.map).max() < 1e-3


def test_ssim_and_error_is_the_product_of_two_scale_ssim_and_the_root_of_the_error():
    fine, coarse, error = dissimilarities()
    near(scored("ssim_and_error").value, np.sqrt(fine * coarse * error), 1e-3)
    apart = [np.float64(scored(name).map) for name in ("two_scale_ssim", "error")]
    near(scored("ssim_and_error").map, apart[0] * np.sqrt(apart[1]), 1e-3)


def test_a_relative_map_is_in_units_of_the_usual_one_where_that_is_not_almost_nothing():
    usual = jnp.array([[4.0, 0.0], [2.0, 2.0]])
    np.testing.assert_allclose(anomaly.relative(jnp.ones((1, 2, 2)), usual)[0], [[0.25, 5.0], [0.5, 0.5]])


def test_the_rate_map_is_the_slope_of_the_rate_at_each_pixel():
    model, params = built()
    nudge = jnp.zeros((4, *SHAPE)).at[1, 3, 4, :].set(jnp.array([0.0, 1e-2]))

    @jax.jit
    def rate(x: jax.Array) -> jax.Array:
        return jnp.stack(model.infer(params, x, keys()).kl).sum(axis=0)

    slope = jax.grad(lambda x: rate(x).sum())(images())[1, 3, 4]
    near(scored("rate").value, rate(images()))
    near(scored("rate").map[1, 3, 4], np.hypot(*slope))
    near((rate(images() + nudge) - rate(images() - nudge))[1] / 2e-2, slope[1], 1e-2)


def test_a_restoration_is_likelier_than_the_image_and_stays_in_range_and_near():
    model, params = built()
    settings = AnomalyConfig(steps=5, fidelity=0.0)
    restored = jax.jit(lambda x: anomaly.restore(model, params, x, keys(), settings))(images())
    assert np.all((restored >= 0) & (restored <= 1))
    assert float(jnp.abs(restored - images()).max()) <= anomaly.STEP * 3 + 1e-6  # steps of 1, 4/5, ..., 1/5

    @jax.jit
    def bound(x: jax.Array) -> jax.Array:
        inference = model.infer(params, x, keys())
        return dist.log_prob(inference.likelihood, x)[0] - jnp.stack(inference.kl).sum(axis=0)

    assert (bound(restored) > bound(images())).all()


def test_a_heavier_fidelity_keeps_the_restoration_at_the_image():
    loose, tight = (scored("restoration", settings=AnomalyConfig(steps=8, fidelity=weight)) for weight in (0.0, 1e4))
    assert (tight.value < 0.7 * loose.value).all()


@pytest.mark.parametrize("name", ["likelihood", "error", "ssim", "two_scale_ssim", "ssim_and_error", "restoration"])
def test_a_changed_pixel_stands_out_in_the_maps(name):
    model, params = built()
    params = params | {"decoder": jax.tree.map(lambda leaf: 0.05 * leaf, params["decoder"])}
    plain = jnp.full((1, *SHAPE), 0.5)
    settings = AnomalyConfig(steps=6, fidelity=0.0)
    look = jax.jit(lambda x: anomaly.score(model, params, x, keys(slice(1)), name, settings))
    before, after = look(plain), look(plain.at[0, 6, 7].set(1.0))
    assert after.value[0] > before.value[0]
    away = np.hypot(*np.subtract(np.unravel_index(np.argmax(after.map[0] - before.map[0]), SHAPE[:2]), (6, 7)))
    assert away <= (1.5 if "ssim" in name else 0)


def test_a_conditional_model_is_told_the_labels():
    model = models.build(ModelConfig(**FAMILIES["vae"], conditional=True), SHAPE, 3)
    params = jax.jit(model.init)(jax.random.key(0))
    told = [jnp.full(4, label) for label in (0, 1)]
    look = jax.jit(lambda condition: anomaly.score(model, params, images(), keys(), "likelihood", SETTINGS, condition).value)
    assert not np.allclose(*(look(condition) for condition in told))
