"""What a run makes of files from anywhere, in their place: NIfTI with the affine of the source, a derived DICOM series, a PNG
with the notice in its margin. Tables and pictures beside them have ids, and studies.json alone says whose they are.

A study is a file or a series (`vaejax.studies`). Every slice of a volume is an image to the model; pictures show the middle.
"""

import functools
import itertools
from collections.abc import Callable, Set
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Bool, Float, Int, Shaped

from vaejax import calibration, experiment, gallery, keys, report, runs, screening, segmentation, storage, studies, training
from vaejax.applications import anomaly as scoring
from vaejax.applications import embedding, generation, inpainting, reconstruction
from vaejax.applications import segmentation as segmenting
from vaejax.batches import Batch
from vaejax.datasets import stacks
from vaejax.errors import DataError
from vaejax.models import Params
from vaejax.runs import Run
from vaejax.studies import Study

Numbers = dict[str, dict[str, Shaped[np.ndarray, "n ..."]]]
"""By the id of a study, what is no image: numbers a slice, by name."""


def write_studies(
    run: Run,
    output: epath.Path,
    path: str,
    compute: studies.Compute,
    identify: bool = False,
    units: Set[str] = frozenset(),
    batch_size: int | None = None,
    missing: Callable[[Study], Bool[np.ndarray, "..."]] | None = None,
) -> Numbers:
    """Writes what `compute` makes of every study in a file or folder, in its own geometry, and studies.json.

    Args:
        run: whose images those of the studies are made like.
        output: the folder, made where it is absent.
        path: the file or folder.
        compute: of some slices of a study. Images and maps are written, as ID_NAME; numbers are returned.
        identify: whether DICOM results keep the patient and study of their source.
        units: of what `compute` gives, what is of [0, 1], and is to be in the units of the source.
        batch_size: slices at a time; None: `evaluation.batch_size`.
        missing: of a study, on its grid: elsewhere, what is of `units` is the source, as it was, and all else 0. None: all is.

    Returns:
        of each study, of which studies.json says where it lay, the numbers, and `wanted`: the slices a training would take.
    """
    _require_disk(output, path)
    folder, written, numbers = Path(output), dict[str, list[str]](), Numbers()
    folder.mkdir(parents=True, exist_ok=True)
    opened = studies.read(Path(path), run.config.data, run.data)
    try:
        for study, values in studies.results(opened, compute, batch_size or run.config.evaluation.batch_size):
            where = None if missing is None else missing(study)
            for name in [name for name, value in values.items() if value.ndim > 2]:
                placed = study.back(values.pop(name))
                placed = study.units(placed) if name in units else placed
                if where is not None:
                    placed = _completed(placed, study.voxels if name in units else np.zeros_like(placed), where)
                study.save(folder, placed, name, identify)
            written.setdefault(study.id, []).extend(study.paths)
            numbers[study.id] = values | {"wanted": study.wanted}
    finally:
        if written:  # those before one that cannot be read, too
            studies.write_index(folder, written)
    return numbers


def _completed(placed: np.ndarray, known: np.ndarray, missing: Bool[np.ndarray, "..."]) -> np.ndarray:
    """What is known, but where pixels are missing; all of what is made of a source that has other channels."""
    if placed.shape != known.shape:
        return placed
    missing = missing.reshape(missing.shape + (1,) * (placed.ndim - missing.ndim))
    return np.where(missing, placed, known).astype(placed.dtype)


def _batch(run: Run, study: Study, index: Int[np.ndarray, " b"]) -> Batch:
    return experiment.outside(run, study.images[index], index)


def _require_disk(output: epath.Path, *paths: str) -> None:
    """Raises StorageError where files or the folder of results are in a cloud store."""
    for what, place in (*(("--input", path) for path in paths), ("the folder of results", output)):
        storage.require_disk(what, place, "studies and the list of their names lie on a disk")


def _opened(run: Run, best: bool, path: str) -> experiment.Trained:
    """The weights, and their step; of a run that need not be told a label."""
    if run.model.classes is not None:
        raise DataError(f"--input={path}: the run is conditional, and nobody knows the labels. Take one that is not.")
    return experiment.restore(run, best)


def _slices(found: Numbers) -> dict[str, np.ndarray]:
    """The columns of a table that name its rows, a slice each: the `id` of its study, and its number."""
    sizes = [len(numbers["wanted"]) for numbers in found.values()]
    return {"id": np.repeat(list(found), sizes), "slice": np.concatenate([np.arange(size) for size in sizes])}


def _middles(run: Run, path: str, most: int) -> tuple[list[str], Batch]:
    """Ids and middle slices of the first studies in a file or folder, as evaluation sees images."""
    opened = itertools.islice(studies.read(Path(path), run.config.data, run.data), most)
    found = [(study.id, len(study.images) // 2, study.images[len(study.images) // 2]) for study in opened]
    ids, index, images = zip(*found, strict=True)
    return list(ids), experiment.outside(run, np.stack(images), np.array(index))


# --- images


def reconstruct(run: Run, output: epath.Path, best: bool, path: str, identify: bool) -> Numbers:
    """Writes the reconstruction of every study, in its units."""
    params = _opened(run, best, path).params
    decoded = jax.jit(lambda images: reconstruction.reconstruct(run.model, params, images))

    def compute(study: Study, index: Int[np.ndarray, " b"]) -> dict[str, Any]:
        return {"reconstruction": decoded(_batch(run, study, index)["image"])}

    return write_studies(run, output, path, compute, identify, {"reconstruction"})


def sample(
    run: Run,
    output: epath.Path,
    best: bool,
    path: str,
    n: int,
    seed: int,
    temperature: float,
    label: str | None,
    identify: bool,
) -> Numbers:
    """Writes `n` images near every study (`applications.generation.near`) as sample1, sample2, ..., in its units.

    The slices of a volume share their draws, so that its samples differ as wholes. samples.png has a row each of the first ten
    studies: its middle slice, and those of its samples; samples.npz has their `images` [studies, n, h, w, c] and `id`.

    Raises:
        DataError: a conditional run, and no label; or a label, and another run.
        FamilyError: the latents are codes.
    """
    if (run.model.classes is None) != (label is None):
        wanted = (
            "a conditional run is told the label of the images: add --label" if label is None else "the run is not conditional"
        )
        raise DataError(f"--near={path}: {wanted}.")
    params, number = experiment.restore(run, best).params, None if label is None else gallery.label_of(run, label, "--label")
    key = keys.stream(jax.random.key(seed), "samples near an image")

    @jax.jit
    def near(images: jax.Array) -> jax.Array:
        shared = keys.of_examples(key, jnp.zeros(len(images), jnp.int32))
        condition = None if number is None else jnp.full(len(images), number)
        return generation.near(run.model, params, images, shared, n, temperature, condition)

    def compute(study: Study, index: Int[np.ndarray, " b"]) -> dict[str, Any]:
        return {f"sample{i + 1}": one for i, one in enumerate(near(_batch(run, study, index)["image"]))}

    found = write_studies(run, output, path, compute, identify, {f"sample{i + 1}" for i in range(n)})
    ids, batch = _middles(run, path, gallery.COLUMNS)
    drawn = np.moveaxis(np.asarray(near(batch["image"])), 0, 1)
    shown = np.concatenate([np.asarray(batch["image"])[:, np.newaxis], drawn], axis=1)
    report.save(output, "samples", shown, {"images": drawn, "id": np.array(ids)})
    return found


def inpaint(run: Run, output: epath.Path, best: bool, path: str, mask: str, draws: int, seed: int, identify: bool) -> Numbers:
    """Writes of every study its expected image where pixels are missing, in its units, `draws` images, and the uncertainty.

    ID_inpainted and ID_draw1, ... have the source's own pixels where none are missing; ID_sd is the standard deviation, in
    units of the image range, 0 there. Slices of which nothing is missing are left as they are. `mask` is a file or folder on
    the grid of the source, not 0 where pixels are missing; else a region by name (`applications.inpainting.region`) of the
    images as the model sees them. The model sees no pixel that is made of a missing one, of its own slice or of a neighbour in
    its block. What was cropped away, and is missing, is NaN, or 0 where the source holds whole numbers.

    Returns:
        `acceptance` and `scale_reduction` of each slice (see `Inpainted`); NaN where nothing is missing.
    """
    gallery.require_likelihood(run)
    params = _opened(run, best, path).params
    is_file = Path(mask).exists() and not inpainting.is_region(mask)
    region = None if is_file else inpainting.region(mask, run.model.image_shape)

    def missing(study: Study) -> tuple[Bool[np.ndarray, "n h w"], Bool[np.ndarray, "..."]]:
        """As the model sees it, and on the grid of the source."""
        if region is None:
            return _missing(run, study, mask)
        everywhere = np.broadcast_to(region, study.images.shape[:3])
        return everywhere, study.back(everywhere)

    def compute(study: Study, index: Int[np.ndarray, " b"]) -> dict[str, Any]:
        own, rows = missing(study)[0], np.unique(index)
        unseen = stacks.blocks_of(own[..., np.newaxis].astype(np.uint8), run.config.data.block).max(axis=-1) > 0
        return _inpainted(run, params, study, index, rows[own[rows].any(axis=(1, 2))], unseen, seed, draws)

    units = {"inpainted", *(f"draw{i + 1}" for i in range(draws))}
    return write_studies(run, output, path, compute, identify, units, missing=lambda study: missing(study)[1])


def _missing(run: Run, study: Study, mask: str) -> tuple[Bool[np.ndarray, "n h w"], Bool[np.ndarray, "..."]]:
    """Where a file is not 0: the pixels of the images made of that, and those of the source."""
    drawn = studies.mask(Path(mask), study, run.config.data)
    under = study.under(drawn)
    if not under.any() or under.all():
        raise DataError(f"--mask={mask}: expected some pixels that are not 0, and some that are, found {under.mean():.0%}.")
    return under, study.stack.unstacked(drawn)


def _inpainted(
    run: Run,
    params: Params,
    study: Study,
    index: Int[np.ndarray, " b"],
    rows: Int[np.ndarray, " r"],
    missing: Bool[np.ndarray, "n h w"],
    seed: int,
    draws: int,
) -> dict[str, np.ndarray]:
    """The slices `index`, of which those of `rows` are to be completed."""
    images = np.asarray(_batch(run, study, index)["image"])
    values = {name: images.copy() for name in ("inpainted", *(f"draw{i + 1}" for i in range(draws)))}
    values |= {"sd": np.zeros_like(images)} | {name: np.full(len(index), np.nan) for name in ("acceptance", "scale_reduction")}
    if not len(rows):
        return values
    found = report.draw_inpainted(run.model, params, _batch(run, study, rows), missing[rows], seed, draws)
    parts = {"inpainted": found.mean, "sd": found.sd, "acceptance": found.acceptance, "scale_reduction": found.scale_reduction}
    for name, part in (parts | {f"draw{i + 1}": one for i, one in enumerate(found.draws)}).items():
        known = np.isin(index, rows)
        values[name][known] = part[np.searchsorted(rows, index[known])]
    return values


def interpolate(run: Run, output: epath.Path, best: bool, paths: list[str], steps: int) -> None:
    """Writes interpolations.png and .npz (`images` [1, steps, h, w, c], `id` [1, 2]): the line between two given images.

    Of volumes, between their middle slices.

    Raises:
        DataError: one of the paths has several studies.
        StorageError: one of them, or the folder, is in a cloud store.
    """
    _require_disk(output, *paths)
    params = _opened(run, best, paths[0]).params
    ends = [_middles(run, path, 2) for path in paths]
    for path, (ids, _) in zip(paths, ends, strict=True):
        if len(ids) > 1:
            raise DataError(
                f"--input={path}: expected one image or volume, found several. Name a file, or the folder of a series."
            )
    lines = report.draw_lines(run.model, params, ends[0][1], ends[1][1], steps)
    report.save(output, "interpolations", lines, {"images": lines, "id": np.array([[ids[0] for ids, _ in ends]])})
    studies.write_index(Path(output), {ids[0]: [Path(path).name] for path, (ids, _) in zip(paths, ends, strict=True)})


def explain(
    run: Run, output: epath.Path, best: bool, path: str, ends: tuple[str, str], n: int, steps: int, identify: bool
) -> list[float]:
    """Writes of every study ID_explained, moved from one label to another, in its units, and ID_change, what that changes.

    The change is from its reconstruction on, in units of the image range. explanation.png and .npz show the middle slices of
    the first `n` studies, as `gallery.explain` shows the images of a split, with `id` instead of `index`.

    Returns:
        The mean probability of the second label at every step, over the images shown.
    """
    params = experiment.restore(run, best).params
    way = gallery.direction(run, params, ends)
    moved = jax.jit(lambda images: embedding.walk(run.model, params, images, way, jnp.array([0.0, 1.0]))[0])

    def compute(study: Study, index: Int[np.ndarray, " b"]) -> dict[str, Any]:
        start, end = np.moveaxis(np.asarray(moved(_batch(run, study, index)["image"])), 1, 0)
        return {"explained": end, "change": end - start}

    write_studies(run, output, path, compute, identify, {"explained"})
    ids, batch = _middles(run, path, n)
    found = gallery.walks(run, params, way, ends, np.asarray(batch["image"]), steps)
    report.save(output, "explanation", *found.shown({"id": np.array(ids)}))
    return [float(value) for value in found.probability.mean(axis=0)]


# --- maps and masks


def anomaly(run: Run, output: epath.Path, best: bool, path: str, alpha: float | None, identify: bool) -> dict[str, Any]:
    """Writes of every study ID_anomaly, its map, ID_anomalous, where that is beyond the threshold, and p-values.

    Maps are those of `vaejax.screening`: each pixel in units of its mean in normal images. anomaly.csv has a line a slice: its
    study's id, its number, whether it is `counted` (a training would take it: `data.slice_range`, `data.slice_content`),
    p-value, whether it is flagged, every score. anomaly.json, which is returned, has a p-value of every study:

        {"notice", "step", "score", "map", "alpha", "by", "calibration": {"n", "threshold", "pixel_threshold"},
         "studies": {id: {"images", "counted", "p_value", "flagged"}}, "undefined": {score or id: why}}

    It is from the calibration split of the run: where that is by patient, the p-value of the strangest counted slice; where it
    is by image, the smallest p-value times the number of counted slices (Bonferroni), since no study is calibrated as a whole.

    Raises:
        DataError: as `screening.of_normal`; or a conditional run.
        FamilyError: as `screening.of_normal`.
    """
    config, trained, missing = run.config.anomaly, _opened(run, best, path), screening.undefined(run)
    names = [name for name in screening.SCORES if name not in missing]
    with training.explain_out_of_memory("evaluation.batch_size", run.config.evaluation.batch_size):
        normal = screening.of_normal(run, trained.params, alpha)
        key = keys.stream(jax.random.key(run.config.evaluation.draw), "anomaly of files")
        compute = functools.partial(_scored, run, screening.look(run, trained.params, names, key), normal)
        found = write_studies(run, output, path, compute, identify, batch_size=screening.rows_at_a_time(run))
    for name, numbers in found.items():
        counted = {score: np.where(numbers["wanted"], numbers[score], 0.0) for score in names}
        screening.require_numbers(counted, f"study {name}")
    verdicts = {name: _verdict(numbers, normal, config.score) for name, numbers in found.items()}
    result = {
        "notice": screening.NOTICE,
        "step": trained.step,
        "score": config.score,
        "map": config.map,
        "alpha": config.alpha if alpha is None else alpha,
        "by": normal.by,
        "calibration": screening.thresholds(normal),
        "studies": verdicts,
        "undefined": missing
        | {name: "no slice that a training would take" for name in found if not found[name]["wanted"].any()},
    }
    runs.write_text(output / "anomaly.csv", _table(found, names, normal, config.score))
    runs.write_json(output / "anomaly.json", result)
    return result


def _scored(
    run: Run,
    look: Callable[[Batch], dict[str, scoring.Scores]],
    normal: screening.Normal,
    study: Study,
    index: Int[np.ndarray, " b"],
) -> dict[str, Any]:
    scores = look(_batch(run, study, index))
    maps = np.asarray(scoring.relative(scores[run.config.anomaly.map].map, jnp.asarray(normal.map)))
    values = {name: np.asarray(score.value, np.float64) for name, score in scores.items()}
    return {"anomaly": maps, "anomalous": maps > normal.pixel_threshold} | values


def _verdict(numbers: dict[str, np.ndarray], normal: screening.Normal, score: str) -> dict[str, Any]:
    """Of a study, by the slices that count."""
    scores = numbers[score][numbers["wanted"]]
    counts = {"images": len(numbers["wanted"]), "counted": len(scores)}
    if not len(scores):
        return counts | {"p_value": None, "flagged": None}
    chance = float(calibration.p_values(normal.scores, scores).min())
    if normal.by == "image":
        chance = min(1.0, chance * len(scores))
    return counts | {"p_value": chance, "flagged": chance <= normal.alpha + 1e-9}


def _table(found: Numbers, names: list[str], normal: screening.Normal, score: str) -> str:
    """anomaly.csv."""
    values = {name: np.concatenate([numbers[name] for numbers in found.values()]) for name in names}
    columns = _slices(found) | {"counted": np.concatenate([numbers["wanted"] for numbers in found.values()]).astype(int)}
    return screening.table(columns, values, calibration.p_values(normal.scores, values[score]), normal, values[score])


def segment(run: Run, output: epath.Path, best: bool, path: str, n: int, identify: bool) -> Numbers:
    """Writes of every study ID_segmentation, the class of every pixel, and segmentations.png: middle slices of the first `n`.

    Raises:
        FamilyError: the run is no segmenter.
    """
    segmentation.require(run)
    params = experiment.restore(run, best).params
    guess = jax.jit(lambda images: segmenting.segment(run.model, params, images))

    def compute(study: Study, index: Int[np.ndarray, " b"]) -> dict[str, Any]:
        return {"segmentation": np.asarray(guess(_batch(run, study, index)["image"])).astype(np.uint8)}

    found = write_studies(run, output, path, compute, identify)
    images = np.asarray(_middles(run, path, n)[1]["image"])
    report.save_picture(
        output, "segmentations", report.grid(np.stack([report.rgb(images), report.coloured(images, np.asarray(guess(images)))]))
    )
    return found


# --- numbers


def embed(run: Run, output: epath.Path, best: bool, path: str) -> dict[str, Any]:
    """Writes latents.csv and .parquet, a row a slice: the `id` of its study, its number, and what `embedding.embed` gives.

    Returns:
        What embedding.json has: `{"step", "studies", "images", "numbers"}`.
    """
    trained = _opened(run, best, path)
    embedded = jax.jit(lambda images: embedding.embed(run.model, trained.params, images))
    found = write_studies(run, output, path, lambda study, index: {"row": embedded(_batch(run, study, index)["image"])})
    rows: Float[np.ndarray, "n d"] = np.concatenate([numbers["row"] for numbers in found.values()])
    gallery.write_table(output, _slices(found), embedding.names(run.model, trained.params), rows)
    result = {"step": trained.step, "studies": len(found), "images": len(rows), "numbers": rows.shape[1]}
    runs.write_json(output / "embedding.json", result)
    return result
