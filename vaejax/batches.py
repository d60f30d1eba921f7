"""Batches: the contract between images and models, and the pass over a split that evaluation makes.

A batch is `{"image": float32[b, *spatial, c] in [0, 1], "mask": bool[b], "index": int32[b]}`, plus `"label": int32[b]` and
`"segmentation": int32[b, *spatial]`, the class of every pixel, where known. `mask` says which rows count, `index` is the
example's stable number in its split. Nothing here needs TensorFlow.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from vaejax import order
from vaejax.datasets import Split
from vaejax.errors import DataError
from vaejax.keys import of_examples

Batch = Mapping[str, Any]


def batch_of(
    images: Float[np.ndarray, "b ..."],
    index: Int[np.ndarray, " b"] | None = None,
    label: Int[np.ndarray, " b"] | None = None,
    segmentation: Int[np.ndarray, "b ..."] | None = None,
) -> Batch:
    """A full batch from an array of images in [0, 1]; `index` counts from 0 where it is left out."""
    index = np.arange(len(images)) if index is None else index
    batch = {"image": np.float32(images), "mask": np.ones(len(images), bool), "index": np.int32(index)}
    known = {"label": label, "segmentation": segmentation}
    return batch | {name: np.int32(values) for name, values in known.items() if values is not None}


def training(
    split: Split, white: float, batch_size: int, levels: int | None, seed: int, first_step: int, share: slice = slice(None)
) -> Iterator[Batch]:
    """The batches of `pipeline.training_batches` without random changes, bit for bit, made as they are asked for.

    Raises:
        DataError: the split has fewer than `batch_size` images.
    """
    require_enough(split, batch_size)
    for step in itertools.count(first_step):
        yield of_rows(split, white, order.of_batches(step, 1, batch_size, split.n, seed)[0, share], levels)


def evaluation(split: Split, white: float, batch_size: int, levels: int | None, share: slice = slice(None)) -> Iterator[Batch]:
    """One pass over a split, in order.

    The last batch is filled up by repeating the split's last example; its `mask` says which rows count.

    Args:
        split: where to read.
        white: the stored value that means 1.0.
        batch_size: rows in every batch.
        levels: the grid of grey levels that images are rounded to; None to leave them.
        share: the rows of each batch to read, those of one process of several.
    """
    for start in range(0, split.n, batch_size):
        position = np.arange(start, start + batch_size)[share]
        rows = of_rows(split, white, np.minimum(position, split.n - 1), levels)
        yield {**rows, "mask": position < split.n}


def of_rows(split: Split, white: float, index: Int[np.ndarray, " b"], levels: int | None) -> Batch:
    """A full batch of chosen examples of a split; arguments as for `evaluation`."""
    rows = split.read(index)
    image = quantize(np.asarray(rows["image"], np.float32) / np.float32(white), levels)
    return {**rows, **batch_of(image, index, rows.get("label"), rows.get("segmentation"))}


def stacked(batches: Sequence[Batch]) -> Batch:
    """Several batches along a new first axis; what is on a device stays there."""
    libraries = {name: jnp if isinstance(rows, jax.Array) else np for name, rows in batches[0].items()}
    return {name: library.stack([batch[name] for batch in batches]) for name, library in libraries.items()}


def require_enough(split: Split, batch_size: int) -> None:
    """Raises DataError where a split has fewer images than a batch."""
    if batch_size > split.n:
        raise DataError(
            f"data.batch_size={batch_size}: expected at most the number of training images, found {split.n}. "
            f"Choose data.batch_size={split.n} or less."
        )


def quantize(images: Float[np.ndarray, "b ..."], levels: int | None) -> Float[np.ndarray, "b ..."]:
    """Rounds images to the grid 0, 1/(levels-1), ..., 1; leaves them where `levels` is None."""
    return images if levels is None else np.round(images * np.float32(levels - 1)) / np.float32(levels - 1)


def binarized(batches: Iterable[Batch], key: Key[Array, ""], first_step: int | None = None) -> Iterator[Batch]:
    """Batches whose grey values became 0 or 1 by a Bernoulli(pixel) draw, one key an example.

    Args:
        batches: batches of grey images.
        key: the base of all draws.
        first_step: the number of the first batch, to draw anew in every batch (dynamic); None to give an example the same
            draw wherever it appears (static).
    """
    for count, batch in enumerate(batches):
        step = None if first_step is None else first_step + count
        yield {**batch, "image": bernoulli(key, step, batch["image"], batch["index"])}


@jax.jit
def bernoulli(
    key: Key[Array, ""], step: int | Int[Array, ""] | None, images: Float[Array, "b ..."], index: Int[Array, " b"]
) -> Float[Array, "b ..."]:
    """A draw of 0 or 1 for every pixel of grey images, one key an example; anew in every step, or, with None, the same."""
    draw = key if step is None else jax.random.fold_in(key, step)
    uniform = jax.vmap(lambda key: jax.random.uniform(key, images.shape[1:]))(of_examples(draw, index))
    return (uniform < images).astype(jnp.float32)
