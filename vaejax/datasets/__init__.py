"""Where images come from: sources by name, each prepared once into the same fixed splits; no word about training."""

import dataclasses
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from vaejax import storage
from vaejax.config import DataConfig
from vaejax.datasets import arrays, beam, idx, image_folder, manifest, mnist5k, tfds_name, volumes, workers
from vaejax.datasets.masks import INSIDE, misplaced
from vaejax.datasets.prepared import DataSet, Split, prepare
from vaejax.datasets.source import Source
from vaejax.errors import DataError

__all__ = ["DRIVERS", "SOURCES", "DataSet", "Split", "load"]

SOURCES: dict[str, Callable[[DataConfig], Source]] = {
    "mnist5k": mnist5k.source,
    "idx": idx.source,
    "medmnist": arrays.source,
    "image_folder": image_folder.source,
    "volumes": volumes.source,
    "arrays": arrays.source,
    "manifest": manifest.source,
    "tfds": tfds_name.source,
}

DRIVERS: dict[str, workers.Driver] = {"processes": workers.each, "beam": beam.each}


def load(config: DataConfig, cache: Path, drive: workers.Driver = workers.each) -> DataSet:
    """The images that `config` names, prepared in a folder under `cache`.

    A prepared data set is checked against its sha256 and memory-mapped; one that is absent, damaged, or made of other
    contents or settings is prepared first, with a progress bar on the terminal, in `config.workers` processes or whatever
    `drive` starts. What `config.path` and `config.masks` name in a cloud store is first copied to a folder under `cache`.

    Raises:
        DataError: the images cannot be found, read or used as asked; the message says what to do.
        StorageError: a cloud store cannot be used.
    """
    name = config.name.partition(":")[0]
    if name not in SOURCES:
        raise DataError(f"data.name={config.name!r}: expected one of {', '.join(SOURCES)}.")
    config = _on_disk(config, Path(cache))
    return prepare(SOURCES[name](config), config, Path(cache), drive)


def _on_disk(config: DataConfig, cache: Path) -> DataConfig:
    """The same configuration, of copies on a disk of what is in a cloud store: sources read files in place."""
    if config.name.startswith("tfds:"):
        storage.require_disk("data.path", config.path or "", "TFDS reads its records from a disk")
    masks = config.masks or ""
    if storage.is_url(masks) and config.path and PurePosixPath(masks).is_relative_to(config.path):  # the copies will be apart
        raise misplaced(masks, INSIDE)
    places: dict[str, Any] = {}
    for field in ("path", "masks"):
        text = getattr(config, field)
        if text is not None and storage.is_url(text):
            path = storage.path(text)
            listed = config.name == "manifest" and field == "path"  # a table of files beside and below it
            copy = storage.mirrored(path.parent if listed else path, cache)
            places[field] = str(copy / path.name if listed else copy)
    return dataclasses.replace(config, **places)
