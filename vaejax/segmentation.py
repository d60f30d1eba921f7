"""A segmenter's run -> `segmentation.json`: how like the masks drawn by hand its own are, volume by volume.

    {"split", "step", "volumes", "volume", "slices", "classes": {class: {"dice": {...}, "hausdorff95": {...}}},
     "mean": {"dice": {...}}}

with `{"mean", "low", "high", "n", "unit"}` of one value a volume and 95 % bootstrap intervals over volumes. A volume is what
"volume" says: a volume of the source; all slices of a patient, where an older version prepared the images; or an image. Its
slices are in their order, without gaps for those that were not prepared. Distances are in mm where the spacing of all volumes
is known, else in pixels. A class that a volume has neither drawn nor guessed has no value there; one that was guessed alone, or
missed, has Dice 0 and an infinite distance: such volumes are counted under "unmatched", and left out of the distance's mean.
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
    spacing: Float[np.ndarray, "n 3"] | None = None
    """Between slices, rows and columns, mm; None where unknown."""
    kind: str = "volume"
    """What counts as a volume."""
    patients: Int[np.ndarray, " n"] | None = None
    """Whose each slice is, by number; None where unknown: then every volume is taken for another's."""


class Agreement(NamedTuple):
    """What is measured of each volume, in the order of their numbers, class by class."""

    dice: Float[np.ndarray, "n classes"]
    """NaN where a class is neither drawn nor guessed."""
    hausdorff95: Float[np.ndarray, "n classes"]
    """In mm or pixels; NaN where a class is neither drawn nor guessed, infinite where it is one of them."""
    unit: str
    """Of the distances."""
    owners: Int[np.ndarray, " n"]
    """Whose each volume is."""

    @property
    def mean_dice(self) -> Float[np.ndarray, " n"]:
        """Of the classes that have a value; NaN where none has."""
        return np.array([np.nanmean(row) if np.isfinite(row).any() else np.nan for row in self.dice])


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
        of_batch = {"true": batch["segmentation"], "guess": guess(batch["image"])}
        of_batch |= {"patient": batch["patient"]} if "patient" in batch else {}
        for name, values in of_batch.items():
            found.setdefault(name, []).append(np.asarray(values)[batch["mask"]])
    whole = {name: np.concatenate(parts) for name, parts in found.items()}
    drawn = Masks(whole["true"], whole["guess"], np.arange(len(whole["true"])), None, "image", whole.get("patient"))
    columns = run.data.splits[split].columns
    if "volume" in columns:
        return drawn._replace(volumes=columns["volume"], spacing=columns.get("spacing"), kind="volume")
    return drawn._replace(volumes=whole["patient"], kind="patient") if "patient" in whole else drawn


def measure(drawn: Masks, regions: int) -> dict[str, Any]:
    """What `segmentation.json` says of masks.

    Args:
        drawn: masks as drawn and as guessed.
        regions: classes, background counted.
    """
    found = of_volumes(drawn, regions)
    classes = {
        str(column + 1): {
            "dice": _entry(found.dice[:, column], found.owners, "1"),
            "hausdorff95": _entry(np.where(np.isinf(distance), np.nan, distance), found.owners, found.unit),
            "unmatched": int(np.isinf(distance).sum()),
        }
        for column, distance in enumerate(found.hausdorff95.T)
    }
    counts = {"volumes": len(found.owners), "volume": drawn.kind, "slices": len(drawn.true)}
    return counts | {"classes": classes, "mean": {"dice": _entry(found.mean_dice, found.owners, "1")}}


def of_volumes(drawn: Masks, regions: int) -> Agreement:
    """How like each volume's masks as drawn those as guessed are, class by class, background left out."""
    numbers, (spacing, unit) = np.unique(drawn.volumes), _spacing(drawn)
    coefficient, distance = np.full((2, len(numbers), regions - 1), np.nan)
    owners = np.array([(drawn.volumes if drawn.patients is None else drawn.patients)[drawn.volumes == n][0] for n in numbers])
    for row, number in enumerate(numbers):
        slices = drawn.volumes == number
        between = spacing[slices][0]
        for column in range(regions - 1):
            true, guess = (_region(part[slices], column + 1) for part in (drawn.true, drawn.guess))
            coefficient[row, column] = segmentation.dice(true, guess)
            distance[row, column] = segmentation.hausdorff95(true, guess, tuple(between[3 - true.ndim :]))
    return Agreement(coefficient, distance, unit, owners)


def _spacing(drawn: Masks) -> tuple[Float[np.ndarray, "n 3"], str]:
    """Of every slice, and its unit. What is between the slices matters where a volume has several."""
    alone = len(np.unique(drawn.volumes)) == len(drawn.volumes)
    if drawn.spacing is None or not np.isfinite(drawn.spacing[:, 1 if alone else 0 :]).all():
        return np.ones((len(drawn.true), 3)), "pixels"
    return drawn.spacing.astype(np.float64), "mm"


def _region(classes: Int[np.ndarray, "n h w"], number: int) -> Bool[np.ndarray, "*s"]:
    """Where a class is; a slice alone has two axes, as it has an outline and no depth."""
    region = classes == number
    return region[0] if len(region) == 1 else region


def _entry(values: Float[np.ndarray, " n"], owners: Int[np.ndarray, " n"], unit: str) -> dict[str, Any]:
    """Mean and interval, the volumes of one owner drawn together."""
    owners, values = owners[~np.isnan(values)], values[~np.isnan(values)]
    if not len(values):
        return {"mean": None, "low": None, "high": None, "n": 0, "unit": unit}
    low, high = resampling.interval(lambda rows: float(values[rows].mean()), owners)
    return {"mean": float(values.mean()), "low": low, "high": high, "n": len(values), "unit": unit}
