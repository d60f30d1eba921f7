"""Segmenters: measures against brute force, the loss against NumPy, and a head trained on a pretrained encoder."""

import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st
from volumes_test import save_dicom, save_nifti

from benchmarks import segmentation as benchmark
from vaejax import cli, datasets, experiment, gallery, models, networks, runs, segmentation
from vaejax.applications.segmentation import dice, hausdorff95
from vaejax.config import Config, ModelConfig, from_dict
from vaejax.datasets import DataSet, Split
from vaejax.errors import ConfigError, DataError, FamilyError
from vaejax.interruption import Interruption
from vaejax.objectives import segmentation_terms
from vaejax.runs import Run

pytestmark = pytest.mark.usefixtures("compiled_quickly")

SIDE, REGIONS = 9, 3
MODEL = {"network": "cnn", "features": (4, 8), "hidden": (8,), "latent_size": 2, "norm": "group"}
SEGMENTER = {"model": MODEL | {"regions": REGIONS}, "objective": {"name": "segmentation"}}


# --- measures


def surface(region: np.ndarray) -> np.ndarray:
    """Places of a region that have a neighbour, by a face, outside of it."""
    padded = np.pad(region, 1)
    inside = []
    for place in np.argwhere(region):
        steps = [sign * np.eye(region.ndim, dtype=int)[axis] for axis in range(region.ndim) for sign in (-1, 1)]
        inside.append(all(padded[tuple(place + 1 + step)] for step in steps))
    return np.argwhere(region)[~np.array(inside)]


def brute_force(true: np.ndarray, guess: np.ndarray, spacing: tuple[float, ...]) -> float:
    one, other = (surface(region) * np.array(spacing) for region in (true, guess))
    apart = np.sqrt(((one[:, None] - other[None]) ** 2).sum(axis=-1))
    return max(np.percentile(apart.min(axis=1), 95), np.percentile(apart.min(axis=0), 95))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), shape=st.sampled_from([(7, 6), (4, 5, 6)]), density=st.floats(0.05, 0.95))
def test_distances_are_those_of_brute_force(seed, shape, density):
    random = np.random.default_rng(seed)
    true, guess = random.random((2, *shape)) < density
    spacing = (2.5, 0.5, 1.0)[: len(shape)]
    if true.any() and guess.any():
        assert hausdorff95(true, guess, spacing) == pytest.approx(brute_force(true, guess, spacing), rel=1e-5)
    overlap = sum(a and b for a, b in zip(true.ravel(), guess.ravel(), strict=True))
    total = int(true.sum()) + int(guess.sum())
    assert np.isnan(dice(true, guess)) if total == 0 else dice(true, guess) == pytest.approx(2 * overlap / total)


def test_a_moved_box_is_as_far_as_it_was_moved():
    true, guess = np.zeros((2, 20, 20, 20), bool)
    true[5:9, 5:9, 5:9], guess[8:12, 5:9, 5:9] = True, True
    assert hausdorff95(true, guess, (2.0, 1.0, 1.0)) == 6.0
    assert dice(true, guess) == pytest.approx(0.25)


def test_of_empty_regions_nothing_is_measured():
    empty, full = np.zeros((4, 4), bool), np.ones((4, 4), bool)
    assert np.isnan(dice(empty, empty))
    assert np.isnan(hausdorff95(empty, empty, (1.0, 1.0)))
    assert dice(empty, full) == 0.0
    assert hausdorff95(empty, full, (1.0, 1.0)) == hausdorff95(full, empty, (1.0, 1.0)) == np.inf


def test_volumes_are_the_slices_of_a_number_in_their_order():
    true = np.zeros((5, 4, 4), int)
    true[:3, :2] = 1  # volume 7: slices 0, 1, 2
    true[3:, 1:3, 1:3] = 2  # volume 4
    guess = true.copy()
    guess[0] = 0  # a slice is missed: Dice 2 * 16 / (24 + 16)
    guess[3, 0, 0] = 1  # class 1 where there is none
    found = segmentation.measure(segmentation.Masks(true, guess, np.array([7, 7, 7, 4, 4])), REGIONS)
    assert (found["volumes"], found["slices"]) == (2, 5)
    assert found["classes"]["1"]["dice"]["mean"] == pytest.approx((0.8 + 0.0) / 2)
    assert found["classes"]["1"]["dice"]["n"] == 2
    assert found["classes"]["1"]["hausdorff95"]["mean"] == brute_force(true[:3] == 1, guess[:3] == 1, (1.0, 1.0, 1.0)) == 1.0
    assert (found["classes"]["1"]["hausdorff95"]["n"], found["classes"]["1"]["unmatched"]) == (1, 1)
    assert found["classes"]["2"]["dice"] == {"mean": 1.0, "low": 1.0, "high": 1.0, "n": 1, "unit": "1"}
    assert found["mean"]["dice"]["mean"] == pytest.approx((0.8 + (0.0 + 1.0) / 2) / 2)
    own = segmentation.of_volumes(segmentation.Masks(true, guess, np.array([7, 7, 7, 4, 4])), REGIONS)
    assert own.mean_dice.tolist() == pytest.approx([0.5, 0.8])
    assert own.owners.tolist() == [4, 7]


def test_distances_are_in_mm_where_the_spacing_of_all_volumes_is_known():
    true, guess = np.zeros((2, 6, 20, 20), int)
    true[1:3, 5:9, 5:9], guess[2:4, 5:9, 5:9] = 1, 1  # a slice further on
    numbers, spacing = np.array([0, 0, 0, 0, 1, 1]), np.float32([[4.0, 0.5, 0.25]] * 6)
    found = segmentation.measure(segmentation.Masks(true, guess, numbers, spacing), 2)
    assert found["classes"]["1"]["hausdorff95"]["mean"] == 4.0
    assert found["classes"]["1"]["hausdorff95"]["unit"] == "mm"
    spacing[5, 0] = np.nan  # of the other volume, between its slices
    found = segmentation.measure(segmentation.Masks(true, guess, numbers, spacing), 2)
    assert (found["classes"]["1"]["hausdorff95"]["mean"], found["classes"]["1"]["hausdorff95"]["unit"]) == (1.0, "pixels")
    alone = segmentation.measure(
        segmentation.Masks(true[:3], guess[:3], np.arange(3), np.float32([[np.nan, 0.5, 0.25]] * 3)), 2
    )
    assert alone["classes"]["1"]["hausdorff95"]["unit"] == "mm"  # what is between slices is of no matter


def test_a_patient_has_several_volumes_and_their_spacing_is_that_of_the_images(tmp_path):
    """Two series of one patient, 0.5 mm a pixel and 2.5 mm a slice, of which every second pixel is kept."""
    for series in ("a", "b"):
        for number in range(4):
            header = {"SeriesInstanceUID": f"1.2.{ord(series)}", "PatientID": "Doe", "PixelSpacing": [0.5, 1.0]}
            header |= {"ImagePositionPatient": [0, 0, 2.5 * number], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
            save_dicom(tmp_path / "in" / f"{series}{number}.dcm", np.full((16, 12), 9 * number, np.int16), **header)
    for number in range(2):
        save_nifti(tmp_path / "in" / f"{number}.nii", np.zeros((12, 16, 3)), np.diag([0.5, 1.0, 3.0, 1.0]))
    values = {"name": "volumes", "path": str(tmp_path / "in"), "image_size": (8, 6), "validation_fraction": 0.3}
    data = datasets.load(from_dict({"data": values}).data, tmp_path / "cache")
    series = next(split for split in data.splits.values() if split.n == 8).columns  # the patient is in one split
    assert len(np.unique(series["patient"])) == 1
    assert np.unique(series["volume"], return_counts=True)[1].tolist() == [4, 4]
    np.testing.assert_allclose(series["spacing"], [[2.5, 1.0, 2.0]] * 8)
    other = next(split for split in data.splits.values() if split.n == 3).columns
    np.testing.assert_allclose(other["spacing"], [[3.0, 2.0, 1.0]] * 3)


def test_intervals_draw_the_volumes_of_a_patient_together():
    """Ten volumes a patient that are all alike say no more than one."""
    draw = np.random.default_rng(0)
    true = np.ones((60, 4, 4), int)
    guess = np.repeat((draw.random((6, 4, 4)) < np.linspace(0.2, 1.0, 6)[:, None, None]).astype(int), 10, axis=0)
    patients = np.arange(6).repeat(10)
    apart = segmentation.measure(segmentation.Masks(true, guess, np.arange(60)), 2)
    together = segmentation.measure(segmentation.Masks(true, guess, np.arange(60), patients=patients), 2)
    alone = segmentation.measure(segmentation.Masks(true[::10], guess[::10], np.arange(6)), 2)
    wide, narrow, expected = (found["mean"]["dice"] for found in (together, apart, alone))
    assert wide["n"] == 60
    assert wide["mean"] == pytest.approx(expected["mean"])
    assert (wide["low"], wide["high"]) == pytest.approx((expected["low"], expected["high"]))
    assert wide["high"] - wide["low"] > 2 * (narrow["high"] - narrow["low"])


def test_an_image_alone_has_an_outline():
    true, guess = np.zeros((2, 1, 30, 30), int)
    true[0, 5:25, 5:25], guess[0, 5:25, 5:20] = 1, 1  # most voxels are inside of both
    found = segmentation.measure(segmentation.Masks(true, guess, np.zeros(1, int)), 2)
    assert found["classes"]["1"]["hausdorff95"]["mean"] == brute_force(true[0] == 1, guess[0] == 1, (1.0, 1.0)) == 5.0


def test_a_class_that_nobody_saw_has_no_value():
    nothing = np.zeros((2, 4, 4), int)
    found = segmentation.measure(segmentation.Masks(nothing, nothing, np.arange(2)), REGIONS)
    assert found["classes"]["1"]["dice"] == {"mean": None, "low": None, "high": None, "n": 0, "unit": "1"}


def test_a_table_of_arms_pairs_them_by_draw_and_patient():
    """Every patient gains 0.01, however far apart patients and draws are."""
    random, rows = np.random.default_rng(0), []
    for share, draw in itertools.product((0.05, 1.0), range(3)):
        dice = random.uniform(0.2, 0.9, 22)
        for arm, gain in (("scratch", 0.0), ("pretrained", 0.01)):
            rows.append({"arm": arm, "share": share, "draw": draw, "dice": (dice + gain).tolist()})
    head, _, few, every = benchmark.summary([*rows, rows[0] | {"draw": 9}]).splitlines()  # one arm alone is no pair
    assert head == "| labels | draws | scratch | pretrained | pretrained - scratch |"
    assert few.startswith("| 5 % | 3 | ")
    assert few.endswith(" | +0.010 (+0.010 to +0.010) [+0.010, +0.010] |")
    mean = np.mean([row["dice"] for row in rows if row["share"] == 1.0 and row["arm"] == "pretrained"])
    assert every.split(" | ")[3].startswith(f"{mean:.3f} (")


# --- the loss


def test_the_terms_are_those_of_their_definitions():
    random = np.random.default_rng(0)
    logits, classes = random.normal(size=(3, 5, 4, REGIONS)), random.integers(0, REGIONS, (3, 5, 4))
    classes[2] = 0
    chances = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    terms = segmentation_terms(jnp.float32(logits), jnp.int32(classes))
    for i in range(3):
        own = [chances[i, y, x, classes[i, y, x]] for y, x in itertools.product(range(5), range(4))]
        assert terms["cross_entropy"][i] == pytest.approx(-np.log(own).mean(), rel=1e-5)
        soft = []
        for region in range(1, REGIONS):
            drawn = classes[i] == region
            soft.append((2 * chances[i][drawn, region].sum() + 1) / (chances[i][..., region].sum() + drawn.sum() + 1))
        assert terms["dice_loss"][i] == pytest.approx(1 - np.mean(soft), rel=1e-5)


def test_a_class_beyond_the_models_is_not_passed_over():
    classes = np.zeros((2, 4, 4), np.int32)
    classes[1, 0, 0] = REGIONS
    terms = segmentation_terms(jnp.zeros((2, 4, 4, REGIONS)), classes)
    assert all(np.isfinite(values[0]) and np.isnan(values[1]) for values in terms.values())


# --- the model


@pytest.mark.parametrize("network", ["cnn", "resnet"])
def test_the_encoder_of_a_segmenter_is_that_of_a_vae(network):
    config, shape = ModelConfig(**MODEL | {"network": network, "blocks": 1}), (SIDE, 6, 1)
    plain, told = networks.encoder(config, 4), networks.FeatureEncoder(config, 4)
    params = networks.init(plain, jax.random.key(0), shape)
    assert jax.tree.structure(params) == jax.tree.structure(networks.init(told, jax.random.key(0), shape))
    images = jnp.float32(np.random.default_rng(0).random((2, *shape)))
    numbers, features = networks.apply(told, params, images)
    np.testing.assert_array_equal(numbers, networks.apply(plain, params, images))
    assert [feature.shape for feature in features] == [(2, 5, 3, 4), (2, 3, 2, 8)]


def test_every_pixel_has_a_logit_a_class_and_nothing_else_is_to_be_had():
    model = models.build(ModelConfig(**SEGMENTER["model"]), (SIDE, 7, 2))
    params = model.init(jax.random.key(0))
    assert model.segment(params, jnp.zeros((2, SIDE, 7, 2))).shape == (2, SIDE, 7, REGIONS)
    for function in (model.infer, model.decode, model.prior):
        with pytest.raises(FamilyError, match="this run segments images"):
            function(params, None)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"model": {"regions": 3}}, "objective.name='elbo' contradicts model.regions=3"),
        ({"objective": {"name": "segmentation"}}, "objective.name='segmentation' contradicts model.regions=0"),
        (SEGMENTER | {"model": {"network": "mlp", "regions": 3}}, "features of an encoder of convolutions"),
        (SEGMENTER | {"model": {"conditional": True, "regions": 3}}, "model.conditional=False"),
        (SEGMENTER | {"model": {"regions": 1}}, "at least 2"),
        (SEGMENTER | {"model": {"regions": 2, "posterior": "iaf"}}, "model.posterior='gaussian'"),
        (SEGMENTER | {"objective": {"name": "segmentation", "samples": 2}}, "objective.samples=1"),
    ],
)
def test_what_does_not_go_together_is_named(values, why):
    with pytest.raises(ConfigError, match=why):
        from_dict(values)


# --- runs


def squares(masked: bool = True) -> DataSet:
    """Bright and dim squares, which are the two classes; three slices a patient."""
    random, splits = np.random.default_rng(0), {}
    for name, n in (("train", 48), ("val", 9), ("test", 12)):
        image, mask = random.uniform(0.0, 0.1, (n, SIDE, SIDE, 1)), np.zeros((n, SIDE, SIDE), np.int32)
        for row in range(n):
            for region, brightness in ((1, 0.5), (2, 0.9)):
                y, x = random.integers(0, SIDE - 3, 2)
                image[row, y : y + 3, x : x + 3, 0], mask[row, y : y + 3, x : x + 3] = brightness, region
        columns = {"image": np.float32(image), "patient": np.arange(n, dtype=np.int32) // 3}
        columns |= {"segmentation": mask} if masked else {}
        splits[name] = Split(n, lambda rows, columns=columns: {key: column[rows] for key, column in columns.items()})
    return DataSet(splits, (SIDE, SIDE, 1), 1.0, None, "squares", ())


def config(seed: int = 0, **sections: dict) -> Config:
    values = {
        "data": {"batch_size": 16},
        "model": MODEL,
        "optimizer": {"learning_rate": 0.01},
        "training": {"steps": 3, "checkpoint_every": 1_000, "log_every": 3, "ema_decay": 0.9},
        "evaluation": {"batch_size": 5},
    }
    return from_dict({"seed": seed} | values | {name: values.get(name, {}) | fields for name, fields in sections.items()})


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch) -> None:
    """All runs are about squares."""
    monkeypatch.setattr(datasets, "load", lambda *_: squares())


def train(directory: Path, seed: int = 0, **sections: dict) -> Run:
    run = runs.create(str(directory), config(seed, **sections))
    experiment.train(run, Interruption())
    return run


def test_a_segmenter_learns_what_is_drawn(tmp_path, images, capsys):
    wide = {"model": MODEL | {"regions": REGIONS, "features": (16, 16)}, "objective": {"name": "segmentation"}}
    run = train(tmp_path / "run", **wide, optimizer={"learning_rate": 0.03}, training={"steps": 120, "log_every": 60})
    result = gallery.segment(run, epath.Path(tmp_path / "out"), True, "test", 4, 0)
    assert (result["volumes"], result["slices"]) == (4, 12)
    assert result["mean"]["dice"]["mean"] > 0.95
    assert json.loads((tmp_path / "out" / "segmentation.json").read_text()) == result
    with np.load(tmp_path / "out" / "segmentations.npz") as arrays:
        np.testing.assert_array_equal(arrays["segmentation"], run.data.splits["test"].read(np.arange(12))["segmentation"])
        assert (arrays["guess"] == arrays["segmentation"]).mean() > 0.99
    assert (tmp_path / "out" / "segmentations.png").exists()
    assert cli.main(["segment", str(tmp_path / "run"), "--split=val", "--n=2"]) == 0
    assert "mean of the classes, 3 patients: dice " in capsys.readouterr().out


def test_the_encoder_is_taken_over_and_may_stay(tmp_path, images):
    source = experiment.restore(train(tmp_path / "vae")).params
    transfer = {"source": str(tmp_path / "vae"), "parts": ("encoder",), "freeze": ("encoder",)}
    frozen, tuned = (
        experiment.restore(train(tmp_path / name, **SEGMENTER, transfer=fields, seed=1)).params
        for name, fields in (("frozen", transfer), ("tuned", transfer | {"freeze": ()}))
    )
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), source["encoder"], frozen["encoder"]))
    apart = [float(abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (source["encoder"], tuned["encoder"])), strict=True)]
    assert 0 < max(apart) < 0.1  # three steps from there; another seed's weights are farther
    assert json.loads((tmp_path / "tuned" / "source.json").read_text())["fresh"] == ["head"]
    assert set(tuned) == {"encoder", "head"}


def test_without_masks_there_is_nothing_to_learn(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "load", lambda *_: squares(masked=False))
    with pytest.raises(DataError, match="needs masks to learn from, and the images have none"):
        runs.create(str(tmp_path / "run"), config(**SEGMENTER))


def test_another_run_is_no_segmenter(tmp_path, images, capsys):
    train(tmp_path / "run")
    assert cli.main(["segment", str(tmp_path / "run")]) == 1
    assert "this run is no segmenter. Train one on its encoder" in capsys.readouterr().err


def test_the_verbs_of_other_runs_point_to_its_own(tmp_path, images, capsys):
    train(tmp_path / "run", **SEGMENTER)
    for verb in ("evaluate", "sample", "reconstruct", "report"):
        assert cli.main([verb, str(tmp_path / "run")]) == 1
        assert "`vaejax segment RUN` is its verb" in capsys.readouterr().err
