"""The adversarial objective: its formulas, who follows which gradient, its weight, and rows that do not count."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vaejax import batches, models, networks, objectives
from vaejax import distributions as dist
from vaejax.config import ModelConfig, ObjectiveConfig
from vaejax.keys import of_examples, stream

pytestmark = pytest.mark.usefixtures("compiled_quickly")

SHAPE = (4, 3, 1)
FEATURES = (3, 4)
DISCRIMINATOR = networks.Discriminator(FEATURES)


@functools.cache
def built(classes: int | None = None) -> tuple[models.Model, models.Params]:
    config = ModelConfig(network="mlp", latent_size=2, hidden=(8,), activation="tanh", conditional=classes is not None)
    model = models.build(config, SHAPE, classes)
    return model, jax.jit(model.init)(jax.random.key(0))


def batch(n: int = 6) -> batches.Batch:
    return batches.batch_of(np.random.default_rng(0).random((6, *SHAPE))[:n], label=np.arange(n) % 3)


def padded() -> batches.Batch:
    """The first four rows count."""
    data = {name: np.array(values) for name, values in batch().items()}
    data["mask"][4:] = False
    data["image"][4:] = np.nan
    return data


@functools.cache
def descent(config: ObjectiveConfig, classes: int | None = None, frozen: tuple[str, ...] = ()) -> objectives.Objective:
    objective = objectives.build(built(classes)[0], config, optax.sgd(1.0), frozen)
    return objectives.Objective(jax.jit(objective.init), jax.jit(objective.update))


def update(
    data: batches.Batch | None = None, step: int = 0, classes: int | None = None, frozen: tuple[str, ...] = (), **config
) -> objectives.Update:
    """One step of plain gradient descent with step size 1, of the model and of the discriminator."""
    config = ObjectiveConfig(name="vae_gan", discriminator_features=FEATURES, **config)
    objective, params = descent(config, classes, frozen), built(classes)[1]
    return objective.update(params, adversaries(classes), batch() if data is None else data, jax.random.key(1), jnp.int32(step))


@functools.cache
def adversaries(classes: int | None = None):
    """The state before the step, its discriminator made louder, so that the hinges have both sides."""
    config = ObjectiveConfig(name="vae_gan", discriminator_features=FEATURES)
    state = descent(config, classes).init(built(classes)[1], jax.random.key(0))
    return state._replace(discriminator=jax.tree.map(lambda leaf: 2.0 * leaf + 0.1, state.discriminator))


def lost(old, new):
    """What the parameters lost: the gradient."""
    return jax.tree.map(lambda a, b: np.asarray(a - b), old, new)


def assert_near(got, expected, **tolerance) -> None:
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, **{"rtol": 1e-3, "atol": 2e-5} | tolerance)


def made(params: models.Params, classes: int | None = None) -> tuple[models.Inference, jax.Array]:
    """The inference of the batch, and the reconstructions and samples that the discriminator sees."""
    model, data = built(classes)[0], batch()
    told = jnp.asarray(data["label"]) if classes else None
    inference = model.infer(params, data["image"], of_examples(jax.random.key(1), data["index"]), 1, told)
    drawn = model.prior(params, of_examples(stream(jax.random.key(1), "prior"), data["index"]), condition=told)
    return inference, jnp.concatenate([inference.likelihood.mean()[0], model.decode(params, drawn, told).mean()])


def terms_of(params: models.Params, discriminator: models.Params, classes: int | None = None) -> dict[str, jax.Array]:
    """By example: Larsen et al. 2016, eq. 8, layer by layer relative to the layer's mean square over the batch."""
    images, (inference, shown) = batch()["image"], made(params, classes)
    features, wanted = (networks.apply(DISCRIMINATOR, discriminator, seen)[1] for seen in (shown[:6], images))
    distances = [((a - b) ** 2).mean(axis=(1, 2, 3)) / (2.0 * (b**2).mean()) for a, b in zip(features, wanted, strict=True)]
    return {
        "distortion": -dist.log_prob(inference.likelihood, images)[0],
        "rate": inference.kl[0],
        "features": SHAPE[0] * SHAPE[1] * sum(distances),
    }


@functools.cache
def gradients(classes: int | None = None) -> tuple[models.Params, models.Params]:
    """Of everything but the adversarial term, and of that term."""
    params, discriminator = built(classes)[1], adversaries(classes).discriminator

    def base(params: models.Params) -> jax.Array:
        return sum(values.mean() for values in terms_of(params, discriminator, classes).values())

    def adversarial(params: models.Params) -> jax.Array:
        return -networks.apply(DISCRIMINATOR, discriminator, made(params, classes)[1])[0].mean()

    return jax.jit(lambda params: (jax.grad(base)(params), jax.grad(adversarial)(params)))(params)


def norm(tree) -> float:
    return float(np.sqrt(sum((np.float64(leaf) ** 2).sum() for leaf in jax.tree.leaves(tree))))


def test_the_terms_are_distortion_rate_and_features_and_add_up_to_the_loss():
    result, expected = update(beta=2.0, warmup_steps=4, step=1), jax.jit(terms_of)(built()[1], adversaries().discriminator)
    assert set(result.terms) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(result.terms[name], values, rtol=1e-4, err_msg=name)
    weights = {"distortion": 1.0, "rate": 2.0 * 0.5, "features": 1.0}
    total = sum(weight * np.float64(expected[name]).mean() for name, weight in weights.items())
    assert float(result.loss) == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize(("weight", "classes"), [(0.5, None), (2.0, 3)])
def test_the_decoder_alone_follows_the_adversarial_gradient_by_its_share(weight, classes):
    base, adversarial = gradients(classes)
    result, params = update(adversarial_weight=weight, classes=classes), built(classes)[1]
    scale = weight * norm(base["decoder"]) / norm(adversarial["decoder"])
    assert float(result.gauges["adversarial_weight"]) == pytest.approx(scale, rel=1e-3)
    change = lost(params, result.params)
    assert_near(change["decoder"], jax.tree.map(lambda a, b: a + scale * b, base["decoder"], adversarial["decoder"]))
    part = jax.tree.map(np.subtract, change["decoder"], base["decoder"])
    assert norm(part) / norm(base["decoder"]) == pytest.approx(weight, rel=1e-3)
    assert_near(change["encoder"], base["encoder"])
    assert_near(change["log_scale"], base["log_scale"])
    assert float(result.gradient_norm) == pytest.approx(norm(change), rel=1e-3)


def test_before_its_start_the_adversarial_term_weighs_nothing():
    early, late = (update(adversarial_start=5, step=step) for step in (4, 5))
    assert early.gauges["adversarial_weight"] == 0.0
    assert late.gauges["adversarial_weight"] > 0.0
    assert_near(lost(built()[1], early.params), gradients()[0])
    assert_near(early.state.discriminator, late.state.discriminator)


def test_the_discriminator_goes_down_the_hinge_losses_of_images_and_of_what_is_made():
    state, shown = adversaries(), jax.jit(lambda params: made(params)[1])(built()[1])

    def hinges(discriminator: models.Params) -> jax.Array:
        real, false = (networks.apply(DISCRIMINATOR, discriminator, images)[0] for images in (batch()["image"], shown))
        return jnp.maximum(1.0 - real, 0.0).mean() + jnp.maximum(1.0 + false, 0.0).mean()

    result = update()
    assert float(result.gauges["discriminator_loss"]) == pytest.approx(float(hinges(state.discriminator)), rel=1e-4)
    logits = networks.apply(DISCRIMINATOR, state.discriminator, shown)[0]
    assert float(result.gauges["adversarial_loss"]) == pytest.approx(-float(logits.mean()), rel=1e-3)
    change = lost(state.discriminator, result.state.discriminator)
    assert norm(change) > 0.1
    assert_near(change, jax.jit(jax.grad(hinges))(state.discriminator))


def test_beyond_its_margin_the_discriminator_rests():
    state = adversaries()
    sure = state.discriminator | {"Dense_0": {"kernel": 0.0 * state.discriminator["Dense_0"]["kernel"], "bias": jnp.ones(1)}}
    config = ObjectiveConfig(name="vae_gan", discriminator_features=FEATURES)
    result = descent(config).update(built()[1], state._replace(discriminator=sure), batch(), jax.random.key(1), jnp.int32(0))
    assert float(result.gauges["discriminator_loss"]) == 2.0
    assert float(result.gauges["adversarial_weight"]) == pytest.approx(0.5 * 1e4)
    assert_near(lost(sure["Dense_0"]["bias"], result.state.discriminator["Dense_0"]["bias"]), [1.0])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.params))


def test_masked_rows_change_neither_the_bound_nor_the_discriminator():
    got, expected = update(padded()), update(batch(4))
    for name in ("distortion", "rate"):
        np.testing.assert_allclose(got.terms[name][:4], expected.terms[name], rtol=1e-4)
    assert float(got.gauges["discriminator_loss"]) == pytest.approx(float(expected.gauges["discriminator_loss"]), rel=1e-4)
    assert float(got.gauges["adversarial_loss"]) == pytest.approx(float(expected.gauges["adversarial_loss"]), rel=1e-3)
    assert_near(got.state.discriminator, expected.state.discriminator)


def test_masked_rows_change_neither_features_nor_parameters():
    got, expected = update(padded()), update(batch(4))
    np.testing.assert_allclose(got.terms["features"][:4], expected.terms["features"], rtol=1e-4)
    assert float(got.loss) == pytest.approx(float(expected.loss), rel=1e-4)
    assert_near(got.params, expected.params)


@pytest.mark.parametrize("frozen", [("encoder",), ("decoder", "log_scale")])
def test_frozen_parts_stay_and_the_rest_moves_as_without(frozen):
    result, free = update(frozen=frozen), update()
    for name, part in built()[1].items():
        expected = part if name in frozen else free.params[name]
        assert_near(result.params[name], expected, **({"rtol": 0, "atol": 0} if name in frozen else {}))
    assert_near(result.state.discriminator, free.state.discriminator)
    assert (result.gauges["adversarial_weight"] == 0.0) == ("decoder" in frozen)


def test_each_side_has_its_own_optimizer_state_and_frozen_parts_have_none():
    config = ObjectiveConfig(name="vae_gan", discriminator_features=FEATURES)
    objective = objectives.build(built()[0], config, optax.adam(1e-3), ("encoder",))
    state = jax.eval_shape(objective.init, built()[1], jax.random.key(0))
    assert set(optax.tree.get(state.optimizer, "mu")) == {"decoder", "log_scale"}
    mine, theirs = optax.tree.get(state.discriminator_optimizer, "mu"), state.discriminator
    assert jax.tree.map(jnp.shape, mine) == jax.tree.map(jnp.shape, theirs)
