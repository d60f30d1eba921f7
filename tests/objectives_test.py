"""The objective: its formula, its schedules, its gradient against differences, and rows that do not count."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vaejax import batches, models, networks, objectives, optimizers
from vaejax import distributions as dist
from vaejax.config import ModelConfig, ObjectiveConfig, OptimizerConfig
from vaejax.keys import of_examples

pytestmark = pytest.mark.usefixtures("compiled_quickly")

SHAPE = (4, 3, 1)


@functools.cache
def built() -> tuple[models.Model, models.Params]:
    model = models.build(ModelConfig(network="mlp", latent_size=2, hidden=(8,), activation="tanh"), SHAPE)
    return model, jax.jit(model.init)(jax.random.key(0))


def batch(n: int = 6) -> batches.Batch:
    return batches.batch_of(np.random.default_rng(0).random((6, *SHAPE))[:n])


@functools.cache
def descent(config: ObjectiveConfig, frozen: tuple[str, ...] = ()) -> objectives.Objective:
    objective = objectives.build(built()[0], config, optax.sgd(1.0), frozen)
    return objective._replace(update=jax.jit(objective.update))


def update(
    step: int = 0,
    data: batches.Batch | None = None,
    params: models.Params = None,
    frozen: tuple[str, ...] = (),
    **config,
) -> objectives.Update:
    """One step of plain gradient descent with step size 1, so that the parameters lose exactly the gradient."""
    objective = descent(ObjectiveConfig(**config), frozen)
    params = built()[1] if params is None else params
    return objective.update(
        params, objective.init(params, jax.random.key(0)), data or batch(), jax.random.key(1), jnp.int32(step)
    )


def gradient(result: objectives.Update) -> models.Params:
    return jax.tree.map(lambda old, new: np.asarray(old - new), built()[1], result.params)


def assert_near(got: models.Params, expected: models.Params) -> None:
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_the_terms_are_those_of_the_inference():
    model, params = built()
    keys = of_examples(jax.random.key(1), batch()["index"])
    inference = jax.jit(model.infer, static_argnums=3)(params, batch()["image"], keys, 3)
    terms = objectives.elbo_terms(inference._replace(kl=(*inference.kl, jnp.arange(6.0))), batch()["image"])
    expected = -np.asarray(dist.log_prob(inference.likelihood, batch()["image"])).mean(axis=0)
    np.testing.assert_allclose(terms["distortion"], expected, rtol=1e-5)
    np.testing.assert_allclose(terms["rate"], inference.kl[0] + jnp.arange(6.0), rtol=1e-5)


@pytest.mark.parametrize("config", [{}, {"name": "iwae", "samples": 3}, {"samples": 2, "beta": 0.5}])
@pytest.mark.parametrize("parts", [2, 3, 6])
def test_a_batch_in_parts_is_the_whole_batch(config, parts):
    masked = {**batch(), "mask": np.array([True, True, False, True, True, False])}  # with six parts, two have nothing
    whole, divided = update(data=masked, **config), update(data=masked, parts=parts, **config)
    np.testing.assert_allclose(divided.loss, whole.loss, rtol=1e-5)
    for name, values in whole.terms.items():
        np.testing.assert_allclose(divided.terms[name], values, rtol=1e-5)
    assert_near(gradient(divided), gradient(whole))


@pytest.mark.parametrize("beta", [0.0, 1.0, 4.0])
def test_the_loss_is_distortion_plus_beta_times_rate(beta):
    result = update(beta=beta)
    terms = {name: np.float64(values) for name, values in result.terms.items()}
    assert set(terms) == {"distortion", "rate"}
    assert (terms["rate"] > 0).all()
    assert float(result.loss) == pytest.approx(terms["distortion"].mean() + beta * terms["rate"].mean(), rel=1e-5)


@pytest.mark.parametrize(("step", "factor"), [(0, 0.1), (4, 0.5), (9, 1.0), (10, 1.0), (1000, 1.0)])
def test_beta_grows_linearly_over_the_warm_up(step, factor):
    result = update(step, beta=2.0, warmup_steps=10)
    expected = result.terms["distortion"].mean() + 2.0 * factor * result.terms["rate"].mean()
    assert float(result.loss) == pytest.approx(float(expected), rel=1e-6)


def test_a_rate_below_the_free_bits_costs_as_much_as_they_do_and_has_no_gradient():
    rate = float(update().terms["rate"].mean())
    below = update(free_bits=rate + 1.0, beta=2.0)
    assert float(below.loss) == pytest.approx(float(below.terms["distortion"].mean()) + 2.0 * (rate + 1.0), rel=1e-5)
    assert_near(gradient(below), gradient(update(beta=0.0)))
    above = update(free_bits=rate - 1e-3, beta=2.0)
    assert_near(gradient(above), gradient(update(beta=2.0)))
    assert float(above.loss) == pytest.approx(float(update(beta=2.0).loss), rel=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e4])
def test_masked_rows_change_neither_loss_nor_gradient(bad):
    padded = {name: np.array(values) for name, values in batch(6).items()}
    padded["mask"][4:] = False
    padded["image"][4:] = bad
    got, expected = update(data=padded), update(data=batch(4))
    assert float(got.loss) == pytest.approx(float(expected.loss), rel=1e-5)
    assert float(got.gradient_norm) == pytest.approx(float(expected.gradient_norm), rel=1e-4)
    assert_near(got.params, expected.params)
    np.testing.assert_allclose(got.terms["rate"][:4], expected.terms["rate"], rtol=1e-4)


def test_masked_mean_is_over_the_rows_that_count():
    values, mask = jnp.array([1.0, jnp.nan, 3.0, jnp.inf]), jnp.array([True, False, True, False])
    assert objectives.masked_mean(values, mask) == 2.0


def test_the_gradient_equals_differences_of_the_loss():
    params = built()[1]
    direction = jax.tree.map(lambda leaf: np.random.default_rng(leaf.size).normal(size=leaf.shape), params)
    slope = sum(jax.tree.leaves(jax.tree.map(np.vdot, gradient(update()), direction)))
    low, high = (
        float(update(params=jax.tree.map(lambda a, b, e=e: jnp.float32(a + e * b), params, direction)).loss)
        for e in (-5e-3, 5e-3)
    )
    assert float(slope) == pytest.approx((high - low) / 1e-2, rel=2e-2)


def test_the_gradient_norm_is_the_one_before_the_optimizer():
    leaves = jax.tree.leaves(gradient(update()))
    expected = np.sqrt(sum((np.float64(leaf) ** 2).sum() for leaf in leaves))
    assert float(update().gradient_norm) == pytest.approx(expected, rel=1e-4)


def test_rate_and_distortion_of_an_image_do_not_depend_on_the_batch():
    terms, fewer = update().terms, update(data=batch(2)).terms
    for name in terms:
        np.testing.assert_allclose(fewer[name], terms[name][:2], rtol=1e-4, atol=1e-5)
    twice = {name: np.concatenate([values, values]) for name, values in batch().items()}
    assert float(update(data=twice).loss) == pytest.approx(float(update().loss), rel=1e-5)


# --- the importance-weighted bound


@functools.cache
def log_weights(samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Log p(x|z) and log q(z|x) - log p(z) of the draws that a step makes, float64 [k, b]."""
    model, params = built()
    keys = of_examples(jax.random.key(1), batch()["index"])
    inference = jax.jit(model.infer, static_argnums=3)(params, batch()["image"], keys, samples)
    return np.float64(dist.log_prob(inference.likelihood, batch()["image"])), np.float64(inference.log_ratio)


@pytest.mark.parametrize(("samples", "beta"), [(1, 1.0), (5, 1.0), (5, 0.3)])
@pytest.mark.parametrize("estimator", ["reparameterized", "doubly_reparameterized"])
def test_the_importance_weighted_loss_is_its_formula(samples, beta, estimator):
    log_likelihood, log_ratio = log_weights(samples)
    weights = np.exp(log_likelihood - beta * log_ratio)
    result = update(name="iwae", samples=samples, beta=beta, gradient=estimator)
    assert float(result.loss) == pytest.approx(-np.log(weights.mean(axis=0)).mean(), rel=1e-4)
    np.testing.assert_allclose(result.terms["distortion"], -log_likelihood.mean(axis=0), rtol=1e-4)


def test_more_draws_tighten_the_bound():
    losses = [float(update(name="iwae", samples=samples).loss) for samples in (1, 10, 300)]
    assert losses[0] > losses[1] > losses[2]


def test_its_plain_gradient_equals_differences_of_the_loss():
    params, settings = built()[1], {"name": "iwae", "samples": 4}
    direction = jax.tree.map(lambda leaf: np.random.default_rng(leaf.size).normal(size=leaf.shape), params)
    slope = sum(jax.tree.leaves(jax.tree.map(np.vdot, gradient(update(**settings)), direction)))
    low, high = (
        float(update(params=jax.tree.map(lambda a, b, e=e: jnp.float32(a + e * b), params, direction), **settings).loss)
        for e in (-5e-3, 5e-3)
    )
    assert float(slope) == pytest.approx((high - low) / 1e-2, rel=2e-2)


def test_the_doubly_reparameterized_gradient_is_its_formula():
    """Tucker et al. 2019, eq. 8: the sum over draws of squared normalised weights times d log w / dz dz / d encoder."""
    model, params = built()
    data, samples = batch(), 4
    keys = of_examples(jax.random.key(1), data["index"])
    log_likelihood, log_ratio = log_weights(samples)
    share = np.exp(log_likelihood - log_ratio)
    share = jnp.float32(share / share.sum(axis=0))

    def latents(encoder):
        return model.infer({**params, "encoder": encoder}, data["image"], keys, samples).latents

    def density(encoder, z):
        mean, log_scale = posterior(encoder, data["image"])
        log_q = dist.DiagonalGaussian(mean, log_scale).log_prob(z)
        log_p = dist.standard_normal(2).log_prob(z)
        return dist.log_prob(model.decode(params, z), data["image"]) + log_p - log_q

    @jax.jit
    def expected(encoder):
        z, pull = jax.vjp(latents, encoder)
        by_z = jax.grad(lambda z: (share**2 * density(encoder, z)).sum())(z)
        return jax.tree.map(lambda leaf: -leaf / len(data["index"]), pull(by_z)[0])

    got = gradient(update(name="iwae", samples=samples, gradient="doubly_reparameterized"))
    assert_near(got["encoder"], expected(params["encoder"]))
    assert_near(got["decoder"], gradient(update(name="iwae", samples=samples))["decoder"])


def posterior(encoder: models.Params, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and log scale, straight from the encoder."""
    network = networks.encoder(ModelConfig(network="mlp", latent_size=2, hidden=(8,), activation="tanh"), 4)
    mean, raw = jnp.split(networks.apply(network, encoder, images), 2, axis=-1)
    return mean, dist.soft_bound(raw, *dist.LATENT_LOG_SCALE)


@pytest.mark.parametrize(("beta", "noise"), [(1.0, 0.5), (0.3, 1.0)])
def test_the_doubly_reparameterized_gradient_has_the_same_mean_and_less_noise(beta, noise):
    model, params = built()

    def encoder_gradients(estimator: str) -> np.ndarray:
        config = ObjectiveConfig(name="iwae", samples=50, gradient=estimator, beta=beta)
        objective = objectives.build(model, config, optax.sgd(1.0))

        def flat(key):
            moved = objective.update(params, objective.init(params, jax.random.key(0)), batch(), key, jnp.int32(0)).params[
                "encoder"
            ]
            return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(moved)])

        return np.float64(jax.jit(lambda keys: jax.lax.map(flat, keys))(jax.random.split(jax.random.key(5), 400)))

    plain, doubly = encoder_gradients("reparameterized"), encoder_gradients("doubly_reparameterized")
    error = np.sqrt((plain.var(axis=0) + doubly.var(axis=0)) / 400)
    assert (np.abs(plain.mean(axis=0) - doubly.mean(axis=0)) < 5 * error + 1e-7).all()
    assert doubly.var(axis=0).sum() < noise * plain.var(axis=0).sum()


@pytest.mark.parametrize("estimator", ["reparameterized", "doubly_reparameterized"])
def test_masked_rows_do_not_change_the_importance_weighted_step(estimator):
    padded = {name: np.array(values) for name, values in batch(6).items()}
    padded["mask"][4:] = False
    padded["image"][4:] = np.nan
    settings = {"name": "iwae", "samples": 3, "gradient": estimator}
    got, expected = update(data=padded, **settings), update(data=batch(4), **settings)
    assert float(got.loss) == pytest.approx(float(expected.loss), rel=1e-5)
    assert_near(got.params, expected.params)


def test_validation_tells_the_bound_that_is_trained():
    model, params = built()
    keys = of_examples(jax.random.key(1), batch()["index"])
    inference = jax.jit(model.infer, static_argnums=3)(params, batch()["image"], keys, 5)
    log_likelihood, log_ratio = log_weights(5)
    iwae = objectives.validation_terms(inference, batch()["image"], ObjectiveConfig(name="iwae", samples=5))
    np.testing.assert_allclose(iwae["loss"], -np.log(np.exp(log_likelihood - log_ratio).mean(axis=0)), rtol=1e-4)
    elbo = objectives.validation_terms(inference, batch()["image"], ObjectiveConfig(beta=3.0, samples=5))
    np.testing.assert_allclose(elbo["loss"], elbo["distortion"] + elbo["rate"], rtol=1e-6)


# --- frozen parts, and steps that are skipped

BOUNDS = {
    "elbo": {"name": "elbo"},
    "iwae": {"name": "iwae", "samples": 3},
    "doubly": {"name": "iwae", "samples": 3, "gradient": "doubly_reparameterized"},
}


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("frozen", [("encoder",), ("decoder", "log_scale")])
def test_frozen_parts_stay_and_the_rest_moves_as_without(bound, frozen):
    got, free = (update(frozen=parts, **BOUNDS[bound]) for parts in (frozen, ()))
    assert set(got.params) == set(free.params) == {"encoder", "decoder", "log_scale"}
    for name, part in built()[1].items():
        if name in frozen:
            assert all(jax.tree.leaves(jax.tree.map(np.array_equal, got.params[name], part))), name
        else:
            assert_near(gradient(got)[name], gradient(free)[name])
    assert float(got.loss) == pytest.approx(float(free.loss), rel=1e-6)
    assert float(got.gradient_norm) == pytest.approx(float(optax.tree.norm(gradient(got))), rel=1e-4)
    assert got.gradient_norm < free.gradient_norm


@pytest.mark.parametrize("bound", BOUNDS)
def test_frozen_parts_have_no_optimizer_state(bound):
    objective = objectives.build(built()[0], ObjectiveConfig(**BOUNDS[bound]), optax.adam(1e-3), ("encoder", "log_scale"))
    state = objective.init(built()[1], jax.random.key(0))
    mean = optax.tree.get(state, "mu")
    assert jax.tree.map(jnp.shape, mean) == {"decoder": jax.tree.map(jnp.shape, built()[1]["decoder"])}


def test_the_steps_that_were_skipped_are_a_gauge():
    norm = float(update().gradient_norm)
    assert update().gauges == {}
    for limit, counts in ((0.5 * norm, [1.0, 2.0]), (100.0 * norm, [0.0, 0.0])):
        optimizer = optimizers.build(OptimizerConfig(name="sgd", skip_norm=limit), 10)
        objective = objectives.build(built()[0], ObjectiveConfig(), optimizer)
        params, state, step = built()[1], objective.init(built()[1], jax.random.key(0)), jax.jit(objective.update)
        for number, count in enumerate(counts):
            params, state, *_, gauges = step(params, state, batch(), jax.random.key(1), jnp.int32(number))
            assert gauges == {"skipped": count}
        stayed = jax.tree.leaves(jax.tree.map(np.array_equal, params, built()[1]))
        assert all(stayed) if counts[-1] else not any(stayed)
