"""A table of files: where each image or volume lies, and what is known of it beside."""

import csv
import io
import json
import re
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Int32

from vaejax.config import DataConfig, require_volumes
from vaejax.datasets import image_folder, stacks, volumes
from vaejax.datasets.image import SUFFIXES
from vaejax.datasets.source import Examples, Source, first_of, hash_files, size_of
from vaejax.datasets.splits import by_name
from vaejax.errors import DataError

MAX_BYTES = 512 * 2**20
"""Of the table."""


class Row(NamedTuple):
    """A row; all but the path may be empty.

    Attributes:
        path: relative to the table's folder: an image (PNG, JPEG, TIFF, NPY), or else a NIfTI or DICOM file.
        patient: whose it is; it only groups, and goes nowhere.
        label: a name or a whole number.
        mask: relative path of the classes of its pixels or voxels.
        split: "train", "val" or "test".
    """

    path: str
    patient: str = ""
    label: str = ""
    mask: str = ""
    split: str = ""


def source(config: DataConfig) -> Source:
    """The files that the table `config.path` lists, in its order: a .csv with a header, or a .json list of objects.

    Columns are the fields of `Row`; labels are all names, or all whole numbers. A volume gives its slices, as `volumes` does;
    without a patient, it is that of its DICOM header, or a patient of its own. DICOM files of one series are one volume, of one
    patient, label and split, and have one mask or one each. Splits that are not named are made.

    Raises:
        ConfigError: a field of volumes, and images in the table.
        DataError: no such table, other columns, a path twice, outside of the folder, or of no file, a column that is filled in
            some rows only, labels of both kinds, images and volumes in one table, or a series whose rows disagree.
    """
    table = Path(config.path or "")
    if not table.is_file() or table.suffix.lower() not in (".csv", ".json"):
        found = "another file" if table.is_file() else "a folder" if table.is_dir() else "none"
        raise DataError(f"{table}: expected a table of files (.csv or .json), found {found}. Check data.path.")
    try:
        rows = _read(table)
        _check(table.parent, rows)
        label_names, labels = _labels(rows)
        of_volumes = _of_volumes(rows)
    except DataError as error:
        raise DataError(f"{table}: {error}") from None
    files = [("", table), *((name, table.parent / name) for row in rows for name in (row.path, row.mask) if name)]
    if of_volumes:
        stacks.require_libraries("data.name='manifest' of volumes")
    else:
        require_volumes(config, "the table lists images")
    contents = volumes.contents_of(files, config) if of_volumes else hash_files(files)
    return Source(contents, label_names, lambda: _open(table, rows, labels, of_volumes, config))


def listed(table: Path) -> list[Path]:
    """The files of the rows, masks aside. Raises DataError where there is no such table."""
    return [table.parent / row.path for row in _read(table)]


def _open(
    table: Path, rows: list[Row], labels: Int32[np.ndarray, " rows"] | None, of_volumes: bool, config: DataConfig
) -> dict[str, Examples]:
    """The splits."""
    try:
        examples, row = (_slices if of_volumes else _images)(table.parent, rows, config)
        if rows[0].patient:
            owners = np.unique([one.patient for one in rows], return_inverse=True)[1][row]
            unreadable = False if examples.patients is None else examples.patients < 0
            examples = examples._replace(patients=np.where(unreadable, -1, owners))
        examples = examples._replace(labels=None if labels is None else labels[row])
        return by_name(examples, [rows[number].split for number in row])
    except DataError as error:
        raise DataError(f"{table}: {error}") from None


def _images(root: Path, rows: list[Row], config: DataConfig) -> tuple[Examples, Int[np.ndarray, " n"]]:
    """The examples, and the row of each."""
    masks = [root / row.mask for row in rows] if rows[0].mask else None
    files = [(row.path, root / row.path) for row in rows]
    return image_folder.of_files(files, masks, config), np.arange(len(rows))


def _slices(root: Path, rows: list[Row], config: DataConfig) -> tuple[Examples, Int[np.ndarray, " n"]]:
    """The examples, and the row of each."""
    numbers = {row.path: number for number, row in enumerate(rows)}
    found = stacks.find([(row.path, root / row.path) for row in rows], config)
    for volume in found:
        _check_series([rows[numbers[name]] for name in volume.paths])
    masks = {row.path: (root / row.mask,) for row in rows} if rows[0].mask else None
    examples = volumes.examples(sorted(found, key=lambda volume: min(numbers[name] for name in volume.paths)), masks, config)
    return examples, np.array([numbers[path.rpartition(", slice ")[0]] for path in examples.paths or ()])


def _check_series(rows: list[Row]) -> None:
    """Whether the rows of one volume say one thing of it; masks may also be one of each file."""
    for field in ("patient", "label", "split", "mask"):
        found = {getattr(row, field): row.path for row in reversed(rows)}
        if len(found) > 1 and (field, len(found)) != ("mask", len(rows)):
            one, other = sorted(found.values())[:2]
            raise DataError(
                f"expected one {field} of a DICOM series, found {len(found)} in its {len(rows)} files, as of {one} "
                f"and {other}. Mend the table."
            )


def _read(table: Path) -> list[Row]:
    """The rows, as text."""
    size_of(table, MAX_BYTES)
    try:
        text = table.read_text(encoding="utf-8-sig")
        if table.suffix.lower() == ".json":
            objects = json.loads(text)
        else:
            objects = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise DataError(f"expected a table in UTF-8, found something else ({error}).") from None
    if not isinstance(objects, list) or not all(isinstance(one, dict) for one in objects):
        raise DataError('expected a list of objects, such as [{"path": "a.png"}].')
    if not objects:
        raise DataError("expected rows, found none.")
    return [_row(number, one) for number, one in enumerate(objects, 1)]


def _row(number: int, values: dict[Any, Any]) -> Row:
    unknown = [str(name) for name in values if name not in Row._fields]
    if unknown:
        found = "more fields than columns" if unknown == ["None"] else f"the column {unknown[0]!r}"
        raise DataError(f"row {number}: expected the columns {', '.join(Row._fields)}, found {found}.")
    for name, value in values.items():
        if not (value is None or isinstance(value, str) or type(value) is int):
            raise DataError(f"row {number}: {name}: expected text or a whole number, found {type(value).__name__}.")
    row = Row(**{"path": "", **{name: "" if value is None else str(value).strip() for name, value in values.items()}})
    return row._replace(**{name: str(PurePosixPath(getattr(row, name))) for name in ("path", "mask") if getattr(row, name)})


def _check(root: Path, rows: list[Row]) -> None:
    """Whether each row names files of the folder, and all fill in the same columns."""
    for field in Row._fields:
        empty = [f"row {number}" for number, row in enumerate(rows, 1) if not getattr(row, field)]
        if empty and (len(empty) < len(rows) or field == "path"):
            where = "every row" if field == "path" else "every row or in none"
            raise DataError(f"expected {field} in {where}, found none in {len(empty)} of {len(rows)}: {first_of(empty)}.")
    names = [name for row in rows for name in (row.path, row.mask) if name]
    outside = [name for name in names if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts]
    if outside:
        raise DataError(f"expected paths inside of the table's folder, found others: {first_of(outside)}.")
    twice = [path for path, count in Counter(row.path for row in rows).items() if count > 1]
    if twice:
        raise DataError(f"expected every path once, found {len(twice)} again: {first_of(twice)}.")
    missing = [name for name in names if not (root / name).is_file()]
    if missing:
        raise DataError(f"expected files, found none in {len(missing)} of {len(names)} places: {first_of(missing)}.")


def _labels(rows: list[Row]) -> tuple[tuple[str, ...] | None, Int32[np.ndarray, " rows"] | None]:
    """The names of labels, where they are names, and the label of each row."""
    given = [row.label for row in rows]
    if not any(given):
        return None, None
    names = sorted({label for label in given if not re.fullmatch(r"-?\d{1,9}", label)})
    whole = sorted(set(given) - set(names))
    if names and whole:
        raise DataError(f"expected labels that are all names or all whole numbers, found {names[0]!r} and {whole[0]!r}.")
    if whole:
        return None, np.array(given, np.int32)
    return tuple(names), np.searchsorted(names, given).astype(np.int32)


def _of_volumes(rows: list[Row]) -> bool:
    """Whether the rows name volumes, rather than images."""
    kinds = {PurePosixPath(row.path).suffix.lower() in SUFFIXES: row.path for row in rows}
    if len(kinds) > 1:
        raise DataError(f"expected images or volumes, found both: {kinds[True]} and {kinds[False]}. Make a table of each.")
    return False in kinds
