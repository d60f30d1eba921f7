"""What a trained run can show, as files: a PNG grid to look at and an NPZ of the same images to work with."""

from pathlib import Path

import jax
import numpy as np
from etils import epath
from jaxtyping import Float32, Int

from vaejax import experiment, report, samplers, studies
from vaejax.applications import reconstruction
from vaejax.errors import DataError
from vaejax.runs import Run

COLUMNS = 10
"""Images in a row of a grid of samples."""


def sample(
    run: Run,
    output: epath.Path,
    best: bool,
    n: int,
    seed: int,
    temperature: float,
    label: str | None = None,
    sampler: str = "prior",
) -> None:
    """Writes samples.png and samples.npz (`images` [n, h, w, c]): expected images of draws from the prior, or a mixture.

    Of a conditional model, all have the label asked for, or each the next one; `label` [n] is then in the file too.
    """
    trained, labels = experiment.restore(run, best), _labels(run, label, n)
    drawing = samplers.build(run, trained.params, sampler)
    images = report.draw_samples(run.model, trained.params, seed, n, temperature, labels, drawing)
    white = np.ones((-n % COLUMNS, *images.shape[1:]), np.float32)
    rows = np.concatenate([images, white]).reshape(-1, COLUMNS, *images.shape[1:])
    arrays = {"images": images} if labels is None else {"images": images, "label": labels}
    report.save(output, "samples", rows if n > COLUMNS else images[np.newaxis], arrays)


def reconstruct(run: Run, output: epath.Path, best: bool, split: str, n: int, seed: int) -> None:
    """Writes reconstructions.png (images above their reconstructions) and .npz (`images`, `reconstructions`, `index`)."""
    trained, batch = experiment.restore(run, best), experiment.rows(run, split, _choose(run, split, n, seed))
    images, restored = np.asarray(batch["image"]), report.draw_reconstructions(run.model, trained.params, batch)
    arrays = {"images": images, "reconstructions": restored, "index": np.asarray(batch["index"])}
    report.save(output, "reconstructions", report.pairs(images, restored), arrays)


def reconstruct_studies(run: Run, output: epath.Path, best: bool, path: str, identify: bool) -> list[str]:
    """Writes the reconstruction of every study in a file or folder, in its own geometry and units; see `write_studies`."""
    if run.model.classes is not None:
        raise DataError(f"--input={path}: the run is conditional, and nobody knows the labels. Take one that is not.")
    params = experiment.restore(run, best).params
    decoded = jax.jit(lambda images: reconstruction.reconstruct(run.model, params, images))

    def compute(images: Float32[np.ndarray, "b h w c"], index: Int[np.ndarray, " b"]) -> jax.Array:
        return decoded(experiment.outside(run, images, index)["image"])

    return write_studies(run, output, path, "reconstruction", compute, identify, units=True)


def write_studies(
    run: Run, output: epath.Path, path: str, name: str, compute: studies.Compute, identify: bool, units: bool = False
) -> list[str]:
    """Writes what `compute` makes of every study in a file or folder, in its own geometry, and studies.json.

    Args:
        run: whose images those of the studies are made like.
        output: the folder, made where it is absent.
        path: the file or folder.
        name: what is written, such as "reconstruction".
        compute: of the images of a batch.
        identify: whether DICOM results keep the patient and study of their source.
        units: whether the result is of [0, 1], and is to be in the units of the source.

    Returns:
        the ids of the studies, of which studies.json says where they lay.
    """
    folder, written = Path(output), dict[str, list[str]]()
    opened = studies.read(Path(path), run.config.data, run.data)
    try:
        for study, values in studies.results(opened, compute, run.config.evaluation.batch_size):
            placed = study.back(values)
            study.save(folder, study.units(placed) if units else placed, name, identify)
            written.setdefault(study.id, []).extend(study.paths)
    finally:
        if written:  # those before one that cannot be read, too
            studies.write_index(folder, written)
    return list(written)


def interpolate(run: Run, output: epath.Path, best: bool, split: str, n: int, seed: int, steps: int) -> None:
    """Writes interpolations.png (a line a row) and .npz (`images` [n, steps, h, w, c], `index` [n, 2] of the ends)."""
    trained, index = experiment.restore(run, best), _choose(run, split, 2 * n, seed)
    first, second = experiment.rows(run, split, index[:n]), experiment.rows(run, split, index[n:])
    lines = report.draw_lines(run.model, trained.params, first, second, steps)
    report.save(output, "interpolations", lines, {"images": lines, "index": index.reshape(2, n).T})


def _choose(run: Run, split: str, n: int, seed: int) -> Int[np.ndarray, " n"]:
    """The indices of `n` different images of a split."""
    size = run.data.splits[split].n
    if n > size:
        raise DataError(f"--n: {n} images are needed, and the split {split!r} has {size}. Ask for fewer.")
    return np.random.default_rng(seed).choice(size, n, replace=False)


def _labels(run: Run, label: str | None, n: int) -> Int[np.ndarray, " n"] | None:
    if run.model.classes is None:
        if label is not None:
            raise DataError(f"--label={label}: the run is not conditional. Train one with model.conditional=True.")
        return None
    if label is None:
        return np.arange(n) % run.model.classes
    names = run.data.label_names or ()
    if label not in names:
        raise DataError(f"--label={label}: expected one of {', '.join(names)}.")
    return np.full(n, names.index(label))
