"""Images through the model: there and back, and from one to another."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vaejax.errors import FamilyError
from vaejax.keys import of_examples
from vaejax.models import Condition, Latents, Model, Params, weights_of


def encode(model: Model, params: Params, images: Float[Array, "b ..."], condition: Condition = None) -> Latents:
    """Posterior means, each leaf `[b, ...]`; nothing is drawn. A conditional model wants the labels as `condition`."""
    unused = of_examples(jax.random.key(0), jnp.arange(len(images)))  # draws that nobody reads cost nothing under jit
    return model.infer(params, images, unused, condition=condition).mean


def reconstruct(
    model: Model, params: Params, images: Float[Array, "b ..."], condition: Condition = None
) -> Float[Array, "b ..."]:
    """The expected image at the posterior mean, `[b, *image_shape]` in [0, 1]; nothing is drawn."""
    return model.decode(params, encode(model, params, images, condition), condition).mean()


def interpolate(
    model: Model,
    params: Params,
    first: Float[Array, "b ..."],
    second: Float[Array, "b ..."],
    steps: int,
    conditions: tuple[Condition, Condition] = (None, None),
) -> Float[Array, "b s ..."]:
    """Straight lines between posterior means, decoded: of every level, where there are several.

    Args:
        model: any family whose latents are real vectors.
        params: its parameters.
        first: where each line starts.
        second: where it ends.
        steps: images on a line, both ends counted.
        conditions: for a conditional model, the labels of `first` and of `second`; one fades into the other.

    Returns:
        `[b, steps, *image_shape]` in [0, 1].

    Raises:
        FamilyError: the latents are codes, between which there are no lines.
        ValueError: fewer than two steps.
    """
    if steps < 2:
        raise ValueError(f"steps={steps}: expected at least 2, the two ends of a line.")
    if not model.random:
        raise FamilyError("interpolate: the latents of this model are codes, and there is no line between codes.")

    def end(images: Float[Array, "b ..."], condition: Condition) -> tuple[Latents, Condition]:
        mean = encode(model, params, images, condition)
        return mean, None if model.classes is None else weights_of(condition, model.classes)

    ends = [end(first, conditions[0]), end(second, conditions[1])]

    def point(weight: Float[Array, ""]) -> Float[Array, "b ..."]:
        return model.decode(params, *jax.tree.map(lambda a, b: (1.0 - weight) * a + weight * b, *ends)).mean()

    return jnp.stack([point(weight) for weight in jnp.linspace(0.0, 1.0, steps)], axis=1)
