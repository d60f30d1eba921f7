"""MNIST's IDX files (http://yann.lecun.com/exdb/mnist): train-* and t10k-* in a folder, with or without .gz."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from vaejax.config import DataConfig
from vaejax.datasets import isolation
from vaejax.datasets.source import Examples, Source, arrays, hash_files
from vaejax.errors import DataError


def source(config: DataConfig) -> Source:
    """The images and labels in the folder `config.path`; the test split is optional.

    Raises:
        DataError: a file is missing, cut short, too long, or not what its name says.
    """
    folder = Path(config.path or "")
    files = {"train": _pair(folder, "train")}
    if any(folder.glob("t10k-*")):
        files["test"] = _pair(folder, "t10k")
    contents = hash_files((path.name, path) for pair in files.values() for path in pair)
    return Source(
        contents, None, lambda: {split: isolation.data_set(_examples, config, *pair) for split, pair in files.items()}
    )


def _pair(folder: Path, prefix: str) -> tuple[Path, Path]:
    """The files of a split's images and labels."""
    names = [f"{prefix}-{suffix}" for suffix in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    for name in names:
        if not (folder / name).is_file() and not (folder / f"{name}.gz").is_file():
            raise DataError(f"{folder}: expected the file {name} or {name}.gz, found neither. Check data.path.")
    images, labels = (folder / name if (folder / name).is_file() else folder / f"{name}.gz" for name in names)
    return images, labels


def _examples(images: Path, labels: Path) -> Examples:
    pixels, digits = _array(images, 3), _array(labels, 1)
    if len(pixels) != len(digits):
        raise DataError(f"{labels}: expected {len(pixels)} labels, as {images.name} has images, found {len(digits)}.")
    return arrays(pixels, digits)


def _array(path: Path, rank: int) -> np.ndarray:
    """uint8 of `rank` dimensions: two zero bytes, the type (8: uint8), the rank, the sizes (big-endian), the values."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(4 + 4 * rank)
            if len(header) < 4 + 4 * rank or header[:4] != bytes((0, 0, 8, rank)):
                raise DataError(
                    f"{path}: expected the IDX header 00 00 08 {rank:02}, found {header[:4].hex(' ') or 'no bytes'}."
                )
            shape = struct.unpack(f">{rank}I", header[4:])
            expected = math.prod(shape)
            values = file.read(expected + 1)
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path}: expected an IDX file, found a damaged one ({error}). Fetch it again.") from error
    if len(values) != expected:
        found = len(values) if len(values) < expected else "more"
        raise DataError(f"{path}: expected {expected} bytes of values for the shape {shape}, found {found}. Fetch it again.")
    return np.frombuffer(values, np.uint8).reshape(shape)
