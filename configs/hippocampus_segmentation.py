r"""Segmentation of the hippocampus (Medical Segmentation Decathlon, NIfTI), slice by slice; patients in one split.

    python train.py --config=configs/hippocampus_segmentation.py --workdir=runs/hippocampus_segmentation \
        --config.data.path=FOLDER/images --config.data.masks=FOLDER/labels
    vaejax segment runs/hippocampus_segmentation --best

Fifteen minutes on one CPU core; expected on the 11 test volumes: Dice 0.849 (0.828 to 0.870). To start from the encoder
of another run with the same model.*, add --config.transfer.source=RUN: here it did not help (docs/results.md).
"""

from ml_collections import ConfigDict

from vaejax.config import default_config


def get_config() -> ConfigDict:
    """A U-Net of three sizes, each slice with two neighbours on either side; background, anterior and posterior."""
    config = default_config()
    config.data.name = "volumes"
    config.data.path = "hippocampus/images"
    config.data.masks = "hippocampus/labels"
    config.data.image_size = (64, 48)
    config.data.block = 5
    config.data.batch_size = 16
    config.augment.rotate = 15.0
    config.augment.zoom = 0.15
    config.augment.brightness = 0.1
    config.augment.contrast = 0.2
    config.model.features = (32, 64, 128)
    config.model.latent_size = 32
    config.model.norm = "group"
    config.model.regions = 3
    config.objective.name = "segmentation"
    config.transfer.parts = ("encoder",)
    config.optimizer.learning_rate = 5e-3
    config.optimizer.warmup_steps = 50
    config.training.steps = 5_000
    config.training.checkpoint_every = 500
    config.training.log_every = 100
    config.training.ema_decay = 0.99
    return config
