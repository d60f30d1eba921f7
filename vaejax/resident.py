"""The training images of a small data set on every device: a batch is chosen, scaled and binarised where they lie.

The batches are those of `pipeline.training_batches` without random changes, in the same order; nothing here needs TensorFlow.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from vaejax import hosts, memory, order
from vaejax.batches import Batch, quantize, require_enough
from vaejax.datasets import Split
from vaejax.errors import DataError

Columns = Mapping[str, Shaped[Array, "n ..."]]
"""All images of a split, as they are stored, what else it has, and `GREY`."""

GREY = "grey"
"""What each stored whole number is in [0, 1], `[white + 1]`: a device's own division may round otherwise than the host's."""

Binarize = Callable[[Int[Array, ""], Float[Array, "b ..."], Int[Array, " b"]], Float[Array, "b ..."]]
"""What becomes of grey images, by the step's number and their index."""


def training_batches(
    split: Split,
    white: float,
    batch_size: int,
    levels: int | None,
    seed: int,
    first_step: int,
    turns: Iterable[int],
    share: slice = slice(None),
    binarize: Binarize = lambda step, images, index: images,
) -> Iterator[Batch]:
    """Batches on the devices from `first_step` on: for each of `turns` so many, stacked along a first axis unless it is one.

    Args:
        split: the images.
        white: the stored value that means 1.0.
        batch_size: images a batch; at most `split.n`.
        levels: grey levels to round to, from 0 to 1; None leaves the values alone.
        seed: of the order.
        first_step: the step of the first batch.
        turns: how many batches at a time.
        share: the rows of each batch that are this process's.
        binarize: what is done to the images last.

    Raises:
        DataError: the split has fewer than `batch_size` images, or does not fit in a device's memory.
    """
    require_enough(split, batch_size)
    columns, step = _columns(split, white, levels), first_step
    choose = jax.jit(functools.partial(_chosen, binarize))
    for count in turns:
        index = order.of_batches(step, count, batch_size, split.n, seed)[:, share].astype(np.int32)
        steps = np.arange(step, step + count, dtype=np.int32)
        if count == 1:
            steps, index = steps[0], index[0]
        yield choose(columns, steps, hosts.divided(index, index.ndim - 1))
        step += count


def _columns(split: Split, white: float, levels: int | None) -> Columns:
    needed = split.n * sum(column.nbytes for column in split.read(np.zeros(1, np.int64)).values())
    known = memory.available()
    left = hosts.least(math.inf if known is None else known)  # so that all processes refuse, or none
    if needed > left:
        raise DataError(
            f"data.resident=True: the {split.n:,} training images need {needed / 2**30:.2g} GiB on every device, and "
            f"{left / 2**30:.2g} are left. Choose data.resident=False."
        )
    stored = split.read(np.arange(split.n))
    if stored["image"].dtype.kind == "f":
        stored["image"] = quantize(stored["image"] / np.float32(white), levels)
    else:
        stored[GREY] = quantize(np.arange(int(white) + 1, dtype=np.float32) / np.float32(white), levels)
    return {name: hosts.everywhere(column) for name, column in stored.items()}


def _chosen(binarize: Binarize, columns: Columns, step: Int[Array, "*k"], index: Int[Array, "*k b"]) -> Batch:
    if index.ndim == 2:
        several = jax.vmap(functools.partial(_chosen, binarize, columns))(step, index)
        return jax.lax.with_sharding_constraint(several, hosts.by_rows(1))
    batch = {name: column[index] for name, column in columns.items() if name != GREY}
    images = columns[GREY][batch["image"]] if GREY in columns else batch["image"]
    batch |= {"image": binarize(step, images, index), "mask": jnp.ones(index.shape, bool), "index": index}
    return batch | ({"segmentation": batch["segmentation"].astype(jnp.int32)} if "segmentation" in batch else {})
