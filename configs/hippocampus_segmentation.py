r"""Segmentation of the hippocampus (Medical Segmentation Decathlon, NIfTI) on the encoder of configs/hippocampus.py.

    python train.py --config=configs/hippocampus.py --workdir=runs/hippocampus --config.data.path=FOLDER/images
    python train.py --config=configs/hippocampus_segmentation.py --workdir=runs/hippocampus_segmentation \
        --config.data.path=FOLDER/images --config.data.masks=FOLDER/labels
    vaejax segment runs/hippocampus_segmentation --best

It starts from runs/hippocampus; another place is --config.transfer.source=RUN, and from scratch --config.transfer.source=None.
"""

from ml_collections import ConfigDict

from vaejax.config import default_config


def get_config() -> ConfigDict:
    """The model of hippocampus.py with a head of three classes: background, anterior, posterior."""
    config = default_config()
    config.data.name = "volumes"
    config.data.path = "hippocampus/images"
    config.data.masks = "hippocampus/labels"
    config.data.image_size = (48, 48)
    config.data.batch_size = 16
    config.augment.rotate = 15.0
    config.augment.zoom = 0.15
    config.augment.brightness = 0.1
    config.augment.contrast = 0.2
    config.model.regions = 3
    config.objective.name = "segmentation"
    config.transfer.source = "runs/hippocampus"
    config.transfer.parts = ("encoder",)
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_steps = 50
    config.training.steps = 3_000
    config.training.checkpoint_every = 1_000
    config.training.log_every = 100
    config.training.ema_decay = 0.99
    return config
