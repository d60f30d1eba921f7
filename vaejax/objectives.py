"""What is minimised: an objective owns its gradient, its optimiser and its state.

It reports per-example terms, in nats per image, apart from the scalar that it differentiates.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from vaejax import distributions as dist
from vaejax.batches import Batch
from vaejax.config import ObjectiveConfig
from vaejax.keys import of_examples
from vaejax.models import ENCODER, Inference, Model, Params, condition_of

Terms: TypeAlias = dict[str, jax.Array]
"""Per example, `[b]`, nats an image."""


class Update(NamedTuple):
    """The result of one step."""

    params: Params
    state: PyTree
    loss: Float[Array, ""]
    """What was minimised, nats an image."""
    terms: Terms
    """Per example, nats an image; masked rows hold values that do not count."""
    gradient_norm: Float[Array, ""]


class Objective(NamedTuple):
    """init(params) -> state; update(params, state, batch, key, step) -> Update. Both are pure."""

    init: Callable[[Params], PyTree]
    update: Callable[[Params, PyTree, Batch, Key[Array, ""], Int[Array, ""]], Update]


def build(model: Model, config: ObjectiveConfig, optimizer: optax.GradientTransformation) -> Objective:
    """The objective that a configuration names."""
    return {"elbo": elbo, "iwae": iwae}[config.name](model, config, optimizer)


def elbo(model: Model, config: ObjectiveConfig, optimizer: optax.GradientTransformation) -> Objective:
    """The negative evidence lower bound, distortion + beta * rate, the distortion a mean over `config.samples` draws.

    beta weighs the rate (Higgins et al. 2017) and grows linearly to its value over `warmup_steps` (Sonderby et al. 2016). A
    level's mean rate below `free_bits` costs as much as `free_bits` (Kingma et al. 2016, eq. 15).
    """

    def loss(params: Params, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]) -> tuple[jax.Array, Terms]:
        images = _selected(batch)
        example_keys = of_examples(key, batch["index"])
        inference = model.infer(params, images, example_keys, samples=config.samples, condition=condition_of(model, batch))
        terms = elbo_terms(inference, images)
        rates = [masked_mean(kl, batch["mask"]) for kl in inference.kl]
        free = sum(jnp.maximum(rate, config.free_bits) for rate in rates)
        return masked_mean(terms["distortion"], batch["mask"]) + _beta(config, step) * free, terms

    return _descent(jax.value_and_grad(loss, has_aux=True), optimizer)


def iwae(model: Model, config: ObjectiveConfig, optimizer: optax.GradientTransformation) -> Objective:
    """The negative importance-weighted bound of `config.samples` draws (Burda et al. 2016, eq. 8).

    Its weights are p(x|z) (p(z) / q(z|x))^beta. With `gradient="doubly_reparameterized"` the encoder follows the estimator
    whose signal does not drown as the draws grow in number: the path through the draws alone, weighted by the squares w^2 of
    the normalised weights (Tucker et al. 2019, eq. 8); for any beta, by the same steps, by (1 - beta) w + beta w^2.
    """
    doubly = config.gradient == "doubly_reparameterized"

    def value_and_gradient(
        params: Params, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[tuple[jax.Array, Terms], Params]:
        beta = _beta(config, step)
        images, example_keys = _selected(batch), of_examples(key, batch["index"])

        def log_weights(params: Params) -> tuple[jax.Array, Terms]:
            condition = condition_of(model, batch)
            inference = model.infer(params, images, example_keys, config.samples, condition, stop_posterior_gradient=doubly)
            log_likelihood = dist.log_prob(inference.likelihood, images)
            return log_likelihood - beta * inference.log_ratio, elbo_terms(inference, images)

        values, pull, terms = jax.vjp(log_weights, params, has_aux=True)
        share = jax.nn.softmax(values, axis=0)
        rows = jnp.where(batch["mask"], -1.0 / batch["mask"].sum(), 0.0)[jnp.newaxis]
        (gradient,) = pull(share * rows)
        if doubly:
            gradient = gradient | {ENCODER: pull(((1.0 - beta) * share + beta * share**2) * rows)[0][ENCODER]}
        return (masked_mean(-log_mean_exp(values), batch["mask"]), terms), gradient

    return _descent(value_and_gradient, optimizer)


def log_mean_exp(log_weights: Float[Array, "k b"]) -> Float[Array, " b"]:
    """Log of the mean of k weights."""
    return jax.nn.logsumexp(log_weights, axis=0) - math.log(len(log_weights))


def validation_terms(inference: Inference, images: Float[Array, "b ..."], config: ObjectiveConfig) -> Terms:
    """The terms of the ELBO, and under "loss" the negative bound that `config` names, beta and free bits left out."""
    terms = elbo_terms(inference, images)
    if config.name == "elbo":
        return {"loss": terms["distortion"] + terms["rate"]} | terms
    return {"loss": -log_mean_exp(dist.log_prob(inference.likelihood, images) - inference.log_ratio)} | terms


def elbo_terms(inference: Inference, images: Float[Array, "b ..."]) -> Terms:
    """Distortion -E log p(x|z) over the draws and rate KL(q || p) over all levels; their sum is the negative ELBO."""
    distortion = -dist.log_prob(inference.likelihood, images).mean(axis=0)
    return {"distortion": distortion, "rate": jnp.stack(inference.kl).sum(axis=0)}


def masked_mean(values: Float[Array, " b"], mask: Bool[Array, " b"]) -> Float[Array, ""]:
    """Mean over the rows that count; the others are selected away, so a NaN there does no harm."""
    return jnp.where(mask, values, 0.0).sum() / mask.sum()


def _selected(batch: Batch) -> Float[Array, "b ..."]:
    """The images that count, zeros elsewhere: the gradient of a NaN that is selected away after the networks is NaN still."""
    return jnp.where(batch["mask"].reshape(-1, *[1] * (batch["image"].ndim - 1)), batch["image"], 0.0)


def _beta(config: ObjectiveConfig, step: Int[Array, ""]) -> Float[Array, ""]:
    return config.beta * jnp.minimum(1.0, (step + 1) / max(config.warmup_steps, 1))


def _descent(
    value_and_gradient: Callable[[Params, Batch, Key[Array, ""], Int[Array, ""]], tuple[tuple[jax.Array, Terms], Params]],
    optimizer: optax.GradientTransformation,
) -> Objective:
    """One optimiser on all parameters."""

    def update(params: Params, state: PyTree, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]) -> Update:
        (value, terms), gradient = value_and_gradient(params, batch, key, step)
        change, state = optimizer.update(gradient, state, params)
        return Update(optax.apply_updates(params, change), state, value, terms, optax.tree.norm(gradient))

    return Objective(optimizer.init, update)
