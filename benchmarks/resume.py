"""What a killed run loses, and what a damaged checkpoint folder can do: three counts.

    python benchmarks/resume.py

(a) the quickstart's model trained while SIGKILL ends it again and again, each time after a new checkpoint, and the same command
    goes on: the sha256 of parameters, averages and optimiser state against those of an unbroken run;
(b) SIGKILL at random moments of processes that do nothing but save: how many can be resumed;
(c) seeded damages of a folder of checkpoints: how often a damaged step is used.
"""

import argparse
import hashlib
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

from vaejax import checkpoints, objectives, optimizers, runs, training
from vaejax.checkpoints import Writer

ROOT = Path(__file__).parents[1]
RUN = "a benchmark"


def train(workdir: Path, steps: int, every: int, kills: int) -> str:
    """Trains the quickstart, killed so many times; the sha256 of the last checkpoint's arrays."""
    command = [sys.executable, str(ROOT / "train.py"), f"--workdir={workdir}", f"--config.training.steps={steps}"]
    command += [f"--config.training.checkpoint_every={every}", "--config.evaluation.samples=1"]
    for _ in range(kills):
        known = saved(workdir)
        with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
            while process.poll() is None and saved(workdir) <= known:
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    run = runs.load(str(workdir))
    objective = objectives.elbo(run.model, run.config.objective, optimizers.build(run.config.optimizer, steps))
    restored = checkpoints.restore(run.checkpoints, run.fingerprint, training.abstract(run.model, objective))
    assert restored is not None
    return sha256(restored.state)


def saved(workdir: Path) -> int:
    """The newest step that has a name of its own."""
    return max((int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdecimal()), default=-1)


def sha256(state: object) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(state):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def state_of(step: int) -> dict[str, jax.Array]:
    """A state of 8 MiB that its step number determines."""
    return {"step": jax.numpy.int32(step), "weights": jax.random.normal(jax.random.key(step), (2, 1024, 1024))}


def save_without_end(directory: Path) -> None:
    """Saves one step after the other, and says so."""
    found = checkpoints.restore(directory, RUN, abstract())
    with Writer(directory, RUN) as writer:
        step = found.step if found else 0
        while True:
            step += 1
            writer.save(step, state_of(step), {"loss": 1.0 / step})
            print(step, flush=True)


def abstract() -> dict[str, jax.ShapeDtypeStruct]:
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state_of(0))


def kill_while_saving(directory: Path, times: int, rng: random.Random) -> int:
    """How many times the newest complete step could be restored, bit for bit."""
    resumed = 0
    for _ in range(times):
        command = [sys.executable, __file__, f"--save-without-end={directory}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            process.stdout.readline()
            process.stdout.readline()  # two saves begun: the first of them is complete
            time.sleep(rng.uniform(0.0, 0.3))
            process.send_signal(signal.SIGKILL)
        found = checkpoints.restore(directory, RUN, abstract())
        resumed += found is not None and sha256(found.state) == sha256(state_of(found.step))
    return resumed


def damage(directory: Path, rng: random.Random) -> None:
    """Harms the newest step: a flipped bit, a cut, a missing file; or adds a newer one that is none."""
    newest = directory / "2"
    file = rng.choice(sorted(path for path in newest.rglob("*") if path.is_file() and path.stat().st_size))
    kind = rng.choice(("flip", "truncate", "delete", "stray", "empty", "copy"))
    if kind == "flip":
        data = bytearray(file.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        file.write_bytes(data)
    elif kind == "truncate":
        file.write_bytes(file.read_bytes()[: rng.randrange(file.stat().st_size)])
    elif kind == "delete":
        file.unlink()
    elif kind == "stray":
        shutil.copytree(directory / "1", directory / "7", ignore=shutil.ignore_patterns(file.name))
    elif kind == "empty":
        (directory / "9").mkdir()
    else:
        shutil.copytree(directory / "1", directory / "8")


def damaged_and_used(whole: Path, folder: Path, times: int, rng: random.Random) -> int:
    """How many times what was restored is not exactly what was saved under that number."""
    silently = 0
    for number in range(times):
        directory = folder / str(number)
        shutil.copytree(whole, directory)
        damage(directory, rng)
        found = checkpoints.restore(directory, RUN, abstract())
        assert found is not None
        silently += found.step not in (1, 2) or sha256(found.state) != sha256(state_of(found.step)) or not found.notes
        shutil.rmtree(directory)
    return silently


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="(a) training steps")
    parser.add_argument("--every", type=int, default=25, help="(a) steps between checkpoints")
    parser.add_argument("--kills", type=int, default=4, help="(a) SIGKILLs")
    parser.add_argument("--saves", type=int, default=20, help="(b) SIGKILLs")
    parser.add_argument("--damages", type=int, default=100, help="(c) damages")
    parser.add_argument("--save-without-end", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.save_without_end:
        save_without_end(arguments.save_without_end)
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Writer(folder / "whole", RUN) as writer:
            writer.save(1, state_of(1), {"loss": 1.0})
            writer.save(2, state_of(2), {"loss": 2.0})  # worse: so that 1 is kept as the best
        used = damaged_and_used(folder / "whole", folder / "damaged", arguments.damages, rng)
        resumed = kill_while_saving(folder / "killed", arguments.saves, rng)
        unbroken = train(folder / "unbroken", arguments.steps, arguments.every, kills=0)
        broken = train(folder / "broken", arguments.steps, arguments.every, arguments.kills)
    print("| what | seen |\n|---|---|")
    print(f"| {arguments.steps} steps, killed {arguments.kills} times: sha256 equal to unbroken | {broken == unbroken} |")
    print(f"| SIGKILL while saving: resumed | {resumed} of {arguments.saves} |")
    print(f"| damages used silently | {used} of {arguments.damages} |")


if __name__ == "__main__":
    main()
