"""A model that is told the label: by the library, and through a run from training to pictures by label."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vaejax import batches, evaluation, experiment, gallery, models, objectives, report, runs
from vaejax import distributions as dist
from vaejax.applications import generation, reconstruction
from vaejax.config import ModelConfig, ObjectiveConfig, from_dict
from vaejax.errors import ConfigError, DataError
from vaejax.interruption import Interruption
from vaejax.keys import of_examples

pytestmark = pytest.mark.usefixtures("compiled_quickly")

SHAPE, CLASSES = (5, 4, 1), 3
NETWORKS = {"mlp": {}, "cnn": {"features": (2, 3)}, "transformer": {"patch_size": 1, "width": 4, "depth": 1, "heads": 2}}


@functools.cache
def built(network: str = "mlp") -> tuple[models.Model, models.Params]:
    config = ModelConfig(network=network, latent_size=2, hidden=(8,), conditional=True, **NETWORKS[network])
    model = models.build(config, SHAPE, CLASSES)
    return model, jax.tree.map(lambda leaf: 2.0 * leaf + 0.1, jax.jit(model.init)(jax.random.key(0)))


def images(batch: int = 3) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).random((batch, *SHAPE)), jnp.float32)


def keys(batch: int = 3) -> jax.Array:
    return of_examples(jax.random.key(1), jnp.arange(batch))


@pytest.mark.parametrize("network", NETWORKS)
def test_posterior_and_likelihood_depend_on_the_label_of_their_own_image(network):
    model, params = built(network)
    same = jnp.stack([images()[0]] * 3)
    told = model.infer(params, same, keys(), condition=jnp.array([0, 1, 1]))
    assert not np.allclose(told.mean[0], told.mean[1], rtol=1e-3)
    np.testing.assert_allclose(told.mean[1], told.mean[2], rtol=1e-5)
    decoded = model.decode(params, jnp.zeros((3, 2)), jnp.array([0, 1, 1])).mean()
    assert not np.allclose(decoded[0], decoded[1], rtol=1e-3)
    np.testing.assert_allclose(decoded[1], decoded[2], rtol=1e-5)


@pytest.mark.parametrize("network", NETWORKS)
def test_every_parameter_learns(network):
    model, params = built(network)

    def loss(params: models.Params) -> jax.Array:
        inference = model.infer(params, images(), keys(), 2, jnp.arange(3))
        return sum(term.sum() for term in objectives.elbo_terms(inference, images()).values())

    for path, gradient in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(params)):
        assert np.any(gradient), jax.tree_util.keystr(path)


def test_labels_are_weights_of_one_and_decoding_the_draws_gives_their_likelihood():
    model, params = built()
    by_label = model.infer(params, images(), keys(), 2, jnp.array([2, 0, 1]))
    by_weight = model.infer(params, images(), keys(), 2, jnp.eye(3)[jnp.array([2, 0, 1])])
    for a, b in zip(jax.tree.leaves(by_label), jax.tree.leaves(by_weight), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    alone = model.decode(params, by_label.latents, jnp.array([2, 0, 1]))
    np.testing.assert_allclose(dist.log_prob(alone, images()), dist.log_prob(by_label.likelihood, images()), rtol=1e-5)


def test_the_label_must_be_told_and_exist():
    model, params = built()
    for call in (
        lambda: model.infer(params, images(), keys()),
        lambda: model.decode(params, jnp.zeros((3, 2))),
        lambda: model.prior(params, keys()),
    ):
        with pytest.raises(ValueError, match="this model is conditional; expected labels, 0 to 2"):
            call()
    with pytest.raises(ConfigError, match=r"model\.conditional=True: needs labels"):
        models.build(ModelConfig(conditional=True), SHAPE)
    assert models.build(ModelConfig(), SHAPE, CLASSES).classes is None


def test_a_line_goes_from_one_reconstruction_to_the_other_whatever_their_labels():
    model, params = built()
    first, second, labels = images()[:1], images()[1:2], (jnp.array([0]), jnp.array([2]))
    line = reconstruction.interpolate(model, params, first, second, 3, labels)
    np.testing.assert_allclose(line[:, 0], reconstruction.reconstruct(model, params, first, labels[0]), rtol=1e-4)
    np.testing.assert_allclose(line[:, 2], reconstruction.reconstruct(model, params, second, labels[1]), rtol=1e-4)
    assert not np.allclose(line[:, 1], line[:, 0], rtol=1e-3)


def test_a_sample_of_a_label_depends_on_the_label():
    model, params = built()
    zero, one = (generation.sample(model, params, jax.random.key(0), 2, 1.0, jnp.full(2, label)) for label in (0, 1))
    assert not np.allclose(zero, one, rtol=1e-3)


# --- a run


def create(folder: Path, labelled: tuple[str, ...] = ("train", "val", "test"), **model) -> runs.Run:
    """Images of bars, lying or standing, which is their label."""
    rng, arrays = np.random.default_rng(0), {}
    for split, n in (("train", 256), ("val", 8), ("test", 12)):
        label = rng.integers(0, 2, n)
        bars = np.zeros((n, 12, 12), np.uint8)
        for image, lying, place in zip(bars, label, rng.integers(0, 12, n), strict=True):
            (image if lying else image.T)[place] = 255
        arrays |= {f"{split}_images": bars} | ({f"{split}_labels": label[:, None]} if split in labelled else {})
    np.savez(folder / "bars.npz", **arrays)
    values = {
        "data": {"name": "medmnist", "path": str(folder / "bars.npz"), "batch_size": 32, "binarization": "dynamic"},
        "model": {"network": "mlp", "hidden": (32,), "latent_size": 2, "likelihood": "bernoulli", "conditional": True} | model,
        "optimizer": {"learning_rate": 1e-2},
        "training": {"steps": 600, "checkpoint_every": 600, "log_every": 100, "ema_decay": 0.0},
        "evaluation": {"samples": 3, "batch_size": 7},
    }
    return runs.create(str(folder / "run"), from_dict(values))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> runs.Run:
    run = create(tmp_path_factory.mktemp("bars"))
    experiment.train(run, Interruption())
    return run


def test_images_are_made_by_label(run, tmp_path):
    for label in ("0", "1"):
        gallery.sample(run, tmp_path, False, 40, 0, 1.0, label)
        images = np.load(tmp_path / "samples.npz")["images"][..., 0]
        spread_of_rows, spread_of_columns = images.mean(axis=2).std(axis=1), images.mean(axis=1).std(axis=1)
        lying = spread_of_rows > spread_of_columns
        assert lying.mean() > 0.8 if label == "1" else lying.mean() < 0.2


def test_labels_take_turns_where_none_is_asked_for(run, tmp_path):
    gallery.sample(run, tmp_path, False, 5, 0, 1.0)
    assert np.load(tmp_path / "samples.npz")["label"].tolist() == [0, 1, 0, 1, 0]


def test_a_conditional_run_is_evaluated_drawn_and_reported(run, tmp_path):
    result = evaluation.evaluate(run)
    assert result["metrics"]["nll"]["n"] == 12
    gallery.reconstruct(run, tmp_path, False, "test", 4, 0)
    gallery.interpolate(run, tmp_path, False, "test", 2, 0, 3)
    assert "by label" in report.write(run).read_text()


def test_a_label_that_nobody_knows_is_refused(run, tmp_path):
    with pytest.raises(DataError, match="--label=7: expected one of 0, 1"):
        gallery.sample(run, tmp_path, False, 5, 0, 1.0, "7")


def test_a_label_of_an_unconditional_run_is_refused(tmp_path):
    run = create(tmp_path, conditional=False)
    with pytest.raises(DataError, match="--label=1: the run is not conditional"):
        gallery._labels(run, "1", 3)


def test_a_conditional_model_of_images_without_labels_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"model\.conditional=True: needs labels"):
        create(tmp_path, ())


@pytest.mark.parametrize("labelled", [("train", "val"), ("test",)])
def test_images_with_labels_in_some_splits_alone_are_refused(tmp_path, labelled):
    with pytest.raises(DataError, match="expected labels of every split or of none"):
        create(tmp_path, labelled)


def test_one_step_of_the_library_takes_labels():
    model, params = built()
    objective = objectives.elbo(model, ObjectiveConfig(), optax.adam(1e-3))
    data = batches.batch_of(np.asarray(images()), label=np.array([2, 0, 1]))
    result = jax.jit(objective.update)(params, objective.init(params, jax.random.key(1)), data, jax.random.key(0), jnp.int32(0))
    assert np.isfinite(result.loss)
