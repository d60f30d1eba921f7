"""The plain VAEs of `vaejax.models.build` in PyTorch: the very same functions, in PyTorch's idiom, and weights carried over.

XLA's "same" padding puts the odd pixel of a stride 2 at the end, PyTorch's `padding=1` at the start. Lest PyTorch pay for an
explicit `pad`, it gets everything mirrored in height and width: images, kernels, and the rows of the dense layers at a map of
channels. That is the same function, and each side uses its own padding.
"""

import collections
import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from vaejax import distributions as dist
from vaejax.config import ModelConfig

Shape = tuple[int, int, int]
"""Height, width, channels."""


class Subpixel(torch.nn.Conv2d):
    """Four numbers a channel become the 2x2 pixels in the place of each."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pixel_shuffle(super().forward(x), 2)


class Flat(torch.nn.Module):
    """[b, c, h, w] -> [b, h * w * c]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(0, 2, 3, 1).flatten(1)


class Map(torch.nn.Module):
    """[b, h * w * c] -> [b, c, h, w]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(1, self.shape).permute(0, 3, 1, 2)


class Residual(torch.nn.Sequential):
    """Its layers, added to their input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + super().forward(x)


class TorchVAE(torch.nn.Module):
    """`vaejax.models.build(config, shape)` for one latent vector, silu, N(0, I), and a Bernoulli or a Gaussian of one scale.

    Sides of the image divide by all halvings. Inside `networks` all is of `config.dtype`, by autocast; the rest is float32.
    """

    def __init__(self, config: ModelConfig, shape: Shape) -> None:
        super().__init__()
        self.config = config
        self.encoder = torch.nn.Sequential(*_encoder(config, shape))
        self.decoder = torch.nn.Sequential(*_decoder(config, shape))
        if config.likelihood == "gaussian":
            self.log_scale = torch.nn.Parameter(torch.zeros(shape[-1]))

    def forward(self, images: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """The negative ELBO, nats an image; the posterior's noise [b, latents] is drawn where it is not given."""
        mean, raw = self.apply_network(self.encoder, images).chunk(2, dim=1)
        log_scale = _soft_bound(raw, *dist.LATENT_LOG_SCALE)
        noise = torch.randn_like(mean) if noise is None else noise
        distortion = self.distortion(images, self.apply_network(self.decoder, mean + log_scale.exp() * noise))
        rate = 0.5 * ((2.0 * log_scale).exp() + mean**2 - 1.0) - log_scale
        return (distortion + rate.sum()) / len(images)

    def apply_network(self, network: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.config.dtype == "bfloat16"):
            return network(x).float()

    def distortion(self, images: torch.Tensor, raw: torch.Tensor) -> torch.Tensor:
        """-log p(images | latents), summed over the batch."""
        if self.config.likelihood == "bernoulli":
            return F.binary_cross_entropy_with_logits(raw, images, reduction="sum")
        scale = _soft_bound(self.log_scale, *dist.IMAGE_LOG_SCALE).reshape(1, -1, 1, 1)
        return (0.5 * (((images - raw.sigmoid()) * (-scale).exp()) ** 2 + math.log(2.0 * math.pi)) + scale).sum()


def _encoder(config: ModelConfig, shape: Shape) -> Iterator[torch.nn.Module]:
    if config.network != "mlp":
        for before, width in zip((shape[-1], *config.features), config.features, strict=False):
            yield torch.nn.Conv2d(before, width, 3, stride=2, padding=1)
            yield torch.nn.SiLU()
            yield from _residuals(config, width)
    yield Flat()
    yield from _hidden((math.prod(_smallest(config, shape)), *config.hidden))
    yield torch.nn.Linear(config.hidden[-1], 2 * config.latent_size)


def _decoder(config: ModelConfig, shape: Shape) -> Iterator[torch.nn.Module]:
    small, inwards = _smallest(config, shape), (config.latent_size, *config.hidden[::-1])
    if config.network == "mlp":
        yield from _hidden(inwards)
        yield torch.nn.Linear(inwards[-1], math.prod(small))
        yield Map(small)
        return
    yield from _hidden((*inwards, math.prod(small)))
    yield Map(small)
    for width, after in zip(config.features[::-1], config.features[-2::-1], strict=False):
        yield from _residuals(config, width)
        yield torch.nn.ConvTranspose2d(width, after, 3, stride=2, padding=1, output_padding=1)
        yield torch.nn.SiLU()
    yield from _residuals(config, config.features[0])
    yield Subpixel(config.features[0], 4 * shape[-1], 3, padding=1)


def _hidden(sizes: tuple[int, ...]) -> Iterator[torch.nn.Module]:
    for before, after in itertools.pairwise(sizes):
        yield torch.nn.Linear(before, after)
        yield torch.nn.SiLU()


def _residuals(config: ModelConfig, width: int) -> Iterator[torch.nn.Module]:
    for _ in range(config.blocks if config.network == "resnet" else 0):
        yield Residual(*(layer for _ in range(2) for layer in (torch.nn.SiLU(), torch.nn.Conv2d(width, width, 3, padding=1))))


def _smallest(config: ModelConfig, shape: Shape) -> Shape:
    """The map between the dense layers and the others."""
    if config.network == "mlp":
        return shape
    halved = 2 ** len(config.features)
    return shape[0] // halved, shape[1] // halved, config.features[-1]


def _soft_bound(x: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """As `vaejax.distributions.soft_bound`."""
    return (low + high) / 2.0 + (high - low) / 2.0 * torch.tanh(x / ((high - low) / 2.0))


NAMES = {
    torch.nn.Linear: "Dense_{}",
    torch.nn.Conv2d: "Convolution_{}",
    torch.nn.ConvTranspose2d: "Upsampling_{}",
    Subpixel: "Subpixel_{}",
}
"""The layers by the names of the flax parameters, which counts those of a kind in the order of their use."""


def to_torch(params: Any, config: ModelConfig, shape: Shape) -> dict[str, np.ndarray]:
    """Parameters of vaejax, or their gradients, by the names and in the mirrored layout of `TorchVAE`."""
    vae, small = TorchVAE(config, shape), _smallest(config, shape)
    named = {"log_scale": params["log_scale"]} if "log_scale" in params else {}
    for part in ("encoder", "decoder"):
        counts: collections.Counter = collections.Counter()
        for name, layer in getattr(vae, part).named_modules(prefix=part):
            if type(layer) in NAMES:
                flax_name = NAMES[type(layer)].format(counts[type(layer)])
                counts[type(layer)] += 1
                weight, bias = _layer(params[part][flax_name], small)
                named |= {f"{name}.weight": weight, f"{name}.bias": bias}
    return {name: np.array(array) for name, array in named.items()}


def load(weights: dict[str, np.ndarray], config: ModelConfig, shape: Shape) -> TorchVAE:
    vae = TorchVAE(config, shape)
    vae.load_state_dict({name: torch.tensor(array) for name, array in weights.items()})
    return vae


def to_torch_images(images: np.ndarray) -> np.ndarray:
    """[b, h, w, c] -> [b, c, h, w], mirrored."""
    return np.array(images[:, ::-1, ::-1].transpose(0, 3, 1, 2))


def _layer(layer: Any, small: Shape) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias: kernels [3, 3, in, out] -> [out, in, 3, 3], matrices transposed; both mirrored."""
    if "Convolution_0" in layer:  # a subpixel's, whose four outputs are the pixels of a 2x2 square, mirrored too
        weight, bias = _layer(layer["Convolution_0"], small)
        return _channels_first(weight), _channels_first(bias)
    kernel, bias = np.asarray(layer["kernel"]), np.asarray(layer["bias"])
    if kernel.ndim == 4:
        return kernel[::-1, ::-1].transpose(3, 2, 0, 1), bias
    return _mirrored_map(_mirrored_map(kernel, small).T, small), _mirrored_map(bias, small)


def _channels_first(rows: np.ndarray) -> np.ndarray:
    """Outputs ordered by pixel of the square and then channel -> by channel and then pixel, the pixels mirrored."""
    return rows.reshape(4, -1, *rows.shape[1:])[::-1].swapaxes(0, 1).reshape(rows.shape)


def _mirrored_map(rows: np.ndarray, small: Shape) -> np.ndarray:
    """Rows that are the places of a map of channels, mirrored; other rows as they are."""
    if len(rows) != math.prod(small):
        return rows
    return rows.reshape(*small, *rows.shape[1:])[::-1, ::-1].reshape(rows.shape)
