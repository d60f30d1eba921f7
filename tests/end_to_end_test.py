"""A user's way: the shipped quickstart, made small, through the command line: stopped, killed, damaged, evaluated, shown."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import vaejax
from vaejax import checkpoints, cli, evaluation, experiment, journal, objectives, optimizers, report, runs, training

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
STEPS, EVERY, EPOCH = 100, 10, 40
FIELDS = {
    "data.batch_size": 100, "model.features": (4, 8), "model.hidden": (16,), "model.latent_size": 4,
    "training.steps": STEPS, "training.checkpoint_every": EVERY, "training.log_every": 25,
    "evaluation.samples": 3, "evaluation.batch_size": 300,
}  # fmt: skip
SMALL = [f"--config.{name}={value}" for name, value in FIELDS.items()]
QUICKSTART = [f"--config={ROOT / 'configs' / 'quickstart.py'}", *SMALL]


class Ended(NamedTuple):
    """How a program ended, and the checkpoints that it left."""

    status: int
    output: str
    message: str
    steps: list[int]


class Life(NamedTuple):
    """The run directories of one module, each told by what happened to it, and every program that worked on them."""

    stopped: Path
    """Stopped by SIGTERM, then finished by the same command."""
    unbroken: Path
    """From the config.json of `stopped`; stopped when only its evaluation was left."""
    killed: Path
    """Killed twice, its newest checkpoint damaged; stopped when only its evaluation was left."""
    halfway: Path
    """`killed` as it was before the damage."""
    ended: dict[str, Ended]


def train(directory: Path, *arguments: str, until: int | None = None, send: signal.Signals = signal.SIGTERM) -> Ended:
    """`python train.py` to its end, or to a signal once a checkpoint of step `until` or a later one is there."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments, f"--workdir={directory}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"} | compiled_once(directory.parent),
    )
    while until is not None and max(steps(directory), default=-1) < until:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)
    if until is not None:
        process.send_signal(send)
    output, message = process.communicate(timeout=600)
    return Ended(process.returncode, output, message, steps(directory))


def compiled_once(folder: Path) -> dict[str, str]:
    """What makes programs share what they compile: half of the time of a short run."""
    return {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }


def steps(directory: Path) -> list[int]:
    """Numbers of the checkpoints in a run directory, looked at while it trains."""
    folder = directory / "checkpoints"
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal()) if folder.exists() else []


def damage(directory: Path) -> None:
    """Flips one bit in the newest checkpoint."""
    newest = directory / "checkpoints" / str(steps(directory)[-1])
    file = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Life:
    folder = tmp_path_factory.mktemp("runs")
    stopped, unbroken, killed, halfway = (folder / name for name in ("stopped", "unbroken", "killed", "halfway"))
    ended = {
        "stopped": train(stopped, *QUICKSTART, until=EVERY),
        "finished": train(stopped, *QUICKSTART),
        "unbroken": train(unbroken, f"--config={stopped / 'config.json'}", until=STEPS),
        "killed": train(killed, *QUICKSTART, until=EVERY, send=signal.SIGKILL),
        "killed again": train(killed, *QUICKSTART, until=EPOCH + EVERY, send=signal.SIGKILL),
    }
    shutil.copytree(killed, halfway)
    damage(killed)
    ended["repaired"] = train(killed, *QUICKSTART, until=STEPS)
    return Life(stopped, unbroken, killed, halfway, ended)


def digests(directory: Path) -> dict[str, str]:
    """sha256 of every leaf of a run's newest state: step, parameters, average, optimiser."""
    run = runs.load(str(directory))
    optimizer = optimizers.build(run.config.optimizer, run.config.training.steps)
    abstract = training.abstract(run.model, objectives.elbo(run.model, run.config.objective, optimizer))
    state = checkpoints.restore(run.checkpoints, run.fingerprint, abstract).state
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest() for path, leaf in leaves}


def contents(directory: Path) -> dict[str, tuple[int, bytes]]:
    """Time and bytes of every file that training writes."""
    files = [directory / "metrics.jsonl", *(directory / "checkpoints").rglob("*")]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files if path.is_file()}


# --- training


def test_sigterm_saves_the_step_in_flight(life):
    status, output, message, kept = life.ended["stopped"]
    assert (status, output) == (143, "")
    (step,) = re.findall(r"^vaejax: stopped by SIGTERM at step (\d+), which is saved", message, re.MULTILINE)
    assert EVERY <= int(step) < STEPS
    assert kept[-1] == int(step), message


def test_the_same_command_goes_on_to_the_end(life):
    before, (status, output, message, kept) = life.ended["stopped"], life.ended["finished"]
    assert status == 0
    assert f"going on from step {before.steps[-1]}\n" in message
    assert kept[-1] == STEPS
    assert f"report: {life.stopped / 'report' / 'index.html'}" in output
    assert "Traceback" not in message


def test_a_run_that_was_stopped_has_the_bits_of_one_that_was_not(life):
    assert life.ended["unbroken"].status == 143  # in its evaluation
    assert not (life.unbroken / "evaluation.json").exists()
    expected = digests(life.unbroken)
    assert len(expected) > 30
    assert {name.partition(".")[2].partition("[")[0].partition(".")[0] for name in expected} == {
        "step", "params", "ema", "objective",
    }  # fmt: skip
    assert digests(life.stopped) == expected


def test_the_config_of_a_run_runs_again(life):
    assert (life.unbroken / "config.json").read_bytes() == (life.stopped / "config.json").read_bytes()


def test_a_killed_run_goes_on_from_its_newest_checkpoint(life):
    first, second = life.ended["killed"], life.ended["killed again"]
    assert (first.status, second.status) == (-signal.SIGKILL, -signal.SIGKILL)
    (step,) = re.findall(r"going on from step (\d+)\n", second.message)
    assert int(step) == first.steps[-1]
    assert "damaged" not in second.message


def test_a_damaged_checkpoint_is_named_and_an_older_one_used(life):
    older, newest = life.ended["killed again"].steps[-2:]
    message = life.ended["repaired"].message
    assert re.search(rf"damaged checkpoint: {life.killed}/checkpoints/{newest}: sha256 .* step {older} is used\.", message)
    assert f"going on from step {older}\n" in message


def test_a_run_that_was_killed_and_damaged_has_the_bits_of_one_that_was_not(life):
    assert life.ended["repaired"].status == 143  # in its evaluation
    assert digests(life.killed) == digests(life.unbroken)


def test_the_journal_tells_every_step_once(life):
    expected = [(step, "train") for step in range(25, STEPS + 1, 25)]
    expected += [(step, "val") for step in (*range(EPOCH, STEPS, EPOCH), STEPS)]
    for directory in (life.unbroken, life.killed):
        rows = journal.read(directory)
        assert sorted((row["step"], row["split"]) for row in rows) == sorted(expected)
    losses = [[row["loss"] for row in journal.read(directory) if row["split"] == "val"] for directory in life[:3]]
    assert losses[1] == losses[2]


def test_the_images_are_prepared_once(life):
    (_,) = (life.stopped.parent / "data").iterdir()


@pytest.fixture
def training_alone(monkeypatch) -> None:
    """What follows training is tested elsewhere."""
    monkeypatch.setattr(evaluation, "evaluate", lambda *_, **__: {"split": "", "step": 0, "metrics": {}})
    monkeypatch.setattr(report, "write", lambda _: "")


@pytest.mark.usefixtures("training_alone")
def test_a_finished_run_is_left_as_it_is(life):
    before = contents(life.stopped)
    assert cli.main(["train", *QUICKSTART, f"--workdir={life.stopped}"]) == 0
    assert contents(life.stopped) == before


@pytest.mark.usefixtures("training_alone")
def test_more_steps_extend_a_run(life):
    longer = life.stopped.with_name("longer")
    shutil.copytree(life.stopped, longer)
    assert cli.main(["train", *QUICKSTART, f"--config.training.steps={STEPS + 3}", f"--workdir={longer}"]) == 0
    assert steps(longer)[-1] == STEPS + 3
    assert [row["step"] for row in journal.read(longer)][-2:] == [STEPS + 3] * 2


def test_another_configuration_is_refused_by_the_field(life, capsys):
    before = contents(life.stopped)
    assert cli.main(["train", *QUICKSTART, "--config.optimizer.learning_rate=0.01", f"--workdir={life.stopped}"]) == 1
    assert "\n  optimizer.learning_rate: 0.001 -> 0.01\n" in capsys.readouterr().err
    assert contents(life.stopped) == before


# --- evaluation


def evaluate(directory: Path, *arguments: str) -> dict:
    """What `vaejax evaluate` writes into a copy of a run, so that the run keeps its own evaluation."""
    copy = directory.with_name(f"{directory.name}-evaluated")
    if not copy.exists():
        shutil.copytree(directory, copy)
    assert cli.main(["evaluate", str(copy), *arguments]) == 0
    return json.loads((copy / "evaluation.json").read_text())


def test_an_evaluation_has_its_schema(life):
    result = json.loads((life.stopped / "evaluation.json").read_text())
    assert result.keys() == {"split", "step", "samples", "draw", "metrics", "undefined", "baselines", "outside"}
    assert (result["split"], result["step"], result["samples"], result["draw"]) == ("test", STEPS, 3, 0)
    assert result["metrics"].keys() == {"elbo", "distortion", "rate", "nll", "mse", "psnr", "ssim", "active_units"}
    assert result["undefined"].keys() == {"bits_per_dim"}
    assert result["baselines"].keys() == {"pca"}
    assert result["baselines"]["pca"].keys() == {"mse", "psnr", "ssim"}
    for name, value in (*result["metrics"].items(), *result["baselines"]["pca"].items()):
        assert value.keys() - {"capped"} == {"mean", "sem", "n", "unit"}, name
        assert value["n"] == 500, name
        assert np.isfinite(value["mean"]), name


def test_an_evaluation_of_the_same_weights_is_the_same_file(life):
    assert evaluate(life.stopped) == json.loads((life.stopped / "evaluation.json").read_text())


def test_more_samples_change_only_what_is_estimated_by_them(life):
    few, many = json.loads((life.stopped / "evaluation.json").read_text()), evaluate(life.stopped, "--samples=8")
    changed = {name for name, value in few["metrics"].items() if many["metrics"][name] != value}
    assert changed == {"nll", "elbo", "distortion"}
    assert many["metrics"]["nll"]["mean"] < few["metrics"]["nll"]["mean"]
    assert (many["baselines"], many["samples"]) == (few["baselines"], 8)


def test_the_best_step_can_be_evaluated(life):
    best, last = life.ended["killed again"].steps[-2:]
    assert evaluate(life.halfway)["step"] == last
    assert evaluate(life.halfway, "--best", "--split=val")["step"] == best


# --- pictures


def draw(life: Life, folder: Path, verb: str, *arguments: str) -> tuple[tuple[int, int], dict[str, np.ndarray]]:
    """Rows and columns of the picture that a verb draws, and its arrays."""
    assert cli.main([verb, str(life.stopped), f"--output={folder}", *arguments]) == 0
    arrays, picture = sorted(folder.iterdir(), key=lambda path: path.suffix)
    width, height = Image.open(picture).size
    tile = 2 * 28 + 2  # doubled, and a gap
    assert (height % tile, width % tile) == (2, 2)
    with np.load(arrays, allow_pickle=False) as file:
        found = dict(file)
    for name in found.keys() - {"index"}:
        assert found[name].dtype == np.float32
        assert found[name].min() >= 0.0
        assert found[name].max() <= 1.0
    return (height // tile, width // tile), found


def test_samples_are_drawn(life, tmp_path):
    grid, arrays = draw(life, tmp_path / "a", "sample", "--n=13", "--seed=1")
    assert grid == (2, 10)
    assert arrays["images"].shape == (13, 28, 28, 1)
    np.testing.assert_array_equal(draw(life, tmp_path / "b", "sample", "--n=13", "--seed=1")[1]["images"], arrays["images"])
    assert np.any(draw(life, tmp_path / "c", "sample", "--n=13", "--seed=2")[1]["images"] != arrays["images"])


def test_reconstructions_are_drawn_below_their_images(life, tmp_path):
    grid, arrays = draw(life, tmp_path, "reconstruct", "--n=4", "--split=val")
    assert grid == (2, 4)
    run = runs.load(str(life.stopped))
    stored = run.data.splits["val"].read(arrays["index"])["image"]
    np.testing.assert_allclose(arrays["images"], stored / 255.0, atol=1e-6)
    expected = vaejax.reconstruct(run.model, experiment.restore(run).params, jnp.asarray(arrays["images"]))
    np.testing.assert_allclose(arrays["reconstructions"], expected, atol=1e-5)


def test_interpolations_lead_from_image_to_image(life, tmp_path):
    grid, arrays = draw(life, tmp_path, "interpolate", "--n=2", "--steps=5")
    assert grid == (2, 5)
    assert arrays["images"].shape == (2, 5, 28, 28, 1)
    assert len(np.unique(arrays["index"])) == 4
    run = runs.load(str(life.stopped))
    ends = run.data.splits["test"].read(arrays["index"].reshape(-1))["image"]
    expected = vaejax.reconstruct(run.model, experiment.restore(run).params, jnp.float32(ends) / 255.0)
    np.testing.assert_allclose(arrays["images"][:, [0, -1]], expected.reshape(2, 2, 28, 28, 1), atol=1e-5)


# --- report


def test_the_report_stands_alone(life):
    page = (life.stopped / "report" / "index.html").read_text()
    sources = re.findall(r"""\bsrc\s*=\s*["']?([^"'>\s]{0,30})""", page)
    assert len(sources) == 6
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    text = re.sub(r"base64,[^\"']*", "", page)
    assert not re.search(r"https?:|//|@import|<script|<link|\bhref", text)
    assert "Research use only" in text
    assert not [path for path in (life.stopped.parent, ROOT, Path(sys.prefix)) if str(path) in text]
    for shown in (f"step {STEPS}", "latent_size", "psnr", "not defined: the likelihood is a density", jax.__version__):
        assert shown in text
    assert [path.name for path in (life.stopped / "report").iterdir()] == ["index.html"]
