"""Fully connected encoder and decoder, for images of any size."""

import math

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vaejax.networks.activations import ACTIVATIONS


class MLPEncoder(nn.Module):
    """Flattened image -> hidden layers -> `outputs` numbers."""

    hidden: tuple[int, ...]
    outputs: int
    activation: str
    dtype: str = "float32"

    @nn.compact
    def __call__(self, images: Float[Array, "b ..."]) -> Float[Array, "b outputs"]:
        """Maps `[b, *spatial, c]` to `[b, outputs]`, float32."""
        x = images.reshape(images.shape[0], -1)
        for width in self.hidden:
            x = ACTIVATIONS[self.activation](nn.Dense(width, dtype=self.dtype)(x))
        return nn.Dense(self.outputs, dtype=self.dtype)(x).astype(jnp.float32)


class MLPDecoder(nn.Module):
    """Latent vector -> hidden layers, mirrored -> `[*spatial, channels]`."""

    hidden: tuple[int, ...]
    image_shape: tuple[int, ...]
    activation: str
    dtype: str = "float32"

    @nn.compact
    def __call__(self, latents: Float[Array, "b d"]) -> Float[Array, "b ..."]:
        """Maps `[b, d]` to `[b, *image_shape]`, float32."""
        x = latents
        for width in reversed(self.hidden):
            x = ACTIVATIONS[self.activation](nn.Dense(width, dtype=self.dtype)(x))
        x = nn.Dense(math.prod(self.image_shape), dtype=self.dtype)(x)
        return x.reshape(-1, *self.image_shape).astype(jnp.float32)
