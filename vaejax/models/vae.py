"""The variational autoencoder with one latent vector."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from vaejax import distributions as dist
from vaejax import networks
from vaejax.config import ModelConfig
from vaejax.keys import of_samples, stream
from vaejax.models import likelihoods, priors
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


def vae(config: ModelConfig, image_shape: tuple[int, int, int], classes: int | None) -> Model:
    """A variational autoencoder (Kingma and Welling 2014; Rezende et al. 2014) for images of `image_shape` = (h, w, c).

    The posterior is a diagonal Gaussian, through an inverse autoregressive flow where `config.posterior` says so. Parameters
    are `{"encoder": ..., "decoder": ...}`, with `"prior"` and the likelihood's `"log_scale"` beside them where learned.

    With `classes` (Sohn et al. 2015) the label goes to the encoder as a learned picture, one more channel of the image, and
    to the decoder beside the latents; N(0, I) is the prior of all labels, and a mixture has weights for each.
    """
    size, channels, flows = config.latent_size, image_shape[-1], config.posterior == "iaf"
    encoder = networks.encoder(config, 2 * size + (config.flow_width if flows else 0))
    decoder = networks.decoder(config, (*image_shape[:2], likelihoods.outputs(config, channels)))
    seen = (*image_shape[:-1], channels + bool(classes))

    def init(key: Key[Array, ""]) -> Params:
        encoder_key, decoder_key = jax.random.split(key)
        params = {
            ENCODER: networks.init(encoder, encoder_key, seen),
            DECODER: networks.init(decoder, decoder_key, (size + (classes or 0),)),
        }
        if classes:
            shape = (classes, math.prod(image_shape[:-1]))
            params[ENCODER]["labels"] = jax.random.normal(stream(encoder_key, "labels"), shape)
        if flows:
            key = stream(encoder_key, "flow")
            params[ENCODER]["flow"] = networks.init(networks.Flow(config), key, (size,), (config.flow_width,))
        return params | prior.init(stream(decoder_key, "prior")) | likelihoods.init(config, channels)

    def base(
        params: Params, images: Float[Array, "b ..."], condition: Condition = None
    ) -> tuple[dist.DiagonalGaussian, Float[Array, "b c"]]:
        """The Gaussian of the posterior, and what its flow is told of the image."""
        if classes:
            images = with_picture(images, condition, params[ENCODER]["labels"])
        mean, raw, context = jnp.split(networks.apply(encoder, params[ENCODER], images), [size, 2 * size], axis=-1)
        return dist.DiagonalGaussian(mean, dist.soft_bound(raw, *dist.LATENT_LOG_SCALE)), context

    def flowed(
        params: Params, z: Float[Array, "*k b d"], context: Float[Array, "b c"]
    ) -> tuple[Float[Array, "*k b d"], Float[Array, "*k b"]]:
        """What the flow makes of points, and the log determinants; nothing, without one."""
        if not flows:
            return z, jnp.zeros(z.shape[:-1])
        context = jnp.broadcast_to(context, (*z.shape[:-1], context.shape[-1])).reshape(-1, context.shape[-1])
        moved, log_determinant = networks.apply(networks.Flow(config), params[ENCODER]["flow"], z.reshape(-1, size), context)
        return moved.reshape(z.shape), log_determinant.reshape(z.shape[:-1])

    def decode(params: Params, latents: Float[Array, "*k b d"], condition: Condition = None) -> dist.Likelihood:
        check_condition(condition, classes)
        if classes:
            weights = weights_of(condition, classes)
            latents = jnp.concatenate([latents, jnp.broadcast_to(weights, (*latents.shape[:-1], classes))], axis=-1)
        raw = networks.apply(decoder, params[DECODER], latents.reshape(-1, latents.shape[-1]))
        return likelihoods.likelihood(config, raw.reshape(*latents.shape[:-1], *raw.shape[1:]), params, channels)

    def infer(
        params: Params,
        images: Float[Array, "b ..."],
        keys: Key[Array, " b"],
        samples: int | Int[Array, " k"] = 1,
        condition: Condition = None,
        stop_posterior_gradient: bool = False,
    ) -> Inference:
        check_condition(condition, classes)
        q, context = base(params, images, condition)
        drawn = q.sample(of_samples(keys, numbers_of(samples)))
        latents, log_determinant = flowed(params, drawn, context)
        density = jax.lax.stop_gradient(q) if stop_posterior_gradient else q
        log_ratio = density.log_prob(drawn) - log_determinant - log_prior(params, latents, condition)
        closed = prior.closed_kl and not flows
        kl = dist.kl_to_standard_normal(q).sum(axis=-1) if closed else log_ratio.mean(axis=0)
        return Inference(latents, log_ratio, (kl,), flowed(params, q.mean, context)[0], decode(params, latents, condition))

    def draw(params: Params, keys: Key[Array, " n"], temperature: float = 1.0, condition: Condition = None) -> Latents:
        check_condition(condition, classes)
        return prior.density(params, condition).sample(keys, temperature)

    def log_prior(params: Params, latents: Float[Array, "*k b d"], condition: Condition = None) -> Float[Array, "*k b"]:
        check_condition(condition, classes)
        return prior.density(params, condition).log_prob(latents)

    prior = priors.build(config, image_shape, classes, lambda params, images: base(params, images)[0])
    return Model(init, infer, decode, draw, log_prior, image_shape, likelihoods.levels(config), classes, vector=size)
