"""The importance-weighted bound."""

import math

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from vaejax import distributions as dist
from vaejax.batches import Batch
from vaejax.config import ObjectiveConfig
from vaejax.keys import of_examples
from vaejax.models import ENCODER, Model, Params, condition_of
from vaejax.objectives.objective import Objective, Terms, beta_at, descent, elbo_terms, in_parts, masked_mean, selected


def iwae(
    model: Model, config: ObjectiveConfig, optimizer: optax.GradientTransformation, frozen: tuple[str, ...] = ()
) -> Objective:
    """The negative importance-weighted bound of `config.samples` draws (Burda et al. 2016, eq. 8).

    Its weights are p(x|z) (p(z) / q(z|x))^beta. With `gradient="doubly_reparameterized"` the encoder follows the estimator
    whose signal does not drown as the draws grow in number: the path through the draws alone, weighted by the squares w^2 of
    the normalised weights (Tucker et al. 2019, eq. 8); for any beta, by the same steps, by (1 - beta) w + beta w^2.
    """
    doubly = config.gradient == "doubly_reparameterized"

    def value_and_gradient(
        trained: Params, rest: Params, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[tuple[jax.Array, Terms], Params]:
        beta = beta_at(config, step)
        images, example_keys = selected(batch), of_examples(key, batch["index"])

        def log_weights(trained: Params) -> tuple[jax.Array, Terms]:
            params, condition = rest | trained, condition_of(model, batch)
            inference = model.infer(params, images, example_keys, config.samples, condition, stop_posterior_gradient=doubly)
            log_likelihood = dist.log_prob(inference.likelihood, images)
            return log_likelihood - beta * inference.log_ratio, elbo_terms(inference, images)

        values, pull, terms = jax.vjp(log_weights, trained, has_aux=True)
        share = jax.nn.softmax(values, axis=0)
        rows = jnp.where(batch["mask"], -1.0 / batch["mask"].sum(), 0.0)[jnp.newaxis]
        (gradient,) = pull(share * rows)
        if doubly and ENCODER in trained:
            gradient = gradient | {ENCODER: pull(((1.0 - beta) * share + beta * share**2) * rows)[0][ENCODER]}
        return (masked_mean(-log_mean_exp(values), batch["mask"]), terms), gradient

    return descent(in_parts(value_and_gradient, config.parts), optimizer, frozen)


def log_mean_exp(log_weights: Float[Array, "k b"]) -> Float[Array, " b"]:
    """Log of the mean of k weights."""
    return jax.nn.logsumexp(log_weights, axis=0) - math.log(len(log_weights))
