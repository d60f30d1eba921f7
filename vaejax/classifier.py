"""A small classifier of a run's images: trained once, kept beside the prepared images, so that its features can be compared."""

import functools
import hashlib
import io
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from jaxtyping import Array, Float

from vaejax import batches as batching
from vaejax import networks, optimizers, runs
from vaejax.config import OptimizerConfig
from vaejax.datasets import DataSet
from vaejax.errors import DataError
from vaejax.models import Params
from vaejax.progress import bar
from vaejax.runs import Run

STEPS, BATCH = 1_500, 128
"""Of the training (Adam, 1e-3, brought to 0 by a cosine)."""

ROWS = 500
"""Images looked at at a time."""

Features = Callable[[Float[Array, "b h w c"]], tuple[Float[Array, "b classes"], Float[Array, "b d"]]]
"""Images in [0, 1] -> logits of the classes and features."""


class Classifier(NamedTuple):
    """What the distances of a data set are measured with."""

    look: Features
    accuracy: float
    """Share of the test images that get their label."""
    fingerprint: str
    """sha256 of the weights: distances are comparable where it is the same."""


def of_images(run: Run) -> Classifier:
    """The classifier of a run's images, trained on its training images as they are stored.

    Raises:
        DataError: the images have no labels.
    """
    names = run.data.label_names
    if not names:
        raise DataError(
            f"data.name={run.config.data.name!r}: the images have no labels, and the features of a Frechet distance are those "
            "of a classifier. Use labelled images (class folders)."
        )
    network = networks.Classifier(len(names))
    template = jax.eval_shape(lambda key: networks.init(network, key, run.model.image_shape), jax.random.key(0))
    file = _kept(run, template)
    params = _read(file, template)
    if params is None:
        params = _train(run.data, network)
        file.parent.mkdir(parents=True, exist_ok=True)
        runs.write_bytes(file, _bytes(params))
    look = jax.jit(functools.partial(networks.apply, network, params))
    right, size = 0, run.data.splits["test"].n
    for batch in batching.evaluation(run.data.splits["test"], run.data.white, min(ROWS, size), None):
        guess = np.asarray(look(batch["image"])[0]).argmax(axis=-1)
        right += int(((guess == batch["label"]) & batch["mask"]).sum())
    digest = hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(params))).hexdigest()
    return Classifier(look, right / size, digest)


def _train(data: DataSet, network: networks.Network) -> Params:
    """Cross-entropy on the training images as they are."""
    split = data.splits["train"]
    optimizer = optimizers.build(OptimizerConfig(), STEPS)

    def loss(params: Params, images: jax.Array, labels: jax.Array) -> jax.Array:
        logits, _ = networks.apply(network, params, images)
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def step(params: Params, state: Any, images: jax.Array, labels: jax.Array) -> tuple[Params, Any, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(params, images, labels)
        change, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, change), state, value

    params = jax.jit(lambda key: networks.init(network, key, data.image_shape))(jax.random.key(0))
    state, draw = optimizer.init(params), np.random.default_rng(0)
    with bar("training the classifier", STEPS) as show:
        for number in range(STEPS):
            batch = batching.of_rows(split, data.white, draw.integers(0, split.n, BATCH), None)
            params, state, value = step(params, state, batch["image"], batch["label"])
            if number % 50 == 0:
                show(number, f"loss {float(value):.3f}")
    return params


def _kept(run: Run, template: Params) -> epath.Path:
    """Where the classifier of a run's images is kept, by all that it depends on."""
    shapes = {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(template)}
    source = f"{run.data.fingerprint} {STEPS} {BATCH} {sorted(shapes.items())}"
    return runs.cache_of(run.directory, run.config) / f"classifier-{hashlib.sha256(source.encode()).hexdigest()[:16]}.npz"


def _bytes(params: Params) -> bytes:
    named = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **named)
    return buffer.getvalue()


def _read(file: epath.Path, template: Params) -> Params | None:
    """What was kept; None where nothing was, or where it is damaged."""
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as arrays:
            return jax.tree_util.tree_map_with_path(lambda path, _: jnp.asarray(arrays[jax.tree_util.keystr(path)]), template)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
