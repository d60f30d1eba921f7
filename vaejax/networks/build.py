"""From the configuration to a network."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vaejax.config import ModelConfig
from vaejax.networks.cnn import CNNDecoder, CNNEncoder
from vaejax.networks.mlp import MLPDecoder, MLPEncoder
from vaejax.networks.transformer import TransformerDecoder, TransformerEncoder


def encoder(config: ModelConfig, outputs: int) -> nn.Module:
    """A module `[b, *image_shape] -> [b, outputs]`."""
    if config.network == "mlp":
        return MLPEncoder(config, outputs)
    if config.network == "transformer":
        return TransformerEncoder(config, outputs)
    return CNNEncoder(config, outputs, _blocks(config))


def decoder(config: ModelConfig, image_shape: tuple[int, int, int]) -> nn.Module:
    """A module `[b, latent_size] -> [b, *image_shape]`.

    Raises:
        ConfigError: the transformer's patches do not divide the image.
    """
    if config.network == "mlp":
        return MLPDecoder(config, image_shape)
    if config.network == "transformer":
        config.require_whole_patches(image_shape[:2])
        return TransformerDecoder(config, image_shape)
    return CNNDecoder(config, image_shape, _blocks(config))


def _blocks(config: ModelConfig) -> int:
    """Residual blocks at each size of the image."""
    return config.blocks if config.network == "resnet" else 0


def init(network: nn.Module, key: Key[Array, ""], shape: tuple[int, ...]) -> Any:
    """Initial parameters of a network whose inputs are `[b, *shape]`."""
    return network.init(key, jnp.zeros((1, *shape)))["params"]


def apply(network: nn.Module, params: Any, x: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
    """A network's output for a batch."""
    return jnp.asarray(network.apply({"params": params}, x))
