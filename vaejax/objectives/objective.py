"""What an objective is: it owns its gradient, its optimisers and its state, and reports per-example terms in nats per image.

The terms are told apart from the scalar that is differentiated; rows that do not count are selected away, never multiplied.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from vaejax import distributions as dist
from vaejax.batches import Batch
from vaejax.config import ObjectiveConfig
from vaejax.models import Inference, Params

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
    gauges: dict[str, Float[Array, ""]]
    """What stands after the step and is no mean over it, such as how many updates were skipped so far; may be empty."""


class Objective(NamedTuple):
    """init(params, key) -> state; update(params, state, batch, key, step) -> Update. Both are pure."""

    init: Callable[[Params, Key[Array, ""]], PyTree]
    update: Callable[[Params, PyTree, Batch, Key[Array, ""], Int[Array, ""]], Update]


class ValueAndGradient(Protocol):
    """The loss and its terms, and the gradient by the parts that are trained."""

    def __call__(
        self, trained: Params, rest: Params, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[tuple[jax.Array, Terms], Params]:
        """Parameters come in two dicts: what is differentiated, and the rest."""


def descent(
    value_and_gradient: ValueAndGradient, optimizer: optax.GradientTransformation, frozen: tuple[str, ...] = ()
) -> Objective:
    """One optimiser on all parameters but the `frozen` parts, which have neither gradient nor optimiser state."""

    def init(params: Params, key: Key[Array, ""]) -> PyTree:
        del key  # nothing is drawn
        return optimizer.init(parted(params, frozen)[0])

    def update(params: Params, state: PyTree, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]) -> Update:
        trained, rest = parted(params, frozen)
        (value, terms), gradient = value_and_gradient(trained, rest, batch, key, step)
        change, state = optimizer.update(gradient, state, trained)
        params = rest | optax.apply_updates(trained, change)
        return Update(params, state, value, terms, optax.tree.norm(gradient), gauges(state))

    return Objective(init, update)


def in_parts(value_and_gradient: ValueAndGradient, parts: int) -> ValueAndGradient:
    """The same for a batch in `parts`, one after the other: what is in memory at a time is that of one part.

    Where value and gradient are means over the rows that count, so is what comes out: each part weighs as many as it has.
    """
    if parts == 1:
        return value_and_gradient

    def whole(
        trained: Params, rest: Params, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[tuple[jax.Array, Terms], Params]:
        def add(sums: PyTree, part: Batch) -> tuple[PyTree, Terms]:
            (value, terms), gradient = value_and_gradient(trained, rest, part, key, step)
            share = part["mask"].sum() / batch["mask"].sum()
            found = jax.tree.map(lambda leaf: jnp.where(share > 0, share * leaf, 0.0), (value, gradient))
            return jax.tree.map(jnp.add, sums, found), terms

        # Part i has rows i, i + parts, ..., so that every device has its share of each part.
        cut = {name: jnp.moveaxis(rows.reshape(-1, parts, *rows.shape[1:]), 1, 0) for name, rows in batch.items()}
        (value, gradient), terms = jax.lax.scan(add, (jnp.zeros(()), jax.tree.map(jnp.zeros_like, trained)), cut)
        return (value, {name: rows.T.reshape(-1) for name, rows in terms.items()}), gradient

    return whole


def parted(params: Params, frozen: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parts that are trained, and those that stay."""
    trained = {name: part for name, part in params.items() if name not in frozen}
    return trained, {name: part for name, part in params.items() if name in frozen}


def gauges(optimizer_state: PyTree) -> dict[str, Float[Array, ""]]:
    """How many updates an optimiser skipped so far, where it may (see `optimizers.skipping`)."""
    skipped = optax.tree.get(optimizer_state, "skipped", None)
    return {} if skipped is None else {"skipped": skipped.astype(jnp.float32)}


def elbo_terms(inference: Inference, images: Float[Array, "b ..."]) -> Terms:
    """Distortion -E log p(x|z) over the draws and rate KL(q || p) over all levels; their sum is the negative ELBO."""
    distortion = -dist.log_prob(inference.likelihood, images).mean(axis=0)
    return {"distortion": distortion, "rate": jnp.stack(inference.kl).sum(axis=0)}


def masked_mean(values: Float[Array, " b"], mask: Bool[Array, " b"]) -> Float[Array, ""]:
    """Mean over the rows that count; the others are selected away, so a NaN there does no harm."""
    return jnp.where(mask, values, 0.0).sum() / mask.sum()


def selected(batch: Batch) -> Float[Array, "b ..."]:
    """The images that count, zeros elsewhere: the gradient of a NaN that is selected away after the networks is NaN still."""
    return jnp.where(batch["mask"].reshape(-1, *[1] * (batch["image"].ndim - 1)), batch["image"], 0.0)


def beta_at(config: ObjectiveConfig, step: Int[Array, ""]) -> Float[Array, ""]:
    """The weight of the rate, which grows linearly to `beta` over `warmup_steps` (Sonderby et al. 2016)."""
    return config.beta * jnp.minimum(1.0, (step + 1) / max(config.warmup_steps, 1))
