"""VQ: an image of codes, each the nearest vector of a codebook, and a prior over the codes."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from vaejax import distributions as dist
from vaejax import networks
from vaejax.config import ModelConfig
from vaejax.keys import of_part, stream
from vaejax.models import likelihoods
from vaejax.models.model import (
    CODEBOOK,
    DECODER,
    ENCODER,
    PRIOR,
    Condition,
    Inference,
    Model,
    Params,
    check_condition,
    numbers_of,
    weights_of,
)

COLDEST = 1e-6
"""What a temperature of 0 counts as: the likeliest code is taken."""


def vq(config: ModelConfig, image_shape: tuple[int, int, int], classes: int | None) -> Model:
    """VQ-VAE (van den Oord et al. 2017) for images of `image_shape` = (h, w, c).

    The posterior is a point, the codes `[..., b, h', w']` (int32) of the nearest vectors, so that log q = 0 and the bound is
    log p(x|codes) + log p(codes), with codes all alike or by a causal transformer that reads them row by row. The likelihood
    of `infer` carries the decoder's gradient straight through the rounding to the encoder. The codebook has none: its objective
    moves it.

    With `classes` the prior over the codes is told the label; encoder and decoder are not.
    """
    channels, size = image_shape[-1], config.latent_size
    encoder = networks.GridEncoder(config, size)
    decoder = networks.GridDecoder(config, (*image_shape[:2], likelihoods.outputs(config, channels)))
    grid = networks.sizes_of(config, image_shape)[-1]
    places = grid[0] * grid[1]
    learned = config.code_prior == "transformer"
    reader = networks.CodeReader(config)

    def init(key: Key[Array, ""]) -> Params:
        encoder_key, decoder_key = jax.random.split(key)
        params = {
            ENCODER: networks.init(encoder, encoder_key, image_shape),
            DECODER: networks.init(decoder, decoder_key, (*grid, size)),
            CODEBOOK: jnp.zeros((config.codes, size)),  # to its objective, one that is still to be filled
        }
        if learned:
            params[PRIOR] = networks.init(reader, stream(decoder_key, "prior"), (places,), (classes or 1,))
        return params | likelihoods.init(config, channels)

    def logits(params: Params, codes: Int[Array, "n places"], condition: Condition) -> Float[Array, "n places codes"]:
        """Of every code, given those before it."""
        told = jnp.ones((len(codes), 1)) if classes is None else weights_of(condition, classes)
        return networks.apply(reader, params[PRIOR], codes, told)

    def log_prior(params: Params, latents: Int[Array, "*k b h w"], condition: Condition = None) -> Float[Array, "*k b"]:
        check_condition(condition, classes)
        front, flat = latents.shape[:-2], latents.reshape(-1, places)
        if not learned:
            return jnp.full(front, -places * jnp.log(config.codes))
        if classes:
            weights = weights_of(condition, classes)
            condition = jnp.broadcast_to(weights, (*front, classes)).reshape(-1, classes)
        chances = jax.nn.log_softmax(logits(params, flat, condition))
        return jnp.take_along_axis(chances, flat[..., jnp.newaxis], axis=-1).sum(axis=(-2, -1)).reshape(front)

    def decode_vectors(params: Params, vectors: Float[Array, "*k b h w d"]) -> dist.Likelihood:
        raw = networks.apply(decoder, params[DECODER], vectors.reshape(-1, *grid, size))
        return likelihoods.likelihood(config, raw.reshape(*vectors.shape[:-3], *raw.shape[1:]), params, channels)

    def decode(params: Params, latents: Int[Array, "*k b h w"], condition: Condition = None) -> dist.Likelihood:
        check_condition(condition, classes)
        return decode_vectors(params, params[CODEBOOK][latents])

    def infer(
        params: Params,
        images: Float[Array, "b ..."],
        keys: Key[Array, " b"],
        samples: int | Int[Array, " k"] = 1,
        condition: Condition = None,
        stop_posterior_gradient: bool = False,
    ) -> Inference:
        del keys, stop_posterior_gradient  # a point is not drawn, and has no density
        check_condition(condition, classes)
        vectors = networks.apply(encoder, params[ENCODER], images)
        codes = nearest(vectors, params[CODEBOOK])
        rounded = vectors + jax.lax.stop_gradient(params[CODEBOOK][codes] - vectors)
        k, rate = len(numbers_of(samples)), -log_prior(params, codes, condition)
        return Inference(
            latents=jnp.broadcast_to(codes, (k, *codes.shape)),
            log_ratio=jnp.broadcast_to(rate, (k, len(rate))),
            kl=(rate,),
            mean=codes,
            likelihood=decode_vectors(params, jnp.broadcast_to(rounded, (k, *rounded.shape))),
            vectors=vectors,
        )

    def prior(
        params: Params, keys: Key[Array, " n"], temperature: float = 1.0, condition: Condition = None
    ) -> Int[Array, "n h w"]:
        """Codes one after the other; those of a uniform prior know no temperature."""
        check_condition(condition, classes)
        if not learned:
            draw = jax.vmap(lambda key: jax.random.randint(key, grid, 0, config.codes))
            return draw(keys)

        def add(place: Int[Array, ""], codes: Int[Array, "n places"]) -> Int[Array, "n places"]:
            chances = logits(params, codes, condition)[:, place] / jnp.maximum(temperature, COLDEST)
            return codes.at[:, place].set(jax.vmap(jax.random.categorical)(of_part(keys, place), chances))

        codes = jax.lax.fori_loop(0, places, add, jnp.zeros((len(keys), places), jnp.int32))
        return codes.reshape(-1, *grid)

    grey = likelihoods.levels(config)
    return Model(init, infer, decode, prior, log_prior, image_shape, grey, classes, vector=None, random=False)


def nearest(vectors: Float[Array, "*n d"], codebook: Float[Array, "codes d"]) -> Int[Array, "*n"]:
    """The number of the codebook's vector that is nearest to each."""
    flat = vectors.reshape(-1, vectors.shape[-1])
    along = jnp.matmul(flat, codebook.T, precision=jax.lax.Precision.HIGHEST)
    squared = (codebook**2).sum(axis=-1)[jnp.newaxis] - 2.0 * along
    return jnp.argmin(squared, axis=-1).astype(jnp.int32).reshape(vectors.shape[:-1])
