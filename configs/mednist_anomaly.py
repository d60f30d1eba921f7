"""MedNIST hands as the normal images, the other five classes as anomalies: 64x64, convolutions, 32 latents.

    python train.py --config=configs/mednist_anomaly.py --workdir=runs/hand --config.data.path=FOLDER
    vaejax anomaly runs/hand --best

Another class is normal with --config.data.normal='("CXR",)'.
"""

from ml_collections import ConfigDict

from vaejax.config import default_config


def get_config() -> ConfigDict:
    """The networks of configs/mednist.py for a sixth of its images: fewer latents, and a scale for every pixel."""
    config = default_config()
    config.data.name = "image_folder"
    config.data.path = "mednist"
    config.data.normal = ("Hand",)
    config.data.calibration_fraction = 0.2
    config.data.batch_size = 32
    config.model.latent_size = 32
    config.model.features = (16, 32, 64)
    config.model.likelihood = "discretized_logistic"
    config.model.scale = "pixel"
    config.optimizer.warmup_steps = 100
    config.training.steps = 1_200
    config.training.checkpoint_every = 300
    config.training.log_every = 100
    return config
