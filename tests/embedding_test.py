"""Latents as rows, probes for the label, and walks from one label to another, against recomputation."""

import csv
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from pyarrow import parquet
from sklearn.linear_model import LogisticRegression

from vaejax import checkpoints, cli, experiment, gallery, latents, models, report, runs, training
from vaejax.applications import embedding, probes, reconstruction
from vaejax.applications.probes import Labelled
from vaejax.config import ModelConfig, from_dict
from vaejax.errors import DataError, FamilyError
from vaejax.models import Model, Params
from vaejax.runs import Run

pytestmark = pytest.mark.usefixtures("compiled_quickly")

SHAPE = (8, 8, 1)
VECTOR = {"network": "mlp", "hidden": (8,), "latent_size": 3}
LEVELS = {"family": "hierarchical", "network": "resnet", "features": (4, 4), "blocks": 1, "latent_size": 2}
CODES = {"family": "vq", "network": "cnn", "features": (4,), "codes": 5, "latent_size": 2}
FAMILIES = {"vector": VECTOR, "levels": LEVELS, "codes": CODES}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few trees and few resamples."""
    monkeypatch.setattr(probes, "TREES", 10)
    monkeypatch.setattr(probes, "DRAWS", 20)


def stirred(params: Params) -> Params:
    """No weight is 0, as many are at first."""
    random = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: leaf + np.float32(0.3 * random.normal(size=leaf.shape)), params)


def built(family: str) -> tuple[Model, Params]:
    model = models.build(ModelConfig(**FAMILIES[family]), SHAPE)
    return model, stirred(jax.jit(model.init)(jax.random.key(0)))


def images(n: int = 4, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).random((n, *SHAPE)), jnp.float32)


def near(got: jax.Array, expected: jax.Array) -> None:
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


# --- rows


def test_one_latent_vector_is_the_row():
    model, params = built("vector")
    near(embedding.embed(model, params, images()), reconstruction.encode(model, params, images()))
    assert embedding.names(model, params) == ["z0", "z1", "z2"]


def test_of_levels_a_row_has_each_ones_mean_over_its_places():
    model, params = built("levels")
    coarse, fine = (np.asarray(level) for level in reconstruction.encode(model, params, images()))
    assert coarse.shape == (4, 2, 2, 2)
    assert fine.shape == (4, 4, 4, 2)
    row = embedding.embed(model, params, images())
    near(row, np.concatenate([coarse.mean(axis=(1, 2)), fine.mean(axis=(1, 2))], axis=1))
    assert embedding.names(model, params) == ["level0_0", "level0_1", "level1_0", "level1_1"]


def test_of_codes_a_row_has_the_share_of_places_of_each():
    model, params = built("codes")
    codes = np.asarray(reconstruction.encode(model, params, images()))
    assert len(np.unique(codes)) > 1
    expected = [np.bincount(code.ravel(), minlength=5) / code.size for code in codes]
    near(embedding.embed(model, params, images()), np.array(expected))
    assert embedding.names(model, params) == [f"code{i}" for i in range(5)]


# --- walks


@pytest.mark.parametrize("family", ["vector", "levels"])
def test_a_walk_goes_along_the_direction_from_the_reconstruction_on(family):
    model, params = built(family)
    start = reconstruction.encode(model, params, images())
    way = jax.tree.map(lambda leaf: leaf[0], reconstruction.encode(model, params, images(1, seed=9)))
    seen, rows = embedding.walk(model, params, images(), way, jnp.array([0.0, 0.5, 2.0]))
    assert seen.shape == (4, 3, *SHAPE)
    near(seen[:, 0], reconstruction.reconstruct(model, params, images()))
    for place, amount in enumerate((0.0, 0.5, 2.0)):
        moved = jax.tree.map(lambda leaf, step, amount=amount: leaf + amount * jnp.stack([step] * 4), start, way)
        near(seen[:, place], model.decode(params, moved).mean())
        near(rows[:, place], embedding.pooled(moved))


@pytest.mark.parametrize("family", ["vector", "levels"])
def test_sums_are_weighted_sums_of_posterior_means(family):
    model, params = built(family)
    weights = np.float32([[1, 0], [0, 1], [0, 0.5], [0, 0]])
    found = embedding.sums(model, params, images(), weights)
    for leaf, total in zip(
        jax.tree.leaves(reconstruction.encode(model, params, images())), jax.tree.leaves(found), strict=True
    ):
        near(total[0], leaf[0])
        near(total[1], leaf[1] + 0.5 * leaf[2])


def test_what_has_no_direction_says_so():
    model, params = built("codes")
    with pytest.raises(FamilyError, match="codes, and there is no direction"):
        embedding.sums(model, params, images(), np.ones((4, 2), np.float32))
    conditional = models.build(ModelConfig(**VECTOR, conditional=True), SHAPE, classes=2)
    with pytest.raises(FamilyError, match="conditional: it is told the label"):
        embedding.walk(conditional, {}, images(), None, jnp.zeros(1))


# --- probes


def clouds(n: int, seed: int, distance: float = 2.0) -> Labelled:
    """Two normal clouds, apart along the first of three numbers."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, n)
    rows = random.normal(size=(n, 3))
    rows[:, 0] += distance * labels
    return Labelled(rows, labels, np.arange(n))


def test_the_linear_probe_is_logistic_regression_of_the_best_penalty():
    train, val, test = (clouds(n, seed) for n, seed in ((300, 0), (200, 1), (200, 2)))
    probe = probes.linear(train, val, 2)
    scale, shift = train.rows.std(axis=0), train.rows.mean(axis=0)
    errors = {}
    for strength in probes.STRENGTHS:
        oracle = LogisticRegression(C=strength, max_iter=2_000).fit((train.rows - shift) / scale, train.labels)
        chances = oracle.predict_proba((val.rows - shift) / scale)[:, 1]
        errors[strength] = ((chances - val.labels) ** 2).mean()
        if strength == probe.setting:
            near(probe.probabilities(test.rows)[:, 1], oracle.predict_proba((test.rows - shift) / scale)[:, 1])
    assert probe.setting == min(errors, key=errors.get)


def test_a_forest_sees_what_is_not_linear():
    random = np.random.default_rng(0)
    parts = []
    for n in (400, 100, 200):
        rows = random.normal(size=(n, 2))
        parts.append(Labelled(rows, np.int32(rows[:, 0] * rows[:, 1] > 0), np.arange(n)))
    train, val, test = parts
    found = {name: probes.measure(probe(train, val, 2), test) for name, probe in probes.PROBES.items()}
    assert found["forest"]["accuracy"]["value"] > 0.9
    assert found["linear"]["accuracy"]["value"] < 0.65


def test_measures_are_those_of_their_definitions_and_intervals_hold_them():
    chances = np.array([[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4], [0.5, 0.4, 0.1], [0.1, 0.2, 0.7]])
    labels = np.array([0, 1, 0, 2, 0, 2])
    probe = probes.Probe(lambda rows: chances[rows[:, 0].astype(int)], 1.0)
    found = probes.measure(probe, Labelled(np.arange(6.0)[:, None], labels, np.arange(6)))
    assert found["accuracy"]["value"] == pytest.approx(5 / 6)
    assert found["balanced_accuracy"]["value"] == pytest.approx((2 / 3 + 1 + 1) / 3)
    areas = []
    for label in range(3):
        own, other = chances[labels == label, label], chances[labels != label, label]
        areas.append(np.mean([[(a > b) + 0.5 * (a == b) for b in other] for a in own]))
    assert found["auc"]["value"] == pytest.approx(np.mean(areas))
    for name in ("accuracy", "balanced_accuracy", "auc"):
        assert found[name]["low"] <= found[name]["value"] <= found[name]["high"]


def test_of_one_label_alone_there_is_no_area_and_why_is_said():
    probe = probes.Probe(lambda rows: np.tile([0.3, 0.7], (len(rows), 1)), 1.0)
    found = probes.measure(probe, Labelled(np.zeros((4, 1)), np.ones(4, int), np.arange(4)))
    assert (found["auc"], found["undefined"]) == (None, {"auc": "the test images are all of one label"})
    assert found["accuracy"]["value"] == 1.0
    assert "NaN" not in json.dumps(found)


def test_patients_are_drawn_whole(monkeypatch):
    """Ten copies of each image tell no more than one: the interval stays as wide."""
    monkeypatch.setattr(probes, "DRAWS", 300)
    few = clouds(40, 0, distance=1.0)
    many = Labelled(*(np.repeat(part, 10, axis=0) for part in few))
    probe = probes.Probe(lambda rows: np.stack([rows[:, 0] < 0.5, rows[:, 0] >= 0.5], axis=1) * 1.0, 1.0)
    alone, copies = (probes.measure(probe, part) for part in (few, many))
    assert (alone["groups"], copies["groups"], copies["n"]) == (40, 40, 400)
    assert copies["accuracy"] == pytest.approx(alone["accuracy"])


def test_a_label_that_training_lacks_has_no_chance():
    train = clouds(50, 0)
    probe = probes.linear(train, train, 3)
    chances = probe.probabilities(train.rows)
    assert chances.shape == (50, 3)
    assert (chances[:, 2] == 0).all()
    near(chances.sum(axis=1), np.ones(50))


# --- runs


def create(folder: Path, model: dict, labelled: bool = True, **sections: dict) -> Run:
    """A run with its initial weights, on noise whose brightness is its label."""
    random, arrays = np.random.default_rng(0), {}
    for split, n in (("train", 60), ("val", 20), ("test", 23)):
        label = np.arange(n) % 2
        arrays[f"{split}_images"] = np.uint8(random.integers(0, 128, (n, 8, 8)) + 100 * label[:, None, None])
        if labelled:
            arrays[f"{split}_labels"] = label
    np.savez(folder / "noise.npz", **arrays)
    data = {"name": "medmnist", "path": str(folder / "noise.npz"), "batch_size": 8}
    values = {"data": data, "model": model, "evaluation": {"batch_size": 7}} | sections
    run = runs.create(str(folder / "run"), from_dict(values))
    state = training.init(run.model, training.objective_of(run.model, run.config), jax.random.key(0), stirred)
    with checkpoints.Writer(run.checkpoints, run.fingerprint) as writer:
        writer.save(1, state, {"loss": 1.0})
    return run


def test_rows_of_a_split_are_in_order_whatever_the_batches(tmp_path):
    run = create(tmp_path, VECTOR)
    params = experiment.restore(run).params
    seen = latents.of_split(run, params, "test")
    stored = np.float32(run.data.splits["test"].read(np.arange(23))["image"]) / 255
    near(seen.rows, embedding.embed(run.model, params, stored))
    assert seen.labels.tolist() == [i % 2 for i in range(23)]
    assert seen.patients is None
    few = latents.of_split(run, params, "test", most=4)
    assert few.numbers.tolist() == [0, 7, 14, 22]
    near(few.rows, seen.rows[few.numbers])


@pytest.mark.parametrize("name", ["pca", "tsne"])
def test_a_plane_has_two_numbers_a_row(name):
    rows = np.float32(np.random.default_rng(0).normal(size=(40, 6)))
    found = latents.plane(rows, name)
    assert found.points.shape == (40, 2)
    assert np.isfinite(found.points).all()
    assert ("direction" in found.axes[0]) == (name == "pca")  # the axes of t-SNE are none
    assert latents.plane(rows[:1], name).points.shape == (1, 2)
    assert latents.plane(rows[:, :1], name).points.shape == (40, 2)
    (axes,) = report.latent_map(found, None, None).axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == found.axes


@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_of_a_run_is_the_same_in_both_files(tmp_path, family):
    sections = {"objective": {"name": "vq"}} if family == "codes" else {}
    run = create(tmp_path, FAMILIES[family], **sections)
    result = gallery.embed(run, epath.Path(tmp_path / "out"), False, "test", "pca")
    rows = latents.of_split(run, experiment.restore(run).params, "test").rows
    table = parquet.read_table(tmp_path / "out" / "latents.parquet").to_pydict()
    with (tmp_path / "out" / "latents.csv").open() as file:
        lines = list(csv.DictReader(file))
    columns = embedding.names(run.model, experiment.restore(run).params)
    assert list(table) == ["index", "label", *columns]
    assert table["index"] == list(range(23))
    assert table["label"] == [str(i % 2) for i in range(23)] == [line["label"] for line in lines]
    np.testing.assert_array_equal(np.array([table[name] for name in columns]).T, rows)
    near(np.array([[float(line[name]) for name in columns] for line in lines]), rows)
    assert result["probes"]["linear"]["n"] == 23
    assert json.loads((tmp_path / "out" / "embedding.json").read_text()) == result
    assert (tmp_path / "out" / "map.png").stat().st_size > 1_000
    assert str(tmp_path) not in (tmp_path / "out" / "embedding.json").read_text()


@pytest.mark.parametrize(
    ("labelled", "model", "why"), [(False, VECTOR, "no labels"), (True, VECTOR | {"conditional": True}, "told the label")]
)
def test_without_probes_it_says_why(tmp_path, labelled, model, why):
    result = gallery.embed(create(tmp_path, model, labelled), epath.Path(tmp_path / "out"), False, "val", "pca")
    assert why in result["undefined"]["probes"]
    assert "probes" not in result
    assert ("label" in (tmp_path / "out" / "latents.csv").read_text().splitlines()[0]) == labelled


@pytest.mark.parametrize("family", ["vector", "levels"])
def test_an_explanation_moves_images_by_the_difference_of_the_labels_means(tmp_path, family):
    run = create(tmp_path, FAMILIES[family])
    means = gallery.explain(run, epath.Path(tmp_path / "out"), False, "test", ("0", "1"), 3, 4, 0)
    params = experiment.restore(run).params
    train = run.data.splits["train"].read(np.arange(60))
    code = reconstruction.encode(run.model, params, np.float32(train["image"]) / 255)
    way = jax.tree.map(lambda leaf: (leaf[1::2].mean(axis=0) - leaf[0::2].mean(axis=0))[None], code)
    with np.load(tmp_path / "out" / "explanation.npz") as arrays:
        found = dict(arrays)
    assert (found["index"] % 2 == 0).all()
    near(found["images"], np.float32(run.data.splits["test"].read(found["index"])["image"]) / 255)
    start = reconstruction.encode(run.model, params, found["images"])
    for place, amount in enumerate(np.linspace(0.0, 1.0, 4)):
        moved = jax.tree.map(lambda leaf, step, amount=amount: leaf + amount * jnp.concatenate([step] * 3), start, way)
        near(found["walk"][:, place], run.model.decode(params, moved).mean())
    near(found["differences"], found["walk"] - found["walk"][:, :1])
    assert found["probability"].shape == (3, 4)
    near(means, found["probability"].mean(axis=0))
    assert means[-1] > means[0] + 0.2


def test_labels_that_are_not_there_are_named(tmp_path):
    run, output = create(tmp_path, VECTOR), epath.Path(tmp_path / "out")
    with pytest.raises(DataError, match=r"--to=2: expected one of 0, 1"):
        gallery.explain(run, output, False, "test", ("0", "2"), 3, 4, 0)
    with pytest.raises(DataError, match=r"--to=1: expected another label"):
        gallery.explain(run, output, False, "test", ("1", "1"), 3, 4, 0)
    with pytest.raises(DataError, match=r"--n: 13 images of the label are needed, and the split 'test' has 12"):
        gallery.explain(run, output, False, "test", ("0", "1"), 13, 4, 0)


def test_a_run_on_normal_images_alone_has_neither_probes_nor_explanation(tmp_path):
    data = {"name": "medmnist", "path": str(tmp_path / "noise.npz"), "batch_size": 8, "normal": ("1",)}
    run, output = create(tmp_path, VECTOR, data=data), epath.Path(tmp_path / "out")
    found = gallery.embed(run, output, False, "test", "pca")
    assert found["undefined"] == {"probes": "the training images are all of one label"}
    assert "probes" not in found
    with pytest.raises(DataError, match="label 0: no training image has it"):
        gallery.explain(run, output, False, "test", ("1", "0"), 3, 4, 0)


def test_images_without_labels_have_no_explanation(tmp_path):
    with pytest.raises(DataError, match="--from=0: the images have no labels"):
        gallery.explain(create(tmp_path, VECTOR, labelled=False), epath.Path(tmp_path), False, "test", ("0", "1"), 3, 4, 0)


def test_the_verbs_say_what_they_found(tmp_path, capsys):
    create(tmp_path, VECTOR)
    assert cli.main(["embed", str(tmp_path / "run")]) == 0
    output = capsys.readouterr().out
    assert re.search(r"linear probe for the label, 23 test images: accuracy [01]\.\d+ \[[01]\.\d+, 1\.000\], balanced", output)
    assert (tmp_path / "run" / "gallery" / "latents.csv").exists()
    assert cli.main(["explain", str(tmp_path / "run"), "--from=1", "--to=0", "--steps=3", "--n=2"]) == 0
    assert "mean probability of 0, by the linear probe, at each step: " in capsys.readouterr().out
