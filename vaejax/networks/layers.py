"""What the networks share: activation, normalisation, hidden dense layers, blocks."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vaejax.config import ModelConfig
from vaejax.networks.activations import ACTIVATIONS

GROUPS, SMALLEST = 8, 4
"""Groups of channels that group normalisation makes at most, and channels in one at least: alone, a number is no group."""


def activated(config: ModelConfig, x: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
    """Normalised over the last axis, or over groups of it and all pixels, where configured; then the nonlinearity."""
    return ACTIVATIONS[config.activation](_normalized(config, x))


def through(
    module: nn.Module, config: ModelConfig, block: Callable[[jax.Array], jax.Array], x: Float[Array, "b ..."]
) -> Float[Array, "b ..."]:
    """An input through a block of a module's, whose layers keep their names.

    With `model.remat` the gradient computes what is inside of the block again, from its input, instead of keeping it.
    """
    if not config.remat:
        return block(x)
    again = nn.remat(lambda _, x: block(x))
    return again(module, x)


def wide(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """At least float32: what leaves a network, whatever it was computed in."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def hidden(config: ModelConfig, x: Float[Array, "b n"], widths: tuple[int, ...]) -> Float[Array, "b m"]:
    """Dense layers, each activated."""
    for width in widths:
        x = activated(config, nn.Dense(width, dtype=config.dtype)(x))
    return x


def _normalized(config: ModelConfig, x: jax.Array) -> jax.Array:
    if config.norm == "layer":
        return nn.LayerNorm(dtype=config.dtype)(x)
    if config.norm == "group":
        return nn.GroupNorm(_groups(x.shape[-1]), dtype=config.dtype)(x)
    return x


def _groups(channels: int) -> int:
    return max(n for n in range(1, GROUPS + 1) if channels % n == 0 and channels // n >= min(SMALLEST, channels))
