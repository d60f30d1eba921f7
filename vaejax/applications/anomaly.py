"""How far images are from those that a model was trained on: one number an image and a map of where, by one of seven scores.

Larger is stranger, in every score and every map. All look at one image at a time, and what is drawn is fixed by the keys.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vaejax import distributions as dist
from vaejax import metrics
from vaejax.applications.reconstruction import reconstruct
from vaejax.config import AnomalyConfig
from vaejax.errors import FamilyError
from vaejax.models import Condition, Model, Params
from vaejax.objectives.importance import log_mean_exp

STEP = 0.02
"""Largest change of a pixel in a step of a restoration, in units of the image range."""


class Scores(NamedTuple):
    """What one score says of a batch."""

    value: Float[Array, " b"]
    """One number an image."""
    map: Float[Array, "b h w"]
    """One number a pixel."""


def undefined(model: Model, name: str) -> str | None:
    """Why a model has no such score; None where it has."""
    if name == "ssim" and not metrics.has_ssim(model.image_shape):
        return f"images are smaller than the window of {metrics.SSIM_WINDOW} pixels"
    half = (model.image_shape[0] // 2, model.image_shape[1] // 2)
    if name in ("two_scale_ssim", "ssim_and_error") and not metrics.has_ssim(half):
        return f"images of half the size are smaller than the window of {metrics.SSIM_WINDOW} pixels"
    if name in ("rate", "restoration") and not model.random:
        return "the latents are codes, through which there is no gradient to the image"
    return None


def score(
    model: Model,
    params: Params,
    images: Float[Array, "b h w c"],
    keys: Key[Array, " b"],
    name: str,
    config: AnomalyConfig,
    condition: Condition = None,
) -> Scores:
    """One of the scores of `anomaly.score` for a batch of images.

    likelihood: -log p(x), nats, by importance sampling (Burda et al. 2016, eq. 8); map: -log p(x|z) of the pixel, nats, a mean
        over the draws.
    error: mean squared error of the reconstruction from the posterior mean; map: the square of the smoothed difference, since
        noise is of single pixels and a lesion is not (a matched filter).
    ssim: 1 - SSIM of that reconstruction (Wang et al. 2004); map: the same around the pixel.
    two_scale_ssim: the geometric mean of that and of 1 - SSIM at half the size, there to the edges of the image, where the
        other's window ends before them (two scales as by Wang et al. 2003); map: the geometric mean of both around the pixel.
    ssim_and_error: two_scale_ssim times the root mean squared error, a product that needs no weights: it stood out in
        `benchmarks/anomaly_choose.py` where normal test images come of other scans; map: both around the pixel.
    rate: KL(q(z|x) || p(z)), nats; map: the size of its gradient at the pixel (Zimmerer et al. 2019).
    restoration: mean absolute change to the image `restore` makes; map: the change.

    Args:
        model: any family.
        params: its parameters.
        images: in [0, 1].
        keys: one an image.
        name: of the score.
        config: how many samples and steps.
        condition: of a conditional model, the labels.

    Raises:
        FamilyError: the model has no such score (`undefined` says why).
    """
    reason = undefined(model, name)
    if reason:
        raise FamilyError(f"anomaly.score={name!r}: not defined for this model: {reason}. Choose anomaly.score='likelihood'.")
    if name == "likelihood":
        return _likelihood(model, params, images, keys, config.samples, condition)
    if name == "rate":
        return _rate(model, params, images, keys, condition)
    if name == "restoration":
        change = jnp.abs(restore(model, params, images, keys, config, condition) - images).mean(axis=-1)
        return Scores(change.mean(axis=(1, 2)), change)
    restored = reconstruct(model, params, images, condition)
    if name == "ssim":
        return Scores(1.0 - metrics.ssim(images, restored), 1.0 - metrics.ssim_map(images, restored))
    if name == "two_scale_ssim":
        return two_scale_ssim(images, restored)
    if name == "ssim_and_error":
        return ssim_and_error(images, restored)
    return squared_error(images, restored)


def squared_error(images: Float[Array, "b h w c"], restored: Float[Array, "b h w c"]) -> Scores:
    """Mean squared error, of any reconstruction from its image; around a pixel, the square of the smoothed difference."""
    return Scores(metrics.mse(images, restored), (metrics.smoothed(images - restored) ** 2).mean(axis=-1))


def two_scale_ssim(images: Float[Array, "b h w c"], restored: Float[Array, "b h w c"]) -> Scores:
    """1 - SSIM at full and at half size, multiplied: how far any reconstruction is from its image.

    Args:
        images: in [0, 1], of at least 22 pixels on a side.
        restored: the same, as a model gives them back.

    Raises:
        ValueError: images are smaller than that.
    """
    coarse = 1.0 - metrics.ssim_map(metrics.halved(images), metrics.halved(restored))
    value = (1.0 - metrics.ssim(images, restored)) * coarse.mean(axis=(1, 2))
    pixels = (1.0 - metrics.ssim_map(images, restored)) * jax.image.resize(coarse, images.shape[:3], "linear")
    # SSIM is at most 1 but for rounding; the root of a negative number would be none.
    return Scores(*(jnp.sqrt(jnp.maximum(product, 0.0)) for product in (value, pixels)))


def ssim_and_error(images: Float[Array, "b h w c"], restored: Float[Array, "b h w c"]) -> Scores:
    """`two_scale_ssim` times the root of `squared_error`, with the same limits."""
    structure, amplitude = two_scale_ssim(images, restored), squared_error(images, restored)
    return Scores(*(of_one * jnp.sqrt(of_other) for of_one, of_other in zip(structure, amplitude, strict=True)))


def relative(maps: Float[Array, "b h w"], usual: Float[Array, "h w"]) -> Float[Array, "b h w"]:
    """Maps in units of what is usual at each pixel, the mean map of normal images, but not below a tenth of its own mean."""
    return maps / jnp.maximum(usual, usual.mean() / 10.0)[jnp.newaxis]


def restore(
    model: Model,
    params: Params,
    images: Float[Array, "b h w c"],
    keys: Key[Array, " b"],
    config: AnomalyConfig,
    condition: Condition = None,
) -> Float[Array, "b h w c"]:
    """The likely images near the given ones: from image y, `config.steps` steps down -ELBO(x) + fidelity * TV(x - y).

    You et al. 2019 and Chen et al. 2020: the ELBO is of one draw of the latents, the same in every step, and stands in for
    log p(x). It is taken a pixel and channel, so that the weight of the total variation changes with neither. Each step moves
    against the gradient, scaled so that the pixel that moves most moves by `STEP`, and less and less to the last.
    """
    size = images[0].size

    def cost(x: Float[Array, "b h w c"]) -> Float[Array, ""]:
        inference = model.infer(params, x, keys, 1, condition)
        bound = dist.log_prob(inference.likelihood, x)[0] - jnp.stack(inference.kl).sum(axis=0)
        return (config.fidelity * _total_variation(x - images) - bound / size).sum()

    def step(number: int, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        gradient = jax.grad(cost)(x)
        largest = jnp.max(jnp.abs(gradient), axis=(1, 2, 3), keepdims=True)
        size_of_step = STEP * (1.0 - number / config.steps)
        return jnp.clip(x - size_of_step * gradient / jnp.maximum(largest, jnp.finfo(x.dtype).tiny), 0.0, 1.0)

    return jax.lax.fori_loop(0, config.steps, step, images)


def _total_variation(x: Float[Array, "b h w c"]) -> Float[Array, " b"]:
    """Mean absolute difference of neighbours, down and right."""
    down, right = jnp.abs(jnp.diff(x, axis=1)), jnp.abs(jnp.diff(x, axis=2))
    return (down.sum(axis=(1, 2, 3)) + right.sum(axis=(1, 2, 3))) / x[0].size


def _likelihood(
    model: Model, params: Params, images: Float[Array, "b h w c"], keys: Key[Array, " b"], samples: int, condition: Condition
) -> Scores:
    inference = model.infer(params, images, keys, samples if model.random else 1, condition)
    pixels = inference.likelihood.pixel_log_prob(images)
    log_weights = pixels.sum(axis=(2, 3, 4)) - inference.log_ratio
    return Scores(-log_mean_exp(log_weights), -pixels.mean(axis=0).sum(axis=-1))


def _rate(
    model: Model, params: Params, images: Float[Array, "b h w c"], keys: Key[Array, " b"], condition: Condition
) -> Scores:
    def rates(x: Float[Array, "b h w c"]) -> tuple[Float[Array, ""], Float[Array, " b"]]:
        each = jnp.stack(model.infer(params, x, keys, 1, condition).kl).sum(axis=0)
        return each.sum(), each

    gradient, value = jax.grad(rates, has_aux=True)(images)
    return Scores(value, jnp.linalg.norm(gradient, axis=-1))
