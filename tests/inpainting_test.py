"""Missing pixels: chains against conditional distributions in closed form, or by importance sampling; what stays as it was."""

import argparse
import functools
import re
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from PIL import Image

from vaejax import cli, experiment, gallery, models, report, runs
from vaejax import distributions as dist
from vaejax.applications import inpainting
from vaejax.batches import Batch, batch_of
from vaejax.config import ModelConfig, from_dict
from vaejax.errors import DataError, FamilyError
from vaejax.keys import of_examples

pytestmark = pytest.mark.usefixtures("compiled_quickly")

# --- linear Gaussian models, of which all is known

SHAPE, LATENTS, NOISE = (3, 2, 1), 3, 0.3
WEIGHTS = np.random.default_rng(1).normal(size=(6, LATENTS))
SEEN = np.array([True, True, False, False, True, False]).reshape(SHAPE)
MODES = np.array([[-1.2, 0.6, 0.0], [1.0, -0.4, 0.5]])


class Plain(NamedTuple):
    """A Gaussian whose mean is any number."""

    location: jax.Array

    def pixel_log_prob(self, images: jax.Array) -> jax.Array:
        return -0.5 * ((images[jnp.newaxis] - self.location) / NOISE) ** 2

    def mean(self) -> jax.Array:
        return self.location

    def sample(self, keys: jax.Array) -> jax.Array:
        return self.location + NOISE * jax.vmap(jax.vmap(lambda key: jax.random.normal(key, SHAPE)))(keys)


def linear(modes: np.ndarray) -> models.Model:
    """Images W z + noise, with z from a mixture of N(m, I) over the modes, equally weighted."""
    prior = dist.GaussianMixture(jnp.zeros(len(modes)), jnp.float32(modes), jnp.zeros(modes.shape))

    def decode(params, latents, condition=None) -> Plain:
        return Plain((latents @ jnp.float32(WEIGHTS.T)).reshape(*latents.shape[:-1], *SHAPE))

    return models.Model(
        init=lambda key: {},
        infer=lambda *_: pytest.fail("the encoder was asked"),
        decode=decode,
        prior=lambda params, keys, temperature=1.0, condition=None: prior.sample(keys, temperature),
        log_prior=lambda params, latents, condition=None: prior.log_prob(latents),
        image_shape=SHAPE,
        levels=None,
        classes=None,
        vector=LATENTS,
    )


def conditional(image: np.ndarray, modes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the missing pixels given those seen, in closed form."""
    seen, missing = WEIGHTS[SEEN.ravel()], WEIGHTS[~SEEN.ravel()]
    values = np.float64(image[SEEN])
    covariance = seen @ seen.T + NOISE**2 * np.eye(len(seen))
    gain = missing @ seen.T @ np.linalg.inv(covariance)
    offs = values - modes @ seen.T
    log_weights = -0.5 * np.einsum("mi,ij,mj->m", offs, np.linalg.inv(covariance), offs)
    weights = np.exp(log_weights - np.logaddexp.reduce(log_weights))
    means = modes @ missing.T + offs @ gain.T
    mean = weights @ means
    inner = np.diag(missing @ missing.T + NOISE**2 * np.eye(len(missing)) - gain @ seen @ missing.T)
    return mean, np.sqrt(inner + weights @ (means - mean) ** 2)


def keys(n: int, seed: int = 0) -> jax.Array:
    return of_examples(jax.random.key(seed), jnp.arange(n))


def everywhere(missing: np.ndarray, n: int) -> jax.Array:
    return jnp.broadcast_to(jnp.asarray(missing), (n, *missing.shape))


CHAINS = 600


@pytest.mark.parametrize("modes", [np.zeros((1, LATENTS)), MODES], ids=["one mode", "two modes"])
def test_mean_spread_and_draws_are_those_of_the_conditional_distribution(modes):
    """A draw a chain, all independent: their mean and standard deviation within four times their errors."""
    images = np.float32(np.random.default_rng(2).normal(size=(3, *SHAPE)))
    found = inpainting.inpaint(linear(modes), {}, jnp.asarray(images), everywhere(~SEEN, 3), keys(3), None, CHAINS, 60, 40)
    for number, image in enumerate(images):
        mean, sd = conditional(image, modes)
        # 24,000 states, of which at least one in ten counts as independent: 2 % of a standard deviation, four times its error
        np.testing.assert_allclose(found.mean[number][~SEEN], mean, atol=0.08 * sd.max())
        np.testing.assert_allclose(found.sd[number][~SEEN], sd, rtol=0.06)
        drawn = np.float64(found.draws[:, number][:, ~SEEN])
        assert (np.abs(drawn.mean(axis=0) - mean) < 4 * sd / np.sqrt(CHAINS)).all()
        np.testing.assert_allclose(drawn.std(axis=0), sd, rtol=4 / np.sqrt(2 * CHAINS))
    assert (found.scale_reduction < 1.1).all()
    assert (np.abs(found.acceptance - inpainting.ACCEPTANCE) < 0.15).all()


def test_chains_that_disagree_are_told():
    """Nothing is seen, and no chain ever leaves the mode that it began in."""
    nothing = everywhere(np.ones(SHAPE, bool), 1)
    apart = inpainting.inpaint(linear(30.0 * MODES), {}, jnp.zeros((1, *SHAPE)), nothing, keys(1))
    assert (apart.scale_reduction > 2.0).all()


# --- every family

SMALL = {
    "network": "mlp", "latent_size": 2, "hidden": (6,), "features": (4, 4), "blocks": 1, "likelihood": "bernoulli",
    "activation": "tanh", "prior_components": 3, "flow_steps": 2, "flow_width": 4, "codes": 5,
}  # fmt: skip
FAMILIES = {
    "standard": {},
    "grey": {"likelihood": "discretized_logistic", "scale": "pixel", "levels": 16},
    "colours": {"likelihood": "logistic_mixture", "components": 2, "levels": 16},
    "density": {"likelihood": "gaussian"},
    "mixture": {"prior": "mixture"},
    "vamp": {"prior": "vamp"},
    "iaf": {"posterior": "iaf"},
    "conditional": {"conditional": True, "prior": "mixture"},
    "hierarchical": {"family": "hierarchical", "network": "resnet", "conditional": True},
}
HIDDEN = np.arange(4)[:, np.newaxis, np.newaxis] >= np.full((4, 3, 1), 1)
"""All rows but the first."""


@functools.cache
def built(family: str) -> tuple[models.Model, models.Params, jax.Array, jax.Array | None]:
    """A model of random parameters, two images for it, and what it is told of them."""
    settings = ModelConfig(**SMALL | FAMILIES[family])
    channels = 3 if family == "colours" else 1
    model = models.build(settings, (4, 3, channels), 2 if settings.conditional else None)
    random, shapes = np.random.default_rng(4), jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: jnp.asarray(0.5 * random.normal(size=leaf.shape), jnp.float32), shapes)
    images = random.uniform(0.4, 0.6, (2, 4, 3, channels))  # of a density, where it is high
    if model.levels:
        images = random.integers(0, model.levels, images.shape) / (model.levels - 1)
    return model, params, jnp.asarray(images, jnp.float32), jnp.array([1, 0]) if settings.conditional else None


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_what_importance_sampling_from_its_prior_gives(family):
    model, params, images, condition = built(family)
    n = 20_000
    told = None if condition is None else jnp.repeat(condition[:1], n)
    latents = jax.jit(lambda keys: model.prior(params, keys, 1.0, told))(keys(n, seed=1))
    likelihood = jax.jit(lambda latents: model.decode(params, latents, told))(latents)
    log_weights = np.where(HIDDEN, 0.0, likelihood.pixel_log_prob(jnp.repeat(images[:1], n, axis=0))).sum(axis=(1, 2, 3))
    weights = np.exp(np.float64(log_weights) - log_weights.max())
    weights /= weights.sum()
    mean = np.tensordot(weights, np.float64(likelihood.mean()), 1)
    drawn = np.float64(likelihood.sample(keys(n, seed=2)))
    sd = np.sqrt(np.tensordot(weights, (drawn - mean) ** 2, 1))
    effective = 1.0 / (weights**2).sum()
    assert effective > 200
    found = inpainting.inpaint(model, params, images, everywhere(HIDDEN, 2), keys(2), condition, 32, 50, 60)
    missing = np.broadcast_to(HIDDEN, mean.shape)
    tolerance = 4.0 * sd[missing].max() * np.sqrt(1.0 / effective + 1.0 / 400)
    np.testing.assert_allclose(found.mean[0][missing], mean[missing], atol=tolerance)
    np.testing.assert_allclose(found.sd[0][missing], sd[missing], atol=tolerance)
    grid = (model.levels or 1) - 1
    assert ((found.draws >= 0) & (found.draws <= 1)).all()
    if grid:
        np.testing.assert_allclose(found.draws * grid, np.round(found.draws * grid), atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_seen_comes_back_bit_by_bit_and_what_is_missing_is_never_looked_at(family):
    model, params, images, condition = built(family)
    few = functools.partial(inpainting.inpaint, chains=32, burn_in=2, kept=2)
    found = few(model, params, images, everywhere(HIDDEN, 2), keys(2), condition)
    seen = np.broadcast_to(~HIDDEN, images.shape[1:])
    for part in (*found.draws[:3], found.mean):
        np.testing.assert_array_equal(part[:, seen], np.asarray(images)[:, seen])
    assert not found.sd[:, seen].any()
    assert (found.sd[:, ~seen] > 0).any()
    for other in (0.0, 1.0, np.nan):
        changed = few(model, params, jnp.where(HIDDEN[np.newaxis], other, images), everywhere(HIDDEN, 2), keys(2), condition)
        for a, b in zip(found, changed, strict=True):
            np.testing.assert_array_equal(a, b)


def test_an_image_is_the_same_in_any_batch():
    """As long as chains are too short for rounding to part them."""
    model, params, images, _ = built("standard")
    few = functools.partial(inpainting.inpaint, chains=32, burn_in=3, kept=2)
    both = few(model, params, images, everywhere(HIDDEN, 2), keys(2))
    second = few(model, params, images[1:], everywhere(HIDDEN, 1), keys(2)[1:])
    for name in ("draws", "mean", "sd", "acceptance"):
        a, b = getattr(both, name), getattr(second, name)
        np.testing.assert_allclose(a[:, 1:] if name == "draws" else a[1:], b, atol=1e-4)
    assert not np.array_equal(few(model, params, images, everywhere(HIDDEN, 2), keys(2, seed=9)).draws, both.draws)


def test_where_all_is_missing_draws_are_those_of_the_prior():
    model, params, images, _ = built("standard")
    found = inpainting.inpaint(model, params, images, everywhere(np.ones_like(HIDDEN), 2), keys(2), None, 32, 30, 60)
    expected = model.decode(params, model.prior(params, keys(4000, seed=3))).mean().mean(axis=0)
    np.testing.assert_allclose(found.mean, np.broadcast_to(expected, found.mean.shape), atol=0.04)


def test_codes_are_refused():
    model = models.build(ModelConfig(**SMALL | {"family": "vq", "network": "cnn"}), (4, 3, 1), None)
    with pytest.raises(FamilyError, match="codes"):
        inpainting.inpaint(model, {}, jnp.zeros((1, 4, 3, 1)), everywhere(HIDDEN, 1), keys(1))


@pytest.mark.parametrize("counts", [{"chains": 1}, {"kept": 1}])
def test_too_few_to_see_how_they_differ_are_refused(counts):
    model, params, images, _ = built("standard")
    with pytest.raises(ValueError, match="at least 2"):
        inpainting.inpaint(model, params, images, everywhere(HIDDEN, 2), keys(2), **counts)


# --- masks


def test_regions_lie_where_their_names_say():
    half, square = inpainting.region("lower-half", (5, 4, 1)), inpainting.region("square:2", (6, 4, 3))
    np.testing.assert_array_equal(half, np.arange(5)[:, np.newaxis] >= np.full((5, 4), 2))
    expected = np.zeros((6, 4), bool)
    expected[2:4, 1:3] = True
    np.testing.assert_array_equal(square, expected)
    assert inpainting.region("square:5", (6, 4, 1)).sum() == 5 * 4


@pytest.mark.parametrize("name", ["upper", "square", "square:", "square:0", "square:-2", "square:6", "square:2.5", "Square:2"])
def test_a_region_that_is_none_is_refused(name):
    with pytest.raises(DataError, match=r"--mask=.*: expected lower-half, a file, or square:SIDE with a side of 1 to 5"):
        inpainting.region(name, (6, 4, 1))


def picture(path: Path, pixels: np.ndarray) -> str:
    Image.fromarray(np.uint8(255 * pixels)).save(path)
    return str(path)


def test_a_region_is_meant_where_a_folder_has_its_name_and_a_file_where_it_has_no_suffix(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lower-half").mkdir()
    np.testing.assert_array_equal(gallery._missing("lower-half", (4, 3, 1)), inpainting.region("lower-half", (4, 3, 1)))
    missing = np.eye(4, 3, dtype=bool)
    Path(picture(tmp_path / "mask.png", missing)).rename(tmp_path / "mask")
    np.testing.assert_array_equal(gallery._missing("mask", (4, 3, 1)), missing)


def test_a_mask_from_a_file_is_missing_where_it_is_white(tmp_path):
    missing = np.random.default_rng(5).random((4, 3)) < 0.5
    np.testing.assert_array_equal(gallery._missing(picture(tmp_path / "mask.png", missing), (4, 3, 1)), missing)
    colours = picture(tmp_path / "rgb.png", np.repeat(missing[..., np.newaxis], 3, axis=-1))
    np.testing.assert_array_equal(gallery._missing(colours, (4, 3, 3)), missing)


@pytest.mark.parametrize(
    ("pixels", "told"),
    [
        (np.eye(4), r"expected 4 x 3 pixels, .* found 4 x 4, 4 missing\. Draw it"),
        (np.zeros((4, 3)), "found 4 x 3, 0 missing"),
        (np.ones((4, 3)), "found 4 x 3, 12 missing"),
        (None, r"No such file or directory\. Expected a PNG"),
    ],
)
def test_a_mask_that_does_not_fit_is_named(tmp_path, pixels, told):
    path = tmp_path / "mask.png"
    if pixels is not None:
        picture(path, pixels)
    with pytest.raises(DataError, match=f"--mask={path}: .*{told}"):
        gallery._missing(str(path), (4, 3, 1))


# --- of a run


def opened(monkeypatch, tmp_path, family: str, **sections) -> list[str]:
    """The first words of a command on a run of small images that was never trained, and so is never read."""
    model, params, _, _ = built(family)
    random = np.random.default_rng(6)
    images = random.integers(0, 16, (14, *model.image_shape)) / 15
    binarization = "static" if model.levels == 2 else "none"
    config = from_dict({"model": SMALL | FAMILIES[family], "data": {"binarization": binarization}} | sections)
    data = argparse.Namespace(splits={"test": argparse.Namespace(n=len(images))})
    run = argparse.Namespace(directory=epath.Path(tmp_path), config=config, data=data, model=model)

    def rows(run, split: str, index: np.ndarray) -> Batch:
        return batch_of(images[index], index, index % 2 if model.classes else None)

    monkeypatch.setattr(runs, "load", lambda directory: run)
    monkeypatch.setattr(experiment, "restore", lambda run, best: experiment.Trained(7, params))
    monkeypatch.setattr(experiment, "rows", rows)
    monkeypatch.setattr(inpainting, "inpaint", functools.partial(inpainting.inpaint, burn_in=2, kept=2))
    return ["inpaint", str(tmp_path)]


@pytest.mark.parametrize("family", ["grey", "conditional"])
def test_the_files_hold_what_is_shown(monkeypatch, tmp_path, capsys, family):
    command = opened(monkeypatch, tmp_path, family)
    assert cli.main([*command, "--n=12", "--draws=3", "--mask=square:2", "--seed=5"]) == 0
    output = capsys.readouterr().out
    assert f"written: {tmp_path}/gallery/inpainted.png, inpainted.npz\n" in output
    assert re.search(r"chains: \d+ % of the transitions accepted; potential scale reduction [\d.]+ in the median image", output)
    with np.load(tmp_path / "gallery" / "inpainted.npz") as file:
        found = dict(file)
    missing = inpainting.region("square:2", (4, 3, 1))
    np.testing.assert_array_equal(found["missing"], missing)
    assert found["draws"].shape == (3, 12, 4, 3, 1)
    assert len(set(found["index"])) == 12
    np.testing.assert_array_equal(found["mean"][:, ~missing], found["images"][:, ~missing])
    assert found["sd"][:, missing].all()
    assert found["acceptance"].shape == found["scale_reduction"].shape == (12,)
    with Image.open(tmp_path / "gallery" / "inpainted.png") as shown:
        pixels = np.asarray(shown)
    side = report.PICTURE_SIDE // 4
    assert pixels.shape == (12 * (4 * side + 2) + 2, 7 * (3 * side + 2) + 2)
    middle, column = 2 + side + side // 2, 3 * side + 2
    assert pixels[middle, 2 + column + side + side // 2] in (127, 128)  # what is not seen
    assert pixels[middle, 2 + 6 * column + side + side // 2] == np.round(255 * min(2 * found["sd"][0, 1, 1, 0], 1.0))


def test_the_same_images_come_whatever_their_number(monkeypatch, tmp_path):
    """In one part or two, of which the second is filled up."""
    command = opened(monkeypatch, tmp_path, "grey")
    files = []
    for n in (12, 14):
        assert cli.main([*command, f"--n={n}", "--draws=3", f"--output={tmp_path / str(n)}"]) == 0
        with np.load(tmp_path / str(n) / "inpainted.npz") as file:
            files.append(dict(file))
    few, many = files
    places = [list(many["index"]).index(i) for i in few["index"]]
    np.testing.assert_allclose(few["draws"], many["draws"][:, places], atol=1e-5)
    np.testing.assert_allclose(few["sd"], many["sd"][places], atol=1e-5)


def test_a_likelihood_that_is_not_fitted_is_refused(monkeypatch, tmp_path, capsys):
    command = opened(monkeypatch, tmp_path, "density", objective={"name": "vae_gan"})
    assert cli.main(command) == 1
    assert "vaejax: inpaint: trained against a discriminator" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("argument", ["--draws=1", "--draws=x", "--n=0"])
def test_counts_that_are_none_are_refused(capsys, argument):
    with pytest.raises(SystemExit) as ended:
        cli.main(["inpaint", "run", argument])
    assert ended.value.code == 2
    assert "expected" in capsys.readouterr().err
