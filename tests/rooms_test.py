"""The structure of the house: who may import what, read from the source and not from a running program."""

import ast
import functools
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "vaejax"

ORDER = (
    "errors", "storage", "fields",
    "config", "config_file", "hosts", "memory", "keys", "distributions",
    "datasets", "studies", "order", "batches", "augment", "pipeline", "resident",
    "networks", "models", "objectives", "optimizers", "metrics", "calibration", "resampling", "training",
    "progress", "tally", "inspection", "suggestion", "checkpoints", "runs", "journal", "interruption", "privacy", "transfer",
    "experiment", "applications", "evaluation", "screening", "samplers", "latents", "segmentation",
    "classifier", "frechet", "report", "inspection_report", "gallery", "derived", "verbs", "startup", "cli",
)  # fmt: skip
"""A room imports only rooms that stand before it."""

OWNERS = {
    "flax": {"networks"},
    "optax": {"objectives", "optimizers", "classifier"},
    "dm_pix": {"metrics"},
    "orbax": {"checkpoints"},
    "fsspec": {"storage"},
    "tensorflow": {"pipeline", "augment", "datasets"},
    "tensorflow_datasets": {"datasets"},
    "tensorboardX": {"journal"},
    "matplotlib": {"report", "inspection_report"},
    "jinja2": {"report"},
    "ml_collections": {"config"},
    "argparse": {"cli", "verbs"},
    "pydicom": {"datasets", "privacy"},
    "nibabel": {"datasets", "privacy"},
    "imagecodecs": {"datasets", "privacy"},
    "apache_beam": {"datasets"},
    "multiprocessing": {"datasets"},
    "pyarrow": {"gallery"},
}
"""What one room, or a few, stand for, so that a change of it stays there."""

NOBODY = {"absl", "clu", "distrax", "haiku", "mlxtend", "torch", "benchmarks", "tests", "configs", "train", "utils"}


def _files() -> Iterator[tuple[str, Path]]:
    """Room and file of every module; the package's own list of names is no room."""
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if room != "__init__":
            yield room, path


FILES = list(_files())
EVERY_FILE = pytest.mark.parametrize(
    ("room", "path"), [pytest.param(room, path, id=str(path.relative_to(ROOT))) for room, path in FILES]
)


@functools.cache
def _imports(path: Path) -> frozenset[str]:
    """Dotted names of all that a file imports, inside of functions, too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name}, line {node.lineno}: relative import; name the room"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(names)


def _rooms(path: Path) -> set[str]:
    """The rooms that a file imports from."""
    return {name.split(".")[1] for name in _imports(path) if name.partition(".")[0] == "vaejax"}


def test_every_room_has_its_place():
    assert {room for room, _ in FILES} == set(ORDER)
    assert len(set(ORDER)) == len(ORDER)


@EVERY_FILE
def test_imports_go_one_way(room, path):
    assert [other for other in _rooms(path) - {room} if ORDER.index(other) >= ORDER.index(room)] == []


@EVERY_FILE
def test_a_library_has_its_rooms(room, path):
    found = {name.partition(".")[0] for name in _imports(path)}
    assert {library for library in found if room not in OWNERS.get(library, {room})} == set()
    assert found & NOBODY == set()


@pytest.mark.parametrize(("library", "rooms"), OWNERS.items())
def test_an_owner_uses_what_it_owns(library, rooms):
    using = {room for room, path in FILES if library in {name.partition(".")[0] for name in _imports(path)}}
    assert using <= rooms
    assert using, f"{library}: nobody imports it any more"


@EVERY_FILE
def test_what_is_private_stays_in_its_room(room, path):
    taken = {name for name in _imports(path) if name.startswith("vaejax.") and f"vaejax.{room}." not in name}
    assert {name for name in taken if any(part.startswith("_") for part in name.split("."))} == set()


@pytest.mark.parametrize("folder", ["datasets", "networks", "models", "objectives", "applications", "privacy"])
def test_files_of_a_room_do_not_import_in_a_circle(folder):
    edges = {
        path.stem: {name.split(".")[2] for name in _imports(path) if name.startswith(f"vaejax.{folder}.")}
        for path in (PACKAGE / folder).glob("*.py")
    }
    while edges:
        free = {name for name, others in edges.items() if not others & edges.keys()}
        assert free, f"a circle among {sorted(edges)}"
        edges = {name: others for name, others in edges.items() if name not in free}


def test_the_program_is_only_a_door():
    assert _imports(ROOT / "train.py") == {"sys", "vaejax.cli.program"}
    assert len((ROOT / "train.py").read_text().splitlines()) < 60


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.name)
def test_a_configuration_knows_the_configuration_alone(path):
    assert {name for name in _imports(path) if name.startswith("vaejax")} <= {"vaejax.config.default_config"}


@EVERY_FILE
def test_names_are_loaded_by_import_alone(room, path):
    """Imports by string would pass unseen here; the package's own list of names is the one place for them."""
    assert "import_module" not in path.read_text(encoding="utf-8")
    assert "__import__" not in path.read_text(encoding="utf-8")


def _taken(path: Path) -> Iterator[tuple[str, str]]:
    """Module and name of all that a file takes from the package: by import, or from a module of it that it has imported."""
    tree, modules = ast.parse(path.read_text(encoding="utf-8")), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "vaejax":
            for alias in node.names:
                yield node.module, alias.name
                modules[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    files = {name: module for name, module in modules.items() if (ROOT / module.replace(".", "/")).with_suffix(".py").exists()}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in files:
            yield files[node.value.id], node.attr


@pytest.mark.parametrize("path", [pytest.param(path, id=path.name) for path in sorted((ROOT / "benchmarks").glob("*.py"))])
def test_what_a_benchmark_takes_from_the_package_is_there(path):
    missing = []
    for module, name in _taken(path):
        found = importlib.import_module(module)
        part = hasattr(found, "__path__") and importlib.util.find_spec(f"{module}.{name}")
        if not hasattr(found, name) and not part:
            missing.append(f"{module}.{name}")
    assert not missing
