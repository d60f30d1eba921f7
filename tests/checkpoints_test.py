"""Checkpoints: bit-identical, or named as damaged; never lost by a kill, a full disk or a later step."""

import gc
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import PyTree

from vaejax import checkpoints
from vaejax.errors import CheckpointError

RUN = "fingerprint of this run"


class State(NamedTuple):
    step: jax.Array
    params: dict
    ema: PyTree
    objective: PyTree


def abstract(state: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def training_state() -> State:
    """The state of a real optimiser after one update, with every kind of node and leaf that occurs."""
    params = {
        "dense": {"kernel": jnp.full((3, 4), 0.1, jnp.bfloat16), "bias": jnp.arange(4.0)},
        "scale": [jnp.float32(jnp.nan)],
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.linear_schedule(0.1, 0.0, 10)))
    gradients = jax.tree.map(lambda x: jnp.full_like(x, -0.0), params)
    _, optimizer_state = optimizer.update(gradients, optimizer.init(params), params)
    return State(jnp.int32(7), params, None, (optimizer_state, optax.EmptyState(), None, jnp.array([True, False])))


def small_state(value: int) -> dict:
    return {"w": jnp.full((50, 7), float(value)), "b": jnp.full(3, value, jnp.int32)}


def write(directory: Path, losses: dict[int, float | None], run: str = RUN) -> None:
    with checkpoints.Writer(directory, run) as writer:
        for step, loss in losses.items():
            writer.save(step, small_state(step), {} if loss is None else {"loss": loss})


def restore(directory: Path, **choice: int | bool) -> checkpoints.Restored | None:
    """Restores a small state, and checks that it is the one saved at that step."""
    restored = checkpoints.restore(directory, RUN, abstract(small_state(0)), **choice)
    if restored is not None:
        assert_identical(restored.state, small_state(restored.step))
    return restored


def assert_identical(found: PyTree, expected: PyTree) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_a_training_state_comes_back_bit_identical_with_the_asked_sharding(tmp_path: Path) -> None:
    state = training_state()
    with checkpoints.Writer(tmp_path, RUN) as writer:
        writer.save(7, state, {"loss": 1.0})
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    asked = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)
    step, restored, notes = checkpoints.restore(tmp_path, RUN, asked)
    assert (step, notes) == (7, [])
    assert_identical(restored, state)
    assert all(x.sharding == sharding for x in jax.tree.leaves(restored))


def test_a_save_does_not_see_what_later_happens_to_its_buffers(tmp_path: Path) -> None:
    size = 2_000_000
    state = {f"w{i}": jax.block_until_ready(jnp.full(size, float(i))) for i in range(4)} | {"host": np.ones(size, np.float32)}
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    with checkpoints.Writer(tmp_path, RUN) as writer:
        writer.save(1, state, {})
        state["host"][:] = -1
        device = {name: x for name, x in state.items() if name != "host"}
        for donations in range(3):
            device, donated = overwrite(device), device
            # While Orbax reads a CPU buffer, JAX cannot give it away, and copies.
            assert donations == 0 or all(x.is_deleted() for x in donated.values())
        jax.block_until_ready(device)
    expected = {f"w{i}": jnp.full(size, float(i)) for i in range(4)} | {"host": jnp.ones(size)}
    assert_identical(checkpoints.restore(tmp_path, RUN, abstract(expected)).state, expected)


def test_nothing_saved_is_told_apart_from_nothing_usable(tmp_path: Path) -> None:
    assert restore(tmp_path / "absent") is None
    (tmp_path / "events").mkdir()
    assert restore(tmp_path) is None
    assert restore(tmp_path, best=True) is None
    with pytest.raises(CheckpointError, match="expected step 5"):
        restore(tmp_path, step=5)
    (tmp_path / "3").mkdir()
    (tmp_path / "12").write_text("a file")
    (tmp_path / "07").mkdir()
    with pytest.raises(CheckpointError, match="3: no manifest; 12: not a folder"):
        restore(tmp_path)
    assert checkpoints.steps(tmp_path, RUN).bad == {
        "3": "no manifest", "12": "not a folder", "07": "not a step", "events": "not a step",
    }  # fmt: skip


def test_an_asked_step_is_that_step_or_an_error(tmp_path: Path) -> None:
    write(tmp_path, {1: 0.5, 2: 0.9})
    assert restore(tmp_path, step=1).step == 1
    (tmp_path / "2" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="expected step 2; found whole steps: 1; damaged: 2: no manifest"):
        restore(tmp_path, step=2)
    assert restore(tmp_path, step=1).notes == []


@pytest.mark.parametrize(
    ("leaf", "change"),
    [
        (r"\['w'\]", {"w": jax.ShapeDtypeStruct((50, 7), jnp.bfloat16)}),
        (r"\['w'\]", {"w": jax.ShapeDtypeStruct((7, 50), jnp.float32)}),
        (r"\['new'\]", {"new": jax.ShapeDtypeStruct((), jnp.float32)}),
        (r"\['b'\]", {"b": None}),
    ],
)
def test_a_leaf_that_differs_is_named_and_not_cast(tmp_path: Path, leaf: str, change: dict) -> None:
    write(tmp_path, {1: None})
    with pytest.raises(CheckpointError, match=rf"leaf {leaf}: expected .*, found "):
        checkpoints.restore(tmp_path, RUN, abstract(small_state(0)) | change)


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    with checkpoints.Writer(tmp_path, RUN) as writer:
        for step, (loss, kept) in enumerate(
            [(None, {0}), (3.0, {1}), (2.0, {2}), (2.0, {2, 3}), (float("nan"), {2, 4}), (None, {2, 5}), (1.0, {6})]
        ):
            writer.save(step, small_state(step), {} if loss is None else {"loss": loss})
            writer.wait()
            assert names(tmp_path) == {str(step) for step in kept}


def test_the_best_survives_a_new_life_of_the_process(tmp_path: Path) -> None:
    write(tmp_path, {1: 0.5, 2: 0.9})
    write(tmp_path, {3: 0.7})
    write(tmp_path, {4: 0.6})
    assert names(tmp_path) == {"1", "4"}
    assert restore(tmp_path, best=True).step == 1
    assert restore(tmp_path).step == 4


def test_no_step_with_a_loss_means_no_best(tmp_path: Path) -> None:
    write(tmp_path, {1: None})
    with pytest.raises(CheckpointError, match='finite "loss"; found whole steps: 1; damaged: none'):
        restore(tmp_path, best=True)


def test_a_whole_step_is_left_alone_and_a_bad_one_is_set_aside(tmp_path: Path) -> None:
    write(tmp_path, {1: 0.5, 2: 0.9})
    before = (tmp_path / "2" / "manifest.json").stat().st_mtime_ns
    write(tmp_path, {2: 0.1})
    assert (tmp_path / "2" / "manifest.json").stat().st_mtime_ns == before
    for n in (1, 2):
        (tmp_path / "2" / "manifest.json").write_text("{}")
        write(tmp_path, {2: 0.9})
        assert restore(tmp_path).step == 2
        assert (tmp_path / f"2.replaced-{n}" / "manifest.json").read_text() == "{}"


def flip(directory: Path, rng: random.Random) -> str:
    path = rng.choice(files(directory / "2"))
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    return "2"


def truncate(directory: Path, rng: random.Random) -> str:
    path = rng.choice(files(directory / "2"))
    os.truncate(path, rng.randrange(path.stat().st_size))
    return "2"


def delete(directory: Path, rng: random.Random) -> str:
    rng.choice(files(directory / "2")).unlink()
    return "2"


def add(directory: Path, rng: random.Random) -> str:
    (rng.choice(files(directory / "2")).parent / "added").touch()
    return "2"


def link(directory: Path, rng: random.Random) -> str:
    path = rng.choice(files(directory / "2"))
    path.rename(directory / "elsewhere")
    path.symlink_to(directory / "elsewhere")
    return "2"


def empty(directory: Path, rng: random.Random) -> str:
    name = str(rng.randrange(3, 10**9))
    (directory / name).mkdir()
    return name


def stray(directory: Path, rng: random.Random) -> str:
    name = str(rng.randrange(3, 10**9))
    shutil.copytree(directory / rng.choice("12"), directory / name)
    return name


def foreign(directory: Path, rng: random.Random) -> str:
    name = str(rng.randrange(3, 1000))
    write(directory / "other", {int(name): 0.1}, run="fingerprint of another run")
    (directory / "other" / name).rename(directory / name)
    return name


def swap(directory: Path, rng: random.Random) -> str:
    shutil.copy(directory / "1" / "manifest.json", directory / "2" / "manifest.json")
    return "2"


def files(directory: Path) -> list[Path]:
    """The files with something in them, in a fixed order, though Orbax names some at random."""
    return sorted(
        (path for path in directory.rglob("*") if path.is_file() and path.stat().st_size), key=lambda p: p.stat().st_size
    )


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("two_steps")
    write(directory, {1: 0.5, 2: 0.9})
    return directory


@pytest.mark.parametrize(
    ("damage", "times"),
    [(flip, 40), (truncate, 15), (delete, 15), (add, 4), (link, 6), (empty, 5), (stray, 5), (foreign, 5), (swap, 5)],
)
def test_no_damage_of_a_hundred_is_used_silently(two_steps: Path, tmp_path: Path, damage: Callable, times: int) -> None:
    for seed in range(times):
        directory = tmp_path / str(seed)
        shutil.copytree(two_steps, directory)
        name = damage(directory, random.Random(seed))
        restored = restore(directory)
        assert restored.step == (1 if name == "2" else 2), seed
        (note,) = restored.notes
        assert note.startswith(f"{directory / name}: "), seed
        assert note.endswith(f"; step {restored.step} is used."), seed


def test_every_kind_of_damage_is_told_by_its_reason(two_steps: Path, tmp_path: Path) -> None:
    reasons = {
        truncate: "sha256 of .* differs|manifest.json is damaged.*", delete: "file .* missing|no manifest",
        add: "unexpected file .*added", link: ".* is neither a file nor a folder", empty: "no manifest",
        stray: "its manifest is of step [12]", foreign: "belongs to another run", swap: "its manifest is of step 1",
    }  # fmt: skip
    for damage, reason in reasons.items():
        directory = tmp_path / damage.__name__
        shutil.copytree(two_steps, directory)
        name = damage(directory, random.Random(0))
        found = checkpoints.steps(directory, RUN).bad[name]
        assert re.fullmatch(reason, found), (damage, found)


@pytest.mark.parametrize("name", ["../1/manifest.json", "/etc/hostname", "state/../../1/manifest.json"])
def test_a_manifest_cannot_point_out_of_its_folder(tmp_path: Path, name: str) -> None:
    write(tmp_path, {1: 0.5, 2: 0.9})
    path = tmp_path / "2" / "manifest.json"
    manifest = checkpoints._decode(path.read_bytes())
    entry = checkpoints._digest(path.parent / name)
    path.write_bytes(checkpoints._encode(manifest._replace(files=manifest.files | {name: entry})))
    assert checkpoints.steps(tmp_path, RUN).bad == {"2": f"file {name} missing"}


def test_no_byte_of_a_manifest_can_change(two_steps: Path) -> None:
    data = (two_steps / "2" / "manifest.json").read_bytes()
    checkpoints._decode(data)
    rng = random.Random(0)
    for i in range(len(data)):
        damaged = bytearray(data)
        damaged[i] ^= 1 << rng.randrange(8)
        with pytest.raises(CheckpointError):
            checkpoints._decode(bytes(damaged))
    for other in (b"", b"[]", b"{}", b"1", data + b" ", b"[" * 100_000):
        with pytest.raises(CheckpointError):
            checkpoints._decode(other)


@pytest.mark.parametrize("moment", ["_commit", "_sync", "_digest"])
def test_a_failure_in_the_background_is_raised_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    write(tmp_path, {1: None})

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    writer = checkpoints.Writer(tmp_path, RUN)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, moment, fail)
        writer.save(2, small_state(2), {})
        with pytest.raises(CheckpointError, match=rf"{tmp_path}: .*No space left.*free space"):
            writer.save(3, small_state(3), {})
    assert names(tmp_path) == {"1"}
    with writer:
        writer.save(4, small_state(4), {})
    assert restore(tmp_path).step == 4


def test_orbax_that_cannot_write_raises_at_the_end(tmp_path: Path) -> None:
    """A real error of the file system, as on a full disk: no file may grow beyond 64 KiB."""
    state = {"w": jax.random.normal(jax.random.key(0), (200_000,))}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, hard))
    try:
        with pytest.raises(CheckpointError, match="could not be written"), checkpoints.Writer(tmp_path, RUN) as writer:
            writer.save(1, state, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == set()


def test_an_exception_of_the_block_keeps_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "_commit", lambda *_: 1 / 0)

    def block() -> None:
        with checkpoints.Writer(tmp_path, RUN) as writer:
            writer.save(1, small_state(1), {})
            raise KeyError("of the block")

    with pytest.raises(KeyError) as caught:
        block()
    assert "could not be written: division by zero" in caught.value.__notes__[0]


def test_a_donated_state_is_refused_before_orbax_sees_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from orbax.checkpoint import v1 as ocp

    monkeypatch.setattr(ocp, "save_async", lambda *_, **__: pytest.fail("Orbax would keep the process from ending"))
    donated = jnp.ones(3)
    jax.jit(lambda x: x + 1, donate_argnums=0)(donated)
    with checkpoints.Writer(tmp_path, RUN) as writer, pytest.raises(CheckpointError, match="deleted or donated"):
        writer.save(1, {"w": donated}, {})


@pytest.mark.filterwarnings("ignore:coroutine '_create_paths'")  # Orbax leaves it behind
def test_what_orbax_refuses_at_once_is_raised_at_once(tmp_path: Path) -> None:
    with checkpoints.Writer(tmp_path, RUN) as writer, pytest.raises(CheckpointError, match="zero size"):
        writer.save(1, {"empty": np.zeros((0, 3))}, {})
    gc.collect()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="file/checkpoints: expected a folder"):
        checkpoints.Writer(tmp_path / "file" / "checkpoints", RUN)


def test_leftovers_of_a_kill_do_not_count_and_only_a_writer_clears_them(tmp_path: Path) -> None:
    write(tmp_path, {1: 0.5})
    shutil.copytree(tmp_path / "1", tmp_path / "2.saving")
    leftovers = {"2.saving", "3.saving.orbax-checkpoint-tmp", "3.saving.orbax-checkpoint-tmp-17", "0.deleting"}
    for name in leftovers:
        (tmp_path / name / "state").mkdir(parents=True, exist_ok=True)
    (tmp_path / "4.saving.txt").touch()
    assert restore(tmp_path)[::2] == (1, [])
    assert checkpoints.steps(tmp_path, RUN).bad == {"4.saving.txt": "not a step"}
    assert names(tmp_path) == {"1", "4.saving.txt"} | leftovers
    with checkpoints.Writer(tmp_path, RUN):
        assert names(tmp_path) == {"1", "4.saving.txt"}


def large_state(step: int) -> dict:
    return {f"w{i}": jnp.full(100_000, float(step + i)) for i in range(5)}


def save_without_end(directory: str) -> None:
    """The victim: goes on from the newest step, and prints each step once it is complete."""
    restored = checkpoints.restore(directory, RUN, abstract(large_state(0)))
    step = 0 if restored is None else restored.step
    with checkpoints.Writer(directory, RUN) as writer:
        while True:
            step += 1
            writer.save(step, large_state(step), {"loss": abs(step % 7 - 3.0)})
            writer.wait()
            print(step, flush=True)


def kill_while_saving(directory: Path, delay: float) -> tuple[int, checkpoints.Restored | None]:
    """Starts a process that saves without end, and kills it `delay` seconds after its first complete checkpoint.

    Returns:
        The last step that the process called complete, and what can be restored now.

    Raises:
        AssertionError: what is restored is not bit-identical to what was saved, or older than called complete.
    """
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(
        [sys.executable, __file__, str(directory)], stdout=subprocess.PIPE, text=True, env=environment
    ) as victim:
        first = victim.stdout.readline()
        time.sleep(delay)
        victim.send_signal(signal.SIGKILL)
        complete = int((first + victim.stdout.read()).split()[-1])
    restored = checkpoints.restore(directory, RUN, abstract(large_state(0)))
    assert restored.step in (complete, complete + 1)
    assert_identical(restored.state, large_state(restored.step))
    return complete, restored


def test_a_kill_while_saving_loses_no_complete_step(tmp_path: Path) -> None:
    rng = random.Random(0)
    before = 0
    for _ in range(3):
        complete, restored = kill_while_saving(tmp_path, rng.uniform(0.0, 0.3))
        assert restored.notes == []
        assert complete > before
        before = restored.step


if __name__ == "__main__":
    save_without_end(sys.argv[1])
