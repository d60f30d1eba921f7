"""Schedules at their corners, and update rules against their own formulas."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vaejax import optimizers
from vaejax.config import OptimizerConfig

RULES = {field.name: field for field in dataclasses.fields(OptimizerConfig)}["name"].metadata["choices"]


@pytest.mark.parametrize(("schedule", "middle", "end"), [("constant", 1.0, 1.0), ("linear", 0.5, 0.0), ("cosine", 0.5, 0.0)])
@pytest.mark.parametrize("warmup", [0, 1, 20])
def test_the_step_size_warms_up_to_its_peak_and_comes_down_to_the_end(schedule, middle, end, warmup):
    config = OptimizerConfig(learning_rate=0.3, schedule=schedule, warmup_steps=warmup)
    size = optimizers.schedule(config, steps=100)
    if warmup:
        assert size(0) == 0.0
        assert float(size(warmup // 2)) == pytest.approx(0.3 * (warmup // 2) / warmup, abs=1e-8)
    assert float(size(warmup)) == pytest.approx(0.3)
    assert float(size((warmup + 100) / 2)) == pytest.approx(0.3 * middle, rel=1e-5)
    assert float(size(100)) == pytest.approx(0.3 * end, abs=1e-7)
    assert float(size(150)) == pytest.approx(0.3 * end, abs=1e-7)


def moved(config: OptimizerConfig, start: list[float], slope: list[float], steps: int = 1) -> np.ndarray:
    """Where `steps` updates by one and the same gradient lead."""
    rule = optimizers.build(config, 1000)
    params = jnp.array(start)
    state = rule.init(params)
    for _ in range(steps):
        change, state = rule.update(jnp.array(slope), state, params)
        params = optax.apply_updates(params, change)
    return np.asarray(params)


@pytest.mark.parametrize("name", RULES)
def test_every_rule_goes_downhill(name):
    config = OptimizerConfig(name=name, learning_rate=0.05, schedule="constant")
    rule = optimizers.build(config, 200)

    def step(carry: tuple, _: None) -> tuple:
        params, state = carry
        change, state = rule.update(2.0 * params, state, params)
        return (optax.apply_updates(params, change), state), None

    start = jnp.array([1.0, -2.0])
    (end, _), _ = jax.lax.scan(step, (start, rule.init(start)), length=200)
    assert np.abs(end).max() < 0.2


def test_adams_first_step_has_the_length_of_the_step_size():
    np.testing.assert_allclose(moved(OptimizerConfig(learning_rate=0.1), [1.0, 1.0], [0.3, -7.0]), [0.9, 1.1], rtol=1e-4)


def test_the_gradient_is_clipped_to_its_largest_norm_and_keeps_its_direction():
    plain = OptimizerConfig(name="sgd", learning_rate=1.0, schedule="constant", clip_norm=0.0)
    long, clipped = (moved(dataclasses.replace(plain, clip_norm=norm), [0.0, 0.0], [30.0, 40.0]) for norm in (0.0, 5.0))
    np.testing.assert_allclose(clipped, 0.1 * long, rtol=1e-5)
    short = moved(dataclasses.replace(plain, clip_norm=5.0), [0.0, 0.0], [0.3, 0.4])
    np.testing.assert_allclose(short, moved(plain, [0.0, 0.0], [0.3, 0.4]), rtol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "lion"])
def test_weight_decay_is_decoupled_from_the_gradient(name):
    config = OptimizerConfig(name=name, learning_rate=0.1, schedule="constant", weight_decay=0.5)
    without = dataclasses.replace(config, weight_decay=0.0)
    shrunk = moved(config, [2.0, -4.0], [1.0, 1.0]) - moved(without, [2.0, -4.0], [1.0, 1.0])
    np.testing.assert_allclose(shrunk, [-0.1 * 0.5 * 2.0, 0.1 * 0.5 * 4.0], rtol=1e-4)
    np.testing.assert_array_equal(moved(without, [2.0], [0.0]), [2.0])


def test_during_warm_up_the_first_step_is_the_smallest():
    config = OptimizerConfig(learning_rate=0.1, warmup_steps=10)
    ends = [float(moved(config, [0.0], [1.0], steps)[0]) for steps in range(1, 5)]
    np.testing.assert_allclose(-np.diff([0.0, *ends]), [0.0, 0.01, 0.02, 0.03], atol=1e-5)


def test_a_gradient_that_is_too_large_changes_nothing_and_is_counted():
    inner = optax.adam(0.1)
    rule, params = optimizers.skipping(inner, largest=5.0), jnp.array([1.0, -2.0])
    state, alone = rule.init(params), inner.init(params)
    for slope, passes in (([3.0, 4.0], True), ([3.1, 4.0], False), ([np.inf, 0.0], False), ([-1.0, 2.0], True)):
        change, state = rule.update(jnp.array(slope), state, params)
        expected = jnp.zeros(2)
        if passes:
            expected, alone = inner.update(jnp.array(slope), alone, params)
        np.testing.assert_array_equal(change, expected)
        assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), state.inner, alone))
    assert state.skipped == 2


def test_the_limit_is_on_the_norm_over_all_parameters_before_clipping():
    config = OptimizerConfig(name="sgd", learning_rate=1.0, schedule="constant", clip_norm=1.0, skip_norm=10.0)
    rule = optimizers.build(config, 100)
    params = {"a": jnp.zeros(2), "b": jnp.zeros(3)}
    state = rule.init(params)
    for size, skipped in ((4.0, 0), (5.0, 1)):  # norms of 4 and 5 times the root of 5
        change, state = rule.update(jax.tree.map(lambda leaf, size=size: leaf + size, params), state, params)
        assert state.skipped == skipped
        assert bool(optax.tree.norm(change)) == (not skipped)
    assert not hasattr(optimizers.build(dataclasses.replace(config, skip_norm=0.0), 100).init(params), "skipped")
