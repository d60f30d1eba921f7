"""Numbers that nobody differentiates: one value an example, summed and divided once, by `summary`."""

import math
from typing import Any

import dm_pix
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

PSNR_CAP = 100.0
"""dB; what a reconstruction without any error counts as."""

SSIM_WINDOW = 11
"""Pixels on a side of the Gaussian window (Wang et al. 2004); smaller images have no SSIM."""

ACTIVE_UNIT_VARIANCE = 0.01
"""A latent is active where the variance of its posterior mean over the data exceeds this (Burda et al. 2016, section 5.3)."""


def mse(images: Float[Array, "b ..."], others: Float[Array, "b ..."]) -> Float[Array, " b"]:
    """Mean squared error an image, in squared units of the image range."""
    return jnp.mean((images - others) ** 2, axis=tuple(range(1, images.ndim)))


def psnr(images: Float[Array, "b ..."], others: Float[Array, "b ..."]) -> Float[Array, " b"]:
    """Peak signal to noise ratio an image, dB, for images in [0, 1]; no error counts as `PSNR_CAP`."""
    return jnp.minimum(dm_pix.psnr(images, others), PSNR_CAP)


def has_ssim(image_shape: tuple[int, ...]) -> bool:
    """Whether images of this shape, `(h, w, c)`, are large enough for the window."""
    return min(image_shape[:2]) >= SSIM_WINDOW


def ssim(images: Float[Array, "b h w c"], others: Float[Array, "b h w c"]) -> Float[Array, " b"]:
    """Structural similarity an image, at most 1.

    Raises:
        ValueError: where a side is shorter than the window, for which dm-pix would return a number without meaning.
    """
    _require_window(images.shape)
    return dm_pix.ssim(images, others)


def ssim_map(images: Float[Array, "b h w c"], others: Float[Array, "b h w c"]) -> Float[Array, "b h w"]:
    """Structural similarity around each pixel, at most 1, a mean over channels; images are mirrored at their edges.

    Raises:
        ValueError: as `ssim`.
    """
    _require_window(images.shape)
    half = SSIM_WINDOW // 2
    margins = ((0, 0), (half, half), (half, half), (0, 0))
    first, second = (jnp.pad(array, margins, mode="reflect") for array in (images, others))
    return dm_pix.ssim(first, second, return_map=True).mean(axis=-1)


def halved(images: Float[Array, "b h w c"]) -> Float[Array, "b h//2 w//2 c"]:
    """Images of half the size, each pixel the mean of four; the last row or column of an odd size is left out."""
    batch, height, width, channels = images.shape
    even = images[:, : height // 2 * 2, : width // 2 * 2]
    return even.reshape(batch, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))


def smoothed(images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Images, or differences of images, averaged by the Gaussian window of SSIM, of 1.5 pixels; zeros beyond the edges."""
    return dm_pix.gaussian_blur(images, 1.5, SSIM_WINDOW)


def bits_per_dim(nats: Float[np.ndarray, " n"], dimensions: int) -> Float[np.ndarray, " n"]:
    """Negative log-likelihoods in nats an image as bits a pixel and channel."""
    return nats / (dimensions * math.log(2.0))


def active_units(posterior_means: Float[np.ndarray, "n d"]) -> int:
    """Latents whose posterior mean varies over the data by more than `ACTIVE_UNIT_VARIANCE`."""
    return int((np.var(posterior_means, axis=0, dtype=np.float64) > ACTIVE_UNIT_VARIANCE).sum())


def perplexity(counts: Int[np.ndarray, " codes"]) -> float:
    """Exp of the entropy of how often each code occurs: as many codes, used alike, would be as various."""
    share = counts[counts > 0] / counts.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def frechet(first: Float[np.ndarray, "n d"], second: Float[np.ndarray, "m d"]) -> float:
    """Frechet distance of the normal distributions fitted to two sets of features (Heusel et al. 2017, eq. 6).

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)); the last trace by the symmetric C1^(1/2) C2 C1^(1/2), in float64.
    """
    means = [np.mean(features, axis=0, dtype=np.float64) for features in (first, second)]
    one, two = (np.cov(np.asarray(features, np.float64), rowvar=False) for features in (first, second))
    values, vectors = np.linalg.eigh(one)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    overlap = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ two @ root), 0.0)).sum()
    return float(((means[0] - means[1]) ** 2).sum() + np.trace(one) + np.trace(two) - 2.0 * overlap)


def summary(values: Float[np.ndarray, " n"], unit: str) -> dict[str, Any]:
    """`{"mean", "sem", "n", "unit"}` of one value an example; the standard error is over examples (None for a single one)."""
    values = np.asarray(values, np.float64)
    sem = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
    return {"mean": float(values.mean()), "sem": sem, "n": len(values), "unit": unit}


def _require_window(shape: tuple[int, ...]) -> None:
    if not has_ssim(shape[1:]):
        raise ValueError(f"ssim: images of {shape[1:3]} pixels; expected at least {SSIM_WINDOW} on each side.")
