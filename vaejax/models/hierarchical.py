"""The hierarchical variational autoencoder: levels of latent images, inferred from coarse to fine."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from vaejax import distributions as dist
from vaejax import networks
from vaejax.config import ModelConfig
from vaejax.keys import of_samples, stream
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


def hierarchical(config: ModelConfig, image_shape: tuple[int, int, int], classes: int | None) -> Model:
    """Levels of latent images with top-down inference (Sonderby et al. 2016; Child 2021), `blocks` a size of the image.

    A level's prior is N(m, s^2) with m and s from the levels above, and its posterior N(m + s a, (s b)^2) with a and b from
    the image too: a residual posterior (Vahdat and Kautz 2020, eq. 3). The latents here are the standardised ones, (z - m) / s:
    their prior is N(0, I), their posterior N(a, b^2), and log ratios and KL are those of z. `latents` is a tuple,
    coarsest first, each `[..., b, h, w, latent_size]`.

    With `classes` the label goes to the encoder as a learned picture, and to the decoder where it starts.
    """
    h, w, channels = image_shape
    sizes = [(-(-h // 2**halvings), -(-w // 2**halvings)) for halvings in range(1, len(config.features) + 1)]
    places = [scale for scale in reversed(range(len(sizes))) for _ in range(config.blocks)]  # the size of every level
    bottom_up = networks.BottomUp(config)
    outputs = (h, w, likelihoods.outputs(config, channels))
    prior_head, posterior_head = networks.PriorHead(config), networks.PosteriorHead(config)
    merge, to_image = networks.Merge(config), networks.ToImage(config, outputs)
    start_shape = (*sizes[-1], config.features[-1])

    def finer(scale: int) -> networks.Network:
        return networks.Finer(config, config.features[scale], sizes[scale])

    def init(key: Key[Array, ""]) -> Params:
        def part(module: networks.Network, name: str, *shapes: tuple[int, ...]) -> Params:
            return networks.init(module, stream(key, name), *shapes)

        shapes = [(*sizes[scale], config.features[scale]) for scale in places]
        latents = [(*shape[:2], config.latent_size) for shape in shapes]
        posteriors = [part(posterior_head, f"posterior {i}", shape, shape) for i, shape in enumerate(shapes)]
        encoder = {"bottom_up": part(bottom_up, "bottom up", (h, w, channels + bool(classes))), "posteriors": posteriors}
        decoder = {
            "start": jnp.zeros(start_shape),
            "priors": [part(prior_head, f"prior {i}", shape) for i, shape in enumerate(shapes)],
            "merges": [part(merge, f"merge {i}", *both) for i, both in enumerate(zip(shapes, latents, strict=True))],
            "finer": [
                part(finer(scale), f"finer {scale}", (*sizes[scale + 1], config.features[scale + 1]))
                for scale in range(len(sizes) - 1)
            ],
            "to_image": part(to_image, "to image", (*sizes[0], config.features[0])),
        }
        if classes:
            encoder["labels"] = jax.random.normal(stream(key, "pictures"), (classes, h * w))
            decoder["labels"] = jax.random.normal(stream(key, "starts"), (classes, math.prod(start_shape)))
        return {ENCODER: encoder, DECODER: decoder} | likelihoods.init(config, channels)

    def descend(params: Params, n: int, condition: Condition, choose: Choose) -> Float[Array, "n h w c"]:
        """From the coarsest level to the raw numbers of the likelihood, with the latents that are chosen on the way."""
        decoder = params[DECODER]
        x = jnp.broadcast_to(decoder["start"], (n, *start_shape))
        if classes:
            weights = weights_of(condition, classes)
            weights = jnp.broadcast_to(weights, (n // len(weights), *weights.shape))
            x = x + (weights.reshape(n, classes) @ decoder["labels"]).reshape(n, *start_shape)
        for level, scale in enumerate(places):
            if level and scale != places[level - 1]:
                x = networks.apply(finer(scale), decoder["finer"][scale], x)
            location, raw, more = networks.apply(prior_head, decoder["priors"][level], x)
            latents = location + jnp.exp(dist.soft_bound(raw, *dist.MIXTURE_LOG_SCALE)) * choose(level, x)
            x = networks.apply(merge, decoder["merges"][level], x + more, latents)
        return networks.apply(to_image, decoder["to_image"], x)

    def rise(params: Params, images: Float[Array, "b ..."], condition: Condition) -> tuple[jax.Array, ...]:
        if classes:
            images = with_picture(images, condition, params[ENCODER]["labels"])
        return networks.apply(bottom_up, params[ENCODER]["bottom_up"], images)

    def posterior(params: Params, level: int, x: jax.Array, risen: tuple[jax.Array, ...]) -> dist.DiagonalGaussian:
        """Of a level's latents as vectors, `[n, h w z]`; each image has risen once, however often it comes down."""
        seen = risen[places[level]]
        seen = jnp.broadcast_to(seen, (len(x) // len(seen), *seen.shape)).reshape(-1, *seen.shape[1:])
        mean, raw = networks.apply(posterior_head, params[ENCODER]["posteriors"][level], x, seen)
        mean, raw = mean.reshape(len(x), -1), raw.reshape(len(x), -1)
        return dist.DiagonalGaussian(mean, dist.soft_bound(raw, *dist.LATENT_LOG_SCALE))

    def shape_of(level: int) -> tuple[int, int, int]:
        return (*sizes[places[level]], config.latent_size)

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
        risen, drawing = rise(params, images, condition), of_samples(keys, numbers_of(samples))
        k, b = drawing.shape
        standard = dist.standard_normal(1)
        draws, ratios, rates, means = [], [], [], []

        def draw(level: int, x: jax.Array) -> jax.Array:
            q = posterior(params, level, x, risen)
            of_level = jax.vmap(lambda key: jax.random.fold_in(key, level))(drawing.reshape(-1))
            z = q.sample(of_level)
            log_prior = standard.log_prob(z[..., jnp.newaxis]).sum(axis=-1)
            ratios.append((q.log_prob(z) - log_prior).reshape(k, b))
            rates.append(dist.kl_to_standard_normal(q).sum(axis=-1).reshape(k, b).mean(axis=0))
            draws.append(z.reshape(k, b, *shape_of(level)))
            return z.reshape(-1, *shape_of(level))

        def mean(level: int, x: jax.Array) -> jax.Array:
            means.append(posterior(params, level, x, risen).mean.reshape(-1, *shape_of(level)))
            return means[-1]

        raw = descend(params, k * b, condition, draw)
        descend(params, b, condition, mean)
        likelihood = likelihoods.likelihood(config, raw.reshape(k, b, *raw.shape[1:]), params, channels)
        return Inference(tuple(draws), sum(ratios[1:], ratios[0]), tuple(rates), tuple(means), likelihood)

    def decode(params: Params, latents: Latents, condition: Condition = None) -> dist.Likelihood:
        check_condition(condition, classes)
        front = latents[0].shape[:-3]
        raw = descend(params, math.prod(front), condition, lambda level, x: latents[level].reshape(-1, *shape_of(level)))
        return likelihoods.likelihood(config, raw.reshape(*front, *raw.shape[1:]), params, channels)

    def prior(params: Params, keys: Key[Array, " n"], temperature: float = 1.0, condition: Condition = None) -> Latents:
        check_condition(condition, classes)

        def draw(level: int) -> jax.Array:
            of_level = jax.vmap(lambda key: jax.random.fold_in(key, level))(keys)
            size = math.prod(shape_of(level))
            return dist.standard_normal(size).sample(of_level, temperature).reshape(-1, *shape_of(level))

        return tuple(draw(level) for level in range(len(places)))

    return Model(init, infer, decode, prior, image_shape, likelihoods.levels(config), classes, vector=None)
