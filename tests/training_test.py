"""Steps: what they change, what they repeat, how they fail, and that eight devices do what one does."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vaejax import batches, models, objectives, training
from vaejax.config import ModelConfig, ObjectiveConfig
from vaejax.errors import TrainingError

SHAPE = (4, 4, 1)
MODEL = models.build(ModelConfig(network="mlp", latent_size=2, hidden=(8,)), SHAPE)
OBJECTIVE = objectives.elbo(MODEL, ObjectiveConfig(), optax.adam(1e-2))
STEP = training.train_step(OBJECTIVE, 0.999)


def batch(n: int = 16) -> batches.Batch:
    return batches.batch_of(np.random.default_rng(0).random((n, *SHAPE)), np.arange(n) + 100)


def trained(steps: int, step: training.TrainStep = STEP) -> tuple[training.TrainState, list[training.Report], list]:
    """The state after `steps` on one batch, their reports, and the parameters before and after each."""
    state = training.init(MODEL, OBJECTIVE, jax.random.key(0))
    reports, path = [], [jax.device_get(state.params)]
    for _ in range(steps):
        state, report = step(state, training.place(batch()), jax.random.key(1))
        reports.append(report)
        path.append(jax.device_get(state.params))
    return state, reports, path


def assert_same_bits(first, second) -> None:
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)


def test_thirty_steps_on_one_batch_lower_its_loss():
    state, reports, _ = trained(30)
    assert int(state.step) == 30
    assert float(reports[-1].loss) < float(reports[0].loss) - 1.0
    assert float(reports[0].gradient_norm) > 0.0
    assert {name: values.shape for name, values in reports[0].terms.items()} == {"distortion": (16,), "rate": (16,)}


def test_the_same_key_and_state_give_the_same_bits_and_each_step_its_own_noise():
    first, second = trained(3), trained(3)
    assert_same_bits(first[0], second[0])
    assert_same_bits(first[1], second[1])
    still = training.train_step(objectives.elbo(MODEL, ObjectiveConfig(), optax.set_to_zero()), 0.0)
    state = training.TrainState(jnp.int32(0), first[2][0], first[2][0], optax.EmptyState())
    state, report = still(state, batch(), jax.random.key(1))
    _, later = still(state, batch(), jax.random.key(1))
    assert not np.array_equal(report.terms["distortion"], later.terms["distortion"])
    np.testing.assert_array_equal(report.terms["rate"], later.terms["rate"])


def test_an_example_has_the_same_noise_wherever_it_stands_in_the_batch():
    flipped = {name: values[::-1] for name, values in batch().items()}
    terms, reversed_terms = (
        STEP(training.init(MODEL, OBJECTIVE, jax.random.key(0)), data, jax.random.key(1))[1].terms
        for data in (batch(), flipped)
    )
    np.testing.assert_allclose(reversed_terms["distortion"][::-1], terms["distortion"], rtol=1e-5)


@pytest.mark.parametrize("decay", [0.0, 0.2, 0.999])
def test_the_average_of_the_weights_follows_its_formula(decay):
    state, _, path = trained(4, training.train_step(OBJECTIVE, decay))
    expected = path[0]
    for step, params in enumerate(path[1:]):
        d = min(decay, (1 + step) / (10 + step))
        expected = jax.tree.map(lambda old, new, d=d: d * old + (1 - d) * new, expected, params)
    for got, want in zip(jax.tree.leaves(state.ema), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)


def test_the_given_state_is_donated():
    state = training.init(MODEL, OBJECTIVE, jax.random.key(0))
    STEP(state, training.place(batch()), jax.random.key(1))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_init_and_abstract_agree_and_no_two_leaves_share_a_buffer():
    state, shapes = training.init(MODEL, OBJECTIVE, jax.random.key(0)), training.abstract(MODEL, OBJECTIVE)
    assert jax.tree.structure(state) == jax.tree.structure(shapes)
    for leaf, shape in zip(jax.tree.leaves(state), jax.tree.leaves(shapes), strict=True):
        assert (leaf.shape, leaf.dtype, leaf.sharding) == (shape.shape, shape.dtype, shape.sharding)
    assert_same_bits(state.params, state.ema)
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((state.params, state.ema))]
    assert len(set(pointers)) == len(pointers)


def test_evaluation_repeats_and_depends_on_key_and_index_alone():
    params = jax.jit(MODEL.init)(jax.random.key(0))
    step = training.eval_step(MODEL, ObjectiveConfig())
    first, again, other = (step(params, batch(), jax.random.key(seed)) for seed in (5, 5, 6))
    assert_same_bits(first, again)
    assert not np.array_equal(first["distortion"], other["distortion"])
    np.testing.assert_array_equal(first["rate"], other["rate"])
    few = step(params, {name: values[[9, 3]] for name, values in batch().items()}, jax.random.key(5))
    for name in first:
        np.testing.assert_allclose(few[name], np.asarray(first[name])[[9, 3]], rtol=1e-5)


@pytest.mark.parametrize(("rows", "sizes"), [(63, "56 or 64"), (3, "choose 8"), (17, "16 or 24")])
def test_a_batch_that_does_not_divide_is_refused_with_the_nearest_that_do(monkeypatch, rows, sizes):
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    with pytest.raises(TrainingError, match=rf"data\.batch_size={rows}: .*8 devices.*{sizes}\."):
        training.place(batch(rows))


def test_a_step_is_traced_once_whatever_comes():
    """From the state as made to the state as returned, with other images: a second trace would compile again."""
    traces = []

    def update(*arguments):
        traces.append(None)
        return OBJECTIVE.update(*arguments)

    step = training.train_step(OBJECTIVE._replace(update=update), 0.9)
    state = training.init(MODEL, OBJECTIVE, jax.random.key(0))
    for number in range(3):
        other = batch() | {"index": np.arange(16, dtype=np.int32) + number}
        state, _ = step(state, training.place(other), jax.random.key(number))
    assert len(traces) == 1


@pytest.mark.parametrize("network", ["mlp", "cnn"])
def test_several_stacked_batches_are_several_steps(network):
    """Up to rounding: XLA may add up in another order inside of a loop."""
    model = models.build(ModelConfig(network=network, latent_size=2, hidden=(8,), features=(4,)), SHAPE)
    objective = objectives.elbo(model, ObjectiveConfig(), optax.adam(1e-2))
    step = training.train_step(objective, 0.9)
    three = [batch() | {"index": np.arange(16, dtype=np.int32) + 100 * number} for number in range(3)]
    alone, together = (training.init(model, objective, jax.random.key(0)) for _ in range(2))
    reports = []
    for one in three:
        alone, report = step(alone, training.place(one), jax.random.key(1))
        reports.append(report)
    together, stacked = step(together, training.place(batches.stacked(three)), jax.random.key(1))
    assert int(together.step) == 3
    expected = (alone, jax.tree.map(lambda *leaves: np.stack(leaves), *reports))
    for got, want in zip(jax.tree.leaves((together, stacked)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_of_stacked_reports_the_first_step_that_is_not_finite_is_named():
    index = jnp.arange(9).reshape(3, 3)
    fine, bad = report(), report(np.nan, rate=2)
    several = jax.tree.map(lambda *leaves: jnp.stack(leaves), fine, bad, report(distortion=0))
    with pytest.raises(TrainingError, match=r"step 42: rate is not finite for training images 5 \(by index\)"):
        training.check_finite(several, index, 41)
    finite = jax.tree.map(lambda *leaves: jnp.stack(leaves), fine, report(3.0, 0.5))
    assert [told["loss"] for told in training.check_finite(finite, index[:2], 41)] == [2.0, 3.0]


def test_place_keeps_the_values_of_every_field():
    placed = training.place(batch() | {"label": np.arange(16, dtype=np.int32)})
    assert set(placed) == {"image", "mask", "index", "label"}
    assert all(isinstance(leaf, jax.Array) for leaf in placed.values())
    np.testing.assert_array_equal(placed["image"], batch()["image"])


def report(loss: float = 2.0, norm: float = 1.0, rows: int = 3, **bad: int) -> training.Report:
    """A report in which the rows from `bad[term]` on of a term are NaN."""
    terms = {name: jnp.ones(rows) for name in ("distortion", "rate")}
    terms |= {name: terms[name].at[row:].set(jnp.nan) for name, row in bad.items()}
    means = {name: values.mean() for name, values in terms.items()}
    return training.Report(jnp.float32(loss), terms, means, jnp.float32(norm), {})


def test_finite_reports_become_scalars():
    got = training.check_finite(report(2.5, 0.5), jnp.array([7, 8, 9]), 4)
    assert got == [{"distortion": 1.0, "rate": 1.0, "loss": 2.5, "gradient_norm": 0.5}]


def test_a_term_that_is_not_finite_is_named_with_step_and_images():
    with pytest.raises(TrainingError, match=r"step 41: rate is not finite for training images 8 \(by index\)"):
        training.check_finite(report(np.nan, rate=2), jnp.array([7, 9, 8]), 41)
    many = report(rows=14, distortion=0)
    with pytest.raises(TrainingError, match=r"distortion is not finite for .* 0, 1, .*, 9 and 4 more \(by index\)"):
        training.check_finite(many, jnp.arange(14), 0)


@pytest.mark.parametrize(("name", "fields"), [("loss", {"loss": np.nan}), ("gradient_norm", {"norm": np.inf})])
def test_a_loss_or_gradient_that_is_not_finite_is_named_with_its_batch(name, fields):
    with pytest.raises(TrainingError, match=rf"step 3: {name} is not finite in the batch of training images 7, 8, 9"):
        training.check_finite(report(**fields), jnp.array([7, 8, 9]), 3)


def test_real_steps_on_images_of_nan_are_caught_with_their_indices():
    images = batch()["image"].copy()
    images[[2, 5]] = np.nan
    state = training.init(MODEL, OBJECTIVE, jax.random.key(0))
    _, told = STEP(state, batch() | {"image": images}, jax.random.key(1))
    with pytest.raises(TrainingError, match=r"training images 102, 105 \(by index\)"):
        training.check_finite(told, jnp.asarray(batch()["index"]), 0)


def test_out_of_memory_names_half_the_batch_as_a_multiple_of_the_devices(monkeypatch):
    def fail(rows: int, message: str = "RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes") -> None:
        with training.explain_out_of_memory("data.batch_size", rows):
            raise jax.errors.JaxRuntimeError(message)

    with pytest.raises(TrainingError, match=r"data\.batch_size=128: .*Try data\.batch_size=64, or more objective\.parts"):
        fail(128)
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    with pytest.raises(TrainingError, match=r"Try data\.batch_size=16,"):
        fail(40)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        fail(40, "INTERNAL: something else")


SCRIPT = """
import json
import jax, numpy as np, optax
from vaejax import batches, models, objectives, training
from vaejax.config import ModelConfig, ObjectiveConfig
model = models.build(ModelConfig(network="cnn", latent_size=2, hidden=(8,), features=(4,)), (8, 8, 1))
objective = objectives.elbo(model, ObjectiveConfig(), optax.sgd(1e-3))
step = training.train_step(objective, 0.9)
state = training.init(model, objective, jax.random.key(0))
losses = []
for i in range(3):
    images = np.random.default_rng(i).random((16, 8, 8, 1))
    state, report = step(state, training.place(batches.batch_of(images)), jax.random.key(1))
    losses.append(float(report.loss))
whole = all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state))
ema = sum(float(abs(leaf).sum()) for leaf in jax.tree.leaves(state.ema))
print(json.dumps({"devices": jax.device_count(), "losses": losses, "ema": ema, "replicated": whole}))
"""


def test_eight_devices_do_what_one_does():
    runs = []
    for devices in (1, 8):
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        runs.append(subprocess.Popen([sys.executable, "-c", SCRIPT], env=environment, **pipes))
    told = [run.communicate() for run in runs]
    assert [run.returncode for run in runs] == [0, 0], told
    one, eight = (json.loads(output) for output, _ in told)
    assert (one["devices"], eight["devices"]) == (1, 8)
    assert eight["replicated"]
    np.testing.assert_allclose(eight["losses"], one["losses"], rtol=1e-5)
    assert eight["ema"] == pytest.approx(one["ema"], rel=1e-5)
