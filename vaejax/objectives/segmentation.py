"""What a segmenter minimises: cross-entropy and Dice loss."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from vaejax.batches import Batch
from vaejax.config import ObjectiveConfig
from vaejax.models import Model, Params
from vaejax.objectives.objective import Objective, Terms, descent, in_parts, masked_mean, selected

SMOOTHING = 1.0
"""Pixels added above and below in the soft Dice coefficient, so that a class that an image lacks is no division by 0."""


def segmentation(
    model: Model, config: ObjectiveConfig, optimizer: optax.GradientTransformation, frozen: tuple[str, ...] = ()
) -> Objective:
    """The sum of `segmentation_terms`, a mean over images (Isensee et al. 2021); `frozen` parts stay as they are."""
    assert model.segment is not None  # the configuration has been checked
    segment = model.segment

    def loss(trained: Params, rest: Params, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]) -> tuple[jax.Array, Terms]:
        del key, step  # nothing is drawn, and no weight grows
        terms = segmentation_terms(segment(rest | trained, selected(batch)), batch["segmentation"])
        return masked_mean(terms["cross_entropy"] + terms["dice_loss"], batch["mask"]), terms

    return descent(in_parts(jax.value_and_grad(loss, has_aux=True), config.parts), optimizer, frozen)


def segmentation_terms(logits: Float[Array, "b h w regions"], classes: Int[Array, "b h w"]) -> Terms:
    """`cross_entropy`, nats a pixel, and `dice_loss`, 1 - the soft Dice coefficient, a mean over all classes but 0.

    The coefficient is 2 sum(p t) / (sum(p) + sum(t)) over the pixels of an image (Milletari et al. 2016, with plain sums). A
    class beyond the model's gives NaN, which a training does not pass over.
    """
    regions = logits.shape[-1]
    true = jax.nn.one_hot(classes, regions)
    entropy = optax.losses.softmax_cross_entropy(logits, true).mean(axis=(1, 2))
    guessed = jax.nn.softmax(logits)[..., 1:]
    shared = (guessed * true[..., 1:]).sum(axis=(1, 2))
    total = guessed.sum(axis=(1, 2)) + true[..., 1:].sum(axis=(1, 2))
    dice = ((2.0 * shared + SMOOTHING) / (total + SMOOTHING)).mean(axis=-1)
    known = (classes < regions).all(axis=(1, 2))
    return {"cross_entropy": jnp.where(known, entropy, jnp.nan), "dice_loss": jnp.where(known, 1.0 - dice, jnp.nan)}
