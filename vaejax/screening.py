"""A run on normal images -> which other images are strange, with a promised share of false alarms: `anomaly.json` and more.

    {"notice", "split", "step", "score", "map", "alpha", "images", "by",
     "calibration": {"n", "threshold", "pixel_threshold"},
     "flagged": {"all" | "normal" | "anomalous": {"flagged", "n", "expected"}},
     "ranking": {score: {"auroc" | "average_precision": {"value", "low", "high"}}}, "reference": {"pca": {...}},
     "pixels": {"average_precision" | "dice": {...}}, "undefined": {score: why}, "cases": {title: [index]}}

anomaly.csv has a line an image: its index, p-value, whether it is flagged, and every score; anomaly_maps.npy the maps
`[n, h, w]` of `anomaly.map`, each pixel in units of its mean in the validation images. Images are ranked and flagged by
`anomaly.score`, which is part of the run and so was named before any test image was looked at. Thresholds come from the
calibration split, of normal images that chose neither weights nor checkpoint. "by" says what is calibrated, counted and
flagged: a patient, by its strangest image, where patients are known, else an image; a patient is anomalous where any of its
images is. Intervals are 95 % and by the same. "reference" is what the squared error of as many principal components as there
are latents is worth: something to compare with, and nothing to choose.
"""

import contextlib
import csv
import functools
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key
from sklearn import metrics as sklearn_metrics

from vaejax import calibration, evaluation, experiment, keys, metrics, resampling, runs, storage, training
from vaejax.applications import anomaly
from vaejax.batches import Batch
from vaejax.errors import DataError, FamilyError
from vaejax.models import Params, condition_of
from vaejax.progress import bar
from vaejax.runs import Run

SCORES = ("likelihood", "error", "ssim", "two_scale_ssim", "ssim_and_error", "rate", "restoration")
"""All of `anomaly.score`."""

CASES = 10
"""Images of each kind in the report."""

NOTICE = "Research use only. Not a medical device; nothing here may guide a diagnosis or a treatment."

DRAWS = 1_000
"""Resamples behind an interval."""

PIXEL_DRAWS = 200
"""Resamples behind an interval of pixels."""

BINS = 4_096
"""Steps in which the values of a map count for the average precision of pixels."""

Truth = Bool[np.ndarray, " n"]
"""Whether each image is anomalous."""

Linear = Callable[[Float[np.ndarray, "b h w c"]], Float[np.ndarray, " b"]]
"""Images -> the squared error of a linear reconstruction of each."""


class Screened(NamedTuple):
    """What is kept of a split: numbers an image, and the maps in a file."""

    values: dict[str, Float[np.ndarray, " n"]]
    quantile: float
    """Mean over images of what a share 1 - `anomaly.pixels` of a map's pixels stay below."""
    map: Float[np.ndarray, "h w"]
    """Mean map."""


class Normal(NamedTuple):
    """What normal images are like that chose neither weights nor checkpoint."""

    scores: Float[np.ndarray, " g"]
    """`anomaly.score` of every image of the calibration, or the largest of every patient."""
    by: str
    """What there is a score of: "image" or "patient"."""
    alpha: float
    """The promised share of false alarms."""
    threshold: float
    """Above it, a score is flagged."""
    pixel_threshold: float
    """What a share 1 - `anomaly.pixels` of a map's pixels stay below, a mean over images."""
    map: Float[np.ndarray, "h w"]
    """Mean map of the validation images, by which maps are divided."""


def screen(run: Run, split: str = "test", best: bool = False, alpha: float | None = None) -> dict[str, Any]:
    """Scores a split and writes `anomaly.json`, `anomaly.csv` and `anomaly_maps.npy`.

    Args:
        run: an open run with a calibration split.
        split: whose images to screen.
        best: take the checkpoint of lowest validation loss instead of the newest.
        alpha: promised share of false alarms; None: as configured.

    Returns:
        What `anomaly.json` holds.

    Raises:
        DataError: there is no calibration split, or too small a one.
        FamilyError: the model does not have the score.
    """
    config, alpha = run.config.anomaly, run.config.anomaly.alpha if alpha is None else alpha
    missing = undefined(run)
    names, trained = [name for name in SCORES if name not in missing], experiment.restore(run, best)
    if not run.model.vector:
        missing["pca"] = "the latents are not one vector, so that there is no number of components to compare with"
    with (
        training.explain_out_of_memory("evaluation.batch_size", run.config.evaluation.batch_size),
        storage.writing(run.directory / "anomaly_maps.npy") as maps,
    ):
        normal, linear = of_normal(run, trained.params, alpha), _linear(run)
        screened = _screened(run, trained.params, split, names, normal.map, linear, maps)
        groups = _groups(run, split)
        pixels = _pixels(run, split, maps, normal.pixel_threshold, groups) if config.masks else {}
    values, scores, truth = screened.values, screened.values[config.score], _truth(run, split)
    result = {
        "notice": NOTICE,
        "split": split,
        "step": trained.step,
        "score": config.score,
        "map": config.map,
        "alpha": alpha,
        "images": len(scores),
        "by": normal.by,
        "calibration": thresholds(normal),
        "flagged": _flagged(scores > normal.threshold, truth, groups, len(normal.scores), alpha),
        "ranking": {} if truth is None else {name: ranking(values[name], truth, groups) for name in names},
        "reference": {"pca": ranking(values["pca"], truth, groups)} if truth is not None and "pca" in values else {},
        "pixels": pixels,
        "undefined": missing,
        "cases": _cases(scores, truth),
    }
    chances = calibration.p_values(normal.scores, scores)
    runs.write_text(run.directory / "anomaly.csv", table({"index": range(len(scores))}, values, chances, normal, scores))
    runs.write_json(run.directory / "anomaly.json", result)
    return result


def of_normal(run: Run, params: Params, alpha: float | None = None) -> Normal:
    """Looks at the normal images that thresholds come from: of validation for the mean map, of the calibration for all else.

    Raises:
        DataError: there is no calibration split, or too small a one for `alpha` (None: as configured).
        FamilyError: the model does not have the score.
    """
    config, alpha = run.config.anomaly, run.config.anomaly.alpha if alpha is None else alpha
    _check(run, alpha, undefined(run))
    usual = _screened(run, params, "val", [config.map], None).map
    found = _screened(run, params, "calibration", [config.score, config.map], usual)
    scores = calibration.of_groups(found.values[config.score], _groups(run, "calibration"))
    return Normal(scores, _by(run), alpha, calibration.threshold(scores, alpha), found.quantile, usual)


def look(run: Run, params: Params, names: list[str], key: Key[Array, ""]) -> Callable[[Batch], dict[str, anomaly.Scores]]:
    """Batch -> what each of the scores of these names says of it."""
    seen = {name: jax.jit(functools.partial(_score, run, name)) for name in dict.fromkeys(names)}

    def of_batch(batch: Batch) -> dict[str, anomaly.Scores]:
        example_keys, condition = keys.of_examples(key, batch["index"]), condition_of(run.model, batch)
        return {name: score(params, batch["image"], example_keys, condition) for name, score in seen.items()}

    return of_batch


def rows_at_a_time(run: Run) -> int:
    """Images that are scored together: as configured, and as memory allows."""
    size = math.prod(run.model.image_shape) * (run.config.anomaly.samples if run.model.random else 1)
    return max(min(evaluation.pixels_at_a_time() // size, run.config.evaluation.batch_size), 1)


def table(
    columns: Mapping[str, Iterable[Any]],
    values: dict[str, Float[np.ndarray, " n"]],
    chances: Float[np.ndarray, " n"],
    normal: Normal,
    scores: Float[np.ndarray, " n"],
) -> str:
    """A line an image, comma-separated: what names it, its p-value, whether it is flagged, all values."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*columns, "p_value", "flagged", *values])
    for named, chance, score, numbers in zip(
        zip(*columns.values(), strict=True), chances, scores, zip(*values.values(), strict=True), strict=True
    ):
        flag = int(score > normal.threshold)
        writer.writerow([*named, f"{chance:.6g}", flag, *(f"{number:.6g}" for number in numbers)])
    return text.getvalue()


def _linear(run: Run) -> Linear | None:
    """The squared error of images from principal components; None where the latents are no vector."""
    if not run.model.vector:
        return None
    restored = evaluation.floor(evaluation.training_rows(run, run.config.evaluation.draw), run.model.vector)
    return lambda images: np.asarray(metrics.mse(jnp.asarray(images), jnp.asarray(restored(images))))


def _check(run: Run, alpha: float, missing: dict[str, str]) -> None:
    """Whether what is asked can be had, before anything is computed."""
    if "calibration" not in run.data.splits:
        raise DataError(
            "data.calibration_fraction=0: thresholds come from normal images set apart from the training. Train a run with a "
            f"larger one, so that at least {math.ceil(1 / alpha) - 1} {_by(run, 'train')}s are set apart for "
            f"anomaly.alpha={alpha:g}."
        )
    calibration.require(len(np.unique(_groups(run, "calibration"))), alpha, f"{_by(run)}s")
    for field, name in (("score", run.config.anomaly.score), ("map", run.config.anomaly.map)):
        if name in missing:
            raise FamilyError(
                f"anomaly.{field}={name!r}: not defined for this run: {missing[name]}. Choose one of "
                f"{', '.join(name for name in SCORES if name not in missing)}."
            )


def _by(run: Run, split: str = "calibration") -> str:
    """What images are taken together by: "patient" where the data set knows patients, else "image"."""
    return "patient" if "patient" in run.data.splits[split].columns else "image"


def _groups(run: Run, split: str) -> Int[np.ndarray, " n"]:
    """The patient of each image, where known; every other image is one of its own."""
    alone = -1 - np.arange(run.data.splits[split].n)
    patients = np.asarray(run.data.splits[split].columns.get("patient", alone))
    return np.where(patients < 0, alone, patients)


def thresholds(normal: Normal) -> dict[str, float]:
    """What anomaly.json says of the calibration."""
    return {"n": len(normal.scores), "threshold": normal.threshold, "pixel_threshold": normal.pixel_threshold}


def undefined(run: Run) -> dict[str, str]:
    """The scores that a run does not have, and why."""
    reasons = {name: anomaly.undefined(run.model, name) for name in SCORES}
    if run.config.objective.name == "vae_gan":
        reasons["likelihood"] = "trained against a discriminator, the likelihood is no longer fitted to the images"
    return {name: reason for name, reason in reasons.items() if reason}


def ranking(scores: Float[np.ndarray, " n"], truth: Truth, groups: Int[np.ndarray, " n"]) -> dict[str, dict[str, float]]:
    """How well scores put anomalous images before normal ones, with 95 % intervals; {} where all are of one kind."""
    if truth.all() or not truth.any():
        return {}
    kinds = {"auroc": sklearn_metrics.roc_auc_score, "average_precision": sklearn_metrics.average_precision_score}

    def statistic(measure: Callable[..., float], rows: Int[np.ndarray, " rows"]) -> float:
        both = truth[rows].any() and not truth[rows].all()
        return float(measure(truth[rows], scores[rows])) if both else math.nan

    return {name: resampling.estimate(functools.partial(statistic, measure), groups, DRAWS) for name, measure in kinds.items()}


def _screened(
    run: Run,
    params: Params,
    split: str,
    names: list[str],
    usual: Float[np.ndarray, "h w"] | None,
    linear: Linear | None = None,
    file: Path | None = None,
) -> Screened:
    """One pass over a split; the maps of `anomaly.map` go to a file as they come, so that memory does not grow with them."""
    n, shape, settings = run.data.splits[split].n, run.model.image_shape[:2], run.config.anomaly
    values: dict[str, list[np.ndarray]] = {}
    quantiles, total = [], np.zeros(shape)
    with bar(f"screening {split}", n) as show, _maps(file, (n, *shape)) as keep:
        for batch, scores in _passed(run, params, split, names):
            for name, found in scores.items():
                values.setdefault(name, []).append(np.asarray(found.value, np.float64))
            if linear:
                values.setdefault("pca", []).append(linear(batch["image"]))
            raw = scores[settings.map].map
            maps = np.asarray(raw if usual is None else anomaly.relative(raw, jnp.asarray(usual)))
            total += maps.sum(axis=0, dtype=np.float64)
            quantiles.append(np.quantile(maps, 1.0 - settings.pixels, axis=(1, 2)))
            keep(maps)
            show(int(batch["index"][-1]) + 1, "")
    joined = {name: np.concatenate(parts) for name, parts in values.items()}
    require_numbers(joined, split)
    return Screened(joined, float(np.concatenate(quantiles).mean()), (total / n).astype(np.float32))


@contextlib.contextmanager
def _maps(file: Path | None, shape: tuple[int, ...]) -> Iterator[Callable[[Float[np.ndarray, "b h w"]], None]]:
    """What maps are given to, in order, for an .npy file; a file that is mapped into memory would count as memory."""
    if file is None:
        yield lambda maps: None
        return
    with file.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})

        def write(maps: Float[np.ndarray, "b h w"]) -> None:
            stream.write(np.asarray(maps, "<f4").tobytes())

        yield write


def _passed(run: Run, params: Params, split: str, names: list[str]) -> Iterator[tuple[Batch, dict[str, anomaly.Scores]]]:
    """The rows of a split that count, batch by batch, with their scores."""
    rows = min(rows_at_a_time(run), run.data.splits[split].n)
    seen = look(run, params, names, keys.stream(jax.random.key(run.config.evaluation.draw), f"anomaly of {split}"))
    for batch in experiment.evaluation_batches(run, split, rows, run.config.evaluation.draw):
        yield jax.tree.map(lambda leaf: np.asarray(leaf)[batch["mask"]], (dict(batch), seen(batch)))  # noqa: B023  # used at once


def _score(run: Run, name: str, params: Params, images: Any, example_keys: Any, condition: Any) -> anomaly.Scores:
    return anomaly.score(run.model, params, images, example_keys, name, run.config.anomaly, condition)


def require_numbers(values: Mapping[str, Float[np.ndarray, " n"]], split: str) -> None:
    """Raises DataError where a score is no number for an image of a split, or of a study by its id."""
    for name, scores in values.items():
        if not np.isfinite(scores).all():
            raise DataError(
                f"anomaly.score={name!r}: expected a number for every image of {split}, found none for index "
                f"{int(np.argmin(np.isfinite(scores)))}. Look at that image, or choose another score."
            )


def _truth(run: Run, split: str) -> Truth | None:
    """Which images are anomalous, by label or else by mask; None where nobody knows."""
    if run.config.data.normal:
        names = run.data.label_names or ()
        return ~np.isin(run.data.splits[split].columns["label"], [names.index(name) for name in run.config.data.normal])
    return np.concatenate([masks.any(axis=(1, 2)) for masks in _masks(run, split)]) if run.config.anomaly.masks else None


def _masks(run: Run, split: str) -> Iterator[Bool[np.ndarray, "b h w"]]:
    """What is anomalous in the images of a split, batch by batch."""
    for batch in experiment.evaluation_batches(run, split, min(run.config.evaluation.batch_size, run.data.splits[split].n)):
        if "segmentation" not in batch:
            raise DataError("anomaly.masks=True: the images have no masks. Set data.masks, or anomaly.masks=False.")
        yield np.asarray(batch["segmentation"])[batch["mask"]].reshape(-1, *run.model.image_shape[:2]) > 0


def _pixels(run: Run, split: str, file: Path, threshold: float, groups: Int[np.ndarray, " n"]) -> dict[str, dict[str, float]]:
    """How well the maps point at the masks, pixels of all images together.

    What is kept are counts a resample, so that memory does not grow with the images. For the average precision the pixels of a
    map count in `BINS` steps of less than 0.5 %.
    """
    place = np.unique(groups, return_inverse=True)[1]
    times = np.concatenate([np.ones((1, place.max() + 1)), resampling.drawn(groups, PIXEL_DRAWS)])  # first, all as they are
    counts, above = np.zeros((len(times), 2, BINS)), np.zeros((len(times), 2, 2))
    maps, masks = _kept(file, run.model.image_shape[:2]), _masks(run, split)
    for image, pixels, mask in zip(place, maps, (mask for batch in masks for mask in batch), strict=True):
        weight = times[:, image, np.newaxis, np.newaxis]
        counts += weight * np.bincount((_bin(pixels) + BINS * mask).ravel(), minlength=2 * BINS).reshape(2, BINS)
        over = pixels > threshold
        above += weight * np.array([[np.count_nonzero(over & m), np.count_nonzero(~over & m)] for m in (~mask, mask)])
    with np.errstate(invalid="ignore"):
        measures = {"average_precision": _average_precision(counts), "dice": 2 * above[:, 1, 0] / _marked(above)}
    return {name: _estimate(values) for name, values in measures.items()}


def _marked(above: Float[np.ndarray, "draws 2 2"]) -> Float[np.ndarray, " draws"]:
    """Pixels of the masks and pixels above the threshold."""
    return above[:, 1].sum(axis=-1) + above[:, :, 0].sum(axis=-1)


def _bin(pixels: Float[np.ndarray, "h w"]) -> Int[np.ndarray, "h w"]:
    """Values of a relative map in steps of 1/160 of a doubling, from 1/4096 on."""
    return np.clip(160 * (np.log2(np.maximum(pixels, 2.0**-12)) + 12), 0, BINS - 1).astype(np.int64)


def _average_precision(counts: Float[np.ndarray, "draws 2 bins"]) -> Float[np.ndarray, " draws"]:
    """The mean over the pixels of the masks of the precision at their value, as scikit-learn has it; NaN without such."""
    other, marked = np.moveaxis(np.cumsum(counts[..., ::-1], axis=-1), 1, 0)
    precision = marked / np.maximum(marked + other, 1.0)
    return (counts[:, 1, ::-1] * precision).sum(axis=-1) / marked[:, -1]


def _estimate(values: Float[np.ndarray, " draws"]) -> dict[str, float]:
    """What `resampling.estimate` gives, of the value of all images and of every resample."""
    low, high = np.nanquantile(values[1:], [0.025, 0.975])
    return {"value": float(values[0]), "low": float(low), "high": float(high)}


def _kept(file: Path, shape: tuple[int, ...]) -> Iterator[Float[np.ndarray, "h w"]]:
    """The maps of a file, one after the other, without mapping it into memory."""
    with file.open("rb") as stream:
        np.lib.format.read_magic(stream)
        n = np.lib.format.read_array_header_1_0(stream)[0][0]
        for _ in range(n):
            yield np.fromfile(stream, "<f4", math.prod(shape)).reshape(shape)


def _flagged(
    flags: Bool[np.ndarray, " n"], truth: Truth | None, groups: Int[np.ndarray, " n"], n: int, alpha: float
) -> dict[str, Any]:
    """How many patients (or images) are flagged, and of each kind where known; of normal ones, how many are to be expected.

    A patient is flagged, or anomalous, where one image is; n were calibrated with.
    """
    flags = calibration.of_groups(flags, groups) > 0
    if truth is None:
        return {"all": {"flagged": int(flags.sum()), "n": len(flags)}}
    truth = calibration.of_groups(truth, groups) > 0
    kinds = {"normal": flags[~truth], "anomalous": flags[truth]}
    counts: dict[str, Any] = {name: {"flagged": int(part.sum()), "n": len(part)} for name, part in kinds.items()}
    counts["normal"]["expected"] = calibration.expected_flags(n, len(kinds["normal"]), alpha)
    return counts


def _cases(scores: Float[np.ndarray, " n"], truth: Truth | None) -> dict[str, list[int]]:
    """Images by rank, none of them picked: the ends of the list, of each kind where known."""
    order = np.argsort(-scores, kind="stable")
    kinds = {"": order} if truth is None else {" normal": order[~truth[order]], " anomalous": order[truth[order]]}
    ends = {"strangest": slice(0, CASES), "least strange": slice(-1, -CASES - 1, -1)}
    return {f"{end}{kind}": rows[part].tolist() for kind, rows in kinds.items() if len(rows) for end, part in ends.items()}
