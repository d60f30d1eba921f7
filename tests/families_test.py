"""Every family behind the one contract: hierarchies, codes, learned priors, flows; probabilities that add up to one."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from vaejax import distributions as dist
from vaejax import models, networks
from vaejax.config import ModelConfig
from vaejax.keys import of_examples
from vaejax.models import vq

pytestmark = pytest.mark.usefixtures("compiled_quickly")

SHAPE = (6, 5, 1)
SIZES = {
    "latent_size": 2, "hidden": (6,), "features": (4, 4), "blocks": 1, "width": 4, "depth": 1, "heads": 2,
    "prior_components": 3, "flow_steps": 2, "flow_width": 4, "codes": 5, "likelihood": "bernoulli", "activation": "tanh",
}  # fmt: skip
FAMILIES = {
    "mixture": {"network": "mlp", "prior": "mixture"},
    "vamp": {"network": "cnn", "prior": "vamp"},
    "iaf": {"network": "mlp", "posterior": "iaf"},
    "iaf-mixture": {"network": "mlp", "posterior": "iaf", "prior": "mixture"},
    "hierarchical": {"network": "resnet", "family": "hierarchical"},
    "vq": {"family": "vq"},
    "vq-transformer": {"family": "vq", "code_prior": "transformer"},
}
DENSITIES = [name for name in FAMILIES if not name.startswith("vq")]
each_family = pytest.mark.parametrize("family", FAMILIES)
each_density = pytest.mark.parametrize("family", DENSITIES)


def config(family: str, **fields) -> ModelConfig:
    return ModelConfig(**SIZES | FAMILIES[family] | fields)


@functools.cache
def built(family: str, shape: tuple[int, int, int] = SHAPE, classes: int | None = None) -> tuple[models.Model, models.Params]:
    """A model with parameters of which none is zero, so that posteriors and priors differ from image to image and level."""
    model = models.build(config(family, conditional=classes is not None), shape, classes)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    random = np.random.default_rng(1)
    return model, jax.tree.map(lambda leaf: jnp.asarray(0.6 * random.normal(size=leaf.shape), jnp.float32), shapes)


def calm(family: str, shape: tuple[int, int, int]) -> tuple[models.Model, models.Params]:
    """The same with smaller parameters, whose posterior is wide enough for importance sampling."""
    model, params = built(family, shape)
    prior = jax.tree.map(lambda leaf: 0.15 * leaf, params.get("prior", {}))
    params = jax.tree.map(lambda leaf: 0.4 * leaf, params) | ({"prior": prior} if prior else {})
    if family.startswith("iaf"):  # a new flow contracts
        last = params["encoder"]["Dense_1"]
        last["bias"] = last["bias"].at[2:4].add(0.7)
    return model, params


def images(batch: int = 4, shape: tuple[int, ...] = SHAPE) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).integers(0, 2, (batch, *shape)), jnp.float32)


def keys(index: list[int] | range, seed: int = 1) -> jax.Array:
    return of_examples(jax.random.key(seed), jnp.array(index))


def infer(model: models.Model, params: models.Params, x: jax.Array, keys: jax.Array, samples: int | jax.Array = 1, told=None):
    """`model.infer`, compiled; a number of samples is static."""
    return jax.jit(model.infer, static_argnums=3 if isinstance(samples, int) else ())(params, x, keys, samples, told)


def assert_near(got, expected, **tolerance) -> None:
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, **{"rtol": 1e-4, "atol": 1e-5} | tolerance)


@each_family
def test_everything_has_its_documented_shape(family):
    model, params = built(family)
    inference = infer(model, params, images(), keys(range(4)), 3)
    events = {"hierarchical": [(2, 2, 2), (3, 3, 2)], "vq": [(2, 2)], "vq-transformer": [(2, 2)]}.get(family, [(2,)])
    assert [leaf.shape for leaf in jax.tree.leaves(inference.latents)] == [(3, 4, *event) for event in events]
    assert [leaf.shape for leaf in jax.tree.leaves(inference.mean)] == [(4, *event) for event in events]
    assert [leaf.shape for leaf in jax.tree.leaves(model.prior(params, keys(range(6))))] == [(6, *event) for event in events]
    assert inference.log_ratio.shape == (3, 4)
    assert [kl.shape for kl in inference.kl] == [(4,)] * len(events)
    assert inference.likelihood.mean().shape == (3, 4, *SHAPE)
    assert models.flat(inference.mean).shape == (4, sum(map(np.prod, events)))
    assert (model.vector, model.random) == ({"hierarchical": None}.get(family, 2), True) or not model.random


@each_family
def test_decoding_the_latents_gives_the_likelihood_of_infer(family):
    model, params = built(family)
    inference = infer(model, params, images(), keys(range(4)), 2)
    assert_near(model.decode(params, inference.latents), inference.likelihood)
    one = model.decode(params, jax.tree.map(lambda leaf: leaf[1, 2:3], inference.latents))
    assert_near(one.mean()[0], inference.likelihood.mean()[1, 2])


@each_family
def test_what_is_inferred_depends_on_neither_batch_nor_place_and_samples_go_by_number(family):
    model, params = built(family)
    together = infer(model, params, images(), keys([7, 3, 12, 5]), 4)
    place, numbers = np.array([2, 0, 0, 1]), jnp.array([3, 0])
    other = infer(model, params, images()[place], keys([12, 7, 7, 3]), numbers)
    for a, b in (
        (other.latents, jax.tree.map(lambda leaf: leaf[np.array([3, 0])][:, place], together.latents)),
        (other.log_ratio, together.log_ratio[np.array([3, 0])][:, place]),
        (other.mean, jax.tree.map(lambda leaf: leaf[place], together.mean)),
    ):
        assert_near(a, b)


@each_family
def test_every_parameter_learns(family):
    model, params = built(family)

    def loss(params: models.Params) -> jax.Array:
        inference = model.infer(params, images(), keys(range(4)), 2)
        bound = dist.log_prob(inference.likelihood, images()) - inference.log_ratio
        return bound.sum() + sum(kl.sum() for kl in inference.kl)

    for path, gradient in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(params)):
        assert np.isfinite(gradient).all()
        assert np.any(gradient) or path[0].key == models.CODEBOOK, jax.tree_util.keystr(path)


@each_density
def test_the_probabilities_of_all_images_add_up_to_one(family):
    """Importance sampling is unbiased whatever the posterior, if ratio and likelihood belong to the same draw."""
    shape = (2, 2, 1)
    model, params = calm(family, shape)
    bits = np.arange(16)[:, None] >> np.arange(4) & 1
    x = jnp.asarray(bits.reshape(16, *shape), jnp.float32)
    inference = infer(model, params, x, keys(range(16)), 4000)
    weights = np.exp(np.float64(dist.log_prob(inference.likelihood, x) - inference.log_ratio))
    error = np.sqrt(weights.var(axis=0).sum() / 4000)
    assert error < 0.05
    assert weights.mean(axis=0).sum() == pytest.approx(1.0, abs=4 * error)


@each_density
def test_importance_sampling_agrees_with_draws_from_the_prior(family):
    """Ties `prior` to the density that `log_ratio` is about."""
    shape = (2, 2, 1)
    model, params = calm(family, shape)
    x = jnp.asarray([[0, 1, 1, 0], [1, 1, 1, 1]], jnp.float32).reshape(2, *shape)
    inference = infer(model, params, x, keys(range(2)), 4000)
    log_weights = np.float64(dist.log_prob(inference.likelihood, x) - inference.log_ratio)
    drawn = jax.jit(model.prior)(params, keys(range(20_000), seed=2))
    decoded = model.decode(params, jax.tree.map(lambda z: z[:, np.newaxis], drawn))
    for i in range(2):
        given = np.float64(dist.log_prob(decoded, x[i : i + 1]))[:, 0]
        estimates = [np.exp(log_weights[:, i]), np.exp(given)]
        error = np.sqrt(sum(values.var() / len(values) for values in estimates))
        assert abs(estimates[0].mean() - estimates[1].mean()) < 4 * error


def test_the_rate_of_a_hierarchy_is_the_mean_of_its_log_ratio():
    model, params = built("hierarchical")
    inference = infer(model, params, images(), keys(range(4)), 4000)
    error = np.std(inference.log_ratio, axis=0) / np.sqrt(4000)
    rate = sum(np.asarray(kl) for kl in inference.kl)
    assert (np.abs(inference.log_ratio.mean(axis=0) - rate) < 4 * error).all()
    assert min(kl.min() for kl in inference.kl) > 20 * error.max() / 20


def test_a_level_of_a_hierarchy_depends_on_the_draw_above():
    model, params = built("hierarchical")
    top, below = infer(model, params, images()[:1], keys([0]), 500).latents
    top, below = top.reshape(500, -1), below.reshape(500, -1)
    strongest = np.abs(np.corrcoef(top.T, below.T)[: top.shape[1], top.shape[1] :]).max()
    assert strongest > 4 / np.sqrt(500)


def test_temperature_scales_the_latents_of_every_level():
    model, params = built("hierarchical")
    warm, cold = (model.prior(params, keys(range(3)), temperature) for temperature in (1.0, 0.25))
    assert_near(cold, jax.tree.map(lambda z: 0.25 * z, warm))


def test_a_hierarchy_refuses_to_stop_the_gradient_of_its_posterior():
    model, params = built("hierarchical")
    with pytest.raises(ValueError, match="stop_posterior_gradient=True"):
        model.infer(params, images(), keys(range(4)), stop_posterior_gradient=True)


# --- learned priors


def mixture(params: models.Params) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, means and standard deviations, float64, from the parameters as they are stored."""
    own = jax.tree.map(lambda leaf: 3.0 * np.float64(leaf), params["prior"])
    return special.softmax(own["logits"]), own["mean"], np.exp(3.0 * np.tanh(own["log_scale"] / 3.0))


def test_the_ratio_of_a_mixture_prior_is_that_of_scipy():
    model, params = built("mixture")
    inference = infer(model, params, images(), keys(range(4)), 3)
    weights, means, scales = mixture(params)
    z = np.float64(inference.latents)
    log_prior = np.log((weights * stats.norm.pdf(z[..., None, :], means, scales).prod(axis=-1)).sum(axis=-1))
    network = networks.encoder(config("mixture"), 4)
    mean, raw = np.split(np.float64(networks.apply(network, params["encoder"], images())), 2, axis=-1)
    log_q = stats.norm.logpdf(z, mean, np.exp(7.0 * np.tanh(raw / 7.0))).sum(axis=-1)
    np.testing.assert_allclose(inference.log_ratio, log_q - log_prior, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(inference.kl[0], inference.log_ratio.mean(axis=0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
def test_draws_of_a_mixture_prior_have_its_moments(temperature):
    model, params = built("mixture")
    weights, means, scales = mixture(params)
    z = np.asarray(jax.jit(model.prior)(params, keys(range(20_000)), temperature), np.float64)
    expected = weights @ means
    variance = weights @ (means**2 + (temperature * scales) ** 2) - expected**2
    np.testing.assert_allclose(z.mean(axis=0), expected, atol=4 * np.sqrt(variance.max() / 20_000))
    np.testing.assert_allclose(z.var(axis=0), variance, rtol=0.06)


@pytest.mark.parametrize("spread", [1.0, 5.0, 30.0])
def test_a_mixture_keeps_its_digits_where_scales_are_smallest_and_means_far(spread):
    random = np.random.default_rng(0)
    mean, log_scale = spread * random.normal(size=(50, 40)), random.uniform(-3.0, 0.0, (50, 40))
    z = mean[7] + np.exp(log_scale[7]) * random.normal(size=(9, 40))
    found = dist.GaussianMixture(*(jnp.asarray(a, jnp.float32) for a in (np.zeros(50), mean, log_scale))).log_prob(
        jnp.float32(z)
    )
    of_components = stats.norm.logpdf(z[:, None], mean, np.exp(log_scale)).sum(axis=-1)
    # What is left is the rounding of z itself, in units of the scale.
    np.testing.assert_allclose(found, special.logsumexp(of_components, axis=-1) - np.log(50), atol=2e-3 * spread)


def test_the_components_of_a_vamp_prior_are_posteriors_of_its_images():
    model, params = built("vamp")
    pseudo = jax.nn.sigmoid(params["prior"]["images"]).reshape(3, *SHAPE)
    q = infer(model, params, pseudo, keys(range(3)))
    z = np.asarray(jax.jit(model.prior)(params, keys(range(300)), 0.0))
    nearest = np.abs(z[:, None] - np.asarray(q.mean)).max(axis=-1)
    assert nearest.min(axis=1).max() < 1e-5
    assert stats.chisquare(np.bincount(nearest.argmin(axis=1), minlength=3)).pvalue > 0.001


def test_the_ratio_of_a_flow_is_that_of_the_change_of_variables():
    model, params = built("iaf")
    inference = infer(model, params, images()[:1], keys([0]), 3)
    network = networks.encoder(config("iaf"), 4 + SIZES["flow_width"])
    mean, raw, context = jnp.split(networks.apply(network, params["encoder"], images()[:1]), [2, 4], axis=-1)
    scale = jnp.exp(dist.soft_bound(raw, *dist.LATENT_LOG_SCALE))

    def flowed(base: jax.Array) -> jax.Array:
        return networks.apply(networks.Flow(config("iaf")), params["encoder"]["flow"], base[None], context)[0][0]

    gaussian = infer(*built_without_flow(params), images()[:1], keys([0]), 3).latents[:, 0]
    for draw, z, ratio in zip(gaussian, inference.latents[:, 0], inference.log_ratio[:, 0], strict=True):
        np.testing.assert_allclose(flowed(draw), z, rtol=1e-4, atol=1e-5)
        log_base = stats.norm.logpdf(draw, mean[0], scale[0]).sum()
        log_q = log_base - np.linalg.slogdet(np.float64(jax.jacfwd(flowed)(draw)))[1]
        assert float(ratio) == pytest.approx(log_q - stats.norm.logpdf(z).sum(), rel=1e-3, abs=1e-3)


def built_without_flow(params: models.Params) -> tuple[models.Model, models.Params]:
    """The same encoder, its draws before the flow."""
    model = models.build(config("iaf", posterior="gaussian"), SHAPE)
    encoder = {name: dict(part) for name, part in params["encoder"].items() if name != "flow"}
    last = max(encoder)
    encoder[last] = {name: leaf[..., :4] for name, leaf in encoder[last].items()}
    return model, params | {"encoder": encoder}


# --- codes


def test_codes_are_the_nearest_vectors_of_the_codebook():
    model, params = built("vq")
    inference = infer(model, params, images(), keys(range(4)))
    vectors, codebook = np.float64(inference.vectors), np.float64(params["codebook"])
    distance = ((vectors[..., None, :] - codebook) ** 2).sum(axis=-1)
    np.testing.assert_array_equal(inference.mean, distance.argmin(axis=-1))
    np.testing.assert_array_equal(vq.nearest(jnp.float32(codebook), params["codebook"]), np.arange(5))
    assert len(np.unique(inference.mean)) > 1


def test_codes_all_alike_cost_their_logarithm():
    model, params = built("vq")
    inference = infer(model, params, images(), keys(range(4)))
    np.testing.assert_allclose(inference.kl[0], 4 * np.log(5), rtol=1e-6)
    counts = np.bincount(np.ravel(model.prior(params, keys(range(500)))), minlength=5)
    assert stats.chisquare(counts).pvalue > 0.001


def test_the_gradient_goes_straight_through_the_rounding():
    model, params = built("vq")
    inference = infer(model, params, images(), keys(range(4)))

    def by_vectors(vectors: jax.Array) -> jax.Array:
        network = networks.GridDecoder(config("vq"), SHAPE)
        return dist.log_prob(dist.Bernoulli(networks.apply(network, params["decoder"], vectors)), images()).sum()

    def by_encoder(encoder: models.Params) -> jax.Array:
        return dist.log_prob(model.infer(params | {"encoder": encoder}, images(), keys(range(4))).likelihood, images()).sum()

    at_codes = jax.grad(by_vectors)(params["codebook"][inference.mean])
    network = networks.GridEncoder(config("vq"), 2)
    _, pull = jax.vjp(lambda encoder: networks.apply(network, encoder, images()), params["encoder"])
    assert_near(jax.grad(by_encoder)(params["encoder"]), pull(at_codes)[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("classes", [None, 2])
def test_a_learned_prior_over_codes_adds_up_to_one_and_is_what_draws_follow(classes):
    shape = (2, 4, 1)
    model = models.build(config("vq-transformer", features=(4,), codes=3, conditional=classes is not None), shape, classes)
    params = jax.tree.map(lambda leaf: leaf + 0.3, jax.jit(model.init)(jax.random.key(3)))
    grids = jnp.asarray(list(itertools.product(range(3), repeat=2)), jnp.int32)
    told = None if classes is None else jnp.ones(len(grids), jnp.int32)
    log_chances = jax.nn.log_softmax(
        networks.apply(
            networks.CodeReader(config("vq-transformer", codes=3)),
            params["prior"],
            grids,
            jnp.ones((9, 1)) if told is None else jax.nn.one_hot(told, 2),
        )
    )
    chances = np.exp(np.take_along_axis(np.float64(log_chances), np.asarray(grids)[..., None], axis=-1).sum(axis=(1, 2)))
    assert chances.sum() == pytest.approx(1.0, rel=1e-5)
    many = None if classes is None else jnp.ones(3000, jnp.int32)
    drawn = np.asarray(jax.jit(model.prior)(params, keys(range(3000)), 1.0, many)).reshape(3000, 2)
    counts = np.bincount(drawn @ np.array([3, 1]), minlength=9)
    assert stats.chisquare(counts, 3000 * chances / chances.sum()).pvalue > 0.001
    coldest = np.unique(np.asarray(model.prior(params, keys(range(50)), 0.0, None if many is None else many[:50])), axis=0)
    assert len(coldest) == 1


def test_the_rate_of_codes_is_that_of_the_learned_prior():
    model, params = built("vq-transformer")
    inference = infer(model, params, images(), keys(range(4)))
    codes = inference.mean.reshape(4, -1)
    logits = networks.apply(networks.CodeReader(config("vq-transformer")), params["prior"], codes, jnp.ones((4, 1)))
    expected = -np.take_along_axis(special.log_softmax(np.float64(logits), axis=-1), np.asarray(codes)[..., None], -1)
    np.testing.assert_allclose(inference.kl[0], expected.sum(axis=(1, 2)), rtol=1e-4)
    np.testing.assert_allclose(inference.log_ratio[0], inference.kl[0], rtol=1e-6)


# --- conditional


@pytest.mark.parametrize("family", ["mixture", "hierarchical"])
def test_posterior_and_likelihood_of_a_conditional_model_depend_on_the_label(family):
    model, params = built(family, SHAPE, 3)
    same, told = jnp.stack([images()[0]] * 3), jnp.array([0, 1, 1])
    inference = infer(model, params, same, keys([0, 0, 0]), 2, told)
    mean = models.flat(inference.mean)
    assert not np.allclose(mean[0], mean[1], rtol=1e-3)
    assert_near(mean[1], mean[2])
    made = model.decode(params, model.prior(params, keys([5, 5, 5]), condition=told), told).mean()
    assert not np.allclose(made[0], made[1], rtol=1e-3)
    assert_near(made[1], made[2])
    assert_near(model.decode(params, inference.latents, told), inference.likelihood)


def test_the_label_is_told_to_the_prior_over_codes():
    model, params = built("vq-transformer", SHAPE, 3)
    same = jnp.stack([images()[0]] * 3)
    inference = infer(model, params, same, keys([0, 0, 0]), 1, jnp.array([0, 1, 1]))
    assert not np.allclose(inference.kl[0][0], inference.kl[0][1], rtol=1e-3)
    assert_near(inference.mean[0], inference.mean[1])


@pytest.mark.parametrize("family", ["hierarchical", "vq-transformer"])
def test_a_condition_must_be_told_where_it_is_wanted_and_nowhere_else(family):
    model, params = built(family)
    with pytest.raises(ValueError, match="unconditional"):
        model.prior(params, keys(range(2)), condition=jnp.zeros(2, jnp.int32))
    model, params = built(family, SHAPE, 3)
    with pytest.raises(ValueError, match="expected labels, 0 to 2"):
        model.infer(params, images(), keys(range(4)))


def test_a_conditional_mixture_has_weights_of_its_own_for_every_label():
    model, params = built("mixture", SHAPE, 3)
    weights, means, scales = mixture(params)
    weights = special.softmax(3.0 * np.float64(params["prior"]["logits"]), axis=-1)
    told = jnp.array([2, 0, 1, 1])
    inference = infer(model, params, images(), keys(range(4)), 2, told)
    z = np.float64(inference.latents)
    density = (weights[np.asarray(told)] * stats.norm.pdf(z[..., None, :], means, scales).prod(axis=-1)).sum(axis=-1)
    same = infer(model, params, images(), keys(range(4)), 2, jnp.eye(3)[told])
    assert_near(same.log_ratio, inference.log_ratio)
    other = params | {"prior": params["prior"] | {"logits": jnp.zeros((3, 3))}}
    uniform = stats.norm.pdf(z[..., None, :], means, scales).prod(axis=-1).mean(axis=-1)
    change = infer(model, other, images(), keys(range(4)), 2, told).log_ratio - inference.log_ratio
    np.testing.assert_allclose(change, np.log(density) - np.log(uniform), rtol=1e-3, atol=1e-3)
    drawn = np.asarray(jax.jit(model.prior)(params, keys(range(3000)), 0.0, jnp.full(3000, 2)))
    counts = np.bincount(np.abs(drawn[:, None] - means).sum(axis=-1).argmin(axis=1), minlength=3)
    assert stats.chisquare(counts, 3000 * weights[2]).pvalue > 0.001
