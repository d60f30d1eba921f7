"""What images are like, before anything is trained on them; and later, which images are like none that were trained on."""

import collections
import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from vaejax.config import DataConfig
from vaejax.datasets import SOURCES, Split, headers, manifest
from vaejax.datasets.image import SUFFIXES, WHITE
from vaejax.datasets.source import Examples, Source, example_name, files_in
from vaejax.datasets.splits import arranged
from vaejax.datasets.stacks import DARK
from vaejax.errors import DataError
from vaejax.progress import track
from vaejax.tally import EMPTY, Tally

FRACTIONS = (0.1, 0.2, 0.3)
"""Shares set apart for validation and test that are tried in turn where the source has no such splits, and nobody asks."""

ORDER = ("train", "val", "calibration", "test")
"""Of the splits."""

EXAMPLES, LABELS = 8, 20
"""Random training images kept a label, and labels that are shown, at most; without labels, five times as many images."""

NUMBERS = 2**24
"""Pixels of training images, evenly spaced, whose ranges are kept, at most: a second's work."""

TRAITS = {
    "mean": "mean",
    "contrast": "standard deviation",
    "shadow": "1 % quantile",
    "middle": "median",
    "light": "99 % quantile",
    "grain": "difference of neighbours",
}
"""What is measured of an image, each from 0 to 1."""

WIDER, MARGIN = 0.25, 0.02
"""By how much a range of the training images is widened at either end: a share of its width, and an absolute part."""

MEASURED = 10_000
"""Training images, evenly spaced, whose traits an inspection tells, at most about twice as many."""

Ranges = dict[str, tuple[float, float]]
"""From the 0.1 to the 99.9 % quantile of every trait of the training images."""


class Outside(NamedTuple):
    """Which images are like none of those trained on.

    Attributes:
        rows: whether an image is.
        reasons: why, in words; "" for an image that is not.
    """

    rows: Bool[np.ndarray, " n"]
    reasons: tuple[str, ...]


class Inspection(NamedTuple):
    """What was found.

    Attributes:
        facts: JSON values, ids and counts only.
        examples: label, or "", -> random training images [H, W, C] of it, as stored.
        private: what carries paths: unreadable files with reasons, and groups of equal images.
    """

    facts: dict[str, Any]
    examples: dict[str, list[np.ndarray]]
    private: dict[str, Any]


# --- what was trained on


def traits(images: Float[np.ndarray, "n h w c"]) -> dict[str, Float[np.ndarray, " n"]]:
    """`TRAITS` of images in [0, 1], over all pixels and channels; `grain` is a mean of absolute values."""
    flat = images.reshape(len(images), -1)
    shadow, middle, light = np.quantile(flat, (0.01, 0.5, 0.99), axis=1)
    below, beside = (np.abs(np.diff(images, axis=axis)).reshape(len(images), -1) for axis in (1, 2))
    grain = (below.sum(axis=1) + beside.sum(axis=1)) / max(below.shape[1] + beside.shape[1], 1)
    tones = {"mean": flat.mean(axis=1), "contrast": flat.std(axis=1), "shadow": shadow, "middle": middle, "light": light}
    return tones | {"grain": grain}


def ranges(split: Split, white: float) -> Ranges:
    """The ranges of a split; `white` is the stored value that means 1.0."""
    pixels = int(np.prod(split.read(np.zeros(1, int))["image"].shape))
    count = min(split.n, max(NUMBERS // pixels, 1))
    rows = np.linspace(0, split.n - 1, count).astype(int)
    size = max(2**22 // pixels, 1)
    blocks = (split.read(rows[start : start + size])["image"] for start in range(0, count, size))
    return _ranges([traits(block.astype(np.float32) / np.float32(white)) for block in blocks])


def outside(seen: Ranges, images: Float[np.ndarray, "n h w c"]) -> Outside:
    """Which images in [0, 1], of the size trained on, have a trait outside of the range `seen` in training, widened.

    Says nothing of what an image shows: it may be inside and yet be of another organ.
    """
    rows, reasons = np.zeros(len(images), bool), [""] * len(images)
    found = traits(images)
    for name, (low, high) in seen.items():
        values = found[name]
        margin = WIDER * (high - low) + MARGIN
        strange = (values < low - margin) | (values > high + margin) | ~np.isfinite(values)
        for row in np.flatnonzero(strange):
            reason = f"{TRAITS[name]} {values[row]:.3f}, in training {low:.3f} to {high:.3f}"
            reasons[row] += ("; " if reasons[row] else "") + reason
        rows |= strange
    return Outside(rows, tuple(reasons))


def count_outside(seen: Ranges, blocks: Iterable[Float[np.ndarray, "n h w c"]]) -> dict[str, int]:
    """How many images are outside, and of how many."""
    found = [outside(seen, images).rows for images in blocks]
    return {"images": int(sum(rows.sum() for rows in found)), "of": sum(map(len, found))}


def _ranges(blocks: list[dict[str, np.ndarray]]) -> Ranges:
    ends = {name: np.quantile(np.concatenate([block[name] for block in blocks]), (0.001, 0.999)) for name in TRAITS}
    return {name: (float(low), float(high)) for name, (low, high) in ends.items()}


# --- what lies there


def inspect(config: DataConfig, why: str, seed: int = 0) -> Inspection:
    """Reads every image of a source once, one after the other; some 200 bytes an image are kept.

    Args:
        config: which source; images are taken as they are, whatever their size.
        why: how the source was chosen, in counts.
        seed: of the examples.

    Raises:
        DataError: the source cannot be opened, or has no image that can be read.
    """
    name = config.name.partition(":")[0]
    if name not in SOURCES:
        raise DataError(f"data.name={config.name!r}: expected one of {', '.join(SOURCES)}.")
    source = SOURCES[name](config)
    found = source.open()
    splits, fraction, problem, notes = _splits(source, found, config)
    names = _label_names(source, splits)
    read = _read(splits, names, seed)
    if not read.tally.images:
        first = "; ".join(": ".join(place[1:]) for place in read.unreadable[:1])
        raise DataError(f"data.path={config.path}: expected images, found none that can be read ({first}). Check data.path.")
    files = _files(config)
    facts = {
        "source": config.name,
        "why": why,
        "files": len(files or _paths(splits)) or None,
        "validation_fraction": fraction,
        "problem": problem,
        "made_with": {} if problem else _made_with(fraction, config),
        "left_out": sum(part.n for part in found.values()) - sum(part.n for part in splits.values()),
        "splits": {split: _facts(part, names, _of(split, read)) for split, part in splits.items()},
        "patients": _patients(splits.values()),
        **read.tally.facts(),
        "unreadable": len(read.unreadable),
        "reasons": dict(collections.Counter(reason for *_, reason in read.unreadable).most_common()),
        "ranges": _ranges(read.measured) if read.measured else None,
        "headers": headers.count(files, config),
    }
    facts["suspicious"] = ([problem] if problem else []) + _suspicious(facts, config.normal)
    private = {
        "problem": notes,
        "unreadable": [{"path": path, "reason": reason} for _, path, reason in read.unreadable],
        "equal": [[example_name(split, splits[split], i) for split, i in group] for group in read.tally.groups.values()],
    }
    return Inspection(facts, read.examples, private)


class _Read(NamedTuple):
    """What was gathered while all images went by."""

    tally: Tally
    measured: list[dict[str, np.ndarray]]
    unreadable: list[tuple[str, str, str]]
    """Split, name and reason."""
    examples: dict[str, list[np.ndarray]]


def _splits(
    source: Source, found: dict[str, Examples], config: DataConfig
) -> tuple[dict[str, Examples], float | None, str, list[str]]:
    """The splits that training would have, the share set apart for validation or test, what hinders them, and where."""
    train, asked, problem, notes = found["train"], config.validation_fraction, "", list[str]()
    missing = not {"val", "test"} <= set(found)
    few = train.n < 200 if train.patients is None else len(np.unique(train.patients)) < 20
    tried = (asked,) if not missing or asked != DataConfig.validation_fraction else FRACTIONS[1:] if few else FRACTIONS
    for fraction in tried:
        try:
            made = arranged(found, dataclasses.replace(config, validation_fraction=fraction), source.label_names)
            return {split: made[split] for split in ORDER if split in made}, fraction if missing else None, "", []
        except DataError as error:
            notes = notes or list(getattr(error, "__notes__", ()))
            problem = problem or f"no splits can be made: {error}"
    return found, None, problem, notes


def _made_with(fraction: float | None, config: DataConfig) -> dict[str, Any]:
    """The fields that made the splits other than they were found."""
    fields = {
        "validation_fraction": fraction,
        "normal": list(config.normal),
        "calibration_fraction": config.calibration_fraction,
    }
    return {f"data.{name}": value for name, value in fields.items() if value}


def _label_names(source: Source, splits: dict[str, Examples]) -> dict[int, str]:
    """The name of every label that occurs."""
    labels = sorted({int(label) for part in splits.values() if part.labels is not None for label in np.unique(part.labels)})
    return {label: source.label_names[label] if source.label_names else str(label) for label in labels}


def _read(splits: dict[str, Examples], names: dict[int, str], seed: int) -> _Read:
    """Reads all, in the order of the splits."""
    train = splits["train"]
    chosen, stride = _chosen(train, names, seed), max(train.n // MEASURED, 1)
    read = _Read(Tally(), [], [], {label: [] for label in dict.fromkeys(chosen.values())})
    places = ((split, i) for split, part in splits.items() for i in range(part.n))
    for split, i in track(places, "inspecting", sum(part.n for part in splits.values())):
        try:
            image = splits[split].read(i)
        except DataError as error:
            read.unreadable.append((split, example_name(split, splits[split], i), str(error)))
            continue
        read.tally.add(split, i, image)
        if split == "train" and i % stride == 0:
            read.measured.append(traits(image[np.newaxis].astype(np.float32) / np.float32(WHITE[image.dtype.name])))
        if split == "train" and i in chosen:
            read.examples[chosen[i]].append(image)
    return read


def _chosen(train: Examples, names: dict[int, str], seed: int) -> dict[int, str]:
    """Random rows of the training images, with their labels."""
    rng = np.random.default_rng(seed)
    if train.labels is None:
        return dict.fromkeys(rng.permutation(train.n)[: 5 * EXAMPLES].tolist(), "")
    rows = {name: np.flatnonzero(train.labels == label) for label, name in list(names.items())[:LABELS]}
    return {row: name for name, found in rows.items() for row in rng.permutation(found)[:EXAMPLES].tolist()}


def _of(split: str, read: _Read) -> int:
    """Unreadable images of a split."""
    return sum(place == split for place, *_ in read.unreadable)


def _facts(part: Examples, names: dict[int, str], unreadable: int) -> dict[str, Any]:
    """Of one split; labels are counted before anything is read."""
    labels = None if part.labels is None else {name: int((part.labels == label).sum()) for label, name in names.items()}
    return {"images": part.n - unreadable, "unreadable": unreadable, "patients": _patients([part]), "labels": labels}


def _patients(parts: Iterable[Examples]) -> int | None:
    known = [part.patients for part in parts if part.patients is not None]
    return len(np.setdiff1d(np.concatenate(known), [-1])) if known else None


def _files(config: DataConfig) -> list[Path]:
    """Those that may have a header to read."""
    root = Path(config.path or "")
    if config.name == "volumes":
        return files_in(root, "**/*")
    listed = manifest.listed(root) if config.name == "manifest" else []
    return [path for path in listed if path.suffix.lower() not in SUFFIXES]


def _paths(splits: dict[str, Examples]) -> list[str]:
    """Of the files that images lie in; that of a slice names its volume first."""
    return sorted({path.partition(", slice ")[0] for part in splits.values() for path in part.paths or ()})


# --- what looks wrong


def _suspicious(facts: dict[str, Any], normal: tuple[str, ...]) -> list[str]:
    """What a person should look at before training, each one sentence with counts."""
    n, equal, of_files, patients = facts["images"], facts["equal"], facts["headers"] or {}, facts["patients"]
    across, text, head = equal["groups_across_splits"], of_files.get("text", 0), of_files.get("head", 0)
    found = [
        (facts["unreadable"], f"unreadable images or files: {facts['unreadable']:,}"),
        (len(facts["sizes"]) > 1, f"several sizes, which will be scaled to one: {len(facts['sizes'])}"),
        (
            len(facts["channels"]) > 1,
            f"several numbers of channels, of which 1 becomes 3, or 3 becomes 1: {len(facts['channels'])}",
        ),
        (len(facts["dtypes"]) > 1, f"several depths, of which training takes one: {', '.join(facts['dtypes'])}"),
        (facts["constant"], f"images of one value: {facts['constant']:,}"),
        (
            facts["empty"] > n / 100,
            f"mostly empty images (under {EMPTY:.0%} of the pixels exceed {DARK} of white): {facts['empty']:,} of {n:,}",
        ),
        (
            equal["copies"],
            f"images that equal another one, pixel by pixel: {equal['copies']:,}, in groups: {equal['groups']:,}",
        ),
        (across, f"groups of equal images across splits, so that what is measured will be too good: {across:,}"),
        (patients is not None and patients < 20, f"patients, few to tell how well a model does on others: {patients}"),
        (text, f"files whose pixels may show text, such as a name, by what their headers say, or do not say: {text:,}"),
        (head, f"files that say that they show a head, whose face can be rebuilt from thin slices: {head:,}"),
    ]
    return [sentence for holds, sentence in found if holds] + _of_labels(facts["splits"], normal)


def _of_labels(splits: dict[str, Any], normal: tuple[str, ...]) -> list[str]:
    """Labels that are nowhere in a split, but for those that are left out on request."""
    counted = {split: part["labels"] for split, part in splits.items() if part["labels"]}
    names: list[str] = list(next(iter(counted.values()), ()))
    expected = [name for name in names if not normal or name in normal]
    absent = {name: [split for split, labels in counted.items() if not labels[name]] for name in expected}
    sentences = [f"label {name}: no images in {' and '.join(where)}" for name, where in absent.items() if where]
    if len(names) > 2 and len(names) > sum(part["images"] for part in splits.values()) / 5:
        sentences.append(f"{len(names)} labels for so few images: are the class folders those of patients?")
    return sentences
