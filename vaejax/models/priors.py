"""Priors over one latent vector: N(0, I), a learned mixture, and the mixture of the posteriors of learned images."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vaejax import distributions as dist
from vaejax.config import ModelConfig
from vaejax.models.model import PRIOR, Condition, Params, weights_of

HASTE = 3.0
"""A mixture's parameters are stored divided by this, so that Adam, whose steps know no scale, moves them so much faster: its
means have further to go than a weight. Worth 0.4 nats on MNIST after 20,000 steps."""


class Density(Protocol):
    """A distribution over latent vectors, not one an image."""

    def log_prob(self, z: Float[Array, "*k b d"]) -> Float[Array, "*k b"]:
        """Log density, nats a vector."""

    def sample(self, keys: Key[Array, " n"], temperature: float = 1.0) -> Float[Array, "n d"]:
        """One draw a key, the spread (of every component) scaled by `temperature`."""


class Prior(NamedTuple):
    """init(key) -> the prior's own parameters, {} where nothing is learned; density(params, condition) -> p(z|condition)."""

    init: Callable[[Key[Array, ""]], dict[str, Any]]
    density: Callable[[Params, Condition], Density]
    closed_kl: bool
    """Whether the rate of a Gaussian posterior has a closed form."""


def build(
    config: ModelConfig,
    image_shape: tuple[int, ...],
    classes: int | None,
    posterior: Callable[[Params, Float[Array, "n ..."]], dist.DiagonalGaussian],
) -> Prior:
    """The prior that `config.prior` names; `posterior` is that of images, for the VampPrior."""
    if config.prior == "mixture":
        return _mixture(config, classes)
    if config.prior == "vamp":
        return _vamp(config, image_shape, posterior)
    return Prior(lambda key: {}, lambda params, condition: dist.standard_normal(config.latent_size), closed_kl=True)


def _mixture(config: ModelConfig, classes: int | None) -> Prior:
    """Weights, means and scales of `prior_components` Gaussians, all learned; each of `classes` has weights of its own.

    Without them a model that is told the label would spend latents on it, and be asked for labels that its latents deny.
    """
    shape = (config.prior_components, config.latent_size)

    def init(key: Key[Array, ""]) -> dict[str, Any]:
        mean = jax.random.normal(key, shape) / HASTE
        logits = jnp.zeros((classes, shape[0]) if classes else shape[0])
        return {PRIOR: {"logits": logits, "mean": mean, "log_scale": jnp.zeros(shape)}}

    def density(params: Params, condition: Condition) -> Density:
        own = jax.tree.map(lambda leaf: HASTE * leaf, params[PRIOR])
        logits = weights_of(condition, classes) @ own["logits"] if classes else own["logits"]
        return dist.GaussianMixture(logits, own["mean"], dist.soft_bound(own["log_scale"], *dist.MIXTURE_LOG_SCALE))

    return Prior(init, density, closed_kl=False)


def _vamp(
    config: ModelConfig,
    image_shape: tuple[int, ...],
    posterior: Callable[[Params, Float[Array, "n ..."]], dist.DiagonalGaussian],
) -> Prior:
    """The posteriors of `prior_components` learned images, equally weighted (Tomczak and Welling 2018, eq. 8).

    The images start as grey noise. A component's log scale is at least the lower end of `distributions.MIXTURE_LOG_SCALE`.
    """

    def init(key: Key[Array, ""]) -> dict[str, Any]:
        noise = jax.random.normal(key, (config.prior_components, math.prod(image_shape)))
        return {PRIOR: {"images": noise}}

    def density(params: Params, condition: Condition) -> Density:
        del condition  # a conditional model has another prior
        images = jax.nn.sigmoid(params[PRIOR]["images"]).reshape(-1, *image_shape)
        q = posterior(params, images)
        return dist.GaussianMixture(jnp.zeros(len(images)), q.mean, jnp.maximum(q.log_scale, dist.MIXTURE_LOG_SCALE[0]))

    return Prior(init, density, closed_kl=False)
