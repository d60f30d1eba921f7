"""Masks and series of the hippocampus data to a run's images and back: Dice, affine, place.

    python -m benchmarks.round_trip DATA/hippocampus_msd

Masks go there by the nearest voxel and come back the same way; a DICOM series has no mask, so its brighter half stands for one.
"""

import sys
import tempfile
import time
from pathlib import Path

import nibabel
import numpy as np
import pydicom

from vaejax import studies
from vaejax.config import DataConfig
from vaejax.datasets import DataSet, geometry
from vaejax.studies import Study

SETTINGS = (
    {"size": (64, 64), "spacing": (1.0, 1.0)},
    {"size": (64, 64), "spacing": (1.0, 1.0), "slice_axis": 0},
    {"size": (64, 64), "spacing": (1.0, 1.0), "slice_axis": 1, "block": 3},
    {"size": (48, 48), "resize": "crop"},
    {"size": (64, 64), "spacing": (0.8, 0.8, 0.8)},
    {"size": (32, 32), "spacing": (2.0, 2.0)},
)
PLACE = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")


def opened(path: Path, size: tuple[int, int], block: int = 1, **fields) -> Study:
    """The one study in a file or folder."""
    data = DataSet({}, (*size, block), 1.0, None, "", (), None)
    (study,) = studies.read(path, DataConfig(block=block, **fields), data)
    return study


def sent_and_back(study: Study, mask: np.ndarray) -> np.ndarray:
    """A mask [n, h, w] of the slices, on the source's grid as it was before it was sent."""
    return study.back(geometry.there(mask, study.axes))


def dice(found: np.ndarray, mask: np.ndarray) -> float:
    """The smallest of the classes'."""
    classes = [c for c in np.unique(mask) if c]
    return min(
        (2 * ((found == c) & (mask == c)).sum() / ((found == c).sum() + (mask == c).sum()) for c in classes), default=1.0
    )


def of_nifti(root: Path, folder: Path, settings: dict) -> tuple[list[float], float]:
    """Dice of every label, and the largest error of an affine."""
    scores, error = [], 0.0
    for path in sorted((root / "labels").glob("*.nii*")):
        source = nibabel.load(path)
        mask = np.asarray(source.dataobj).astype(np.uint8)
        study = opened(root / "images" / path.name, **settings)
        axis = settings.get("slice_axis", 2)
        slices = np.moveaxis(mask, axis, 0)[:, ::-1, ::-1].swapaxes(1, 2)  # all of these files are RAS
        inside = np.isfinite(study.back(study.images))  # of what was not cropped away
        (file,) = study.save(folder, sent_and_back(study, slices), "mask")
        result = nibabel.load(file)
        scores.append(dice(np.asarray(result.dataobj) * inside, mask * inside))
        error = max(error, float(np.abs(result.affine - source.affine).max()))
    return scores, error


def of_dicom(root: Path, folder: Path, settings: dict) -> tuple[list[float], int]:
    """Dice of every series, and the number of tags of place that differ from the source's."""
    scores, different = [], 0
    for path in sorted((root / "dicom").iterdir()):
        study = opened(path, **settings)
        sources = {file.SOPInstanceUID: file for file in map(pydicom.dcmread, sorted(path.rglob("*.dcm")))}
        files = study.save(folder / path.name, study.back(study.images), "reconstruction")
        results = [pydicom.dcmread(file) for file in files]
        ordered = [sources[result.SourceImageSequence[0].ReferencedSOPInstanceUID] for result in results]
        different += sum(a[k].value != b[k].value for a, b in zip(results, ordered, strict=True) for k in PLACE)
        pixels = np.stack([file.pixel_array for file in ordered])
        mask = (pixels > np.median(pixels)).astype(np.uint8)
        inside = np.isfinite(study.back(study.images))
        scores.append(dice(sent_and_back(study, mask) * inside, mask * inside))
    return scores, different


def main() -> None:
    """Prints a row for every setting."""
    root = Path(sys.argv[1])
    for settings in SETTINGS:
        with tempfile.TemporaryDirectory() as folder:
            since = time.perf_counter()
            scores, error = of_nifti(root, Path(folder), settings)
            series, different = of_dicom(root, Path(folder), {k: v for k, v in settings.items() if k != "slice_axis"})
            print(
                f"{settings}\n  {len(scores)} labels: Dice {min(scores):.4f} at least, {np.mean(scores):.4f} on average; "
                f"affine within {error:.1e}\n  {len(series)} series: Dice {min(series):.4f} at least; "
                f"{different} tags of place differ; {time.perf_counter() - since:.0f} s"
            )


if __name__ == "__main__":
    main()
