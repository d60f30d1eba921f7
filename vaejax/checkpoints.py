"""Checkpoints: `<directory>/<step>/`, written by Orbax in the background and proven by a sha256 manifest.

Orbax restores flipped bits, empty folders and other types without a word. So a step counts only if its `manifest.json`, which
is written last, agrees with every byte beside it. Reading (`steps`, `restore`) changes nothing on disk, so that a run can be
looked at while it trains; only a `Writer` writes and deletes.

A step is written beside its place and renamed, which is atomic on a disk. A cloud store copies instead; there, a step is
written in its place, and does not count while the object `<step>.saving` or `<step>.deleting` lies beside it. Orbax writes to
disks and gs:// alone, where several processes can write their parts; what is for another store, it writes to a disk first.

Orbax is imported where it is called: a command that neither saves nor restores does not wait for it.
"""

import contextlib
import hashlib
import itertools
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import jax
from etils import epath
from jaxtyping import PyTree

from vaejax import hosts, storage
from vaejax.errors import CheckpointError, StorageError

FORMAT = 1
MANIFEST = "manifest.json"
_STATE = "state"  # Orbax's folder inside a step
_STEP = re.compile(r"0|[1-9][0-9]*")
_TEMPORARY = re.compile(r"[0-9]+\.(deleting|saving(\.orbax-checkpoint-tmp.*)?)")
_ORBAX_ERRORS = (OSError, ValueError, TypeError, KeyError, RuntimeError)  # not all: a signal's exception must pass


class Manifest(NamedTuple):
    """What a step is, and what its folder holds byte for byte."""

    format: int
    step: int
    fingerprint: str  # of the run
    metrics: dict[str, float]
    tree: dict[str, list]  # path of a leaf -> [shape, dtype]
    files: dict[str, list]  # name relative to the step's folder -> [bytes, sha256]


class Steps(NamedTuple):
    """The entries of a checkpoint folder: what can be used, and why the rest cannot."""

    whole: dict[int, Manifest]  # in ascending order
    bad: dict[str, str]  # name of the entry -> reason


class Restored(NamedTuple):
    """A restored state; `notes` tell the user which checkpoints were passed over, and why."""

    step: int
    state: PyTree
    notes: list[str]


def steps(directory: epath.PathLike, fingerprint: str) -> Steps:
    """Verifies all checkpoints in a folder, hashing every byte. A missing folder holds none.

    `fingerprint` identifies the run, e.g. a hash of its configuration: steps of another run are bad.
    """
    return _steps(epath.Path(directory), fingerprint, lambda step: True)


def _steps(directory: epath.Path, fingerprint: str, read: Callable[[int], bool]) -> Steps:
    """The same; of a step that need not be read, its manifest and the names beside it are looked at, and no more."""
    whole, bad = {}, {}
    with storage.explained(directory):
        entries = list(directory.iterdir()) if directory.exists() else []
    marked = {path.stem for path in entries if _TEMPORARY.fullmatch(path.name)} if storage.is_url(directory) else set()
    for folder in entries:
        try:
            if folder.name in marked:
                continue
            if _STEP.fullmatch(folder.name):
                with storage.explained(folder, FileNotFoundError):  # what a writer deletes meanwhile is bad, or gone; no other
                    whole[int(folder.name)] = _verify(folder, fingerprint, read(int(folder.name)))
            elif not _TEMPORARY.fullmatch(folder.name):
                bad[folder.name] = "not a step"
        except (CheckpointError, OSError) as error:
            bad[folder.name] = str(error)
    return Steps(dict(sorted(whole.items())), bad)


def best_step(whole: dict[int, Manifest]) -> int | None:
    """The step of lowest finite `metrics["loss"]`, the earlier one of equals; None where no step has one."""
    losses = [(manifest.metrics.get("loss", math.nan), step) for step, manifest in whole.items()]
    return min(((loss, step) for loss, step in losses if math.isfinite(loss)), default=(0.0, None))[1]


def restore(
    directory: epath.PathLike, fingerprint: str, abstract_state: PyTree, step: int | None = None, best: bool = False
) -> Restored | None:
    """Restores the newest whole checkpoint, the `best_step`, or the step asked for, bit for bit.

    `abstract_state` is the state's pytree of `jax.ShapeDtypeStruct`, each with a sharding. None is returned where there is
    no step at all, and none is asked for by number.

    Raises:
        CheckpointError: checkpoints exist but none can be used (all are named with what is wrong); the asked one is damaged
            or absent; or a leaf has another path, shape or dtype than in `abstract_state`.
    """
    directory = storage.absolute(directory)
    whole, bad = steps(directory, fingerprint)
    bad = {name: bad[name] for name in sorted(filter(_STEP.fullmatch, bad), key=int)}
    nothing = not whole and not bad and step is None
    chosen = int(hosts.of_first(-1 if nothing else _choose(directory, Steps(whole, bad), step, best)))
    if chosen < 0:
        return None
    if chosen not in whole:  # of several processes, one that sees another folder than the first
        raise CheckpointError(f"{directory}: no step {chosen} here, which the first process goes on from. Share the folder.")
    folder = directory / str(chosen)
    _check_tree(folder, _tree(abstract_state), whole[chosen].tree)

    from orbax.checkpoint import v1 as ocp

    try:
        with (
            storage.explained(folder, *_ORBAX_ERRORS),
            contextlib.nullcontext(folder) if _direct(folder) else storage.reading(folder) as place,
        ):
            state = ocp.load(place, abstract_state, checkpointable_name=_STATE)
    except _ORBAX_ERRORS as error:
        raise CheckpointError(f"{folder}: Orbax cannot restore it: {error}. Use the versions that wrote it.") from error
    passed_over = [name for name in bad if step is None and (best or int(name) > chosen)]
    return Restored(chosen, state, [f"{directory / name}: {bad[name]}; step {chosen} is used." for name in passed_over])


class Writer:
    """Saves checkpoints in the background; keeps the newest and the best.

    A context manager: leaving it waits for the save in flight. Should that one fail, its error is raised, or becomes a note
    of the exception that ends the block.
    """

    def __init__(self, directory: epath.PathLike, fingerprint: str) -> None:
        """Makes the folder, and clears it of what a killed save left. Raises CheckpointError where it cannot."""
        self.directory = storage.absolute(directory)
        self.fingerprint = fingerprint
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._saving: Future[None] | None = None
        self._staged = None if _direct(self.directory) else tempfile.TemporaryDirectory(prefix="vaejax-")
        if jax.process_count() > 1 and self._staged:
            raise CheckpointError(
                f"{self.directory}: expected one process, or a place that several write to together: a folder that they share, "
                "or gs://. Choose another --workdir."
            )
        try:
            storage.make_folder(self.directory)
            if hosts.first():
                _remove_temporary(self.directory)
        except OSError as error:
            raise CheckpointError(f"{self.directory}: expected a folder to write to: {error}. Choose another.") from error

    def save(self, step: int, state: PyTree, metrics: dict[str, float]) -> None:
        """Starts to save, after the save before; the caller may then donate or overwrite the state at once.

        A step that is already whole stays as it is, for a run has one state a step; whatever else has its name is set aside.

        Args:
            step: the number of the step, not negative.
            state: a pytree of arrays, none of them donated or of size 0.
            metrics: what is known of this step; the one of lowest finite "loss" is the best.

        Raises:
            CheckpointError: this save cannot start, or the one before failed, e.g. because the disk is full.
            StorageError: a cloud store cannot be used.
        """
        from orbax.checkpoint import v1 as ocp

        self.wait()
        with storage.explained(self.directory):
            there = (self.directory / str(step)).exists() and step in steps(self.directory, self.fingerprint).whole
            if hosts.first() and not there:
                _begin(self.directory, step)
        if hosts.of_first(there):
            return
        numbers = {name: float(value) for name, value in metrics.items()}
        manifest = Manifest(FORMAT, step, self.fingerprint, numbers, _tree(state), files={})
        where = epath.Path(self._staged.name) if self._staged else self.directory
        folder = where / (str(step) if storage.is_url(self.directory) else f"{step}.saving")
        try:
            jax.block_until_ready(state)  # a donated array raises here; in Orbax, it keeps the process from ending
            with storage.explained(folder, *_ORBAX_ERRORS):
                written = ocp.save_async(folder, state, checkpointable_name=_STATE)
        except _ORBAX_ERRORS as error:
            raise self._failure(error) from error
        self._saving = self._thread.submit(self._finish, written, folder, manifest)

    def wait(self) -> None:
        """Waits until no save is in flight, in any process. Raises CheckpointError where one failed."""
        if self._saving is None:
            return
        error = self._saving.exception()  # `result` would mix it up with the exception of a signal
        self._saving = None
        failed = hosts.anybody(lambda: error is not None)()
        if error is not None:
            raise self._failure(error) from error
        if failed:
            raise CheckpointError(f"{self.directory}: another process could not write its part of a checkpoint; it says why.")

    def __enter__(self) -> Self:
        """The writer itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Waits for the save in flight."""
        try:
            self.wait()
        except CheckpointError as failure:
            if error is None:
                raise
            error.add_note(str(failure))
        finally:
            self._thread.shutdown()
            if self._staged:
                self._staged.cleanup()

    def _failure(self, error: BaseException) -> CheckpointError:
        return CheckpointError(
            f"{self.directory}: a checkpoint could not be written: {error}. Check free space, permissions and the state; "
            "the same command then goes on from the newest whole checkpoint."
        )

    def _finish(self, written: Any, folder: epath.Path, manifest: Manifest) -> None:
        """Turns what Orbax writes into a step that counts, then deletes what it replaces. Runs in the background."""
        try:
            written.result()
            if hosts.first():
                _commit(folder, self.directory, manifest)
                _prune(self.directory, self.fingerprint, manifest.step)
        except BaseException:
            # Gives a full disk its space back; the first error is the one to tell.
            with contextlib.suppress(OSError, StorageError):
                if hosts.first():
                    _remove_temporary(self.directory)
            raise
        finally:
            if self._staged:
                shutil.rmtree(folder, ignore_errors=True)


def _verify(folder: epath.Path, fingerprint: str, read: bool) -> Manifest:
    """The manifest of a whole step. The message of the CheckpointError is the bare reason why it is not whole."""
    if Path(folder).is_symlink() or not folder.is_dir():
        raise CheckpointError("not a folder")
    found = _files(folder)
    if MANIFEST not in found:
        raise CheckpointError("no manifest")
    manifest = _decode(found.pop(MANIFEST).read_bytes())
    if manifest.step != int(folder.name):
        raise CheckpointError(f"its manifest is of step {manifest.step}")
    if manifest.fingerprint != fingerprint:
        raise CheckpointError("belongs to another run")
    # Only what lies inside the folder is opened: '..' or an absolute path in the manifest is a missing file.
    for name in sorted(manifest.files.keys() | found.keys()):
        if name not in found:
            raise CheckpointError(f"file {name} missing")
        if name not in manifest.files:
            raise CheckpointError(f"unexpected file {name}")
        if read and _digest(found[name]) != manifest.files[name]:
            raise CheckpointError(f"sha256 of {name} differs")
    return manifest


def _files(folder: epath.Path) -> dict[str, epath.Path]:
    """All files below a folder, by relative name. Links and devices raise: they may lead out of it or never end."""
    if storage.is_url(folder):
        return {name: folder / name for name in storage.files(folder)}
    files: dict[str, epath.Path] = {}
    for path in folder.iterdir():
        if Path(path).is_symlink() or not (path.is_dir() or path.is_file()):
            raise CheckpointError(f"{path.name} is neither a file nor a folder")
        below = _files(path) if path.is_dir() else {}
        files |= {f"{path.name}/{name}": file for name, file in below.items()} if path.is_dir() else {path.name: path}
    return files


def _digest(path: epath.Path) -> list:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return [file.seek(0, os.SEEK_END), sha256]


def _encode(manifest: Manifest) -> bytes:
    """JSON that carries its own sha256."""
    content = manifest._asdict()
    sha256 = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps(content | {"sha256": sha256}, sort_keys=True, indent=1).encode()


def _decode(data: bytes) -> Manifest:
    """The inverse of `_encode`. A manifest has one spelling, so that any other byte is damage."""
    try:
        content = json.loads(data)
        del content["sha256"]
        manifest = Manifest(**content)
        intact = manifest.format == FORMAT and _encode(manifest) == data
    except (ValueError, TypeError, KeyError, RecursionError):
        intact = False
    if not intact:
        raise CheckpointError(f"{MANIFEST} is damaged, or not of format {FORMAT}")
    return manifest


def _tree(state: PyTree) -> dict[str, list]:
    """Path, shape and dtype of every leaf, as in a manifest."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): [list(leaf.shape), str(leaf.dtype)] for path, leaf in leaves}


def _check_tree(folder: epath.Path, expected: dict[str, list], found: dict[str, list]) -> None:
    """Raises CheckpointError at the first leaf that differs: Orbax would cast it silently."""
    for path in sorted(expected.keys() | found.keys()):
        want, got = (" ".join(map(str, tree.get(path, ["no such leaf"]))) for tree in (expected, found))
        if want != got:
            raise CheckpointError(f"{folder}: leaf {path}: expected {want}, found {got}. Use the configuration that wrote it.")


def _choose(directory: epath.Path, found: Steps, step: int | None, best: bool) -> int:
    """The step to restore. Raises CheckpointError where there is none."""
    chosen = step if step is not None else best_step(found.whole) if best else max(found.whole, default=None)
    if chosen is not None and chosen in found.whole:
        return chosen
    asked = f"step {step}" if step is not None else 'a whole checkpoint with a finite "loss"' if best else "a whole checkpoint"
    whole = ", ".join(map(str, found.whole)) or "none"
    bad = "; ".join(f"{name}: {reason}" for name, reason in found.bad.items()) or "none"
    raise CheckpointError(
        f"{directory}: expected {asked}; found whole steps: {whole}; damaged: {bad}. "
        "Choose a whole step, copy the folder from a backup, or start a new run."
    )


def _direct(directory: epath.Path) -> bool:
    """Whether Orbax itself can write to a folder; of all stores, it knows gs:// alone."""
    return not storage.is_url(directory) or os.fspath(directory).startswith("gs://")


def _begin(directory: epath.Path, step: int) -> None:
    """Makes room for a step that will be written in its place, and says there that it does not count yet."""
    if storage.is_url(directory):
        if (directory / str(step)).exists():
            _set_aside(directory / str(step))
        storage.write_bytes(directory / f"{step}.saving", b"\n")


def _commit(folder: epath.Path, directory: epath.Path, manifest: Manifest) -> None:
    """Writes the manifest, forces all to the disk or copies it to the store, and lets the step count."""
    files = _files(folder)
    manifest = manifest._replace(files={name: _digest(path) for name, path in files.items()})
    (folder / MANIFEST).write_bytes(_encode(manifest))
    final = directory / str(manifest.step)
    if storage.is_url(directory):
        if folder != final:
            storage.upload(Path(folder), final)
        (directory / f"{manifest.step}.saving").unlink()
        return
    for path in {*files.values(), *(path.parent for path in files.values()), folder / MANIFEST, folder}:
        _sync(path)
    if final.exists():  # not whole, or `save` would have returned
        _set_aside(final)
    folder.rename(final)
    _sync(directory)


def _set_aside(folder: epath.Path) -> None:
    names = (folder.with_name(f"{folder.name}.replaced-{n}") for n in itertools.count(1))
    folder.rename(next(path for path in names if not path.exists()))


def _prune(directory: epath.Path, fingerprint: str, written: int) -> None:
    """Deletes the whole steps that are neither newest nor best, once the one just written has been read back.

    In a store, no more than that one is read: it would be fetched.
    """
    whole, bad = _steps(directory, fingerprint, lambda step: step == written or not storage.is_url(directory))
    if written not in whole:
        raise CheckpointError(f"step {written}, read back: {bad[str(written)]}")
    for step in whole.keys() - {written, max(whole), best_step(whole)}:
        marked = directory / f"{step}.deleting"  # first, so that a kill leaves no half step
        storage.write_bytes(marked, b"\n") if storage.is_url(directory) else (directory / str(step)).rename(marked)
    _remove_temporary(directory)


def _remove_temporary(directory: epath.Path) -> None:
    with storage.explained(directory):
        for path in list(directory.iterdir()) if directory.exists() else ():
            if _TEMPORARY.fullmatch(path.name) and storage.is_url(path):
                directory.joinpath(path.stem).rmtree(missing_ok=True)
                path.unlink()
            elif _TEMPORARY.fullmatch(path.name):
                path.rmtree()


def _sync(path: epath.Path) -> None:
    """Forces a file or folder to the disk, against a power cut after the rename; a cloud store has no such call."""
    if Path(path).exists():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
