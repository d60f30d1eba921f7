"""What survives kills and damage: three figures, each counted and not claimed.

    python -m benchmarks.resume
    python -m benchmarks.resume --steps=30 --kills=1 --saves=2 --damages=10

(a) The quickstart is killed (SIGKILL) several times, each time after a new checkpoint and a random while, and gone on with:
    sha256 of its parameters and of its optimiser's state against those of a run that nobody disturbed.
(b) A process that saves without end is killed at a random moment: what it had called saved must be there, bit for bit.
(c) One damage to a folder of checkpoints: it must be named, and the other checkpoint used.

(b) and (c) use the victim and the damages of the tests. The status is 1 where a figure is not what it should be.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from tests import checkpoints_test as victims
from vaejax import checkpoints, objectives, optimizers, runs, training
from vaejax.errors import CheckpointError

ROOT = Path(__file__).parents[1]
DAMAGES = (victims.flip, victims.truncate, victims.delete, victims.empty, victims.stray)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="(a) training steps; default: %(default)s")
    parser.add_argument("--kills", type=int, default=4, help="(a) kills; default: %(default)s")
    parser.add_argument("--saves", type=int, default=20, help="(b) kills while saving; default: %(default)s")
    parser.add_argument("--damages", type=int, default=100, help="(c) damages; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of moments and damages; default: %(default)s")
    given = parser.parse_args()
    rng = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            *killed_training(Path(folder), given.steps, given.kills, rng),
            killed_saves(Path(folder) / "saves", given.saves, rng),
            damaged(Path(folder) / "damages", given.damages, rng),
        ]
    table = Table("what", "found", "expected")
    for row in rows:
        table.add_row(*row)
    Console(width=120).print(table)
    return int(any(found != expected for _, found, expected in rows))


def killed_training(folder: Path, steps: int, kills: int, rng: random.Random) -> list[tuple[str, str, str]]:
    """(a): the digests of a run that was killed, beside those of one that was not."""
    unbroken, broken = folder / "unbroken", folder / "broken"
    every = max(steps // 12, 1)
    train(unbroken, steps, every)
    happened = 0
    for number in range(1, kills + 1):
        before = newest(broken)
        happened += train(broken, steps, every, kill_after=max(before + 1, number * steps // (kills + 2)), rng=rng)
        print(f"(a) killed with checkpoints up to step {newest(broken)}", flush=True)
    train(broken, steps, every)
    expected, found = digests(unbroken), digests(broken)
    title = f"(a) {steps} steps, a checkpoint every {every}: sha256 of "
    counted = (f"(a) kills by SIGKILL of {steps} steps of the quickstart", str(happened), str(kills))
    return [counted, *((title + name, found[name][:16], expected[name][:16]) for name in expected)]


def train(directory: Path, steps: int, every: int, kill_after: int | None = None, rng: random.Random | None = None) -> bool:
    """Trains the quickstart to its end, or kills it a while after a checkpoint of `kill_after` or later; whether it did."""
    fields = {"training.steps": steps, "training.checkpoint_every": every, "evaluation.samples": 1}
    process = subprocess.Popen(
        [
            sys.executable,
            str(ROOT / "train.py"),
            f"--config={ROOT / 'configs' / 'quickstart.py'}",
            f"--workdir={directory}",
            *(f"--config.{name}={value}" for name, value in fields.items()),
        ],
        stdout=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    if kill_after is not None and rng is not None:
        while newest(directory) < kill_after and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, 0.5))
        process.kill()
    status = process.wait()
    if status not in (0, -signal.SIGKILL):
        raise SystemExit(f"the training ended with status {status}")
    return status == -signal.SIGKILL


def newest(directory: Path) -> int:
    """The newest checkpoint of a run, whole or not; 0 where there is none."""
    folder = directory / "checkpoints"
    return max((int(path.name) for path in folder.iterdir() if path.name.isdecimal()), default=0) if folder.exists() else 0


def digests(directory: Path) -> dict[str, str]:
    """sha256 of the last parameters, their average, and the optimiser's state."""
    run = runs.load(str(directory))
    optimizer = optimizers.build(run.config.optimizer, run.config.training.steps)
    abstract = training.abstract(run.model, objectives.elbo(run.model, run.config.objective, optimizer))
    state = checkpoints.restore(run.checkpoints, run.fingerprint, abstract, step=run.config.training.steps).state
    parts = {"parameters": state.params, "their average": state.ema, "optimiser state": state.objective}
    return {name: _digest(part) for name, part in parts.items()}


def _digest(tree: object) -> str:
    sha256 = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        sha256.update(np.asarray(leaf).tobytes())
    return sha256.hexdigest()


def killed_saves(folder: Path, times: int, rng: random.Random) -> tuple[str, str, str]:
    """(b): after how many kills the process went on from what it had called saved."""
    resumed = 0
    for number in range(1, times + 1):
        try:
            complete, restored = victims.kill_while_saving(folder, rng.uniform(0.0, 1.0))
            resumed += restored.notes == []
            print(f"(b) kill {number}: saved up to step {complete}, resumed from {restored.step}", flush=True)
        except (AssertionError, CheckpointError) as error:
            print(f"(b) kill {number}: {error}", flush=True)
    return "(b) resumed after a SIGKILL while saving", f"{resumed} of {times}", f"{times} of {times}"


def damaged(folder: Path, times: int, rng: random.Random) -> tuple[str, str, str]:
    """(c): how many damages were used without a word."""
    victims.write(folder / "whole", {1: 0.5, 2: 0.9})
    silent = 0
    for number in range(times):
        directory = folder / str(number)
        shutil.copytree(folder / "whole", directory)
        name = rng.choice(DAMAGES)(directory, rng)
        restored = victims.restore(directory)
        silent += str(restored.step) == name or not any(f"/{name}: " in note for note in restored.notes)
        shutil.rmtree(directory)
    return f"(c) of {times} damages, used silently", str(silent), "0"


if __name__ == "__main__":
    sys.exit(main())
