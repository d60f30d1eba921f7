"""The parts of a hierarchy of latent images, from coarse to fine: what rises from the image, and what comes down to it."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vaejax.config import ModelConfig
from vaejax.networks.convolutions import Convolution, Subpixel, Upsampling
from vaejax.networks.layers import activated, through, wide

NARROW = 4
"""A block's 3x3 convolution has so many times fewer channels than its ends."""


class BottomUp(nn.Module):
    """Image -> its features at every size, from the image inwards: a strided convolution, then residual blocks."""

    config: ModelConfig

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> tuple[Float[Array, "b h2 w2 d"], ...]:
        """Maps `[b, h, w, c]` to one `[b, ceil(h / 2^s), ceil(w / 2^s), features[s]]` a size."""
        x, found = images, []
        for width in self.config.features:
            x = Convolution(width, stride=2, dtype=self.config.dtype)(x)
            for _ in range(self.config.blocks):
                x = x + Block(self.config, width)(x)
            found.append(x)
        return tuple(found)


class PriorHead(nn.Module):
    """What comes down -> location and raw log scale of a level's latents, and what is added to what comes down."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "n h w d"]) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Maps `[n, h, w, d]` to two `[n, h, w, latent_size]`, float32, and `[n, h, w, d]`."""
        size = self.config.latent_size
        y = Block(self.config, 2 * size + x.shape[-1])(x)
        location, log_scale, rest = jnp.split(y, [size, 2 * size], axis=-1)
        return wide(location), wide(log_scale), rest


class PosteriorHead(nn.Module):
    """What comes down and what rises -> mean and raw log scale of a level's standardised latents; at first those of N(0, I)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "n h w d"], risen: Float[Array, "n h w d"]) -> tuple[jax.Array, jax.Array]:
        """Maps two `[n, h, w, d]` to two `[n, h, w, latent_size]`, float32."""
        y = Block(self.config, 2 * self.config.latent_size, zero=True)(jnp.concatenate([x, risen], axis=-1))
        mean, log_scale = jnp.split(wide(y), 2, axis=-1)
        return mean, log_scale


class Merge(nn.Module):
    """What comes down, with the latents of a level -> what comes down to the next."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "n h w d"], latents: Float[Array, "n h w z"]) -> Float[Array, "n h w d"]:
        """Maps `[n, h, w, d]` and `[n, h, w, latent_size]` to `[n, h, w, d]`."""
        x = x + nn.Dense(x.shape[-1], dtype=self.config.dtype)(latents)
        return x + Block(self.config, x.shape[-1])(x)


class Finer(nn.Module):
    """To the next size: `[n, h, w, d] -> [n, *size, features]`."""

    config: ModelConfig
    features: int
    size: tuple[int, int]

    @nn.compact
    def __call__(self, x: Float[Array, "n h w d"]) -> Float[Array, "n h2 w2 features"]:
        """Applies the layer."""
        return Upsampling(self.features, self.size, dtype=self.config.dtype)(activated(self.config, x))


class ToImage(nn.Module):
    """The last size -> the raw numbers of the likelihood: `[n, h, w, d] -> [n, *image_shape]`, float32."""

    config: ModelConfig
    image_shape: tuple[int, int, int]

    @nn.compact
    def __call__(self, x: Float[Array, "n h w d"]) -> Float[Array, "n h2 w2 c"]:
        """Applies the layer."""
        x = Subpixel(self.image_shape[-1], self.image_shape[:2], dtype=self.config.dtype)(activated(self.config, x))
        return wide(x)


class Block(nn.Module):
    """1x1, 3x3 with a quarter of the channels, 1x1, activated before each (Child 2021, figure 3, with one 3x3)."""

    config: ModelConfig
    outputs: int
    zero: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "n h w d"]) -> Float[Array, "n h w outputs"]:
        """Maps `[n, h, w, d]` to `[n, h, w, outputs]`."""
        return through(self, self.config, functools.partial(_layers, self.config, self.outputs, self.zero), x)


def _layers(config: ModelConfig, outputs: int, zero: bool, x: Float[Array, "n h w d"]) -> Float[Array, "n h w outputs"]:
    narrow = max(min(x.shape[-1], outputs) // NARROW, 4)
    x = nn.Dense(narrow, dtype=config.dtype)(activated(config, x))
    x = Convolution(narrow, dtype=config.dtype)(activated(config, x))
    start = nn.initializers.zeros if zero else nn.initializers.lecun_normal()
    return nn.Dense(outputs, dtype=config.dtype, kernel_init=start)(activated(config, x))
