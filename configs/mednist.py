"""MedNIST: X-rays, CT and MR images of six kinds, 64x64, from class folders of JPEG files, convolutions, 64 latents.

    python train.py --config=configs/mednist.py --workdir=runs/mednist --config.data.path=FOLDER

Five minutes on two free CPU cores; expected on the test split: 5.38 bits/dim (probabilistic PCA: 6.72).
"""

from ml_collections import ConfigDict

from vaejax.config import default_config


def get_config() -> ConfigDict:
    """The quickstart's networks with one halving more, and a scale for every pixel."""
    config = default_config()
    config.data.name = "image_folder"
    config.data.path = "mednist"
    config.data.batch_size = 64
    config.model.latent_size = 64
    config.model.features = (32, 64, 64)
    config.model.likelihood = "discretized_logistic"
    config.model.scale = "pixel"
    config.optimizer.warmup_steps = 200
    config.training.steps = 3_000
    config.training.checkpoint_every = 500
    config.training.log_every = 100
    return config
