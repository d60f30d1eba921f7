"""Convolutions whose gradients are fast where XLA's own choice is slow."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
_KERNEL = nn.initializers.lecun_normal()


class Convolution(nn.Module):
    """3x3 convolution, same padding: `[b, h, w, c] -> [b, ceil(h / stride), ceil(w / stride), features]`."""

    features: int
    stride: int = 1
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 features"]:
        """Applies the layer."""
        kernel = self.param("kernel", _KERNEL, (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = (array.astype(self.dtype) for array in (x, kernel, bias))
        return _add_bias(convolve(x, kernel, self.stride), bias)


class Upsampling(nn.Module):
    """Twice the size: the transpose of a strided 3x3 convolution, `[b, ceil(H / 2), ceil(W / 2), c] -> [b, H, W, features]`."""

    features: int
    size: tuple[int, int]
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b H W features"]:
        """Applies the layer."""
        kernel = self.param("kernel", _KERNEL, (3, 3, self.features, x.shape[-1]))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = (array.astype(self.dtype) for array in (x, kernel, bias))
        return _add_bias(convolve_transposed(x, kernel, self.size), bias)


def convolve(x: Float[Array, "b h w c"], kernel: Float[Array, "i j c d"], stride: int = 1) -> Float[Array, "b h2 w2 d"]:
    """Cross-correlation with same padding."""
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=_DIMENSIONS)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve_transposed(
    x: Float[Array, "b h w d"], kernel: Float[Array, "i j c d"], size: tuple[int, int]
) -> Float[Array, "b H W c"]:
    """The transpose, in its first argument, of `convolve(y, kernel, stride=2)` for `y` of `size` (H, W).

    XLA lowers the weight gradient of a transposed convolution to one with a dilated input, many times slower on a CPU than
    the strided convolution's own. As <g, T(x, k)> = <convolve(g, k), x>, that one serves: with g as input and x as cotangent.
    """
    image = jax.ShapeDtypeStruct((x.shape[0], *size, kernel.shape[2]), x.dtype)
    (y,) = jax.linear_transpose(lambda y: convolve(y, kernel, 2), image)(x)
    return y


def _forward(x: jax.Array, kernel: jax.Array, size: tuple[int, int]) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return convolve_transposed(x, kernel, size), (x, kernel)


def _backward(size: tuple[int, int], saved: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    x_gradient, weight_gradient = jax.vjp(lambda kernel: convolve(g, kernel, 2), kernel)
    return x_gradient, weight_gradient(x)[0]


convolve_transposed.defvjp(_forward, _backward)


def _add_bias(x: Float[Array, "b h w c"], bias: Float[Array, " c"]) -> Float[Array, "b h w c"]:
    return x + bias[jnp.newaxis, jnp.newaxis, jnp.newaxis]
