"""The configuration: frozen dataclasses that check themselves, built from an ml_collections ConfigDict.

A configuration file is Python with a function `get_config() -> ConfigDict`, or the `config.json` of a run. Both start
from `default_config()`, so a file states only what differs. Every field below is declared once, with its meaning, its
default and its allowed values; `describe()` prints them, and `Config` refuses whatever is outside of them, naming the field.
"""

import dataclasses
import difflib
import json
import math
import typing
from typing import Any

import ml_collections

from vaejax.errors import ConfigError
from vaejax.fields import Section, allowed, declare

ACTIVATIONS = ("relu", "leaky_relu", "elu", "gelu", "silu", "softplus", "tanh")


@dataclasses.dataclass(frozen=True)
class DataConfig(Section):
    """Where the images come from, and what shape they take."""

    prefix = "data."
    name: str = declare(
        "mnist5k",
        "source: mnist5k, idx, medmnist, image_folder, volumes (DICOM, NIfTI), arrays (.npy, .npz), manifest (a table of "
        "files), or tfds:NAME",
    )
    path: str | None = declare(None, "folder or file to read; a TFDS data directory for tfds:NAME; unused by mnist5k")
    image_size: tuple[int, ...] | None = declare(
        None, "(height, width) in pixels that every image takes; None: as found, if all agree", low=1, high=4096
    )
    channels: int | None = declare(None, "channels that every image takes; None: as found, if all agree", low=1, high=64)
    resize: str = declare(
        "pad",
        "an image of another size is scaled to fit and padded with zeros, or scaled to cover and cropped, or stretched",
        choices=("pad", "crop", "stretch"),
    )
    validation_fraction: float = declare(
        0.1, "share of the training images set apart, where the source has no validation split", above=0.0, high=0.5
    )
    normal: tuple[str, ...] = declare(
        (), "labels of normal images: training, validation and calibration are of those alone; empty: all of them are normal"
    )
    calibration_fraction: float = declare(
        0.0, "share of the training images set apart for the thresholds of `vaejax anomaly`", low=0.0, high=0.5
    )
    on_error: str = declare(
        "stop", "unreadable files: stop and name them all, or skip, count and list them", choices=("stop", "skip")
    )
    masks: str | None = declare(
        None,
        "folder of masks, whose values are classes: for each image a file of the same relative path, of any suffix; of a DICOM "
        "series also a NIfTI file, or all DICOM files, under the path of its folder",
    )
    slice_axis: int = declare(2, "volumes: NIfTI is cut across this axis: 0 sagittal, 1 coronal, 2 axial", low=0, high=2)
    slice_content: float = declare(
        0.0, "volumes: a slice with a smaller share of pixels brighter than a tenth of white is left out", low=0.0, high=1.0
    )
    window: tuple[int, ...] | None = declare(
        None,
        "volumes: (centre, width) of what becomes black to white, in decoded units; None: a CT's own window, or percentiles",
        low=-100_000,
        high=1_000_000,
    )
    slice_range: tuple[float, ...] = declare(
        (0.0, 1.0), "volumes: the part of the slices to train on, as shares of a volume's: (first, last)", low=0.0, high=1.0
    )
    spacing: tuple[float, ...] | None = declare(
        None,
        "volumes: resampled to (row, column) mm between pixels, or (row, column, slice); None: as found",
        above=0.0,
        high=1_000.0,
    )
    block: int = declare(
        1, "volumes: an odd number of neighbouring slices in the channels, each in the middle of a block", low=1, high=63
    )
    normalize: str = declare(
        "volume",
        "volumes without a window: the percentiles that become black and white are those of each volume, or of all together",
        choices=("volume", "dataset"),
    )
    workers: int = declare(
        1, "processes that decode files, once, before the first run on them; 0: one a processor", low=0, high=1_024
    )
    untrusted: bool = declare(
        False, "decode files in a process apart: what takes too much there, or breaks it, counts as an unreadable file"
    )
    file_seconds: float = declare(5.0, "untrusted: what a file may take by the clock", above=0.0, high=86_400.0)
    file_memory: float = declare(2.0, "untrusted: what a file may take of memory, GiB", low=0.5, high=1_024.0)
    cache: str | None = declare(None, "folder for prepared images; None: the folder `data` beside the run directory")
    batch_size: int = declare(128, "images in a training step, over all devices", low=1, high=1_000_000)
    resident: bool = declare(
        False, "put the training images on every device once, and send the places of a batch alone; without augmentation"
    )
    binarization: str = declare(
        "none",
        "grey values become 0 or 1 by a Bernoulli(pixel) draw: never, once (seed 0, by image), or anew in every step",
        choices=("none", "static", "dynamic"),
    )


@dataclasses.dataclass(frozen=True)
class AugmentConfig(Section):
    """Random changes of the training images; all are off by default."""

    prefix = "augment."
    rotate: float = declare(0.0, "largest angle, degrees, either way", low=0.0, high=180.0)
    zoom: float = declare(0.0, "largest relative change of scale about the centre, either way", low=0.0, high=0.9)
    crop: float = declare(0.0, "largest share of each side cut away at a random place, then scaled back", low=0.0, high=0.9)
    flip_horizontal: bool = declare(False, "mirror left and right in half of the images (mind laterality)")
    flip_vertical: bool = declare(False, "mirror top and bottom in half of the images")
    brightness: float = declare(0.0, "largest value added to all pixels of an image, either way", low=0.0, high=1.0)
    contrast: float = declare(0.0, "largest relative change of the distance to the mean, either way", low=0.0, high=1.0)

    @property
    def active(self) -> bool:
        """Whether any change is asked for."""
        return any(getattr(self, field.name) for field in dataclasses.fields(self))


@dataclasses.dataclass(frozen=True)
class ModelConfig(Section):
    """The networks, the latent space and the likelihood."""

    prefix = "model."
    family: str = declare(
        "vae",
        "one latent vector; levels of latent images, from coarse to fine (hierarchical); or an image of codes (vq)",
        choices=("vae", "hierarchical", "vq"),
    )
    network: str = declare("cnn", "encoder and decoder", choices=("mlp", "cnn", "resnet", "transformer"))
    latent_size: int = declare(
        16, "latent dimensions; hierarchical: at each place of a level; vq: of the vector of a code", low=1, high=65_536
    )
    hidden: tuple[int, ...] = declare(
        (256,),
        "one latent vector; mlp, cnn, resnet: widths of the dense hidden layers, from the image inwards",
        low=1,
        high=65_536,
    )
    features: tuple[int, ...] = declare(
        (32, 64), "cnn, resnet: channels after each halving of the image, from the image inwards", low=1, high=8_192
    )
    blocks: int = declare(
        2, "resnet: residual blocks at each size of the image; hierarchical: levels at each size", low=1, high=1_000
    )
    patch_size: int = declare(4, "transformer: side of a square patch, pixels; it divides the image", low=1, high=4_096)
    width: int = declare(128, "transformer: numbers a token; a multiple of the heads", low=1, high=65_536)
    depth: int = declare(4, "transformer: blocks of attention and a dense layer", low=1, high=1_000)
    heads: int = declare(4, "transformer: attention heads", low=1, high=1_024)
    prior: str = declare(
        "standard_normal",
        "vae: p(latents): N(0, I), a learned mixture of Gaussians, or of the posteriors of learned images (VampPrior)",
        choices=("standard_normal", "mixture", "vamp"),
    )
    prior_components: int = declare(500, "mixture, vamp: components of the prior", low=1, high=100_000)
    posterior: str = declare(
        "gaussian",
        "vae: q(latents|image): a diagonal Gaussian, or one through an inverse autoregressive flow",
        choices=("gaussian", "iaf"),
    )
    flow_steps: int = declare(4, "iaf: steps of the flow", low=1, high=100)
    flow_width: int = declare(128, "iaf: hidden units of a step, and numbers that the encoder tells it", low=1, high=65_536)
    codes: int = declare(128, "vq: vectors in the codebook", low=2, high=65_536)
    code_prior: str = declare(
        "uniform",
        "vq: p(codes): all alike, or learned, by a transformer of the given width, depth and heads",
        choices=("uniform", "transformer"),
    )
    regions: int = declare(
        0, "classes of pixels, background counted, that a head on the encoder tells apart; 0: no head", low=0, high=255
    )
    conditional: bool = declare(False, "tell the model the label, so that images can be made by label; of vq, the prior")
    activation: str = declare("silu", "nonlinearity between layers", choices=ACTIVATIONS)
    norm: str = declare(
        "none",
        "mlp, cnn, resnet: normalisation before each nonlinearity, by parameters alone",
        choices=("none", "layer", "group"),
    )
    likelihood: str = declare(
        "gaussian",
        "p(image | latents): bernoulli for binarised images, a density, or discrete grey levels",
        choices=("bernoulli", "gaussian", "discretized_logistic", "logistic_mixture"),
    )
    scale: str = declare(
        "shared",
        "gaussian, discretized_logistic: the learned scale, one a channel or one a pixel",
        choices=("shared", "pixel"),
    )
    levels: int = declare(256, "discretized_logistic, logistic_mixture: grey levels", low=2, high=65_536)
    components: int = declare(5, "logistic_mixture: logistics a pixel", low=1, high=1_000)
    dtype: str = declare("float32", "precision inside the networks; all else is float32", choices=("float32", "bfloat16"))
    remat: bool = declare(
        False,
        "cnn, resnet, transformer: compute the inside of a block again for its gradient, for less of an accelerator's memory "
        "(on a CPU the compiler saves none)",
    )

    def __post_init__(self) -> None:
        """Checks what no field can check alone."""
        super().__post_init__()
        if self.network == "transformer" and self.norm != "none":
            raise ConfigError(f"model.norm={self.norm!r}: a transformer has its own layer norm. Choose model.norm='none'.")
        if (self.network == "transformer" or self.code_prior == "transformer") and self.width % self.heads:
            nearest = max(round(self.width / self.heads), 1) * self.heads
            raise ConfigError(f"model.width={self.width}: expected a multiple of model.heads={self.heads}, such as {nearest}.")

        if self.network == "mlp" and self.remat:
            raise ConfigError(
                "model.remat=True: an mlp has no blocks to compute again. Choose model.remat=False, or another model.network."
            )

        self._check_family()

        if self.regions and (self.family != "vae" or self.network not in ("cnn", "resnet") or self.conditional):
            raise ConfigError(
                f"model.regions={self.regions}: a head stands on the features of an encoder of convolutions. Choose "
                "model.family='vae', model.network='cnn' or 'resnet', model.conditional=False; or model.regions=0."
            )
        if self.regions == 1 or (self.regions and self.posterior != "gaussian"):
            raise ConfigError(
                f"model.regions={self.regions}: expected at least 2, the background and a class, with "
                "model.posterior='gaussian'; or 0."
            )

    def _check_family(self) -> None:
        """What goes with which family."""
        networks = {"hierarchical": ("resnet",), "vq": ("cnn", "resnet")}.get(self.family)
        if networks and self.network not in networks:
            raise ConfigError(
                f"model.network={self.network!r}: model.family={self.family!r} has {' or '.join(networks)}. "
                f"Choose model.network={networks[-1]!r}."
            )
        for name, family, default in (
            ("prior", "vae", "standard_normal"),
            ("posterior", "vae", "gaussian"),
            ("code_prior", "vq", "uniform"),
        ):
            value = getattr(self, name)
            if value != default and self.family != family:
                raise ConfigError(
                    f"model.{name}={value!r}: is of model.family={family!r}, and it is {self.family!r}. "
                    f"Choose model.{name}={default!r}."
                )
        if self.posterior == "iaf" and self.prior == "vamp":
            raise ConfigError(
                "model.prior='vamp' contradicts model.posterior='iaf': a mixture of flows has no density at hand. "
                "Choose model.prior='mixture', or model.posterior='gaussian'."
            )
        if self.conditional and self.prior == "vamp":
            raise ConfigError(
                "model.prior='vamp' contradicts model.conditional: its learned images have no label. "
                "Choose model.prior='mixture'."
            )
        if self.conditional and self.family == "vq" and self.code_prior == "uniform":
            raise ConfigError(
                "model.conditional=True: of vq it is the prior over the codes that is told the label. "
                "Choose model.code_prior='transformer', or model.conditional=False."
            )

    def require_whole_patches(self, image_size: tuple[int, ...]) -> None:
        """Raises ConfigError where a transformer's patches do not divide the image, with the nearest size that does."""
        common = math.gcd(*image_size)
        if self.network != "transformer" or common % self.patch_size == 0:
            return
        divisors = [side for side in range(1, common + 1) if common % side == 0]
        nearest = min(divisors, key=lambda side: abs(side - self.patch_size))
        raise ConfigError(
            f"model.patch_size={self.patch_size}: expected a divisor of the image's height and width, "
            f"{image_size[0]} x {image_size[1]}. The nearest is model.patch_size={nearest}; or choose another data.image_size."
        )


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig(Section):
    """What is minimised: distortion + beta * rate, or the importance-weighted bound, in nats per image."""

    prefix = "objective."
    name: str = declare(
        "elbo",
        "evidence lower bound; importance-weighted bound; vq's, with a moving codebook; adversarial; cross-entropy and Dice",
        choices=("elbo", "iwae", "vq", "vae_gan", "segmentation"),
    )
    samples: int = declare(1, "draws from the posterior an image and step", low=1, high=10_000)
    gradient: str = declare(
        "reparameterized",
        "iwae: the encoder's gradient, plain, or doubly reparameterized (less noise with many draws)",
        choices=("reparameterized", "doubly_reparameterized"),
    )
    parts: int = declare(
        1,
        "elbo, iwae: a batch is taken in so many parts, one after the other, for less memory; the gradient is the whole one's",
        low=1,
        high=10_000,
    )
    beta: float = declare(1.0, "weight of the rate", low=0.0, high=1_000.0)
    warmup_steps: int = declare(0, "steps over which beta grows linearly to its value", low=0, high=1_000_000_000)
    free_bits: float = declare(0.0, "elbo: rate, nats per image and level, below which it costs the same", low=0.0, high=1e5)
    commitment: float = declare(
        0.25, "vq: weight of the squared distance between the encoder's vectors and their codes", low=0.0, high=1_000.0
    )
    codebook_decay: float = declare(0.99, "vq: decay a step of a code's averages", low=0.0, below=1.0)
    revive_below: float = declare(
        0.01, "vq: a code used less often a step (averaged) starts anew at a vector of the batch", low=0.0, high=1_000.0
    )
    adversarial_weight: float = declare(
        0.5, "vae_gan: gradient of the adversarial term, relative to that of the reconstruction", low=0.0, high=1_000.0
    )
    adversarial_start: int = declare(0, "vae_gan: steps before the adversarial term counts", low=0, high=1_000_000_000)
    discriminator_features: tuple[int, ...] = declare(
        (32, 64), "vae_gan: channels of the discriminator after each halving of the image", low=1, high=8_192
    )

    def __post_init__(self) -> None:
        """Checks what no field can check alone."""
        super().__post_init__()
        if self.name != "elbo" and self.free_bits:
            raise ConfigError(
                f"objective.free_bits={self.free_bits}: is of the evidence lower bound, and the objective is {self.name!r}. "
                'Choose objective.free_bits=0, or objective.name="elbo".'
            )
        if self.parts > 1 and (self.name not in ("elbo", "iwae", "segmentation") or self.free_bits):
            why = "free bits are of a whole batch" if self.free_bits else f"{self.name!r} takes a batch whole"
            raise ConfigError(f"objective.parts={self.parts}: {why}. Choose objective.parts=1.")
        if self.name in ("vq", "vae_gan", "segmentation") and self.samples != 1:
            raise ConfigError(f"objective.samples={self.samples}: {self.name!r} takes one draw. Choose objective.samples=1.")
        if self.name != "iwae" and self.gradient != "reparameterized":
            raise ConfigError(
                f"objective.gradient={self.gradient!r}: is of the importance-weighted bound. "
                'Choose objective.name="iwae", or objective.gradient="reparameterized".'
            )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Section):
    """How the parameters follow the gradient."""

    prefix = "optimizer."
    name: str = declare("adam", "update rule", choices=("adam", "adamw", "adamax", "lion", "sgd"))
    learning_rate: float = declare(1e-3, "peak step size", above=0.0, high=10.0)
    schedule: str = declare(
        "cosine",
        "the step size after its warm-up: held, or brought to 0 at training.steps",
        choices=("constant", "linear", "cosine"),
    )
    warmup_steps: int = declare(0, "steps over which the step size grows linearly from 0", low=0, high=1_000_000_000)
    weight_decay: float = declare(0.0, "decoupled weight decay (adamw, lion)", low=0.0, high=1.0)
    clip_norm: float = declare(100.0, "largest norm of the gradient; 0: no clipping", low=0.0, high=1e9)
    skip_norm: float = declare(
        0.0, "a step whose gradient has a larger norm moves no weight, and is counted; 0: none is skipped", low=0.0, high=1e9
    )


@dataclasses.dataclass(frozen=True)
class TrainingConfig(Section):
    """How long, and what is kept."""

    prefix = "training."
    steps: int = declare(
        1_500, "training steps in all; a finished run is extended by a larger value", low=1, high=1_000_000_000
    )
    checkpoint_every: int = declare(500, "steps between checkpoints", low=1, high=1_000_000_000)
    log_every: int = declare(50, "steps between lines of metrics.jsonl", low=1, high=1_000_000_000)
    steps_per_call: int = declare(
        1,
        "steps that an accelerator takes at a time, for networks so small that it waits for the host between them; what is "
        "due in between comes at its own step; on a CPU convolutions become many times slower by it",
        low=1,
        high=10_000,
    )
    ema_decay: float = declare(
        0.999, "decay a step of the averaged weights that evaluation uses; 0: the last weights", low=0.0, below=1.0
    )


@dataclasses.dataclass(frozen=True)
class EvaluationConfig(Section):
    """What `evaluation.json` is computed with."""

    prefix = "evaluation."
    samples: int = declare(100, "importance samples an image for the negative log-likelihood", low=1, high=1_000_000)
    batch_size: int = declare(250, "images at a time", low=1, high=1_000_000)
    draw: int = declare(0, "seed of the test images' binarisation and of the samples", low=0, high=2**31 - 1)


@dataclasses.dataclass(frozen=True)
class AnomalyConfig(Section):
    """How far an image is from the normal ones that a run was trained on (`vaejax anomaly`)."""

    prefix = "anomaly."
    score: str = declare(
        "ssim",
        "what counts: negative log-likelihood; error or ssim of the reconstruction, ssim also at two scales, or that times the "
        "root of the error; rate; distance to a restored image",
        choices=("likelihood", "error", "ssim", "two_scale_ssim", "ssim_and_error", "rate", "restoration"),
    )
    map: str = declare(
        "error",
        "whose map is kept, relative to that of normal images",
        choices=("error", "ssim", "two_scale_ssim", "ssim_and_error", "rate", "restoration"),
    )
    alpha: float = declare(0.05, "promised share of false alarms among normal images", above=0.0, below=1.0)
    pixels: float = declare(
        0.01, "share of a normal image's pixels above the threshold of a map, on average", above=0.0, below=1.0
    )
    samples: int = declare(16, "likelihood: importance samples an image", low=1, high=1_000_000)
    steps: int = declare(30, "restoration: steps of gradient descent", low=1, high=100_000)
    fidelity: float = declare(
        1.0, "restoration: weight of the total variation of the change, in units of the image range", low=0.0, high=1e6
    )
    masks: bool = declare(False, "the masks of the images (data.masks) show what is anomalous, all classes but 0")


PARTS = ("encoder", "decoder", "log_scale", "prior", "codebook")
"""Parts of a model's parameters, of which it has those that it needs."""


@dataclasses.dataclass(frozen=True)
class TransferConfig(Section):
    """Starting from another run's weights."""

    prefix = "transfer."
    source: str | None = declare(None, "the run directory whose averaged weights to start from; None: from scratch")
    parts: tuple[str, ...] = declare(("encoder", "decoder", "log_scale", "codebook"), "what is taken over", choices=PARTS)
    mismatch: str = declare(
        "stop",
        "weights of another shape, as after a change of image size: stop and name them, or start those anew and list them",
        choices=("stop", "fresh"),
    )
    freeze: tuple[str, ...] = declare((), "what stays as taken over, and is not trained", choices=PARTS)

    def __post_init__(self) -> None:
        """Checks what no field can check alone."""
        super().__post_init__()
        loose = [part for part in self.freeze if self.source is None or part not in self.parts]
        if loose:
            raise ConfigError(
                f"transfer.freeze={self.freeze!r}: {', '.join(loose)} would stay random: not taken over from another run. "
                "Set transfer.source, and name it in transfer.parts, or do not freeze it."
            )


@dataclasses.dataclass(frozen=True)
class Config(Section):
    """All of a run; its fields are also checked against one another.

    Raises:
        ConfigError: naming the field (`optimizer.learning_rate`), the value and the allowed range.
    """

    prefix = ""
    seed: int = declare(0, "seed of initial weights, order of images, noise", low=0, high=2**31 - 1)
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    transfer: TransferConfig = TransferConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    anomaly: AnomalyConfig = AnomalyConfig()

    def __post_init__(self) -> None:
        """Checks what no field can check alone."""
        super().__post_init__()
        binarized = self.data.binarization != "none"
        if (self.model.likelihood == "bernoulli") != binarized:
            want = (
                'data.binarization="dynamic" or "static", or another model.likelihood'
                if not binarized
                else 'model.likelihood="bernoulli", or data.binarization="none"'
            )
            raise ConfigError(
                f"model.likelihood={self.model.likelihood!r} contradicts data.binarization={self.data.binarization!r}: "
                f"a Bernoulli likelihood is for images of 0 and 1, and only that one is. Choose {want}."
            )
        if self.data.binarization == "static" and self.augment.active:
            raise ConfigError(
                "data.binarization='static' contradicts augment.*: one fixed draw an image leaves nothing to change. "
                'Choose data.binarization="dynamic", or switch augmentation off.'
            )
        if self.data.resident and self.augment.active:
            raise ConfigError(
                "data.resident=True contradicts augment.*: images are changed on the host, and these lie on the devices. "
                "Choose data.resident=False, or switch augmentation off."
            )
        if self.data.image_size is not None and len(self.data.image_size) != 2:
            raise ConfigError(f"data.image_size={self.data.image_size!r}: expected (height, width).")
        if self.data.image_size is not None:
            self.model.require_whole_patches(self.data.image_size)
        self._check_volumes()
        if self.data.masks is not None and self.data.name not in ("image_folder", "volumes"):
            raise ConfigError(
                f"data.masks={self.data.masks!r}: is of data.name='image_folder' or 'volumes', and it is {self.data.name!r}; "
                "arrays and a manifest name their own masks. Leave it out."
            )
        if self.data.name not in _SOURCES and not self.data.name.startswith("tfds:"):
            raise ConfigError(f"data.name={self.data.name!r}: expected one of {', '.join(_SOURCES)}, or tfds:NAME.")
        if self.data.untrusted and self.data.name.startswith("tfds:"):
            raise ConfigError(
                f"data.untrusted=True contradicts data.name={self.data.name!r}: TFDS decodes by itself. "
                "Choose data.untrusted=False, or another source."
            )
        if self.data.name in _SOURCES_WITH_PATH and self.data.path is None:
            raise ConfigError(f"data.path=None: data.name={self.data.name!r} needs the folder or file to read.")
        if self.optimizer.weight_decay and self.optimizer.name not in ("adamw", "lion"):
            raise ConfigError(
                f"optimizer.weight_decay={self.optimizer.weight_decay}: {self.optimizer.name!r} has none. "
                'Choose optimizer.name="adamw" or "lion", or weight_decay=0.'
            )
        if self.data.batch_size % self.objective.parts:
            raise ConfigError(
                f"objective.parts={self.objective.parts}: expected a divisor of data.batch_size={self.data.batch_size}, "
                f"such as {math.gcd(self.objective.parts, self.data.batch_size)}."
            )
        if self.optimizer.warmup_steps >= self.training.steps:
            raise ConfigError(
                f"optimizer.warmup_steps={self.optimizer.warmup_steps}: "
                f"expected fewer than training.steps={self.training.steps}."
            )
        self._check_objective()

    def _check_volumes(self) -> None:
        """Whether there are volumes for what is said of them; how many numbers there are to a field, and in which order."""
        data = self.data
        if data.name not in ("volumes", "manifest"):
            require_volumes(data, f"data.name is {data.name!r}")
        if data.window is not None and (len(data.window) != 2 or data.window[1] < 1):
            raise ConfigError(f"data.window={data.window!r}: expected (centre, width), the width at least 1.")
        if len(data.slice_range) != 2 or data.slice_range[0] >= data.slice_range[1]:
            raise ConfigError(f"data.slice_range={data.slice_range!r}: expected (first, last), such as (0.25, 0.75).")
        if data.block % 2 == 0:
            raise ConfigError(f"data.block={data.block!r}: expected an odd number, so that a slice has a middle to be in.")
        if data.spacing is not None and len(data.spacing) not in (2, 3):
            raise ConfigError(f"data.spacing={data.spacing!r}: expected (row, column) or (row, column, slice) in mm.")

    def _check_objective(self) -> None:
        """Which objective is of which model."""
        model, objective, frozen = self.model, self.objective, self.transfer.freeze
        if objective.gradient == "doubly_reparameterized":
            for name, value in (("family", "vae"), ("posterior", "gaussian"), ("prior", "standard_normal")):
                found = getattr(model, name)
                if found != value and (name, found) != ("prior", "mixture"):
                    raise ConfigError(
                        f"objective.gradient='doubly_reparameterized' contradicts model.{name}={found!r}, which has no such "
                        f"estimator here. Choose objective.gradient='reparameterized', or model.{name}={value!r}."
                    )
        if (objective.name == "segmentation") != bool(model.regions):
            raise ConfigError(
                f"objective.name={objective.name!r} contradicts model.regions={model.regions}: classes of pixels, at least 2, "
                'go with objective.name="segmentation", and with no other. Set both, or neither.'
            )
        if objective.name == "vq" and model.family != "vq":
            raise ConfigError(
                f"objective.name='vq': is of model.family='vq', and it is {model.family!r}. Choose objective.name='elbo'."
            )
        if objective.name == "vae_gan" and model.family != "vae":
            raise ConfigError(
                f"objective.name='vae_gan': is of model.family='vae', and it is {model.family!r}. Choose objective.name='elbo'."
            )
        if objective.name == "vae_gan" and model.likelihood == "bernoulli":
            raise ConfigError(
                "objective.name='vae_gan' contradicts model.likelihood='bernoulli': images of 0 and 1 are told from expected "
                "ones at a glance. Choose model.likelihood='gaussian' with data.binarization='none', or objective.name='elbo'."
            )
        if objective.name == "vq" and "codebook" in frozen:
            raise ConfigError(
                f"transfer.freeze={frozen!r}: objective.name='vq' moves the codebook. Choose objective.name='elbo' to train "
                "the prior over the codes alone, or leave the codebook out."
            )
        if objective.name == "vae_gan" and "decoder" in frozen:
            raise ConfigError(
                f"transfer.freeze={frozen!r}: objective.name='vae_gan' trains the decoder against a discriminator. "
                "Leave the decoder out, or choose objective.name='elbo'."
            )
        stay = {"encoder", "decoder", "codebook"}
        if model.family == "vq" and objective.name != "vq" and not (stay <= set(frozen) and model.code_prior == "transformer"):
            raise ConfigError(
                f"objective.name={objective.name!r}: only 'vq' trains a codebook. Choose objective.name='vq'; or, to train the "
                "prior over the codes of another run alone, model.code_prior='transformer', transfer.source and "
                "transfer.freeze=('encoder', 'decoder', 'log_scale', 'codebook')."
            )


_SOURCES_WITH_PATH = ("idx", "medmnist", "image_folder", "volumes", "arrays", "manifest")
_SOURCES = ("mnist5k", *_SOURCES_WITH_PATH)
_OF_VOLUMES = ("slice_axis", "slice_content", "window", "slice_range", "spacing", "block", "normalize")


def require_volumes(data: DataConfig, found: str) -> None:
    """Raises ConfigError where a field that is of volumes alone is set; `found` says what the images are."""
    for name in _OF_VOLUMES:
        value = getattr(data, name)
        if value != getattr(DataConfig, name):
            raise ConfigError(
                f"data.{name}={value!r}: is of volumes (data.name='volumes', or 'manifest' of NIfTI or DICOM), and {found}. "
                "Leave it out."
            )


def from_dict(values: typing.Mapping[str, Any]) -> Config:
    """Builds a checked `Config` from nested mappings; what is left out takes its default.

    Raises:
        ConfigError: for an unknown key (with the nearest known one), or a value that its field refuses.
    """
    return _build(Config, values, "")


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as nested dicts of JSON values; `from_dict` takes it back."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def default_config() -> ml_collections.ConfigDict:
    """All defaults as a ConfigDict: the start of every configuration file.

    It takes any key and type: `from_dict` then refuses what is wrong by its dotted name, wherever it came from.
    """
    return ml_collections.ConfigDict(dataclasses.asdict(Config()), type_safe=False)


def differences(old: Config, new: Config) -> list[str]:
    """The fields in which two configurations differ, each as `name: old -> new`."""
    before, after = _flatten(to_dict(old)), _flatten(to_dict(new))
    return [f"{name}: {before[name]!r} -> {after[name]!r}" for name in after if before[name] != after[name]]


def changed(config: Config) -> dict[str, Any]:
    """The fields that differ from their defaults, by dotted name, as JSON values."""
    defaults, values = _flatten(to_dict(Config())), _flatten(to_dict(config))
    return {name: value for name, value in values.items() if value != defaults[name]}


def describe() -> str:
    """Every field with its default, its allowed values and its meaning, for `--help`."""
    lines = []
    for field in dataclasses.fields(Config):
        if not dataclasses.is_dataclass(field.default):
            lines.append(_describe(field, field.name))
            continue
        lines.append(f"\n{field.name}: {type(field.default).__doc__}")
        lines += [_describe(child, f"{field.name}.{child.name}") for child in dataclasses.fields(field.default)]
    return "\n".join(lines)


def choices(name: str) -> tuple[str, ...]:
    """The words that a field takes, such as those of "data.binarization"; none of a field of another kind, or of no field."""
    first, _, second = name.partition(".")
    section = getattr(Config, first, None)
    fields = dataclasses.fields(section) if dataclasses.is_dataclass(section) else ()
    return next((tuple(field.metadata["choices"] or ()) for field in fields if field.name == second), ())


def _describe(field: dataclasses.Field, name: str) -> str:
    limits = allowed(field)
    return f"  {name}={field.default!r}\n      {field.metadata['meaning']}" + (f" ({limits})" if limits else "")


def _build(kind: type, values: typing.Mapping[str, Any], prefix: str) -> Any:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    arguments = {}
    for name, value in values.items():
        if name not in fields:
            near = difflib.get_close_matches(str(name), fields, n=1)
            hint = f" Did you mean {prefix}{near[0]}?" if near else f" Known here: {', '.join(fields)}."
            raise ConfigError(f"{prefix}{name}: no such field.{hint}")
        default = fields[name].default
        if dataclasses.is_dataclass(default):
            if not isinstance(value, typing.Mapping):
                raise ConfigError(f"{prefix}{name}={value!r}: expected a section with fields, found {type(value).__name__}.")
            value = _build(type(default), value, f"{prefix}{name}.")
        arguments[name] = value
    return kind(**arguments)


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat.update(_flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return flat
