"""A training as it is watched: what stops it, what it writes, what it keeps; and that arrays are enough to train on."""

import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vaejax import checkpoints, evaluation, experiment, journal, memory, objectives, runs, training
from vaejax.config import from_dict
from vaejax.datasets import Split
from vaejax.errors import CheckpointError, DataError, Terminated, TrainingError
from vaejax.interruption import Interruption
from vaejax.objectives import Objective
from vaejax.runs import Run

pytestmark = pytest.mark.usefixtures("compiled_quickly")

ROOT = Path(__file__).parents[1]
TRAIN, VAL, TEST = 24, 10, 13
BATCH = 8
EPOCH = TRAIN // BATCH
SHAPE = (6, 5, 1)


def images(tmp_path: Path) -> Path:
    """A file of grey images, float32."""
    rng = np.random.default_rng(0)
    file = tmp_path / "images.npz"
    stored = {
        f"{name}_images": rng.random((n, *SHAPE), np.float32) for name, n in (("train", TRAIN), ("val", VAL), ("test", TEST))
    }
    np.savez(file, **stored)
    return file


def create(tmp_path: Path, **sections: dict) -> Run:
    """A run of the smallest network; sections of the configuration change what is said here."""
    defaults = {
        "data": {"name": "medmnist", "path": str(images(tmp_path)), "batch_size": BATCH},
        "model": {"network": "mlp", "hidden": (8,), "latent_size": 2},
        "training": {"steps": 2 * EPOCH, "checkpoint_every": 100, "log_every": 2, "ema_decay": 0.9},
        "evaluation": {"samples": 4, "batch_size": 6},
    }
    merged = {name: defaults.get(name, {}) | sections.get(name, {}) for name in defaults | sections}
    return runs.create(str(tmp_path / "run"), from_dict(merged))


def train(run: Run) -> None:
    experiment.train(run, Interruption())


def saved(run: Run) -> list[int]:
    """Whole checkpoints of a run."""
    return list(checkpoints.steps(run.checkpoints, run.fingerprint).whole)


def rows(run: Run, split: str) -> list[dict]:
    return [row for row in journal.read(run.directory) if row["split"] == split]


def reading(run: Run, split: str, read) -> Run:
    """The run with another way to read a split: `read` gets the split's own and the indices."""
    own = run.data.splits[split]
    splits = run.data.splits | {split: Split(own.n, lambda index: read(own.read, index))}
    return run._replace(data=run.data._replace(splits=splits))


# --- what is not finite


@pytest.mark.parametrize("log_every", [1, 100])
def test_an_image_that_is_not_finite_stops_the_run_before_it_is_saved(tmp_path, log_every):
    def poisoned(read, index):
        stored = read(index)
        stored["image"] = np.where((index == 17)[:, None, None, None], np.float32(np.nan), stored["image"])
        return stored

    run = reading(create(tmp_path, training={"checkpoint_every": 1, "log_every": log_every}), "train", poisoned)
    (first,) = [
        number
        for number, batch in enumerate(itertools.islice(experiment.training_batches(run, 0), EPOCH), 1)
        if 17 in batch["index"]
    ]
    with pytest.raises(TrainingError, match=rf"^step {first}: distortion is not finite for training images 17 \(by index\)"):
        train(run)
    assert max(saved(run), default=0) == first - 1


def test_a_run_whose_updates_are_all_skipped_stops_and_says_what_to_choose(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "STUCK", 3)
    run = create(tmp_path, optimizer={"skip_norm": 1e-9}, training={"log_every": 1})
    with pytest.raises(TrainingError, match=r"optimizer.skip_norm=1e-09: all updates since step 0 were .* norm is \d"):
        train(run)
    assert len(rows(run, "train")) == 3 - 1


@pytest.mark.parametrize("term", ["distortion", "rate"])
def test_a_term_that_is_not_finite_stops_the_run_before_it_is_saved(tmp_path, monkeypatch, term):
    build = objectives.build

    def poisoned(*arguments) -> Objective:
        objective = build(*arguments)

        def update(params, state, batch, key, step):
            result = objective.update(params, state, batch, key, step)
            bad = (step == 2) & (batch["index"] % 4 == 3)
            return result._replace(terms=result.terms | {term: jnp.where(bad, jnp.inf, result.terms[term])})

        return objective._replace(update=update)

    monkeypatch.setattr(objectives, "build", poisoned)
    run = create(tmp_path, training={"checkpoint_every": 2})
    batch = next(itertools.islice(experiment.training_batches(run, 2), 1))
    named = ", ".join(str(index) for index in batch["index"] if index % 4 == 3)
    with pytest.raises(TrainingError, match=rf"^step 3: {term} is not finite for training images {named} \(by index\)"):
        train(run)
    assert saved(run) == [2]
    assert [row["step"] for row in journal.read(run.directory)] == [2]


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path, monkeypatch):
    build = objectives.build

    def poisoned(*arguments) -> Objective:
        objective = build(*arguments)
        return objective._replace(update=lambda *given: objective.update(*given)._replace(gradient_norm=jnp.float32(jnp.nan)))

    monkeypatch.setattr(objectives, "build", poisoned)
    run = create(tmp_path)
    with pytest.raises(TrainingError, match="step 1: gradient_norm is not finite in the batch of training images"):
        train(run)
    assert saved(run) == []


# --- what is written and kept


def test_validation_is_told_every_epoch_and_at_the_end(tmp_path):
    run = create(tmp_path, training={"steps": 2 * EPOCH + 1})
    train(run)
    assert [row["step"] for row in rows(run, "val")] == [EPOCH, 2 * EPOCH, 2 * EPOCH + 1]
    assert [row["step"] for row in rows(run, "train")] == [2, 4, 6, 7]
    assert rows(run, "val")[0].keys() == {"step", "split", "loss", "distortion", "rate"}
    assert rows(run, "train")[0].keys() >= {"loss", "distortion", "rate", "learning_rate", "images_per_second"}


@pytest.mark.parametrize("at_a_time", [3, 5, 24])
def test_validation_counts_every_image_once(tmp_path, at_a_time):
    run = create(tmp_path, data={"batch_size": at_a_time})
    params = run.model.init(jax.random.key(3))

    def evaluate(params, batch, key):
        return {"loss": jnp.float32(batch["index"]) + 1.0, "rate": jnp.ones(len(batch["index"]))}

    found = experiment._validate(run, evaluate, params, Interruption())
    mean = (VAL - 1) / 2
    assert found == {"loss": mean + 1, "rate": 1.0}


def test_the_last_and_the_best_are_kept(tmp_path, monkeypatch):
    losses = iter([3.0, 1.0, 2.0, 4.0])
    monkeypatch.setattr(experiment, "_validate", lambda *_: {"loss": next(losses)})
    run = create(tmp_path, training={"steps": 4 * EPOCH, "checkpoint_every": 2})
    train(run)
    assert saved(run) == [2 * EPOCH, 4 * EPOCH]
    assert (experiment.restore(run).step, experiment.restore(run, best=True).step) == (4 * EPOCH, 2 * EPOCH)


def test_the_best_of_an_earlier_life_counts(tmp_path, monkeypatch):
    losses = iter([1.0, 2.0, 3.0])
    monkeypatch.setattr(experiment, "_validate", lambda *_: {"loss": next(losses)})
    run = create(tmp_path, training={"steps": EPOCH})
    train(run)
    steps, save = [], checkpoints.Writer.save
    monkeypatch.setattr(checkpoints.Writer, "save", lambda self, step, *rest: (steps.append(step), save(self, step, *rest)))
    run = create(tmp_path, training={"steps": 3 * EPOCH})
    train(run)
    assert steps == [3 * EPOCH]  # what is worse than the best before is not saved on its account
    assert saved(run) == [EPOCH, 3 * EPOCH]


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_the_averaged_weights_are_restored_or_the_last_ones_where_there_is_no_average(tmp_path, decay):
    run = create(tmp_path, training={"ema_decay": decay})
    train(run)
    abstract = training.abstract(run.model, training.objective_of(run.model, run.config))
    state = checkpoints.restore(run.checkpoints, run.fingerprint, abstract).state
    expected, other = (state.ema, state.params) if decay else (state.params, None)
    found = experiment.restore(run).params
    assert all(map(np.array_equal, jax.tree.leaves(found), jax.tree.leaves(expected)))
    if other is not None:
        assert not all(map(np.array_equal, jax.tree.leaves(found), jax.tree.leaves(other)))


def test_there_is_nothing_to_restore_before_training(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        experiment.restore(create(tmp_path))


# --- stops


def test_a_stop_during_validation_is_saved_at_once(tmp_path):
    interruption, run = Interruption(), create(tmp_path)

    def asking(read, index):
        interruption.request()
        return read(index)

    with pytest.raises(Terminated, match=f"at step {EPOCH}, which is saved"):
        experiment.train(reading(run, "val", asking), interruption)
    assert saved(run) == [EPOCH]
    assert rows(run, "val") == []
    train(run)
    assert saved(run)[-1] == 2 * EPOCH


def test_a_stop_that_was_asked_for_before_the_first_step_saves_that_step(tmp_path):
    interruption, run = Interruption(), create(tmp_path)
    interruption.request()
    with pytest.raises(Terminated, match="at step 1, which is saved"):
        experiment.train(run, interruption)
    assert saved(run) == [1]


def test_a_stop_whose_save_fails_does_not_say_that_it_is_saved(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "_commit", full)
    interruption, run = Interruption(), create(tmp_path)
    interruption.request()
    with pytest.raises(CheckpointError, match="No space left"):
        experiment.train(run, interruption)


# --- memory


def test_a_step_that_needs_more_memory_than_is_left_is_refused_before_it_runs(tmp_path, monkeypatch):
    run = create(tmp_path)
    monkeypatch.setattr(memory, "available", lambda: 4_000)
    with pytest.raises(TrainingError, match=r"batch_size=8: a step needs .* GiB .* are left\. Try data\.batch_size=\d, or"):
        train(run)
    assert saved(run) == []
    assert not (run.directory / "config.json").exists()  # so that the batch size to try may be tried here


@pytest.mark.parametrize(("name", "field", "rows", "smaller"), [("train_step", "data.batch_size", 8, 4)])
def test_a_step_that_does_not_fit_names_the_batch_size_to_try(tmp_path, monkeypatch, name, field, rows, smaller):
    def full(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes.")

    monkeypatch.setattr(training, name, lambda *_: jax.jit(full))
    run = create(tmp_path)
    with pytest.raises(TrainingError, match=rf"{field}={rows}: does not fit.* Try {field}={smaller}, "):
        train(run)
    assert saved(run) == []


def test_an_evaluation_that_does_not_fit_names_the_batch_size_to_try(tmp_path, monkeypatch):
    def full(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes.")

    run = create(tmp_path)
    train(run)
    monkeypatch.setattr(evaluation, "_sampled", full)
    with pytest.raises(TrainingError, match=r"evaluation\.batch_size=6: .* Try evaluation\.batch_size=3\."):
        evaluation.evaluate(run)


def test_another_error_of_the_device_is_not_called_a_lack_of_memory(tmp_path, monkeypatch):
    def broken(*_):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    monkeypatch.setattr(training, "train_step", lambda *_: jax.jit(broken))
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        train(create(tmp_path))


# --- without TensorFlow


WITHOUT_TENSORFLOW = "import sys; sys.modules['tensorflow'] = sys.modules['tensorflow_datasets'] = None\n"


def python(code: str, *arguments: str) -> str:
    """What a fresh interpreter that has no TensorFlow prints."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TENSORFLOW + code, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_arrays_are_enough_to_train_on():
    code = """
import jax, numpy as np, optax, vaejax
images = np.random.default_rng(0).random((16, 6, 5, 1))
model = vaejax.build(vaejax.ModelConfig(network="mlp", hidden=(8,), latent_size=2), (6, 5, 1))
objective = vaejax.elbo(model, vaejax.ObjectiveConfig(), optax.adam(1e-2))
state = vaejax.init(model, objective, jax.random.key(0))
step = vaejax.train_step(objective, ema_decay=0.9)
losses = []
for _ in range(30):
    state, report = step(state, vaejax.batch_of(images), jax.random.key(1))
    losses.append(float(report.loss))
assert int(state.step) == 30
assert losses[-1] < losses[0] - 1.0, losses
samples = vaejax.sample(model, state.ema, jax.random.key(2), n=3)
print(samples.shape, float(samples.min()) >= 0.0, float(samples.max()) <= 1.0)
"""
    assert python(code) == "(3, 6, 5, 1) True True\n"


def test_a_run_is_evaluated_without_tensorflow(tmp_path):
    run = create(tmp_path)
    train(run)
    told = python("from vaejax.cli import main; sys.exit(main(['evaluate', sys.argv[1]]))", str(run.directory))
    assert f"test split at step {2 * EPOCH}" in told
    assert json.loads((run.directory / "evaluation.json").read_text())["metrics"]["elbo"]["n"] == TEST


# --- batches


def binary(tmp_path: Path, binarization: str) -> Run:
    return create(tmp_path, data={"binarization": binarization}, model={"likelihood": "bernoulli"})


def by_index(batches) -> dict[int, np.ndarray]:
    """The images of some batches by their stable number, each once."""
    found: dict[int, np.ndarray] = {}
    for batch in batches:
        for index, image, counts in zip(batch["index"], np.asarray(batch["image"]), batch["mask"], strict=True):
            if counts:
                assert int(index) not in found
                found[int(index)] = image
    return found


def epochs(run: Run, count: int) -> list[dict[int, np.ndarray]]:
    """The images of the first epochs of training."""
    stream = experiment.training_batches(run, 0)
    taken = [by_index(itertools.islice(stream, EPOCH)) for _ in range(count)]
    stream.close()
    return taken


def test_static_binarization_is_one_draw_an_image(tmp_path):
    run = binary(tmp_path, "static")
    passes = [*epochs(run, 2), by_index(experiment.evaluation_batches(run, "train", 7))]
    expected = by_index(experiment.evaluation_batches(run, "train", TRAIN, draw=0))
    assert sorted(expected) == list(range(TRAIN))
    for found in passes:
        assert sorted(found) == list(range(TRAIN))
        assert all(np.array_equal(found[index], image) for index, image in expected.items())
    assert set(np.unique(list(expected.values()))) == {0.0, 1.0}
    chosen = experiment.rows(run, "train", np.array([5, 2]))
    np.testing.assert_array_equal(chosen["image"], [expected[5], expected[2]])


def test_dynamic_binarization_is_a_draw_a_step(tmp_path):
    run = binary(tmp_path, "dynamic")
    first, second = epochs(run, 2)
    assert set(np.unique([*first.values(), *second.values()])) == {0.0, 1.0}
    assert not any(np.array_equal(first[index], second[index]) for index in range(TRAIN))
    later = next(experiment.training_batches(run, EPOCH))
    for index, image in zip(later["index"], later["image"], strict=True):
        np.testing.assert_array_equal(image, second[int(index)])


@pytest.mark.parametrize("binarization", ["static", "dynamic"])
def test_evaluation_has_one_draw_a_seed_and_split(tmp_path, binarization):
    run = binary(tmp_path, binarization)
    one, again, other = (by_index(experiment.evaluation_batches(run, "test", 5, draw)) for draw in (1, 1, 2))
    assert all(np.array_equal(one[index], again[index]) for index in range(TEST))
    assert not all(np.array_equal(one[index], other[index]) for index in range(TEST))
    val = by_index(experiment.evaluation_batches(run, "val", 5, 1))
    assert not all(np.array_equal(one[index], val[index]) for index in range(VAL))


@pytest.mark.parametrize("batch_size", [1, 5, 13, 20])
def test_a_pass_over_a_split_counts_every_image_once(tmp_path, batch_size):
    run = create(tmp_path)
    batches = list(experiment.evaluation_batches(run, "test", batch_size))
    assert all(batch["image"].shape == (batch_size, *SHAPE) for batch in batches)
    assert sum(batch["mask"].sum() for batch in batches) == TEST
    stored = run.data.splits["test"].read(np.arange(TEST))["image"]
    for index, image in by_index(batches).items():
        np.testing.assert_array_equal(image, stored[index])


@pytest.mark.parametrize(("likelihood", "levels"), [("gaussian", None), ("discretized_logistic", 16)])
def test_grey_values_lie_on_the_grid_of_the_likelihood(tmp_path, likelihood, levels):
    run = create(tmp_path, model={"likelihood": likelihood, "levels": 16})
    assert experiment.grid(run) == levels
    for batches in (experiment.training_batches(run, 0), experiment.evaluation_batches(run, "val", 4)):
        values = np.asarray(next(batches)["image"]) * 15
        assert (np.abs(values - np.round(values)).max() < 1e-5) == (levels is not None)


def test_the_default_binarization_has_no_grid_of_its_own(tmp_path):
    assert experiment.grid(binary(tmp_path, "dynamic")) is None


# --- several steps a call, images on the devices

LONG = {"steps": 5 * EPOCH + 1, "log_every": 4, "checkpoint_every": 7}
"""16 steps, of which something is due after 3, 4, 6, 7, 8, 9, 12, 14, 15 and 16."""


def weights(run: Run) -> list[np.ndarray]:
    abstract = training.abstract(run.model, training.objective_of(run.model, run.config))
    state = checkpoints.restore(run.checkpoints, run.fingerprint, abstract).state
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def told(run: Run) -> list[dict]:
    """The journal without what a clock says."""
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in journal.read(run.directory)]


def assert_same_run(got: Run, expected: Run) -> None:
    """The same lines at the same steps and the same weights, up to rounding: another program adds up in another order."""
    for row, other in zip(told(got), told(expected), strict=True):
        assert row == {name: v if isinstance(v, str) else pytest.approx(v, rel=1e-4) for name, v in other.items()}
    assert saved(got)[-1] == saved(expected)[-1]
    for leaf, other in zip(weights(got), weights(expected), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory) -> Run:
    """Trained a step at a time, from the host's memory."""
    run = create(tmp_path_factory.mktemp("one"), training=LONG)
    train(run)
    return run


@pytest.mark.parametrize(("steps", "resident"), [(1, True), (2, False), (2, True), (3, False), (100, False)])
def test_several_steps_a_call_and_images_on_the_devices_change_no_result(tmp_path, one_by_one, steps, resident):
    run = create(tmp_path, data={"resident": resident}, training=LONG | {"steps_per_call": steps})
    train(run)
    assert_same_run(run, one_by_one)


def test_a_run_that_is_stopped_goes_on_to_the_same_bits_and_later_in_other_calls(tmp_path, monkeypatch):
    settings = LONG | {"steps_per_call": 2}
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    whole, run = (create(tmp_path / name, training=settings) for name in ("whole", "stopped"))
    train(whole)
    interruption, due = Interruption(), experiment._due

    def asking(run: Run, number: int):
        if number == 11:
            interruption.request()
        return due(run, number)

    with monkeypatch.context() as patch, pytest.raises(Terminated, match="at step 11, which is saved"):
        patch.setattr(experiment, "_due", asking)
        experiment.train(run, interruption)
    train(run)
    for leaf, other in zip(weights(run), weights(whole), strict=True):
        np.testing.assert_array_equal(leaf, other)
    extended = settings | {"steps": 20, "steps_per_call": 4}
    train(create(tmp_path / "stopped", data={"resident": True}, training=extended))
    assert saved(run)[-1] == 20


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(1, [1] * 16), (2, [2, 1, 1, 2, 1, 1, 1, 2, 1, 2, 1, 1]), (3, [3, 1, 1, 1, 1, 1, 1, 3, 1, 1, 1, 1])],
)
def test_a_call_ends_where_something_is_due(tmp_path, steps, expected):
    run = create(tmp_path, training=LONG | {"steps_per_call": steps})
    assert list(experiment._turns(run, 0)) == expected
    ends = np.cumsum(expected)
    assert {number for number in range(1, 17) if any(experiment._due(run, number))} <= set(ends)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_whole_training_traces_each_step_once_a_shape(tmp_path, monkeypatch, steps):
    """With a last partial batch of the validation, a batch that straddles epochs, stops and checkpoints between the calls."""
    traced, build, terms = [], objectives.build, training.validation_terms

    def counting(*arguments) -> Objective:
        objective = build(*arguments)
        return objective._replace(update=lambda *given: (traced.append("train"), objective.update(*given))[1])

    monkeypatch.setattr(objectives, "build", counting)
    monkeypatch.setattr(training, "validation_terms", lambda *given: (traced.append("eval"), terms(*given))[1])
    run = create(tmp_path, data={"batch_size": 7}, training=LONG | {"steps_per_call": steps})
    train(run)
    assert (traced.count("train"), traced.count("eval")) == (min(steps, 2), 1)


@pytest.mark.parametrize("resident", [False, True])
def test_in_a_call_of_several_steps_the_step_and_its_images_are_named(tmp_path, monkeypatch, resident):
    build = objectives.build

    def poisoned(*arguments) -> Objective:
        objective = build(*arguments)

        def update(params, state, batch, key, step):
            result = objective.update(params, state, batch, key, step)
            bad = (step == 4) & (batch["index"] % 4 == 3)
            return result._replace(terms=result.terms | {"rate": jnp.where(bad, jnp.inf, result.terms["rate"])})

        return objective._replace(update=update)

    monkeypatch.setattr(objectives, "build", poisoned)
    run = create(
        tmp_path, data={"resident": resident, "batch_size": 4}, training={"steps_per_call": 3, "steps": 6, "log_every": 6}
    )
    assert list(experiment._turns(run, 0)) == [3, 3]
    batch = next(itertools.islice(experiment.training_batches(run, 4), 1))
    named = ", ".join(str(index) for index in np.asarray(batch["index"]) if index % 4 == 3)
    with pytest.raises(TrainingError, match=rf"^step 5: rate is not finite for training images {named} \(by index\)"):
        train(run)


def segmented(read, index):
    stored = read(index)
    return stored | {"segmentation": (stored["image"][..., 0] > 0.5).astype(np.uint8), "label": index.astype(np.int32)}


def bytes_of(read, index):
    stored = segmented(read, index)
    return stored | {"image": (255.0 * stored["image"]).astype(np.uint8)}


@pytest.mark.parametrize("white", [1.0, 255.0])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("binarization", ["none", "static", "dynamic"])
def test_images_on_the_devices_are_the_pipelines_bit_for_bit(tmp_path, binarization, count, white):
    likelihood = "discretized_logistic" if binarization == "none" else "bernoulli"
    run = create(
        tmp_path,
        data={"binarization": binarization, "batch_size": 7},
        model={"likelihood": likelihood, "levels": 13},
        training={"steps": 9, "log_every": 100, "steps_per_call": count},
    )
    run = reading(run._replace(data=run.data._replace(white=white)), "train", segmented if white == 1.0 else bytes_of)
    stream = experiment.training_batches(run, 2)
    expected = list(itertools.islice(stream, 7))
    stream.close()
    there = run._replace(config=replace(run.config, data=replace(run.config.data, resident=True)))
    rows, calls = list(itertools.islice(experiment.training_batches(there, 2), 7)), list(experiment._calls(there, 2))
    assert [batch["index"].shape for batch in calls[1:]] == ([(7,)] * 6 if count == 1 else [(3, 7)] * 2)
    several = [batch for batch in calls if batch["index"].ndim == 2]
    placed = [batch for batch in calls if batch["index"].ndim == 1]
    placed += [{name: column[row] for name, column in batch.items()} for batch in several for row in range(count)]
    assert len(rows) == len(placed) == 7
    for batch, *others in zip(expected, rows, placed, strict=True):
        for got, name in itertools.product(others, batch):
            assert got.keys() == batch.keys()
            assert got[name].dtype == batch[name].dtype
            np.testing.assert_array_equal(got[name], batch[name], err_msg=name)


def test_images_that_do_not_fit_on_a_device_are_refused_by_name(tmp_path, monkeypatch):
    run = create(tmp_path, data={"resident": True})
    monkeypatch.setattr(memory, "available", lambda: 2_000)
    with pytest.raises(DataError, match=r"data\.resident=True: the 24 training images need .* GiB .*data\.resident=False"):
        train(run)
    assert not (run.directory / "config.json").exists()


def test_a_run_with_images_on_the_devices_needs_no_tensorflow(tmp_path):
    configuration = {
        "data": {"name": "medmnist", "path": str(images(tmp_path)), "batch_size": BATCH, "resident": True},
        "model": {"network": "mlp", "hidden": [8], "latent_size": 2},
        "training": {"steps": EPOCH, "steps_per_call": 2},
        "evaluation": {"samples": 2, "batch_size": 6},
    }
    (tmp_path / "config.json").write_text(json.dumps(configuration))
    arguments = (f"--config={tmp_path / 'config.json'}", f"--workdir={tmp_path / 'run'}")
    told = python("from vaejax.cli import main; sys.exit(main(['train', *sys.argv[1:]]))", *arguments)
    assert "report:" in told
