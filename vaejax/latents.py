"""The latents of a run's images, as rows of numbers: collected, laid out in a plane, probed for the label."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from vaejax import experiment
from vaejax.applications import embedding, probes
from vaejax.applications.probes import Labelled, Probe
from vaejax.models import Params, condition_of
from vaejax.progress import bar
from vaejax.runs import Run

MOST = 20_000
"""Training images that a probe is fitted to, at most; beyond it, evenly spaced ones."""


class Rows(NamedTuple):
    """What `applications.embedding.embed` gives for images of a split."""

    numbers: Int[np.ndarray, " n"]
    """The images' stable numbers in their split."""
    rows: Float[np.ndarray, "n d"]
    labels: Int[np.ndarray, " n"] | None
    patients: Int[np.ndarray, " n"] | None
    """Numbers, where the data set knows patients."""


def of_split(run: Run, params: Params, split: str, most: int | None = None) -> Rows:
    """The rows of a split's images, or of `most` evenly spaced ones."""
    total = run.data.splits[split].n
    chosen = np.arange(total) if most is None else np.unique(np.linspace(0, total - 1, min(most, total)).astype(int))
    size = min(run.config.evaluation.batch_size, len(chosen))
    embed = jax.jit(lambda images, condition: embedding.embed(run.model, params, images, condition))
    columns: dict[str, list[np.ndarray]] = {}
    with bar(f"latents of {split}", len(chosen)) as show:
        for start in range(0, len(chosen), size):
            place = np.arange(start, start + size)
            batch = experiment.rows(run, split, chosen[np.minimum(place, len(chosen) - 1)])
            found = {"row": embed(batch["image"], condition_of(run.model, batch))}
            found |= {name: batch[name] for name in ("label", "patient") if name in batch}
            for name, values in found.items():
                columns.setdefault(name, []).append(np.asarray(values)[place < len(chosen)])
            show(min(start + size, len(chosen)), "")
    whole = {name: np.concatenate(parts) for name, parts in columns.items()}
    return Rows(chosen, whole["row"], whole.get("label"), whole.get("patient"))


class Plane(NamedTuple):
    """Points, and what each of the two axes is."""

    points: Float[np.ndarray, "n 2"]
    axes: tuple[str, str]


def plane(rows: Float[np.ndarray, "n d"], name: str = "pca") -> Plane:
    """Rows in two numbers each: the two directions of largest variance, or t-SNE (van der Maaten and Hinton 2008).

    The axes of t-SNE are no directions of the latents. What has no more than two rows, or two numbers, is laid out as it is.
    """
    from sklearn.decomposition import PCA  # slow to import
    from sklearn.manifold import TSNE

    if min(rows.shape) < 3:
        return Plane(rows[:, [0, -1]], ("first number", "last number"))
    if name == "tsne":
        points = TSNE(perplexity=min(30.0, (len(rows) - 1) / 3), init="pca", random_state=0).fit_transform(rows)
        return Plane(points, ("t-SNE, horizontal (no unit)", "t-SNE, vertical (no unit)"))
    return Plane(PCA(2, random_state=0).fit_transform(rows), ("first direction", "second direction"))


def fitted_probes(run: Run, params: Params, names: tuple[str, ...]) -> dict[str, Probe]:
    """Probes for the label by name, fitted to training images and chosen on those of validation.

    None where the training images are of one label, as those of a run on normal images (`data.normal`).
    """
    train, val = (_labelled(of_split(run, params, split, MOST)) for split in ("train", "val"))
    if len(np.unique(train.labels)) < 2:
        return {}
    return {name: probes.PROBES[name](train, val, len(run.data.label_names or ())) for name in names}


def measured(run: Run, params: Params) -> dict[str, Any]:
    """What each probe is worth on test images: `applications.probes.measure` by name; {} where there are no `fitted_probes`."""
    fitted = fitted_probes(run, params, tuple(probes.PROBES))
    test = _labelled(of_split(run, params, "test", MOST))
    return {name: probes.measure(probe, test) for name, probe in fitted.items()}


def _labelled(seen: Rows) -> Labelled:
    """Every image is a group of its own where patients are unknown."""
    assert seen.labels is not None  # the caller has looked
    return Labelled(seen.rows, seen.labels, seen.numbers if seen.patients is None else seen.patients)
