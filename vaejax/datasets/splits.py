"""Fixed splits: what a source lacks of "val" and "test" is taken from its training images, in equal shares of every class.

Patients, where they are known, stay in one split; `vaejax inspect` tells of copies of an image (by `pixel_hash`) in several.
Where some labels are normal, training and validation are of those alone, and a split "calibration" is set apart from them.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Num

from vaejax.config import DataConfig
from vaejax.datasets.source import Examples, example_name, take
from vaejax.errors import DataError

NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""What splits are called, in any case of letters, and what they become."""


def by_name(examples: Examples, names: Sequence[str]) -> dict[str, Examples]:
    """The examples apart by the split that each one names; all are "train" where none names any.

    Raises:
        DataError: the bare reason: an unknown name, names of some examples only, or no "train".
    """
    if not any(names):
        return {"train": examples}
    unknown = sorted({name for name in names if name.lower() not in NAMES})
    if unknown:
        found = f"{unknown[0]!r}" if unknown[0] else f"{sum(not name for name in names)} without any"
        raise DataError(f"expected the splits train, val and test, found {found}.")
    splits = np.array([NAMES[name.lower()] for name in names])
    if "train" not in splits:
        raise DataError("expected examples in the split train, found none.")
    present = [split for split in ("train", "val", "test") if split in splits]
    return {split: take(examples, np.flatnonzero(splits == split)) for split in present}


def arranged(splits: dict[str, Examples], config: DataConfig, label_names: tuple[str, ...] | None) -> dict[str, Examples]:
    """The splits that a configuration makes of those of a source: completed, of normal images, with a calibration.

    Raises:
        DataError: as `complete`, `of_normals` and `set_apart`.
    """
    splits = complete(splits, config.validation_fraction, label_names)
    if config.normal:
        splits = of_normals(splits, config.normal, label_names)
    if config.calibration_fraction:
        splits = set_apart(splits, config.calibration_fraction, ["calibration"], label_names)
    return splits


def complete(splits: dict[str, Examples], fraction: float, label_names: tuple[str, ...] | None) -> dict[str, Examples]:
    """Adds "val" and "test" where they are absent: round(fraction * n) of the n training images each.

    Where patients are known, it is that share of the patients, at least one, with all of their images; a patient's class is the
    most frequent label. The choice depends on n and the labels alone, never on a seed, and keeps the order of the source.

    Raises:
        DataError: too few images, or too few of a class, to be in every split; a patient who is in two splits.
    """
    _check_patients(splits)
    missing = [split for split in ("test", "val") if split not in splits]
    return set_apart(splits, fraction, missing, label_names) if missing else splits


def set_apart(
    splits: dict[str, Examples], fraction: float, names: list[str], label_names: tuple[str, ...] | None
) -> dict[str, Examples]:
    """Adds splits of the given names, each of a share of the training images; raises and chooses as `complete` does."""
    train = splits["train"]
    units, classes = _units(train)  # what stays together
    n = units.max(initial=-1) + 1
    count = round(fraction * n)
    if train.patients is not None:
        count = min(max(count, 1), max((n - 1) // len(names), 1))
    _check("images" if train.patients is None else "patients", n, classes, count, names, label_names)
    chosen = {}
    left = np.arange(n)
    for split in names:
        part = _stratified(left.size if classes is None else classes[left], count)
        chosen[split] = take(train, np.flatnonzero(np.isin(units, left[part])))
        left = np.delete(left, part)
    return _in_order(splits | {"train": take(train, np.flatnonzero(np.isin(units, left) | (units < 0)))} | chosen)


def of_normals(
    splits: dict[str, Examples], normal: tuple[str, ...], label_names: tuple[str, ...] | None
) -> dict[str, Examples]:
    """The splits, "train" and "val" without the images of other labels than `normal` (names, or numbers where there are none).

    Raises:
        DataError: the images have no labels, or none in one of these splits is normal.
    """
    kept = {}
    for split in ("train", "val"):
        labels = splits[split].labels
        if labels is None:
            raise DataError(f"data.normal={normal!r}: the images have no labels. Leave it empty: then all training images are.")
        known = label_names or tuple(str(label) for label in range(1 + int(labels.max())))
        numbers = [known.index(name) for name in normal if name in known]
        rows = np.flatnonzero(np.isin(labels, numbers))
        if len(numbers) < len(normal) or not rows.size:
            raise DataError(
                f"data.normal={normal!r}: expected labels of the images, each one of {', '.join(known)}, "
                f"found {rows.size} such images in {split}."
            )
        kept[split] = take(splits[split], rows)
    return splits | kept


def _in_order(splits: dict[str, Examples]) -> dict[str, Examples]:
    return {split: splits[split] for split in ("train", "val", "calibration", "test") if split in splits}


def pixel_hash(image: Num[np.ndarray, "..."]) -> str:
    """sha256 hex of the type, shape and values of an image: the same for exact copies, whatever file they came from."""
    header = f"{image.dtype.name} {image.shape} "
    return hashlib.sha256(header.encode() + np.ascontiguousarray(image).tobytes()).hexdigest()


def _check_patients(splits: dict[str, Examples]) -> None:
    """Raises DataError where a patient is in two splits; its note alone names examples, which can tell who is shown."""
    home: dict[int, tuple[str, int]] = {}
    strays: dict[int, tuple[tuple[str, int], tuple[str, int]]] = {}
    for split, examples in splits.items():
        for i, patient in enumerate([] if examples.patients is None else examples.patients.tolist()):
            first = home.setdefault(patient, (split, i))
            if patient >= 0 and first[0] != split:
                strays.setdefault(patient, (first, (split, i)))
    if strays:
        places = next(iter(strays.values()))
        where = " and ".join(f"{example_name(split, splits[split], i)} ({split})" for split, i in places)
        error = DataError(
            f"expected every patient in one split, found {len(strays)} in several. Move all images of a patient into one."
        )
        error.add_note(f"such as {where}")
        raise error


def _units(train: Examples) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " m"] | None]:
    """The unit 0...m-1 of each training image, -1 for none, and the class of each unit: its most frequent label."""
    if train.patients is None:
        return np.arange(train.n), train.labels
    known = train.patients >= 0
    units = np.full(train.n, -1)
    names, units[known] = np.unique(train.patients[known], return_inverse=True)
    if train.labels is None:
        return units, None
    labels, label = np.unique(train.labels, return_inverse=True)
    counts = np.zeros((len(names), len(labels)), np.int64)
    np.add.at(counts, (units[known], label[known]), 1)
    return units, labels[counts.argmax(axis=1)]


def _stratified(labels: np.ndarray | int, count: int) -> np.ndarray:
    """`count` sorted rows: every class is met within one of its share.

    They lie at equal distances in the rows sorted by class, and within a class by random bits (whose stream, unlike
    that of NumPy's `Generator`, is promised never to change).
    """
    n = labels if isinstance(labels, int) else len(labels)
    bits = np.random.PCG64(0).random_raw(n)
    order = np.argsort(bits) if isinstance(labels, int) else np.lexsort((bits, labels))
    return np.sort(order[(2 * np.arange(count) + 1) * n // (2 * count)])


def _check(
    what: str, n: int, classes: np.ndarray | None, count: int, names: list[str], label_names: tuple[str, ...] | None
) -> None:
    """Whether `n` images or patients are enough to set `count` of them apart for each of `names`."""
    missing = len(names)
    if what == "patients" and n <= missing:
        raise DataError(
            f"expected at least {missing + 1} patients, one for every split, found {n}: a patient's images stay together. "
            "Add patients."
        )
    found, sizes = np.unique(np.zeros(n, np.int32) if classes is None else classes, return_counts=True)
    if sizes.size and sizes.min() <= missing and classes is not None:
        label = int(found[sizes.argmin()])
        raise DataError(
            f"class {label_names[label] if label_names else label}: expected at least {missing + 1} training {what}, one for "
            f"every split, found {sizes.min()}. Add {what}, leave the class out, or make the splits yourself."
        )
    if count < found.size or n - missing * count < found.size or not n:
        field = "data.calibration_fraction" if "calibration" in names else "data.validation_fraction"
        raise DataError(
            f"{n} training {what} of {found.size} classes: expected at least one of each class in every split, "
            f"found {count} {what} a split set apart. Add {what} or change {field}."
        )
