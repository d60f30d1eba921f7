"""From a decoder's raw numbers to the likelihood that the configuration names; one way for every family."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vaejax import distributions as dist
from vaejax.config import ModelConfig
from vaejax.models.model import LOG_SCALE


def outputs(config: ModelConfig, channels: int) -> int:
    """Numbers a pixel that the decoder gives."""
    if config.likelihood == "logistic_mixture":
        return config.components * dist.outputs_of_mixture(channels)
    return channels if config.likelihood == "bernoulli" or _shares_scale(config) else 2 * channels


def init(config: ModelConfig, channels: int) -> dict[str, jax.Array]:
    """The parameters of the likelihood beside the decoder's: the log scale that all pixels share, where they do."""
    return {LOG_SCALE: jnp.zeros(channels)} if _shares_scale(config) else {}


def likelihood(config: ModelConfig, raw: Float[Array, "*n"], params: Mapping[str, Any], channels: int) -> dist.Likelihood:
    """The decoder's raw numbers as a distribution over images."""
    if config.likelihood == "bernoulli":
        return dist.Bernoulli(raw)
    if config.likelihood == "logistic_mixture":
        return dist.LogisticMixture(raw, channels, config.levels)
    location, scale = (raw, params[LOG_SCALE]) if _shares_scale(config) else jnp.split(raw, 2, axis=-1)
    if config.likelihood == "gaussian":
        return dist.Gaussian(location, scale)
    return dist.DiscretizedLogistic(location, scale, config.levels)


def levels(config: ModelConfig) -> int | None:
    """Grey levels that the likelihood is a distribution over; None for a density."""
    return {"bernoulli": 2, "gaussian": None}.get(config.likelihood, config.levels)


def _shares_scale(config: ModelConfig) -> bool:
    """Whether all pixels have one scale a channel, a parameter of its own."""
    return config.likelihood in ("gaussian", "discretized_logistic") and config.scale == "shared"
