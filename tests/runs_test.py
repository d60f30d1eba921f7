"""A run directory is about one configuration and one set of images, and keeps to itself what may carry names."""

import copy
import dataclasses
import hashlib
import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from PIL import Image

from vaejax import config_file, inspection, runs
from vaejax.config import Config, from_dict
from vaejax.datasets import DataSet
from vaejax.errors import ConfigError, DataError, TrainingError
from vaejax.runs import Run

INDIFFERENT = ("data.workers", "data.cache", "data.resident", "model.remat", "training.steps_per_call")
IMAGES = np.random.default_rng(0).integers(0, 256, (40, 5, 4), np.uint8)


@pytest.fixture
def images(tmp_path) -> Path:
    """Twenty grey images of each of two classes."""
    for number, pixels in enumerate(IMAGES):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return tmp_path / "images"


def _config(path: Path, **sections: dict) -> Config:
    data = {"name": "image_folder", "path": str(path)} | sections.pop("data", {})
    return from_dict({"data": data, "model": {"network": "mlp"}} | sections)


def _json(path: Path):
    return json.loads(path.read_text())


# --- creation


def test_a_new_directory_says_what_was_asked_and_of_which_images(tmp_path, images):
    config = _config(images, seed=3)
    run = runs.create(str(tmp_path / "deep" / "run"), config)
    directory = tmp_path / "deep" / "run"
    assert sorted(path.name for path in directory.iterdir()) == ["config.json", "data.json"]
    assert config_file.load(directory / "config.json") == config == run.config
    told = _json(directory / "data.json")
    assert told.pop("ranges").keys() == inspection.TRAITS.keys()
    assert told == {
        "fingerprint": run.data.fingerprint,
        "image_shape": [5, 4, 1],
        "white": 255.0,
        "splits": {"train": 32, "val": 4, "test": 4},
        "label_names": ["a", "b"],
        "skipped": 0,
    }
    assert run.model.image_shape == (5, 4, 1)
    assert (tmp_path / "deep" / "data").is_dir()  # prepared images: beside the run, for the next one


def test_prepared_images_go_where_they_are_told(tmp_path, images):
    runs.create(str(tmp_path / "deep" / "run"), _config(images, data={"cache": str(tmp_path / "cache")}))
    assert (tmp_path / "cache").is_dir()
    assert not (tmp_path / "deep" / "data").exists()


def test_the_same_configuration_opens_the_same_run(tmp_path, images):
    first = runs.create(str(tmp_path / "run"), _config(images))
    again = runs.create(str(tmp_path / "run"), _config(images))
    loaded = runs.load(str(tmp_path / "run"))
    assert first.fingerprint == again.fingerprint == loaded.fingerprint
    assert first.config == again.config == loaded.config


def test_another_configuration_is_refused_by_the_fields_that_differ(tmp_path, images):
    runs.create(str(tmp_path / "run"), _config(images))
    other = _config(images, seed=1, optimizer={"learning_rate": 0.01}, training={"steps": 5_000})
    with pytest.raises(TrainingError) as error:
        runs.create(str(tmp_path / "run"), other)
    fields = [line.strip() for line in str(error.value).splitlines() if line.startswith("  ")]
    assert fields == ["seed: 0 -> 1", "optimizer.learning_rate: 0.001 -> 0.01"]
    assert str(error.value).startswith(str(tmp_path / "run"))
    assert config_file.load(tmp_path / "run" / "config.json") == _config(images)


def test_more_steps_extend_a_run(tmp_path, images):
    first = runs.create(str(tmp_path / "run"), _config(images, training={"steps": 10}))
    longer = runs.create(str(tmp_path / "run"), _config(images, training={"steps": 20}))
    assert config_file.load(tmp_path / "run" / "config.json").training.steps == 20
    assert longer.fingerprint == first.fingerprint


def test_fewer_steps_are_refused(tmp_path, images):
    runs.create(str(tmp_path / "run"), _config(images, training={"steps": 20}))
    with pytest.raises(TrainingError, match=r"training\.steps=19 is fewer than the run's 20"):
        runs.create(str(tmp_path / "run"), _config(images, training={"steps": 19}))
    assert config_file.load(tmp_path / "run" / "config.json").training.steps == 20


def test_a_damaged_config_file_is_named(tmp_path, images):
    runs.create(str(tmp_path / "run"), _config(images))
    (tmp_path / "run" / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json: not valid JSON"):
        runs.create(str(tmp_path / "run"), _config(images))


# --- images


@pytest.mark.parametrize("change", ["contents", "name", "added", "removed"])
def test_changed_images_are_refused(tmp_path, images, change):
    config = _config(images)
    runs.create(str(tmp_path / "run"), config)
    before = (tmp_path / "run" / "data.json").read_text()
    file = images / "a" / "0.png"
    if change == "contents":
        Image.fromarray(IMAGES[0] ^ 1).save(file)
    elif change == "name":
        file.rename(file.with_name("zero.png"))
    elif change == "added":
        Image.fromarray(IMAGES[0]).save(file.with_name("another.png"))
    else:
        file.unlink()
    for opening in (lambda: runs.create(str(tmp_path / "run"), config), lambda: runs.load(str(tmp_path / "run"))):
        with pytest.raises(DataError, match=r"the images are not those that .*run began with"):
            opening()
    assert (tmp_path / "run" / "data.json").read_text() == before


def test_images_that_are_gone_are_named(tmp_path, images):
    runs.create(str(tmp_path / "run"), _config(images))
    images.rename(tmp_path / "moved")
    with pytest.raises(DataError, match=str(images)):
        runs.load(str(tmp_path / "run"))


def test_unusable_images_leave_no_run_behind(tmp_path, images):
    (images / "a" / "0.png").write_bytes(b"no picture")
    with pytest.raises(DataError):
        runs.create(str(tmp_path / "run"), _config(images))
    assert not (tmp_path / "run").exists()


def test_skipped_files_are_named_in_private_and_nowhere_else(tmp_path, images):
    (images / "a" / "doe_jane_1970.png").write_bytes(b"no picture")
    old = os.umask(0)  # the widest: modes must not depend on it
    try:
        run = runs.create(str(tmp_path / "run"), _config(images, data={"on_error": "skip"}))
    finally:
        os.umask(old)
    private = tmp_path / "run" / "private"
    ((path, reason),) = [entry.values() for entry in _json(private / "skipped.json")]
    assert (path, bool(reason)) == ("a/doe_jane_1970.png", True)
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert stat.S_IMODE((private / "skipped.json").stat().st_mode) == 0o600
    assert _json(tmp_path / "run" / "data.json")["skipped"] == len(run.data.skipped) == 1
    files = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert [file.name for file in files if b"doe_jane" in file.read_bytes()] == ["skipped.json"]


@pytest.mark.parametrize(("dtype", "levels"), [(np.uint8, 256), (np.uint16, 65_536), (np.float32, 65_536)])
def test_a_likelihood_may_have_as_many_levels_as_the_images(tmp_path, dtype, levels):
    _discrete(tmp_path, dtype, levels)  # images of fractions can be rounded to any


def test_a_likelihood_has_no_more_levels_than_the_images(tmp_path):
    with pytest.raises(DataError, match=r"model\.levels=257: the images have 256 levels"):
        _discrete(tmp_path, np.uint8, 257)


def _discrete(tmp_path: Path, dtype: type, levels: int) -> Run:
    """A run on a MedMNIST file of `dtype`."""
    file = tmp_path / "images.npz"
    np.savez(file, train_images=(IMAGES / 255.0 if dtype is np.float32 else IMAGES).astype(dtype))
    model = {"network": "mlp", "likelihood": "discretized_logistic", "levels": levels}
    return runs.create(str(tmp_path / "run"), _config(file, data={"name": "medmnist"}, model=model))


# --- loading


@pytest.mark.parametrize("place", ["gone", "empty"])
def test_a_directory_without_a_run_is_named(tmp_path, place):
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrainingError, match=rf"{place}: no run here"):
        runs.load(str(tmp_path / place))


# --- fingerprint


def _fingerprint(config: Config, images: str = "of the images") -> str:
    data = DataSet({}, (1, 1, 1), 255.0, None, images, ())
    return Run(epath.Path("anywhere"), config, data, model=None).fingerprint


def test_the_fingerprint_changes_with_every_field_but_those_that_change_no_result():
    original = _fingerprint(Config())
    seen = {original}
    places = [(section.name, field.name) for section in dataclasses.fields(Config) for field in _fields(section.default)]
    for section, name in [("", "seed"), *places]:
        config = copy.deepcopy(Config())
        object.__setattr__(getattr(config, section) if section else config, name, "another")
        if (section, name) == ("training", "steps") or f"{section}.{name}" in INDIFFERENT:
            assert _fingerprint(config) == original
            continue
        assert _fingerprint(config) not in seen, (section, name)
        seen.add(_fingerprint(config))
    assert len(seen) > 40


def _fields(section: object) -> tuple[dataclasses.Field, ...]:
    return dataclasses.fields(section) if dataclasses.is_dataclass(section) else ()


def test_a_field_at_its_default_is_not_in_the_fingerprint():
    """Else a version with one more field would refuse the checkpoints of all runs before it."""
    expected = hashlib.sha256(json.dumps([{"seed": 3}, "of the images"]).encode()).hexdigest()
    assert _fingerprint(Config(seed=3)) == expected


def test_the_fingerprint_changes_with_the_images():
    assert _fingerprint(Config()) != _fingerprint(Config(), images="of others")


# --- JSON files


def test_a_json_file_is_replaced_as_a_whole(tmp_path, monkeypatch):
    file = epath.Path(tmp_path / "a.json")
    runs.write_json(file, {"a": 1})

    def fail(*_):
        raise OSError("killed before the rename")

    with monkeypatch.context() as context:
        context.setattr(type(file), "replace", fail)
        with pytest.raises(OSError, match="killed"):
            runs.write_json(file, {"a": 2})
    assert runs.read_json(file) == {"a": 1}
    runs.write_json(file, {"a": 3})
    assert runs.read_json(file) == {"a": 3}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
