"""A segmenter: the encoder of a variational autoencoder, and a head that gives every pixel a class."""

from typing import Any, NoReturn

import jax
from jaxtyping import Array, Float, Key

from vaejax import networks
from vaejax.config import ModelConfig
from vaejax.errors import FamilyError
from vaejax.models import likelihoods
from vaejax.models.model import ENCODER, HEAD, Model, Params


def segmenter(config: ModelConfig, image_shape: tuple[int, int, int]) -> Model:
    """A model that has `segment` alone: images `[b, *image_shape]` -> logits of the classes `[b, h, w, regions]`.

    Parameters are `{"encoder": ..., "head": ...}`; the encoder's are those of a `vae` with the same `model.*`, so that it can
    be taken over from one. The head sees its features at every size, and what it says of the latents.
    """
    encoder, head = networks.FeatureEncoder(config, 2 * config.latent_size), networks.SegmentationHead(config)

    def init(key: Key[Array, ""]) -> Params:
        encoder_key, head_key = jax.random.split(key)
        sizes = networks.sizes_of(config, image_shape)[1:]
        features = [(*size, width) for size, width in zip(sizes, config.features, strict=True)]
        return {
            ENCODER: networks.init(encoder, encoder_key, image_shape),
            HEAD: networks.init(head, head_key, image_shape, (2 * config.latent_size,), *features),
        }

    def segment(params: Params, images: Float[Array, "b h w c"]) -> Float[Array, "b h w regions"]:
        numbers, features = networks.apply(encoder, params[ENCODER], images)
        return networks.apply(head, params[HEAD], images, numbers, *features)

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise FamilyError("this run segments images, and has neither latents nor a decoder. `vaejax segment RUN` is its verb.")

    levels = likelihoods.levels(config)
    return Model(init, refuse, refuse, refuse, refuse, image_shape, levels, classes=None, vector=None, segment=segment)
