"""Anomalies by vaejax, by pythae's VAE and by a plain convolutional autoencoder in PyTorch: same images, size and steps.

    bench-env/bin/python benchmarks/anomaly_peers.py FOLDER --classes Hand    # the environment of benchmarks/pythae_vae.py

All have two halving convolutions (32, 64), 256 hidden units and 32 latents a side, batches of 64, Adam at 1e-3, 700 steps, one
after the other for each class. Both peers are scored as vaejax is, by SSIM at two scales times the error, by SSIM alone, and by
their own squared error.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from anomaly import CLASSES, compare, configuration, dealt, fit, mednist, scores, tell
from jaxtyping import Float
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from torch import nn

from vaejax import metrics
from vaejax.applications import anomaly

LATENTS, SIDE = 32, 32


def down() -> list[nn.Module]:
    """From an image to 256 hidden units."""
    layers = [nn.Conv2d(1, 32, 3, 2, 1), nn.SiLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.SiLU(), nn.Flatten()]
    return [*layers, nn.Linear(64 * (SIDE // 4) ** 2, 256), nn.SiLU()]


def up() -> nn.Module:
    """From latents to an image."""
    dense = [nn.Linear(LATENTS, 256), nn.SiLU(), nn.Linear(256, 64 * (SIDE // 4) ** 2), nn.SiLU()]
    back = [nn.Unflatten(1, (64, SIDE // 4, SIDE // 4)), nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.SiLU()]
    return nn.Sequential(*dense, *back, nn.ConvTranspose2d(32, 1, 4, 2, 1), nn.Sigmoid())


class Encoder(BaseEncoder):
    """pythae's interface."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*down())
        self.mean, self.log_variance = nn.Linear(256, LATENTS), nn.Linear(256, LATENTS)

    def forward(self, x: torch.Tensor) -> ModelOutput:
        hidden = self.body(x)
        return ModelOutput(embedding=self.mean(hidden), log_covariance=self.log_variance(hidden))


class Decoder(BaseDecoder):
    """pythae's interface."""

    def __init__(self) -> None:
        super().__init__()
        self.body = up()

    def forward(self, z: torch.Tensor) -> ModelOutput:
        return ModelOutput(reconstruction=self.body(z))


def peer(
    name: str, train: Float[np.ndarray, "n h w 1"], test: Float[np.ndarray, "m h w 1"], seed: int, steps: int
) -> np.ndarray:
    """Trains a peer; its reconstructions of the test images."""
    torch.manual_seed(seed)
    if name == "pythae":
        config = VAEConfig(input_dim=(1, SIDE, SIDE), latent_dim=LATENTS, reconstruction_loss="mse")
        model: nn.Module = VAE(config, encoder=Encoder(), decoder=Decoder())
    else:
        model = nn.Sequential(*down(), nn.Linear(256, LATENTS), up())
    optimizer, random = torch.optim.Adam(model.parameters(), 1e-3), np.random.default_rng(seed)
    first, last = (torch.from_numpy(images.transpose(0, 3, 1, 2).copy()) for images in (train, test))
    for _ in range(steps):
        x = first[torch.from_numpy(random.choice(len(first), 64, replace=False))]
        loss = model({"data": x}).loss if name == "pythae" else ((model(x) - x) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        restored = model.decoder(model.encoder(last).embedding).reconstruction if name == "pythae" else model(last)
    return restored.numpy().reshape(-1, SIDE, SIDE, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--classes", nargs="+", default=CLASSES)
    parser.add_argument("--as-given", action="store_true", help="the folders as they are, not a shuffle of each class")
    arguments = parser.parse_args()
    images, config = mednist(arguments.folder, SIDE), configuration()
    for normal in arguments.classes:
        train, val, _, test = dealt(images, normal, arguments.seed, arguments.as_given)
        test = np.concatenate([test, *(images["test"][name] for name in CLASSES if name != normal)])
        truth, others, seconds = np.arange(len(test)) >= 150, {}, {}
        began = time.perf_counter()
        fitted = fit(config, train, val, arguments.seed)
        seconds["vaejax"] = time.perf_counter() - began
        ours = scores(fitted, test, "ssim_and_error").value
        for name in ("pythae", "autoencoder"):
            began = time.perf_counter()
            restored = peer(name, train, test, arguments.seed, config.training.steps)
            seconds[name] = time.perf_counter() - began
            others |= {f"{name}, ssim_and_error": np.asarray(anomaly.ssim_and_error(test, restored).value)}
            others |= {f"{name}, ssim": 1.0 - np.asarray(metrics.ssim(test, restored))}
            others |= {f"{name}, error": np.asarray(metrics.mse(test, restored))}
        tell(normal=normal, seed=arguments.seed, seconds=seconds, **compare(truth, ours, others, np.arange(len(test))))


if __name__ == "__main__":
    main()
