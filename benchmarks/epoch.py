"""An epoch of augmented images from a folder of files: vaejax's pipeline against a PyTorch DataLoader.

    python benchmarks/epoch.py --data=FOLDER

FOLDER holds grey images of one size, a sub-folder a class, as under MedNIST's `train`. Both sides rotate, zoom and crop at
random, one bilinear interpolation for all three, and give float32 batches; no model is trained. vaejax decodes the files once,
which is told apart; PyTorch decodes them in every epoch (Pillow), and augments a batch at once: faster than one by one.
A turn is an epoch, of a stream that does not stop between epochs, so that workers start once. Processor time and memory are of
the side's own process, without its workers. vaejax makes batches at the lowest priority: a busy machine starves it.
"""

import argparse
import functools
import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from sides import Ratio, Run, Side, circumstances, interleave, ratios, table
from torch.utils.data import DataLoader, Dataset

if TYPE_CHECKING:
    from vaejax import runs

# vaejax is imported by those who use it: workers are forks, and what it imports has threads.

AIM = 1.5
ROTATE, ZOOM, CROP = 10.0, 0.1, 0.1
"""Degrees; relative; share of a side."""
WORKERS = (0, 1, 2, 4)


def open_run(folder: Path, path: str, batch_size: int) -> "runs.Run":
    from vaejax import runs
    from vaejax.config import from_dict

    config = {
        "data": {"name": "image_folder", "path": path, "batch_size": batch_size},
        "augment": {"rotate": ROTATE, "zoom": ZOOM, "crop": CROP},
    }
    return runs.create(str(folder / "run"), from_dict(config))


def vaejax_batches(folder: Path, path: str, batch_size: int) -> Run:
    from vaejax import experiment

    batches = experiment.training_batches(open_run(folder, path, batch_size), 0)
    return lambda steps: consume(batches, steps)


def torch_batches(files: list[Path], batch_size: int, workers: int) -> Run:
    loader = DataLoader(
        Files(files),
        batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=augmented,
    )

    def endless() -> Iterator[torch.Tensor]:
        while True:
            yield from loader

    batches = endless()
    return lambda steps: consume(batches, steps)


def consume(batches: Iterator[object], steps: int) -> None:
    for _ in range(steps):
        next(batches)


class Files(Dataset):
    """uint8 [h, w] a file."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        with Image.open(self.files[index]) as image:
            return torch.from_numpy(np.array(image.convert("L")))


def augmented(images: list[torch.Tensor]) -> torch.Tensor:
    """Float32 [b, 1, h, w] in [0, 1], changed at random."""
    batch = torch.stack(images)[:, None].float() / 255.0
    uniform = 2.0 * torch.rand(5, len(batch)) - 1.0
    angle, kept = math.radians(ROTATE) * uniform[0], 1.0 - CROP * (uniform[1] + 1.0) / 2.0
    scale, place = kept / (1.0 + ZOOM * uniform[2]), (1.0 - kept) * uniform[3:]
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    matrices = torch.stack([torch.stack([cosine, -sine, place[0]], 1), torch.stack([sine, cosine, place[1]], 1)], 1)
    grid = torch.nn.functional.affine_grid(matrices, list(batch.shape), align_corners=False)
    return torch.nn.functional.grid_sample(batch, grid, align_corners=False)


def compare(path: str, batch_size: int, rounds: int) -> Ratio:
    """Prints all there is to say, and returns the ratio to the best number of workers."""
    with tempfile.TemporaryDirectory() as name:
        folder, start = Path(name), time.perf_counter()
        run = open_run(folder, path, batch_size)
        prepared = time.perf_counter() - start
        of_train = {child.name: child for child in Path(path).iterdir()}.get("train", Path(path))
        files = sorted(file for file in of_train.glob("*/*") if file.is_file())
        epoch = run.data.splits["train"].n // batch_size
        theirs = {
            f"PyTorch DataLoader, {workers} workers": functools.partial(torch_batches, files, batch_size, workers)
            for workers in WORKERS
        }
        ours = Side("vaejax", functools.partial(vaejax_batches, folder, path, batch_size), huge_pages=True)
        times = interleave([ours, *(Side(name, build) for name, build in theirs.items())], rounds, epoch)
    best = min(theirs, key=lambda name: times[name].median)
    seconds, others = epoch * times["vaejax"].median, epoch * times[best].median
    print(f"Augmented images {run.data.image_shape} from files, no training.\n\n{table(times, batch_size)}\n")
    print(f"An epoch of {epoch} batches: vaejax {seconds:.2f} s, {best} {others:.2f} s.")
    images = sum(split.n for split in run.data.splits.values())
    first = f"first epoch, {images:,} files prepared before: {others / (prepared + seconds):.2f}"
    print(f"Prepared once, all splits: {prepared:.1f} s for {images:,} files.")
    return Ratio("epoch from files, augmented", others / seconds, best, AIM, first)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of grey images of one size, a sub-folder a class")
    parser.add_argument("--batch", type=int, default=128, help="images a batch; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="epochs of every side; default: %(default)s")
    given = parser.parse_args()

    where = circumstances(["jax", "torch", "tensorflow-cpu", "pillow"])
    print("\n" + ratios([compare(given.data, given.batch, given.rounds)]))
    print(where)


if __name__ == "__main__":
    main()
