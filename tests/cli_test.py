"""The command line: what is wrong is said in one line, at once, and what is right reaches its function."""

import argparse
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from vaejax import cli, config_file, gallery, report, runs, startup
from vaejax import config as configuration
from vaejax.config import from_dict
from vaejax.errors import DataError, FamilyError, Terminated

ROOT = Path(__file__).parents[1]
SLOW = {"tensorflow", "tensorflow_datasets", "jax", "flax", "orbax", "matplotlib", "sklearn"}


class Ended(NamedTuple):
    """How a program ended, and what it had imported by then."""

    status: int
    output: str
    message: str
    libraries: set[str]


def _program(*arguments: str, folder: Path = ROOT) -> Ended:
    """`python train.py ARGUMENTS` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / "train.py"), *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=60,  # a mistake that passes would train
    )
    lines = done.stderr.splitlines(keepends=True)
    imported = [line.rpartition("|")[2].strip().partition(".")[0] for line in lines if line.startswith("import time:")]
    message = "".join(line for line in lines if not line.startswith("import time:"))
    return Ended(done.returncode, done.stdout, message, set(imported))


# --- mistakes, end to end


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--config.optimizer.learning_rate=nan"], "optimizer.learning_rate=nan: expected 0 < value <= 10."),
        (["--config.training.steps", "0"], "training.steps=0: expected 1 <= value"),
        (["--config.augment.brightness", "-0.5"], "augment.brightness=-0.5: expected 0 <= value <= 1."),
        (["--config.model.latent_sise=3"], "model.latent_sise: no such field. Did you mean model.latent_size?"),
        (["--config.model.likelihood=bernoulli"], "model.likelihood='bernoulli' contradicts data.binarization='none'"),
        (["--config=configs/gone.py"], "--config=configs/gone.py: no such file."),
        (["--learning_rate=0.1"], "--learning_rate: unknown argument."),
        (["--confi=configs/quickstart.py"], "--confi: unknown argument."),
    ],
)
def test_a_mistake_is_told_in_one_line_before_anything_is_built(tmp_path, arguments, told):
    ended = _program(*arguments, f"--workdir={tmp_path / 'run'}")
    assert ended.status == 1
    assert ended.message.startswith(f"vaejax: {told}")
    assert ended.message.count("\n") == 1
    assert "Traceback" not in ended.message
    assert ended.output == ""
    assert "vaejax" in ended.libraries
    assert ended.libraries & SLOW == set()
    assert list(tmp_path.iterdir()) == []


def test_the_config_of_a_run_is_a_configuration(tmp_path):
    """It is read, and then the command line comes on top: the error is about both."""
    config = from_dict({"training": {"steps": 77}})
    (tmp_path / "config.json").write_text(configuration.json.dumps(configuration.to_dict(config)))
    ended = _program("--config=config.json", "--config.optimizer.warmup_steps=78", folder=tmp_path)
    assert ended.status == 1
    assert ended.message == "vaejax: optimizer.warmup_steps=78: expected fewer than training.steps=77.\n"
    assert ended.libraries & SLOW == set()


def test_help_lists_every_field():
    ended = _program("--help")
    assert ended.status == 0
    for line in configuration.describe().splitlines():
        assert line in ended.output


def test_the_package_is_the_same_program(capsys):
    mistake = "--config.optimizer.learning_rate=nan"
    assert cli.main(["train", mistake]) == 1
    assert capsys.readouterr() == ("", _program(mistake).message)


# --- mistakes about a run


VERBS = (
    "evaluate", "sample", "reconstruct", "interpolate", "inpaint", "embed", "anomaly", "segment", "frechet", "report",
)  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_a_directory_without_a_run_is_named(tmp_path, capsys, verb):
    assert cli.main([verb, str(tmp_path)]) == 1
    output, message = capsys.readouterr()
    assert message.startswith(f"vaejax: {tmp_path}: no run here")
    assert output == ""
    assert list(tmp_path.iterdir()) == []


def test_another_configuration_of_a_run_is_refused(tmp_path, capsys):
    file = tmp_path / "images.npz"
    np.savez(file, train_images=np.zeros((20, 5, 4), np.uint8))
    config = from_dict({"data": {"name": "medmnist", "path": str(file)}, "model": {"network": "mlp"}})
    runs.create(str(tmp_path / "run"), config)
    status = cli.main(
        ["train", f"--config={tmp_path / 'run' / 'config.json'}", f"--workdir={tmp_path / 'run'}", "--config.seed=1"]
    )
    assert status == 1
    assert "\n  seed: 0 -> 1\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "VERB"),
        (["tarin"], "invalid choice: 'tarin'"),
        (["evaluate"], "RUN"),
        (["evaluate", "run", "--samples=0"], "expected 1 <= value <= 1000000000, found '0'"),
        (["evaluate", "run", "--samples=many"], "'many'"),
        (["evaluate", "run", "--split=training"], "invalid choice: 'training'"),
        (["evaluate", "run", "--sample=3"], "unknown arguments: --sample=3"),
        (["evaluate", "run", "--config.seed=3"], "unknown arguments: --config.seed=3"),
        (["sample", "run", "other"], "unknown arguments: other"),
        (["sample", "run", "--n=-4"], "expected 1 <= value <= 1000000000, found '-4'"),
        (["sample", "run", "--temperature=nan"], "expected 0 <= value <= 1000, found 'nan'"),
        (["reconstruct", "run", "--seed=-1"], "expected 0 <= value <= 2147483647, found '-1'"),
        (["reconstruct", "run", "--n=0"], "expected 1 <= value <= 1000000000, found '0'"),
        (["interpolate", "run", "--steps=1"], "expected 2 <= value <= 10000, found '1'"),
        (["explain", "run", "--from=a", "--to=b", "--steps=1"], "expected 2 <= value <= 10000, found '1'"),
        (["interpolate", "run", "--input", "one.png"], "--input: expected 2 arguments"),
        (["reconstruct", "run", "--split=val", "--input=one.png"], "--input: not allowed with argument --split"),
        (["interpolate", "run", "--input", "one.png", "two.png", "--split=val"], "--split: not allowed with argument --input"),
        (["reconstruct", "run", "--identify"], "reconstruct: --identify goes with --input"),
        (["sample", "run", "--identify"], "sample: --identify goes with --near"),
        (["anomaly", "run", "--output=here"], "anomaly: --output goes with --input"),
        (["sample", "run", "--sampler=both"], "invalid choice: 'both'"),
        (["frechet"], "RUN"),
        (["frechet", "run", "--n=0"], "expected 1 <= value <= 1000000000, found '0'"),
        (["frechet", "run", "--seeds=0"], "expected 1 <= value <= 1000000000, found '0'"),
        (["frechet", "run", "--sampler=gaussian"], "invalid choice: 'gaussian'"),
        (["frechet", "run", "--label=7"], "unknown arguments: --label=7"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(capsys, arguments, told):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    output, message = capsys.readouterr()
    assert told in message
    assert "usage: vaejax" in message
    assert output == ""


def test_what_jax_notes_of_its_frames_is_not_said(tmp_path, monkeypatch, capsys):
    error = FamilyError("no such thing")
    error.add_note("the checkpoint of step 3 is damaged")
    error.add_note("-----\nFor simplicity, JAX has removed its internal frames from the traceback of the following exception.")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(runs, "load", fail)
    assert cli.main(["embed", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "vaejax: no such thing\nvaejax: the checkpoint of step 3 is damaged\n"


# --- what reaches the functions


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """Runs that were opened; each is a directory alone."""
    directories: list[str] = []

    def load(directory: str) -> argparse.Namespace:
        directories.append(directory)
        return argparse.Namespace(directory=Path(directory))

    monkeypatch.setattr(runs, "load", load)
    return directories


@pytest.mark.parametrize(
    ("arguments", "output", "given"),
    [
        (["sample", "run"], "run/gallery", (False, 100, 0, 1.0, None, "prior", "png")),
        (
            ["sample", "run", "--best", "--n=3", "--seed=2", "--temperature=0.5", "--label=7", "--output=out"],
            "out",
            (True, 3, 2, 0.5, "7", "prior", "png"),
        ),
        (["sample", "run", "--sampler=mixture"], "run/gallery", (False, 100, 0, 1.0, None, "mixture", "png")),
        (["reconstruct", "run"], "run/gallery", (False, "test", 10, 0)),
        (["reconstruct", "run", "--best", "--split=val", "--n=3", "--seed=2", "--output=out"], "out", (True, "val", 3, 2)),
        (["interpolate", "run"], "run/gallery", (False, "test", 10, 0, 10)),
        (["interpolate", "run", "--split=train", "--n=3", "--seed=2", "--steps=5"], "run/gallery", (False, "train", 3, 2, 5)),
    ],
)
def test_a_picture_is_drawn_as_asked(monkeypatch, capsys, opened, arguments, output, given):
    calls = []
    monkeypatch.setattr(gallery, arguments[0], lambda *all: calls.append(all))
    assert cli.main(arguments) == 0
    ((run, folder, *rest),) = calls
    assert opened == ["run"]
    assert (str(run.directory), str(folder), tuple(rest)) == ("run", output, given)
    assert f"written: {output}/" in capsys.readouterr().out


def test_a_report_is_drawn_as_asked(monkeypatch, capsys, opened):
    monkeypatch.setattr(report, "write", lambda run, best: f"{run.directory}, best: {best}")
    assert cli.main(["report", "run", "--best"]) == 0
    assert capsys.readouterr().out == "report: run, best: True\n"


def test_an_evaluation_is_made_as_asked_and_shown(monkeypatch, capsys, opened):
    from vaejax import evaluation

    def evaluate(run, *given):
        assert given == ("val", True, 7, 3)
        value = {"mean": 20.5, "sem": 0.25, "n": 10, "unit": "dB"}
        floor = {"mean": 16.25, "sem": None, "n": 10, "unit": "dB"}
        metrics = {"psnr": value, "active_units": {"mean": 5, "sem": None, "n": 10, "unit": "latents"}}
        return {"split": "val", "step": 9, "metrics": metrics, "baselines": {"pca": {"psnr": floor}}}

    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    assert cli.main(["evaluate", "run", "--split=val", "--best", "--samples=7", "--draw=3"]) == 0
    output = capsys.readouterr().out
    assert "val split at step 9" in output
    assert re.search(r"psnr\W+20\.5 ± 0\.25\W+16\.25\W+dB", output)
    assert re.search(r"active_units\W+5\W+latents", output)


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        ([], (500, 5, ("prior",), False)),
        (["--n=7", "--seeds=2", "--sampler=mixture", "--best"], (7, 2, ("mixture",), True)),
        (["--sampler=both"], (500, 5, ("prior", "mixture"), False)),
    ],
)
def test_distances_are_measured_as_asked_and_shown(monkeypatch, capsys, opened, arguments, given):
    from vaejax import frechet

    def measure(run, *asked):
        assert asked == given
        rows = {name: {"mean": 12.5, "sem": 0.25, "n": 5, "unit": "squared feature units"} for name in asked[2]}
        told = {"prior": {"mean": 0.875, "sem": 0.01, "n": 5, "unit": "share of samples"}}
        return {"samplers": rows, "agreement": told, "floor": 1.75, "classifier": {"accuracy": 0.991}}

    monkeypatch.setattr(frechet, "measure", measure)
    assert cli.main(["frechet", "run", *arguments]) == 0
    assert opened == ["run"]
    lines = {
        "prior": "samples from the prior: 12.5 ± 0.25; 87.50 % have the label asked for\n",
        "mixture": "samples from the mixture: 12.5 ± 0.25\n",
    }
    floor = "As many training images: 1.75 (the classifier has 99.1 % of the test images right)\n"
    floor = f"Frechet distances, squared feature units. {floor}"
    assert capsys.readouterr().out == floor + "".join(lines[name] for name in given[2])


def test_a_distance_of_one_seed_is_shown_without_an_error(monkeypatch, capsys, opened):
    from vaejax import frechet

    row = {"mean": 12.5, "sem": None, "n": 1, "unit": "squared feature units"}
    result = {"samplers": {"prior": row}, "agreement": {}, "floor": 1.75, "classifier": {"accuracy": 1.0}}
    monkeypatch.setattr(frechet, "measure", lambda *_: result)
    assert cli.main(["frechet", "run", "--seeds=1"]) == 0
    assert capsys.readouterr().out.endswith("samples from the prior: 12.5\n")


@pytest.mark.parametrize(("verb", "room"), [("frechet", "frechet.measure"), ("sample", "gallery.sample")])
def test_a_sampler_that_a_family_does_not_have_is_told_in_one_line(monkeypatch, capsys, opened, verb, room):
    def refused(*_):
        raise FamilyError("--sampler=mixture: no such thing here. Choose --sampler=prior.")

    monkeypatch.setattr(f"vaejax.{room}", refused)
    assert cli.main([verb, "run", "--sampler=mixture"]) == 1
    assert capsys.readouterr() == ("", "vaejax: --sampler=mixture: no such thing here. Choose --sampler=prior.\n")


@pytest.mark.parametrize(("error", "status"), [(Terminated("stopped here"), 143), (DataError("images gone"), 1)])
def test_the_status_tells_how_it_ended(monkeypatch, capsys, error, status):
    def load(_):
        raise error

    monkeypatch.setattr(runs, "load", load)
    assert cli.main(["report", "run"]) == status
    assert capsys.readouterr() == ("", f"vaejax: {error}\n")


def test_sigterm_ends_any_verb_at_once(monkeypatch, capsys):
    def load(_):
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("went on")

    monkeypatch.setattr(runs, "load", load)
    assert cli.main(["report", "run"]) == 143
    assert capsys.readouterr().err == "vaejax: stopped by SIGTERM; run the same command again.\n"


def test_sigterm_while_an_image_is_read_is_no_unreadable_image(monkeypatch, capsys, tmp_path):
    for split in ("train", "val", "test"):
        (tmp_path / "images" / split).mkdir(parents=True)
        Image.new("L", (4, 4)).save(tmp_path / "images" / split / "0.png")
    monkeypatch.setattr(Image, "open", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    arguments = ["--config.data.name=image_folder", f"--config.data.path={tmp_path / 'images'}", "--config.data.on_error=skip"]
    assert cli.main(["train", f"--workdir={tmp_path / 'run'}", *arguments]) == 143
    assert all(path.name.startswith(".preparing-") for path in (tmp_path / "data").iterdir())  # to go on with


def test_an_error_of_the_program_itself_is_not_hidden(monkeypatch):
    def load(_):
        raise ZeroDivisionError

    monkeypatch.setattr(runs, "load", load)
    with pytest.raises(ZeroDivisionError):
        cli.main(["report", "run"])


def test_the_command_line_is_that_of_the_process(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["vaejax", "--config=gone.py"])
    monkeypatch.setattr(startup, "in_huge_pages", lambda: None)  # it would start the tests anew
    assert cli.program("train") == 1
    assert "gone.py" in capsys.readouterr().err


# --- help


@pytest.mark.parametrize("verb", ["train", "inspect", *VERBS])
def test_the_example_of_a_verb_is_a_command(capsys, verb):
    with pytest.raises(SystemExit) as ended:
        cli.main([verb, "--help"])
    assert ended.value.code == 0
    (example,) = re.findall(r"^Example: vaejax (.+)$", capsys.readouterr().out, re.MULTILINE)
    known, unknown = cli._parser().parse_known_args(example.split())
    assert known.verb == verb
    assert all(word.startswith("--config.") for word in unknown)
    if verb == "train":
        config_file.load(ROOT / known.config, unknown)


def test_every_verb_is_listed(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    output = capsys.readouterr().out
    assert all(re.search(rf"^ +{verb}\b", output, re.MULTILINE) for verb in ("train", "inspect", *VERBS))


@pytest.mark.parametrize("verb", ["sample", "frechet"])
def test_help_lists_every_sampler(capsys, verb):
    from vaejax.samplers import SAMPLERS

    with pytest.raises(SystemExit):
        cli.main([verb, "--help"])
    (choices,) = re.findall(r"--sampler \{([a-z,]+)\}", capsys.readouterr().out.partition("Example")[2])
    assert choices.removesuffix(",both").split(",") == list(SAMPLERS)


# --- several processes


@pytest.mark.parametrize("given", [["--process=0"], ["--coordinator=a:1", "--processes=2"]])
def test_what_is_said_of_the_other_processes_is_said_whole(tmp_path, capsys, given):
    status = cli.main(
        ["train", "--config", str(ROOT / "configs" / "quickstart.py"), "--workdir", str(tmp_path / "run"), *given]
    )
    assert status == cli.ERROR_EXIT
    assert "--coordinator, --processes and --process go together" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["Dockerfile", "slurm.sh", "jobset.yaml"])
def test_the_files_for_clusters_name_flags_and_fields_that_exist(name):
    text = (ROOT / "deploy" / name).read_text()
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    flags = [flag for flag in re.findall(r"--[a-z][\w.=/$():-]*", code) if not flag.startswith(BUILDING)]
    known, unknown = cli._parser().parse_known_args(
        ["train", *(flag.replace("$(JOB_COMPLETION_INDEX)", "1") for flag in flags)]
    )
    assert flags
    config_file.load(ROOT / known.config if known.config else None, unknown)


BUILDING = (
    "--no-cache-dir",
    "--create-home",
    "--kill-on-bad-exit",
    "--job-name",
    "--nodes",
    "--ntasks",
    "--gpus",
    "--cpus",
    "--time",
    "--requeue",
    "--open-mode",
    "--signal",
)
"""Flags of other programs in those files."""
