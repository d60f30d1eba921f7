"""Convolutional encoder and decoder, plain or residual: the image is halved once a width, any height and width."""

import functools
import math
from typing import TypeAlias

import flax.linen as nn
from jaxtyping import Array, Float

from vaejax.config import ModelConfig
from vaejax.networks.convolutions import Convolution, Subpixel, Upsampling
from vaejax.networks.layers import activated, hidden, through, wide

Features: TypeAlias = tuple[Float[Array, "b h2 w2 d"], ...]
"""One array a halving, from the image inwards."""


class CNNEncoder(nn.Module):
    """Image -> its features at the last size -> hidden layers -> `outputs` numbers."""

    config: ModelConfig
    outputs: int

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b outputs"]:
        """Maps `[b, h, w, c]` to `[b, outputs]`, float32."""
        return _encoded(self, self.config, self.outputs, images)[0]


class FeatureEncoder(nn.Module):
    """`CNNEncoder` with the same weights, that also tells its features at every size."""

    config: ModelConfig
    outputs: int

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> tuple[Float[Array, "b outputs"], Features]:
        """Maps `[b, h, w, c]` to `[b, outputs]`, float32, and one `[b, *size, features]` a halving, from the image inwards."""
        return _encoded(self, self.config, self.outputs, images)


class CNNDecoder(nn.Module):
    """Hidden layers -> a small image of the encoder's last size -> the image."""

    config: ModelConfig
    image_shape: tuple[int, int, int]

    @nn.compact
    def __call__(self, latents: Float[Array, "b d"]) -> Float[Array, "b h w c"]:
        """Maps `[b, d]` to `[b, *image_shape]`, float32."""
        config = self.config
        small = (*sizes_of(config, self.image_shape)[-1], config.features[-1])
        x = hidden(config, latents, (*config.hidden[::-1], math.prod(small)))
        return _up(self, config, x.reshape(-1, *small), self.image_shape)


class GridEncoder(nn.Module):
    """Image -> its features at the last size -> `outputs` numbers a place."""

    config: ModelConfig
    outputs: int

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 outputs"]:
        """Maps `[b, h, w, c]` to `[b, *sizes_of(config, image_shape)[-1], outputs]`, float32."""
        return wide(nn.Dense(self.outputs, dtype=self.config.dtype)(_down(self, self.config, images)[-1]))


class GridDecoder(nn.Module):
    """Numbers a place -> an image of the encoder's last size -> the image."""

    config: ModelConfig
    image_shape: tuple[int, int, int]

    @nn.compact
    def __call__(self, latents: Float[Array, "b h2 w2 d"]) -> Float[Array, "b h w c"]:
        """Maps `[b, *sizes_of(config, image_shape)[-1], d]` to `[b, *image_shape]`, float32."""
        x = Convolution(self.config.features[-1], dtype=self.config.dtype)(latents)
        return _up(self, self.config, activated(self.config, x), self.image_shape)


def sizes_of(config: ModelConfig, image_shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Height and width of the image, then after each halving, rounded up."""
    halvings = range(len(config.features) + 1)
    return [(-(-image_shape[0] // 2**n), -(-image_shape[1] // 2**n)) for n in halvings]


def _encoded(
    module: nn.Module, config: ModelConfig, outputs: int, images: Float[Array, "b h w c"]
) -> tuple[Float[Array, "b outputs"], Features]:
    found = _down(module, config, images)
    x = hidden(config, found[-1].reshape(len(images), -1), config.hidden)
    return wide(nn.Dense(outputs, dtype=config.dtype)(x)), found


def _down(module: nn.Module, config: ModelConfig, x: Float[Array, "b h w c"]) -> Features:
    """Strided 3x3 convolutions, each followed by residual blocks: the features after each, from the image inwards."""
    found = []
    for width in config.features:
        x = through(module, config, functools.partial(_halved, config, width), x)
        x = _residuals(module, config, x)
        found.append(x)
    return tuple(found)


def _up(
    module: nn.Module, config: ModelConfig, x: Float[Array, "b h2 w2 d"], image_shape: tuple[int, int, int]
) -> Float[Array, "b h w c"]:
    """Doubled once a width, after residual blocks; float32."""
    sizes = sizes_of(config, image_shape)
    for size, width in zip(sizes[-2:0:-1], config.features[-2::-1], strict=True):
        x = _residuals(module, config, x)
        x = through(module, config, functools.partial(_doubled, config, width, size), x)
    x = _residuals(module, config, x)
    return wide(Subpixel(image_shape[-1], image_shape[:2], dtype=config.dtype)(x))


def _halved(config: ModelConfig, width: int, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
    return activated(config, Convolution(width, stride=2, dtype=config.dtype)(x))


def _doubled(config: ModelConfig, width: int, size: tuple[int, int], x: Float[Array, "b h2 w2 d"]) -> Float[Array, "b h w c"]:
    return activated(config, Upsampling(width, size, dtype=config.dtype)(x))


def _residuals(module: nn.Module, config: ModelConfig, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """The residual blocks at a size of the image."""
    for _ in range(config.blocks if config.network == "resnet" else 0):
        x = through(module, config, functools.partial(_residual, config), x)
    return x


def _residual(config: ModelConfig, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Two convolutions added to their input, activated before each (He et al. 2016, identity mappings)."""
    y = x
    for _ in range(2):
        y = Convolution(x.shape[-1], dtype=config.dtype)(activated(config, y))
    return x + y
