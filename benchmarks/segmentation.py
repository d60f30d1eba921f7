"""Segmentation from few labelled patients: an encoder pretrained as a VAE against the same network from scratch.

    python benchmarks/segmentation.py pretrain FOLDER WORK
    python benchmarks/segmentation.py arms FOLDER WORK --steps 400
    python benchmarks/segmentation.py summary FOLDER WORK

FOLDER holds images/ and labels/ of the hippocampus. 66 patients train, 22 choose the checkpoint (by loss, with their labels at
any share), 22 test; whole volumes at 1 mm, each slice with two neighbours on either side. All arms have one optimiser, one rate
and one budget, tuned for none. A row of WORK/rows.jsonl is a training; draw d chooses the labelled patients, and is the seed.
`summary` prints a table of the rows.
"""

import argparse
import hashlib
import itertools
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from etils import epath
from jaxtyping import Float

from vaejax import config as configuration
from vaejax import experiment, journal, models, runs, segmentation
from vaejax.config import Config, DataConfig, from_dict
from vaejax.datasets import DataSet, Split, volumes
from vaejax.datasets.splits import complete
from vaejax.interruption import Interruption
from vaejax.runs import Run

SHAPE = (64, 40)
"""Every axial slice fits in, as it is: 1 mm a pixel, nothing is resampled."""

BLOCK = 5
"""Slices in the channels: each with its neighbours."""

ARMS = ("scratch", "pretrained", "frozen")

FRACTION = 0.2
"""Share of the patients in each of val and test."""

DATA = {"name": "volumes", "path": "images", "image_size": SHAPE, "block": BLOCK}
MODEL = {"features": (16, 32, 64), "norm": "group", "latent_size": 32, "likelihood": "gaussian"}
AUGMENT = {"rotate": 15.0, "zoom": 0.15, "brightness": 0.1, "contrast": 0.2}
REGIONS, BATCH = 3, 8


def hippocampus(folder: Path) -> DataSet:
    """Axial slices with their masks (1 anterior, 2 posterior) and patients; whole patients in a split."""
    source = volumes.source(DataConfig(name="volumes", path=str(folder / "images"), block=BLOCK)).open()["train"]
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
    return DataSet(splits, (*SHAPE, BLOCK), 1.0, None, digest.hexdigest(), ())


def split_of(columns: dict[str, np.ndarray]) -> Split:
    return Split(len(columns["image"]), lambda rows: {name: column[rows] for name, column in columns.items()})


def pretraining(steps: int) -> Config:
    return from_dict(
        {
            "data": DATA | {"batch_size": 32},
            "augment": AUGMENT | {"contrast": 0.0},
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


def segmenting(source: Path | None, steps: int, seed: int, rate: float, frozen: bool = False) -> Config:
    """The same network, optimiser and budget, with the weights of `source` or from scratch."""
    freeze = ("encoder",) if frozen else ()
    return from_dict(
        {
            "seed": seed,
            "data": DATA | {"masks": "labels", "batch_size": BATCH},
            "augment": AUGMENT,
            "model": MODEL | {"regions": REGIONS},
            "objective": {"name": "segmentation"},
            "transfer": {"source": str(source), "parts": ("encoder",), "freeze": freeze} if source else {},
            "optimizer": {"learning_rate": rate, "warmup_steps": 50},
            "training": {"steps": steps, "log_every": 50, "checkpoint_every": 100_000, "ema_decay": 0.99},
        }
    )


def labelled(data: DataSet, share: float, draw: int) -> DataSet:
    """A share of the training patients, at least one, again and again: as many slices an epoch whatever the share."""
    train, random = data.splits["train"], np.random.default_rng(draw)
    columns = train.read(np.arange(train.n))
    patients = np.unique(columns["patient"])
    chosen = random.permutation(patients)[: max(round(share * len(patients)), 1)]
    rows = np.resize(np.flatnonzero(np.isin(columns["patient"], chosen)), train.n)
    few = split_of({name: column[rows] for name, column in columns.items()})
    fingerprint = hashlib.sha256(f"{data.fingerprint} {sorted(map(int, chosen))}".encode()).hexdigest()
    return data._replace(splits=data.splits | {"train": few}, fingerprint=fingerprint)


def arm(work: Path, data: DataSet, name: str, share: float, draw: int, steps: int, rate: float) -> dict[str, Any]:
    """Trains one network on one draw of labels; measures its best checkpoint by the validation loss on test."""
    source = None if name == "scratch" else work / "pretrained"
    directory = work / f"{name}_{100 * share:g}_{draw}_{steps}_{rate:g}"
    config = segmenting(source, steps, draw, rate, frozen=name == "frozen")
    start = time.perf_counter()
    run = train(directory, config, labelled(data, share, draw))
    trained = experiment.restore(run, best=True)
    loss = min(row["loss"] for row in journal.read(run.directory) if row["split"] == "val")
    row = {"arm": name, "share": share, "draw": draw, "steps": steps, "rate": rate, "val": loss, "best": trained.step}
    drawn = segmentation.masks(run, trained.params, "test")
    row |= {"seconds": round(time.perf_counter() - start), "test": segmentation.measure(drawn, REGIONS)}
    row |= {"dice": segmentation.of_volumes(drawn, REGIONS).mean_dice.tolist()}  # of each patient
    with (work / "rows.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    shutil.rmtree(directory)
    return row


def words(row: dict[str, Any]) -> str:
    test, dice = row["test"], row["test"]["mean"]["dice"]
    of_classes = "; ".join(
        f"{name} {entry['dice']['mean']:.3f}, HD95 {entry['hausdorff95']['mean'] or np.nan:.2f} mm, {entry['unmatched']} missed"
        for name, entry in zip(("anterior", "posterior"), test["classes"].values(), strict=True)
    )
    return (
        f"{row['arm']} {100 * row['share']:g} % draw {row['draw']} rate {row['rate']:g}: Dice {dice['mean']:.4f} "
        f"[{dice['low']:.3f}, {dice['high']:.3f}]; {of_classes}; val {row['val']:.4f} at {row['best']}, {row['seconds']} s"
    )


def summary(rows: list[dict[str, Any]]) -> str:
    """A table in Markdown: of each share, the mean Dice of every arm, and its difference to scratch, with their intervals.

    A difference is paired by draw of labels and test patient; draws that lack an arm are left out.
    """
    arms = sorted({row["arm"] for row in rows}, key=ARMS.index)
    others = [name for name in arms if name != "scratch"]
    lines = [" | ".join(["| labels", "draws", *arms, *(f"{name} - scratch" for name in others)]) + " |"]
    lines.append("|---" * (2 + len(arms) + len(others)) + "|")
    for share in sorted({row["share"] for row in rows}):
        found = {(row["arm"], row["draw"]): row["dice"] for row in rows if row["share"] == share}
        draws = [d for d in sorted({d for _, d in found}) if all((name, d) in found for name in arms)]
        if not draws:
            continue
        dice = {name: np.array([found[name, d] for d in draws]) for name in arms}
        cells = [spread(dice[name]) for name in arms] + [spread(dice[name] - dice["scratch"], "+") for name in others]
        lines.append(" | ".join([f"| {100 * share:g} %", str(len(draws)), *cells]) + " |")
    return "\n".join(lines)


def spread(values: Float[np.ndarray, "draws patients"], sign: str = "") -> str:
    """Mean (95 % interval, draws and patients both drawn anew) [lowest, highest draw]."""
    random, of_draws = np.random.default_rng(0), values.mean(axis=1)
    chosen = ([random.integers(n, size=n) for n in values.shape] for _ in range(2_000))
    low, high = np.quantile([values[np.ix_(*rows)].mean() for rows in chosen], [0.025, 0.975])
    mean, *ends = (f"{value:{sign}.3f}" for value in (values.mean(), low, high, of_draws.min(), of_draws.max()))
    return f"{mean} ({ends[0]} to {ends[1]}) [{ends[2]}, {ends[3]}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("pretrain", "arms", "summary"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=1_500)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--shares", nargs="+", type=float, default=[0.01, 0.05, 0.1, 0.5, 1.0])
    parser.add_argument("--draws", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--rates", nargs="+", type=float, default=[3e-3])
    arguments = parser.parse_args()
    if arguments.part == "summary":
        print(summary([json.loads(line) for line in (arguments.work / "rows.jsonl").read_text().splitlines()]))
        return
    data = hippocampus(arguments.folder)
    if arguments.part == "pretrain":
        train(arguments.work / "pretrained", pretraining(arguments.steps), data)
        return
    for case in itertools.product(arguments.draws, arguments.shares, arguments.rates, arguments.arms):
        draw, share, rate, name = case
        print(words(arm(arguments.work, data, name, share, draw, arguments.steps, rate)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
