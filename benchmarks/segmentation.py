"""Segmentation from few labelled patients: an encoder pretrained as a VAE against the same network from scratch.

python benchmarks/segmentation.py pretrain FOLDER WORK
"""

import argparse
import hashlib
import sys
from pathlib import Path

import nibabel
import numpy as np
from etils import epath

from vaejax import config as configuration
from vaejax import experiment, models, runs
from vaejax.config import Config, DataConfig, from_dict
from vaejax.datasets import DataSet, Split, volumes
from vaejax.datasets.splits import complete
from vaejax.interruption import Interruption
from vaejax.runs import Run

SHAPE = (64, 40)
"""Every axial slice fits in, as it is: 1 mm a pixel, nothing is resampled."""

FRACTION = 0.2
"""Share of the patients in each of val and test."""

MODEL = {"features": (32, 64, 128), "latent_size": 32, "likelihood": "gaussian"}
AUGMENT = {"rotate": 15.0, "zoom": 0.15, "brightness": 0.1, "contrast": 0.2}
BATCH = 32


def hippocampus(folder: Path) -> DataSet:
    """Axial slices with their masks (1 anterior, 2 posterior) and patients; whole patients in a split."""
    source = volumes.source(DataConfig(name="volumes", path=str(folder / "images"), slice_axis=2)).open()["train"]
    masks: dict[str, np.ndarray] = {}

    def mask(place: str) -> np.ndarray:
        name, _, number = place.partition(", slice ")
        if name not in masks:
            file = nibabel.as_closest_canonical(nibabel.load(folder / "labels" / name))
            voxels = np.asarray(file.dataobj).round().astype(np.int32)
            masks[name] = np.moveaxis(voxels, 2, 0)[:, ::-1, ::-1].swapaxes(1, 2)
        return masks[name][int(number)]

    def padded(slices: list[np.ndarray]) -> np.ndarray:
        out = np.zeros((len(slices), *SHAPE, *slices[0].shape[2:]), slices[0].dtype)
        for row, one in zip(out, slices, strict=True):
            top, left = ((side - own) // 2 for side, own in zip(SHAPE, one.shape, strict=False))
            row[top : top + one.shape[0], left : left + one.shape[1]] = one
        return out

    splits, digest = {}, hashlib.sha256()
    for name, examples in complete({"train": source}, FRACTION, None).items():
        columns = {
            "image": padded([examples.read(i) for i in range(examples.n)]),
            "segmentation": padded([mask(place) for place in examples.paths]),
            "patient": np.int32(examples.patients),
        }
        for column in columns.values():
            digest.update(column.tobytes())
        splits[name] = split_of(columns)
    return DataSet(splits, (*SHAPE, 1), 1.0, None, digest.hexdigest(), ())


def split_of(columns: dict[str, np.ndarray], repeats: int = 1) -> Split:
    n = len(columns["image"])
    return Split(n * repeats, lambda rows: {name: column[rows % n] for name, column in columns.items()})


def pretraining(steps: int) -> Config:
    return from_dict(
        {
            "data": {"name": "volumes", "path": "images", "image_size": SHAPE, "batch_size": 64},
            "augment": {"rotate": 5.0, "zoom": 0.05, "brightness": 0.05},
            "model": MODEL,
            "optimizer": {"warmup_steps": 200},
            "training": {"steps": steps, "log_every": 100, "checkpoint_every": 1_000},
        }
    )


def train(directory: Path, config: Config, data: DataSet) -> Run:
    """A run on images that are in memory."""
    path = epath.Path(directory)
    run = Run(path, config, data, models.build(config.model, data.image_shape))
    path.mkdir(parents=True, exist_ok=True)
    description = {"fingerprint": data.fingerprint, "image_shape": list(data.image_shape), "label_names": None}
    runs.write_json(path / "data.json", description)
    runs.write_json(path / "config.json", configuration.to_dict(config))
    experiment.train(run, Interruption())
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("pretrain",))
    parser.add_argument("folder", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=4_000)
    arguments = parser.parse_args()
    data = hippocampus(arguments.folder)
    print({name: (split.n, len(np.unique(split.read(np.arange(split.n))["patient"]))) for name, split in data.splits.items()})
    train(arguments.work / "pretrained", pretraining(arguments.steps), data)


if __name__ == "__main__":
    sys.exit(main())
