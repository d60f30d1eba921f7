"""The train step of the default CNN VAE in vaejax and in PyTorch: the very same network, weights and work.

    python -m venv bench-env
    bench-env/bin/pip install -r benchmarks/requirements.txt -e .
    bench-env/bin/python benchmarks/cnn_step.py --rounds=15 --steps=20

A step is: noise, forward, negative ELBO (Gaussian likelihood of one learned scale), gradient, clipping by global norm, Adam,
moving average of the weights; float32, on one batch that is in memory. Loss and gradients are compared before the clock runs.

XLA's "same" padding puts the odd pixel of a stride 2 at the end, PyTorch's `padding=1` at the start. Lest PyTorch pay for an
explicit `pad`, it gets everything mirrored in height and width: images, kernels, and the rows of the dense layers at the 7x7
map. That is the same function, and each side uses its own padding.
"""

import argparse
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import torch
import torch.nn.functional as F
from sides import Run, Side, circumstances, interleave, table

from vaejax import batches, keys, models, objectives, optimizers, training
from vaejax import distributions as dist
from vaejax.config import ModelConfig, ObjectiveConfig, OptimizerConfig

IMAGE = (28, 28, 1)
MODEL, OBJECTIVE, OPTIMIZER = ModelConfig(), ObjectiveConfig(), OptimizerConfig(schedule="constant")
EMA_DECAY = 0.999
TOLERANCE = 1e-4
"""Largest difference of the loss, and of a gradient in its Euclidean norm, relative to vaejax's: both are float32 sums."""

MODES = {
    "PyTorch eager": (torch.contiguous_format, False, False),
    "PyTorch channels_last, fused Adam": (torch.channels_last, True, False),
    "PyTorch compile, fused Adam": (torch.contiguous_format, True, True),
    "PyTorch compile, channels_last, fused Adam": (torch.channels_last, True, True),
}
"""Memory format, whether Adam is fused, and whether the loss is compiled."""


class TorchVAE(torch.nn.Module):
    """The default `vaejax.models.build` for 28x28x1, in PyTorch's idiom; module names are those of the flax parameters."""

    def __init__(self) -> None:
        super().__init__()
        (first, second), (hidden,), latent = MODEL.features, MODEL.hidden, MODEL.latent_size
        self.encoder = torch.nn.ModuleDict(
            {
                "Convolution_0": torch.nn.Conv2d(1, first, 3, stride=2, padding=1),
                "Convolution_1": torch.nn.Conv2d(first, second, 3, stride=2, padding=1),
                "Dense_0": torch.nn.Linear(7 * 7 * second, hidden),
                "Dense_1": torch.nn.Linear(hidden, 2 * latent),
            }
        )
        self.decoder = torch.nn.ModuleDict(
            {
                "Dense_0": torch.nn.Linear(latent, hidden),
                "Dense_1": torch.nn.Linear(hidden, 7 * 7 * second),
                "Upsampling_0": torch.nn.ConvTranspose2d(second, first, 3, stride=2, padding=1, output_padding=1),
                "Subpixel_0": torch.nn.Conv2d(first, 4, 3, padding=1),
            }
        )
        self.log_scale = torch.nn.Parameter(torch.zeros(1))

    def forward(self, images: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """The negative ELBO, nats an image, of images [b, 1, 28, 28] with the posterior's noise [b, latents]."""
        layers, x = self.encoder, images
        x = F.silu(layers["Convolution_0"](x))
        x = F.silu(layers["Convolution_1"](x))
        x = F.silu(layers["Dense_0"](x.permute(0, 2, 3, 1).flatten(1)))
        mean, raw = layers["Dense_1"](x).chunk(2, dim=1)
        log_scale = soft_bound(raw, *dist.LATENT_LOG_SCALE)

        layers, x = self.decoder, mean + log_scale.exp() * noise
        x = F.silu(layers["Dense_0"](x))
        x = F.silu(layers["Dense_1"](x)).unflatten(1, (7, 7, -1)).permute(0, 3, 1, 2)
        x = F.silu(layers["Upsampling_0"](x))
        x = F.pixel_shuffle(layers["Subpixel_0"](x), 2)

        scale = soft_bound(self.log_scale, *dist.IMAGE_LOG_SCALE)
        distortion = 0.5 * (((images - x.sigmoid()) * (-scale).exp()) ** 2 + math.log(2.0 * math.pi)) + scale
        rate = 0.5 * ((2.0 * log_scale).exp() + mean**2 - 1.0) - log_scale
        return (distortion.sum() + rate.sum()) / len(images)


def soft_bound(x: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """As `vaejax.distributions.soft_bound`."""
    return (low + high) / 2.0 + (high - low) / 2.0 * torch.tanh(x / ((high - low) / 2.0))


def to_torch(params: Any) -> dict[str, np.ndarray]:
    """Parameters of vaejax, or their gradients, by the names and in the mirrored layout of `TorchVAE`."""
    encoder, decoder = params["encoder"], params["decoder"]
    subpixel = decoder["Subpixel_0"]["Convolution_0"]  # its four outputs are the pixels of a 2x2 square, mirrored too
    layers = {
        "encoder.Convolution_0": convolution(encoder["Convolution_0"]),
        "encoder.Convolution_1": convolution(encoder["Convolution_1"]),
        "encoder.Dense_0": (mirrored_map(encoder["Dense_0"]["kernel"]).T, encoder["Dense_0"]["bias"]),
        "encoder.Dense_1": (encoder["Dense_1"]["kernel"].T, encoder["Dense_1"]["bias"]),
        "decoder.Dense_0": (decoder["Dense_0"]["kernel"].T, decoder["Dense_0"]["bias"]),
        "decoder.Dense_1": (mirrored_map(decoder["Dense_1"]["kernel"].T), mirrored_map(decoder["Dense_1"]["bias"])),
        "decoder.Upsampling_0": convolution(decoder["Upsampling_0"]),
        "decoder.Subpixel_0": tuple(part[::-1] for part in convolution(subpixel)),
    }
    named = {"log_scale": params["log_scale"]}
    for name, (weight, bias) in layers.items():
        named |= {f"{name}.weight": weight, f"{name}.bias": bias}
    return {name: np.array(array) for name, array in named.items()}


def convolution(layer: Any) -> tuple[np.ndarray, np.ndarray]:
    """[3, 3, in, out] -> [out, in, 3, 3], mirrored; a transposed convolution has the layout of the one it is of, in both."""
    return np.asarray(layer["kernel"])[::-1, ::-1].transpose(3, 2, 0, 1), np.asarray(layer["bias"])


def mirrored_map(rows: Any) -> np.ndarray:
    """Rows that are the places of a [7, 7, channels] map, mirrored."""
    array = np.asarray(rows)
    return array.reshape(7, 7, -1, *array.shape[1:])[::-1, ::-1].reshape(array.shape)


def to_torch_images(batch: batches.Batch) -> np.ndarray:
    """[b, h, w, c] -> [b, c, h, w], mirrored."""
    return np.array(batch["image"][:, ::-1, ::-1].transpose(0, 3, 1, 2))


def load(weights: dict[str, np.ndarray]) -> TorchVAE:
    vae = TorchVAE()
    vae.load_state_dict({name: torch.tensor(array) for name, array in weights.items()})
    return vae


def check_agreement(params: Any, batch: batches.Batch) -> str:
    """Compares loss and gradients, given the same noise; exits where they differ by more than `TOLERANCE`."""
    key = jax.random.key(1)
    keep_gradient = optax.GradientTransformation(lambda params: params, lambda gradient, state, params: (gradient, gradient))
    step = jax.jit(objectives.elbo(models.build(MODEL, IMAGE), OBJECTIVE, keep_gradient).update)
    ours = step(params, params, batch, key, 0)

    sample_keys = keys.of_samples(keys.of_examples(key, batch["index"]), np.arange(1))
    noise = dist.standard_normal(MODEL.latent_size).sample(sample_keys)[0]
    vae = load(to_torch(params))
    loss = vae(torch.tensor(to_torch_images(batch)), torch.tensor(np.array(noise)))
    loss.backward()

    theirs = {name: parameter.grad.numpy() for name, parameter in vae.named_parameters()}
    norm = np.linalg.norm
    differences = {name: float(norm(theirs[name] - g) / norm(g)) for name, g in to_torch(ours.state).items()}
    differences["loss"] = abs(loss.item() / float(ours.loss) - 1.0)
    worst = max(differences, key=differences.__getitem__)
    told = f"Agreement: loss {loss.item():.3f} nats; largest relative difference {differences[worst]:.1e}, of {worst}"
    if not differences[worst] <= TOLERANCE:
        raise SystemExit(f"{told}: expected at most {TOLERANCE:g}. The two networks are not the same.")
    return f"{told} (at most {TOLERANCE:g} allowed, over the loss and {len(theirs)} gradients)."


def vaejax_steps(batch: batches.Batch) -> Run:
    model = models.build(MODEL, IMAGE)
    objective = objectives.elbo(model, OBJECTIVE, optimizers.build(OPTIMIZER, steps=1_000_000))
    state, key = training.init(model, objective, jax.random.key(0)), jax.random.key(1)
    step, placed = training.train_step(objective, EMA_DECAY), training.place(batch)

    def run(steps: int) -> None:
        nonlocal state
        for _ in range(steps):
            state, _ = step(state, placed, key)
        jax.block_until_ready(state)

    return run


def torch_steps(mode: str, weights: dict[str, np.ndarray], images: np.ndarray) -> Run:
    memory_format, fused, compiled = MODES[mode]
    vae = load(weights).to(memory_format=memory_format)
    placed = torch.tensor(images).contiguous(memory_format=memory_format)
    parameters = list(vae.parameters())
    average = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.Adam(parameters, OPTIMIZER.learning_rate, fused=fused)
    loss: Callable[..., torch.Tensor] = torch.compile(vae) if compiled else vae

    def step() -> None:
        optimizer.zero_grad()
        loss(placed, torch.randn(len(placed), MODEL.latent_size)).backward()
        torch.nn.utils.clip_grad_norm_(parameters, OPTIMIZER.clip_norm)
        optimizer.step()
        torch._foreach_lerp_(average, [parameter.detach() for parameter in parameters], 1.0 - EMA_DECAY)

    def run(steps: int) -> None:
        for _ in range(steps):
            step()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="turns of every side")
    parser.add_argument("--steps", type=int, default=20, help="timed steps a turn")
    parser.add_argument("--batch", type=int, default=128, help="images a step")
    arguments = parser.parse_args()

    where = circumstances(["jax", "flax", "optax", "torch"])
    batch = batches.batch_of(np.random.default_rng(0).uniform(size=(arguments.batch, *IMAGE)))
    params = models.build(MODEL, IMAGE).init(jax.random.key(0))
    agreement = check_agreement(params, batch)
    weights, images = to_torch(params), to_torch_images(batch)

    ours = Side("vaejax", functools.partial(vaejax_steps, batch))
    theirs = [Side(mode, functools.partial(torch_steps, mode, weights, images)) for mode in MODES]
    times = interleave([ours, *theirs], arguments.rounds, arguments.steps)
    best = min(MODES, key=lambda name: times[name].median)
    print(table(times, arguments.batch))
    print(f"\nvaejax / PyTorch's best ({best}), images/s: {times[best].median / times['vaejax'].median:.2f}\n")
    print(agreement)
    print(where)


if __name__ == "__main__":
    main()
