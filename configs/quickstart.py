"""The default: 5,000 real MNIST digits, grey, a small convolutional VAE with 16 latents.

python train.py --config=configs/quickstart.py --workdir=runs/quickstart
"""

from ml_collections import ConfigDict

from vaejax.config import default_config


def get_config() -> ConfigDict:
    """The defaults (`python train.py --help` lists them) and mild augmentation: 4,000 images are few."""
    config = default_config()
    config.augment.rotate = 10.0
    config.augment.zoom = 0.1
    config.augment.crop = 0.1
    return config
