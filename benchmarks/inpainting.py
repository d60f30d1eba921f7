"""Missing pixels of a run's images: the posterior mean against a linear one, and whether draws spread as the truth does.

    python benchmarks/inpainting.py runs/mnist_grey --images=100

For each mask, over the missing pixels of the images that the indices 0, step, 2 step, ... of a split name:

- PSNR (dB, an image, then averaged) of the posterior mean, and of the linear Gaussian conditional mean
  m + S_mo S_oo^+ (x_o - m_o) with mean and covariance of all training images, clipped to [0, 1], which helps it a little;
- the randomised rank of the true pixel among draws, which is uniform where the spread is right: the Kolmogorov-Smirnov distance
  to that, over pixels whose predictive standard deviation is above 0.03 (Czado et al. 2009).

Intervals are of 95 %, from 1,000 bootstrap samples of the images. The chains are those of `vaejax inpaint`.
"""

import argparse
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats
from sides import circumstances

from vaejax import experiment, keys, runs
from vaejax.applications import inpainting
from vaejax.models import condition_of
from vaejax.runs import Run

CHAINS, BURN_IN, KEPT = 8, 100, 50
AT_A_TIME = 25
"""Images whose chains run together."""
SPREAD = 0.03
"""Predictive standard deviation below which a pixel is as good as known."""
RESAMPLED = 1_000


class Restored(NamedTuple):
    """The missing pixels of some images, `[n, pixels]`."""

    truth: Float[np.ndarray, "n p"]
    mean: Float[np.ndarray, "n p"]
    draws: Float[np.ndarray, "d n p"]


def restored(run: Run, split: str, index: Int[np.ndarray, " n"], missing: Bool[np.ndarray, "h w"]) -> Restored:
    """Posterior means and draws of all states, image after image."""
    params, key = experiment.restore(run).params, keys.stream(jax.random.key(0), "missing pixels")

    def shown(latents: jax.Array, drawing: jax.Array, condition: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        likelihood = run.model.decode(params, latents, condition)
        return likelihood.mean(), likelihood.sample(keys.of_samples(drawing, jnp.arange(CHAINS)))

    parts, show = [], jax.jit(shown)
    for start in range(0, len(index), AT_A_TIME):
        batch = experiment.rows(run, split, index[start : start + AT_A_TIME])
        images, condition = jnp.asarray(batch["image"]), condition_of(run.model, batch)
        own = keys.of_examples(key, jnp.asarray(batch["index"]))
        where = jnp.broadcast_to(missing[..., np.newaxis], (*images.shape[:-1], 1))
        walk = inpainting.visits(run.model, params, images, where, own, condition, CHAINS, BURN_IN, KEPT)
        states = [
            show(visit.latents, keys.of_part(keys.of_part(own, 1), number), condition) for number, visit in enumerate(walk)
        ]
        means, draws = (np.stack([np.asarray(state[i])[:, :, missing, 0] for state in states]) for i in range(2))
        mean = means.mean(axis=(0, 1))
        parts.append(Restored(np.asarray(images)[:, missing, 0], mean, draws.reshape(-1, *mean.shape)))
    truth, mean, drawn = zip(*parts, strict=True)
    return Restored(np.concatenate(truth), np.concatenate(mean), np.concatenate(drawn, axis=1))


def linear(run: Run, truth: Float[np.ndarray, "n d"], missing: Bool[np.ndarray, " d"]) -> Float[np.ndarray, "n p"]:
    """The conditional mean of a Gaussian with mean and covariance of the training images, in float64."""
    train = np.concatenate([batch["image"][batch["mask"]] for batch in experiment.evaluation_batches(run, "train", 1_000)])
    flat = np.float64(train.reshape(len(train), -1))
    mean, covariance = flat.mean(axis=0), np.cov(flat, rowvar=False)
    gain = covariance[np.ix_(missing, ~missing)] @ np.linalg.pinv(covariance[np.ix_(~missing, ~missing)], hermitian=True)
    return np.clip(mean[missing] + (truth[:, ~missing] - mean[~missing]) @ gain.T, 0.0, 1.0)


def psnr(truth: Float[np.ndarray, "n p"], mean: Float[np.ndarray, "n p"]) -> Float[np.ndarray, " n"]:
    """dB, an image."""
    return -10.0 * np.log10(((mean - truth) ** 2).mean(axis=1))


def ranks(found: Restored) -> list[Float[np.ndarray, " p"]]:
    """For each image the randomised ranks in [0, 1] of its uncertain pixels among their draws."""
    below, tied = (found.draws < found.truth).sum(axis=0), (found.draws == found.truth).sum(axis=0)
    uniform = np.random.default_rng(0).random(found.truth.shape)
    rank = (below + uniform * (tied + 1)) / (len(found.draws) + 1)
    return [own[spread > SPREAD] for own, spread in zip(rank, found.draws.std(axis=0), strict=True)]


def distance(rank: list[Float[np.ndarray, " p"]]) -> float:
    """Kolmogorov-Smirnov, to the uniform distribution."""
    return float(stats.kstest(np.concatenate(rank), "uniform").statistic)


def line(run: Run, split: str, index: Int[np.ndarray, " n"], mask: str) -> str:
    """A row of the table."""
    missing, since = inpainting.region(mask, run.model.image_shape), time.perf_counter()
    found = restored(run, split, index, missing)
    seconds = (time.perf_counter() - since) / len(index)
    flat = np.float64(experiment.rows(run, split, index)["image"]).reshape(len(index), -1)
    ours, theirs = psnr(found.truth, found.mean), psnr(found.truth, linear(run, flat, missing.ravel()))
    rank, random = ranks(found), np.random.default_rng(1)
    picks = random.integers(len(index), size=(RESAMPLED, len(index)))
    gains = np.quantile((ours - theirs)[picks].mean(axis=1), (0.025, 0.975))
    distances = np.quantile([distance([rank[i] for i in pick]) for pick in picks[:200]], (0.025, 0.975))
    gain, off = f"{(ours - theirs).mean():+.2f} ({gains[0]:+.2f} to {gains[1]:+.2f})", distance(rank)
    pixels = np.histogram(np.concatenate(rank), 10, (0.0, 1.0))[0]
    shape = " ".join(f"{count / pixels.mean():.2f}" for count in pixels)
    known = f"{off:.3f} ({distances[0]:.3f} to {distances[1]:.3f})"
    return (
        f"| {mask} | {ours.mean():.2f} | {theirs.mean():.2f} | {gain} | {known} | {seconds:.1f} |\n  ranks by tenths: {shape}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="the directory of a run of grey images")
    parser.add_argument("--split", default="test", help="default: %(default)s")
    parser.add_argument("--images", type=int, default=100, help="evenly spaced in the split; default: %(default)s")
    parser.add_argument("--masks", nargs="+", default=["lower-half", "square:12"], help="default: %(default)s")
    given = parser.parse_args()

    run = runs.load(given.run)
    index = np.linspace(0, run.data.splits[given.split].n - 1, given.images).astype(int)
    print("| missing | PSNR, posterior mean | linear | gain, dB | KS distance of the ranks | s an image |")
    for mask in given.masks:
        print(line(run, given.split, index, mask), flush=True)
    print(circumstances(["jax", "scipy"]))


if __name__ == "__main__":
    main()
