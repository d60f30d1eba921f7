"""A run that starts from another one: what is taken over bit for bit, what stays, what is refused; VQ in two stages."""

import hashlib
import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest

from vaejax import checkpoints, cli, experiment, journal, keys, runs, training
from vaejax.config import from_dict
from vaejax.errors import ConfigError, DataError, Terminated, TrainingError
from vaejax.interruption import Interruption
from vaejax.models import Params
from vaejax.runs import Run
from vaejax.training import TrainState

pytestmark = pytest.mark.usefixtures("compiled_quickly")

SHAPE, BATCH, TRAIN = (8, 8), 16, 64
STEPS = 12
PARTS = ("encoder", "decoder", "log_scale")
SOURCE_STEPS = 5


def create(folder: Path, name: str = "run", shape: tuple[int, ...] = SHAPE, seed: int = 0, **sections: dict) -> Run:
    """A run of the smallest network on images of bars, lying or standing, beside their file."""
    file, random, stored = folder / f"{'x'.join(map(str, shape))}-{seed}.npz", np.random.default_rng(seed), {}
    for split, n in (("train", TRAIN), ("val", 8), ("test", 9)):
        stored[f"{split}_images"] = np.zeros((n, *shape), np.uint8)
        for image, lying, place in zip(
            stored[f"{split}_images"], random.integers(0, 2, n), random.integers(0, min(shape[:2]), n), strict=True
        ):
            (image if lying else image.swapaxes(0, 1))[place] = 255
    folder.mkdir(exist_ok=True)
    np.savez(file, **stored)
    defaults = {
        "data": {"name": "medmnist", "path": str(file), "batch_size": BATCH},
        "model": {"network": "mlp", "hidden": (8,), "latent_size": 2},
        "optimizer": {"learning_rate": 0.01},
        "training": {"steps": STEPS, "checkpoint_every": 1000, "log_every": 4, "ema_decay": 0.9},
    }
    merged = {part: defaults.get(part, {}) | sections.get(part, {}) for part in defaults | sections}
    return runs.create(str(folder / name), from_dict(merged))


def train(run: Run) -> Run:
    experiment.train(run, Interruption())
    return run


def initial(run: Run) -> TrainState:
    """The state that training begins with."""
    return experiment._initial(run, training.objective_of(run.model, run.config))


def final(run: Run) -> TrainState:
    """The newest checkpoint, whole."""
    abstract = training.abstract(run.model, training.objective_of(run.model, run.config))
    return checkpoints.restore(run.checkpoints, run.fingerprint, abstract).state


def equal(got: Params, expected: Params) -> bool:
    """Whether two trees have the same names and bits."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    return all(map(np.array_equal, jax.tree.leaves(got), jax.tree.leaves(expected)))


class Source(NamedTuple):
    """A trained run, and its weights at the end."""

    run: Run
    averaged: Params
    last: Params

    @property
    def transfer(self) -> dict:
        return {"source": str(self.run.directory)}


def source_of(run: Run) -> Source:
    state = final(train(run))
    return Source(run, state.ema, state.params)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return source_of(create(tmp_path_factory.mktemp("source"), seed=1, training={"steps": SOURCE_STEPS}))


@pytest.fixture
def lost(source, tmp_path) -> Iterator[Path]:
    """A copy of the source's directory, to be lost."""
    yield Path(shutil.copytree(source.run.directory, tmp_path / "lost"))
    assert not (tmp_path / "lost").exists()


# --- what is taken over


@pytest.mark.parametrize("parts", [PARTS, ("encoder",), ("decoder", "log_scale"), ()])
def test_named_parts_begin_with_the_averaged_weights_of_the_source_and_others_as_ever(source, tmp_path, parts):
    begun = initial(create(tmp_path, transfer=source.transfer | {"parts": parts}))
    model, key = source.run.model, keys.stream(jax.random.key(0), "init")
    own = jax.jit(model.init)(key)
    for name in PARTS:
        expected, other = (source.averaged, own) if name in parts else (own, source.averaged)
        assert equal(begun.params[name], expected[name])
        assert equal(begun.ema[name], expected[name])
        assert not equal(begun.params[name], other[name])
        assert not equal(begun.params[name], source.last[name])
    assert int(begun.step) == 0


def test_all_but_a_prior_is_the_default(source, tmp_path):
    assert equal(initial(create(tmp_path, transfer=source.transfer)).params, source.averaged)


def test_the_optimiser_begins_anew(source, tmp_path):
    begun = initial(create(tmp_path, transfer=source.transfer))
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(begun.objective))
    assert any(np.any(leaf) for leaf in jax.tree.leaves(final(source.run).objective))


def test_what_was_taken_over_is_recorded(source, tmp_path):
    run = create(tmp_path, transfer=source.transfer | {"parts": ("decoder", "encoder")})
    initial(run)
    manifest = Path(source.run.checkpoints) / str(SOURCE_STEPS) / "manifest.json"
    assert json.loads((run.directory / "source.json").read_text()) == {
        "step": SOURCE_STEPS,
        "sha256": hashlib.sha256(manifest.read_bytes()).hexdigest(),
        "parts": ["decoder", "encoder"],
        "fresh": ["log_scale"],
    }


def test_a_run_from_scratch_records_no_source(tmp_path):
    run = create(tmp_path)
    initial(run)
    assert not (run.directory / "source.json").exists()


# --- what is frozen


@pytest.fixture(scope="module")
def frozen(source, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose encoder and scale stay; trained without a stop."""
    transfer = source.transfer | {"freeze": ("encoder", "log_scale")}
    return train(create(tmp_path_factory.mktemp("frozen"), transfer=transfer))


def test_frozen_parts_stay_and_the_others_are_trained(source, frozen):
    state = final(frozen)
    assert int(state.step) == STEPS
    for name, stays in (("encoder", True), ("log_scale", True), ("decoder", False)):
        assert equal(state.params[name], source.averaged[name]) == stays


def test_frozen_parts_are_evaluated_as_they_were_taken_over(source, frozen):
    averaged = experiment.restore(frozen).params
    for name in ("encoder", "log_scale"):
        assert equal(averaged[name], source.averaged[name])


def test_frozen_parts_have_no_state_of_the_optimiser(frozen):
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(final(frozen).objective)]
    assert any("decoder" in name for name in names)
    assert not any("encoder" in name or "log_scale" in name for name in names)


def test_a_run_goes_on_without_its_source_with_the_bits_of_an_unbroken_one(source, frozen, lost, tmp_path):
    transfer = {"source": str(lost), "freeze": ("encoder", "log_scale")}
    run, interruption = create(tmp_path, transfer=transfer), Interruption()
    interruption.request()
    with pytest.raises(Terminated, match="at step 1, which is saved"):
        experiment.train(run, interruption)
    shutil.rmtree(lost)
    state = final(train(create(tmp_path, transfer=transfer)))
    assert equal(state, final(frozen))
    assert equal(state.params["encoder"], source.averaged["encoder"])


def test_the_images_of_the_source_may_be_gone(source, tmp_path):
    theirs = create(tmp_path / "theirs", "source", seed=1, training={"steps": SOURCE_STEPS})
    train(theirs)
    for name in ("8x8-1.npz", "data"):
        path = tmp_path / "theirs" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(DataError):
        runs.load(str(theirs.directory))
    begun = initial(create(tmp_path / "ours", transfer={"source": str(theirs.directory)}))
    assert equal(begun.params, source.averaged)


# --- weights of another shape


LARGER = {"encoder['Dense_0']['kernel']": ((64, 8), (80, 8)), "decoder['Dense_1']['kernel']": ((8, 64), (8, 80))}
COLOUR = {"encoder['Dense_0']['kernel']": ((64, 8), (192, 8)), "log_scale": ((1,), (3,))}


@pytest.mark.parametrize(
    ("shape", "different"), [((10, 8), LARGER), ((8, 8, 3), COLOUR)], ids=["another size", "other channels"]
)
def test_images_of_another_shape_are_refused_with_what_to_choose(source, tmp_path, shape, different):
    run = create(tmp_path, shape=shape, transfer=source.transfer)
    with pytest.raises(TrainingError) as refused:
        train(run)
    told = str(refused.value)
    assert told.startswith(f"transfer.source={source.run.directory}: weights of another shape:\n")
    for name, (there, here) in different.items():
        assert f"\n  {name}: {there} there, {here} here\n" in told
    assert f"Its images are (8, 8, 1), these are {run.model.image_shape} (height, width, channels)." in told
    assert "Choose data.image_size=(8, 8) with data.channels=1, or " in told
    assert 'transfer.mismatch="fresh"' in told
    assert not (run.directory / "source.json").exists()
    assert not (run.directory / "checkpoints").exists()


def test_the_images_can_be_brought_to_the_shape_that_the_message_asks_for(source, tmp_path):
    run = create(tmp_path, shape=(10, 8, 3), data={"image_size": (8, 8), "channels": 1}, transfer=source.transfer)
    assert equal(initial(run).params, source.averaged)


def test_another_network_is_refused_with_the_field_to_choose(source, tmp_path):
    run = create(tmp_path, model={"hidden": (8, 8)}, transfer=source.transfer)
    with pytest.raises(TrainingError) as refused:
        train(run)
    told = str(refused.value)
    assert "\n  encoder['Dense_1']['kernel']: (8, 4) there, (8, 8) here\n" in told
    assert "\n  encoder['Dense_2']['kernel']: None there, (8, 4) here\n" in told
    assert told.count(" there, ") == 5
    assert re.search(r"\n  and \d more\n", told)
    assert "Its images are" not in told
    assert "Choose the source's model.*, or " in told


@pytest.mark.parametrize(
    "model",
    [
        {"hidden": (8,), "latent_size": 4},
        {"network": "transformer", "patch_size": 4, "width": 8, "heads": 2, "depth": 1},
    ],
    ids=["mlp", "transformer"],
)
def test_weights_that_the_source_alone_has_are_refused(tmp_path, model):
    """Layers are named by number: those of a shallower network have the names of others in a deeper one."""
    deeper = {"mlp": {"hidden": (8, 8)}, "transformer": {"depth": 2}}[model.get("network", "mlp")]
    source = source_of(create(tmp_path, "source", model=model | deeper, training={"steps": 1}))
    with pytest.raises(TrainingError, match="encoder"):
        initial(create(tmp_path, model=model, transfer=source.transfer | {"parts": ("encoder",)}))


def test_what_has_another_shape_starts_anew_where_that_is_asked_for(source, tmp_path):
    run = create(tmp_path, shape=(10, 8), transfer=source.transfer | {"mismatch": "fresh"})
    begun, fresh = initial(run), json.loads((run.directory / "source.json").read_text())["fresh"]
    own = jax.jit(run.model.init)(keys.stream(jax.random.key(0), "init"))
    leaves = [
        {name[0].key + jax.tree_util.keystr(name[1:]): leaf for name, leaf in jax.tree_util.tree_leaves_with_path(params)}
        for params in (begun.params, own, source.averaged)
    ]
    expected = [name for name in leaves[0] if leaves[1][name].shape != leaves[2][name].shape]
    assert sorted(fresh) == sorted(expected)
    assert set(LARGER) <= set(fresh) < set(leaves[0])
    for name, leaf in leaves[0].items():
        np.testing.assert_array_equal(leaf, leaves[1 if name in fresh else 2][name], err_msg=name)


def test_a_run_that_starts_some_weights_anew_trains(source, tmp_path):
    run = train(create(tmp_path, shape=(10, 8), transfer=source.transfer | {"mismatch": "fresh"}, training={"steps": 2}))
    assert int(final(run).step) == 2


def test_what_has_another_shape_cannot_be_frozen(source, tmp_path):
    transfer = source.transfer | {"mismatch": "fresh", "freeze": ("decoder",)}
    with pytest.raises(TrainingError, match="weights of another shape") as refused:
        train(create(tmp_path, shape=(10, 8), transfer=transfer))
    assert "fresh" not in str(refused.value)


def test_what_fits_can_be_frozen_beside_what_starts_anew(source, tmp_path):
    transfer = source.transfer | {"mismatch": "fresh", "freeze": ("encoder",), "parts": ("encoder", "log_scale")}
    run = create(tmp_path, model={"scale": "pixel"}, transfer=transfer)
    assert equal(initial(run).params["encoder"], source.averaged["encoder"])


# --- sources that cannot be used


def untrained(source: Source, folder: Path) -> dict:
    return {"transfer": {"source": str(create(folder, "untrained").directory)}}


def gone(source: Source, folder: Path) -> dict:
    return {"transfer": {"source": str(folder / "gone")}}


def damaged(source: Source, folder: Path) -> dict:
    copy = Path(shutil.copytree(source.run.directory, folder / "damaged"))
    (copy / "checkpoints" / str(SOURCE_STEPS) / "manifest.json").unlink()
    return {"transfer": {"source": str(copy)}}


def lacking(source: Source, folder: Path) -> dict:
    return {"model": {"prior": "mixture", "prior_components": 3}, "transfer": source.transfer | {"parts": ("encoder", "prior")}}


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        (untrained, r"transfer\.source=.*untrained: no checkpoint yet\. Train that run first\."),
        (gone, r".*gone: no run here \(no config\.json and data\.json\)\. Expected the --workdir of a training\."),
        (damaged, r".*damaged/checkpoints: expected a whole checkpoint; found whole steps: none; damaged: 5: no manifest\."),
        (lacking, r"transfer\.parts=\('encoder', 'prior'\): .* has no prior\. Leave it out, or choose a source with"),
    ],
)
def test_a_source_that_cannot_be_used_is_told_in_one_message(source, tmp_path, capsys, sections, told):
    run = create(tmp_path, **sections(source, tmp_path))
    assert cli.main(["train", f"--config={run.directory / 'config.json'}", f"--workdir={run.directory}"]) == 1
    output, message = capsys.readouterr()
    assert re.match(f"vaejax: {told}", message)
    assert message.count("\n") == 1
    assert output == ""
    assert not (run.directory / "source.json").exists()


@pytest.mark.parametrize(
    "transfer", [{"freeze": ("encoder",)}, {"source": "there", "parts": ("decoder",), "freeze": ("encoder",)}]
)
def test_what_is_not_taken_over_cannot_be_frozen(tmp_path, transfer):
    with pytest.raises(ConfigError, match=r"transfer\.freeze=\('encoder',\): encoder would stay random"):
        create(tmp_path, transfer=transfer)


# --- VQ in two stages


CODES, PLACES = 6, 16
VQ = {"family": "vq", "network": "cnn", "features": (4,), "codes": CODES, "width": 8, "depth": 1, "heads": 2}
FROZEN = ("encoder", "decoder", "log_scale", "codebook")


@pytest.fixture(scope="module")
def first_stage(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = tmp_path_factory.mktemp("vq")
    return source_of(create(folder, model=VQ, objective={"name": "vq"}, training={"steps": 60, "log_every": 60}))


@pytest.fixture(scope="module")
def second_stage(first_stage, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(
        create(
            tmp_path_factory.mktemp("codes"),
            model=VQ | {"code_prior": "transformer"},
            transfer=first_stage.transfer | {"freeze": FROZEN},
            training={"steps": 120, "log_every": 120},
        )
    )


def test_the_prior_over_the_codes_alone_is_trained_in_the_second_stage(first_stage, second_stage):
    state = final(second_stage)
    for name in FROZEN:
        assert equal(state.params[name], first_stage.averaged[name])
    assert state.params.keys() == {*FROZEN, "prior"}
    begun = jax.jit(second_stage.model.init)(keys.stream(jax.random.key(0), "init"))
    assert not equal(state.params["prior"], begun["prior"])


def test_learned_codes_cost_less_than_codes_all_alike(first_stage, second_stage):
    rates = [
        next(row["rate"] for row in reversed(journal.read(run.directory)) if row["split"] == "val")
        for run in (first_stage.run, second_stage)
    ]
    alike = PLACES * math.log(CODES)
    assert rates[0] == pytest.approx(alike, rel=1e-6)
    assert 0 < rates[1] < 0.8 * alike


def test_freezing_all_parts_is_refused(source, tmp_path):
    parts = ("encoder", "decoder", "log_scale")
    run = create(tmp_path, transfer=source.transfer | {"parts": parts, "freeze": parts})
    with pytest.raises(TrainingError, match="nothing is left to train"):
        initial(run)


def test_a_folder_whose_run_could_not_begin_takes_the_mended_command(source, tmp_path):
    run = create(tmp_path, transfer=source.transfer | {"source": str(tmp_path / "nowhere")})
    with pytest.raises(TrainingError, match="no run here"):
        initial(run)
    assert not (run.directory / "config.json").exists()
    assert not (run.directory / "data.json").exists()
    initial(create(tmp_path, transfer=source.transfer))
