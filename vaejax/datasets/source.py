"""What every source of images gives: its contents as one hash, and its splits, each read one example at a time."""

import functools
import gzip
import hashlib
import stat
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from vaejax.errors import DataError

Item = TypeVar("Item")

NOTES = {".txt", ".md", ".csv", ".json"}
"""Suffixes of what data sets bring along beside their images."""

NOTICE = "derived, not for diagnosis"
"""What a result in the place of a source says of itself, where its format has room."""


class Examples(NamedTuple):
    """A split as its source holds it: nothing is read before `read(i)`.

    Where `paths` are known, it can be pickled, so that other processes can read it.

    Attributes:
        n: number of examples, in a fixed order.
        read: i -> image [H, W, C] of dtype uint8, uint16 or float32 in [0, 1]; any size.
            Raises DataError with the bare reason where the image is unreadable.
        labels: int32 [n], or None where unknown.
        paths: where each example lies, relative to the source's folder; None for images that are not files.
        patients: int [n], examples of one number stay in one split, and those of -1 in train; None where nobody knows.
        segmentation: i -> the class of every pixel of image i, uint8 [H, W], 0 for none of them; None where nobody drew any.
        window: what became 0 and 1 in every image, in the units of the files, where it was measured over all of them.
        volumes: int [n], slices of one number are of one volume, in their order; None where images are no slices.
        spacing: float32 [n, 3], mm from slice to slice, row to row, column to column of the prepared images; NaN where unknown.
    """

    n: int
    read: Callable[[int], np.ndarray]
    labels: np.ndarray | None = None
    paths: tuple[str, ...] | None = None
    patients: np.ndarray | None = None
    segmentation: Callable[[int], np.ndarray] | None = None
    window: tuple[float, float] | None = None
    volumes: np.ndarray | None = None
    spacing: np.ndarray | None = None


class Source(NamedTuple):
    """Images before preparation.

    Attributes:
        contents: sha256 hex of all that the images depend on; computed at every load.
        label_names: the name of label i, or None where unknown.
        open: the splits that the source has: "train", and "val" and "test" where it has them. Called only to prepare.
    """

    contents: str
    label_names: tuple[str, ...] | None
    open: Callable[[], dict[str, Examples]]


def arrays(images: np.ndarray, labels: np.ndarray | None) -> Examples:
    """A split held in memory: images [n, H, W] or [n, H, W, C], labels [n]."""
    images = images if images.ndim == 4 else images[..., None]
    return Examples(len(images), images.__getitem__, None if labels is None else labels.astype(np.int32))


def reading(read: Callable[[Item], np.ndarray], items: Sequence[Item]) -> Callable[[int], np.ndarray]:
    """`i -> read(items[i])`; unlike a lambda, it can be pickled where both can."""
    return functools.partial(_read, read, items)


def _read(read: Callable[[Item], np.ndarray], items: Sequence[Item], i: int) -> np.ndarray:
    return read(items[i])


def take(examples: Examples, rows: np.ndarray) -> Examples:
    """The examples at `rows` (int [m]), in that order."""
    segmentation = examples.segmentation
    return Examples(
        len(rows),
        reading(examples.read, rows.tolist()),
        None if examples.labels is None else examples.labels[rows],
        None if examples.paths is None else tuple(examples.paths[row] for row in rows),
        None if examples.patients is None else examples.patients[rows],
        None if segmentation is None else reading(segmentation, rows.tolist()),
        examples.window,
        None if examples.volumes is None else examples.volumes[rows],
        None if examples.spacing is None else examples.spacing[rows],
    )


@contextmanager
def decoding(kind: str) -> Iterator[None]:
    """Every failure within as one DataError, the bare reason: libraries can quote a header, so the kind of theirs is told.

    Args:
        kind: of the file: "DICOM", "NIfTI".
    """
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            yield
        except DataError:
            raise
        except (EOFError, gzip.BadGzipFile, zlib.error):
            raise DataError(f"a {kind} file that is damaged or cut short") from None
        except Exception as error:  # damaged files make libraries raise almost anything, OSErrors of their own among them
            known = error.strerror if isinstance(error, OSError) else None
            raise DataError(known or f"a damaged {kind} file ({type(error).__name__})") from None


def example_name(split: str, examples: Examples, i: int) -> str:
    """What an example is called in an error: its path, or its place."""
    return examples.paths[i] if examples.paths else f"{split} image {i}"


def first_of(names: Sequence[str], most: int = 5) -> str:
    """The first of many names, for an error."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def files_in(folder: Path, pattern: str) -> list[Path]:
    """Files that match, sorted by path, without hidden ones and notes: each is an image or counts as unreadable."""
    # not is_file(): that is false for a broken link, which is to be reported
    paths = (path for path in folder.glob(pattern) if not path.is_dir() and path.suffix.lower() not in NOTES)
    shown = (path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts))
    return sorted(shown, key=lambda path: path.as_posix())


def size_of(path: Path, most: int) -> int:
    """The bytes of a file, before any is read. Raises DataError, the bare reason, where it is none, or has more than `most`."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise DataError("not a regular file")
    if found.st_size > most:
        raise DataError(f"a file of {found.st_size} bytes; at most {most} are allowed")
    return found.st_size


def hash_files(files: Iterable[tuple[str, Path]]) -> str:
    """sha256 hex of the names (not the folders they lie in) and contents of `files`, in the order given."""
    digest = hashlib.sha256()
    for name, path in files:
        digest.update(f"{len(name.encode())}:{name}".encode())
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:  # an example that cannot be opened is reported when it is read
            digest.update(type(error).__name__.encode())
    return digest.hexdigest()
