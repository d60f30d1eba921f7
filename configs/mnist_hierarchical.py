"""Binarised MNIST with a hierarchy of latent images, at 4 x 4, 7 x 7 and 14 x 14 pixels.

    python train.py --config=configs/mnist_hierarchical.py --workdir=runs/mnist_hierarchical
    vaejax evaluate runs/mnist_hierarchical --samples=100

EXPECTED
TFDS downloads the images; where the IDX files are at hand, add --config.data.name=idx --config.data.path=FOLDER.
"""

from ml_collections import ConfigDict

from vaejax.config import default_config


def get_config() -> ConfigDict:
    """One level a size, rectified and narrow: most of a step on a CPU is activations, not products."""
    config = default_config()
    config.data.name = "tfds:mnist"
    config.data.binarization = "dynamic"
    config.data.validation_fraction = 1 / 60
    config.model.family = "hierarchical"
    config.model.network = "resnet"
    config.model.features = (32, 64, 64)
    config.model.blocks = 1
    config.model.latent_size = 4
    config.model.activation = "relu"
    config.model.likelihood = "bernoulli"
    config.objective.warmup_steps = 1_000
    config.optimizer.name = "adamax"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 200
    config.optimizer.skip_norm = 1_000.0
    config.training.steps = 4_000
    config.training.checkpoint_every = 1_000
    config.training.log_every = 200
    return config
