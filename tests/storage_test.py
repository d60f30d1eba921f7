"""A run and its data may lie in a cloud store: fsspec's memory here, and where they are installed, emulators of S3 and GCS."""

import dataclasses
import io
import json
import sys
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem
from orbax.checkpoint import v1 as ocp

from vaejax import (
    checkpoints,
    config_file,
    datasets,
    derived,
    evaluation,
    experiment,
    gallery,
    journal,
    report,
    runs,
    screening,
    storage,
)
from vaejax.checkpoints import Writer
from vaejax.config import Config, DataConfig, from_dict
from vaejax.errors import CheckpointError, DataError, StorageError, Terminated, TrainingError
from vaejax.interruption import Interruption

pytestmark = pytest.mark.usefixtures("compiled_quickly")

RUN = "of the run"


class Memory(MemoryFileSystem):
    """Objects of a store by name; none of them is on a disk."""

    protocol = ("s3",)
    store: dict = {}  # noqa: RUF012  # one for all instances, as in the base class
    pseudo_dirs = [""]  # noqa: RUF012
    fetched: list[str] = []  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(path.replace("s3://", "memory://"))

    def get_file(self, rpath, lpath, **settings):
        self.fetched.append(rpath.rpartition("/")[2])
        return super().get_file(rpath, lpath, **settings)


@pytest.fixture
def bucket(monkeypatch, tmp_path) -> Iterator[epath.Path]:
    """An empty bucket in memory, and a user's cache that is empty, too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, "s3", Memory)
    monkeypatch.setitem(storage.BACKENDS, "s3", "fsspec")
    for forgotten in (Memory.store, Memory.fetched):
        forgotten.clear()
    Memory.pseudo_dirs[:] = [""]
    _forget_clients()
    yield storage.path("s3://bucket")
    _forget_clients()


def _forget_clients() -> None:
    backend.fsspec_backend._get_filesystem.cache_clear()
    Memory.clear_instance_cache()


def _names() -> set[str]:
    return {name.removeprefix("/bucket/") for name in Memory.store}


def _config(path: object, steps: int = 8, **data: object) -> Config:
    return from_dict(
        {
            "data": {"name": "image_folder", "path": str(path), "batch_size": 8} | data,
            "model": {"network": "mlp", "hidden": (8,), "latent_size": 2},
            "training": {"steps": steps, "checkpoint_every": 2, "log_every": 1},
            "evaluation": {"samples": 2, "batch_size": 6},
        }
    )


def _npy(number: int) -> bytes:
    file = io.BytesIO()
    np.save(file, np.random.default_rng(number).integers(0, 256, (5, 4), np.uint8))
    return file.getvalue()


def _write_images(folder: epath.Path) -> epath.Path:
    """Forty grey images of two classes."""
    for number in range(40):
        file = folder / "ab"[number % 2] / f"image {number}.npy"
        storage.make_folder(file.parent)
        file.write_bytes(_npy(number))
    return folder


# --- a run


def test_a_run_in_a_store_is_the_run_on_a_disk(bucket, tmp_path):
    there, here = _write_images(bucket / "images"), _write_images(epath.Path(tmp_path) / "images")
    for steps in (4, 8):  # it stops, and goes on
        for directory, images in ((bucket / "run", there), (tmp_path / "run", here)):
            experiment.train(runs.create(str(directory), _config(images, steps)), Interruption())
    remote, local = runs.load(str(bucket / "run")), runs.load(str(tmp_path / "run"))
    assert remote.data.fingerprint == local.data.fingerprint
    jax.tree.map(np.testing.assert_array_equal, experiment.restore(remote).params, experiment.restore(local).params)
    losses = [[row["loss"] for row in journal.read(run.directory)] for run in (remote, local)]
    assert losses[0] == losses[1]
    assert [row["step"] for row in journal.read(remote.directory) if row["split"] == "train"] == list(range(1, 9))
    assert sum("tfevents" in name for name in _names()) == 2

    assert evaluation.evaluate(remote) == runs.read_json(bucket / "run" / "evaluation.json")
    gallery.reconstruct(remote, remote.directory / "gallery", best=False, split="test", n=2, seed=0)
    assert {"run/gallery/reconstructions.png", "run/gallery/reconstructions.npz"} <= _names()
    assert config_file.load(str(bucket / "run" / "config.json")) == remote.config
    assert not any("private" in name or name.endswith((".tmp", ".saving")) for name in _names())


def test_what_is_screened_in_a_store_can_be_shown(bucket, monkeypatch):
    monkeypatch.setattr(screening, "DRAWS", 50)
    normal = {"normal": ("a",), "calibration_fraction": 0.4}
    config = _config(_write_images(bucket / "images"), 1, **normal)
    config = dataclasses.replace(config, anomaly=dataclasses.replace(config.anomaly, score="likelihood", samples=2, alpha=0.5))
    run = runs.create(str(bucket / "run"), config)
    experiment.train(run, Interruption())
    found = screening.screen(run)
    assert json.loads(json.dumps(found)) == runs.read_json(run.directory / "anomaly.json")
    with storage.reading(run.directory / "anomaly_maps.npy") as file:
        assert np.load(file).shape == (found["images"], 5, 4)
    assert {"run/anomaly.csv", "run/anomaly.json", "run/anomaly_maps.npy"} <= _names()


def test_results_that_need_a_disk_are_refused_before_anything_is_written(bucket):
    run = runs.create(str(bucket / "run"), _config(_write_images(bucket / "images"), 1))
    experiment.train(run, Interruption())
    before, output = _names(), run.directory / "gallery"
    for form in ("nifti", "dicom"):
        with pytest.raises(StorageError, match="the folder of results=s3://bucket/run/gallery: expected a folder on this"):
            gallery.sample(run, output, best=False, n=2, seed=0, temperature=1.0, form=form)
    with pytest.raises(StorageError, match="the folder of results=s3://bucket/run/gallery"):
        derived.interpolate(run, output, False, ["a.npy", "b.npy"], 3)
    with pytest.raises(StorageError, match=r"--input=s3://bucket/b\.npy"):
        derived.interpolate(run, epath.Path("gallery"), False, ["a.npy", "s3://bucket/b.npy"], 3)
    assert _names() == before


def test_a_file_to_write_is_on_a_disk_and_copied_to_a_store(bucket):
    with storage.writing(bucket / "maps.npy") as file:
        np.lib.format.open_memmap(file, "w+", np.float32, (3, 2))[:] = 7
        assert not (bucket / "maps.npy").exists()
    with storage.reading(bucket / "maps.npy") as file:
        assert np.load(file, mmap_mode="r").tolist() == [[7, 7]] * 3
    assert not file.exists()


def test_a_file_on_a_disk_is_replaced_whole_or_not_at_all(tmp_path):
    file = epath.Path(tmp_path) / "maps.npy"
    with storage.writing(file) as place:
        place.write_bytes(b"old")
    with pytest.raises(Terminated), storage.writing(file) as place:
        place.write_bytes(b"ne")
        raise Terminated
    assert file.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["maps.npy"]


def test_a_store_that_fails_later_is_told(bucket, monkeypatch):
    with journal.Journal(bucket, 0) as kept:
        kept.write(1, "train", {"loss": 1.0})
    runs.write_json(bucket / "data.json", {})
    with Writer(bucket, RUN) as writer:
        for method in ("exists", "info", "ls", "find", "open", "cat_file"):
            monkeypatch.setattr(Memory, method, lambda *_, **__: (_ for _ in ()).throw(RuntimeError("token expired")))
        for fails in (
            lambda: writer.save(1, {"weight": jnp.ones(4)}, {"loss": 1.0}),
            lambda: checkpoints.steps(bucket, RUN),
            lambda: Writer(bucket, RUN),
            lambda: runs.read_json(bucket / "data.json"),
            lambda: runs.write_json(bucket / "data.json", {}),
            lambda: runs.load(str(bucket)),
            lambda: runs.outline(str(bucket)),
            lambda: storage.exists(bucket / "evaluation.json"),
            lambda: journal.read(bucket),
            lambda: report.save(bucket, "samples", np.zeros((1, 1, 5, 4, 1)), {}),
        ):
            with pytest.raises(StorageError, match=r"s3://bucket.*: the store cannot be used: token expired"):
                fails()


# --- checkpoints


def _save(directory: epath.Path, losses: dict[int, float]) -> None:
    with Writer(directory, RUN) as writer:
        for step, loss in losses.items():
            writer.save(step, {"weight": jnp.full(4, step)}, {"loss": loss})


def _restore(directory: epath.Path) -> checkpoints.Restored | None:
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return checkpoints.restore(directory, RUN, {"weight": jax.ShapeDtypeStruct((4,), jnp.int32, sharding=sharding)})


def test_the_newest_and_the_best_step_are_kept_in_a_store(bucket):
    _save(bucket, {1: 3.0, 2: 1.0, 3: 2.0, 4: 2.0})
    assert {path.name for path in bucket.iterdir()} == {"2", "4"}
    restored = _restore(bucket)
    assert (restored.step, restored.notes, restored.state["weight"].tolist()) == (4, [], [4] * 4)


@pytest.mark.parametrize("marker", ["saving", "deleting"])
def test_a_step_that_a_kill_left_half_does_not_count_and_is_cleared(bucket, marker):
    _save(bucket, {1: 1.0, 2: 2.0})
    (bucket / f"2.{marker}").write_bytes(b"\n")
    (bucket / "2" / "manifest.json").unlink()
    assert (_restore(bucket).step, _restore(bucket).notes) == (1, [])
    _save(bucket, {})
    assert {path.name for path in bucket.iterdir()} == {"1"}


def test_damage_in_a_store_is_told(bucket):
    _save(bucket, {1: 1.0, 2: 2.0})
    largest = max(storage.files(bucket / "2" / "state").items(), key=lambda file: file[1]["size"])[0]
    content = bytearray((bucket / "2" / "state" / largest).read_bytes())
    content[len(content) // 2] ^= 1
    (bucket / "2" / "state" / largest).write_bytes(bytes(content))
    assert _restore(bucket).notes == [f"{bucket}/2: sha256 of state/{largest} differs; step 1 is used."]


def test_a_store_that_fails_is_no_damage(bucket, monkeypatch):
    _save(bucket, {1: 1.0, 2: 2.0})
    monkeypatch.setattr(Memory, "find", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("no network")))
    with pytest.raises(StorageError, match="no network"):
        _restore(bucket)


def test_what_only_the_client_of_a_store_raises_in_orbax_is_told(bucket, monkeypatch):
    _save(bucket, {1: 1.0})
    monkeypatch.setattr(checkpoints, "_direct", lambda directory: True)  # as gs:// is
    for name in ("load", "save_async"):
        monkeypatch.setattr(ocp, name, lambda *_, **__: (_ for _ in ()).throw(Exception("token expired")))
    with pytest.raises(StorageError, match="s3://bucket/1: the store cannot be used: token expired"):
        _restore(bucket)
    with pytest.raises(StorageError, match="s3://bucket/2: the store cannot be used: token expired"):
        _save(bucket, {2: 1.0})


def test_a_store_that_orbax_does_not_know_is_written_by_one_process(bucket, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(CheckpointError, match="s3://bucket: expected one process"):
        Writer(bucket, RUN)


# --- data


def test_only_what_is_new_or_changed_is_fetched_again(bucket, tmp_path):
    images = _write_images(bucket / "images")
    copy = storage.mirrored(images, tmp_path)
    assert len(Memory.fetched) == 40
    assert (copy / "b" / "image 1.npy").read_bytes() == _npy(1)
    assert copy.parents[1].stat().st_mode & 0o777 == 0o700
    Memory.fetched.clear()
    (images / "b" / "image 1.npy").write_bytes(_npy(100))
    (images / "a" / "new.npy").write_bytes(_npy(101))
    (images / "a" / "image 0.npy").unlink()
    (copy / "a" / "image 2.npy").unlink()  # gone here
    assert storage.mirrored(images, tmp_path) == copy
    assert sorted(Memory.fetched) == ["image 1.npy", "image 2.npy", "new.npy"]
    names = {path.relative_to(copy).as_posix() for path in copy.rglob("*.npy")}
    assert names == storage.files(images).keys()


def test_the_folder_of_copies_is_its_owners_alone(bucket, tmp_path):
    (bucket / "a.npy").write_bytes(b"a")
    storage.mirrored(bucket / "a.npy", tmp_path / "home" / "data")
    assert (tmp_path / "home" / "data").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("masks", ["s3://bucket/images/masks", "s3://bucket/images/"])
def test_masks_inside_the_images_of_a_store_are_refused_before_they_are_fetched(bucket, tmp_path, masks):
    images = _write_images(bucket / "images")
    (images / "masks" / "image 1.npy").write_bytes(_npy(1))
    with pytest.raises(DataError, match=f"data.masks='{masks}': .* found one inside data.path, so that its files count as"):
        datasets.load(DataConfig(name="image_folder", path=str(images), masks=masks), tmp_path)
    assert not Memory.fetched


def test_a_name_in_a_store_cannot_lead_out_of_the_copy(bucket, tmp_path):
    (bucket / "images" / "a.npy").write_bytes(b"a")
    Memory.store["/bucket/images/../../out.npy"] = Memory.store["/bucket/images/a.npy"]
    with pytest.raises(StorageError, match="leads out of the folder"):
        storage.mirrored(bucket / "images", tmp_path)


def test_a_file_of_arrays_and_a_table_of_files_are_read_from_a_store(bucket, tmp_path):
    (bucket / "set.npy").write_bytes(_stack())
    assert datasets.load(DataConfig(name="arrays", path=str(bucket / "set.npy")), tmp_path).image_shape == (5, 4, 1)
    _write_images(bucket / "listed")
    table = "path,label\n" + "".join(f"{'ab'[n % 2]}/image {n}.npy,{'ab'[n % 2]}\n" for n in range(40))
    (bucket / "listed" / "table.csv").write_text(table)
    found = datasets.load(DataConfig(name="manifest", path=str(bucket / "listed" / "table.csv")), tmp_path)
    assert found.label_names == ("a", "b")


def _stack() -> bytes:
    file = io.BytesIO()
    np.save(file, np.random.default_rng(0).integers(0, 256, (40, 5, 4), np.uint8))
    return file.getvalue()


# --- what cannot be


def test_what_needs_a_disk_says_so(bucket, tmp_path):
    with pytest.raises(StorageError, match=r"data.cache=s3://bucket/cache: .*memory-mapped"):
        runs.create(str(tmp_path / "run"), _config(tmp_path, cache="s3://bucket/cache"))
    with pytest.raises(StorageError, match="for its owner alone"):
        runs.write_private(bucket, "files.json", [])
    with pytest.raises(StorageError, match="TFDS"):
        datasets.load(DataConfig(name="tfds:mnist", path="s3://bucket/tfds"), tmp_path)


def test_a_url_that_cannot_be_used_is_named(bucket, monkeypatch):
    with pytest.raises(StorageError, match="az://bucket/run: expected a folder, or a URL that begins with gs:// or s3://"):
        storage.path("az://bucket/run")
    with pytest.raises(StorageError, match="s3://bucket/none: expected a file or folder, found none"):
        storage.mirrored(bucket / "none", storage.home())
    with pytest.raises(TrainingError, match="s3://bucket/none: no run here"):
        runs.load("s3://bucket/none")
    monkeypatch.setitem(storage.BACKENDS, "gs", "no_such_package")
    with pytest.raises(StorageError, match=r"needs the package no_such_package: pip install 'vaejax\[cloud\]'"):
        storage.path("gs://bucket/run")
    monkeypatch.setattr(Memory, "exists", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("no credentials")))
    with pytest.raises(StorageError, match="s3://bucket/run: the store cannot be used: no credentials"):
        storage.path("s3://bucket/run")


# --- emulators


@pytest.fixture
def s3(monkeypatch) -> Iterator[str]:
    """An empty bucket of an emulated S3."""
    moto = pytest.importorskip("moto.server", reason="moto[server], which emulates S3")
    client = pytest.importorskip("s3fs", reason="s3fs, which reaches S3")
    server = moto.ThreadedMotoServer(port=0)
    server.start()
    address = {"AWS_ENDPOINT_URL": "http://{}:{}".format(*server.get_host_and_port()), "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in (address | {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none"}).items():
        monkeypatch.setenv(name, value)
    backend.fsspec_backend._get_filesystem.cache_clear()
    client.S3FileSystem.clear_instance_cache()
    client.S3FileSystem().mkdir("bucket")
    yield "s3://bucket"
    server.stop()
    backend.fsspec_backend._get_filesystem.cache_clear()
    client.S3FileSystem.clear_instance_cache()


@pytest.fixture
def gs(monkeypatch) -> Iterator[str]:
    """An empty bucket of an emulated Google Cloud Storage, for gcsfs and for Orbax."""
    emulator = pytest.importorskip("gcp_storage_emulator.server", reason="gcp-storage-emulator, which emulates GCS")
    client = pytest.importorskip("gcsfs", reason="gcsfs, which reaches GCS")
    server = emulator.create_server("127.0.0.1", 9_323, in_memory=True, default_bucket="bucket")
    server.start()
    for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL"):
        monkeypatch.setenv(name, "http://127.0.0.1:9323")
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    backend.fsspec_backend._get_filesystem.cache_clear()
    client.GCSFileSystem.clear_instance_cache()
    yield "gs://bucket"
    server.stop()
    backend.fsspec_backend._get_filesystem.cache_clear()
    client.GCSFileSystem.clear_instance_cache()


@pytest.mark.parametrize("store", ["s3", "gs"])
def test_a_run_is_trained_in_an_emulated_store_and_goes_on(store, request, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    bucket = storage.path(request.getfixturevalue(store))
    images = bucket / "set.npy"
    images.write_bytes(_stack())
    for steps in (2, 4):
        run = runs.create(str(bucket / "run"), _config(images, steps, name="arrays"))
        experiment.train(run, Interruption())
    assert experiment.restore(runs.load(str(bucket / "run"))).step == 4
    assert json.loads((bucket / "run" / "data.json").read_text())["splits"]["train"] == 32
    assert [row["step"] for row in journal.read(run.directory) if row["split"] == "train"] == [1, 2, 3, 4]
