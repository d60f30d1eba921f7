"""The surface of the package: quick to import, complete, documented, typed."""

import ast
import importlib.metadata
import importlib.resources
import inspect
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import vaejax

ROOT = Path(__file__).parents[1]
HEAVY = ("tensorflow", "tensorflow_datasets", "orbax", "matplotlib", "tensorboardX", "sklearn")
"""What belongs to one room each, and is slow to import."""

DRAWING = ("report", "inspection_report", "gallery")
TENSORFLOW = ("pipeline", "augment")


def _run(code: str, folder: Path = ROOT) -> str:
    """What a fresh interpreter prints."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, env=os.environ | {"PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _modules() -> list[str]:
    names = [path.relative_to(ROOT).with_suffix("").parts for path in sorted((ROOT / "vaejax").rglob("*.py"))]
    return [".".join(part for part in parts if part != "__init__") for parts in names]


# --- import


def test_the_package_alone_brings_nothing():
    loaded = _run("import sys, vaejax; print(*{name.partition('.')[0] for name in sys.modules})").split()
    assert {*HEAVY, "jax", "flax", "numpy"} & set(loaded) == set()


def test_the_public_names_bring_nothing_heavy():
    code = "import sys, vaejax\nfor name in vaejax.__all__: getattr(vaejax, name)\nprint(*sys.modules)"
    loaded = {name.partition(".")[0] for name in _run(code).split()}
    assert "jax" in loaded
    assert set(HEAVY) & loaded == set()


def test_only_its_room_brings_a_heavy_library():
    rooms = [
        name for name in _modules() if name.partition(".")[2] not in (*TENSORFLOW, *DRAWING, "derived")
    ]  # which draws and screens
    code = "import importlib, sys\nfor name in {}: importlib.import_module(name)\nprint(*sys.modules)"
    loaded = {name.partition(".")[0] for name in _run(code.format(rooms)).split()}
    assert set(HEAVY) & loaded <= {"sklearn"}  # the linear floor of vaejax.evaluation
    loaded = {name.partition(".")[0] for name in _run(code.format([f"vaejax.{name}" for name in DRAWING])).split()}
    assert set(HEAVY) & loaded == {"matplotlib"}


# --- public names


@pytest.mark.parametrize("name", vaejax.__all__)
def test_a_public_name_is_there_and_documented(name):
    found = getattr(vaejax, name)
    assert found.__module__ == f"vaejax.{vaejax._HOMES[name]}"
    assert inspect.getdoc(found)
    assert not found.__doc__.startswith(f"{name}(")  # what dataclasses and NamedTuples are given where nothing was written


def test_the_lists_of_public_names_agree():
    assert sorted(vaejax.__all__) == sorted(vaejax._HOMES)
    assert len(set(vaejax.__all__)) == len(vaejax.__all__)
    assert set(vaejax.__all__) <= set(dir(vaejax))
    tree = ast.parse(Path(vaejax.__file__).read_text(encoding="utf-8"))
    (checked,) = [node for node in tree.body if isinstance(node, ast.If)]
    typed = {alias.name: node.module for node in checked.body for alias in node.names}
    assert typed == {name: f"vaejax.{home}" for name, home in vaejax._HOMES.items()}


def test_an_unknown_name_is_refused():
    with pytest.raises(AttributeError, match="'vaejax' has no attribute 'nothing'"):
        _ = vaejax.nothing
    assert not hasattr(vaejax, "_nothing")


def test_the_version_is_stated_once_over():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert vaejax.__version__ == project["version"]
    assert importlib.metadata.version("vaejax") == project["version"]


def test_types_are_shipped():
    assert importlib.resources.files("vaejax").joinpath("py.typed").is_file()


# --- every public function


def _public() -> Iterator[tuple[str, ast.FunctionDef | ast.ClassDef]]:
    """Dotted name and definition of every public function, class, and method of a public class."""
    for module in _modules():
        path = ROOT.joinpath(*module.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        pending = [(module, node) for node in ast.parse(path.read_text(encoding="utf-8")).body]
        while pending:
            prefix, node = pending.pop()
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not re.match("_(?!_)", node.name):
                yield f"{prefix}.{node.name}", node
                if isinstance(node, ast.ClassDef):
                    pending += [(f"{prefix}.{node.name}", child) for child in node.body]


PUBLIC = dict(_public())


def test_public_names_are_walked():
    assert {"vaejax.models.families.build", "vaejax.journal.Journal.write", "vaejax.datasets.load"} <= PUBLIC.keys()
    assert len(PUBLIC) > 100


def test_everything_public_has_a_docstring():
    spared = ("__dir__",)
    bare = [name for name, node in PUBLIC.items() if not ast.get_docstring(node) and node.name not in spared]
    assert bare == []


def test_every_public_function_has_type_hints():
    bare = []
    for name, node in PUBLIC.items():
        if isinstance(node, ast.ClassDef):
            continue
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
        hinted = [argument.annotation for argument in arguments if argument and argument.arg not in ("self", "cls")]
        if node.returns is None or not all(hinted):
            bare.append(name)
    assert bare == []


# --- README


def test_the_example_of_the_readme_runs(tmp_path):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    examples = [block for block in blocks if "import vaejax" in block]
    if not examples:
        pytest.skip("README.md has no example with `import vaejax` yet")
    _run(examples[0], tmp_path)
