"""Fixed splits: what a source lacks of "val" and "test" is taken from its training images, in equal shares of every class."""

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
    train = splits["train"]
    missing = [split for split in ("test", "val") if split not in splits]
    if not missing:
        return splits
    if train.patients is not None:
        return _by_patient(splits, train.patients, fraction, missing)
    count = round(fraction * train.n)
    _check(train, count, len(missing), label_names)
    chosen = {}
    left = np.arange(train.n)
    for split in missing:
        part = _stratified(left.size if train.labels is None else train.labels[left], count)
        chosen[split] = take(train, left[part])
        left = np.delete(left, part)
    completed = splits | {"train": take(train, left)} | chosen
    return {split: completed[split] for split in ("train", "val", "test")}


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
    completed = splits | {"train": take(splits["train"], np.flatnonzero(np.isin(patients, left) | (patients < 0)))} | chosen
    return {split: completed[split] for split in ("train", "val", "test")}


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
