"""The second run of VQ on grey MNIST: a transformer learns which codes go together, so that images can be made.

    python train.py --config=configs/mnist_vq.py --workdir=runs/mnist_vq
    python train.py --config=configs/mnist_codes.py --workdir=runs/mnist_codes
    vaejax sample runs/mnist_codes

A few minutes on two free CPU cores; expected on the test split: 1.47 bits/dim (1.79 with all codes alike).
It starts from runs/mnist_vq; another place is --config.transfer.source=RUN. Where the IDX files are at hand, add
--config.data.name=idx --config.data.path=FOLDER.
"""

from ml_collections import ConfigDict

from vaejax.config import default_config


def get_config() -> ConfigDict:
    """The model of mnist_vq.py, frozen, and a prior over its codes."""
    config = default_config()
    config.data.name = "tfds:mnist"
    config.data.validation_fraction = 1 / 60
    config.model.family = "vq"
    config.model.features = (32, 64)
    config.model.latent_size = 16
    config.model.codes = 128
    config.model.likelihood = "discretized_logistic"
    config.model.code_prior = "transformer"
    config.model.width = 96
    config.model.depth = 3
    config.transfer.source = "runs/mnist_vq"
    config.transfer.freeze = ("encoder", "decoder", "log_scale", "codebook")
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 100
    config.training.steps = 2_000
    config.training.checkpoint_every = 1_000
    config.training.log_every = 200
    return config
