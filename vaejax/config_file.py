"""Where a configuration comes from: a `.py` or `.json` file, and `--config.section.field=value` on the command line."""

import ast
import dataclasses
import importlib.util
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from etils import epath

from vaejax import storage
from vaejax.config import Config, choices, from_dict
from vaejax.errors import ConfigError


def load(path: epath.PathLike | None, overrides: Sequence[str] = ()) -> Config:
    """Reads a configuration and applies `--config.section.field=value` overrides.

    Args:
        path: a `.py` file with `get_config()`, a `.json` file such as a run's `config.json`, or None for the
            quickstart; it may lie in a cloud store.
        overrides: `--config.data.batch_size=64`, or the same in two words; values are Python literals or plain strings.

    Raises:
        ConfigError: for a file that cannot be used, or a field that cannot have its value.
    """
    found = storage.path(_quickstart() if path is None else path)
    if not found.is_file():
        raise ConfigError(f"--config={found}: no such file. Expected a .py file with get_config(), or a .json file.")
    with storage.reading(found) as file:
        values = _read_file(file)
    for name, value in _split_overrides(overrides):
        section = values
        *parents, last = name.split(".")
        for parent in parents:
            section = section.setdefault(parent, {})
            if not isinstance(section, dict):
                raise ConfigError(f"--config.{name}: {parent} is a value, not a section.")
        section[last] = value
    return from_dict(values)


def holds_configuration(path: Path) -> bool:
    """Whether a file is a configuration rather than images or a list of them: a .py file, or JSON of known sections."""
    if path.suffix != ".json" or not path.is_file():
        return path.suffix == ".py"
    sections = {field.name for field in dataclasses.fields(Config)}
    values = _read_json(path)
    return isinstance(values, dict) and bool(values) and set(values) <= sections


def _quickstart() -> Path:
    """The shipped `configs/quickstart.py`: inside of an installed package, beside the package in a checkout."""
    package = Path(__file__).parent
    installed = package / "configs" / "quickstart.py"
    return installed if installed.exists() else package.parent / "configs" / "quickstart.py"


def _read_file(path: Path) -> dict[str, Any]:
    if path.suffix == ".json":
        values = _read_json(path)
        if not isinstance(values, dict):
            raise ConfigError(f"--config={path}: expected a JSON object, found {type(values).__name__}.")
        return values
    if path.suffix != ".py":
        raise ConfigError(f"--config={path}: expected a .py or .json file, found {path.suffix or 'no suffix'!r}.")
    spec = importlib.util.spec_from_file_location("vaejax_config_file", path)
    assert spec is not None  # a .py suffix always has a loader
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return module.get_config().to_dict()
    except ConfigError:
        raise
    except Exception as error:  # whatever the user's own code raises is told as one line
        raise ConfigError(f"--config={path}: {type(error).__name__}: {' '.join(str(error).split())}") from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"--config={path}: not valid JSON: {error}.") from error


def _split_overrides(arguments: Sequence[str]) -> list[tuple[str, Any]]:
    """`--config.a.b=1` or `--config.a.b 1` as pairs of dotted name and value."""
    pairs, remaining = [], list(arguments)
    while remaining:
        flag, equals, text = remaining.pop(0).partition("=")
        if not flag.startswith("--config.") or not flag.removeprefix("--config."):
            raise ConfigError(f"{flag}: unknown argument. Fields are set as --config.section.field=value.")
        if not equals:
            if not remaining:
                raise ConfigError(f"{flag}: expected a value, as {flag}=VALUE.")
            text = remaining.pop(0)
        name = flag.removeprefix("--config.")
        pairs.append((name, text if text in choices(name) else _literal(text)))  # "none" may be a word
    return pairs


def _literal(text: str) -> Any:
    words = {"true": True, "false": False, "none": None, "null": None, "nan": math.nan, "inf": math.inf, "-inf": -math.inf}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # as literal_eval's documentation lists
        return text
