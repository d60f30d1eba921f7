"""Inverse autoregressive flow: latents made richer than a Gaussian, every step invertible with a triangular Jacobian."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vaejax.config import ModelConfig
from vaejax.networks.activations import ACTIVATIONS
from vaejax.networks.layers import wide

GATE = 1.5
"""What is added to the raw gates, so that a step begins near the identity."""


class Flow(nn.Module):
    """`flow_steps` steps z <- g z + (1 - g) m, the order of the latents reversed between them (Kingma et al. 2016, eq. 14).

    Location m and gate g of a latent depend on the latents before it, and on the context that the encoder gives.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, z: Float[Array, "n d"], context: Float[Array, "n c"]) -> tuple[Float[Array, "n d"], Float[Array, " n"]]:
        """Maps `[n, d]` to `[n, d]` and the log determinant of the Jacobian, `[n]`, float32."""
        log_determinant = jnp.zeros(len(z))
        for _ in range(self.config.flow_steps):
            location, gate = _Autoregressive(self.config)(z, context)
            z = jax.nn.sigmoid(gate) * z + jax.nn.sigmoid(-gate) * location
            log_determinant += jax.nn.log_sigmoid(gate).sum(axis=-1)
            z = z[:, ::-1]
        return z, log_determinant


class _Autoregressive(nn.Module):
    """A masked network (Germain et al. 2015): what it says of a latent depends on the latents before it."""

    config: ModelConfig

    @nn.compact
    def __call__(self, z: jax.Array, context: jax.Array) -> tuple[jax.Array, jax.Array]:
        config, d = self.config, z.shape[-1]
        order = np.arange(d)
        units = np.arange(config.flow_width) * max(d - 1, 1) // config.flow_width  # after which latent each may look
        activate = ACTIVATIONS[config.activation]
        dense = [nn.Dense(width, dtype=config.dtype) for width in (config.flow_width, 2 * d)]
        x = activate(self._masked("first", z, order, units, strict=False) + dense[0](context))
        x = activate(self._masked("second", x, units, units, strict=False))
        x = self._masked("last", x, units, np.tile(order, 2), strict=True) + dense[1](context)
        location, gate = jnp.split(wide(x), 2, axis=-1)
        return location, gate + GATE

    def _masked(self, name: str, x: jax.Array, before: np.ndarray, after: np.ndarray, strict: bool) -> jax.Array:
        """A dense layer whose unit at place `after` sees those at places `before` it, itself included unless strict."""
        seen = before[:, np.newaxis] < after if strict else before[:, np.newaxis] <= after
        kernel = self.param(f"{name}_kernel", nn.initializers.lecun_normal(), seen.shape)
        bias = self.param(f"{name}_bias", nn.initializers.zeros, (len(after),))
        dtype = self.config.dtype
        return x.astype(dtype) @ (kernel * seen).astype(dtype) + bias.astype(dtype)[jnp.newaxis]
