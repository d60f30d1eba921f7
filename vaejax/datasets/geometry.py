"""Where the points of a prepared image lie in its source, axis by axis: arrays taken there, and brought back.

All changes of size are separable and affine along each axis: another spacing, scaling, cropping, padding. Positions are
indices of the centres of voxels. Integers and bools are classes: they take the nearest value; floats are interpolated.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num

_SAME = 1e-3
"""Steps that differ from 1 by less, as by the rounding of a header, are 1: then no value changes."""


class Axis(NamedTuple):
    """Points 0, 1, ... of a prepared axis: point i lies at `start + step * i` of the source's axis.

    Attributes:
        source: voxels of the source's axis.
        first: the first point that shows the source; those before are padding.
        last: the point after the last one that does.
        n: points in all.
        start: position of point 0 in the source.
        step: voxels of the source from one point to the next, above 0.
    """

    source: int
    first: int
    last: int
    n: int
    start: float
    step: float

    @property
    def at(self) -> Float[np.ndarray, " n"]:
        """Where the points lie in the source."""
        return self.start + self.step * np.arange(self.n)


def same(n: int) -> Axis:
    """An axis whose points are the source's voxels."""
    return Axis(n, 0, n, n, 0.0, 1.0)


def spaced(n: int, spacing: float, asked: float) -> Axis:
    """Points at `asked` mm along `n` voxels at `spacing` mm: as many as cover them all, about the same middle."""
    step = asked / spacing
    if abs(step - 1.0) < _SAME:
        return same(n)
    points = max(1, math.ceil(n / step - _SAME))
    return Axis(n, 0, points, points, (n - 1) / 2 - step * (points - 1) / 2, step)


def fitted(size: tuple[int, int], asked: tuple[int, int], policy: str) -> tuple[Axis, Axis]:
    """Rows and columns as `vaejax.datasets.image.resize` brings an image from `size` to `asked` (height, width)."""
    if size == asked:
        return same(size[0]), same(size[1])
    shown, kept = asked, (float(size[0]), float(size[1]))
    if policy == "pad":
        scale = min(asked[0] / size[0], asked[1] / size[1])
        shown = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
    if policy == "crop":
        kept = (min(kept[0], kept[1] * asked[0] / asked[1]), min(kept[1], kept[0] * asked[1] / asked[0]))
    rows, columns = (_framed(*numbers) for numbers in zip(size, asked, shown, kept, strict=True))
    return rows, columns


def _framed(source: int, n: int, shown: int, kept: float) -> Axis:
    """`kept` voxels in the middle of the source as `shown` points in the middle of `n`."""
    first, step = (n - shown) // 2, kept / shown
    return Axis(source, first, first + shown, n, (source - kept) / 2 + step / 2 - 0.5 - step * first, step)


def after(axis: Axis, then: Axis) -> Axis:
    """The points of `then`, whose source are the points of `axis`, along the source of `axis`."""
    return Axis(axis.source, then.first, then.last, then.n, axis.start + axis.step * then.start, axis.step * then.step)


def there(values: Num[np.ndarray, "..."], axes: Sequence[Axis]) -> Num[np.ndarray, "..."]:
    """The source's values at the points of `axes`, which are its first axes; 0 where they are padding.

    Floats are averaged over a triangle as wide as a step where that is above 1, so that nothing aliases, and are float32.
    """
    for place, axis in enumerate(axes):
        inside = np.clip(axis.at, 0.0, axis.source - 1.0)
        values = _taken(values, inside, place, max(1.0, axis.step))
        padding = (np.arange(axis.n) < axis.first) | (np.arange(axis.n) >= axis.last)
        np.moveaxis(values, place, 0)[padding] = 0
    return values


def back(values: Num[np.ndarray, "..."], axes: Sequence[Axis], outside: float = 0.0) -> Num[np.ndarray, "..."]:
    """Values at the points of `axes`, which are the first axes, at the source's voxels; floats are float32.

    Args:
        values: floats (interpolated linearly), or integers or bools (the nearest).
        axes: of the points.
        outside: of voxels that no point shows, as they were cropped away.
    """
    for place, axis in enumerate(axes):
        at = (np.arange(axis.source) - axis.start) / axis.step
        shown = np.take(values, np.arange(axis.first, axis.last), place)
        values = _taken(shown, np.clip(at, axis.first, axis.last - 1) - axis.first, place, 1.0)
        lost = (at < axis.first - 0.5 - _SAME) | (at > axis.last - 0.5 + _SAME)
        np.moveaxis(values, place, 0)[lost] = outside
    return values


def _taken(values: Num[np.ndarray, "..."], at: Float[np.ndarray, " m"], place: int, width: float) -> Num[np.ndarray, "..."]:
    """Values at positions along one axis, in an array of their own."""
    n = values.shape[place]
    if values.dtype.kind != "f":
        return np.take(values, _nearest(at), place)
    values = values.astype(np.float32)
    if len(at) == n and np.array_equal(at, np.arange(n)) and width == 1.0:
        return values
    weights = np.maximum(1.0 - np.abs(at[:, None] - np.arange(n)) / width, 0.0)
    weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return np.moveaxis(np.tensordot(weights, values, (1, place)), 0, place)


def _nearest(at: Float[np.ndarray, " m"]) -> Int[np.ndarray, " m"]:
    """Whole positions, halves always up: rounded to even, every other one would be taken twice."""
    return np.floor(at + 0.5).astype(np.int64)
