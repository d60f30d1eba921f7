"""Splits by patient, in equal shares of the classes; names of splits; the hash of an image."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaejax.datasets.source import Examples, arrays
from vaejax.datasets.splits import by_name, complete, pixel_hash
from vaejax.errors import DataError


def examples(labels: np.ndarray | None, patients: np.ndarray | None, n: int = 0) -> Examples:
    """The image of example i is the number i."""
    n = n or len(labels if patients is None else patients)
    numbers = np.arange(n, dtype=np.float32).reshape(n, 1, 1)
    return arrays(numbers, labels)._replace(patients=patients, segmentation=lambda i: np.full((1, 1), i % 256, np.uint8))


def rows(part: Examples) -> list[int]:
    return [int(part.read(i).item()) for i in range(part.n)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 6), min_size=30, max_size=60), st.integers(2, 3), st.floats(0.15, 0.4), st.integers(0, 2**32 - 1)
)
def test_a_patient_is_whole_and_each_class_of_patients_has_its_share(sizes, classes, fraction, seed):
    rng = np.random.default_rng(seed)
    kinds = np.arange(len(sizes)) % classes
    patients = rng.permutation(np.repeat(np.arange(len(sizes)), sizes)) * 5  # numbers may have gaps
    splits = complete({"train": examples(kinds[patients // 5].astype(np.int32), patients)}, fraction, None)
    owners = {split: set(part.patients.tolist()) for split, part in splits.items()}
    assert not owners["train"] & owners["val"]
    assert not owners["train"] & owners["test"]
    assert not owners["val"] & owners["test"]
    assert len(owners["val"]) == len(owners["test"]) == round(fraction * len(sizes))
    np.testing.assert_array_equal(np.sort(np.concatenate([rows(part) for part in splits.values()])), np.arange(len(patients)))
    for split, part in splits.items():
        chosen = rows(part)
        assert chosen == sorted(chosen)
        np.testing.assert_array_equal(part.patients, patients[chosen])
        assert [part.segmentation(i).item() for i in range(part.n)] == [row % 256 for row in chosen]
        share = np.bincount(kinds, minlength=classes) * len(owners[split]) / len(sizes)
        found = np.bincount(kinds[[owner // 5 for owner in owners[split]]], minlength=classes)
        assert (np.abs(found - share) < 3).all()
    again = complete({"train": examples(kinds[patients // 5].astype(np.int32), patients)}, fraction, None)
    assert {split: rows(part) for split, part in again.items()} == {split: rows(part) for split, part in splits.items()}


def test_the_class_of_a_patient_is_the_most_frequent_label():
    """Ten patients with a healthy slice, and two ill ones where five are: all but the class of ill patients is alike."""
    patients = np.repeat(np.arange(20), 3)
    labels = np.where((patients < 10)[:, None], [[0, 1, 1]], [[0, 0, 1]])[np.arange(60), np.arange(60) % 3].astype(np.int32)
    splits = complete({"train": examples(labels, patients)}, 0.2, None)
    for split in ("val", "test"):
        assert sorted(set((splits[split].patients < 10).tolist())) == [False, True]
        assert sum(owner < 10 for owner in set(splits[split].patients.tolist())) == 2


def test_what_is_nobodys_stays_in_train():
    patients = np.array([-1, 0, 1, 2, 3, -1, 4, 5])
    splits = complete({"train": examples(None, patients)}, 0.25, None)
    assert {0, 5} <= set(rows(splits["train"]))
    assert sum(part.n for part in splits.values()) == 8


@pytest.mark.parametrize(
    ("labels", "patients", "message"),
    [
        ([0] * 10 + [1] * 2, range(12), "class ill: expected at least 3 training patients, .* found 2. Add patients"),
        ([0, 1, 0, 1, 0, 1], [0, 1, 2, 3, 4, 5], "6 training patients of 2 classes: .* found 1 patients a split"),
        (None, [0, 0, 1], "at least 3 patients, one for every split, found 2"),
        (None, [-1, -1], "at least 3 patients, one for every split, found 0"),
    ],
)
def test_too_few_patients_are_told(labels, patients, message):
    train = examples(None if labels is None else np.array(labels, np.int32), np.array(patients))
    with pytest.raises(DataError, match=message):
        complete({"train": train}, 0.1, ("well", "ill"))


def test_a_patient_in_two_splits_is_told_by_paths_and_never_by_name():
    train = examples(None, np.array([7, 8, 9, -1]))._replace(paths=("a.png", "b.png", "c.png", "x.png"))
    test = examples(None, np.array([3, 9, 8, -1]))._replace(paths=("d.png", "e.png", "f.png", "y.png"))
    with pytest.raises(DataError, match=r"found 2 in several\. Move") as caught:
        complete({"train": train, "val": examples(None, np.array([1])), "test": test}, 0.1, None)
    assert caught.value.__notes__ == ["such as c.png (train) and e.png (test)"]  # notes are for the terminal alone
    other = test._replace(patients=np.array([3, 4, 5, -1]))
    assert complete({"train": train, "val": other, "test": other._replace(patients=None)}, 0.1, None)["val"] is other


def test_examples_come_apart_by_the_names_of_their_splits():
    part = examples(np.arange(5, dtype=np.int32), None)
    found = by_name(part, ["test", "TRAIN", "valid", "train", "test"])
    assert {split: rows(one) for split, one in found.items()} == {"train": [1, 3], "val": [2], "test": [0, 4]}
    assert by_name(part, [""] * 5) == {"train": part}


def test_a_pixel_hash_knows_values_shapes_and_types():
    image = np.random.default_rng(0).integers(0, 256, (6, 4, 1), dtype=np.uint8)
    others = [image + np.uint8(1), image.reshape(4, 6, 1), image.astype(np.uint16), np.concatenate([image] * 2, axis=-1)]
    assert len({pixel_hash(one) for one in [image, *others]}) == 5
    assert pixel_hash(np.asfortranarray(image)) == pixel_hash(image.copy()) == pixel_hash(image)
