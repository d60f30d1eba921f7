"""Random changes of training images: stateless functions of (images, seed), on whole batches, in TensorFlow.

The parameters are drawn first, then applied. All geometric changes of an image are multiplied into one matrix, so that
its pixels are interpolated once; a segmentation follows by the same matrix. Geometry follows the eye: x to the right, y
downwards, in pixels from the centre of the image; a positive angle turns the image counter-clockwise as seen, like `np.rot90`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf
from jaxtyping import Float32, Integer, UInt8

from vaejax.config import AugmentConfig

Images = Float32[tf.Tensor, "B H W C"]
Masks = UInt8[tf.Tensor, "B H W"]
Matrices = Float32[tf.Tensor, "B 3 3"]
Column = Float32[tf.Tensor, " B"]
Uniform = Float32[tf.Tensor, "B 3"]


class Geometric(NamedTuple):
    """A change of place. `matrix` maps where a pixel is to where its value comes from; the size is (height, width)."""

    draw: Callable[[Uniform, float], tf.Tensor]
    matrix: Callable[[tf.Tensor, tuple[int, int]], Matrices]


class Photometric(NamedTuple):
    """A change of grey values."""

    draw: Callable[[Uniform, float], tf.Tensor]
    change: Callable[[Images, tf.Tensor], Images]


def augment(images: Images, seed: Integer[tf.Tensor, " 2"], config: AugmentConfig) -> Images:
    """Changes every image at random, as `config` asks; the same seed gives the same changes: `apply` of what is drawn."""
    return apply(images, draw(config, tf.shape(images)[0], seed))


def draw(
    config: AugmentConfig, batch: int | tf.Tensor, seed: Integer[tf.Tensor, " 2"], share: slice = slice(None)
) -> dict[str, tf.Tensor]:
    """Draws the parameters of what `config` switches on, one row an image.

    Each operation has a seed of its own, by its place in `OPERATIONS`, so that switching one on changes no other.

    Args:
        config: the largest change of each kind; off is exact identity.
        batch: images in the batch, B.
        seed: two integers, for example (seed of the run, step).
        share: the rows of the batch to give; they are what they would be in the whole batch.

    Returns:
        `rotate`: angle in degrees [B]; `zoom`: relative change of scale [B]; `crop`: the share cut away, then the place
        of the window from -1 (left, top) to 1 (right, bottom) [B, 3]; `flip_horizontal`, `flip_vertical`: whether to
        [B]; `brightness`: what is added [B]; `contrast`: relative change of the distance to the mean [B].
    """
    parameters = {}
    for place, (name, operation) in enumerate(OPERATIONS.items()):
        amount = getattr(config, name)
        if amount:
            own = tf.random.experimental.stateless_fold_in(seed, tf.constant(place, tf.int64), alg="philox")
            uniform = tf.random.stateless_uniform([batch, 3], own, alg="philox")
            parameters[name] = operation.draw(uniform, amount)[share]
    return parameters


def apply(images: Images, parameters: dict[str, tf.Tensor]) -> Images:
    """Changes each image, of values in [0, 1], by its row of `parameters` (see `draw`), in the order of `OPERATIONS`.

    Returns:
        Images of the same shape, clipped to [0, 1]. What comes from outside of an image is 0.
    """
    images = _moved(images, parameters, "BILINEAR")
    for name, operation in OPERATIONS.items():
        if name in parameters and isinstance(operation, Photometric):
            images = operation.change(images, parameters[name])
    return tf.clip_by_value(images, 0.0, 1.0)


def apply_to_segmentation(masks: Masks, parameters: dict[str, tf.Tensor]) -> Masks:
    """The classes of the pixels of images after `apply` with the same parameters: of the nearest pixel; 0 from outside."""
    return _moved(masks[..., None], parameters, "NEAREST")[..., 0]


def _moved(images: tf.Tensor, parameters: dict[str, tf.Tensor], interpolation: str) -> tf.Tensor:
    """Images or masks [B, H, W, C] after all changes of place."""
    height, width = images.shape[1:3]
    matrices = [
        operation.matrix(parameters[name], (height, width))
        for name, operation in OPERATIONS.items()
        if name in parameters and isinstance(operation, Geometric)
    ]
    return _resample(images, _product(matrices), interpolation) if matrices else images


def _product(matrices: list[Matrices]) -> Matrices:
    """The matrix of several changes after one another: the last one's is asked first where a pixel comes from."""
    product = matrices[0]
    for matrix in matrices[1:]:
        product = product @ matrix
    return product


def _resample(images: tf.Tensor, matrices: Matrices, interpolation: str) -> tf.Tensor:
    """The values at `matrices` times each pixel's place; zeros outside."""
    height, width = images.shape[1:3]
    x, y = (width - 1) / 2, (height - 1) / 2
    # The kernel counts pixels from the top left corner: its shift is centre + shift - matrix * centre.
    (xx, xy, dx), (yx, yy, dy) = (tf.unstack(row, axis=-1) for row in tf.unstack(matrices[:, :2], axis=1))
    zero = tf.zeros_like(dx)
    rows = [xx, xy, x + dx - (xx * x + xy * y), yx, yy, y + dy - (yx * x + yy * y), zero, zero]
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.stack(rows, axis=-1),
        output_shape=[height, width],
        fill_value=0.0,
        interpolation=interpolation,
        fill_mode="CONSTANT",
    )


def _affine(xx: Column, xy: Column, dx: Column, yx: Column, yy: Column, dy: Column) -> Matrices:
    """Matrices that take (x, y) to (xx x + xy y + dx, yx x + yy y + dy)."""
    zero, one = tf.zeros_like(xx), tf.ones_like(xx)
    return tf.stack([tf.stack(row, axis=-1) for row in ([xx, xy, dx], [yx, yy, dy], [zero, zero, one])], axis=1)


def _either_way(uniform: Uniform, amount: float) -> Column:
    return amount * (2.0 * uniform[:, 0] - 1.0)


def _coin(uniform: Uniform, amount: float) -> tf.Tensor:
    del amount  # on is all it says
    return uniform[:, 0] < 0.5


def _window(uniform: Uniform, amount: float) -> tf.Tensor:
    return tf.concat([amount * uniform[:, :1], 2.0 * uniform[:, 1:] - 1.0], axis=1)


def _rotation(degrees: Column, size: tuple[int, int]) -> Matrices:
    del size
    radians = degrees * (math.pi / 180.0)
    cos, sin, zero = tf.cos(radians), tf.sin(radians), tf.zeros_like(radians)
    return _affine(cos, -sin, zero, sin, cos, zero)


def _zoom(change: Column, size: tuple[int, int]) -> Matrices:
    del size
    inverse, zero = 1.0 / (1.0 + change), tf.zeros_like(change)
    return _affine(inverse, zero, zero, zero, inverse, zero)


def _crop(window: tf.Tensor, size: tuple[int, int]) -> Matrices:
    """The window's outermost pixels become the image's, so that no crop shows what is outside of the image."""
    height, width = size
    share, x, y = tf.unstack(window, axis=-1)
    scale, zero = 1.0 - share, tf.zeros_like(share)
    return _affine(scale, zero, share * x * ((width - 1) / 2), zero, scale, share * y * ((height - 1) / 2))


def _mirror(x: bool, y: bool) -> Callable[[tf.Tensor, tuple[int, int]], Matrices]:
    def matrix(flipped: tf.Tensor, size: tuple[int, int]) -> Matrices:
        del size
        one = tf.ones_like(flipped, tf.float32)
        sign, zero = tf.where(flipped, -one, one), tf.zeros_like(one)
        return _affine(sign if x else one, zero, zero, zero, sign if y else one, zero)

    return matrix


def _brightness(images: Images, added: Column) -> Images:
    return images + added[:, None, None, None]


def _contrast(images: Images, change: Column) -> Images:
    """Each channel's mean over the image stays; x + c (x - mean), not mean + (1 + c)(x - mean), so that c = 0 is exact."""
    return images + change[:, None, None, None] * (images - tf.reduce_mean(images, axis=(1, 2), keepdims=True))


# The places are part of the random numbers: add at the end. Geometry comes before grey values.
OPERATIONS: dict[str, Geometric | Photometric] = {
    "rotate": Geometric(_either_way, _rotation),
    "zoom": Geometric(_either_way, _zoom),
    "crop": Geometric(_window, _crop),
    "flip_horizontal": Geometric(_coin, _mirror(x=True, y=False)),
    "flip_vertical": Geometric(_coin, _mirror(x=False, y=True)),
    "brightness": Photometric(_either_way, _brightness),
    "contrast": Photometric(_either_way, _contrast),
}
