"""The same MLP VAE trained by vaejax and by pythae's trainer, in turns: nats on the test images, and time a step.

    python -m venv bench-env
    bench-env/bin/pip install -r benchmarks/requirements.txt -e .
    bench-env/bin/python benchmarks/pythae_vae.py --data=FOLDER --rounds=20 --steps=500

pythae's default VAE for 28x28 images: 784-512-latents and back, ReLU, Bernoulli likelihood, N(0, I), Adam 1e-3 held. Each side
runs as its users run it: pythae's own epoch loop over a PyTorch DataLoader, vaejax's pipeline, step and check of the loss. Each
starts from its own initial weights and shuffles in its own order. The images are the same: the training split of vaejax,
binarised once. Importance samples of both are drawn by one and the same function.
"""

import argparse
import functools
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from default_mlp import (
    BATCH,
    LATENTS,
    LEARNING_RATE,
    Weights,
    config_for,
    flat_images,
    of_pythae,
    of_vaejax,
    pythae_vae,
    read_images,
    write_images,
)
from pythae.data.datasets import BaseDataset, DatasetOutput
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from sides import Run, Side, circumstances, interleave, table

from vaejax import distributions as dist
from vaejax import experiment, runs, training
from vaejax.config import Config

TOLERANCE = 1e-4
"""Largest relative difference of the loss, given weights and noise; only vaejax bounds the posterior's scale, softly."""
ROWS, CHUNK = 250, 50
"""Images, and importance samples of each, at a time."""


def settings(path: str) -> Config:
    optimizer = {"learning_rate": LEARNING_RATE, "schedule": "constant"}
    return config_for(path, optimizer=optimizer, training={"steps": 1_000_000})


def vaejax_steps(folder: Path, path: str) -> Run:
    """What `vaejax train` does in a step; weights and their average are written at the end of a turn."""
    run_ = runs.create(str(folder / "run"), settings(path))
    objective = training.objective_of(run_.model, run_.config)
    state, key = training.init(run_.model, objective, jax.random.key(0)), jax.random.key(1)
    step, batches = training.train_step(objective, run_.config.training.ema_decay), experiment.training_batches(run_, 0)

    def run(steps: int) -> None:
        nonlocal state
        unread = None
        for number in range(steps):
            batch = next(batches)
            state, report = step(state, training.place(batch), key)
            if unread:
                training.check_finite(*unread)
            unread = (report, batch["index"], number)
        jax.block_until_ready(state)
        np.savez(folder / "vaejax.npz", **of_vaejax(state.ema))
        np.savez(folder / "vaejax_last.npz", **of_vaejax(state.params))

    return run


class Turn:
    """So many batches of an endless stream, in the place of a trainer's loader."""

    def __init__(self, stream: Iterator[Any], dataset: Any, steps: int) -> None:
        self.stream, self.dataset, self.steps = stream, dataset, steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Any]:
        return (next(self.stream) for _ in range(self.steps))


def pythae_steps(folder: Path) -> Run:
    """The own loop of pythae over an epoch, so many batches long; weights are written at the end of a turn."""
    images = read_images(folder, "train")
    torch.manual_seed(0)
    settings = BaseTrainerConfig(
        output_dir=str(folder / "pythae"),
        per_device_train_batch_size=BATCH,
        learning_rate=LEARNING_RATE,
        optimizer_cls="Adam",
        no_cuda=True,
        keep_best_on_train=True,
    )
    vae = pythae_vae()
    trainer = BaseTrainer(vae, BaseDataset(torch.tensor(images), torch.zeros(len(images))), training_config=settings)
    trainer.prepare_training()
    trainer.callback_handler.callbacks = []  # no progress bar
    loader = trainer.train_loader

    def endless() -> Iterator[Any]:
        while True:
            yield from loader

    stream = endless()

    def run(steps: int) -> None:
        trainer.train_loader = Turn(stream, loader.dataset, steps)
        trainer.train_step(epoch=1)
        np.savez(folder / "pythae.npz", **of_pythae(vae))

    return run


class Gaussian(NamedTuple):
    """Of every latent of every image."""

    mean: jax.Array
    log_scale: jax.Array


def encode(weights: Weights, images: jax.Array, bounded: bool) -> Gaussian:
    hidden = jax.nn.relu(images @ weights["w0"] + weights["b0"][None])
    mean, log_scale = jnp.split(hidden @ weights["w1"] + weights["b1"][None], 2, axis=-1)
    return Gaussian(mean, dist.soft_bound(log_scale, *dist.LATENT_LOG_SCALE) if bounded else log_scale)


def decode(weights: Weights, z: jax.Array) -> jax.Array:
    flat = jax.nn.relu(z.reshape(-1, z.shape[-1]) @ weights["w2"] + weights["b2"][None]) @ weights["w3"] + weights["b3"][None]
    return flat.reshape(*z.shape[:-1], -1)


def negative_elbo(weights: Weights, images: jax.Array, noise: jax.Array, bounded: bool) -> jax.Array:
    """Nats an image, given the posterior's noise."""
    q = encode(weights, images, bounded)
    logits = decode(weights, q.mean + jnp.exp(q.log_scale) * noise)
    distortion = (jax.nn.softplus(logits) - images * logits).sum(axis=-1)
    rate = (0.5 * (jnp.exp(2.0 * q.log_scale) + q.mean**2 - 1.0) - q.log_scale).sum(axis=-1)
    return distortion + rate


@functools.partial(jax.jit, static_argnames=("bounded", "chunk"))
def log_weights(weights: Weights, images: jax.Array, key: jax.Array, bounded: bool, chunk: int) -> jax.Array:
    """Log of the summed p(x, z) / q(z|x) of `chunk` draws, nats an image."""
    q = encode(weights, images, bounded)
    noise = jax.random.normal(key, (chunk, *q.mean.shape))
    z = q.mean[None] + jnp.exp(q.log_scale)[None] * noise
    logits = decode(weights, z)
    likelihood = (images[None] * logits - jax.nn.softplus(logits)).sum(axis=-1)
    ratio = (0.5 * (noise**2 - z**2) + q.log_scale[None]).sum(axis=-1)
    return jax.nn.logsumexp(likelihood + ratio, axis=0)


def nll(weights: Weights, images: np.ndarray, samples: int, bounded: bool) -> np.ndarray:
    """Importance-sampled negative log-likelihood, nats an image (Burda et al. 2016, eq. 8)."""
    values = []
    for start in range(0, len(images), ROWS):
        rows, key = images[start : start + ROWS], jax.random.fold_in(jax.random.key(2), start)
        parts = [
            np.float64(log_weights(weights, rows, jax.random.fold_in(key, chunk), bounded, CHUNK))
            for chunk in range(samples // CHUNK)
        ]
        values.append(math.log(samples) - np.logaddexp.reduce(parts, axis=0))
    return np.concatenate(values)


def check_agreement(images: np.ndarray) -> str:
    """Compares the loss of pythae's module to `negative_elbo`, given weights and noise; exits where they differ."""
    vae, noise = pythae_vae(), np.float32(np.random.default_rng(0).normal(size=(len(images), LATENTS)))
    vae._sample_gauss = lambda mean, scale: (mean + torch.tensor(noise) * scale, None)
    theirs = vae(DatasetOutput(data=torch.tensor(images).reshape(-1, 1, 28, 28))).loss.item()
    both = [float(negative_elbo(of_pythae(vae), images, noise, bounded).mean()) for bounded in (False, True)]
    worst = max(abs(value / theirs - 1.0) for value in both)
    told = f"Agreement: loss {theirs:.4f} nats; largest relative difference {worst:.1e}"
    if not worst <= TOLERANCE:
        raise SystemExit(f"{told}: expected at most {TOLERANCE:g}. The two models are not the same.")
    return f"{told} (at most {TOLERANCE:g} allowed)."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of the MNIST IDX files")
    parser.add_argument("--rounds", type=int, default=20, help="turns of every side")
    parser.add_argument("--steps", type=int, default=500, help="timed steps a turn")
    parser.add_argument("--samples", type=int, default=500, help=f"importance samples an image, a multiple of {CHUNK}")
    arguments = parser.parse_args()

    where = circumstances(["jax", "flax", "optax", "torch", "pythae"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = runs.create(str(folder / "run"), settings(arguments.data))
        write_images(run, folder)
        test = flat_images(run, "test")
        agreement = check_agreement(test[:BATCH])
        sides = [
            Side("vaejax", functools.partial(vaejax_steps, folder, arguments.data), huge_pages=True),
            Side("pythae", functools.partial(pythae_steps, folder)),
        ]
        times = interleave(sides, arguments.rounds, arguments.steps)
        found = {}
        for side in ("vaejax", "vaejax_last", "pythae"):
            with np.load(folder / f"{side}.npz") as file:
                found[side] = nll(dict(file), test, arguments.samples, bounded=side != "pythae")
    print(table(times, BATCH))
    print(f"\nvaejax / pythae, images/s: {times['pythae'].median / times['vaejax'].median:.2f}\n")
    print("| weights | NLL, nats | pythae's minus these |\n|---|---:|---:|")
    for side, told in (("vaejax", "vaejax, averaged"), ("vaejax_last", "vaejax, last"), ("pythae", "pythae, last")):
        print(f"| {told} | {interval(found[side])} | {interval(found['pythae'] - found[side])} |")
    print(f"\n{len(test)} test images, k = {arguments.samples}, {run.data.splits['train'].n} training images.")
    print(agreement)
    print(where)


def interval(values: np.ndarray) -> str:
    """Mean and standard error."""
    return f"{values.mean():.2f} ± {values.std(ddof=1) / math.sqrt(len(values)):.2f}"


if __name__ == "__main__":
    main()
