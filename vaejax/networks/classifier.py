"""A small convolutional classifier, whose last hidden layer says what images look like."""

import flax.linen as nn
from jaxtyping import Array, Float

from vaejax.networks.convolutions import Convolution

WIDTHS = (32, 64)
"""Channels after each halving of the image."""

FEATURES = 128
"""Numbers in the last hidden layer."""


class Classifier(nn.Module):
    """Strided 3x3 convolutions -> a hidden layer -> a logit a class."""

    classes: int

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> tuple[Float[Array, "b classes"], Float[Array, "b features"]]:
        """Maps `[b, h, w, c]` to logits `[b, classes]` and features `[b, FEATURES]`."""
        x = images
        for width in WIDTHS:
            x = nn.relu(Convolution(width, stride=2)(x))
        features = nn.relu(nn.Dense(FEATURES)(x.reshape(len(x), -1)))
        return nn.Dense(self.classes)(features), features
