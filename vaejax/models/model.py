"""What a model is: a NamedTuple of pure functions, one interface for every family.

`keys` are one typed key an example (`vaejax.keys.of_examples`); the k-th sample of an example folds k into its key, so that
what is drawn depends on nothing else.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from vaejax.batches import Batch
from vaejax.distributions import Likelihood

Params: TypeAlias = Any
"""A dict of pytrees of arrays; its names are the parts that `transfer.parts` and `transfer.freeze` speak of."""

ENCODER, DECODER, PRIOR, CODEBOOK, LOG_SCALE, HEAD = "encoder", "decoder", "prior", "codebook", "log_scale", "head"
"""Parts of the parameters: of the posterior alone; of the likelihood; of a learned prior; of VQ; of a shared scale; of a
segmenter."""

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
    """KL(q(z|x) || p(z)), nats an image, one a level, for the ELBO: in closed form where there is one (given the draws of the
    levels above), else the mean of log q - log p over the draws."""
    mean: Latents
    """Posterior mean, each leaf `[b, ...]`; of a flow, where it takes the mean of its base; of VQ, the codes."""
    likelihood: Likelihood
    """p(x|z) of the draws; its parameters are `[k, b, *spatial, c]`, but for a scale that all pixels share, which is `[c]`."""
    vectors: Float[Array, "b h w d"] | None = None
    """VQ: what the encoder gives before it is rounded to the nearest code; None for other families."""


class Model(NamedTuple):
    """Pure functions over `params`; images are `[b, *image_shape]` in [0, 1].

    init(key) -> params
    infer(params, images, keys, samples=1, condition=None, stop_posterior_gradient=False) -> Inference
        `samples`: how many draws, or an array of the samples' numbers.
    decode(params, latents, condition=None) -> Likelihood, for latents with any axes in front of the batch
    prior(params, keys, temperature=1.0, condition=None) -> latents, one draw a key
    log_prior(params, latents, condition=None) -> log p(z) of what `prior` draws at temperature 1, nats an image, for latents
        with any axes in front of the batch
    """

    init: Callable[[Key[Array, ""]], Params]
    infer: Callable[..., Inference]
    decode: Callable[..., Likelihood]
    prior: Callable[..., Latents]
    log_prior: Callable[..., Float[Array, "*k b"]]
    image_shape: tuple[int, ...]
    levels: int | None
    """Grey levels that the likelihood is a distribution over (2 for Bernoulli); None for a density."""
    classes: int | None
    """Labels that a conditional model knows; None for other models."""
    vector: int | None
    """Numbers in the latents where they are one vector of reals; None for levels and for codes."""
    random: bool = True
    """False where the posterior is a point: one draw says all, and the importance-sampled likelihood is the bound."""
    segment: Callable[[Params, Float[Array, "b h w c"]], Float[Array, "b h w regions"]] | None = None
    """(params, images) -> logits of every pixel's classes, of a segmenter, whose other functions refuse; else None."""


def condition_of(model: Model, batch: Batch) -> Condition:
    """What the model is to be told of a batch: its labels where the model is conditional."""
    return jnp.asarray(batch["label"]) if model.classes else None


def weights_of(condition: Condition, classes: int) -> Float[Array, "*b classes"]:
    """A condition as one weight a label: labels become 1 at their place."""
    assert condition is not None  # `check_condition` has seen to it
    return jax.nn.one_hot(condition, classes) if jnp.issubdtype(condition.dtype, jnp.integer) else condition


def with_picture(
    images: Float[Array, "b ..."], condition: Condition, pictures: Float[Array, "classes pixels"]
) -> Float[Array, "b ..."]:
    """The images with one more channel, the learned picture of each one's label."""
    shown = weights_of(condition, len(pictures)) @ pictures
    return jnp.concatenate([images, shown.reshape(*images.shape[:-1], 1)], axis=-1)


def check_condition(condition: Condition, classes: int | None) -> None:
    """Raises ValueError where a conditional model is told nothing, or another one something."""
    if condition is None and classes:
        raise ValueError(f"condition=None: this model is conditional; expected labels, 0 to {classes - 1}, one an image.")
    if condition is not None and not classes:
        raise ValueError(f"condition={condition!r}: this model is unconditional; leave it out.")


def numbers_of(samples: int | Int[Array, " k"]) -> Int[Array, " k"]:
    """The numbers of the samples that `infer` is asked for."""
    return jnp.arange(samples) if isinstance(samples, int) else samples


def flat(latents: Latents) -> Float[Array, "b n"]:
    """All numbers of each image's latents in one row, for what looks at them without knowing the family."""
    return jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(latents)], axis=-1)
