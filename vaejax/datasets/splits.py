"""Fixed splits: what a source lacks of "val" and "test" is taken from its training images, in equal shares of every class.

Where some labels are normal, training and validation are of those alone, and a split "calibration" is set apart from them.
"""

import numpy as np

from vaejax.datasets.source import Examples, take
from vaejax.errors import DataError


def complete(splits: dict[str, Examples], fraction: float, label_names: tuple[str, ...] | None) -> dict[str, Examples]:
    """Adds "val" and "test" where they are absent: round(fraction * n) of the n training images each.

    Where patients are known, it is that share of the patients, at least one, with all of their images. The choice depends on n
    and the labels alone, never on a seed, and keeps the order of the source.

    Raises:
        DataError: too few images, or too few of a class, to be in every split.
    """
    missing = [split for split in ("test", "val") if split not in splits]
    return set_apart(splits, fraction, missing, label_names) if missing else splits


def set_apart(
    splits: dict[str, Examples], fraction: float, names: list[str], label_names: tuple[str, ...] | None
) -> dict[str, Examples]:
    """Adds splits of the given names, each of a share of the training images; raises and chooses as `complete` does."""
    train = splits["train"]
    if train.patients is not None:
        return _by_patient(splits, train.patients, fraction, names)
    count = round(fraction * train.n)
    _check(train, count, len(names), label_names)
    chosen = {}
    left = np.arange(train.n)
    for split in names:
        part = _stratified(left.size if train.labels is None else train.labels[left], count)
        chosen[split] = take(train, left[part])
        left = np.delete(left, part)
    return _in_order(splits | {"train": take(train, left)} | chosen)


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


def _by_patient(splits: dict[str, Examples], patients: np.ndarray, fraction: float, missing: list[str]) -> dict[str, Examples]:
    left = np.unique(patients[patients >= 0])
    if len(left) <= len(missing):
        raise DataError(
            f"expected at least {len(missing) + 1} patients, one for every split, found {len(left)}: a patient's images stay "
            "together. Add patients."
        )
    count = min(max(round(fraction * len(left)), 1), (len(left) - 1) // len(missing))
    chosen = {}
    for split in missing:
        part = _stratified(len(left), count)
        chosen[split] = take(splits["train"], np.flatnonzero(np.isin(patients, left[part])))
        left = np.delete(left, part)
    rest = take(splits["train"], np.flatnonzero(np.isin(patients, left) | (patients < 0)))
    return _in_order(splits | {"train": rest} | chosen)


def _stratified(labels: np.ndarray | int, count: int) -> np.ndarray:
    """`count` sorted rows: every class is met within one of its share.

    They lie at equal distances in the rows sorted by class, and within a class by random bits (whose stream, unlike
    that of NumPy's `Generator`, is promised never to change).
    """
    n = labels if isinstance(labels, int) else len(labels)
    bits = np.random.PCG64(0).random_raw(n)
    order = np.argsort(bits) if isinstance(labels, int) else np.lexsort((bits, labels))
    return np.sort(order[(2 * np.arange(count) + 1) * n // (2 * count)])


def _check(train: Examples, count: int, missing: int, label_names: tuple[str, ...] | None) -> None:
    labels = np.zeros(train.n, np.int32) if train.labels is None else train.labels
    classes, sizes = np.unique(labels, return_counts=True)
    if sizes.size and sizes.min() <= missing and train.labels is not None:
        label = int(classes[sizes.argmin()])
        name = label_names[label] if label_names else label
        raise DataError(
            f"class {name}: expected at least {missing + 1} training images, one for every split, found {sizes.min()}. "
            "Add images, leave the class out, or make the splits yourself."
        )
    if count < classes.size or train.n - missing * count < classes.size or not train.n:
        raise DataError(
            f"{train.n} training images of {classes.size} classes: expected at least one of each class in every split, "
            f"found {count} images a split set apart. Add images or change data.validation_fraction."
        )
