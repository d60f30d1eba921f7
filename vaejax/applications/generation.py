"""Images from the prior."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vaejax.keys import of_examples
from vaejax.models import Condition, Model, Params


def sample(
    model: Model, params: Params, key: Key[Array, ""], n: int, temperature: float = 1.0, condition: Condition = None
) -> Float[Array, "n ..."]:
    """Draws latents from the prior and shows the expected image of each.

    Args:
        model: any family.
        params: its parameters.
        key: the base of the draws; image i depends on (key, i) alone, so more images leave the first ones as they are.
        n: how many.
        temperature: scales the prior's standard deviation.
        condition: for a conditional model, the label of each image.

    Returns:
        `[n, *image_shape]` in [0, 1].
    """
    latents = model.prior(params, of_examples(key, jnp.arange(n)), temperature, condition)
    return model.decode(params, latents, condition).mean()
