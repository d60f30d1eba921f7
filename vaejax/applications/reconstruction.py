"""Images through the model: there and back, and from one to another."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vaejax.keys import of_examples
from vaejax.models import Latents, Model, Params


def encode(model: Model, params: Params, images: Float[Array, "b ..."]) -> Latents:
    """Posterior means, each leaf `[b, ...]`; nothing is drawn."""
    unused = of_examples(jax.random.key(0), jnp.arange(len(images)))  # draws that nobody reads cost nothing under jit
    return model.infer(params, images, unused).mean


def reconstruct(model: Model, params: Params, images: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
    """The expected image at the posterior mean, `[b, *image_shape]` in [0, 1]; nothing is drawn."""
    return model.decode(params, encode(model, params, images)).mean()


def interpolate(
    model: Model, params: Params, first: Float[Array, "b ..."], second: Float[Array, "b ..."], steps: int
) -> Float[Array, "b s ..."]:
    """Straight lines between posterior means, decoded.

    Args:
        model: any family whose latents are real vectors.
        params: its parameters.
        first: where each line starts.
        second: where it ends.
        steps: images on a line, both ends counted.

    Returns:
        `[b, steps, *image_shape]` in [0, 1].
    """
    ends = [encode(model, params, images) for images in (first, second)]

    def point(weight: Float[Array, ""]) -> Float[Array, "b ..."]:
        return model.decode(params, jax.tree.map(lambda a, b: (1.0 - weight) * a + weight * b, *ends)).mean()

    return jnp.stack([point(weight) for weight in jnp.linspace(0.0, 1.0, steps)], axis=1)
