"""How time and memory grow: ten times the images, ten times the steps, four times the pixels; one process each.

    python benchmarks/scale.py --images=2000 --steps=100

A folder of PNG files of noise is prepared and trained on (the quickstart's networks, Gaussian likelihood). Memory is what the
process holds itself (RssAnon, at its most), without the prepared images, which are mapped and can be dropped at any time.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from sides import circumstances


class Work(NamedTuple):
    """What one process does."""

    images: int
    side: int
    """Pixels on a side of an image."""
    steps: int


def write_images(folder: Path, work: Work) -> None:
    """PNG files of smooth noise, in two class folders."""
    rng = np.random.default_rng(0)
    for label in ("a", "b"):
        (folder / label).mkdir(parents=True)
    for number in range(work.images):
        coarse = rng.integers(0, 256, (work.side // 4, work.side // 4), np.uint8)
        picture = Image.fromarray(coarse).resize((work.side, work.side), Image.Resampling.BICUBIC)
        picture.save(folder / "ab"[number % 2] / f"{number}.png")


def child(folder: Path, work: Work) -> None:
    """Prepares, trains, and prints seconds and the most memory of each as JSON."""
    from vaejax import startup

    startup.in_huge_pages()  # as the command does
    startup.set_environment()

    from vaejax import config, experiment, runs
    from vaejax.interruption import Interruption

    fields = {
        "data": {"name": "image_folder", "path": str(folder / "images"), "batch_size": 64},
        "augment": {"rotate": 10.0},
        "training": {"steps": work.steps, "checkpoint_every": work.steps, "log_every": work.steps},
    }
    with watched() as preparing:
        run = runs.create(str(folder / "run"), config.from_dict(fields))
    with watched() as training:
        experiment.train(run, Interruption())
    print(json.dumps({"preparing": preparing, "training": training}))


class watched:
    """Seconds, and the most MiB of anonymous memory, of a block."""

    def __enter__(self) -> dict[str, float]:
        self.found = {"seconds": time.perf_counter(), "mib": anonymous()}
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self.found

    def _watch(self) -> None:
        while not self.done.wait(0.02):
            self.found["mib"] = max(self.found["mib"], anonymous())

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()
        self.found["seconds"] = time.perf_counter() - self.found["seconds"]


def anonymous() -> float:
    """MiB that this process holds and that no file backs (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


def measure(work: Work) -> dict[str, dict[str, float]]:
    with tempfile.TemporaryDirectory() as name:
        write_images(Path(name) / "images", work)
        command = [sys.executable, __file__, "--child", name, *map(str, work)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2_000, help="images to begin with")
    parser.add_argument("--steps", type=int, default=100, help="steps to begin with")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        folder, *numbers = arguments.child
        child(Path(folder), Work(*map(int, numbers)))
        return
    where = circumstances(["jax", "flax", "tensorflow-cpu"])
    start = Work(arguments.images, 32, arguments.steps)
    works = {
        "to begin with": start,
        "10 x the images": start._replace(images=10 * start.images),
        "10 x the steps": start._replace(steps=10 * start.steps),
        "4 x the pixels": start._replace(side=2 * start.side),
    }
    print("| | images | pixels | steps | preparing, s | MiB | training, s | MiB |\n|---|---:|---:|---:|---:|---:|---:|---:|")
    for name, work in works.items():
        found = measure(work)
        times = " | ".join(f"{part['seconds']:.1f} | {part['mib']:.0f}" for part in (found["preparing"], found["training"]))
        print(f"| {name} | {work.images} | {work.side}x{work.side} | {work.steps} | {times} |", flush=True)
    print(where)


if __name__ == "__main__":
    main()
