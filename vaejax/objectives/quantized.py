"""The objective of VQ: reconstruction and commitment by gradient, the codebook by moving averages."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from vaejax.batches import Batch
from vaejax.config import ObjectiveConfig
from vaejax.keys import of_examples, stream
from vaejax.models import CODEBOOK, Inference, Model, Params, condition_of
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


class Averages(NamedTuple):
    """Moving averages over the steps of what a code stands for."""

    uses: Float[Array, " codes"]
    """Vectors a step that were rounded to the code."""
    sums: Float[Array, "codes d"]
    """Their sum."""


def vq(
    model: Model, config: ObjectiveConfig, optimizer: optax.GradientTransformation, frozen: tuple[str, ...] = ()
) -> Objective:
    """Distortion + beta * rate + commitment (van den Oord et al. 2017, eq. 3), gradients straight through the rounding.

    The rate is -log p(codes), a constant while all codes are alike. A code follows the moving average of its vectors
    (appendix A.1). One that is used less than `revive_below` times a step starts anew at a vector of the batch, as all codes
    of an empty codebook do.
    """
    fixed = (*frozen, CODEBOOK)

    def loss(
        trained: Params, rest: Params, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[jax.Array, tuple[Terms, Inference]]:
        images = selected(batch)
        inference = model.infer(rest | trained, images, of_examples(key, batch["index"]), 1, condition_of(model, batch))
        distance = (inference.vectors - jax.lax.stop_gradient(rest[CODEBOOK])[inference.mean]) ** 2
        terms = elbo_terms(inference, images)
        terms["commitment"] = distance.sum(axis=tuple(range(1, distance.ndim)))
        total = terms["distortion"] + beta_at(config, step) * terms["rate"] + config.commitment * terms["commitment"]
        return masked_mean(total, batch["mask"]), (terms, inference)

    def init(params: Params, key: Key[Array, ""]) -> tuple[PyTree, Averages]:
        del key  # nothing is drawn
        codebook = params[CODEBOOK]
        uses = jnp.where(_empty(codebook), 0.0, jnp.ones(len(codebook)))  # of one that was taken over, once each
        return optimizer.init(parted(params, fixed)[0]), Averages(uses, jnp.copy(codebook))

    def update(
        params: Params, state: tuple[PyTree, Averages], batch: Batch, key: Key[Array, ""], step: Int[Array, ""]
    ) -> Update:
        trained, rest = parted(params, fixed)
        (value, (terms, inference)), gradient = jax.value_and_grad(loss, has_aux=True)(trained, rest, batch, key, step)
        change, descending = optimizer.update(gradient, state[0], trained)
        counts, sums = _assigned(inference, batch["mask"], len(rest[CODEBOOK]))
        averages = jax.tree.map(
            lambda old, new: config.codebook_decay * old + (1.0 - config.codebook_decay) * new, state[1], Averages(counts, sums)
        )
        dead = (averages.uses < config.revive_below) | _empty(rest[CODEBOOK])
        averages = _revived(averages, dead, inference, batch["mask"], stream(key, "codes"))
        uses = averages.uses[:, jnp.newaxis]
        codebook = jnp.where(uses > 0.0, averages.sums / jnp.where(uses > 0.0, uses, 1.0), rest[CODEBOOK])
        skipped, kept = _skipped(state[0], descending), (rest[CODEBOOK], state[1])
        codebook, averages = jax.tree.map(lambda old, new: jnp.where(skipped, old, new), kept, (codebook, averages))
        share = counts / counts.sum()
        seen = {
            "codes_in_use": (counts > 0.0).sum().astype(jnp.float32),
            "codes_revived": dead.sum().astype(jnp.float32),
            "code_perplexity": jnp.exp(jax.scipy.special.entr(share).sum()),
        }
        params = rest | optax.apply_updates(trained, change) | {CODEBOOK: codebook}
        return Update(params, (descending, averages), value, terms, optax.tree.norm(gradient), seen | gauges(descending))

    return Objective(init, update)


def _skipped(before: PyTree, after: PyTree) -> Bool[Array, ""]:
    """Whether an optimiser skipped its update: then the codes stay, too."""
    counts = [gauges(state).get("skipped", jnp.zeros(())) for state in (before, after)]
    return counts[1] > counts[0]


def _empty(codebook: Float[Array, "codes d"]) -> Bool[Array, ""]:
    """Whether it is still to be filled."""
    return ~jnp.any(codebook != 0.0)


def _assigned(inference: Inference, mask: Bool[Array, " b"], codes: int) -> tuple[jax.Array, jax.Array]:
    """How many of the batch's vectors were rounded to each code, and their sums."""
    assert inference.vectors is not None  # of every VQ model
    places = (1,) * (inference.mean.ndim - 1)
    chosen = jax.nn.one_hot(inference.mean, codes) * mask.reshape(-1, *places, 1)
    chosen = chosen.reshape(-1, codes)
    vectors = inference.vectors.reshape(-1, inference.vectors.shape[-1])
    return chosen.sum(axis=0), jnp.matmul(chosen.T, vectors, precision=jax.lax.Precision.HIGHEST)


def _revived(
    averages: Averages, dead: Bool[Array, " codes"], inference: Inference, mask: Bool[Array, " b"], key: Key[Array, ""]
) -> Averages:
    """The averages, those of dead codes as if used once a step by a random vector of the batch."""
    assert inference.vectors is not None  # of every VQ model
    vectors = inference.vectors.reshape(len(mask), -1, inference.vectors.shape[-1])
    counting = jnp.argsort(~mask)  # the rows that count come first
    row_key, place_key = jax.random.split(key)
    row = counting[jax.random.randint(row_key, dead.shape, 0, mask.sum())]
    drawn = vectors[row, jax.random.randint(place_key, dead.shape, 0, vectors.shape[1])]
    return Averages(
        jnp.where(dead, 1.0, averages.uses), jnp.where(dead[:, jnp.newaxis], jax.lax.stop_gradient(drawn), averages.sums)
    )
