"""From the configuration to a model."""

from vaejax.config import ModelConfig
from vaejax.errors import ConfigError
from vaejax.models.hierarchical import hierarchical
from vaejax.models.model import Model
from vaejax.models.segmenter import segmenter
from vaejax.models.vae import vae
from vaejax.models.vq import vq

FAMILIES = {"vae": vae, "hierarchical": hierarchical, "vq": vq}
"""The choices of `model.family`."""


def build(config: ModelConfig, image_shape: tuple[int, int, int], classes: int | None = None) -> Model:
    """The model that a configuration names, for images of `image_shape` = (h, w, c).

    Args:
        config: family, networks, posterior, prior and likelihood.
        image_shape: height, width, channels.
        classes: how many labels the images have; None where they have none.

    Raises:
        ConfigError: a conditional model without classes, or patches that do not divide the image.
    """
    if config.conditional and not classes:
        raise ConfigError("model.conditional=True: needs labels, and the images have none. Choose model.conditional=False.")
    if config.regions:
        return segmenter(config, image_shape)
    return FAMILIES[config.family](config, image_shape, classes if config.conditional else None)
