"""The evidence lower bound."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from vaejax.batches import Batch
from vaejax.config import ObjectiveConfig
from vaejax.keys import of_examples
from vaejax.models import Model, Params, condition_of
from vaejax.objectives.objective import Objective, Terms, beta_at, descent, elbo_terms, in_parts, masked_mean, selected


def elbo(
    model: Model, config: ObjectiveConfig, optimizer: optax.GradientTransformation, frozen: tuple[str, ...] = ()
) -> Objective:
    """The negative evidence lower bound, distortion + beta * rate, the distortion a mean over `config.samples` draws.

    beta weighs the rate (Higgins et al. 2017) and grows linearly to its value over `warmup_steps` (Sonderby et al. 2016). A
    level's mean rate below `free_bits` costs as much as `free_bits` (Kingma et al. 2016, eq. 15). `frozen` parts of the
    parameters stay as they are.
    """

    def loss(trained: Params, rest: Params, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]) -> tuple[jax.Array, Terms]:
        images, example_keys = selected(batch), of_examples(key, batch["index"])
        inference = model.infer(rest | trained, images, example_keys, config.samples, condition_of(model, batch))
        terms = elbo_terms(inference, images)
        rates = [masked_mean(kl, batch["mask"]) for kl in inference.kl]
        rate = sum(jnp.maximum(rate, config.free_bits) for rate in rates) if config.free_bits else sum(rates)
        return masked_mean(terms["distortion"], batch["mask"]) + beta_at(config, step) * rate, terms

    return descent(in_parts(jax.value_and_grad(loss, has_aux=True), config.parts), optimizer, frozen)
