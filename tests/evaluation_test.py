"""What a model is worth: the same whatever the batches, against recomputation in float64, beside scikit-learn's PCA."""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats
from sklearn.decomposition import PCA

from vaejax import checkpoints, evaluation, experiment, inspection, keys, metrics, objectives, optimizers, runs, training
from vaejax.config import from_dict
from vaejax.models import Params
from vaejax.runs import Run

pytestmark = pytest.mark.usefixtures("compiled_quickly")

SIZES = {"train": 40, "val": 9, "test": 13}
SHAPE = (12, 11)
LATENTS = 3
SAMPLES = 7
GAUSSIAN = {"likelihood": "gaussian"}
BERNOULLI = {"likelihood": "bernoulli"}
LOGISTIC = {"likelihood": "discretized_logistic", "levels": 16}


def images(shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """Smooth images of bytes for every split; the first two of the test split are black."""
    rng = np.random.default_rng(0)
    waves = {name: rng.normal(size=(n, 2, *shape)).cumsum(axis=2).cumsum(axis=3) for name, n in SIZES.items()}
    stored = {name: np.uint8(127.5 + 127.5 * np.tanh(wave[:, 0] / 4.0)) for name, wave in waves.items()}
    stored["test"][:2] = 0
    return stored


def create(folder: Path, model: dict, shape: tuple[int, int] = SHAPE, batch_size: int = 5, ema_decay: float = 0.9) -> Run:
    """A run of the smallest network on those images; nothing is trained."""
    file = folder / "images.npz"
    np.savez(file, **{f"{name}_images": stored for name, stored in images(shape).items()})
    return runs.create(
        str(folder / f"{model['likelihood']}-{batch_size}-{ema_decay}"),
        from_dict(
            {
                "data": {
                    "name": "medmnist",
                    "path": str(file),
                    "batch_size": 8,
                    "binarization": "static" if model["likelihood"] == "bernoulli" else "none",
                },
                "model": {"network": "mlp", "hidden": (8,), "latent_size": LATENTS} | model,
                "training": {"ema_decay": ema_decay},
                "evaluation": {"samples": SAMPLES, "batch_size": batch_size},
            }
        ),
    )


def weights(run: Run, seed: int = 0) -> Params:
    """Initial weights, enlarged so that images differ in all that is measured."""
    return jax.tree.map(lambda leaf: 2.0 * leaf, run.model.init(jax.random.key(seed)))


def measure(run: Run, split: str = "test", samples: int = SAMPLES, draw: int = 0) -> dict[str, np.ndarray]:
    """Every metric of the initial weights, an example each."""
    return evaluation.per_example(run, weights(run), split, samples, draw)


def save(run: Run) -> training.TrainState:
    """Saves a state whose average differs from its parameters, at step 3, and returns it."""
    objective = objectives.elbo(run.model, run.config.objective, optimizers.build(run.config.optimizer, 1))
    state = training.init(run.model, objective, jax.random.key(1))
    state = state._replace(step=jnp.int32(3), params=weights(run, 2), ema=weights(run, 3))
    with checkpoints.Writer(run.checkpoints, run.fingerprint) as writer:
        writer.save(3, jax.device_put(state, training.abstract(run.model, objective).step.sharding), {"loss": 1.0})
    return state


def pixels(run: Run, split: str, draw: int = 0) -> np.ndarray:
    """All images of a split as the model sees them."""
    return np.asarray(experiment.rows(run, split, np.arange(SIZES[split]), draw)["image"])


# --- one value an example


@pytest.mark.parametrize("model", [GAUSSIAN, BERNOULLI, LOGISTIC], ids=lambda model: model["likelihood"])
def test_nothing_depends_on_how_many_are_computed_at_a_time(tmp_path, monkeypatch, model):
    whole = measure(create(tmp_path, model, batch_size=13))
    numbers = math.prod(SHAPE)
    for batch_size, samples_at_a_time in ((5, SAMPLES), (13, 1), (4, 3)):
        monkeypatch.setitem(evaluation.PIXELS_AT_A_TIME, "cpu", batch_size * numbers * samples_at_a_time)
        parts = measure(create(tmp_path, model, batch_size=batch_size))
        assert parts.keys() == whole.keys()
        for name in whole:
            assert len(parts[name]) == SIZES["test"], name
            np.testing.assert_allclose(parts[name], whole[name], rtol=1e-5, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("model", [GAUSSIAN, BERNOULLI, LOGISTIC], ids=lambda model: model["likelihood"])
def test_the_likelihood_is_that_of_float64(tmp_path, monkeypatch, model):
    run = create(tmp_path, model)
    monkeypatch.setitem(evaluation.PIXELS_AT_A_TIME, "cpu", 5 * math.prod(SHAPE) * 3)
    found = measure(run, draw=4)
    seen, index = jnp.asarray(pixels(run, "test", draw=4)), jnp.arange(SIZES["test"])
    example_keys = keys.of_examples(keys.stream(jax.random.key(4), "posterior of test"), index)
    inference = run.model.infer(weights(run), seen, example_keys, samples=SAMPLES)
    by_pixel = np.asarray(inference.likelihood.pixel_log_prob(seen), np.float64)
    log_likelihood = by_pixel.sum(axis=(2, 3, 4))
    log_weight = log_likelihood - np.asarray(inference.log_ratio, np.float64)
    np.testing.assert_allclose(found["nll"], math.log(SAMPLES) - special.logsumexp(log_weight, axis=0), rtol=1e-5)
    np.testing.assert_allclose(found["distortion"], -log_likelihood.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found["rate"], inference.kl[0], rtol=1e-5)
    np.testing.assert_allclose(found["elbo"], -found["distortion"] - found["rate"], rtol=1e-12)
    np.testing.assert_allclose(found["mean"], inference.mean, rtol=1e-4, atol=1e-5)


def test_the_likelihood_is_at_least_its_bound(tmp_path):
    found = measure(create(tmp_path, LOGISTIC), "train", samples=100)
    assert found["nll"].mean() < -found["elbo"].mean()
    assert found["nll"].mean() < measure(create(tmp_path, LOGISTIC), "train", samples=2)["nll"].mean()


def test_one_sample_is_exact_where_images_ignore_the_latents(tmp_path):
    """All weights 0: the posterior is the prior, and every pixel is 1 with probability 1/2."""
    run = create(tmp_path, BERNOULLI)
    flat = jax.tree.map(jnp.zeros_like, run.model.init(jax.random.key(0)))
    found = evaluation.per_example(run, flat, "test", 1, 0)
    np.testing.assert_allclose(found["nll"], math.prod(SHAPE) * math.log(2.0), rtol=1e-5)
    np.testing.assert_allclose(found["bits_per_dim"], 1.0, rtol=1e-5)
    np.testing.assert_allclose(found["rate"], 0.0, atol=1e-6)


@pytest.mark.parametrize("model", [BERNOULLI, LOGISTIC], ids=lambda model: model["likelihood"])
def test_bits_are_of_the_likelihood(tmp_path, model):
    found = measure(create(tmp_path, model))
    np.testing.assert_allclose(found["bits_per_dim"], found["nll"] / math.prod(SHAPE) / math.log(2.0), rtol=1e-12)


def test_reconstruction_errors_are_those_of_the_posterior_mean(tmp_path):
    run = create(tmp_path, GAUSSIAN)
    found, seen = measure(run), pixels(run, "test")
    mean = run.model.infer(weights(run), jnp.asarray(seen), jax.random.split(jax.random.key(0), len(seen))).mean
    restored = np.asarray(run.model.decode(weights(run), mean).mean(), np.float64)
    error = ((seen - restored) ** 2).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(found["mse"], error, rtol=1e-4)
    np.testing.assert_allclose(found["psnr"], -10.0 * np.log10(error), rtol=1e-4)
    np.testing.assert_allclose(found["ssim"], metrics.ssim(seen, np.float32(restored)), atol=1e-4)


def test_a_draw_changes_the_binarization_and_nothing_that_is_grey(tmp_path):
    binary, grey = create(tmp_path, BERNOULLI), create(tmp_path, GAUSSIAN)
    one, again, other = (measure(binary, draw=draw)["mse"] for draw in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert np.any(one != other)
    assert np.array_equal(one[:2], other[:2])  # black stays black
    one, other = (measure(grey, draw=draw) for draw in (0, 1))
    np.testing.assert_array_equal(one["mse"], other["mse"])
    assert np.all(one["nll"] != other["nll"])


# --- evaluation.json


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_every_split_can_be_evaluated(tmp_path, split):
    run = create(tmp_path, GAUSSIAN)
    save(run)
    result = evaluation.evaluate(run, split)
    assert json.loads((run.directory / "evaluation.json").read_text()) == result
    assert (result["split"], result["step"]) == (split, 3)
    assert {value["n"] for value in (*result["metrics"].values(), *result["baselines"]["pca"].values())} == {SIZES[split]}


@pytest.mark.parametrize(("split", "count"), [("train", 0), ("test", 2)])
def test_images_unlike_those_trained_on_are_counted_and_told(tmp_path, capsys, split, count):
    """Two test images are black."""
    run = create(tmp_path, BERNOULLI)
    save(run)
    ranges = {name: (0.5, 1.0) if name == "light" else (0.0, 1.0) for name in inspection.TRAITS}
    runs.write_json(run.directory / "data.json", runs.read_json(run.directory / "data.json") | {"ranges": ranges})
    assert evaluation.evaluate(run, split)["outside"] == {"images": count, "of": SIZES[split]}
    assert (f"warning: {count} of {SIZES[split]} images of the split '{split}'" in capsys.readouterr().err) is bool(count)


def test_a_run_that_knows_no_ranges_is_evaluated_nevertheless(tmp_path):
    run = create(tmp_path, GAUSSIAN)
    save(run)
    told = runs.read_json(run.directory / "data.json")
    runs.write_json(run.directory / "data.json", {name: value for name, value in told.items() if name != "ranges"})
    assert evaluation.evaluate(run)["outside"] is None


@pytest.mark.parametrize("ema_decay", [0.9, 0.0])
def test_the_averaged_weights_are_evaluated_where_there_are_any(tmp_path, ema_decay):
    run = create(tmp_path, GAUSSIAN, ema_decay=ema_decay)
    state = save(run)
    expected = evaluation.per_example(run, state.ema if ema_decay else state.params, "test", SAMPLES, 0)
    result = evaluation.evaluate(run)["metrics"]
    for name in ("nll", "mse", "rate"):
        assert result[name]["mean"] == pytest.approx(np.float64(expected[name]).mean(), rel=1e-6)
        assert result[name]["sem"] == pytest.approx(stats.sem(np.float64(expected[name])), rel=1e-6)
    assert result["active_units"]["mean"] == np.sum(np.var(expected["mean"], axis=0) > 0.01)
    assert result["active_units"]["unit"] == f"of {LATENTS} latents"


def test_the_configured_samples_and_draw_are_used_where_none_are_asked_for(tmp_path):
    run = create(tmp_path, BERNOULLI)
    save(run)
    configured = evaluation.evaluate(run)
    assert (configured["samples"], configured["draw"]) == (SAMPLES, 0)
    assert evaluation.evaluate(run, samples=SAMPLES, draw=0) == configured
    other = evaluation.evaluate(run, draw=1)
    assert other["baselines"] != configured["baselines"]  # the floor is of the same images


@pytest.mark.parametrize("model", [GAUSSIAN, BERNOULLI, LOGISTIC], ids=lambda model: model["likelihood"])
def test_the_floor_is_that_of_scikit_learn(tmp_path, model):
    run = create(tmp_path, model)
    save(run)
    train, test = (pixels(run, split).reshape(SIZES[split], -1) for split in ("train", "test"))
    pca = PCA(LATENTS, svd_solver="full").fit(np.float64(train))
    restored = np.clip(pca.inverse_transform(pca.transform(np.float64(test))), 0.0, 1.0)
    error = ((test - restored) ** 2).mean(axis=1)
    floor = evaluation.evaluate(run)["baselines"]["pca"]
    assert floor["mse"]["mean"] == pytest.approx(error.mean(), rel=1e-4)
    assert floor["psnr"]["mean"] == pytest.approx(np.minimum(-10.0 * np.log10(error), 100.0).mean(), rel=1e-4)
    shaped = (test.reshape(-1, *SHAPE, 1), np.float32(restored).reshape(-1, *SHAPE, 1))
    assert floor["ssim"]["mean"] == pytest.approx(float(metrics.ssim(*shaped).mean()), abs=1e-4)


def test_the_floor_of_grey_levels_is_probabilistic_pca(tmp_path):
    run = create(tmp_path, LOGISTIC)
    save(run)
    train, test = (np.float64(pixels(run, split).reshape(SIZES[split], -1)) for split in ("train", "test"))
    spread, step = np.random.default_rng(0), 1.0 / (LOGISTIC["levels"] - 1)
    train = train + step * (np.float64(spread.random(train.shape, np.float32)) - 0.5)
    parts = [spread.random((size, test.shape[1]), np.float32) for size in (5, 5, 3)]  # as the batches come
    test = test + step * (np.float64(np.concatenate(parts)) - 0.5)
    values, vectors = np.linalg.eigh(np.cov(train, rowvar=False))
    values, vectors = values[::-1], vectors[:, ::-1]
    noise = values[LATENTS:].sum() / (len(values) - LATENTS)  # Tipping and Bishop 1999, eq. 8
    axes = vectors[:, :LATENTS]
    covariance = axes @ np.diag(values[:LATENTS] - noise) @ axes.T + noise * np.eye(len(values))
    nats = -stats.multivariate_normal(train.mean(axis=0), covariance).logpdf(test) - test.shape[1] * math.log(step)
    floor = evaluation.evaluate(run)["baselines"]["pca"]["bits_per_dim"]
    assert floor["mean"] == pytest.approx((nats / test.shape[1] / math.log(2.0)).mean(), rel=1e-4)
    assert floor["n"] == SIZES["test"]


def test_the_floor_has_no_more_components_than_there_are_images(tmp_path):
    run = create(tmp_path, GAUSSIAN | {"latent_size": 60})
    save(run)
    floor = evaluation.evaluate(run, "train")["baselines"]["pca"]
    assert floor["mse"]["mean"] < 1e-10  # forty components span forty images
    assert floor["psnr"]["capped"] > 0


def test_the_floor_is_fitted_on_evenly_spaced_images_where_there_are_too_many(tmp_path, monkeypatch):
    run = create(tmp_path, GAUSSIAN)
    save(run)
    monkeypatch.setattr(evaluation, "PCA_NUMBERS", 14 * math.prod(SHAPE))
    train, test = (np.float64(pixels(run, split).reshape(SIZES[split], -1)) for split in ("train", "test"))
    pca = PCA(LATENTS, svd_solver="full").fit(train[::3])
    restored = np.clip(pca.inverse_transform(pca.transform(test)), 0.0, 1.0)
    floor = evaluation.evaluate(run)["baselines"]["pca"]
    assert floor["mse"]["mean"] == pytest.approx(((test - restored) ** 2).mean(), rel=1e-4)


def test_reconstructions_without_error_are_counted(tmp_path, monkeypatch):
    run = create(tmp_path, GAUSSIAN)
    save(run)
    assert evaluation.evaluate(run)["metrics"]["psnr"]["capped"] == 0
    monkeypatch.setattr(
        evaluation, "reconstruct", lambda model, params, seen, condition: jnp.where(seen.max() > 0, 0.0 * seen, seen)
    )
    psnr = evaluation.evaluate(run)["metrics"]["psnr"]
    assert psnr["capped"] == 2  # the two black ones
    assert psnr["n"] == SIZES["test"]


@pytest.mark.parametrize(
    ("model", "shape", "undefined"),
    [
        (GAUSSIAN, SHAPE, {"bits_per_dim"}),
        (GAUSSIAN, (8, 8), {"bits_per_dim", "ssim"}),
        (BERNOULLI, (8, 8), {"ssim"}),
        (LOGISTIC, SHAPE, set()),
    ],
)
def test_what_is_not_defined_is_absent_and_told(tmp_path, model, shape, undefined):
    run = create(tmp_path, model, shape)
    save(run)
    result = evaluation.evaluate(run)
    assert result["undefined"].keys() == undefined
    every = {"elbo", "distortion", "rate", "nll", "bits_per_dim", "mse", "psnr", "ssim", "active_units"}
    assert result["metrics"].keys() == every - undefined
    floor = {"mse", "psnr", "ssim"} | ({"bits_per_dim"} if model is LOGISTIC else set())
    assert result["baselines"]["pca"].keys() == floor - undefined
