"""What is minimised: an objective owns its gradient, its optimiser and its state.

It reports per-example terms, in nats per image, apart from the scalar that it differentiates.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from vaejax import distributions as dist
from vaejax.batches import Batch
from vaejax.config import ObjectiveConfig
from vaejax.keys import of_examples
from vaejax.models import Inference, Model, Params


class Update(NamedTuple):
    """The result of one step."""

    params: Params
    state: PyTree
    loss: Float[Array, ""]
    """What was minimised, nats an image."""
    terms: dict[str, Float[Array, " b"]]
    """Per example, nats an image; masked rows hold values that do not count."""
    gradient_norm: Float[Array, ""]


class Objective(NamedTuple):
    """init(params) -> state; update(params, state, batch, key, step) -> Update. Both are pure."""

    init: Callable[[Params], PyTree]
    update: Callable[[Params, PyTree, Batch, Key[Array, ""], Int[Array, ""]], Update]


def elbo(model: Model, config: ObjectiveConfig, optimizer: optax.GradientTransformation) -> Objective:
    """The negative evidence lower bound, distortion + beta * rate, with one posterior draw an image.

    beta weighs the rate (Higgins et al. 2017) and grows linearly to its value over `warmup_steps` (Sonderby et al. 2016). A
    level's mean rate below `free_bits` costs as much as `free_bits` (Kingma et al. 2016, eq. 15).
    """

    def loss(params: Params, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]) -> tuple[jax.Array, dict[str, jax.Array]]:
        # Selected before the networks too: the gradient of a NaN that is selected away later would still be NaN.
        images = jnp.where(batch["mask"].reshape(-1, *[1] * (batch["image"].ndim - 1)), batch["image"], 0.0)
        inference = model.infer(params, images, of_examples(key, batch["index"]))
        terms = elbo_terms(inference, images)
        beta = config.beta * jnp.minimum(1.0, (step + 1) / max(config.warmup_steps, 1))
        rates = [masked_mean(kl, batch["mask"]) for kl in inference.kl]
        free = sum(jnp.maximum(rate, config.free_bits) for rate in rates)
        return masked_mean(terms["distortion"], batch["mask"]) + beta * free, terms

    def update(params: Params, state: PyTree, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]) -> Update:
        (value, terms), gradient = jax.value_and_grad(loss, has_aux=True)(params, batch, key, step)
        change, state = optimizer.update(gradient, state, params)
        return Update(optax.apply_updates(params, change), state, value, terms, optax.tree.norm(gradient))

    return Objective(optimizer.init, update)


def elbo_terms(inference: Inference, images: Float[Array, "b ..."]) -> dict[str, Float[Array, " b"]]:
    """Distortion -E log p(x|z) over the draws and rate KL(q || p) over all levels; their sum is the negative ELBO."""
    distortion = -dist.log_prob(inference.likelihood, images).mean(axis=0)
    return {"distortion": distortion, "rate": jnp.stack(inference.kl).sum(axis=0)}


def masked_mean(values: Float[Array, " b"], mask: Bool[Array, " b"]) -> Float[Array, ""]:
    """Mean over the rows that count; the others are selected away, so a NaN there does no harm."""
    return jnp.where(mask, values, 0.0).sum() / mask.sum()
