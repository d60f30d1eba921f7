"""MedMNIST files (https://medmnist.com): one .npz with {train,val,test}_{images,labels}."""

from pathlib import Path

import numpy as np

from vaejax.config import DataConfig
from vaejax.datasets import isolation
from vaejax.datasets.source import Examples, Source, arrays, hash_files
from vaejax.errors import DataError


def source(config: DataConfig) -> Source:
    """The file `config.path`: images [n, H, W] or [n, H, W, 1 to 4], uint8, uint16 or float of 0 to 1; labels [n] or [n, 1].

    Labels of several columns (ChestMNIST) are no classes: such images come without labels.

    Raises:
        DataError: no such file, not an .npz, keys, shapes or values other than these, or volumes.
    """
    path = Path(config.path or "")
    if not path.is_file():
        raise DataError(
            f"{path}: expected a MedMNIST .npz file, found {'a folder' if path.is_dir() else 'none'}. Check data.path."
        )
    return Source(hash_files([(path.name, path)]), None, lambda: isolation.data_set(read, config, path))


def read(path: Path) -> dict[str, Examples]:
    """The splits in a file. Raises DataError as `source` does."""
    try:
        with np.errstate(all="ignore"), np.load(path, allow_pickle=False) as file:
            found = sorted(file.files)
            splits = [split for split in ("train", "val", "test") if f"{split}_images" in found]
            if "train" not in splits:
                raise DataError(f"{path}: expected the array train_images, found {', '.join(found) or 'no array'}.")
            return {
                split: _examples(f"{path}: {split}_", file[f"{split}_images"], file.get(f"{split}_labels")) for split in splits
            }
    except DataError:
        raise
    except Exception as error:  # damaged files make NumPy raise almost anything
        raise DataError(f"{path}: expected an .npz of plain arrays, found something else ({error}). Fetch it again.") from error


def _examples(where: str, images: np.ndarray, labels: np.ndarray | None) -> Examples:
    """Checks one split; `where` begins its messages."""
    if images.ndim == 5 or (images.ndim == 4 and images.shape[-1] > 4):
        raise DataError(
            f"{where}images: found volumes of shape {images.shape[1:]}, which are not supported yet. Choose 2-D images."
        )
    if images.ndim not in (3, 4) or 0 in images.shape:
        raise DataError(f"{where}images: expected the shape [n, H, W] or [n, H, W, C], found {images.shape}.")
    if images.dtype.kind == "f":
        images = images.astype(np.float32)
        if not (images.min() >= 0 and images.max() <= 1):  # false for NaN, too
            raise DataError(
                f"{where}images: expected values from 0 to 1, found {images.min()} to {images.max()}. Rescale them."
            )
    if images.dtype not in (np.uint8, np.uint16, np.float32):
        raise DataError(f"{where}images: expected uint8, uint16 or float of 0 to 1, found {images.dtype}.")
    if labels is None:
        return arrays(images, None)
    if len(labels) != len(images):
        raise DataError(f"{where}labels: expected {len(images)} labels, one an image, found {len(labels)}.")
    classes = labels.size == len(images) and labels.dtype.kind in "iu"
    return arrays(images, labels.reshape(-1) if classes else None)
