"""Any image data set of TensorFlow Datasets, by its name: downloaded, cached and read by TFDS."""

import contextlib
import io
from typing import Any

import numpy as np

from vaejax.config import DataConfig
from vaejax.datasets.source import Examples, Source
from vaejax.errors import DataError

_SPLITS = {"train": ("train",), "val": ("validation", "val", "valid"), "test": ("test",)}


def source(config: DataConfig) -> Source:
    """The data set that `config.name` names after "tfds:"; `config.path` is TFDS's data directory.

    The image is the one feature of type Image, the label the one of type ClassLabel, if there is one.

    Raises:
        DataError: TFDS does not know the name or cannot prepare it, or the data set has no image, several, or no train split.
    """
    import tensorflow_datasets as tfds  # slow, and needed by this source alone

    name = config.name.removeprefix("tfds:")
    try:
        builder = tfds.builder(name, data_dir=config.path, file_format="array_record")
    except Exception as error:  # TFDS raises many kinds: unknown names, versions, formats, folders
        raise DataError(
            f"data.name={config.name!r}: TFDS cannot use it ({error}). Check data.name; if the set was prepared as TFRecord "
            "before, which gives no random access, name another folder in data.path."
        ) from error
    features = builder.info.features
    image = _one(features, tfds.features.Image)
    label = _one(features, tfds.features.ClassLabel)
    if image is None:
        raise DataError(
            f"data.name={config.name!r}: expected one image feature, found {dict(features)}. Choose another data set."
        )
    names = tuple(features[label].names) if label and features[label].names else None
    return Source(builder.info.full_name, names, lambda: _open(builder, config.name, image, label))


def _one(features: Any, kind: type) -> str | None:
    """The name of the only feature of a kind."""
    names = [name for name, feature in features.items() if type(feature) is kind]
    return names[0] if len(names) == 1 else None


def _open(builder: Any, name: str, image: str, label: str | None) -> dict[str, Examples]:
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare()
    except Exception as error:  # no network, no disk, a manual download, a changed file: each has its own class
        raise DataError(
            f"data.name={name!r}: TFDS cannot prepare it ({error}). Check the network, the installation and data.path."
        ) from error
    found = {split: next((n for n in names if n in builder.info.splits), None) for split, names in _SPLITS.items()}
    if found["train"] is None:
        raise DataError(f"data.name={name!r}: expected a split train, found {', '.join(builder.info.splits)}. Choose another.")
    return {split: _examples(builder, theirs, image, label) for split, theirs in found.items() if theirs}


def _examples(builder: Any, split: str, image: str, label: str | None) -> Examples:
    from tensorflow_datasets import decode

    rows = builder.as_data_source(split)
    if label is None:
        return Examples(len(rows), lambda i: rows[i][image])
    undecoded = builder.as_data_source(split, decoders={image: decode.SkipDecoding()})
    labels = np.array([row[label] for row in undecoded], np.int32)
    return Examples(len(rows), lambda i: rows[i][image], labels)
