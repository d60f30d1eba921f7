"""A class for every pixel, and how like those that were drawn by hand they are."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vaejax.models import Model, Params


def segment(model: Model, params: Params, images: Float[Array, "b h w c"]) -> Int[Array, "b h w"]:
    """The likeliest class of every pixel, of a segmenter."""
    assert model.segment is not None  # the caller has looked
    return jnp.argmax(model.segment(params, images), axis=-1).astype(jnp.int32)


def dice(true: Bool[np.ndarray, "*s"], guess: Bool[np.ndarray, "*s"]) -> float:
    """Dice coefficient 2 |A and B| / (|A| + |B|) of two regions (Dice 1945), 0 to 1; NaN where both are empty."""
    total = np.count_nonzero(true) + np.count_nonzero(guess)
    return 2.0 * np.count_nonzero(true & guess) / total if total else np.nan


def hausdorff95(true: Bool[np.ndarray, "*s"], guess: Bool[np.ndarray, "*s"], spacing: tuple[float, ...]) -> float:
    """95 % Hausdorff distance of the surfaces of two regions, in units of `spacing`: the larger of the two directions.

    A direction is the 95th percentile of the distances from each surface voxel of one region to the surface of the other
    (Huttenlocher et al. 1993). A voxel of a region is of its surface where a neighbour, by a face, is not of the region or
    beyond the array. NaN where both are empty, infinite where one is.
    """
    from scipy import ndimage  # slow to import, and wanted by few

    if not true.any() or not guess.any():
        return np.inf if true.any() or guess.any() else np.nan
    box = tuple(slice(where.min(), where.max() + 1) for where in np.nonzero(true | guess))  # all else is far from both
    one, other = (region[box] & ~ndimage.binary_erosion(region[box]) for region in (true, guess))

    def percentile(start: np.ndarray, end: np.ndarray) -> float:
        return float(np.percentile(ndimage.distance_transform_edt(~end, sampling=spacing)[start], 95))

    return max(percentile(one, other), percentile(other, one))
