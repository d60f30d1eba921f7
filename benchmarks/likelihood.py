"""Importance-sampled negative log-likelihood in vaejax and in pythae, of the same weights and images: images a second.

    python benchmarks/likelihood.py --data=FOLDER --samples=5000 --images=250 --rounds=5

vaejax runs what `vaejax evaluate` does for this metric, compiled once, a batch of `evaluation.batch_size` images at a time.
pythae runs `VAE.get_nll`, without gradients, which its own code leaves on. Both means are compared before the clock runs.
"""

import argparse
import functools
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import ceiling
import jax
import jax.numpy as jnp
import numpy as np
import torch
from default_mlp import config_for, flat_images, of_vaejax, to_pythae
from sides import Ratio, Run, Side, circumstances, interleave, ratios, table

from vaejax import evaluation, experiment, keys, runs, training
from vaejax.models import Params

AIM = 2.0
BATCHES = (100, 1_000)
"""Samples at a time in pythae: its default, and more."""
TRAINING_STEPS = 1_000
TOLERANCE = 0.25
"""Nats an image, of the difference of the means over the images compared: at k = 5000 a few times its sampling error."""
COMPARED = 16
"""Images on which the two are compared."""


def open_run(folder: Path, data: str, images: int) -> runs.Run:
    """A run of which the first test images are all there are, and one batch of evaluation."""
    run = runs.create(str(folder / f"run of {images}"), config_for(data, evaluation={"batch_size": images}))
    splits = run.data.splits | {"test": run.data.splits["test"]._replace(n=images)}
    return run._replace(data=run.data._replace(splits=splits))


def trained(run: runs.Run) -> Params:
    """Weights with a posterior that is worth sampling from."""
    objective = training.objective_of(run.model, run.config)
    state, step = training.init(run.model, objective, jax.random.key(0)), training.train_step(objective, 0.99)
    for _, batch in zip(range(TRAINING_STEPS), experiment.training_batches(run, 0), strict=False):
        state, _ = step(state, training.place(batch), jax.random.key(1))
    return jax.device_get(state.ema)


def vaejax_nll(run: runs.Run, samples: int) -> Callable[[Params, int], float]:
    """A function (weights, draw) -> mean nats an image: what `evaluation.per_example` does for it, compiled once."""
    model, rows = run.model, run.data.splits["test"].n
    chunk = max(evaluation.pixels_at_a_time() // (rows * math.prod(model.image_shape)), 1)
    sampled = jax.jit(functools.partial(evaluation._sampled, model))

    def nll(params: Params, draw: int) -> float:
        key = keys.stream(jax.random.key(draw), "posterior of test")
        (batch,) = (training.place(batch) for batch in experiment.evaluation_batches(run, "test", rows))
        parts = []
        for start in range(0, samples, chunk):
            numbers = jnp.arange(start, min(start + chunk, samples))
            parts.append((len(numbers), sampled(params, batch["image"], key, batch["index"], numbers, None)))
        return float(evaluation._merged(parts)["nll"].mean())

    return nll


def pythae_nll(params: Params, images: np.ndarray, samples: int, batch_size: int) -> float:
    """Mean nats an image, `batch_size` samples at a time."""
    vae = to_pythae(of_vaejax(params)).eval()
    with torch.no_grad():
        return -float(vae.get_nll(torch.tensor(images).reshape(-1, 1, 28, 28), samples, batch_size))


def check_agreement(folder: Path, data: str, params: Params, samples: int) -> str:
    """Compares the means over a few images; exits where they differ by more than `TOLERANCE`.

    The posteriors differ a little, as vaejax bounds their scale: they are only where samples are drawn.
    """
    run = open_run(folder, data, COMPARED)
    ours = [vaejax_nll(run, samples)(params, draw) for draw in range(2)]
    theirs = pythae_nll(params, flat_images(run, "test"), samples, BATCHES[-1])
    told = (
        f"Agreement: NLL {ours[0]:.3f} nats in vaejax ({ours[1]:.3f} with other noise), {theirs:.3f} in pythae, "
        f"{COMPARED} images, k = {samples}"
    )
    if not abs(ours[0] - theirs) <= TOLERANCE:
        raise SystemExit(f"{told}: expected a difference of at most {TOLERANCE:g}.")
    return f"{told} (a difference of at most {TOLERANCE:g} allowed)."


def vaejax_images(folder: Path, data: str, params: Params, images: int, samples: int) -> Run:
    nll = vaejax_nll(open_run(folder, data, images), samples)

    def run(steps: int) -> None:
        for _ in range(0, steps, images):  # whole batches, as in an evaluation
            nll(params, 0)

    return run


def pythae_images(folder: Path, data: str, params: Params, images: int, samples: int, batch_size: int) -> Run:
    test = flat_images(open_run(folder, data, images), "test")

    def run(steps: int) -> None:
        pythae_nll(params, test[:steps], samples, batch_size)

    return run


def compare(data: str, samples: int, images: int, rounds: int) -> Ratio:
    """Prints all there is to say, and returns the ratio to pythae's better batch size."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        params = trained(open_run(folder, data, images))
        agreement = check_agreement(folder, data, params, samples)
        theirs = {
            f"pythae, {size} samples at a time": functools.partial(pythae_images, folder, data, params, images, samples, size)
            for size in BATCHES
        }
        ours = Side("vaejax", functools.partial(vaejax_images, folder, data, params, images, samples), huge_pages=True)
        times = interleave([ours, *(Side(name, build) for name, build in theirs.items())], rounds, images)
    best = min(theirs, key=lambda name: times[name].median)
    decoded = 2 * sum(params["decoder"][layer]["kernel"].size for layer in ("Dense_0", "Dense_1")) * samples
    most, speed = ceiling.measure("float32"), decoded / times["vaejax"].median
    share = f"decoder {speed / 1e9:,.0f} GFLOP/s ({speed / most.flops:.0%} of the ceiling)"
    print(f"Importance sampling, k = {samples}; a step is an image.\n\n{table(times, 1)}\n\nvaejax: {share}.\n{agreement}")
    return Ratio(f"IS-NLL, k = {samples}", times[best].median / times["vaejax"].median, best, AIM, share)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of the MNIST IDX files")
    parser.add_argument("--samples", type=int, default=5_000, help="importance samples an image; default: %(default)s")
    parser.add_argument("--images", type=int, default=250, help="images a turn, in vaejax one batch; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="turns of every side; default: %(default)s")
    given = parser.parse_args()

    where = circumstances(["jax", "flax", "torch", "pythae"])
    print("\n" + ratios([compare(given.data, given.samples, given.images, given.rounds)]))
    print(where)


if __name__ == "__main__":
    main()
