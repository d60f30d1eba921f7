"""The objective of VQ: its formula, its moving codebook against numpy, codes that start anew, rows that do not count."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from vaejax import batches, models, networks, objectives
from vaejax import distributions as dist
from vaejax.config import ModelConfig, ObjectiveConfig
from vaejax.keys import of_examples

pytestmark = pytest.mark.usefixtures("compiled_quickly")

SHAPE, CODES, PLACES = (4, 3, 1), 7, 4
MODEL = ModelConfig(family="vq", network="cnn", latent_size=2, features=(4,), codes=CODES, width=4, depth=1, heads=2)


@functools.cache
def built(code_prior: str = "uniform") -> tuple[models.Model, models.Params]:
    """A model with a filled codebook, in the midst of the encoder's vectors."""
    model = models.build(dataclasses.replace(MODEL, code_prior=code_prior), SHAPE)
    params = jax.tree.map(lambda leaf: 2.0 * leaf + 0.1, jax.jit(model.init)(jax.random.key(0)))
    vectors = np.asarray(jax.jit(model.infer)(params, batch()["image"], keys()).vectors).reshape(-1, 2)
    random = np.random.default_rng(1).normal(size=(CODES, 2))
    return model, params | {"codebook": jnp.float32(vectors.mean(axis=0) + vectors.std(axis=0) * random)}


def batch(n: int = 6) -> batches.Batch:
    return batches.batch_of(np.random.default_rng(0).random((6, *SHAPE))[:n])


def padded() -> batches.Batch:
    """Rows 0, 3 and 4 of six count."""
    data = {name: np.array(values) for name, values in batch().items()}
    data["mask"] = np.array([True, False, False, True, True, False])
    data["image"][~data["mask"]] = np.nan
    return data


def fewer() -> batches.Batch:
    """The rows that count in `padded`, alone."""
    return {name: values[np.array([0, 3, 4])] for name, values in batch().items()}


def keys(n: int = 6) -> jax.Array:
    return of_examples(jax.random.key(1), jnp.arange(n))


@functools.cache
def descent(config: ObjectiveConfig, frozen: tuple[str, ...] = ()) -> objectives.Objective:
    objective = objectives.build(built()[0], config, optax.sgd(1.0), frozen)
    return objective._replace(update=jax.jit(objective.update))


def update(
    data: batches.Batch | None = None, params: models.Params = None, state=None, frozen: tuple[str, ...] = (), **config
) -> objectives.Update:
    """One step of plain gradient descent with step size 1, so that the parameters lose exactly the gradient."""
    objective = descent(ObjectiveConfig(name="vq", **config), frozen)
    params = built()[1] if params is None else params
    state = objective.init(params, jax.random.key(0)) if state is None else state
    return objective.update(params, state, batch() if data is None else data, jax.random.key(1), jnp.int32(0))


def look(params: models.Params, data: batches.Batch) -> tuple[np.ndarray, np.ndarray]:
    """The encoder's vectors, float64 `[n, d]`, and the numbers of their codes, of a batch without padding."""
    inference = jax.jit(built()[0].infer)(params, data["image"], keys(len(data["image"])))
    return np.float64(inference.vectors).reshape(-1, 2), np.ravel(inference.mean)


def assert_near(got, expected, **tolerance) -> None:
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, **{"rtol": 1e-4, "atol": 1e-5} | tolerance)


def gradient(result: objectives.Update) -> models.Params:
    return jax.tree.map(lambda old, new: np.asarray(old - new), built()[1], result.params)


def is_one_of(vectors: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Whether each of the vectors is among the others."""
    return (np.abs(vectors[:, None] - others).max(axis=-1) < 1e-6).any(axis=-1)


@pytest.mark.parametrize("code_prior", ["uniform", "transformer"])
def test_the_loss_is_distortion_plus_rate_plus_commitment(code_prior):
    model, params = built(code_prior)
    inference = jax.jit(model.infer)(params, batch()["image"], keys())
    distance = (np.float64(inference.vectors) - np.float64(params["codebook"])[inference.mean]) ** 2
    expected = {
        "distortion": -np.float64(dist.log_prob(inference.likelihood, batch()["image"]))[0],
        "rate": np.float64(inference.kl[0]),
        "commitment": distance.sum(axis=(1, 2, 3)),
    }
    objective = objectives.build(model, ObjectiveConfig(name="vq", beta=3.0, warmup_steps=4, commitment=2.0), optax.sgd(1.0))
    state = objective.init(params, jax.random.key(0))
    result = jax.jit(objective.update)(params, state, batch(), jax.random.key(1), jnp.int32(1))
    assert set(result.terms) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(result.terms[name], values, rtol=1e-4, err_msg=name)
    total = expected["distortion"] + 0.5 * 3.0 * expected["rate"] + 2.0 * expected["commitment"]
    assert float(result.loss) == pytest.approx(total.mean(), rel=1e-4)


def test_commitment_draws_the_encoder_alone_to_its_codes():
    _, params = built()
    with_it, without = (gradient(update(commitment=weight)) for weight in (2.0, 0.0))
    codes = look(params, batch())[1]

    def distance(encoder: models.Params) -> jax.Array:
        vectors = networks.apply(networks.GridEncoder(MODEL, 2), encoder, batch()["image"]).reshape(-1, 2)
        return 2.0 * ((vectors - params["codebook"][codes]) ** 2).sum() / 6

    change = jax.tree.map(np.subtract, with_it["encoder"], without["encoder"])
    assert_near(change, jax.jit(jax.grad(distance))(params["encoder"]), rtol=1e-3, atol=2e-5)
    assert_near(with_it["decoder"], without["decoder"])


def test_the_codebook_follows_the_moving_averages_of_its_vectors():
    _, params = built()
    objective = objectives.build(built()[0], ObjectiveConfig(name="vq", codebook_decay=0.9), optax.sgd(1e-2))
    state, step = objective.init(params, jax.random.key(0)), jax.jit(objective.update)
    uses, sums = np.ones(CODES), np.float64(params["codebook"])
    for number in range(3):
        vectors, codes = look(params, batch())
        assert len(np.unique(codes)) > 2
        chosen = codes[:, None] == np.arange(CODES)
        uses, sums = 0.9 * uses + 0.1 * chosen.sum(axis=0), 0.9 * sums + 0.1 * chosen.T @ vectors
        params, state, *_ = step(params, state, batch(), jax.random.key(1), jnp.int32(number))
        np.testing.assert_allclose(params["codebook"], sums / uses[:, None], rtol=1e-4, atol=1e-5)
    assert_near(state[1], (uses, sums))


@pytest.mark.parametrize(
    "revive_below",
    [
        0.0,
        0.01,
        100.0,
    ],
)
def test_an_empty_codebook_is_filled_with_vectors_of_the_batch(revive_below):
    empty = built()[1] | {"codebook": jnp.zeros((CODES, 2))}
    codebook = np.asarray(update(params=empty, revive_below=revive_below).params["codebook"])
    assert is_one_of(codebook, look(empty, batch())[0]).all()
    assert len(np.unique(codebook, axis=0)) > CODES / 2


def test_a_codebook_taken_over_is_not_filled_anew():
    codebook = np.asarray(update(revive_below=0.0).params["codebook"])
    np.testing.assert_allclose(codebook, built()[1]["codebook"], atol=0.1)
    assert not is_one_of(codebook, look(built()[1], batch())[0]).any()


@functools.cache
def with_dead_codes() -> tuple[models.Params, tuple, np.ndarray]:
    """Parameters of which three codes are out of reach, two of them long not used; their state, and which these two are."""
    dead, far = np.isin(np.arange(CODES), [2, 5]), np.isin(np.arange(CODES), [0, 2, 5])
    params = built()[1] | {"codebook": built()[1]["codebook"].at[far].set(1e3)}
    state = descent(ObjectiveConfig(name="vq")).init(params, jax.random.key(0))
    uses = jnp.where(dead, 0.01, 1.0)
    return params, (state[0], state[1]._replace(uses=uses, sums=params["codebook"] * uses[:, np.newaxis])), dead


def test_a_dead_code_becomes_any_vector_of_the_rows_that_count():
    params, state, dead = with_dead_codes()
    objective = descent(ObjectiveConfig(name="vq"))

    def codebook(key: jax.Array) -> jax.Array:
        return objective.update(params, state, padded(), key, jnp.int32(0)).params["codebook"]

    drawn = np.asarray(jax.jit(lambda keys: jax.lax.map(codebook, keys))(jax.random.split(jax.random.key(3), 300)))
    vectors = look(params, fewer())[0]
    assert is_one_of(drawn[:, dead].reshape(-1, 2), vectors).all()
    assert not is_one_of(drawn[0][~dead], vectors).any()
    counts = [is_one_of(drawn[:, dead].reshape(-1, 2), vector[None]).sum() for vector in vectors]
    assert len(counts) == 3 * PLACES
    assert stats.chisquare(counts).pvalue > 0.001
    np.testing.assert_array_equal(drawn[:, ~dead] - drawn[:1, ~dead], 0.0)


def test_a_code_that_starts_anew_counts_as_used_once():
    params, state, dead = with_dead_codes()
    result = update(params=params, state=state)
    averages = result.state[1]
    np.testing.assert_array_equal(averages.uses[dead], 1.0)
    np.testing.assert_array_equal(averages.sums[dead], result.params["codebook"][dead])


def test_an_unused_code_stays_where_it_is_however_long():
    params, state, dead = with_dead_codes()
    gone = state[1]._replace(uses=jnp.where(dead, 0.0, state[1].uses), sums=state[1].sums * ~dead[:, np.newaxis])
    result = update(params=params, state=(state[0], gone), revive_below=0.0)
    np.testing.assert_array_equal(result.params["codebook"][dead], params["codebook"][dead])


def test_the_gauges_are_those_of_numpy():
    params, state, dead = with_dead_codes()
    result = update(padded(), params, state=state)
    counts = np.bincount(look(params, fewer())[1], minlength=CODES)
    assert set(result.gauges) == {"codes_in_use", "codes_revived", "code_perplexity"}
    assert float(result.gauges["codes_revived"]) == dead.sum() > 0
    assert float(result.gauges["codes_in_use"]) == (counts > 0).sum() < CODES - dead.sum()
    assert float(result.gauges["code_perplexity"]) == pytest.approx(np.exp(stats.entropy(counts)), rel=1e-5)


def test_masked_rows_change_nothing():
    got, expected = update(padded()), update(fewer())
    assert float(got.loss) == pytest.approx(float(expected.loss), rel=1e-5)
    assert float(got.gradient_norm) == pytest.approx(float(expected.gradient_norm), rel=1e-4)
    assert_near(got.params, expected.params)
    assert_near(got.state[1], expected.state[1])
    assert_near(got.gauges, expected.gauges)


def test_the_codebook_has_neither_gradient_nor_optimizer_state():
    objective = objectives.build(built()[0], ObjectiveConfig(name="vq"), optax.adam(1e-3))
    (state, _) = objective.init(built()[1], jax.random.key(0))
    assert set(optax.tree.get(state, "mu")) == {"encoder", "decoder", "log_scale"}
    moved = {name: part for name, part in gradient(update()).items() if name != "codebook"}
    assert float(update().gradient_norm) == pytest.approx(float(optax.tree.norm(moved)), rel=1e-4)


def test_frozen_parts_stay_and_the_rest_moves_as_without():
    got, free = update(frozen=("encoder", "log_scale")).params, update().params
    for name in ("encoder", "log_scale"):
        assert_near(got[name], built()[1][name], rtol=0, atol=0)
    for name in ("decoder", "codebook"):
        assert_near(got[name], free[name])
