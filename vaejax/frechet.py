"""How like real images the samples are: Frechet distances on the features of a classifier trained on the same images.

    {"n", "seeds", "step", "classifier": {"accuracy", "fingerprint"}, "floor": the distance,
     "samplers": {name: {"mean", "sem", "n", "unit", "values", ...}}, "agreement": {name: {...}}}

Every row compares as many samples as there are real test images in it, by the same features, with the same seeds, so that
rows of runs on the same images can be compared; the floor is what as many training images have. A conditional model is asked
for the labels of those test images. Samples are expected images, and real images the grey ones, also where a model is about
binarised images.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from vaejax import batches as batching
from vaejax import experiment, keys, metrics, runs, samplers
from vaejax.applications.generation import Sampler, sample
from vaejax.classifier import ROWS, Features, of_images
from vaejax.datasets import DataSet
from vaejax.errors import DataError
from vaejax.models import Params
from vaejax.progress import bar
from vaejax.runs import Run


def measure(run: Run, n: int, seeds: int, names: tuple[str, ...] = ("prior",), best: bool = False) -> dict[str, Any]:
    """Measures a run's samples and writes `frechet.json`.

    Args:
        run: an open run whose images have labels.
        n: samples, and test images; at most as many as there are.
        seeds: how often, each with samples of its own.
        names: of `samplers.SAMPLERS`.
        best: take the checkpoint of lowest validation loss instead of the newest.

    Returns:
        What was written.

    Raises:
        DataError: the images have no labels, or are fewer than n, which is at least 2.
        FamilyError: a sampler that the family does not have.
    """
    size = min(run.data.splits[split].n for split in ("train", "test"))
    if not 2 <= n <= size:
        raise DataError(f"--n={n}: expected 2 <= value <= {size}, the number of test images (or of training images, if fewer).")
    for name in names:
        samplers.check(run, name)
    trained, classifier = experiment.restore(run, best), of_images(run)
    chosen = {split: _chosen(run.data, split, n) for split in ("test", "train")}
    splits = {split: _features_of_rows(run.data, split, rows, classifier.look) for split, rows in chosen.items()}
    labels = np.asarray(run.data.splits["test"].read(chosen["test"])["label"]) if run.model.classes else None
    rows: dict[str, Any] = {}
    agreement: dict[str, Any] = {}
    for name in names:
        make = jax.jit(functools.partial(_made, run, samplers.build(run, trained.params, name)), static_argnums=2)
        distances, agreeing = [], []
        with bar(f"{name}: samples", seeds * n) as show:
            for seed in range(seeds):
                key = keys.stream(jax.random.key(seed), "samples")
                made, predicted = _features_of_samples(functools.partial(make, trained.params, key), classifier.look, n, labels)
                distances.append(metrics.frechet(made, splits["test"]))
                if labels is not None:
                    agreeing.append(float(np.mean(predicted == labels)))
                show((seed + 1) * n, f"distance {distances[-1]:.3f}")
        rows[name] = metrics.summary(np.array(distances), "squared feature units") | {"values": distances}
        if agreeing:
            agreement[name] = metrics.summary(np.array(agreeing), "share of samples") | {"values": agreeing}
    result = {
        "n": n,
        "seeds": seeds,
        "step": trained.step,
        "classifier": {"accuracy": classifier.accuracy, "fingerprint": classifier.fingerprint},
        "floor": metrics.frechet(splits["train"], splits["test"]),
        "samplers": rows,
        "agreement": agreement,
    }
    runs.write_json(run.directory / "frechet.json", result)
    return result


def _chosen(data: DataSet, split: str, n: int) -> Int[np.ndarray, " n"]:
    """Rows of a split, evenly spaced: it may be sorted by label."""
    return np.linspace(0, data.splits[split].n - 1, n).astype(int)


def _features_of_rows(data: DataSet, split: str, rows: Int[np.ndarray, " n"], look: Features) -> Float[np.ndarray, "n d"]:
    parts = [
        look(batching.of_rows(data.splits[split], data.white, rows[start : start + ROWS], None)["image"])[1]
        for start in range(0, len(rows), ROWS)
    ]
    return np.concatenate([np.asarray(part) for part in parts])


def _features_of_samples(
    make: Callable[..., Float[Array, "b ..."]], look: Features, n: int, labels: Int[np.ndarray, " n"] | None
) -> tuple[Float[np.ndarray, "n d"], Int[np.ndarray, " n"]]:
    """Features of n samples, and the classes seen in them; `labels` are those asked for, of a conditional model."""
    found, seen = [], []
    for start in range(0, n, ROWS):
        rows = min(ROWS, n - start)
        logits, features = look(make(rows, start, None if labels is None else jnp.asarray(labels[start : start + rows])))
        found.append(np.asarray(features))
        seen.append(np.asarray(logits).argmax(axis=-1))
    return np.concatenate(found), np.concatenate(seen)


def _made(
    run: Run, sampler: Sampler | None, params: Params, key: Key[Array, ""], n: int, first: Int[Array, ""], told: Any
) -> Float[Array, "n ..."]:
    return sample(run.model, params, key, n, 1.0, told, sampler, first)
