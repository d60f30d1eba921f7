"""From the configuration to a network."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vaejax.config import ModelConfig
from vaejax.networks.cnn import CNNDecoder, CNNEncoder
from vaejax.networks.mlp import MLPDecoder, MLPEncoder


def encoder(config: ModelConfig, outputs: int) -> nn.Module:
    """A module `[b, *image_shape] -> [b, outputs]`."""
    if config.network == "mlp":
        return MLPEncoder(config.hidden, outputs, config.activation, config.dtype)
    return CNNEncoder(config.features, config.hidden, outputs, config.activation, config.dtype)


def decoder(config: ModelConfig, image_shape: tuple[int, int, int]) -> nn.Module:
    """A module `[b, latent_size] -> [b, *image_shape]`."""
    if config.network == "mlp":
        return MLPDecoder(config.hidden, image_shape, config.activation, config.dtype)
    return CNNDecoder(config.features, config.hidden, image_shape, config.activation, config.dtype)


def init(network: nn.Module, key: Key[Array, ""], shape: tuple[int, ...]) -> Any:
    """Initial parameters of a network whose inputs are `[b, *shape]`."""
    return network.init(key, jnp.zeros((1, *shape)))["params"]


def apply(network: nn.Module, params: Any, x: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
    """A network's output for a batch."""
    return jnp.asarray(network.apply({"params": params}, x))
