"""The hierarchical variational autoencoder: levels of latent images, inferred from coarse to fine."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from vaejax import distributions as dist
from vaejax import networks
from vaejax.config import ModelConfig
from vaejax.keys import of_part, of_samples, stream
from vaejax.models import likelihoods
from vaejax.models.model import (
    DECODER,
    ENCODER,
    Condition,
    Inference,
    Latents,
    Model,
    Params,
    check_condition,
    numbers_of,
    weights_of,
    with_picture,
)

Choose = Callable[[int, Float[Array, "n h w d"]], Float[Array, "n h w z"]]
"""The standardised latents of a level, given what comes down to it."""


class Hierarchy(NamedTuple):
    """Where the levels of a model lie, and what it is told."""

    config: ModelConfig
    image_shape: tuple[int, int, int]
    classes: int | None
    sizes: list[tuple[int, int]]
    """Height and width after each halving, from the image inwards."""
    scales: list[int]
    """The size, a place in `sizes`, of every level, coarsest first."""

    @property
    def start_shape(self) -> tuple[int, int, int]:
        """What the decoder starts from."""
        return (*self.sizes[-1], self.config.features[-1])

    def feature_shape(self, level: int) -> tuple[int, int, int]:
        """What comes down to a level."""
        return (*self.sizes[self.scales[level]], self.config.features[self.scales[level]])

    def latent_shape(self, level: int) -> tuple[int, int, int]:
        """The latents of a level."""
        return (*self.sizes[self.scales[level]], self.config.latent_size)

    def finer(self, scale: int) -> networks.Network:
        """From the next coarser size to this one."""
        return networks.Finer(self.config, self.config.features[scale], self.sizes[scale])

    def to_image(self) -> networks.Network:
        """From the finest size to the raw numbers of the likelihood."""
        h, w, channels = self.image_shape
        return networks.ToImage(self.config, (h, w, likelihoods.outputs(self.config, channels)))


def hierarchical(config: ModelConfig, image_shape: tuple[int, int, int], classes: int | None) -> Model:
    """Levels of latent images with top-down inference (Sonderby et al. 2016; Child 2021), `blocks` a size of the image.

    A level's prior is N(m, s^2) with m and s from the levels above, and its posterior N(m + s a, (s b)^2) with a and b from
    the image too: a residual posterior (Vahdat and Kautz 2020, eq. 3). The latents here are the standardised ones, (z - m) / s:
    their prior is N(0, I), their posterior N(a, b^2), and log ratios and KL are those of z. `latents` is a tuple,
    coarsest first, each `[..., b, h, w, latent_size]`.

    With `classes` the label goes to the encoder as a learned picture, and to the decoder where it starts.
    """
    sizes = networks.sizes_of(config, image_shape)[1:]
    scales = [scale for scale in reversed(range(len(sizes))) for _ in range(config.blocks)]
    hierarchy, channels = Hierarchy(config, image_shape, classes, sizes, scales), image_shape[-1]

    def infer(
        params: Params,
        images: Float[Array, "b ..."],
        keys: Key[Array, " b"],
        samples: int | Int[Array, " k"] = 1,
        condition: Condition = None,
        stop_posterior_gradient: bool = False,
    ) -> Inference:
        check_condition(condition, classes)
        if stop_posterior_gradient:
            raise ValueError(
                "stop_posterior_gradient=True: a hierarchy's levels depend on the draws above; it has no such mode."
            )
        risen, drawing = _rise(hierarchy, params, images, condition), of_samples(keys, numbers_of(samples))
        k, b = drawing.shape
        draws, log_q, rates, means = [], [], [], []

        def draw(level: int, x: jax.Array) -> jax.Array:
            q = _posterior(hierarchy, params, level, x, risen)
            z = q.sample(of_part(drawing.reshape(-1), level))
            log_q.append(q.log_prob(z).reshape(k, b))
            rates.append(dist.kl_to_standard_normal(q).sum(axis=-1).reshape(k, b).mean(axis=0))
            draws.append(z.reshape(k, b, *hierarchy.latent_shape(level)))
            return z.reshape(-1, *hierarchy.latent_shape(level))

        def mean(level: int, x: jax.Array) -> jax.Array:
            means.append(_posterior(hierarchy, params, level, x, risen).mean.reshape(-1, *hierarchy.latent_shape(level)))
            return means[-1]

        raw = _descend(hierarchy, params, k * b, condition, draw)
        _descend(hierarchy, params, b, condition, mean)
        likelihood = likelihoods.likelihood(config, raw.reshape(k, b, *raw.shape[1:]), params, channels)
        log_ratio = sum(log_q[1:], log_q[0]) - log_prior(params, tuple(draws), condition)
        return Inference(tuple(draws), log_ratio, tuple(rates), tuple(means), likelihood)

    def decode(params: Params, latents: Latents, condition: Condition = None) -> dist.Likelihood:
        check_condition(condition, classes)
        front = latents[0].shape[:-3]

        def given(level: int, x: jax.Array) -> jax.Array:
            del x
            return latents[level].reshape(-1, *hierarchy.latent_shape(level))

        raw = _descend(hierarchy, params, math.prod(front), condition, given)
        return likelihoods.likelihood(config, raw.reshape(*front, *raw.shape[1:]), params, channels)

    def prior(params: Params, keys: Key[Array, " n"], temperature: float = 1.0, condition: Condition = None) -> Latents:
        check_condition(condition, classes)

        def draw(level: int) -> jax.Array:
            shape = hierarchy.latent_shape(level)
            return dist.standard_normal(math.prod(shape)).sample(of_part(keys, level), temperature).reshape(-1, *shape)

        return tuple(draw(level) for level in range(len(scales)))

    def log_prior(params: Params, latents: Latents, condition: Condition = None) -> Float[Array, "*k b"]:
        del params
        check_condition(condition, classes)
        standard = dist.standard_normal(1)
        of_levels = [standard.log_prob(leaf[..., jnp.newaxis]).sum(axis=(-3, -2, -1)) for leaf in latents]
        return sum(of_levels[1:], of_levels[0])

    init = functools.partial(_init, hierarchy)
    return Model(init, infer, decode, prior, log_prior, image_shape, likelihoods.levels(config), classes, vector=None)


def _init(hierarchy: Hierarchy, key: Key[Array, ""]) -> Params:
    config, classes, (h, w, channels) = hierarchy.config, hierarchy.classes, hierarchy.image_shape
    levels, finest = range(len(hierarchy.scales)), (*hierarchy.sizes[0], config.features[0])

    def part(module: networks.Network, name: str, *shapes: tuple[int, ...]) -> Params:
        return networks.init(module, stream(key, name), *shapes)

    def each(module: networks.Network, name: str, *shapes: Callable[[int], tuple[int, ...]]) -> list[Params]:
        return [part(module, f"{name} {level}", *(shape(level) for shape in shapes)) for level in levels]

    seen, latents = hierarchy.feature_shape, hierarchy.latent_shape
    encoder = {
        "bottom_up": part(networks.BottomUp(config), "bottom up", (h, w, channels + bool(classes))),
        "posteriors": each(networks.PosteriorHead(config), "posterior", seen, seen),
    }
    decoder = {
        "start": jnp.zeros(hierarchy.start_shape),
        "priors": each(networks.PriorHead(config), "prior", seen),
        "merges": each(networks.Merge(config), "merge", seen, latents),
        "finer": [
            part(hierarchy.finer(scale), f"finer {scale}", (*hierarchy.sizes[scale + 1], config.features[scale + 1]))
            for scale in range(len(hierarchy.sizes) - 1)
        ],
        "to_image": part(hierarchy.to_image(), "to image", finest),
    }
    if classes:
        encoder["labels"] = jax.random.normal(stream(key, "pictures"), (classes, h * w))
        decoder["labels"] = jax.random.normal(stream(key, "starts"), (classes, math.prod(hierarchy.start_shape)))
    return {ENCODER: encoder, DECODER: decoder} | likelihoods.init(config, channels)


def _rise(hierarchy: Hierarchy, params: Params, images: Float[Array, "b ..."], condition: Condition) -> tuple[jax.Array, ...]:
    """The image's features at every size."""
    if hierarchy.classes:
        images = with_picture(images, condition, params[ENCODER]["labels"])
    return networks.apply(networks.BottomUp(hierarchy.config), params[ENCODER]["bottom_up"], images)


def _descend(hierarchy: Hierarchy, params: Params, n: int, condition: Condition, choose: Choose) -> Float[Array, "n h w c"]:
    """From the coarsest level to the raw numbers of the likelihood, with the latents that are chosen on the way."""
    config, decoder, scales = hierarchy.config, params[DECODER], hierarchy.scales
    x = jnp.broadcast_to(decoder["start"], (n, *hierarchy.start_shape))
    if hierarchy.classes:
        weights = weights_of(condition, hierarchy.classes)
        weights = jnp.broadcast_to(weights, (n // len(weights), *weights.shape)).reshape(n, hierarchy.classes)
        x = x + (weights @ decoder["labels"]).reshape(x.shape)
    for level, scale in enumerate(scales):
        if level and scale != scales[level - 1]:
            x = networks.apply(hierarchy.finer(scale), decoder["finer"][scale], x)
        location, raw, more = networks.apply(networks.PriorHead(config), decoder["priors"][level], x)
        latents = location + jnp.exp(dist.soft_bound(raw, *dist.MIXTURE_LOG_SCALE)) * choose(level, x)
        x = networks.apply(networks.Merge(config), decoder["merges"][level], x + more, latents)
    return networks.apply(hierarchy.to_image(), decoder["to_image"], x)


def _posterior(
    hierarchy: Hierarchy, params: Params, level: int, x: Float[Array, "n h w d"], risen: tuple[jax.Array, ...]
) -> dist.DiagonalGaussian:
    """Of a level's latents as vectors, `[n, h w z]`; each image has risen once, however often it comes down."""
    seen = risen[hierarchy.scales[level]]
    seen = jnp.broadcast_to(seen, (len(x) // len(seen), *seen.shape)).reshape(-1, *seen.shape[1:])
    head, own = networks.PosteriorHead(hierarchy.config), params[ENCODER]["posteriors"][level]
    mean, raw = networks.apply(head, own, x, seen)
    mean, raw = mean.reshape(len(x), -1), raw.reshape(len(x), -1)
    return dist.DiagonalGaussian(mean, dist.soft_bound(raw, *dist.LATENT_LOG_SCALE))
