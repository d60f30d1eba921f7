"""A segmenter's run -> `segmentation.json`: how like the masks drawn by hand its own are, volume by volume.

    {"split", "step", "volumes", "slices", "classes": {class: {"dice": {...}, "hausdorff95": {...}}}, "mean": {"dice": {...}}}

with `{"mean", "low", "high", "n", "unit"}` of one value a volume and 95 % bootstrap intervals over volumes. A volume is all
slices of a patient, in their order; where patients are unknown, an image. A class that a volume has neither drawn nor guessed
has no value there; one that was guessed alone, or missed, has Dice 0 and an infinite distance: such volumes are counted under
"unmatched", and left out of the distance's mean.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from vaejax import experiment, resampling
from vaejax.applications import segmentation
from vaejax.errors import FamilyError
from vaejax.models import Params
from vaejax.runs import Run


class Masks(NamedTuple):
    """A split's masks, as drawn and as guessed."""

    true: Int[np.ndarray, "n h w"]
    guess: Int[np.ndarray, "n h w"]
    volumes: Int[np.ndarray, " n"]
    """The volume of each slice, by number."""


def require(run: Run) -> None:
    """Raises FamilyError where a run is no segmenter."""
    if run.model.segment is None:
        raise FamilyError(
            "segment: this run is no segmenter. Train one on its encoder: the same model.* with model.regions=CLASSES, "
            'objective.name="segmentation", transfer.source=RUN, and masks (data.masks).'
        )


def masks(run: Run, params: Params, split: str) -> Masks:
    """Segments a split."""
    guess = jax.jit(lambda images: segmentation.segment(run.model, params, images))
    found: dict[str, list[np.ndarray]] = {}
    for batch in experiment.evaluation_batches(run, split, min(run.config.evaluation.batch_size, run.data.splits[split].n)):
        of_batch = {
            "true": batch["segmentation"],
            "guess": guess(batch["image"]),
            "volumes": batch.get("patient", batch["index"]),
        }
        for name, values in of_batch.items():
            found.setdefault(name, []).append(np.asarray(values)[batch["mask"]])
    return Masks(**{name: np.concatenate(parts) for name, parts in found.items()})


def measure(drawn: Masks, regions: int) -> dict[str, Any]:
    """What `segmentation.json` says of masks.

    Args:
        drawn: masks as drawn and as guessed.
        regions: classes, background counted.
    """
    numbers = np.unique(drawn.volumes)
    coefficient, distance = np.full((2, len(numbers), regions - 1), np.nan)
    for row, number in enumerate(numbers):
        slices = drawn.volumes == number
        for column in range(regions - 1):
            true, guess = (_region(part[slices], column + 1) for part in (drawn.true, drawn.guess))
            coefficient[row, column] = segmentation.dice(true, guess)
            distance[row, column] = segmentation.hausdorff95(true, guess, (1.0,) * true.ndim)
    classes = {
        str(column + 1): {
            "dice": _entry(coefficient[:, column], "1"),
            "hausdorff95": _entry(np.where(np.isinf(distance[:, column]), np.nan, distance[:, column]), "pixels"),
            "unmatched": int(np.isinf(distance[:, column]).sum()),
        }
        for column in range(regions - 1)
    }
    of_volumes = np.array([np.nanmean(row) if np.isfinite(row).any() else np.nan for row in coefficient])
    return {"volumes": len(numbers), "slices": len(drawn.true), "classes": classes, "mean": {"dice": _entry(of_volumes, "1")}}


def _region(classes: Int[np.ndarray, "n h w"], number: int) -> Bool[np.ndarray, "*s"]:
    """Where a class is; a slice alone has two axes, as it has an outline and no depth."""
    region = classes == number
    return region[0] if len(region) == 1 else region


def _entry(values: Float[np.ndarray, " n"], unit: str) -> dict[str, Any]:
    values = values[~np.isnan(values)]
    if not len(values):
        return {"mean": None, "low": None, "high": None, "n": 0, "unit": unit}
    low, high = resampling.interval(lambda rows: float(values[rows].mean()), np.arange(len(values)))
    return {"mean": float(values.mean()), "low": low, "high": high, "n": len(values), "unit": unit}
