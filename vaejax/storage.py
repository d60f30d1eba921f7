"""Where files lie: folders of a disk, or a cloud store by its URL.

A store has whole objects: a write is seen as a whole or not at all. It has no folders, so that none needs to be made; it has no
append, no mode, no lock, no rename but a copy, and nothing in it can be memory-mapped. What needs one of these happens on a
disk, and is copied. Stores are reached through `etils.epath` and the file systems of fsspec. TensorFlow's are of no use: that
for gs:// knows the address of Google alone, and there is none for s3://.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

os.environ.setdefault("EPATH_USE_TF", "false")  # read once, by the first path that is used

from etils import epath

from vaejax.errors import StorageError, VaejaxError

BACKENDS = {"gs": "gcsfs", "s3": "s3fs"}
"""The package that reaches the stores of a scheme."""

_BATCH = 1_000  # files fetched before it is noted which are here


def path(text: epath.PathLike) -> epath.Path:
    """A path on a disk, or of a store that answers.

    Raises:
        StorageError: a URL of another scheme, without its package, or of a store that cannot be reached.
    """
    if not is_url(text):
        return epath.Path(text)
    url = os.fspath(text)
    scheme = url.partition("://")[0]
    if scheme not in BACKENDS:
        raise StorageError(f"{url}: expected a folder, or a URL that begins with {' or '.join(f'{s}://' for s in BACKENDS)}.")
    if importlib.util.find_spec(BACKENDS[scheme]) is None:
        raise StorageError(f"{url}: {scheme}:// needs the package {BACKENDS[scheme]}: pip install 'vaejax[cloud]'.")
    with explained(url):
        import fsspec

        # Orbax writes past the file system, which would go on listing what it saw before.
        fsspec.config.conf.setdefault(scheme, {})["use_listings_cache"] = False
        epath.Path(url).exists()
    return epath.Path(url)


def is_url(path: epath.PathLike) -> bool:
    """Whether a path is of a store rather than of a disk."""
    return "://" in os.fspath(path)


def absolute(path: epath.PathLike) -> epath.Path:
    """The same path, whatever the current folder; `epath` puts that before URLs, too."""
    return epath.Path(path) if is_url(path) else epath.Path(path).absolute()


def require_disk(what: str, path: epath.PathLike, why: str) -> None:
    """Raises StorageError where what must lie on a disk is given a URL."""
    if is_url(path):
        raise StorageError(f"{what}={os.fspath(path)}: expected a folder on this machine, found a URL: {why}.")


def home() -> Path:
    """The folder of what can be made again, the user's own."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "vaejax"  # noqa: PTH111  # may have no home


@contextlib.contextmanager
def explained(path: epath.PathLike, *passing: type[Exception]) -> Iterator[None]:
    """What the client of a store raises, each of its own kind, as a StorageError; of a disk, and what is `passing`, nothing."""
    try:
        yield
    except VaejaxError:
        raise
    except Exception as error:
        if not is_url(path) or isinstance(error, passing):
            raise
        what = " ".join(str(error).split()) or type(error).__name__
        raise StorageError(
            f"{os.fspath(path)}: the store cannot be used: {what}. Check the URL, the network and your credentials."
        ) from error


def exists(path: epath.Path) -> bool:
    """Whether a file or folder is there; StorageError where the store does not say."""
    with explained(path):
        return path.exists()


def make_folder(path: epath.Path) -> None:
    """Makes a folder and those above it, where they are absent."""
    if not is_url(path):
        path.mkdir(parents=True, exist_ok=True)


def write_bytes(path: epath.Path, content: bytes) -> None:
    """Writes a file so that no reader, and no file after a kill, has half of it."""
    if is_url(path):
        with explained(path):
            path.write_bytes(content)
        return
    with writing(path) as file:
        file.write_bytes(content)


@contextlib.contextmanager
def reading(path: epath.Path) -> Iterator[Path]:
    """A file or folder on a disk: the one meant, or a copy of what lies in a store, which is gone after the block."""
    if not is_url(path):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="vaejax-") as folder:  # mode 0700
        _fetch(path, list(files(path)), Path(folder) / path.name)
        yield Path(folder) / path.name


@contextlib.contextmanager
def writing(path: epath.Path) -> Iterator[Path]:
    """A file to be written on a disk, which takes the place of the one meant, there or in a store, if the block ends well."""
    if not is_url(path):
        temporary = path.parent / f"{path.name}.tmp"
        try:
            yield Path(temporary)
            temporary.replace(path)
        except BaseException:  # a signal's, too
            temporary.unlink(missing_ok=True)
            raise
        return
    with tempfile.TemporaryDirectory(prefix="vaejax-") as folder:
        yield Path(folder) / path.name
        upload(Path(folder) / path.name, path)


def upload(local: Path, path: epath.Path) -> None:
    """Copies a file, or all files of a folder, into a store."""
    names = [file.relative_to(local).as_posix() for file in local.rglob("*") if file.is_file()] if local.is_dir() else ["."]
    with explained(path):
        _system(path).put([str(local / name) for name in names], [os.fspath(path / name) for name in names])


def files(path: epath.Path) -> dict[str, dict[str, Any]]:
    """The files of a folder in a store by relative name, with what the store says of each; a file itself is ".".

    Raises:
        StorageError: the store cannot be read, or has names that lead out of the folder.
    """
    with explained(path):
        listed = _system(path).find(os.fspath(path), detail=True)
    above = os.fspath(path).partition("://")[2].rstrip("/")
    found = {(name.partition(above)[2].lstrip("/") or "."): facts for name, facts in listed.items() if not name.endswith("/")}
    for name in found:
        if ".." in PurePosixPath(name).parts or name.startswith("/"):
            raise StorageError(f"{path}: the name {name!r} leads out of the folder. Rename that object.")
    return dict(sorted(found.items()))


def mirrored(path: epath.Path, under: Path) -> Path:
    """A copy on disk of a file or folder in a store, which is kept: only what is new or changed is fetched the next time.

    Args:
        path: in the store.
        under: the folder of such copies; made here, it is of mode 0700, as is the one of its own that each has, since names
            can tell who is shown.

    Returns:
        the copy, of the same name.

    Raises:
        StorageError: nothing lies there, or the store cannot be read.
    """
    found = files(path)
    if not found:
        raise StorageError(f"{path}: expected a file or folder, found none. Check the URL.")
    folder = under / f"fetched-{hashlib.sha256(os.fspath(path).encode()).hexdigest()[:16]}"
    for made in (under, folder):  # apart, since `parents` are made with the usual mode
        made.mkdir(mode=0o700, parents=True, exist_ok=True)
    listing, copy = folder / "listing.json", folder / "files" / path.name
    known = json.loads(listing.read_text()) if listing.exists() else {}
    stamps = {name: [facts["size"], hashlib.sha256(str(facts).encode()).hexdigest()] for name, facts in found.items()}
    here = {name: stamp for name, stamp in stamps.items() if known.get(name) == stamp and _size(copy / name) == stamp[0]}
    missing = [name for name in stamps if name not in here]
    for name in set(known) - set(stamps):
        (copy / name).unlink(missing_ok=True)
    for start in range(0, len(missing), _BATCH):
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            batch = missing[start : start + _BATCH]
            _fetch(path, batch, Path(temporary) / path.name)
            for name in batch:
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                (Path(temporary) / path.name / name).replace(copy / name)
        here |= {name: stamps[name] for name in batch}
        write_bytes(epath.Path(listing), json.dumps(here).encode())
    return copy


def _size(file: Path) -> int | None:
    return file.stat().st_size if file.is_file() else None


def _fetch(path: epath.Path, names: list[str], local: Path) -> None:
    for name in names:
        (local / name).parent.mkdir(parents=True, exist_ok=True)
    with explained(path):
        _system(path).get([os.fspath(path / name) for name in names], [str(local / name) for name in names])


def _system(path: epath.Path) -> Any:
    """The file system of a store."""
    import fsspec

    return fsspec.core.url_to_fs(os.fspath(path))[0]
