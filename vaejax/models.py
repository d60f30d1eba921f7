"""A model as a NamedTuple of pure functions: one interface for every family.

`keys` are one typed key an example (`vaejax.keys.of_examples`); the k-th sample of an example folds k into its key, so that
what is drawn depends on nothing else.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from vaejax import distributions as dist
from vaejax import networks
from vaejax.batches import Batch
from vaejax.config import ModelConfig
from vaejax.errors import ConfigError
from vaejax.keys import of_samples, stream

Params: TypeAlias = Any
"""A pytree of arrays."""

ENCODER = "encoder"
"""Where the parameters of the posterior alone are, among a model's."""

Latents: TypeAlias = Any
"""A pytree of arrays: one array, or one a level."""

Condition: TypeAlias = Int[Array, "*b"] | Float[Array, "*b classes"] | None
"""What a conditional model is told of each image: its label, or weights of all labels; None for other models."""


class Inference(NamedTuple):
    """What a model says of a batch of images."""

    latents: Latents
    """Draws from the posterior, each leaf `[k, b, ...]`."""
    log_ratio: Float[Array, "k b"]
    """log q(z|x) - log p(z) of those very draws, nats an image: for importance sampling and Metropolis steps."""
    kl: tuple[Float[Array, " b"], ...]
    """KL(q(z|x) || p(z)) in closed form, nats an image, one a level: for the ELBO."""
    mean: Latents
    """Posterior mean, each leaf `[b, ...]`."""
    likelihood: dist.Likelihood
    """p(x|z) of the draws; its parameters are `[k, b, *spatial, c]`, but for a scale that all pixels share, which is `[c]`."""


class Model(NamedTuple):
    """Pure functions over `params`; images are `[b, *image_shape]` in [0, 1].

    init(key) -> params
    infer(params, images, keys, samples=1, condition=None, stop_posterior_gradient=False) -> Inference
        `samples`: how many draws, or an array of the samples' numbers.
    decode(params, latents, condition=None) -> Likelihood, for latents with any axes in front of the batch
    prior(params, keys, temperature=1.0, condition=None) -> latents, one draw a key
    """

    init: Callable[[Key[Array, ""]], Params]
    infer: Callable[..., Inference]
    decode: Callable[..., dist.Likelihood]
    prior: Callable[..., Latents]
    image_shape: tuple[int, ...]
    levels: int | None
    """Grey levels that the likelihood is a distribution over (2 for Bernoulli); None for a density."""
    classes: int | None
    """Labels that a conditional model knows; None for other models."""


def build(config: ModelConfig, image_shape: tuple[int, int, int], classes: int | None = None) -> Model:
    """A variational autoencoder (Kingma and Welling 2014; Rezende et al. 2014) for images of `image_shape` = (h, w, c).

    The posterior is a diagonal Gaussian, the prior N(0, I). Parameters are `{"encoder": ..., "decoder": ...}`, with the
    likelihood's `"log_scale"` beside them where all pixels share one a channel.

    With `config.conditional` (Sohn et al. 2015) the label, one of `classes`, goes to the encoder as a learned picture, one
    more channel of the image, and to the decoder beside the latents; the prior is the same for all labels.

    Raises:
        ConfigError: a conditional model without classes, or patches that do not divide the image.
    """
    if config.conditional and not classes:
        raise ConfigError("model.conditional=True: needs labels, and the images have none. Choose model.conditional=False.")
    classes = classes if config.conditional else None
    outputs = _outputs(config, image_shape[-1])
    encoder = networks.encoder(config, 2 * config.latent_size)
    decoder = networks.decoder(config, (*image_shape[:2], outputs))
    seen = (*image_shape[:-1], image_shape[-1] + bool(classes))

    def init(key: Key[Array, ""]) -> Params:
        encoder_key, decoder_key = jax.random.split(key)
        params = {
            ENCODER: networks.init(encoder, encoder_key, seen),
            "decoder": networks.init(decoder, decoder_key, (config.latent_size + (classes or 0),)),
        }
        if classes:
            shape = (classes, math.prod(image_shape[:-1]))
            params[ENCODER]["labels"] = jax.random.normal(stream(encoder_key, "labels"), shape)
        if _shares_scale(config):
            params["log_scale"] = jnp.zeros(image_shape[-1])
        return params

    def posterior(params: Params, images: Float[Array, "b ..."], condition: Condition) -> dist.DiagonalGaussian:
        if classes:
            pictures = weights_of(condition, classes) @ params[ENCODER]["labels"]
            images = jnp.concatenate([images, pictures.reshape(*images.shape[:-1], 1)], axis=-1)
        mean, raw = jnp.split(networks.apply(encoder, params[ENCODER], images), 2, axis=-1)
        return dist.DiagonalGaussian(mean, dist.soft_bound(raw, *dist.LATENT_LOG_SCALE))

    def decode(params: Params, latents: Float[Array, "*k b d"], condition: Condition = None) -> dist.Likelihood:
        _check(condition, classes)
        if classes:
            weights = weights_of(condition, classes)
            latents = jnp.concatenate([latents, jnp.broadcast_to(weights, (*latents.shape[:-1], classes))], axis=-1)
        raw = networks.apply(decoder, params["decoder"], latents.reshape(-1, latents.shape[-1]))
        return _likelihood(config, raw.reshape(*latents.shape[:-1], *raw.shape[1:]), params, image_shape[-1])

    def infer(
        params: Params,
        images: Float[Array, "b ..."],
        keys: Key[Array, " b"],
        samples: int | Int[Array, " k"] = 1,
        condition: Condition = None,
        stop_posterior_gradient: bool = False,
    ) -> Inference:
        _check(condition, classes)
        numbers = jnp.arange(samples) if isinstance(samples, int) else samples
        q = posterior(params, images, condition)
        latents = q.sample(of_samples(keys, numbers))
        density = jax.lax.stop_gradient(q) if stop_posterior_gradient else q
        log_prior = dist.standard_normal(images.shape[0], config.latent_size).log_prob(latents)
        return Inference(
            latents=latents,
            log_ratio=density.log_prob(latents) - log_prior,
            kl=(dist.kl_to_standard_normal(q).sum(axis=-1),),
            mean=q.mean,
            likelihood=decode(params, latents, condition),
        )

    def prior(params: Params, keys: Key[Array, " n"], temperature: float = 1.0, condition: Condition = None) -> Latents:
        _check(condition, classes)
        return dist.standard_normal(keys.shape[0], config.latent_size).sample(keys, temperature)

    levels = {"bernoulli": 2, "gaussian": None}.get(config.likelihood, config.levels)
    return Model(init, infer, decode, prior, image_shape, levels, classes)


def condition_of(model: Model, batch: Batch) -> Condition:
    """What the model is to be told of a batch: its labels where the model is conditional."""
    return jnp.asarray(batch["label"]) if model.classes else None


def _shares_scale(config: ModelConfig) -> bool:
    """Whether all pixels have one scale a channel, a parameter of its own."""
    return config.likelihood in ("gaussian", "discretized_logistic") and config.scale == "shared"


def _outputs(config: ModelConfig, channels: int) -> int:
    """Numbers a pixel that the decoder gives."""
    if config.likelihood == "logistic_mixture":
        return config.components * dist.outputs_of_mixture(channels)
    return channels if config.likelihood == "bernoulli" or _shares_scale(config) else 2 * channels


def _likelihood(config: ModelConfig, raw: Float[Array, "*n"], params: Params, channels: int) -> dist.Likelihood:
    """The decoder's raw numbers as a distribution over images."""
    if config.likelihood == "bernoulli":
        return dist.Bernoulli(raw)
    if config.likelihood == "logistic_mixture":
        return dist.LogisticMixture(raw, channels, config.levels)
    location, scale = (raw, params["log_scale"]) if _shares_scale(config) else jnp.split(raw, 2, axis=-1)
    if config.likelihood == "gaussian":
        return dist.Gaussian(location, scale)
    return dist.DiscretizedLogistic(location, scale, config.levels)


def weights_of(condition: Condition, classes: int) -> Float[Array, "*b classes"]:
    """A condition as one weight a label: labels become 1 at their place."""
    assert condition is not None  # `_check` has seen to it
    return jax.nn.one_hot(condition, classes) if jnp.issubdtype(condition.dtype, jnp.integer) else condition


def _check(condition: Condition, classes: int | None) -> None:
    if condition is None and classes:
        raise ValueError(f"condition=None: this model is conditional; expected labels, 0 to {classes - 1}, one an image.")
    if condition is not None and not classes:
        raise ValueError(f"condition={condition!r}: this model is unconditional; leave it out.")
