"""Grey MNIST as 7 x 7 codes of a codebook of 128: the first of two runs (the second is mnist_codes.py).

    python train.py --config=configs/mnist_vq.py --workdir=runs/mnist_vq

Three minutes on two free CPU cores; expected on the test split: 1.79 bits/dim, PSNR 25.3 dB, all 128 codes used.
TFDS downloads the images; where the IDX files are at hand, add --config.data.name=idx --config.data.path=FOLDER.
"""

from ml_collections import ConfigDict

from vaejax.config import default_config


def get_config() -> ConfigDict:
    """A convolutional network of two halvings; all codes are alike to its prior."""
    config = default_config()
    config.data.name = "tfds:mnist"
    config.data.validation_fraction = 1 / 60
    config.model.family = "vq"
    config.model.features = (32, 64)
    config.model.latent_size = 16
    config.model.codes = 128
    config.model.likelihood = "discretized_logistic"
    config.objective.name = "vq"
    config.training.steps = 5_000
    config.training.checkpoint_every = 1_000
    config.training.log_every = 200
    return config
