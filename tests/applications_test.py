"""Generation and reconstruction: expected images of stated latents, nothing drawn that was not asked for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vaejax import models
from vaejax.applications import generation, reconstruction
from vaejax.config import ModelConfig
from vaejax.errors import FamilyError
from vaejax.keys import of_examples

SHAPE = (5, 4, 1)


@functools.cache
def built(likelihood: str = "gaussian") -> tuple[models.Model, models.Params]:
    model = models.build(ModelConfig(network="mlp", latent_size=3, hidden=(8,), likelihood=likelihood), SHAPE)
    return model, jax.tree.map(lambda leaf: 2.0 * leaf + 0.1, jax.jit(model.init)(jax.random.key(0)))


def images(batch: int = 4, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).random((batch, *SHAPE)), jnp.float32)


def near(got: jax.Array, expected: jax.Array) -> None:
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "discretized_logistic"])
def test_samples_are_images_and_more_of_them_leave_the_first_ones_as_they_are(likelihood):
    few, many = (generation.sample(*built(likelihood), jax.random.key(3), n) for n in (2, 6))
    assert many.shape == (6, *SHAPE)
    assert np.all((many >= 0) & (many <= 1))
    near(many[:2], few)
    assert len({np.asarray(image).tobytes() for image in many}) == 6


def test_samples_are_the_expected_images_of_latents_from_the_prior():
    model, params = built()
    latents = model.prior(params, of_examples(jax.random.key(3), jnp.arange(4)))
    near(generation.sample(model, params, jax.random.key(3), 4), model.decode(params, latents).mean())
    near(generation.sample(model, params, jax.random.key(3), 4, 0.5), model.decode(params, 0.5 * latents).mean())


def test_at_temperature_zero_every_sample_is_the_image_of_the_priors_mean():
    model, params = built()
    centre = model.decode(params, jnp.zeros((1, 3))).mean()
    near(generation.sample(model, params, jax.random.key(3), 3, 0.0), np.concatenate([centre] * 3))


def test_encoding_and_reconstructing_draw_nothing_and_look_at_one_image_at_a_time():
    model, params = built()
    code = reconstruction.encode(model, params, images())
    near(code, model.infer(params, images(), of_examples(jax.random.key(9), jnp.arange(4))).mean)
    rebuilt = reconstruction.reconstruct(model, params, images())
    near(rebuilt, model.decode(params, code).mean())
    near(reconstruction.reconstruct(model, params, images()[2:]), rebuilt[2:])
    assert not np.allclose(rebuilt[0], rebuilt[1], atol=1e-3)


def test_an_interpolation_goes_straight_from_one_reconstruction_to_the_other():
    model, params = built()
    first, second = images(), images(seed=1)
    path = reconstruction.interpolate(model, params, first, second, 5)
    assert path.shape == (4, 5, *SHAPE)
    near(path[:, 0], reconstruction.reconstruct(model, params, first))
    near(path[:, -1], reconstruction.reconstruct(model, params, second))
    quarter = 0.75 * reconstruction.encode(model, params, first) + 0.25 * reconstruction.encode(model, params, second)
    near(path[:, 1], model.decode(params, quarter).mean())


def test_draws_near_an_image_are_of_its_posterior_spread_by_the_temperature():
    model, params = built()
    keys = of_examples(jax.random.key(7), jnp.arange(2))
    found = model.infer(params, images(2), keys, 5)
    for temperature in (0.0, 1.0, 2.0):
        latents = found.mean[jnp.newaxis] + temperature * (found.latents - found.mean[jnp.newaxis])
        near(generation.near(model, params, images(2), keys, 5, temperature), model.decode(params, latents).mean())
    rebuilt = reconstruction.reconstruct(model, params, images(2))
    near(generation.near(model, params, images(2), keys, 3, 0.0), np.stack([rebuilt] * 3))
    near(generation.near(model, params, images(2), keys, 7)[:5], generation.near(model, params, images(2), keys, 5))


def test_near_codes_there_is_nothing_and_a_line_has_two_ends():
    codes = models.build(ModelConfig(family="vq", network="cnn", features=(4,)), SHAPE)
    with pytest.raises(FamilyError, match="nothing near it"):
        generation.near(codes, {}, images(), of_examples(jax.random.key(0), jnp.arange(4)), 2)
    with pytest.raises(ValueError, match="at least 2"):
        reconstruction.interpolate(*built(), images(), images(), 1)


# --- samples in parts, and from elsewhere than the prior


def test_samples_in_parts_are_those_of_one_call():
    parts = [generation.sample(*built(), jax.random.key(3), n, first=first) for first, n in ((0, 2), (2, 3), (5, 1))]
    near(np.concatenate(parts), generation.sample(*built(), jax.random.key(3), 6))


def test_the_number_of_the_first_sample_may_be_traced():
    model, params = built()
    later = jax.jit(lambda first: generation.sample(model, params, jax.random.key(3), 2, first=first))
    near(later(4), generation.sample(model, params, jax.random.key(3), 6)[4:])


def test_a_sampler_takes_the_place_of_the_prior():
    model, params = built()

    def sampler(keys: jax.Array, temperature: float) -> jax.Array:
        return temperature * jax.vmap(lambda key: jax.random.uniform(key, (3,)))(keys)

    got = generation.sample(model, params, jax.random.key(3), 3, 0.5, sampler=sampler, first=7)
    latents = sampler(of_examples(jax.random.key(3), jnp.arange(7, 10)), 0.5)
    near(got, model.decode(params, latents).mean())
    assert not np.allclose(got, generation.sample(model, params, jax.random.key(3), 3, 0.5, first=7), atol=1e-3)


WEIGHTS = np.array([0.3, 0.7])
MEANS = np.array([[-10.0, 5.0], [10.0, 0.0]])
ROOTS = np.array([[[1.0, 0.0], [0.8, 0.5]], [[2.0, 0.0], [-1.0, 1.0]]])
COVARIANCES = ROOTS @ ROOTS.transpose(0, 2, 1)


def test_a_fitted_mixture_has_the_weights_means_and_covariances_of_its_clusters():
    random, n = np.random.default_rng(0), 4000
    chosen = random.permutation(np.repeat([0, 1], [1200, 2800]))
    latents = MEANS[chosen] + np.einsum("nij,nj->ni", ROOTS[chosen], random.normal(size=(n, 2)))
    fitted = generation.fit_mixture(np.float32(latents), 2)
    order = np.argsort(fitted.log_weights)
    clusters = [latents[chosen == cluster] for cluster in (0, 1)]
    np.testing.assert_allclose(np.exp(fitted.log_weights)[order], WEIGHTS, atol=1e-4)
    np.testing.assert_allclose(fitted.mean[order], [part.mean(axis=0) for part in clusters], atol=1e-3)
    root = np.float64(fitted.root)[order]
    expected = [np.cov(part, rowvar=False, bias=True) for part in clusters]
    np.testing.assert_allclose(root @ root.transpose(0, 2, 1), expected, atol=1e-3)
    np.testing.assert_array_equal(root, np.tril(root))
    np.testing.assert_allclose(expected, COVARIANCES, atol=5 * 5.0 * np.sqrt(2.0 / 1200))


def mixture() -> generation.Mixture:
    return generation.Mixture(*(jnp.asarray(part, jnp.float32) for part in (np.log(WEIGHTS), MEANS, ROOTS)))


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_draws_from_a_mixture_follow_its_distribution(temperature):
    keys = of_examples(jax.random.key(4), jnp.arange(5000))
    drawn = np.float64(jax.jit(generation.sampler_of(mixture()))(keys, temperature))
    for direction in (np.array([1.0, 0.0]), np.array([0.6, 0.8])):
        scales = temperature * np.sqrt(np.einsum("i,mij,j->m", direction, COVARIANCES, direction))

        def distribution(x: np.ndarray, means=MEANS @ direction, scales=scales) -> np.ndarray:
            return stats.norm.cdf(x[:, None], means, scales) @ WEIGHTS

        assert stats.kstest(drawn @ direction, distribution).pvalue > 0.001
    for cluster, of_cluster in enumerate((drawn[:, 0] < 0, drawn[:, 0] > 0)):
        expected = temperature**2 * COVARIANCES[cluster]
        error = np.sqrt((np.outer(*[np.diag(expected)] * 2) + expected**2) / of_cluster.sum())
        assert (np.abs(np.cov(drawn[of_cluster], rowvar=False) - expected) < 4 * error).all()


def test_at_temperature_zero_draws_are_the_means_of_a_mixture_by_their_weights():
    drawn = np.asarray(generation.sampler_of(mixture())(of_examples(jax.random.key(5), jnp.arange(2000)), 0.0))
    first = (drawn == MEANS[0]).all(axis=-1)
    assert (first | (drawn == MEANS[1]).all(axis=-1)).all()
    assert stats.binomtest(int(first.sum()), 2000, 0.3).pvalue > 0.001
