"""Images from the prior, or from another way of drawing latents."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from vaejax.errors import FamilyError
from vaejax.keys import of_examples
from vaejax.models import Condition, Latents, Model, Params

Sampler = Callable[[Key[Array, " n"], float], Latents]
"""(keys, temperature) -> latents, one draw a key."""


def sample(
    model: Model,
    params: Params,
    key: Key[Array, ""],
    n: int,
    temperature: float = 1.0,
    condition: Condition = None,
    sampler: Sampler | None = None,
    first: int | Int[Array, ""] = 0,
) -> Float[Array, "n ..."]:
    """Draws latents and shows the expected image of each.

    Args:
        model: any family.
        params: its parameters.
        key: the base of the draws; image i depends on (key, i) alone, so more images leave the first ones as they are.
        n: how many.
        temperature: scales the standard deviation of what is drawn from; of codes, divides the logits.
        condition: for a conditional model, the label of each image.
        sampler: where latents come from instead of the model's prior, such as `sampler_of` a fitted mixture.
        first: the number i of the first image.

    Returns:
        `[n, *image_shape]` in [0, 1].
    """
    keys = of_examples(key, first + jnp.arange(n))
    latents = sampler(keys, temperature) if sampler else model.prior(params, keys, temperature, condition)
    return model.decode(params, latents, condition).mean()


def near(
    model: Model,
    params: Params,
    images: Float[Array, "b ..."],
    keys: Key[Array, " b"],
    n: int,
    temperature: float = 1.0,
    condition: Condition = None,
) -> Float[Array, "n b ..."]:
    """Expected images of draws from the posteriors of images: what the model takes for the same image.

    Args:
        model: any family whose latents are real numbers.
        params: its parameters.
        images: in [0, 1].
        keys: one an image; its i-th draw depends on (key, i) alone.
        n: draws an image.
        temperature: scales how far draws are from the posterior mean; at 0 all are the reconstruction.
        condition: for a conditional model, the label of each image.

    Returns:
        `[n, b, *image_shape]` in [0, 1].

    Raises:
        FamilyError: the latents are codes, of which an image has but one set.
    """
    if not model.random:
        raise FamilyError(
            "sample: the latents of this model are codes, and an image has one set of them, so that there is nothing near it. "
            "Choose a run with model.family='vae' or 'hierarchical'."
        )
    found = model.infer(params, images, keys, n, condition)

    def moved(draws: Array, mean: Array) -> Array:
        return mean[jnp.newaxis] + temperature * (draws - mean[jnp.newaxis])

    return model.decode(params, jax.tree.map(moved, found.latents, found.mean), condition).mean()


class Mixture(NamedTuple):
    """A mixture of Gaussians over latent vectors, fitted after training (Ghosh et al. 2020, section 4)."""

    log_weights: Float[Array, " m"]
    mean: Float[Array, "m d"]
    root: Float[Array, "m d d"]
    """Lower Cholesky factors of the covariances."""


def fit_mixture(latents: Float[np.ndarray, "n d"], components: int, seed: int = 0) -> Mixture:
    """Fits a mixture with full covariances to latents, such as posterior draws of the training images (scikit-learn)."""
    from sklearn import mixture  # slow to import, and wanted by few

    fitted = mixture.GaussianMixture(components, reg_covar=1e-4, random_state=seed, max_iter=100).fit(latents)
    root = np.linalg.cholesky(fitted.covariances_)
    return Mixture(*(jnp.asarray(part, jnp.float32) for part in (np.log(fitted.weights_), fitted.means_, root)))


def sampler_of(fitted: Mixture) -> Sampler:
    """Draws from a fitted mixture; the temperature scales the spread of each component."""

    def draw(key: Key[Array, ""], temperature: float) -> Float[Array, " d"]:
        component_key, noise_key = jax.random.split(key)
        component = jax.random.categorical(component_key, fitted.log_weights)
        noise = jax.random.normal(noise_key, fitted.mean.shape[-1:])
        return fitted.mean[component] + temperature * fitted.root[component] @ noise

    return jax.vmap(draw, (0, None))
