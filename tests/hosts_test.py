"""Several processes are one run: the same weights and figures whatever the topology, stopped and resumed together."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from vaejax import experiment, hosts, runs
from vaejax.errors import TrainingError

ROOT = Path(__file__).parents[1]
STEPS = 300


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    """A small model of a few small images."""
    folder = tmp_path_factory.mktemp("hosts")
    rng = np.random.default_rng(0)
    arrays = {f"{name}_images": rng.integers(0, 256, (n, 12, 11), np.uint8) for name, n in SIZES.items()}
    np.savez(folder / "images.npz", **arrays)
    values = {
        "data": {"name": "medmnist", "path": str(folder / "images.npz"), "batch_size": 16, "cache": str(folder / "cache")},
        "augment": {"rotate": 20.0, "brightness": 0.2},
        "model": {"network": "mlp", "hidden": [8], "latent_size": 2},
        "training": {"steps": STEPS, "checkpoint_every": 50, "log_every": 20},
        "evaluation": {"samples": 4, "batch_size": 8},
    }
    (folder / "config.json").write_text(json.dumps(values))
    return folder / "config.json"


SIZES = {"train": 40, "val": 9, "test": 13}
"""Neither a multiple of the batch nor of the devices: the last batches are filled up."""


def start(processes: int, devices: int, *command: str) -> list[subprocess.Popen]:
    """The same command in so many processes, each with so many devices."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
    told = [["--coordinator", coordinator, "--processes", str(processes), "--process", str(i)] for i in range(processes)]
    return [
        subprocess.Popen(
            [sys.executable, *command, *(told[i] if processes > 1 else [])],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(processes)
    ]


def finish(started: list[subprocess.Popen]) -> list[tuple[int, str]]:
    """Exit status and output of each."""
    try:
        return [(process.wait(240), process.stdout.read()) for process in started]
    finally:
        for process in started:
            process.kill()


def train(config: Path, directory: Path, processes: int, devices: int, *more: str) -> list[subprocess.Popen]:
    return start(processes, devices, "train.py", f"--config={config}", f"--workdir={directory}", *more)


@pytest.fixture(scope="module")
def alone(config) -> Path:
    """The run of one process with one device."""
    directory = config.parent / "alone"
    ((status, output),) = finish(train(config, directory, 1, 1))
    assert status == 0, output
    return directory


def figures(directory: Path) -> tuple[list[dict], dict]:
    """The journal and the evaluation, without times."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    metrics = json.loads((directory / "evaluation.json").read_text())["metrics"]
    return [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines], metrics


def assert_same(directory: Path, reference: Path, last: int = 0) -> None:
    """The same evaluation, and the same journal, or its last lines."""
    (lines, metrics), (expected, measured) = figures(directory), figures(reference)
    lines, expected = lines[-last:], expected[-last:]
    assert len(lines) == len(expected)
    for line, other in zip(lines, expected, strict=True):
        assert line == {k: v if isinstance(v, str) else pytest.approx(v, rel=1e-5) for k, v in other.items()}
    assert metrics.keys() == measured.keys()
    for name, value in measured.items():
        assert metrics[name]["mean"] == pytest.approx(value["mean"], rel=1e-5, abs=1e-6)  # a similarity may be near 0
        assert metrics[name]["n"] == SIZES["test"]


@pytest.mark.parametrize(("processes", "devices"), [(1, 8), (2, 4)])
def test_any_topology_gives_the_same_run(config, alone, tmp_path, processes, devices):
    finished = finish(train(config, tmp_path / "run", processes, devices))
    assert [status for status, _ in finished] == [0] * processes, finished
    assert_same(tmp_path / "run", alone)
    assert (tmp_path / "run" / "report" / "index.html").exists()
    said = ["report:" in output for _, output in finished]
    assert said == [True, False][:processes]  # the first speaks for all


def test_stops_and_losses_are_shared_and_the_run_goes_on_elsewhere(config, alone, tmp_path):
    """SIGTERM in one process stops both at one step; a killed one takes the other with it; one process ends the run of two."""
    directory = tmp_path / "run"
    started = train(config, directory, 2, 2)
    wait_for(directory / "checkpoints" / "50", started)
    started[1].send_signal(signal.SIGTERM)
    finished = finish(started)
    assert [status for status, _ in finished] == [143, 143], finished
    steps = {next(line for line in output.splitlines() if "stopped by SIGTERM at step" in line) for _, output in finished}
    assert len(steps) == 1

    stopped = max(int(path.name) for path in (directory / "checkpoints").iterdir() if path.name.isdecimal())
    started = train(config, directory, 2, 2)
    wait_for(directory / "checkpoints" / str((stopped // 50 + 1) * 50), started)
    started[1].kill()
    (status, output), _ = finish(started)
    assert status != 0, output  # JAX may abort it before it can say why

    ((status, output),) = finish(train(config, directory, 1, 1))
    assert status == 0, output
    assert_same(directory, alone, last=1)  # a stop leaves out a validation, and begins the means of the training anew


def wait_for(path: Path, started: list[subprocess.Popen]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in started), [process.stdout.read() for process in started]
        time.sleep(0.005)


SUM = """
import sys
import jax
from vaejax import experiment, hosts, runs
hosts.join(sys.argv[3], int(sys.argv[5]), int(sys.argv[7]))
for leaf in jax.tree.leaves(hosts.local(experiment.restore(runs.load(sys.argv[1])).params)):
    print("leaf", leaf.tobytes().hex())
"""


def test_a_checkpoint_of_one_process_is_restored_on_two_bit_for_bit(alone):
    expected = [np.asarray(leaf).tobytes().hex() for leaf in jax.tree.leaves(experiment.restore(runs.load(str(alone))).params)]
    for status, output in finish(start(2, 4, "-c", SUM, str(alone))):
        assert status == 0, output
        assert [line.split()[1] for line in output.splitlines() if line.startswith("leaf")] == expected


WIDE = """
import sys
import jax, numpy as np, optax
jax.config.update("jax_enable_x64", True)
from vaejax import batches, hosts, models, objectives, training
from vaejax.config import ModelConfig, ObjectiveConfig
if "--coordinator" in sys.argv:
    hosts.join(sys.argv[3], int(sys.argv[5]), int(sys.argv[7]))
config = ModelConfig(network="mlp", latent_size=2, hidden=(8,), likelihood="gaussian")
object.__setattr__(config, "dtype", None)  # as wide as the weights; no choice of a user's
model = models.build(config, (6, 5, 1))
objective = objectives.elbo(model, ObjectiveConfig(), optax.adam(1e-2))
state = training.init(model, objective, jax.random.key(0), lambda params: jax.tree.map(np.float64, hosts.local(params)))
step, images, mine = training.train_step(objective, 0.9), np.random.default_rng(0).random((100, 16, 6, 5, 1)), hosts.share(16)
for number in range(100):
    batch = batches.batch_of(images[number][mine], np.arange(16)[mine])
    state, _ = step(state, training.place(batch), jax.random.key(1))
if hosts.first():
    leaves = jax.tree.leaves(hosts.local(state.params))
    assert all(leaf.dtype == np.float64 for leaf in leaves)
    np.savez(sys.argv[1], *leaves)
"""


def test_in_float64_topologies_differ_by_rounding_alone(tmp_path):
    found = []
    for processes, devices in ((1, 1), (1, 2), (1, 8), (2, 1)):
        file = tmp_path / f"{processes}-{devices}.npz"
        finished = finish(start(processes, devices, "-c", WIDE, str(file)))
        assert [status for status, _ in finished] == [0] * processes, finished
        with np.load(file) as arrays:
            found.append([arrays[name] for name in arrays.files])
    for leaves in found[1:]:
        for leaf, expected in zip(leaves, found[0], strict=True):
            np.testing.assert_allclose(leaf, expected, rtol=0, atol=1e-10)


def test_several_steps_a_call_from_images_on_the_devices_of_two_processes_are_the_same_run(config, tmp_path):
    values = json.loads(config.read_text()) | {"augment": {}}
    values["training"] |= {"steps": 30, "checkpoint_every": 15}
    folders = []
    for name, processes, devices in (("alone", 1, 1), ("several", 2, 2)):
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(values))
        finished = finish(train(file, tmp_path / name, processes, devices))
        assert [status for status, _ in finished] == [0] * processes, finished
        folders.append(tmp_path / name)
        values["training"]["steps_per_call"], values["data"]["resident"] = 2, True
    assert_same(folders[1], folders[0])


NOT_FINITE = """
import sys
import jax, numpy as np, optax
from vaejax import batches, errors, hosts, models, objectives, training
from vaejax.config import ModelConfig, ObjectiveConfig
hosts.join(sys.argv[2], int(sys.argv[4]), int(sys.argv[6]))
model = models.build(ModelConfig(network="mlp", latent_size=2, hidden=(8,)), (3, 3, 1))
objective = objectives.elbo(model, ObjectiveConfig(), optax.set_to_zero())
state, step = training.init(model, objective, jax.random.key(0)), training.train_step(objective, 0.9)
images, mine = np.zeros((3, 8, 3, 3, 1)), hosts.share(8)
images[1, [1, 6]] = np.nan
images[2, 0] = np.nan
three = [batches.batch_of(images[number][mine], 100 * number + np.arange(8)[mine]) for number in range(3)]
placed = training.place(batches.stacked(three))
state, report = step(state, placed, jax.random.key(1))
try:
    training.check_finite(report, placed["index"], 41)
except errors.TrainingError as error:
    print("told", error)
"""


def test_each_process_names_its_own_images_of_the_first_step_that_is_not_finite():
    for (status, output), image in zip(finish(start(2, 2, "-c", NOT_FINITE)), (101, 106), strict=True):
        assert status == 0, output
        assert f"told step 42: distortion is not finite for training images {image} (by index)" in output


def test_shares_are_all_rows_once(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    rows = []
    for process in range(4):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        rows += list(range(24)[hosts.share(24)])
    assert rows == list(range(24))
    with pytest.raises(TrainingError, match=r"data\.batch_size=20: .*8 devices.*16 or 24\."):
        hosts.share(20)


def test_processes_that_cannot_meet_say_how():
    with pytest.raises(TrainingError, match="--process"):
        hosts.join("localhost:1", 2, 5)


def test_a_lost_process_is_told_in_words(monkeypatch):
    def lose(words: str) -> None:
        with hosts.explain_loss():
            raise jax.errors.JaxRuntimeError(words)

    reset = "UNKNOWN: Gloo all-reduce failed: Connection reset by peer"
    with pytest.raises(jax.errors.JaxRuntimeError):  # one process alone has nobody to lose
        lose(reset)
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    with pytest.raises(TrainingError, match=r"another of the 3 processes was lost: UNKNOWN: Gloo .* the same command goes on"):
        lose(reset)
    with pytest.raises(jax.errors.JaxRuntimeError):
        lose("INTERNAL: something else")


def test_parts_of_a_batch_divide_among_all_devices(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    hosts.require_parts(32, 4)
    with pytest.raises(TrainingError, match=r"objective\.parts=4: .*data\.batch_size=48 .*Choose data\.batch_size=64,"):
        hosts.require_parts(48, 4)


AGREE = """
import sys
from vaejax import hosts
hosts.join(sys.argv[2], int(sys.argv[4]), int(sys.argv[6]))
own = int(sys.argv[6])
first = (hosts.of_first(10**9 + own), hosts.of_first(bool(own)))
print("found", hosts.least(5.0 - own), *first, hosts.anybody(lambda: own == 1)())
"""


def test_what_processes_agree_on():
    for status, output in finish(start(2, 1, "-c", AGREE)):
        assert status == 0, output
        assert f"found 4.0 {10**9} False True" in output
    assert (hosts.least(5.0), hosts.of_first(7), hosts.anybody(lambda: False)()) == (5.0, 7, False)
