"""A run directory holds all there is to know about a run, and every verb about a run takes it first.

config.json        the resolved configuration; it runs again from there
data.json          fingerprint and shape of the images that the run is about, and the ranges of their grey levels; counts only
checkpoints/STEP/  see `vaejax.checkpoints`
metrics.jsonl      one line every `training.log_every` steps and one an epoch
tensorboard/       the same as TensorBoard events
evaluation.json    see `vaejax.evaluation`
report/index.html  see `vaejax.report`
source.json        of a run that started from another one: its step, the sha256 of its weights, and what was not taken over
frechet.json       see `vaejax.frechet`
anomaly.json       see `vaejax.screening`; anomaly.csv and anomaly_maps.npy beside it
private/           what may carry names, such as paths of unreadable files; mode 0700; on a disk only
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from vaejax import config as configuration
from vaejax import config_file, datasets, hosts, inspection, models, storage
from vaejax.config import Config
from vaejax.datasets import DataSet
from vaejax.errors import DataError, TrainingError

_EXTENDABLE = "training.steps"
_INDIFFERENT = ("data.workers", "data.cache", "data.resident", "model.remat", "training.steps_per_call")
"""Fields that change nothing of what a run computes, but for rounding."""


class Run(NamedTuple):
    """An open run directory: what was asked, the images it is about, and the model for them."""

    directory: epath.Path
    config: Config
    data: DataSet
    model: models.Model

    @property
    def checkpoints(self) -> epath.Path:
        """Where the steps are kept."""
        return self.directory / "checkpoints"

    @property
    def fingerprint(self) -> str:
        """sha256 of what makes this run itself: the configuration without the number of steps, and the images.

        Fields at their default are left out, so that a run outlives versions that add fields.
        """
        return _fingerprint(self.config, self.data.fingerprint)


class Outline(NamedTuple):
    """What can be said of a run without its images: enough to take over its weights."""

    directory: epath.Path
    config: Config
    model: models.Model
    fingerprint: str
    label_names: list[str] | None

    @property
    def checkpoints(self) -> epath.Path:
        """Where the steps are kept."""
        return self.directory / "checkpoints"


def create(directory: str, config: Config) -> Run:
    """Opens a run directory for training: a new one, or one of the same configuration to go on with.

    Raises:
        TrainingError: where the directory holds a run of another configuration, naming the fields; more `training.steps`
            is the one difference allowed.
        DataError: where the images cannot be used, or are no longer those that the run began with.
    """
    path = storage.path(directory)
    file = path / "config.json"
    with hosts.first_before_others("run"):
        if storage.exists(file):
            _require_same(config_file.load(file), config, directory)
        run = _open(path, config)
        try:
            storage.make_folder(path)
        except OSError as error:
            raise TrainingError(f"--workdir={directory}: expected a folder to write to: {error}. Choose another.") from error
        write_json(path / "data.json", _describe(run.data) | {"ranges": ranges_of(run) or _ranges(run.data)})
        write_json(file, configuration.to_dict(config))
        if run.data.skipped and hosts.first() and not storage.is_url(path):  # else they are with the prepared images alone
            write_private(path, "skipped.json", [{"path": name, "reason": reason} for name, reason in run.data.skipped])
    return run


def load(directory: str) -> Run:
    """Opens the directory of a run that was trained, at least in part.

    Raises:
        TrainingError: where there is no run.
        DataError: where its images are gone or have changed.
    """
    path = storage.path(directory)
    if not storage.exists(path / "config.json"):
        raise TrainingError(f"{directory}: no run here (no config.json). Expected the --workdir of a training.")
    return _open(path, config_file.load(path / "config.json"))


def outline(directory: str) -> Outline:
    """What `config.json` and `data.json` say of a run; its images may be gone.

    Raises:
        TrainingError: where there is no run.
    """
    path = storage.path(directory)
    if not all(storage.exists(path / name) for name in ("config.json", "data.json")):
        raise TrainingError(f"{directory}: no run here (no config.json and data.json). Expected the --workdir of a training.")
    config, data = config_file.load(path / "config.json"), read_json(path / "data.json")
    names = data["label_names"]
    model = models.build(config.model, tuple(data["image_shape"]), len(names) if names else None)
    return Outline(path, config, model, _fingerprint(config, data["fingerprint"]), names)


def ranges_of(run: Run) -> inspection.Ranges | None:
    """The ranges of the training images; None where an older version began the run."""
    file = run.directory / "data.json"
    return read_json(file).get("ranges") if storage.exists(file) else None


def read_json(path: epath.Path) -> Any:
    """The value in a JSON file."""
    with storage.explained(path):
        text = path.read_text()
    return json.loads(text)


def cache_of(path: epath.Path, config: Config) -> epath.Path:
    """The folder of what is prepared once for all runs on the same images; of runs in a cloud store, in the user's own cache.

    Raises:
        StorageError: `data.cache` is a URL.
    """
    if config.data.cache:
        storage.require_disk("data.cache", config.data.cache, "prepared images are memory-mapped")
        return epath.Path(config.data.cache)
    return epath.Path(storage.home() / "data") if storage.is_url(path) else path.parent / "data"


def _open(path: epath.Path, config: Config) -> Run:
    data = datasets.load(config.data, cache_of(path, config))
    file = path / "data.json"
    if storage.exists(file) and read_json(file)["fingerprint"] != data.fingerprint:
        raise DataError(
            f"data.path={config.data.path!r}: the images are not those that {path} began with (another fingerprint). "
            "Restore them, or train into another --workdir."
        )
    model = models.build(config.model, data.image_shape, len(data.label_names) if data.label_names else None)
    if model.segment and "segmentation" not in data.splits["train"].read(np.zeros(1, int)):
        raise DataError(
            f"data.masks={config.data.masks!r}: model.regions={config.model.regions} needs masks to learn from, and the images "
            "have none. Name the folder that they are in."
        )
    if data.white != 1.0 and model.levels is not None and model.levels > data.white + 1:
        raise DataError(
            f"model.levels={config.model.levels}: the images have {data.white + 1:g} levels; expected at most those."
        )
    return Run(path, config, data, model)


def _fingerprint(config: Config, data_fingerprint: str) -> str:
    values = configuration.changed(config)
    for name in (_EXTENDABLE, *_INDIFFERENT):
        values.pop(name, None)
    return hashlib.sha256(json.dumps([values, data_fingerprint], sort_keys=True).encode()).hexdigest()


def _require_same(old: Config, new: Config, directory: str) -> None:
    changed = configuration.differences(old, new)
    refused = [line for line in changed if line.partition(":")[0] not in (_EXTENDABLE, *_INDIFFERENT)]
    if refused:
        raise TrainingError(
            f"{directory}: holds a run of another configuration:\n  "
            + "\n  ".join(refused)
            + f"\nOnly more {_EXTENDABLE} extends a run. Use another --workdir, or the run's own config.json."
        )
    if new.training.steps < old.training.steps:
        raise TrainingError(
            f"{directory}: training.steps={new.training.steps} is fewer than the run's {old.training.steps}. "
            "A run can be extended, not shortened: use another --workdir."
        )


def _ranges(data: DataSet) -> inspection.Ranges:
    return inspection.ranges(data.splits["train"], data.white) if hosts.first() else {}


def _describe(data: DataSet) -> dict[str, Any]:
    return {
        "fingerprint": data.fingerprint,
        "image_shape": list(data.image_shape),
        "white": data.white,
        "splits": {name: split.n for name, split in data.splits.items()},
        "label_names": list(data.label_names) if data.label_names else None,
        "skipped": len(data.skipped),
    }


def write_private(path: epath.Path, name: str, value: Any) -> None:
    """Writes what can carry names, such as paths, into the folder `private`, for its owner alone: a store has no such thing."""
    storage.require_disk("private", path, "what it holds is for its owner alone")
    folder = path / "private"
    folder.mkdir(parents=True, exist_ok=True)
    Path(folder).chmod(0o700)
    write_json(folder / name, value)
    Path(folder / name).chmod(0o600)


def write_json(path: epath.Path, value: Any) -> None:
    """Writes a value as a JSON file, whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: epath.Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: epath.Path, content: bytes) -> None:
    """Writes a file, whole or not at all; of several processes, the first writes."""
    if hosts.first():
        storage.write_bytes(path, content)
