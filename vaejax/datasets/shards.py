"""Preparation in pieces: a shard is a range of a split's examples, prepared by one pure function, wherever that runs.

A whole shard is a folder `<split>-<start>` under the plan's: one file of bytes a column, and `record.json`, which says what
they are and vouches for them with sha256. It appears under its name only when it is whole.
"""

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Num, UInt8

from vaejax.config import DataConfig
from vaejax.datasets.image import check_mask, resize, resize_segmentation, to_channels
from vaejax.datasets.source import Examples, example_name
from vaejax.errors import DataError

SIZE = 512
"""Examples a shard: what an interruption costs a process at most."""


class Form(NamedTuple):
    """The shape and dtype that all images share, and the name of the image that they were first seen in."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype


class Plan(NamedTuple):
    """All that the shards of a data set are prepared from; it is pickled for other processes.

    Attributes:
        folder: where the shards go; readable by their owner alone, since images are private and names can carry names.
        splits: the examples.
        form: of every image when it is prepared.
        config: how it gets there.
    """

    folder: Path
    splits: dict[str, Examples]
    form: Form
    config: DataConfig


class Shard(NamedTuple):
    """The examples `start` to `stop` - 1 of a split."""

    split: str
    start: int
    stop: int


class Record(NamedTuple):
    """What became of a shard.

    Attributes:
        examples: sha256 hex of the names of its examples and of the form asked for: what else is there belongs to another plan.
        kept: their numbers in the split.
        unreadable: (name, reason) of the others.
        sha256: of the bytes of each column.
    """

    examples: str
    kept: list[int]
    unreadable: list[tuple[str, str]]
    sha256: dict[str, str]


def cut(splits: dict[str, Examples]) -> list[Shard]:
    """All shards, in order: the same for any number of processes."""
    return [
        Shard(split, start, min(start + SIZE, examples.n))
        for split, examples in splits.items()
        for start in range(0, examples.n, SIZE)
    ]


def write(plan: Plan, shard: Shard) -> None:
    """Prepares a shard, unless it is there and whole: one image at a time, so that memory does not depend on its size.

    Raises:
        DataError: an image cannot take the form of the others.
        OSError: the folder cannot be written.
    """
    if whole(plan, shard):
        return
    shutil.rmtree(_place(plan, shard), ignore_errors=True)
    with appearing(_place(plan, shard), plan.folder) as folder:
        record = _write(folder, plan, shard)
        (folder / "record.json").touch(mode=0o600)  # names of unreadable files
        (folder / "record.json").write_text(json.dumps(record._asdict()))


def whole(plan: Plan, shard: Shard) -> bool:
    """Whether a shard of this very plan is there, with the bytes that were written."""
    try:
        record = read(plan, shard)
        found = {name: sha256(column(plan, shard, name)) for name in columns(plan.splits[shard.split], plan.form)}
    except (OSError, ValueError, TypeError):
        return False
    return record.examples == _identity(plan, shard) and record.sha256 == found


def read(plan: Plan, shard: Shard) -> Record:
    """What became of a shard that is written."""
    record = Record(**json.loads((_place(plan, shard) / "record.json").read_text()))
    return record._replace(unreadable=[(name, reason) for name, reason in record.unreadable])


def column(plan: Plan, shard: Shard, name: str) -> Path:
    """The file that holds the rows of a column, C-contiguous, without a header."""
    return _place(plan, shard) / name


def columns(examples: Examples, form: Form) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """The shape and dtype of a row of each column that is written."""
    found = {"image": (form.shape, form.dtype)}
    return found | ({"segmentation": (form.shape[:2], np.dtype(np.uint8))} if examples.segmentation else {})


def converted(image: Num[np.ndarray, "h w c"], name: str, config: DataConfig) -> Num[np.ndarray, "H W C"]:
    """The channels and size that are asked for. Raises DataError where the channels cannot be converted."""
    try:
        image = to_channels(image, config.channels or image.shape[-1])
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
    height, width = config.image_size or image.shape[:2]
    return resize(image, (height, width), config.resize)


@contextlib.contextmanager
def appearing(folder: Path, within: Path) -> Iterator[Path]:
    """A new folder in `within`, of mode 0700, that becomes `folder` at the end of the block, or vanishes.

    Where another process was faster, its folder stays: it holds the same.
    """
    temporary = Path(tempfile.mkdtemp(dir=within))
    try:
        yield temporary
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sha256(path: Path) -> str:
    """Of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(folder: Path, plan: Plan, shard: Shard) -> Record:
    examples = plan.splits[shard.split]
    kept: list[int] = []
    unreadable: list[tuple[str, str]] = []
    sums = {name: hashlib.sha256() for name in columns(examples, plan.form)}
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context((folder / name).open("wb")) for name in sums}
        for i in range(shard.start, shard.stop):
            name = example_name(shard.split, examples, i)
            try:
                found = _read(examples, i)
            except DataError as error:
                unreadable.append((name, str(error)))
                continue
            kept.append(i)
            for key, row in zip(sums, _rows(*found, name, plan), strict=False):
                files[key].write(row.tobytes())
                sums[key].update(row.tobytes())
    return Record(_identity(plan, shard), kept, unreadable, {name: digest.hexdigest() for name, digest in sums.items()})


def _read(examples: Examples, i: int) -> tuple[np.ndarray, np.ndarray | None]:
    """An image and the classes of its pixels as they are found. Raises DataError, the bare reason."""
    image = examples.read(i)
    if examples.segmentation is None:
        return image, None
    mask = examples.segmentation(i)
    check_mask(mask, image.shape[:2])
    return image, mask


def _rows(image: np.ndarray, mask: UInt8[np.ndarray, "h w"] | None, name: str, plan: Plan) -> Iterator[np.ndarray]:
    """A row of each column."""
    image = converted(image, name, plan.config)
    _compare(Form(name, image.shape, image.dtype), plan.form)
    yield image
    if mask is not None:
        yield resize_segmentation(mask, image.shape[:2], plan.config.resize)


def _compare(found: Form, first: Form) -> None:
    facts = (
        ("height and width", "shape", slice(2), "Set data.image_size."),
        ("channels", "shape", slice(2, 3), "Set data.channels."),
    )
    for what, field, part, remedy in facts:
        one, other = getattr(first, field)[part], getattr(found, field)[part]
        if one != other:
            raise DataError(f"expected one {what}, found {one} in {first.name} and {other} in {found.name}. {remedy}")
    if found.dtype != first.dtype:
        raise DataError(
            f"expected one depth, found {first.dtype} in {first.name} and {found.dtype} in {found.name}. Bring them to one."
        )


def _place(plan: Plan, shard: Shard) -> Path:
    return plan.folder / f"{shard.split}-{shard.start:09}"


def _identity(plan: Plan, shard: Shard) -> str:
    examples, form = plan.splits[shard.split], plan.form
    names = [example_name(shard.split, examples, i) for i in range(shard.start, shard.stop)]
    return hashlib.sha256(json.dumps([names, form.name, form.shape, form.dtype.str]).encode()).hexdigest()
