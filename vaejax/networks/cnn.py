"""Convolutional encoder and decoder: the image is halved once a width, any height and width."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vaejax.networks.activations import ACTIVATIONS
from vaejax.networks.convolutions import Convolution, Subpixel, Upsampling


class CNNEncoder(nn.Module):
    """Strided 3x3 convolutions -> hidden layers -> `outputs` numbers."""

    features: tuple[int, ...]
    hidden: tuple[int, ...]
    outputs: int
    activation: str
    dtype: str = "float32"

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b outputs"]:
        """Maps `[b, h, w, c]` to `[b, outputs]`, float32."""
        activation = ACTIVATIONS[self.activation]
        x = images
        for width in self.features:
            x = activation(Convolution(width, stride=2, dtype=self.dtype)(x))
        x = x.reshape(x.shape[0], -1)
        for width in self.hidden:
            x = activation(nn.Dense(width, dtype=self.dtype)(x))
        return nn.Dense(self.outputs, dtype=self.dtype)(x).astype(jnp.float32)


class CNNDecoder(nn.Module):
    """Hidden layers -> a small image of the encoder's last size -> doubled once a width -> `image_shape`."""

    features: tuple[int, ...]
    hidden: tuple[int, ...]
    image_shape: tuple[int, int, int]
    activation: str
    dtype: str = "float32"

    @nn.compact
    def __call__(self, latents: Float[Array, "b d"]) -> Float[Array, "b h w c"]:
        """Maps `[b, d]` to `[b, *image_shape]`, float32."""
        activation = ACTIVATIONS[self.activation]
        sizes = [self.image_shape[:2]]
        for _ in self.features:
            sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
        (height, width), deepest = sizes[-1], self.features[-1]
        x = latents
        for hidden in reversed(self.hidden):
            x = activation(nn.Dense(hidden, dtype=self.dtype)(x))
        x = activation(nn.Dense(height * width * deepest, dtype=self.dtype)(x)).reshape(-1, height, width, deepest)
        for size, width in zip(sizes[-2:0:-1], self.features[-2::-1], strict=True):
            x = activation(Upsampling(width, size, dtype=self.dtype)(x))
        return Subpixel(self.image_shape[-1], self.image_shape[:2], dtype=self.dtype)(x).astype(jnp.float32)
