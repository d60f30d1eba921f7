"""Samples beside real images: the classifier that looks at them, the distances, and where latents come from."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vaejax import checkpoints, classifier, experiment, frechet, gallery, metrics, report, runs, samplers, training
from vaejax import distributions as dist
from vaejax.config import from_dict
from vaejax.errors import DataError, FamilyError, VaejaxError
from vaejax.keys import of_examples, stream
from vaejax.models import Params
from vaejax.runs import Run

pytestmark = pytest.mark.usefixtures("compiled_quickly")

SIDE, TRAIN, TEST = 8, 400, 60
FAMILIES = {
    "hierarchical": {"model": {"family": "hierarchical", "network": "resnet", "features": (4,), "blocks": 1}},
    "vq": {"model": {"family": "vq", "network": "cnn", "features": (4,), "codes": 4}, "objective": {"name": "vq"}},
}


def create(folder: Path, name: str = "run", labelled: bool = True, **sections: dict) -> Run:
    """A run on images of a bar, lying or standing, which is its label."""
    random, arrays = np.random.default_rng(0), {}
    for split, n in (("train", TRAIN), ("val", 8), ("test", TEST)):
        label = random.integers(0, 2, n)
        bars = np.zeros((n, SIDE, SIDE), np.uint8)
        for image, standing, place in zip(bars, label, random.integers(0, SIDE, n), strict=True):
            (image.T if standing else image)[place] = 255
        arrays |= {f"{split}_images": bars} | ({f"{split}_labels": label} if labelled else {})
    np.savez(folder / "bars.npz", **arrays)
    defaults = {
        "data": {"name": "medmnist", "path": str(folder / "bars.npz"), "batch_size": 16},
        "model": {"network": "mlp", "hidden": (8,), "latent_size": 2},
        "evaluation": {"batch_size": 33},
    }
    merged = {part: defaults.get(part, {}) | sections.get(part, {}) for part in defaults | sections}
    return runs.create(str(folder / name), from_dict(merged))


def begun(run: Run) -> Run:
    """The run with its initial weights for a checkpoint of step 1."""
    state = training.init(run.model, training.objective_of(run.model, run.config), jax.random.key(0))
    with checkpoints.Writer(run.checkpoints, run.fingerprint) as writer:
        writer.save(1, state, {"loss": 1.0})
    return run


@pytest.fixture(scope="module", autouse=True)
def short() -> Iterator[None]:
    """A classifier of two easy classes needs few steps."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(classifier, "STEPS", 60)
        patched.setattr(classifier, "BATCH", 32)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A conditional run."""
    return begun(create(tmp_path_factory.mktemp("bars"), model={"conditional": True}))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same, told no label."""
    return begun(create(tmp_path_factory.mktemp("plain")))


def drawing(run: Run, logits: Callable[[jax.Array, jax.Array], jax.Array]) -> Run:
    """The run with a decoder that makes of latents and labels what it is told to."""
    return run._replace(
        model=run.model._replace(decode=lambda params, latents, condition: dist.Bernoulli(logits(latents, condition)))
    )


def bars(latents: jax.Array, label: jax.Array) -> jax.Array:
    """Images like the real ones: the bar's place is uniform where the first latent is normal."""
    place = jnp.int32(SIDE * jax.scipy.stats.norm.cdf(latents[:, 0]))
    lying = 100.0 * jax.nn.one_hot(place, SIDE)[:, :, jnp.newaxis, jnp.newaxis] - 50.0
    lying = jnp.broadcast_to(lying, (len(latents), SIDE, SIDE, 1))
    return jnp.where((label == 1)[:, jnp.newaxis, jnp.newaxis, jnp.newaxis], lying.swapaxes(1, 2), lying)


def noise(latents: jax.Array, label: jax.Array) -> jax.Array:
    """No image is like a real one: every pixel is another wave of the latents."""
    waves = jnp.arange(1.0, SIDE**2 + 1.0)[jnp.newaxis] * latents[:, :1]
    return 50.0 * jnp.sin(100.0 * waves).reshape(-1, SIDE, SIDE, 1)


def seen(run: Run, split: str, index: np.ndarray) -> np.ndarray:
    """The features of images as they are stored."""
    return np.asarray(classifier.of_images(run).look(experiment.rows(run, split, index)["image"])[1])


# --- the classifier


def test_two_easy_classes_are_learned(run):
    assert classifier.of_images(run).accuracy > 0.95


@pytest.mark.parametrize("at_a_time", [7, TEST])
def test_the_accuracy_is_the_share_of_test_images_that_get_their_label(run, monkeypatch, at_a_time):
    monkeypatch.setattr(classifier, "STEPS", 1)
    monkeypatch.setattr(classifier, "ROWS", at_a_time)
    found, test = classifier.of_images(run), experiment.rows(run, "test", np.arange(TEST))
    right = np.asarray(found.look(test["image"])[0]).argmax(axis=1) == test["label"]
    assert 0 < right.sum() < TEST
    assert found.accuracy == pytest.approx(right.mean())


def test_a_classifier_is_trained_once_for_all_runs_on_the_same_images(run, monkeypatch):
    first = classifier.of_images(run)
    again = create(Path(run.directory).parent, "again", model={"latent_size": 3})
    monkeypatch.setattr(classifier, "_train", lambda *_: pytest.fail("trained again"))
    second = classifier.of_images(again)
    assert (second.fingerprint, second.accuracy) == (first.fingerprint, first.accuracy)
    test = experiment.rows(run, "test", np.arange(5))["image"]
    for a, b in zip(first.look(test), second.look(test), strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(list((run.directory.parent / "data").glob("classifier-*.npz"))) >= 1


def test_the_fingerprint_is_of_the_weights(run, plain, monkeypatch):
    """Training draws nothing that is not seeded, so other runs have the same; another length gives others."""
    first = classifier.of_images(run).fingerprint
    assert classifier.of_images(plain).fingerprint == first
    monkeypatch.setattr(classifier, "STEPS", 2)
    assert classifier.of_images(plain).fingerprint != first


def test_images_without_labels_have_no_classifier(tmp_path):
    run = begun(create(tmp_path, labelled=False))
    with pytest.raises(DataError, match=r"data\.name='medmnist': the images have no labels"):
        frechet.measure(run, 10, 1)
    assert not (run.directory / "frechet.json").exists()


# --- distances


def test_distances_are_those_of_the_samples_of_each_seed(run):
    result = frechet.measure(run, TEST, 3)
    assert json.loads((run.directory / "frechet.json").read_text()) == result
    look, params = classifier.of_images(run).look, experiment.restore(run).params
    labels = jnp.asarray(experiment.rows(run, "test", np.arange(TEST))["label"])
    real, expected = seen(run, "test", np.arange(TEST)), []
    for seed in range(3):
        made = report.draw_samples(run.model, params, seed, TEST, 1.0, labels)
        expected.append(metrics.frechet(np.asarray(look(made)[1]), real))
    row = result["samplers"]["prior"]
    np.testing.assert_allclose(row["values"], expected, rtol=1e-4)
    assert len(set(row["values"])) == 3
    assert row["mean"] == pytest.approx(np.mean(expected), rel=1e-4)
    assert row["sem"] == pytest.approx(stats.sem(expected), rel=1e-2)
    assert (row["n"], result["n"], result["seeds"], result["step"]) == (3, TEST, 3, 1)
    others = seen(run, "train", np.linspace(0, TRAIN - 1, TEST).astype(int))
    assert result["floor"] == pytest.approx(metrics.frechet(others, real), rel=1e-4)


def test_every_row_compares_as_many_images(plain, monkeypatch):
    sizes, measured = [], metrics.frechet
    monkeypatch.setattr(metrics, "frechet", lambda a, b: sizes.append((len(a), len(b))) or measured(a, b))
    result = frechet.measure(plain, 23, 2, ("prior", "mixture"))
    assert sizes == [(23, 23)] * 5  # two seeds of two samplers, and the floor
    assert result["samplers"].keys() == {"prior", "mixture"}


def test_distances_do_not_depend_on_how_many_images_are_made_at_a_time(run, monkeypatch):
    whole = frechet.measure(run, 40, 1)
    monkeypatch.setattr(frechet, "ROWS", 7)
    parts = frechet.measure(run, 40, 1)
    assert parts["samplers"]["prior"]["values"] == pytest.approx(whole["samplers"]["prior"]["values"], rel=1e-4)
    assert parts["floor"] == pytest.approx(whole["floor"], rel=1e-4)
    assert parts["agreement"] == whole["agreement"]


def test_samples_like_real_images_are_nearer_than_noise(run):
    real, far = (frechet.measure(drawing(run, logits), TEST, 2) for logits in (bars, noise))
    assert max(real["samplers"]["prior"]["values"]) < 0.2 * min(far["samplers"]["prior"]["values"])
    assert real["floor"] == far["floor"]
    assert real["classifier"] == far["classifier"]
    assert max(real["samplers"]["prior"]["values"]) < 3.0 * real["floor"]


@pytest.mark.parametrize(("turned", "share"), [(False, 1.0), (True, 0.0)])
def test_agreement_is_the_share_of_samples_that_have_the_label_asked_for(run, turned, share):
    result = frechet.measure(drawing(run, lambda latents, label: bars(latents, 1 - label if turned else label)), 41, 2)
    assert result["agreement"]["prior"]["values"] == pytest.approx([share, share], abs=0.05)
    assert result["agreement"]["prior"]["unit"] == "share of samples"


def test_a_run_that_is_told_no_label_has_no_agreement(plain):
    assert frechet.measure(plain, 10, 1)["agreement"] == {}


def test_more_images_than_there_are_to_test_are_refused(run):
    with pytest.raises(DataError, match=rf"--n={TEST + 1}: expected 2 <= value <= {TEST}"):
        frechet.measure(run, TEST + 1, 1)


def test_one_image_has_no_spread_and_is_refused(run):
    with pytest.raises(DataError, match="--n=1: expected 2 <= value"):
        frechet.measure(run, 1, 1)


def test_a_fitted_mixture_knows_no_label_and_is_refused_where_there_is_one(run):
    with pytest.raises(FamilyError, match=r"--sampler=mixture: .* the run is conditional"):
        frechet.measure(run, 10, 1, ("mixture",))


@pytest.mark.parametrize("told", [True, False])
def test_the_report_has_the_distances_once_they_are_measured(run, plain, monkeypatch, told):
    monkeypatch.setattr(report, "_pictures", lambda *_: [])
    chosen = run if told else plain
    (chosen.directory / "frechet.json").unlink(missing_ok=True)
    assert "Samples against real images" not in report.write(chosen).read_text()
    result = frechet.measure(chosen, 20, 2, ("prior",) if told else ("prior", "mixture"))
    page = report.write(chosen).read_text()
    assert "20 samples and test images, step 1; mean &plusmn; standard error over 2 seeds." in page
    assert f"As many training images: {result['floor']:.3g}." in page
    assert ("have the label asked for" in page) == told
    for name, value in result["samplers"].items():
        row = f'<tr><td>{name}</td>\n<td class="number">{value["mean"]:.4g} &plusmn; {value["sem"]:.2g}</td>\n'
        agreement = f'<td class="number">{100 * result["agreement"][name]["mean"]:.2f} %</td>' if told else ""
        assert row + agreement + "</tr>" in page


# --- where latents come from


def spread(run: Run) -> Params:
    """Weights whose posteriors are narrow and lie apart, around (2, -1)."""
    params = experiment.restore(run).params
    kernel = 5.0 * params["encoder"]["Dense_1"]["kernel"].at[:, 2:].set(0.0)
    last = {"kernel": kernel, "bias": jnp.array([2.0, -1.0, -1.0, -1.0])}
    return params | {"encoder": params["encoder"] | {"Dense_1": last}}


def test_the_prior_needs_no_sampler(plain):
    assert samplers.build(plain, {}, "prior") is None


def test_a_mixture_follows_the_posterior_of_the_training_images(plain):
    params = spread(plain)
    latents = samplers.posterior_draws(plain, params)
    sampler = samplers.build(plain, params, "mixture")
    drawn = np.asarray(sampler(of_examples(jax.random.key(5), jnp.arange(4000)), 1.0))
    got, expected = np.cov(drawn.T), np.cov(latents.T)
    np.testing.assert_allclose(drawn.mean(axis=0), latents.mean(axis=0), atol=4 * math.sqrt(expected.max() / 4000))
    np.testing.assert_allclose(np.diag(got), np.diag(expected), rtol=0.08)  # as spread as 4000 draws are
    np.testing.assert_allclose(got[0, 1], expected[0, 1], rtol=0.15)
    for dimension in range(2):
        assert stats.ks_2samp(drawn[:, dimension], latents[:, dimension]).pvalue > 1e-3
        assert stats.kstest(drawn[:, dimension], "norm").pvalue < 1e-6


def test_draws_of_the_posterior_are_one_an_image_whatever_the_batch(plain, monkeypatch):
    params = spread(plain)
    latents = samplers.posterior_draws(plain, params)
    images = jnp.asarray(experiment.rows(plain, "train", np.arange(TRAIN))["image"])
    keys = of_examples(stream(jax.random.key(0), "posterior of train"), jnp.arange(TRAIN))
    together = plain.model.infer(params, images, keys)
    np.testing.assert_allclose(latents, together.latents[0], rtol=1e-4, atol=1e-4)
    assert not np.any(np.isclose(latents, together.mean, rtol=1e-6))
    monkeypatch.setattr(samplers, "MOST", TRAIN // 2)
    np.testing.assert_array_equal(samplers.posterior_draws(plain, params), latents[::2])


def test_images_are_drawn_from_a_mixture_where_that_is_asked_for(plain, tmp_path):
    made = []
    for sampler in ("prior", "mixture"):
        gallery.sample(plain, tmp_path, False, 4, 0, 1.0, None, sampler)
        made.append(np.load(tmp_path / "samples.npz")["images"])
    params = experiment.restore(plain).params
    drawn = report.draw_samples(plain.model, params, 0, 4, 1.0, None, samplers.build(plain, params, "mixture"))
    np.testing.assert_allclose(made[1], drawn, atol=1e-6)
    assert not np.allclose(made[0], made[1], atol=1e-4)


def test_a_mixture_is_refused_where_there_are_fewer_images_than_components(plain):
    with pytest.raises(VaejaxError):
        samplers.build(plain, experiment.restore(plain).params, "mixture", TRAIN + 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_levels_and_codes_are_measured_by_their_prior_alone(tmp_path, family):
    run = begun(create(tmp_path, **FAMILIES[family]))
    with pytest.raises(FamilyError, match=rf"--sampler=mixture: .* model\.family='{family}'.* Choose --sampler=prior\."):
        frechet.measure(run, 10, 1, ("mixture",))
    assert math.isfinite(frechet.measure(run, 10, 1)["samplers"]["prior"]["mean"])
