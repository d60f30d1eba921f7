"""The adversarial objective: a VAE whose decoder also has to deceive a discriminator that it is trained against."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from vaejax import networks
from vaejax.batches import Batch
from vaejax.config import ObjectiveConfig
from vaejax.keys import of_examples, stream
from vaejax.models import DECODER, Model, Params, condition_of
from vaejax.objectives.objective import (
    Objective,
    Terms,
    Update,
    beta_at,
    elbo_terms,
    gauges,
    masked_mean,
    parted,
    selected,
)

MOST = 1e4
"""Largest weight of the adversarial term, where its gradient vanishes."""


class Adversaries(NamedTuple):
    """The state: an optimiser each for the model and the discriminator, and the discriminator's parameters."""

    optimizer: PyTree
    discriminator: Any
    discriminator_optimizer: PyTree


def vae_gan(
    model: Model, config: ObjectiveConfig, optimizer: optax.GradientTransformation, frozen: tuple[str, ...] = ()
) -> Objective:
    """Distortion + beta * rate + distance of the discriminator's features, and for the decoder the adversarial term.

    As Larsen et al. 2016: the discriminator sees images, their reconstructions, and samples from the prior; reconstructions
    are also compared by its features (eq. 8), here layer by layer relative to their size, as many nats as the image has
    pixels; only the decoder follows the adversarial gradient. Its weight is adaptive (Esser et al. 2021, eq. 7): over the
    decoder's parameters its gradient has `adversarial_weight` times the norm of all else. Both losses are hinges.
    """
    discriminator = networks.Discriminator(config.discriminator_features)
    pixels = model.image_shape[0] * model.image_shape[1]

    def generated(
        params: Params, adversary: Any, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[tuple[jax.Array, jax.Array], tuple[Terms, jax.Array]]:
        """The loss without the adversarial term, and that term; the terms by example, and the images made."""
        images, mask, condition = selected(batch), batch["mask"], condition_of(model, batch)
        inference = model.infer(params, images, of_examples(key, batch["index"]), 1, condition)
        drawn = model.prior(params, of_examples(stream(key, "prior"), batch["index"]), condition=condition)
        made = jnp.concatenate([inference.likelihood.mean()[0], model.decode(params, drawn, condition).mean()])
        logits, features = networks.apply(discriminator, adversary, made)
        wanted = jax.lax.stop_gradient(networks.apply(discriminator, adversary, images)[1])
        terms = elbo_terms(inference, images)
        distances = [_distance(a[: len(mask)], b, mask) for a, b in zip(features, wanted, strict=True)]
        terms["features"] = pixels * jnp.stack(distances).sum(axis=0)
        total = terms["distortion"] + beta_at(config, step) * terms["rate"] + terms["features"]
        return (masked_mean(total, mask), masked_mean(-logits, jnp.tile(mask, 2))), (terms, made)

    def discriminated(
        adversary: Any, images: Float[Array, "b ..."], made: Float[Array, "b2 ..."], mask: Bool[Array, " b"]
    ) -> jax.Array:
        logits, _ = networks.apply(discriminator, adversary, jnp.concatenate([images, made]))
        real, false = logits[: len(mask)], logits[len(mask) :]
        return masked_mean(jax.nn.relu(1.0 - real), mask) + masked_mean(jax.nn.relu(1.0 + false), jnp.tile(mask, 2))

    def init(params: Params, key: Key[Array, ""]) -> Adversaries:
        adversary = networks.init(discriminator, stream(key, "discriminator"), model.image_shape)
        return Adversaries(optimizer.init(parted(params, frozen)[0]), adversary, optimizer.init(adversary))

    def update(params: Params, state: Adversaries, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]) -> Update:
        trained, rest = parted(params, frozen)
        (value, adversarial), pull, (terms, made) = jax.vjp(
            lambda trained: generated(rest | trained, state.discriminator, batch, key, step), trained, has_aux=True
        )
        one, none = jnp.ones_like(value), jnp.zeros_like(value)
        (gradient,), (against,) = pull((one, none)), pull((none, one))
        weight = none
        if DECODER in trained:
            size, other = optax.tree.norm(gradient[DECODER]), optax.tree.norm(against[DECODER])
            weight = config.adversarial_weight * jnp.minimum(size / jnp.maximum(other, 1e-8), MOST)
            weight = jnp.where(step < config.adversarial_start, 0.0, weight)
            both = jax.tree.map(lambda a, b: a + weight * b, gradient[DECODER], against[DECODER])
            gradient = gradient | {DECODER: both}
        change, descending = optimizer.update(gradient, state.optimizer, trained)
        loss, its_gradient = jax.value_and_grad(discriminated)(
            state.discriminator, selected(batch), jax.lax.stop_gradient(made), batch["mask"]
        )
        its_change, its_descending = optimizer.update(its_gradient, state.discriminator_optimizer, state.discriminator)
        adversaries = Adversaries(descending, optax.apply_updates(state.discriminator, its_change), its_descending)
        seen = {"discriminator_loss": loss, "adversarial_loss": adversarial, "adversarial_weight": weight}
        seen |= gauges(descending) | {f"discriminator_{name}": count for name, count in gauges(its_descending).items()}
        params = rest | optax.apply_updates(trained, change)
        return Update(params, adversaries, value, terms, optax.tree.norm(gradient), seen)

    return Objective(init, update)


def _distance(features: Float[Array, "b ..."], wanted: Float[Array, "b ..."], mask: Bool[Array, " b"]) -> Float[Array, " b"]:
    """Half the squared difference of a layer, relative to the layer's mean square over the batch."""
    axes = tuple(range(1, wanted.ndim))
    return 0.5 * jnp.mean((features - wanted) ** 2, axis=axes) / (masked_mean(jnp.mean(wanted**2, axis=axes), mask) + 1e-6)
