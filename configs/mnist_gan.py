"""Grey MNIST, a VAE whose decoder also has to deceive a discriminator.

    python train.py --config=configs/mnist_gan.py --workdir=runs/mnist_gan
    vaejax frechet runs/mnist_gan --n=10000 --sampler=both

Five minutes on two free CPU cores; expected: Frechet distance of samples from the prior 27 (118 of the VAE),
PSNR 22.1 dB (22.8).
TFDS downloads the images; where the IDX files are at hand, add --config.data.name=idx --config.data.path=FOLDER.
The VAE of equal size beside it: --config.objective.name=elbo --config.objective.adversarial_start=0, in another --workdir.
"""

from ml_collections import ConfigDict

from vaejax.config import default_config


def get_config() -> ConfigDict:
    """The quickstart's model on all of MNIST."""
    config = default_config()
    config.data.name = "tfds:mnist"
    config.data.validation_fraction = 1 / 60
    config.objective.name = "vae_gan"
    config.objective.adversarial_start = 500
    config.training.steps = 3_000
    config.training.checkpoint_every = 1_000
    config.training.log_every = 200
    return config
