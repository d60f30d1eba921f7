"""Convolutional encoder and decoder, plain or residual: the image is halved once a width, any height and width."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vaejax.config import ModelConfig
from vaejax.networks.convolutions import Convolution, Subpixel, Upsampling
from vaejax.networks.layers import activated, hidden


class CNNEncoder(nn.Module):
    """Strided 3x3 convolutions, each followed by residual blocks -> hidden layers -> `outputs` numbers."""

    config: ModelConfig
    outputs: int
    blocks: int = 0

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b outputs"]:
        """Maps `[b, h, w, c]` to `[b, outputs]`, float32."""
        config, x = self.config, images
        for width in config.features:
            x = activated(config, Convolution(width, stride=2, dtype=config.dtype)(x))
            for _ in range(self.blocks):
                x = _residual(config, x)
        x = hidden(config, x.reshape(x.shape[0], -1), config.hidden)
        return nn.Dense(self.outputs, dtype=config.dtype)(x).astype(jnp.float32)


class CNNDecoder(nn.Module):
    """Hidden layers -> a small image of the encoder's last size -> doubled once a width, after residual blocks."""

    config: ModelConfig
    image_shape: tuple[int, int, int]
    blocks: int = 0

    @nn.compact
    def __call__(self, latents: Float[Array, "b d"]) -> Float[Array, "b h w c"]:
        """Maps `[b, d]` to `[b, *image_shape]`, float32."""
        config = self.config
        sizes = [self.image_shape[:2]]
        for _ in config.features:
            sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
        (height, width), deepest = sizes[-1], config.features[-1]
        x = hidden(config, latents, (*config.hidden[::-1], height * width * deepest))
        x = x.reshape(-1, height, width, deepest)
        for size, width in zip(sizes[-2:0:-1], config.features[-2::-1], strict=True):
            for _ in range(self.blocks):
                x = _residual(config, x)
            x = activated(config, Upsampling(width, size, dtype=config.dtype)(x))
        for _ in range(self.blocks):
            x = _residual(config, x)
        return Subpixel(self.image_shape[-1], self.image_shape[:2], dtype=config.dtype)(x).astype(jnp.float32)


def _residual(config: ModelConfig, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Two convolutions added to their input, activated before each (He et al. 2016, identity mappings)."""
    y = x
    for _ in range(2):
        y = Convolution(x.shape[-1], dtype=config.dtype)(activated(config, y))
    return x + y
