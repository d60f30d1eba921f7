"""Convolutions, with same padding, whose gradients are fast where XLA's own choice is slow on a CPU.

On other platforms each is XLA's own. `docs/performance.md` has the measurements.
"""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

FEW_CHANNELS = 4
"""Channels up to which, on a CPU, nine shifts of an image are made and multiplied at once."""

PARTS, LARGE, MANY_CHANNELS = 8, 2**19, 17
"""Into how many parts, on a CPU, a batch is cut for the gradient of a kernel; from which numbers and output channels on."""

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
_SIDE = 3


class Convolution(nn.Module):
    """3x3 convolution: `[b, h, w, c] -> [b, ceil(h / stride), ceil(w / stride), features]`."""

    features: int
    stride: int = 1
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 features"]:
        """Applies the layer."""
        x, kernel, bias = _parameters(self, x, (_SIDE, _SIDE, x.shape[-1], self.features), self.features)
        return _biased(convolve(x, kernel, self.stride), bias)


class Upsampling(nn.Module):
    """Twice the size: the transpose of a strided 3x3 convolution, `[b, ceil(H / 2), ceil(W / 2), c] -> [b, H, W, features]`."""

    features: int
    size: tuple[int, int]
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b H W features"]:
        """Applies the layer."""
        x, kernel, bias = _parameters(self, x, (_SIDE, _SIDE, self.features, x.shape[-1]), self.features)
        return _biased(convolve_transposed(x, kernel, self.size), bias)


class Subpixel(nn.Module):
    """Twice the size, for few channels: a 3x3 convolution gives the 2x2 pixels in the place of each (Shi et al. 2016).

    `[b, ceil(H / 2), ceil(W / 2), c] -> [b, H, W, features]`.
    """

    features: int
    size: tuple[int, int]
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b H W features"]:
        """Applies the layer."""
        b, h, w, _ = x.shape
        y = Convolution(4 * self.features, dtype=self.dtype)(x)
        y = y.reshape(b, h, w, 2, 2, self.features).transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, self.features)
        return y[:, : self.size[0], : self.size[1]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"], stride: int = 1) -> Float[Array, "b h2 w2 d"]:
    """Cross-correlation with same padding."""
    if stride == 1 and kernel.shape[-1] <= FEW_CHANNELS:
        return jax.lax.platform_dependent(x, kernel, cpu=_convolve_to_few, default=_convolve_natively)
    return _convolve_natively(x, kernel, stride)


def _convolve_natively(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=_DIMENSIONS)


def _convolve_to_few(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """One matrix product gives all nine taps of a pixel; each is then added where it belongs."""
    (b, h, w, c), d = x.shape, kernel.shape[-1]
    taps = (x.reshape(-1, c) @ kernel.transpose(2, 0, 1, 3).reshape(c, -1)).reshape(b, h, w, _SIDE, _SIDE, d)
    taps = jnp.pad(taps, ((0, 0), (1, 1), (1, 1), (0, 0), (0, 0), (0, 0)))
    return functools.reduce(jnp.add, (taps[:, i : i + h, j : j + w, i, j] for i in range(_SIDE) for j in range(_SIDE)))


def _convolve_forward(x: jax.Array, kernel: jax.Array, stride: int) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return convolve(x, kernel, stride), (x, kernel)


def _convolve_backward(stride: int, saved: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    (x_gradient,) = jax.linear_transpose(lambda x: _convolve_natively(x, kernel, stride), x)(g)
    return x_gradient, _kernel_gradient(x, g, stride)


convolve.defvjp(_convolve_forward, _convolve_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve_transposed(
    x: Float[Array, "b h w d"], kernel: Float[Array, "3 3 c d"], size: tuple[int, int]
) -> Float[Array, "b H W c"]:
    """The transpose, in its first argument, of `convolve(y, kernel, stride=2)` for `y` of `size` (H, W).

    XLA lowers the kernel gradient of a transposed convolution to one with a dilated input, many times slower on a CPU than
    the strided convolution's own. As <g, T(x, k)> = <convolve(g, k), x>, that one serves: with g as input and x as cotangent.
    """
    image = jax.ShapeDtypeStruct((x.shape[0], *size, kernel.shape[2]), x.dtype)
    (y,) = jax.linear_transpose(lambda y: _convolve_natively(y, kernel, 2), image)(x)
    return y


def _transposed_forward(
    x: jax.Array, kernel: jax.Array, size: tuple[int, int]
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return convolve_transposed(x, kernel, size), (x, kernel)


def _transposed_backward(
    size: tuple[int, int], saved: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    return _convolve_natively(g, kernel, 2), _kernel_gradient(g, x, 2)


convolve_transposed.defvjp(_transposed_forward, _transposed_backward)


def _kernel_gradient(x: Float[Array, "b h w c"], g: Float[Array, "b h2 w2 d"], stride: int) -> Float[Array, "3 3 c d"]:
    """Gradient of `<g, convolve(x, kernel, stride)>` by the kernel.

    On a CPU it is one matrix product where the nine shifts of x or of g are few numbers a pixel, else a sum over parts of the
    batch, each of which stays in the cache.
    """
    chosen: Callable[[jax.Array, jax.Array], jax.Array]
    if x.shape[-1] <= FEW_CHANNELS:
        chosen = functools.partial(_kernel_gradient_from_few, stride=stride)
    elif stride == 1 and g.shape[-1] <= FEW_CHANNELS:
        chosen = _kernel_gradient_to_few
    else:
        chosen = functools.partial(_kernel_gradient_in_parts, stride=stride)

    def on_cpu(x: jax.Array, g: jax.Array) -> jax.Array:
        return chosen(x, jax.lax.optimization_barrier(g))  # read many times: computed once

    natively = functools.partial(_kernel_gradient_natively, stride=stride)
    return jax.lax.platform_dependent(x, g, cpu=on_cpu, default=natively)


def _kernel_gradient_natively(x: jax.Array, g: jax.Array, stride: int) -> jax.Array:
    kernel = jax.ShapeDtypeStruct((_SIDE, _SIDE, x.shape[-1], g.shape[-1]), x.dtype)
    (gradient,) = jax.linear_transpose(lambda kernel: _convolve_natively(x, kernel, stride), kernel)(g)
    return gradient


def _kernel_gradient_in_parts(x: jax.Array, g: jax.Array, stride: int) -> jax.Array:
    parts = min(PARTS, len(x)) if x.size >= LARGE and g.shape[-1] >= MANY_CHANNELS else 1
    gradients = [_kernel_gradient_natively(x[i::parts], g[i::parts], stride) for i in range(parts)]
    return functools.reduce(jnp.add, gradients)


def _kernel_gradient_from_few(x: jax.Array, g: jax.Array, stride: int) -> jax.Array:
    patches = jnp.stack(_taps(x, stride), axis=3).reshape(-1, _SIDE * _SIDE * x.shape[-1])
    return (patches.T @ g.reshape(-1, g.shape[-1])).reshape(_SIDE, _SIDE, x.shape[-1], g.shape[-1])


def _kernel_gradient_to_few(x: jax.Array, g: jax.Array) -> jax.Array:
    """What tap (i, j) reads of x for a pixel of g is, for a pixel of x, what tap (-i, -j) reads of g."""
    c, d = x.shape[-1], g.shape[-1]
    patches = jnp.stack(_taps(g, stride=1)[::-1], axis=3).reshape(-1, _SIDE * _SIDE * d)
    return (x.reshape(-1, c).T @ patches).reshape(c, _SIDE, _SIDE, d).transpose(1, 2, 0, 3)


def _taps(x: Float[Array, "b h w c"], stride: int) -> list[Float[Array, "b h2 w2 c"]]:
    """What each of the nine taps of a kernel reads, from the first row's first on; zeros beyond the edge."""
    size = x.shape[1:3]
    out = [-(-s // stride) for s in size]
    padding = [max((o - 1) * stride + _SIDE - s, 0) for s, o in zip(size, out, strict=True)]
    x = jnp.pad(x, ((0, 0), *((total // 2, total - total // 2) for total in padding), (0, 0)))

    def tap(i: int, j: int) -> jax.Array:
        rows, columns = (slice(start, start + (o - 1) * stride + 1, stride) for start, o in zip((i, j), out, strict=True))
        return x[:, rows, columns]

    return [tap(i, j) for i in range(_SIDE) for j in range(_SIDE)]


def _parameters(
    layer: nn.Module, x: jax.Array, kernel_shape: tuple[int, ...], features: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A layer's input and kernel in the precision that it computes with, and its bias."""
    kernel = layer.param("kernel", _initial_kernel, kernel_shape)
    bias = layer.param("bias", nn.initializers.zeros, (features,)).reshape(1, 1, 1, features)
    return x.astype(layer.dtype), kernel.astype(layer.dtype), bias


def _biased(y: Float[Array, "b h w c"], bias: Float[Array, "1 1 1 c"]) -> Float[Array, "b h w c"]:
    """The sum in the bias's precision: its gradient adds up all pixels, which bfloat16 cannot count."""
    return (y.astype(bias.dtype) + bias).astype(y.dtype)


def _initial_kernel(key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "3 3 c d"]:
    """The numbers of `lecun_normal`, drawn as a matrix: in four dimensions XLA compiles them four times as long."""
    return nn.initializers.lecun_normal()(key, (math.prod(shape[:-1]), shape[-1])).reshape(shape)
