"""From the configuration to a network."""

from typing import Any, TypeAlias

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vaejax.config import ModelConfig
from vaejax.networks.cnn import CNNDecoder, CNNEncoder
from vaejax.networks.mlp import MLPDecoder, MLPEncoder
from vaejax.networks.transformer import TransformerDecoder, TransformerEncoder

Network: TypeAlias = nn.Module
"""What holds no weights itself: `init` makes them, `apply` takes them."""


def encoder(config: ModelConfig, outputs: int) -> Network:
    """A module `[b, *image_shape] -> [b, outputs]`."""
    if config.network == "mlp":
        return MLPEncoder(config, outputs)
    if config.network == "transformer":
        return TransformerEncoder(config, outputs)
    return CNNEncoder(config, outputs)


def decoder(config: ModelConfig, image_shape: tuple[int, int, int]) -> Network:
    """A module `[b, latent_size] -> [b, *image_shape]`.

    Raises:
        ConfigError: the transformer's patches do not divide the image.
    """
    if config.network == "mlp":
        return MLPDecoder(config, image_shape)
    if config.network == "transformer":
        config.require_whole_patches(image_shape[:2])
        return TransformerDecoder(config, image_shape)
    return CNNDecoder(config, image_shape)


def init(network: Network, key: Key[Array, ""], *shapes: tuple[int, ...]) -> Any:
    """Initial parameters of a network whose inputs are `[b, *shape]`."""
    return network.init(key, *(jnp.zeros((1, *shape)) for shape in shapes))["params"]


def apply(network: Network, params: Any, *inputs: Float[Array, "b ..."]) -> Any:
    """A network's output for a batch."""
    return network.apply({"params": params}, *inputs)
