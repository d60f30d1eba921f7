"""Training batches by tf.data: an endless stream that is a function of (seed, step) and starts at any step at once."""

import atexit
import os
import sys
import threading
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf
from jaxtyping import Float32, Int64

from vaejax import augment as augmentation
from vaejax.batches import require_enough
from vaejax.config import AugmentConfig
from vaejax.datasets import Split
from vaejax.order import ROUNDS, shuffled_numbers

# TensorFlow prepares images on the CPU; the accelerators' memory is JAX's.
tf.config.set_visible_devices([], "GPU")

PARALLEL_BATCHES = max((os.cpu_count() or 1) // 2, 1)  # more would take cores from the training step
READY_BATCHES = 4


def training_batches(
    split: Split,
    white: float,
    batch_size: int,
    augment: AugmentConfig,
    levels: int | None,
    seed: int,
    first_step: int = 0,
    share: slice = slice(None),
) -> Iterator[dict[str, np.ndarray]]:
    """Full batches from `first_step` on, without end: those of the stream from 0 with `first_step` batches dropped.

    Every epoch reads each image once, in an order of its own; a batch may straddle two epochs.

    Args:
        split: the images to read.
        white: the stored value that means 1.0.
        batch_size: images a batch, B; at most `split.n`.
        augment: random changes, drawn from (seed, step).
        levels: grey levels to round to at the end, from 0 to 1; None leaves the values alone.
        seed: of the order and the changes.
        first_step: the step of the first batch.
        share: the rows of each batch to make, those of one process of several; together they are what one would make.

    Returns:
        An iterator of {"image": float32[B, H, W, C] in [0, 1], "mask": bool[B], all true, "index": int32[B]}, and
        whatever else the split has, such as "label": int32[B], and "segmentation": int32[B, H, W], which follows its image
        through all changes; B counts the rows of `share`. The arrays are read-only.

    Raises:
        DataError: the split has fewer than `batch_size` images.
    """
    require_enough(split, batch_size)
    read = _reader(split)

    def batch(step: tf.Tensor) -> dict[str, tf.Tensor]:
        index = epoch_order(step * batch_size + tf.range(batch_size, dtype=tf.int64), split.n, seed)[share]
        columns = read(index)
        own = tf.stack([tf.constant(seed, tf.int64), step])
        changes = augmentation.draw(augment, batch_size, own, share)
        images = augmentation.apply(tf.cast(columns["image"], tf.float32) / white, changes)
        columns["image"] = images if levels is None else quantize(images, levels)
        if "segmentation" in columns:
            columns["segmentation"] = tf.cast(augmentation.apply_to_segmentation(columns["segmentation"], changes), tf.int32)
        return columns | {"mask": tf.ones_like(index, tf.bool), "index": tf.cast(index, tf.int32)}

    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False
    options.threading.private_threadpool_size = PARALLEL_BATCHES
    options.threading.max_intra_op_parallelism = 1
    steps = tf.data.Dataset.range(first_step, tf.int64.max)
    batches = steps.map(batch, num_parallel_calls=PARALLEL_BATCHES).prefetch(READY_BATCHES)
    return _stream(batches.with_options(options))


def epoch_order(positions: Int64[tf.Tensor, " B"], n: int, seed: int) -> Int64[tf.Tensor, " B"]:
    """The images at `positions` of the endless stream: epoch e is a permutation of 0..n-1 of its own, by (seed, e).

    Args:
        positions: consecutive, at most n of them, so that they fall into two epochs at most.
        n: images an epoch.
        seed: of the order.
    """
    # The shuffle looks at 8 bits of each word of its key and at 4 rounds is visibly too even: hash, and take more.
    epochs = positions // n
    first = epochs[0]
    keys = tf.gather(tf.stack([_epoch_key(seed, first), _epoch_key(seed, first + 1)]), epochs - first)

    def shuffled(places: Int64[tf.Tensor, " B"]) -> Int64[tf.Tensor, " B"]:
        last = tf.constant(shuffled_numbers(n) - 1, tf.int64)
        return tf.raw_ops.RandomIndexShuffle(index=places, seed=keys, max_index=last, rounds=ROUNDS)

    found = shuffled(positions % n)
    if shuffled_numbers(n) == n:
        return found
    return tf.where(found == n, shuffled(tf.fill(tf.shape(positions), tf.constant(n, tf.int64))), found)


def quantize(images: Float32[tf.Tensor, "*B"], levels: int) -> Float32[tf.Tensor, "*B"]:
    """Rounds values in [0, 1] to the nearest of `levels` equally spaced grey values, 0 and 1 included."""
    return tf.round(images * (levels - 1)) / (levels - 1)


def _epoch_key(seed: int, epoch: tf.Tensor) -> Int64[tf.Tensor, " 3"]:
    pair = tf.stack([tf.constant(seed, tf.int64), epoch])
    return tf.random.stateless_uniform([3], pair, minval=None, maxval=None, dtype=tf.int64, alg="philox")


def _stream(batches: tf.data.Dataset) -> Iterator[dict[str, np.ndarray]]:
    """The batches, until closed. An interpreter that ends while a thread still reads would wait for ever: stop it before."""
    reading = [batches.as_numpy_iterator()]
    atexit.register(reading.clear)
    try:
        while reading:
            yield next(reading[0])
    finally:
        reading.clear()


def _step_aside() -> None:
    """Lets the training step go first, where a thread can be told so (Linux).

    A step on a CPU waits for the slowest of its threads, and has gaps in which a batch can be made.
    """
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


def _reader(split: Split) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """`split.read` as a TensorFlow function: what it returns for one image tells the names, types and shapes."""
    example = split.read(np.zeros(1, np.int64))
    types = [tf.as_dtype(column.dtype) for column in example.values()]

    def rows_of(rows: np.ndarray) -> list[np.ndarray]:
        _step_aside()  # on the thread that makes the batch
        return list(split.read(rows).values())

    def read(index: Int64[tf.Tensor, " B"]) -> dict[str, tf.Tensor]:
        columns = tf.numpy_function(rows_of, [index], types, stateful=False)
        for column, one in zip(columns, example.values(), strict=True):
            column.set_shape([index.shape[0], *one.shape[1:]])
        return dict(zip(example, columns, strict=True))

    return read
