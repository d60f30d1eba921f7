"""Slices of hippocampus MRI (Medical Segmentation Decathlon, NIfTI), patients apart, convolutions, 16 latents.

    python train.py --config=configs/hippocampus.py --workdir=runs/hippocampus --config.data.path=FOLDER

FOLDER holds .nii.gz or DICOM files, at any depth; `pip install 'vaejax[medical]'` reads them.
"""

from ml_collections import ConfigDict

from vaejax.config import default_config


def get_config() -> ConfigDict:
    """The quickstart's networks; small turns and changes of brightness, since the patients are few."""
    config = default_config()
    config.data.name = "volumes"
    config.data.path = "hippocampus"
    config.data.image_size = (48, 48)
    config.augment.rotate = 5.0
    config.augment.zoom = 0.05
    config.augment.brightness = 0.05
    config.optimizer.warmup_steps = 200
    config.training.steps = 2_000
    config.training.checkpoint_every = 500
    config.training.log_every = 100
    return config
