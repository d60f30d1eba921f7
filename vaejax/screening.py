"""A run on normal images -> which other images are strange, with a promised share of false alarms: `anomaly.json` and more.

    {"notice", "split", "step", "score", "map", "alpha", "images", "calibration": {"n", "threshold", "pixel_threshold"},
     "flagged": {"all" | "normal" | "anomalous": {"flagged", "n", "expected"}},
     "ranking": {score: {"auroc" | "average_precision": {"value", "low", "high"}}},
     "pixels": {"average_precision" | "dice": {...}}, "undefined": {score: why}, "cases": {title: [index]}}

anomaly.csv has a line an image: its index, p-value, whether it is flagged, and every score; anomaly_maps.npy the maps
`[n, h, w]` of `anomaly.map`, each pixel in units of its mean in the validation images. Images are ranked and flagged by
`anomaly.score`, which is part of the run and so was named before any test image was looked at. Thresholds come from the
calibration split, of normal images that chose neither weights nor checkpoint. Intervals are 95 % and by patient where
patients are known, else by image.
"""

import csv
import functools
import io
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Bool, Float, Int
from sklearn import metrics as sklearn_metrics

from vaejax import calibration, evaluation, experiment, keys, resampling, runs, training
from vaejax.applications import anomaly
from vaejax.batches import Batch
from vaejax.errors import DataError, FamilyError
from vaejax.models import Params, condition_of
from vaejax.progress import bar
from vaejax.runs import Run

SCORES = ("likelihood", "error", "ssim", "two_scale_ssim", "rate", "restoration")
"""All of `anomaly.score`."""

CASES = 10
"""Images of each kind in the report."""

NOTICE = "Research use only. Not a medical device; nothing here may guide a diagnosis or a treatment."

DRAWS = 1_000
"""Resamples behind an interval."""

PIXEL_DRAWS = 200
"""Resamples behind an interval of pixels, each of which sorts them all."""

Truth = Bool[np.ndarray, " n"]
"""Whether each image is anomalous."""


class Screened(NamedTuple):
    """What is kept of a split: numbers an image, and the maps in a file."""

    values: dict[str, Float[np.ndarray, " n"]]
    columns: dict[str, Int[np.ndarray, " n"]]
    """Label and patient where known."""
    quantile: float
    """Mean over images of what a share 1 - `anomaly.pixels` of a map's pixels stay below."""
    map: Float[np.ndarray, "h w"]
    """Mean map."""


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
    _check(run, alpha, missing)
    names, trained = [name for name in SCORES if name not in missing], experiment.restore(run, best)
    with training.explain_out_of_memory("evaluation.batch_size", run.config.evaluation.batch_size):
        usual = _screened(run, trained.params, "val", [config.map], None).map
        normal = _screened(run, trained.params, "calibration", [config.score, config.map], usual)
        screened = _screened(run, trained.params, split, names, usual, run.directory / "anomaly_maps.npy")
    scores, strangest = screened.values[config.score], calibration.threshold(normal.values[config.score], alpha)
    truth, groups = _truth(run, split, screened), _groups(screened, len(scores))
    result = {
        "notice": NOTICE,
        "split": split,
        "step": trained.step,
        "score": config.score,
        "map": config.map,
        "alpha": alpha,
        "images": len(scores),
        "calibration": {"n": run.data.splits["calibration"].n, "threshold": strangest, "pixel_threshold": normal.quantile},
        "flagged": _flagged(scores > strangest, truth, run.data.splits["calibration"].n, alpha),
        "ranking": {} if truth is None else {name: ranking(screened.values[name], truth, groups) for name in names},
        "pixels": _pixels(run, split, normal.quantile, groups) if config.masks else {},
        "undefined": missing,
        "cases": _cases(scores, truth),
    }
    chances = calibration.p_values(normal.values[config.score], scores)
    runs.write_text(run.directory / "anomaly.csv", _table(screened.values, chances, scores > strangest))
    runs.write_json(run.directory / "anomaly.json", result)
    return result


def _check(run: Run, alpha: float, missing: dict[str, str]) -> None:
    """Whether what is asked can be had, before anything is computed."""
    if "calibration" not in run.data.splits:
        raise DataError(
            "data.calibration_fraction=0: thresholds come from normal images set apart from the training. Train a run with a "
            f"larger one, so that at least {math.ceil(1 / alpha) - 1} images are set apart for anomaly.alpha={alpha:g}."
        )
    calibration.require(run.data.splits["calibration"].n, alpha)
    for field, name in (("score", run.config.anomaly.score), ("map", run.config.anomaly.map)):
        if name in missing:
            raise FamilyError(
                f"anomaly.{field}={name!r}: not defined for this run: {missing[name]}. Choose one of "
                f"{', '.join(name for name in SCORES if name not in missing)}."
            )


def _groups(screened: Screened, n: int) -> Int[np.ndarray, " n"]:
    """The patient of each image, where known; every other image is one of its own."""
    alone = -1 - np.arange(n)
    patients = screened.columns.get("patient", alone)
    return np.where(patients < 0, alone, patients)


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


def dice(maps: Bool[np.ndarray, "n h w"], masks: Bool[np.ndarray, "n h w"]) -> float:
    """Dice coefficient of all pixels together."""
    return float(sklearn_metrics.f1_score(masks.ravel(), maps.ravel(), zero_division=0.0))


def _screened(
    run: Run,
    params: Params,
    split: str,
    names: list[str],
    usual: Float[np.ndarray, "h w"] | None,
    file: epath.Path | None = None,
) -> Screened:
    """One pass over a split; the maps of `anomaly.map` go to a file as they come, so that memory does not grow with them."""
    n, shape, settings = run.data.splits[split].n, run.model.image_shape[:2], run.config.anomaly
    kept = None if file is None else np.lib.format.open_memmap(file, "w+", np.float32, (n, *shape))
    values: dict[str, list[np.ndarray]] = {}
    columns: dict[str, list[np.ndarray]] = {}
    quantiles, total = [], np.zeros(shape)
    with bar(f"screening {split}", n) as show:
        for batch, scores in _passed(run, params, split, list(dict.fromkeys(names))):
            for name, found in scores.items():
                values.setdefault(name, []).append(np.asarray(found.value, np.float64))
            for name in batch.keys() & {"label", "patient"}:
                columns.setdefault(name, []).append(batch[name])
            raw = scores[settings.map].map
            maps = np.asarray(raw if usual is None else anomaly.relative(raw, jnp.asarray(usual)))
            total += maps.sum(axis=0, dtype=np.float64)
            quantiles.append(np.quantile(maps, 1.0 - settings.pixels, axis=(1, 2)))
            if kept is not None:
                kept[batch["index"]] = maps
            show(int(batch["index"][-1]) + 1, "")
    joined = [{name: np.concatenate(parts) for name, parts in found.items()} for found in (values, columns)]
    _require_numbers(joined[0], split)
    return Screened(joined[0], joined[1], float(np.concatenate(quantiles).mean()), (total / n).astype(np.float32))


def _passed(run: Run, params: Params, split: str, names: list[str]) -> Iterator[tuple[Batch, dict[str, anomaly.Scores]]]:
    """The rows of a split that count, batch by batch, with their scores."""
    config, model = run.config.anomaly, run.model
    size = math.prod(model.image_shape) * (config.samples if model.random else 1)
    rows = max(min(evaluation.pixels_at_a_time() // size, run.config.evaluation.batch_size, run.data.splits[split].n), 1)
    look = {name: jax.jit(functools.partial(_score, run, name)) for name in names}
    key = keys.stream(jax.random.key(run.config.evaluation.draw), f"anomaly of {split}")
    for batch in experiment.evaluation_batches(run, split, rows, run.config.evaluation.draw):
        example_keys, condition = keys.of_examples(key, batch["index"]), condition_of(model, batch)
        found = {name: look[name](params, batch["image"], example_keys, condition) for name in names}
        yield jax.tree.map(lambda leaf: np.asarray(leaf)[batch["mask"]], (dict(batch), found))  # noqa: B023  # used at once


def _score(run: Run, name: str, params: Params, images: Any, example_keys: Any, condition: Any) -> anomaly.Scores:
    return anomaly.score(run.model, params, images, example_keys, name, run.config.anomaly, condition)


def _require_numbers(values: dict[str, Float[np.ndarray, " n"]], split: str) -> None:
    for name, scores in values.items():
        if not np.isfinite(scores).all():
            raise DataError(
                f"anomaly.score={name!r}: expected a number for every image of {split}, found none for index "
                f"{int(np.argmin(np.isfinite(scores)))}. Look at that image, or choose another score."
            )


def _truth(run: Run, split: str, screened: Screened) -> Truth | None:
    """Which images are anomalous, by label or else by mask; None where nobody knows."""
    if run.config.data.normal:
        names = run.data.label_names or ()
        return ~np.isin(screened.columns["label"], [names.index(name) for name in run.config.data.normal])
    return np.concatenate([masks.any(axis=(1, 2)) for masks in _masks(run, split)]) if run.config.anomaly.masks else None


def _masks(run: Run, split: str) -> Iterator[Bool[np.ndarray, "b h w"]]:
    """What is anomalous in the images of a split, batch by batch."""
    for batch in experiment.evaluation_batches(run, split, min(run.config.evaluation.batch_size, run.data.splits[split].n)):
        if "segmentation" not in batch:
            raise DataError("anomaly.masks=True: the images have no masks. Set data.masks, or anomaly.masks=False.")
        yield np.asarray(batch["segmentation"])[batch["mask"]].reshape(-1, *run.model.image_shape[:2]) > 0


def _pixels(run: Run, split: str, threshold: float, groups: Int[np.ndarray, " n"]) -> dict[str, dict[str, float]]:
    """How well the maps point at the masks, pixels of all images together."""
    masks = np.concatenate(list(_masks(run, split)))
    maps = np.load(run.directory / "anomaly_maps.npy", mmap_mode="r")

    def precision(rows: Int[np.ndarray, " rows"]) -> float:
        return float(sklearn_metrics.average_precision_score(masks[rows].ravel(), maps[rows].ravel()))

    def overlap(rows: Int[np.ndarray, " rows"]) -> float:
        return dice(maps[rows] > threshold, masks[rows])

    measures = {"average_precision": precision, "dice": overlap}
    return {name: resampling.estimate(measure, groups, PIXEL_DRAWS) for name, measure in measures.items()}


def _flagged(flags: Bool[np.ndarray, " n"], truth: Truth | None, n: int, alpha: float) -> dict[str, Any]:
    """How many are flagged, of all, and of each kind where known; of normal ones, how many were to be expected."""
    if truth is None:
        return {"all": {"flagged": int(flags.sum()), "n": len(flags)}}
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


def _table(values: dict[str, Float[np.ndarray, " n"]], chances: Float[np.ndarray, " n"], flags: Bool[np.ndarray, " n"]) -> str:
    """Comma-separated: no path and no name, since a prepared folder's own list says which file an index is."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["index", "p_value", "flagged", *values])
    for index, (chance, flag, *scores) in enumerate(zip(chances, flags, *values.values(), strict=True)):
        writer.writerow([index, f"{chance:.6g}", int(flag), *(f"{number:.6g}" for number in scores)])
    return text.getvalue()
