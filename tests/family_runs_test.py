"""A run of every family, from training through evaluation to its report and its pictures."""

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from vaejax import checkpoints, evaluation, experiment, gallery, journal, keys, report, runs, training
from vaejax.config import from_dict
from vaejax.errors import FamilyError, Terminated
from vaejax.interruption import Interruption
from vaejax.runs import Run
from vaejax.training import TrainState

pytestmark = pytest.mark.usefixtures("compiled_quickly")

SHAPE, STEPS, EPOCH, CODES, PLACES = (12, 12), 6, 3, 5, 36
TEST = 9
MLP = {"network": "mlp", "hidden": (8,)}
FAMILIES = {
    "mixture": {"model": MLP | {"prior": "mixture", "prior_components": 3}},
    "vamp": {"model": MLP | {"prior": "vamp", "prior_components": 3}},
    "iaf": {"model": MLP | {"posterior": "iaf", "flow_steps": 2, "flow_width": 4}},
    "hierarchical": {"model": {"family": "hierarchical", "network": "resnet", "features": (4,), "blocks": 2}},
    "vq": {"model": {"family": "vq", "network": "cnn", "features": (4,), "codes": CODES}, "objective": {"name": "vq"}},
    "vae_gan": {"model": MLP, "objective": {"name": "vae_gan", "discriminator_features": (4,)}},
}
GAUGES = {
    "vq": {"commitment", "codes_in_use", "codes_revived", "code_perplexity"},
    "vae_gan": {"features", "discriminator_loss", "adversarial_loss", "adversarial_weight"},
}
UNDEFINED = {
    "hierarchical": {"pca": "not one vector"},
    "vq": {"nll": "the posterior is a point", "active_units": "codes", "pca": "not one vector"},
    "vae_gan": dict.fromkeys(("elbo", "nll", "bits_per_dim"), "trained against a discriminator"),
}
each_family = pytest.mark.parametrize("family", FAMILIES)


def create(folder: Path, family: str, **sections: dict) -> Run:
    """A run of the smallest networks on smooth images of bytes."""
    folder.mkdir(exist_ok=True)
    random, stored = np.random.default_rng(0), {}
    for split, n in (("train", 24), ("val", 7), ("test", TEST)):
        waves = random.normal(size=(n, *SHAPE)).cumsum(axis=1).cumsum(axis=2)
        stored[f"{split}_images"] = np.uint8(127.5 + 127.5 * np.tanh(waves / 4.0))
    np.savez(folder / "waves.npz", **stored)
    values = {
        "data": {"name": "medmnist", "path": str(folder / "waves.npz"), "batch_size": 24 // EPOCH},
        "model": {"latent_size": 2, "likelihood": "discretized_logistic", "levels": 16},
        "training": {"steps": STEPS, "checkpoint_every": 100, "log_every": 2, "ema_decay": 0.9},
        "evaluation": {"samples": 3, "batch_size": 5},
    }
    for part in (FAMILIES[family], sections):
        values |= {name: values.get(name, {}) | fields for name, fields in part.items()}
    return runs.create(str(folder / "run"), from_dict(values))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """The run of a family, trained once."""

    @functools.cache
    def of(family: str) -> Run:
        run = create(tmp_path_factory.mktemp(family), family)
        experiment.train(run, Interruption())
        return run

    return of


@pytest.fixture(scope="module")
def evaluated(trained) -> Callable[[str], dict]:
    """The evaluation of a family's run, made once."""
    return functools.cache(lambda family: evaluation.evaluate(trained(family)))


def rows(run: Run, split: str) -> list[dict]:
    return [row for row in journal.read(run.directory) if row["split"] == split]


def final(run: Run) -> TrainState:
    """The newest checkpoint, whole."""
    abstract = training.abstract(run.model, training.objective_of(run.model, run.config))
    return checkpoints.restore(run.checkpoints, run.fingerprint, abstract).state


# --- evaluation


@each_family
def test_what_a_family_defines_is_measured_and_what_it_does_not_is_told(trained, evaluated, family):
    result = evaluated(family)
    assert json.loads((trained(family).directory / "evaluation.json").read_text()) == result
    every = {"elbo", "distortion", "rate", "nll", "bits_per_dim", "mse", "psnr", "ssim", "active_units"}
    every |= {"codes_used", "code_perplexity"} if family == "vq" else set()
    undefined = UNDEFINED.get(family, {})
    assert result["metrics"].keys() == every - undefined.keys()
    assert result["undefined"].keys() == undefined.keys()
    assert all(reason in result["undefined"][name] for name, reason in undefined.items())
    assert result["baselines"].keys() == ({"pca"} if "pca" not in undefined else set())
    for name, value in result["metrics"].items():
        assert value["n"] == TEST
        assert math.isfinite(value["mean"]), name


@each_family
def test_the_validation_loss_is_that_of_the_bound(trained, family):
    for row in rows(trained(family), "val"):
        assert row.keys() == {"step", "split", "loss", "distortion", "rate"}
        assert row["loss"] == pytest.approx(row["distortion"] + row["rate"], rel=1e-6)


def test_the_bound_of_codes_is_distortion_and_the_logarithm_of_all_codes(evaluated):
    metrics = evaluated("vq")["metrics"]
    value = {name: entry["mean"] for name, entry in metrics.items()}
    assert value["rate"] == pytest.approx(PLACES * math.log(CODES), rel=1e-6)
    assert value["elbo"] == pytest.approx(-(value["distortion"] + value["rate"]), rel=1e-12)
    assert value["bits_per_dim"] == pytest.approx(-value["elbo"] / math.prod(SHAPE) / math.log(2.0), rel=1e-12)
    assert 1 <= value["code_perplexity"] <= value["codes_used"] <= CODES
    assert metrics["codes_used"]["unit"] == f"of {CODES} codes"


def test_codes_used_are_those_of_the_test_images(trained, evaluated):
    run = trained("vq")
    params, images = experiment.restore(run).params, experiment.rows(run, "test", np.arange(TEST))["image"]
    codes = np.asarray(run.model.infer(params, images, jax.random.split(jax.random.key(0), TEST)).mean)
    share = np.unique(codes, return_counts=True)[1] / codes.size
    metrics = evaluated("vq")["metrics"]
    assert metrics["codes_used"]["mean"] == len(share)
    assert metrics["code_perplexity"]["mean"] == pytest.approx(np.prod(share**-share), rel=1e-6)


def test_one_sample_says_all_of_codes(trained):
    one, many = (evaluation.evaluate(trained("vq"), samples=samples) for samples in (1, 7))
    assert one["samples"] == 1
    assert one == many


def test_samples_matter_where_the_posterior_is_drawn_from(trained, evaluated):
    many = evaluated("iaf")["metrics"]["nll"]["mean"]
    assert evaluation.evaluate(trained("iaf"), samples=1)["metrics"]["nll"]["mean"] != many


def test_latents_of_all_levels_are_counted(evaluated):
    assert evaluated("hierarchical")["metrics"]["active_units"]["unit"] == f"of {2 * 2 * PLACES} latents"


# --- pictures


@each_family
def test_a_run_is_reported_and_shown(trained, evaluated, family, tmp_path):
    run = trained(family)
    evaluated(family)
    page = report.write(run).read_text()
    assert ("Beside the ELBO" in page) == (family in GAUGES)
    assert ("Latent space" in page, "<h2>Interpolation</h2>" in page) == (family != "vq", family != "vq")
    for name, reason in UNDEFINED.get(family, {}).items():
        assert f'<tr><td>{name}</td><td colspan="4">not defined: ' in page
        assert reason in page
    gallery.sample(run, tmp_path, False, 3, 0, 1.0)
    gallery.reconstruct(run, tmp_path, False, "test", 2, 0)
    made = np.load(tmp_path / "samples.npz")["images"]
    assert made.shape == (3, *SHAPE, 1)
    restored = np.load(tmp_path / "reconstructions.npz")["reconstructions"]
    assert restored.shape == (2, *SHAPE, 1)
    for images in (made, restored):
        assert images.min() >= 0.0
        assert images.max() <= 1.0


def test_a_line_goes_through_all_levels(trained, tmp_path):
    run = trained("hierarchical")
    gallery.interpolate(run, tmp_path, False, "test", 2, 0, 3)
    lines = np.load(tmp_path / "interpolations.npz")
    ends = experiment.rows(run, "test", lines["index"][:, 0])
    expected = report.draw_reconstructions(run.model, experiment.restore(run).params, ends)
    np.testing.assert_allclose(lines["images"][:, 0], expected, atol=1e-5)


def test_there_is_no_line_between_codes(trained, tmp_path):
    with pytest.raises(FamilyError, match="no line between codes"):
        gallery.interpolate(trained("vq"), tmp_path, False, "test", 2, 0, 3)
    assert list(tmp_path.iterdir()) == []


# --- gauges


@each_family
def test_what_is_counted_beside_the_terms_is_in_the_journal(trained, family):
    common = {"step", "split", "loss", "distortion", "rate", "gradient_norm", "learning_rate", "images_per_second"}
    found = rows(trained(family), "train")
    assert [row["step"] for row in found] == [2, 4, 6]
    for row in found:
        assert row.keys() - common == GAUGES.get(family, set())


def test_gauges_are_in_their_range(trained):
    for row in rows(trained("vq"), "train"):
        assert row["codes_in_use"] in range(1, CODES + 1)
        assert row["codes_revived"] in range(CODES + 1)
        assert 1.0 <= row["code_perplexity"] <= CODES
    for row in rows(trained("vae_gan"), "train"):
        assert row["discriminator_loss"] > 0.0
        assert row["adversarial_weight"] > 0.0


@pytest.mark.parametrize("family", ["vamp", "vq", "vae_gan"])
def test_updates_that_are_too_large_are_skipped_and_counted(tmp_path, family):
    run = create(tmp_path, family, optimizer={"skip_norm": 1e-9}, training={"steps": STEPS, "log_every": 3})
    experiment.train(run, Interruption())
    for side in ("", "discriminator_") if family == "vae_gan" else ("",):
        assert [row[f"{side}skipped"] for row in rows(run, "train")] == [3, 6]
    begun = jax.jit(run.model.init)(keys.stream(jax.random.key(0), "init"))
    for name, part in final(run).params.items():
        assert all(map(np.array_equal, jax.tree.leaves(part), jax.tree.leaves(begun[name]))), name
    if family not in GAUGES:
        assert "Beside the ELBO" in report.write(run).read_text()


# --- stops


@pytest.mark.parametrize("family", ["vq", "vae_gan"])
def test_a_stopped_run_has_the_bits_of_an_unbroken_one(trained, tmp_path, monkeypatch, family):
    run, interruption = create(tmp_path, family), Interruption()
    with monkeypatch.context() as patched:
        patched.setattr(experiment, "_validate", lambda *_: interruption.request() or {})
        with pytest.raises(Terminated, match=f"at step {EPOCH}, which is saved"):
            experiment.train(run, interruption)
    experiment.train(run, Interruption())
    got, expected = final(run), final(trained(family))
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for (path, leaf), other in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(leaf, other, err_msg=jax.tree_util.keystr(path))
    last = [rows(run, "train")[-1] | {"images_per_second": 0} for run in (run, trained(family))]
    assert last[0] == last[1]
