"""Transformer encoder and decoder (Dosovitskiy et al. 2021): an image is a sequence of square patches."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vaejax.config import ModelConfig
from vaejax.networks.activations import ACTIVATIONS
from vaejax.networks.layers import through, wide


class TransformerEncoder(nn.Module):
    """Patches -> attention blocks -> all tokens side by side -> `outputs` numbers."""

    config: ModelConfig
    outputs: int

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b outputs"]:
        """Maps `[b, h, w, c]` to `[b, outputs]`, float32."""
        config = self.config
        b, h, w, c = images.shape
        p = config.patch_size
        patches = images.reshape(b, h // p, p, w // p, p, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, p * p * c)
        tokens = _Blocks(config)(nn.Dense(config.width, dtype=config.dtype)(patches))
        return wide(nn.Dense(self.outputs, dtype=config.dtype)(tokens.reshape(b, -1)))


class TransformerDecoder(nn.Module):
    """Latent vector -> one token a patch -> attention blocks -> patches -> `[h, w, c]`."""

    config: ModelConfig
    image_shape: tuple[int, int, int]

    @nn.compact
    def __call__(self, latents: Float[Array, "b d"]) -> Float[Array, "b h w c"]:
        """Maps `[b, d]` to `[b, *image_shape]`, float32."""
        config, p = self.config, self.config.patch_size
        h, w, c = self.image_shape
        rows, columns = h // p, w // p
        tokens = nn.Dense(rows * columns * config.width, dtype=config.dtype)(latents).reshape(-1, rows * columns, config.width)
        patches = nn.Dense(p * p * c, dtype=config.dtype)(_Blocks(config)(tokens))
        images = patches.reshape(-1, rows, columns, p, p, c).transpose(0, 1, 3, 2, 4, 5)
        return wide(images.reshape(-1, h, w, c))


class CodeReader(nn.Module):
    """Codes in their order -> logits of each, given those before it and what it is told; a causal transformer."""

    config: ModelConfig

    @nn.compact
    def __call__(self, codes: Int[Array, "b n"], told: Float[Array, "b c"]) -> Float[Array, "b n codes"]:
        """Maps `[b, n]` in 0 ... codes - 1 and `[b, c]` to `[b, n, codes]`, float32."""
        config = self.config
        start = nn.Dense(config.width, dtype=config.dtype)(told)[:, jnp.newaxis]
        before = nn.Embed(config.codes, config.width, dtype=config.dtype)(codes[:, :-1].astype(jnp.int32))
        tokens = _Blocks(config, causal=True)(jnp.concatenate([start, before], axis=1))
        return wide(nn.Dense(config.codes, dtype=config.dtype)(tokens))


class _Blocks(nn.Module):
    """Positions added, then attention and a dense layer a block, each after its own layer norm; one more norm at the end."""

    config: ModelConfig
    causal: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b n width"]) -> Float[Array, "b n width"]:
        config = self.config
        positions = self.param("positions", nn.initializers.normal(0.02), x.shape[1:])
        x = x + positions[jnp.newaxis].astype(x.dtype)
        for _ in range(config.depth):
            x = through(self, config, functools.partial(_block, config, self.causal), x)
        return nn.LayerNorm(dtype=config.dtype)(x)


def _block(config: ModelConfig, causal: bool, x: Float[Array, "b n width"]) -> Float[Array, "b n width"]:
    dtype = config.dtype
    x = x + _attention(config, nn.LayerNorm(dtype=dtype)(x), causal)
    y = nn.Dense(4 * config.width, dtype=dtype)(nn.LayerNorm(dtype=dtype)(x))
    return x + nn.Dense(config.width, dtype=dtype)(ACTIVATIONS[config.activation](y))


def _attention(config: ModelConfig, x: Float[Array, "b n width"], causal: bool) -> Float[Array, "b n width"]:
    """Every token looks at every other, or at those up to itself."""
    query, key, value = jnp.split(nn.Dense(3 * config.width, dtype=config.dtype)(x), 3, axis=-1)
    heads = [y.reshape(*y.shape[:2], config.heads, -1) for y in (query, key, value)]
    mixed = jax.nn.dot_product_attention(*heads, is_causal=causal)
    return nn.Dense(config.width, dtype=config.dtype)(mixed.reshape(x.shape))
