"""The model's contract: densities against scipy, marginals against quadrature, draws that follow (key, index, number)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from vaejax import distributions as dist
from vaejax import models, networks
from vaejax.config import ModelConfig
from vaejax.keys import of_examples

SHAPE = (5, 4, 2)
FAMILIES = {
    "mlp-bernoulli": {"network": "mlp", "likelihood": "bernoulli"},
    "mlp-gaussian-pixel": {"network": "mlp", "likelihood": "gaussian", "scale": "pixel"},
    "cnn-gaussian-shared": {"network": "cnn", "likelihood": "gaussian", "scale": "shared"},
    "mlp-logistic-shared": {"network": "mlp", "likelihood": "discretized_logistic", "levels": 16},
    "mlp-mixture": {"network": "mlp", "likelihood": "logistic_mixture", "levels": 16, "components": 2},
}
each_family = pytest.mark.parametrize("family", FAMILIES)


def config(family: str = "mlp-gaussian-pixel", **fields) -> ModelConfig:
    return ModelConfig(**{"latent_size": 3, "hidden": (8,), "features": (4, 8)} | FAMILIES[family] | fields)


@functools.cache
def built(family: str) -> tuple[models.Model, models.Params]:
    """A model whose posterior differs from the prior, and from image to image."""
    model = models.build(config(family), SHAPE)
    params = jax.jit(model.init)(jax.random.key(0))
    return model, jax.tree.map(lambda leaf: 1.5 * leaf + 0.1, params)


def images(batch: int = 4, shape: tuple[int, ...] = SHAPE) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).integers(0, 2, (batch, *shape)), jnp.float32)


def keys(index: list[int] | range, seed: int = 1) -> jax.Array:
    return of_examples(jax.random.key(seed), jnp.array(index))


def infer(model: models.Model, params: models.Params, x: jax.Array, keys: jax.Array, samples: int | jax.Array = 1):
    """`model.infer`, compiled; a number of samples is static."""
    return jax.jit(model.infer, static_argnums=3 if isinstance(samples, int) else ())(params, x, keys, samples)


def posterior(params: models.Params, x: jax.Array, size: int = 3) -> tuple[jax.Array, jax.Array]:
    """Mean and log scale, straight from the encoder."""
    encoder = networks.encoder(config(), 2 * size)
    mean, raw = jnp.split(networks.apply(encoder, params["encoder"], x), 2, axis=-1)
    return mean, dist.soft_bound(raw, *dist.LATENT_LOG_SCALE)


@each_family
def test_everything_has_its_documented_shape(family):
    model, params = built(family)
    inference = infer(model, params, images(), keys(range(4)), 2)
    assert inference.latents.shape == (2, 4, 3)
    assert inference.log_ratio.shape == (2, 4)
    assert [kl.shape for kl in inference.kl] == [(4,)]
    assert inference.mean.shape == (4, 3)
    assert inference.likelihood.mean().shape == (2, 4, *SHAPE)
    assert dist.log_prob(inference.likelihood, images()).shape == (2, 4)
    assert model.decode(params, jnp.zeros((2, 1, 5, 3))).mean().shape == (2, 1, 5, *SHAPE)
    assert model.prior(params, keys(range(6))).shape == (6, 3)


@pytest.mark.parametrize(
    ("fields", "levels"), [("bernoulli", 2), ("gaussian", None), ("discretized_logistic", 256), ("logistic_mixture", 256)]
)
def test_levels_are_those_of_the_likelihood(fields, levels):
    model = models.build(ModelConfig(network="mlp", likelihood=fields, levels=256), SHAPE)
    assert (model.levels, model.image_shape) == (levels, SHAPE)


def test_a_shared_scale_is_one_number_a_channel_and_a_pixel_scale_is_the_decoders():
    shared, pixel = (built(family) for family in ("cnn-gaussian-shared", "mlp-gaussian-pixel"))
    assert shared[1]["log_scale"].shape == (2,)
    assert set(pixel[1]) == set(built("mlp-bernoulli")[1]) == {"encoder", "decoder"}
    params = shared[1] | {"log_scale": jnp.array([-1.0, 2.0])}
    scales = shared[0].decode(params, jnp.zeros((1, 3))).log_scale
    expected = dist.soft_bound(jnp.array([-1.0, 2.0]), *dist.IMAGE_LOG_SCALE)
    np.testing.assert_allclose(scales, expected, rtol=1e-6)
    assert len(np.unique(pixel[0].decode(pixel[1], jnp.zeros((1, 3))).log_scale)) == np.prod(SHAPE)


def test_log_ratio_is_the_difference_of_the_densities_of_scipy_at_the_latents():
    model, params = built("mlp-gaussian-pixel")
    inference = infer(model, params, images(), keys(range(4)), 3)
    z = np.float64(inference.latents)
    mean, log_scale = map(np.float64, posterior(params, images()))
    expected = stats.norm.logpdf(z, mean, np.exp(log_scale)).sum(-1) - stats.norm.logpdf(z).sum(-1)
    np.testing.assert_allclose(inference.log_ratio, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(inference.mean, mean, rtol=1e-5, atol=1e-6)


def test_the_mean_log_ratio_over_many_draws_is_the_kl():
    model, params = built("mlp-gaussian-pixel")
    inference = infer(model, params, images(), keys(range(4)), 4000)
    error = np.std(inference.log_ratio, axis=0) / np.sqrt(4000)
    assert (np.abs(inference.log_ratio.mean(axis=0) - inference.kl[0]) < 4 * error).all()
    assert (inference.kl[0] > 20 * error).all()


def test_importance_sampling_gives_the_marginal_likelihood_of_quadrature():
    model = models.build(config("mlp-bernoulli", latent_size=1), (2, 2, 1))
    params = jax.jit(model.init)(jax.random.key(0))
    params["decoder"] = jax.tree.map(lambda leaf: 2.0 * leaf + 0.2, params["decoder"])
    bits = np.arange(16)[:, None] >> np.arange(4) & 1
    x = jnp.asarray(bits.reshape(16, 2, 2, 1), jnp.float32)

    grid = np.linspace(-8, 8, 801)
    given_z = model.decode(params, jnp.broadcast_to(jnp.asarray(grid[:, None, None], jnp.float32), (801, 16, 1)))
    joint = np.float64(dist.log_prob(given_z, x)) + stats.norm.logpdf(grid)[:, None]
    marginal = np.exp(joint).sum(axis=0) * (grid[1] - grid[0])
    assert marginal.sum() == pytest.approx(1.0, rel=1e-4)

    inference = infer(model, params, x, keys(range(16)), 4000)
    log_weights = np.float64(dist.log_prob(inference.likelihood, x) - inference.log_ratio)
    estimate = special.logsumexp(log_weights, axis=0) - np.log(4000)
    np.testing.assert_allclose(estimate, np.log(marginal), atol=0.05)
    elbo = np.mean(log_weights, axis=0)
    assert (elbo < np.log(marginal)).all()


def test_stopping_the_posterior_gradient_leaves_the_path_through_the_draw_alone():
    model, params = built("mlp-gaussian-pixel")
    x = images()

    def value(params: models.Params, stop: bool) -> jax.Array:
        return model.infer(params, x, keys(range(4)), 1, stop_posterior_gradient=stop).log_ratio.sum()

    inference = infer(model, params, x, keys(range(4)))
    mean, log_scale = posterior(params, x)
    z, noise = inference.latents[0], (inference.latents[0] - mean) / jnp.exp(log_scale)
    # log q(z) - log p(z) at z = mean + scale * noise: by the density's own parameters, and by z.
    through_z = -noise / jnp.exp(log_scale) + z
    path = (through_z, through_z * jnp.exp(log_scale) * noise)
    whole = (z, z * jnp.exp(log_scale) * noise - 1.0)
    _, pull = jax.vjp(lambda params: posterior(params, x), params)
    for stop, expected in ((True, path), (False, whole)):
        got, want = jax.jit(jax.grad(value), static_argnums=1)(params, stop)["encoder"], pull(expected)[0]["encoder"]
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(b).max())
    assert value(params, True) == value(params, False)


@each_family
def test_decoding_the_latents_gives_the_likelihood_of_infer(family):
    model, params = built(family)
    inference = infer(model, params, images(), keys(range(4)), 2)
    alone = model.decode(params, inference.latents)
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(inference.likelihood), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    one = model.decode(params, inference.latents[1, 2:3]).mean()
    np.testing.assert_allclose(one[0], inference.likelihood.mean()[1, 2], rtol=1e-4, atol=1e-6)


@each_family
def test_infer_under_jit_equals_infer_without(family):
    model, params = built(family)
    eager = model.infer(params, images(), keys(range(4)), 2)
    compiled = infer(model, params, images(), keys(range(4)), 2)
    for a, b in zip(jax.tree.leaves(eager), jax.tree.leaves(compiled), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_what_is_inferred_of_an_image_depends_on_neither_batch_nor_place_nor_padding():
    model, params = built("mlp-gaussian-pixel")
    together = infer(model, params, images(), keys([7, 3, 12, 5]), 2)
    place = np.array([2, 0, 0, 2, 1])
    other = infer(model, params, images()[place], keys([12, 7, 7, 12, 3]), 2)
    for name in ("latents", "log_ratio"):
        np.testing.assert_allclose(getattr(other, name), getattr(together, name)[:, place], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(other.likelihood.mean(), together.likelihood.mean()[:, place], rtol=1e-4, atol=1e-5)
    same = infer(model, params, jnp.stack([images()[0]] * 2), keys([0, 1]), 2).latents
    assert len(np.unique(np.asarray(same).reshape(4, 3), axis=0)) == 4


def test_samples_by_number_equal_slices_of_as_many_samples():
    model, params = built("mlp-gaussian-pixel")
    whole = infer(model, params, images(), keys(range(4)), 6)
    numbers = np.array([4, 5, 1])
    chunk = infer(model, params, images(), keys(range(4)), jnp.asarray(numbers))
    np.testing.assert_array_equal(chunk.latents, whole.latents[numbers])
    np.testing.assert_allclose(chunk.log_ratio, whole.log_ratio[numbers], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(infer(model, params, images(), keys(range(4))).latents, whole.latents[:1])


def test_the_prior_is_a_standard_normal_whose_spread_is_the_temperature():
    model, params = built("mlp-gaussian-pixel")
    z = np.asarray(model.prior(params, keys(range(2000))))
    assert stats.kstest(z.ravel(), stats.norm().cdf).pvalue > 0.01
    np.testing.assert_array_equal(model.prior(params, keys([30, 4])), z[[30, 4]])
    np.testing.assert_allclose(model.prior(params, keys([30, 4]), 0.5), 0.5 * z[[30, 4]])
    assert not np.any(model.prior(params, keys([30, 4]), 0.0))


def test_a_condition_is_refused():
    model, params = built("mlp-gaussian-pixel")
    condition = jnp.zeros(4, int)
    for call in (
        lambda: model.infer(params, images(), keys(range(4)), condition=condition),
        lambda: model.decode(params, jnp.zeros((4, 3)), condition),
        lambda: model.prior(params, keys(range(4)), condition=condition),
    ):
        with pytest.raises(ValueError, match="unconditional"):
            call()


def test_init_follows_its_key():
    model, _ = built("mlp-bernoulli")
    first, again, other = (jax.tree.leaves(jax.jit(model.init)(jax.random.key(seed))) for seed in (0, 0, 1))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))
