"""From an encoder's features to a class for every pixel."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vaejax.config import ModelConfig
from vaejax.networks.cnn import sizes_of
from vaejax.networks.convolutions import Convolution, Upsampling
from vaejax.networks.layers import activated, wide


class SegmentationHead(nn.Module):
    """Doubled once a width, beside the encoder's features of the same size and at last the image (Ronneberger et al. 2015)."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w c"], numbers: Float[Array, "b n"], *features: Float[Array, "b h2 w2 d"]
    ) -> Float[Array, "b h w regions"]:
        """Maps images, what the encoder says of each, and its features from the image inwards, to logits, float32."""
        config, sizes = self.config, sizes_of(self.config, images.shape[1:])
        widths = (max(config.features[0] // 2, 1), *config.features)
        beside = (images.astype(config.dtype), *features)
        x = features[-1] + nn.Dense(widths[-1], dtype=config.dtype)(numbers)[:, jnp.newaxis, jnp.newaxis]
        for place in reversed(range(len(features))):
            x = activated(config, Upsampling(widths[place], sizes[place], dtype=config.dtype)(x))
            x = activated(config, Convolution(widths[place], dtype=config.dtype)(jnp.concatenate([x, beside[place]], axis=-1)))
        return wide(nn.Dense(config.regions, dtype=config.dtype)(x))
