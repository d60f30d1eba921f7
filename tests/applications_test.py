"""Generation and reconstruction: expected images of stated latents, nothing drawn that was not asked for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vaejax import models
from vaejax.applications import generation, reconstruction
from vaejax.config import ModelConfig
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
