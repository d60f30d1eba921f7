"""Fully connected encoder and decoder, for images of any size."""

import math

import flax.linen as nn
from jaxtyping import Array, Float

from vaejax.config import ModelConfig
from vaejax.networks.layers import hidden, wide


class MLPEncoder(nn.Module):
    """Flattened image -> hidden layers -> `outputs` numbers."""

    config: ModelConfig
    outputs: int

    @nn.compact
    def __call__(self, images: Float[Array, "b ..."]) -> Float[Array, "b outputs"]:
        """Maps `[b, *spatial, c]` to `[b, outputs]`, float32."""
        x = hidden(self.config, images.reshape(images.shape[0], -1), self.config.hidden)
        return wide(nn.Dense(self.outputs, dtype=self.config.dtype)(x))


class MLPDecoder(nn.Module):
    """Latent vector -> hidden layers, mirrored -> `[*spatial, channels]`."""

    config: ModelConfig
    image_shape: tuple[int, ...]

    @nn.compact
    def __call__(self, latents: Float[Array, "b d"]) -> Float[Array, "b ..."]:
        """Maps `[b, d]` to `[b, *image_shape]`, float32."""
        x = hidden(self.config, latents, self.config.hidden[::-1])
        x = nn.Dense(math.prod(self.image_shape), dtype=self.config.dtype)(x)
        return wide(x.reshape(-1, *self.image_shape))
