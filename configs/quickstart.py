"""The default: 5,000 real MNIST digits, grey, a small convolutional VAE with 16 latents.

python train.py --config=configs/quickstart.py --workdir=runs/quickstart
"""

from ml_collections import ConfigDict

from vaejax.config import default_config


def get_config() -> ConfigDict:
    """The defaults of every field; `python train.py --help` lists them."""
    return default_config()
