"""A convolutional network that tells images from what a model makes, and shows what it looks at."""

import flax.linen as nn
from jaxtyping import Array, Float

from vaejax.networks.convolutions import Convolution
from vaejax.networks.layers import wide


class Discriminator(nn.Module):
    """Strided 3x3 convolutions -> one logit; the features of every layer come with it."""

    features: tuple[int, ...]

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> tuple[Float[Array, " b"], tuple[Float[Array, "b ..."], ...]]:
        """Maps `[b, h, w, c]` to logits `[b]` (large: a real image) and the activations of each layer."""
        x, layers = images, []
        for width in self.features:
            x = nn.leaky_relu(Convolution(width, stride=2)(x), negative_slope=0.2)
            layers.append(x)
        return wide(nn.Dense(1)(x.reshape(len(x), -1))[:, 0]), tuple(layers)
