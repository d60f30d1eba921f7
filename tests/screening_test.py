"""A run on normal images screens others: what is counted, ranked and promised is so, and stays within a pass."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics
from sklearn.decomposition import PCA

from vaejax import (
    calibration,
    checkpoints,
    cli,
    datasets,
    evaluation,
    experiment,
    report,
    resampling,
    runs,
    screening,
    training,
)
from vaejax.config import from_dict
from vaejax.datasets.source import Examples
from vaejax.datasets.splits import of_normals, set_apart
from vaejax.errors import DataError, FamilyError
from vaejax.runs import Run

pytestmark = pytest.mark.usefixtures("compiled_quickly")

SIDE, SIZES = 12, {"train": 90, "val": 20, "test": 60}


def create(folder: Path, name: str = "run", **sections: dict[str, Any]) -> Run:
    """A run on dark images (label 0, normal), with bright ones (label 1) in every split."""
    random, arrays = np.random.default_rng(0), {}
    for split, n in SIZES.items():
        label = np.arange(n) % 3 // 2
        images = random.integers(0, 60, (n, SIDE, SIDE)) + 120 * label[:, None, None] * (np.arange(SIDE) < 4)[None, :, None]
        arrays |= {f"{split}_images": np.uint8(images), f"{split}_labels": label}
    np.savez(folder / "dark.npz", **arrays)
    data = {"name": "medmnist", "path": str(folder / "dark.npz"), "batch_size": 16}
    defaults: dict[str, dict] = {
        "data": data | {"normal": ("0",), "calibration_fraction": 0.4},
        "model": {"network": "mlp", "hidden": (8,), "latent_size": 2},
        "anomaly": {"score": "likelihood", "samples": 2, "steps": 2},
        "evaluation": {"batch_size": 25},
    }
    merged = {part: defaults.get(part, {}) | sections.get(part, {}) for part in defaults | sections}
    run = runs.create(str(folder / name), from_dict(merged))
    state = training.init(run.model, training.objective_of(run.model, run.config), jax.random.key(0))
    with checkpoints.Writer(run.checkpoints, run.fingerprint) as writer:
        writer.save(1, state, {"loss": 1.0})
    return run


@pytest.fixture(scope="module", autouse=True)
def few_draws() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(screening, "DRAWS", 50)
        patched.setattr(screening, "PIXEL_DRAWS", 20)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return create(tmp_path_factory.mktemp("dark"))


@pytest.fixture(scope="module")
def screened(run: Run) -> dict[str, Any]:
    return screening.screen(run)


def rows(run: Run) -> list[dict[str, str]]:
    with Path(run.directory / "anomaly.csv").open() as file:
        return list(csv.DictReader(file))


# --- the splits


def test_training_validation_and_calibration_are_of_normal_images_and_apart(run):
    sizes = {split: part.n for split, part in run.data.splits.items()}
    assert sizes == {"train": 36, "val": 14, "calibration": 24, "test": 60}
    seen = {split: part.read(np.arange(part.n)) for split, part in run.data.splits.items()}
    assert all((seen[split]["label"] == 0).all() for split in ("train", "val", "calibration"))
    assert (seen["test"]["label"] == np.arange(60) % 3 // 2).all()
    images = np.concatenate([part["image"] for part in seen.values()]).reshape(sum(sizes.values()), -1)
    assert len(np.unique(images, axis=0)) == len(images)


def test_calibration_takes_whole_patients():
    patients = np.repeat(np.arange(20), 3)
    train = Examples(60, lambda i: np.full((2, 2, 1), i), None, None, patients)
    splits = set_apart({"train": train}, 0.25, ["calibration"], None)
    assert {split: part.n for split, part in splits.items()} == {"train": 45, "calibration": 15}
    assert not set(splits["train"].patients) & set(splits["calibration"].patients)


def test_what_is_no_label_of_the_images_is_refused_and_so_are_images_without_labels(run):
    examples = {split: Examples(4, lambda i: i, np.array([0, 1, 0, 1], np.int32)) for split in ("train", "val")}
    assert of_normals(examples, ("hand",), ("foot", "hand"))["train"].n == 2
    with pytest.raises(DataError, match=r"data.normal=\('head',\): expected .* foot, hand, found 0 such images in train"):
        of_normals(examples, ("head",), ("foot", "hand"))
    with pytest.raises(DataError, match="no labels"):
        of_normals({split: part._replace(labels=None) for split, part in examples.items()}, ("0",), None)


def test_images_prepared_without_a_normal_label_are_others(run):
    everything = datasets.load(from_dict({"data": {"name": "medmnist", "path": run.config.data.path}}).data, run.directory)
    assert list(everything.splits) == ["train", "val", "test"]
    assert everything.splits["train"].n == 90
    assert everything.fingerprint != run.data.fingerprint


# --- what is written


def test_ranking_flags_and_p_values_follow_from_the_scores(run, screened):
    table = rows(run)
    assert [int(row["index"]) for row in table] == list(range(60))
    truth = np.arange(60) % 3 == 2
    assert set(screened["undefined"]) == {"two_scale_ssim", "ssim_and_error"}  # images of less than 22 pixels
    for name in set(screening.SCORES) - set(screened["undefined"]):
        scores = [float(row[name]) for row in table]
        found = screened["ranking"][name]
        assert found["auroc"]["value"] == pytest.approx(sklearn_metrics.roc_auc_score(truth, scores), abs=1e-3)
        precision = sklearn_metrics.average_precision_score(truth, scores)
        assert found["average_precision"]["value"] == pytest.approx(precision, abs=2e-3)
        assert found["auroc"]["low"] <= found["auroc"]["value"] <= found["auroc"]["high"]
    flagged = np.array([row["flagged"] == "1" for row in table])
    chances = np.array([float(row["p_value"]) for row in table])
    np.testing.assert_array_equal(flagged, chances <= 0.05 + 1e-6)
    assert set(np.round(chances * 25)) <= set(range(1, 26))
    assert screened["flagged"]["normal"]["flagged"] == flagged[~truth].sum()
    assert screened["flagged"]["anomalous"] == {"flagged": int(flagged[truth].sum()), "n": 20}
    low, high = screened["flagged"]["normal"]["expected"]
    assert (low, high) == calibration.expected_flags(24, 40, 0.05)
    assert stats.betabinom(40, 1, 24).cdf(high) >= 0.97
    assert json.loads((run.directory / "anomaly.json").read_text())["ranking"] == screened["ranking"]


def test_cases_are_the_ends_of_the_ranking_of_each_kind(run, screened):
    scores = np.array([float(row["likelihood"]) for row in rows(run)])
    truth, cases = np.arange(60) % 3 == 2, screened["cases"]
    order = np.argsort(scores)
    assert cases["least strange normal"] == order[~truth[order]][:10].tolist()
    assert cases["strangest anomalous"] == order[truth[order]][::-1][:10].tolist()
    assert set(cases) == {f"{end} {kind}" for end in ("strangest", "least strange") for kind in ("normal", "anomalous")}


def test_maps_are_those_of_the_score_that_counts_and_do_not_depend_on_the_batch(run, screened, monkeypatch):
    maps, before = np.load(run.directory / "anomaly_maps.npy"), rows(run)
    assert maps.shape == (60, SIDE, SIDE)
    monkeypatch.setattr(evaluation, "PIXELS_AT_A_TIME", {"cpu": 7 * 2 * SIDE * SIDE})
    again = screening.screen(run)
    np.testing.assert_allclose(np.load(run.directory / "anomaly_maps.npy"), maps, rtol=1e-3, atol=1e-4)
    for one, other in zip(before, rows(run), strict=True):
        np.testing.assert_allclose([float(v) for v in one.values()], [float(v) for v in other.values()], rtol=1e-3)
    assert again["calibration"]["n"] == 24


def test_the_report_shows_the_ranking_the_cases_and_the_notice(run, screened, monkeypatch):
    monkeypatch.setattr(report, "_pictures", lambda run, params: [])  # of a training, which there was none of
    page = Path(report.write(run)).read_text()
    for words in ("Anomalies", "Strangest normal", "Least strange anomalous", "expected at the promised share", "Research use"):
        assert words in page
    assert f"{screened['ranking']['ssim']['auroc']['value']:.3f}" in page
    assert str(run.config.data.path) not in page
    assert "dark" not in (run.directory / "anomaly.csv").read_text()


def test_an_overlay_is_grey_up_to_the_threshold_and_red_at_the_most():
    images, maps = np.full((1, 1, 3, 1), 0.5, np.float32), np.array([[[0.5, 1.0, 3.0]]], np.float32)
    np.testing.assert_allclose(report.overlay(images, maps, 1.0)[0, 0], [[0.5] * 3, [0.5] * 3, [1.0, 0.0, 0.0]])


def test_of_a_block_of_slices_the_middle_one_is_drawn_on():
    block = np.stack([np.full((1, 2, 2), value, np.float32) for value in (0.1, 0.2, 0.3, 0.4, 0.5)], axis=-1)
    for drawn in (report.rgb(block), report.grey(block), report.overlay(block, np.zeros((1, 2, 2), np.float32), 1.0)):
        np.testing.assert_allclose(drawn, np.full((1, 2, 2, 3), 0.3), rtol=1e-6)


def test_the_verb_prints_the_counts_and_takes_another_rate(run, capsys):
    assert cli.main(["anomaly", str(run.directory), "--alpha=0.2"]) == 0
    said = capsys.readouterr().out
    assert "Research use only" in said
    assert "promised: 0.2, so " in said
    assert "likelihood: auroc" in said
    assert cli.main(["anomaly", str(run.directory), "--alpha=0.01"]) == cli.ERROR_EXIT
    assert "expected at least 99 calibration images to promise so few false alarms, found 24" in capsys.readouterr().err


# --- what cannot be had


def test_without_a_calibration_split_there_is_no_threshold(tmp_path):
    with pytest.raises(DataError, match=r"data.calibration_fraction=0: .* at least 19 images"):
        screening.screen(create(tmp_path, data={"calibration_fraction": 0.0}))


def test_a_score_that_the_run_lacks_is_refused_and_one_beside_it_is_left_out(tmp_path):
    codes = {"family": "vq", "network": "cnn", "features": (4,), "codes": 4}
    lacking = {"model": codes, "objective": {"name": "vq"}, "anomaly": {"score": "rate"}}
    with pytest.raises(FamilyError, match=r"anomaly.score='rate': .* Choose one of likelihood, error, ssim\."):
        screening.screen(create(tmp_path, **lacking))
    assert set(screening.undefined(create(tmp_path, "gan", objective={"name": "vae_gan"}))) == {
        "likelihood",
        "two_scale_ssim",
        "ssim_and_error",
    }


def test_an_unlabelled_test_split_is_scored_and_flagged_and_not_ranked(tmp_path):
    result = screening.screen(create(tmp_path, data={"normal": ()}))
    assert result["ranking"] == {}
    assert set(result["cases"]) == {"strangest", "least strange"}
    assert result["flagged"]["all"]["n"] == 60


# --- pixels and patients


def with_columns(run: Run, **columns: np.ndarray) -> Run:
    """The run, its test images with more known of them."""
    split = run.data.splits["test"]

    def read(index: np.ndarray) -> dict[str, np.ndarray]:
        return split.read(index) | {name: column[index] for name, column in columns.items()}

    known = {name: column for name, column in columns.items() if name != "segmentation"}
    splits = run.data.splits | {"test": split._replace(read=read, columns=split.columns | known)}
    return run._replace(data=run.data._replace(splits=splits))


def test_pixels_are_compared_with_masks(tmp_path):
    run = create(tmp_path, anomaly={"samples": 2, "steps": 1, "masks": True, "score": "error"})
    masks = np.zeros((60, SIDE, SIDE), np.uint8)
    masks[2::3, :4] = 1
    result = screening.screen(with_columns(run, segmentation=masks))
    maps = np.load(run.directory / "anomaly_maps.npy")
    expected = sklearn_metrics.average_precision_score(masks.ravel(), maps.ravel())
    assert result["pixels"]["average_precision"]["value"] == pytest.approx(expected, abs=1e-3)

    def precision(rows: np.ndarray) -> float:
        return sklearn_metrics.average_precision_score(masks[rows].ravel(), maps[rows].ravel())

    low, high = resampling.interval(precision, -np.arange(60), 20)
    assert result["pixels"]["average_precision"]["low"] == pytest.approx(low, abs=2e-3)
    assert result["pixels"]["average_precision"]["high"] == pytest.approx(high, abs=2e-3)
    over = maps > result["calibration"]["pixel_threshold"]
    assert result["pixels"]["dice"]["value"] == pytest.approx(2 * (over & (masks > 0)).sum() / (over.sum() + masks.sum()))
    with pytest.raises(DataError, match="no masks"):
        screening.screen(run)


def by_patient(run: Run, images: int = 2) -> Run:
    """The run, of whose calibration and test images so many in a row are a patient's."""
    splits = {
        name: split._replace(columns=split.columns | {"patient": np.arange(split.n, dtype=np.int32) // images})
        for name, split in run.data.splits.items()
    }
    return run._replace(data=run.data._replace(splits=splits))


def test_where_patients_are_known_they_are_calibrated_flagged_and_counted(run, capsys, monkeypatch):
    alone, found = screening.screen(run, alpha=0.2), screening.screen(by_patient(run), alpha=0.2)
    scores = np.array([float(row["likelihood"]) for row in rows(run)])
    truth = (np.arange(60) % 3 == 2).reshape(30, 2).any(axis=1)
    flagged = (scores > found["calibration"]["threshold"]).reshape(30, 2).any(axis=1)
    assert (alone["by"], alone["calibration"]["n"]) == ("image", 24)
    assert (found["by"], found["calibration"]["n"]) == ("patient", 12)
    normal = screening.of_normal(by_patient(run), experiment.restore(run).params, 0.2)
    each = screening.of_normal(run, experiment.restore(run).params, 0.2).scores[::-1]  # of images alone, from the last on
    np.testing.assert_allclose(normal.scores, each.reshape(12, 2).max(axis=1))
    low, high = calibration.expected_flags(12, int((~truth).sum()), 0.2)
    expected = {"flagged": int(flagged[~truth].sum()), "n": int((~truth).sum()), "expected": (low, high)}
    assert found["flagged"]["normal"] == expected
    assert found["flagged"]["anomalous"] == {"flagged": int(flagged[truth].sum()), "n": int(truth.sum())}
    chances = [float(row["p_value"]) for row in rows(run)]
    np.testing.assert_allclose(chances, calibration.p_values(normal.scores, scores), rtol=1e-4)
    with pytest.raises(DataError, match=r"at least 19 calibration patients .* found 12"):
        screening.screen(by_patient(run))
    monkeypatch.setattr(runs, "load", lambda directory: by_patient(run))
    assert cli.main(["anomaly", str(run.directory), "--alpha=0.2"]) == 0
    said = capsys.readouterr().out
    assert f"flagged, normal: {expected['flagged']} of {expected['n']} patients; promised: 0.2, so [{low}, {high}]" in said


def test_principal_components_are_a_reference_beside_the_scores(run):
    found = screening.screen(run)
    train, test = (
        np.float32(run.data.splits[name].read(np.arange(n))["image"]) / 255 for name, n in (("train", 36), ("test", 60))
    )
    pca = PCA(2, svd_solver="full").fit(train.reshape(36, -1))
    flat = test.reshape(60, -1)
    errors = ((flat - np.clip(pca.inverse_transform(pca.transform(flat)), 0, 1)) ** 2).mean(axis=1)
    np.testing.assert_allclose([float(row["pca"]) for row in rows(run)], errors, rtol=1e-3)
    truth = np.arange(60) % 3 == 2
    assert found["reference"]["pca"]["auroc"]["value"] == pytest.approx(sklearn_metrics.roc_auc_score(truth, errors))
    assert "pca" not in found["ranking"]


def test_intervals_are_by_patient_where_patients_are_known(run, monkeypatch):
    seen = []
    monkeypatch.setattr(screening, "ranking", lambda scores, truth, groups: seen.append(groups) or {})
    patients = np.where(np.arange(60) < 50, np.arange(60) // 5, -1)
    screening.screen(with_columns(run, patient=patients))
    assert (seen[0][:50] == np.arange(50) // 5).all()
    assert len(np.unique(seen[0])) == 20
