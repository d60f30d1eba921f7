"""What a trained run can show, as files: a PNG grid to look at and an NPZ of the same images to work with."""

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Float

from vaejax import experiment, keys, report
from vaejax.applications import generation, reconstruction
from vaejax.errors import DataError
from vaejax.runs import Run

COLUMNS = 10
"""Images in a row of a grid of samples."""


def sample(run: Run, output: epath.Path, best: bool, n: int, seed: int, temperature: float) -> None:
    """Writes samples.png and samples.npz (`images` [n, h, w, c]): expected images of draws from the prior."""
    trained = experiment.restore(run, best)
    key = keys.stream(jax.random.key(seed), "samples")
    draw = jax.jit(lambda params: generation.sample(run.model, params, key, n, temperature))
    images = np.asarray(draw(trained.params))
    white = np.ones((-n % COLUMNS, *images.shape[1:]), np.float32)
    rows = np.concatenate([images, white]).reshape(-1, COLUMNS, *images.shape[1:])
    report.save(output, "samples", rows if n > COLUMNS else images[np.newaxis], {"images": images})


def reconstruct(run: Run, output: epath.Path, best: bool, split: str, n: int, seed: int) -> None:
    """Writes reconstructions.png (images above their reconstructions) and .npz (`images`, `reconstructions`, `index`)."""
    trained = experiment.restore(run, best)
    index, images = _choose(run, split, n, seed)
    restored = np.asarray(
        jax.jit(lambda params: reconstruction.reconstruct(run.model, params, jnp.asarray(images)))(trained.params)
    )
    arrays = {"images": images, "reconstructions": restored, "index": index}
    report.save(output, "reconstructions", report.pairs(images, restored), arrays)


def interpolate(run: Run, output: epath.Path, best: bool, split: str, n: int, seed: int, steps: int) -> None:
    """Writes interpolations.png (a line a row) and .npz (`images` [n, steps, h, w, c], `index` [n, 2] of the ends)."""
    trained = experiment.restore(run, best)
    index, images = _choose(run, split, 2 * n, seed)
    first, second = jnp.asarray(images[:n]), jnp.asarray(images[n:])
    lines = jax.jit(lambda params: reconstruction.interpolate(run.model, params, first, second, steps))
    drawn = np.asarray(lines(trained.params))
    report.save(output, "interpolations", drawn, {"images": drawn, "index": index.reshape(2, n).T})


def _choose(run: Run, split: str, n: int, seed: int) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, "n h w c"]]:
    """`n` different images of a split, and their indices."""
    size = run.data.splits[split].n
    if n > size:
        raise DataError(f"--n: {n} images are needed, and the split {split!r} has {size}. Ask for fewer.")
    index = np.random.default_rng(seed).choice(size, n, replace=False)
    return index, np.asarray(experiment.rows(run, split, index)["image"])
