"""pythae's default VAE for 28x28 images, 784-512-latents and back, ReLU, Bernoulli, N(0, I): the same in vaejax."""

import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from pythae.models import VAE, VAEConfig

from vaejax import experiment, runs
from vaejax.config import Config, from_dict

LATENTS, BATCH, LEARNING_RATE = 20, 100, 1e-3

Weights = dict[str, np.ndarray]
"""`w0, b0` of the encoder's hidden layer, `w1, b1` of mean and log scale, `w2, b2` and `w3, b3` of the decoder."""


def config_for(path: str, model: Mapping[str, Any] = MappingProxyType({}), **sections: dict[str, Any]) -> Config:
    """On binarised MNIST, its IDX files in `path`; fields of the model, and other sections, may be given."""
    return from_dict(
        {
            "data": {"name": "idx", "path": path, "batch_size": BATCH, "binarization": "static"},
            "model": {
                "network": "mlp",
                "hidden": (512,),
                "latent_size": LATENTS,
                "activation": "relu",
                "likelihood": "bernoulli",
                **model,
            },
            **sections,
        }
    )


def pythae_vae() -> VAE:
    return VAE(VAEConfig(input_dim=(1, 28, 28), latent_dim=LATENTS, reconstruction_loss="bce"))


def of_vaejax(params: Any) -> Weights:
    encoder, decoder = params["encoder"], params["decoder"]
    layers = [encoder["Dense_0"], encoder["Dense_1"], decoder["Dense_0"], decoder["Dense_1"]]
    return {f"w{i}": np.asarray(layer["kernel"]) for i, layer in enumerate(layers)} | {
        f"b{i}": np.asarray(layer["bias"]) for i, layer in enumerate(layers)
    }


def of_pythae(vae: VAE) -> Weights:
    (hidden, *heads), (first, last) = _layers(vae)

    def array(tensor: torch.Tensor) -> np.ndarray:
        return tensor.detach().numpy().copy()

    return {
        "w0": array(hidden.weight).T,
        "b0": array(hidden.bias),
        "w1": np.concatenate([array(heads[0].weight).T, array(heads[1].weight).T / 2.0], axis=1),  # log variance -> log scale
        "b1": np.concatenate([array(heads[0].bias), array(heads[1].bias) / 2.0]),
        "w2": array(first.weight).T,
        "b2": array(first.bias),
        "w3": array(last.weight).T,
        "b3": array(last.bias),
    }


def to_pythae(weights: Weights) -> VAE:
    """The inverse of `of_pythae`."""
    vae = pythae_vae()
    (hidden, mean, log_variance), (first, last) = _layers(vae)
    (mean_weight, scale_weight), (mean_bias, scale_bias) = (np.split(weights[name], 2, axis=-1) for name in ("w1", "b1"))
    values = {
        hidden: (weights["w0"], weights["b0"]),
        mean: (mean_weight, mean_bias),
        log_variance: (2.0 * scale_weight, 2.0 * scale_bias),
        first: (weights["w2"], weights["b2"]),
        last: (weights["w3"], weights["b3"]),
    }
    with torch.no_grad():
        for layer, (weight, bias) in values.items():
            layer.weight.copy_(torch.tensor(weight.T))
            layer.bias.copy_(torch.tensor(bias))
    return vae


def flat_images(run: runs.Run, split: str) -> np.ndarray:
    """[n, 784] of 0 and 1, as the run sees them."""
    parts = [batch["image"][batch["mask"]] for batch in experiment.evaluation_batches(run, split, 1_000)]
    return np.concatenate([np.asarray(part) for part in parts]).reshape(-1, math.prod(run.model.image_shape))


def write_images(run: runs.Run, folder: Path) -> None:
    """`train.npz` and `test.npz` for the peers: "images", float32 [n, 1, 28, 28], those that vaejax trains on."""
    for split in ("train", "test"):
        np.savez(folder / f"{split}.npz", images=flat_images(run, split).reshape(-1, 1, 28, 28))


def read_images(folder: Path, split: str) -> np.ndarray:
    with np.load(folder / f"{split}.npz") as file:
        return file["images"]


def _layers(vae: VAE) -> tuple[list[torch.nn.Linear], list[torch.nn.Linear]]:
    """Hidden layer, mean and log variance of the encoder; hidden layer and image of the decoder."""
    encoder = [vae.encoder.layers[0][0], vae.encoder.embedding, vae.encoder.log_var]
    return encoder, [layers[0] for layers in vae.decoder.layers]
