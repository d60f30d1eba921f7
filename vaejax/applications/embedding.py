"""What an image is to a model: one row of numbers, and what would change in it towards another label."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vaejax.applications.reconstruction import encode
from vaejax.errors import FamilyError
from vaejax.models import CODEBOOK, Condition, Latents, Model, Params


def embed(model: Model, params: Params, images: Float[Array, "b ..."], condition: Condition = None) -> Float[Array, "b n"]:
    """One row of numbers an image, from its posterior mean; nothing is drawn.

    One latent vector is that row. Of levels, each gives the mean over its places, coarsest first. Of codes, each gives the
    share of the places that have it.
    """
    latents = encode(model, params, images, condition)
    if not model.random:
        return jax.nn.one_hot(latents, len(params[CODEBOOK])).mean(axis=(1, 2))
    return pooled(latents)


def pooled(latents: Latents) -> Float[Array, "b n"]:
    """Real latents as one row: every level's mean over its places, side by side."""
    levels = [leaf.reshape(len(leaf), -1, leaf.shape[-1]).mean(axis=1) for leaf in jax.tree.leaves(latents)]
    return jnp.concatenate(levels, axis=-1)


def names(model: Model, params: Params) -> list[str]:
    """What the numbers of `embed` are called: z0, z1, ...; level0_0, level0_1, ... from the coarsest on; code0, code1, ..."""
    if not model.random:
        return [f"code{i}" for i in range(len(params[CODEBOOK]))]
    if model.vector:
        return [f"z{i}" for i in range(model.vector)]
    levels = jax.eval_shape(lambda key: model.prior(params, key[jnp.newaxis], 1.0), jax.random.key(0))
    return [f"level{number}_{i}" for number, leaf in enumerate(levels) for i in range(leaf.shape[-1])]


def sums(model: Model, params: Params, images: Float[Array, "b ..."], weights: Float[Array, "b groups"]) -> Latents:
    """Weighted sums of posterior means, each leaf `[groups, ...]`: what the mean latents of groups of images are made of."""
    _require_walks(model)
    return jax.tree.map(lambda leaf: jnp.tensordot(weights, leaf, axes=(0, 0)), encode(model, params, images))


def walk(
    model: Model,
    params: Params,
    images: Float[Array, "b ..."],
    direction: Latents,
    amounts: Float[Array, " s"],
) -> tuple[Float[Array, "b s ..."], Float[Array, "b s n"]]:
    """Moves images along a direction of the latent space, such as the difference of the mean latents of two labels.

    That difference is what changes between the labels; the weights of a linear classifier are not, for they also hold what
    cancels noise (Haufe et al. 2014).

    Args:
        model: an unconditional one with real latents.
        params: its parameters.
        images: where each walk starts, at their posterior means.
        direction: latents without the batch axis.
        amounts: how far, in lengths of `direction`; at 0 is the reconstruction.

    Returns:
        Expected images `[b, s, *image_shape]` in [0, 1], and the rows of `pooled` latents that they are images of.

    Raises:
        FamilyError: the latents are codes, or a label is told apart from them.
    """
    _require_walks(model)
    start = encode(model, params, images)

    def step(amount: Float[Array, ""]) -> tuple[Float[Array, "b ..."], Float[Array, "b n"]]:
        moved = jax.tree.map(lambda leaf, way: leaf + amount * way[jnp.newaxis], start, direction)
        return model.decode(params, moved).mean(), pooled(moved)

    seen, rows = zip(*(step(amount) for amount in amounts), strict=True)
    return jnp.stack(seen, axis=1), jnp.stack(rows, axis=1)


def _require_walks(model: Model) -> None:
    if not model.random:
        raise FamilyError("explain: the latents of this model are codes, and there is no direction from code to code.")
    if model.classes:
        raise FamilyError(
            "explain: this model is conditional: it is told the label, which its latents therefore need not hold. Draw the "
            "same images with another label instead (`vaejax sample --label`), or train one with model.conditional=False."
        )
