"""The model of mnist_mlp.py, trained on by the importance-weighted bound of 50 draws: the second of two runs.

    python train.py --config=configs/mnist_mlp.py --workdir=runs/mnist_mlp
    python train.py --config=configs/mnist_iwae.py --workdir=runs/mnist_iwae --config.transfer.source=runs/mnist_mlp
    vaejax evaluate runs/mnist_iwae --samples=500

The second takes ten minutes on two free CPU cores; expected on the test split: NLL 82.7 with k = 500.
TFDS downloads the images; where the IDX files are at hand, add --config.data.name=idx --config.data.path=FOLDER to both.
"""

from ml_collections import ConfigDict

from vaejax.config import default_config


def get_config() -> ConfigDict:
    """The networks and the prior of mnist_mlp.py, all of them taken over."""
    config = default_config()
    config.data.name = "tfds:mnist"
    config.data.binarization = "dynamic"
    config.data.validation_fraction = 1 / 60
    config.model.network = "mlp"
    config.model.latent_size = 40
    config.model.hidden = (512, 512)
    config.model.prior = "mixture"
    config.model.prior_components = 500
    config.model.likelihood = "bernoulli"
    config.objective.name = "iwae"
    config.objective.samples = 50
    config.transfer.source = "runs/mnist_mlp"
    config.transfer.parts = ("encoder", "decoder", "prior")
    config.optimizer.learning_rate = 5e-4
    config.optimizer.warmup_steps = 200
    config.training.steps = 4_000
    config.training.checkpoint_every = 500
    config.training.log_every = 50
    return config
