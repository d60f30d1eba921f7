"""A configuration is right, or refused by the dotted name of its field; the cases come from the declared fields themselves."""

import ast
import dataclasses
import json
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from vaejax import config as configuration
from vaejax.config import Config, from_dict, to_dict
from vaejax.config_file import load
from vaejax.errors import ConfigError

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))

PARTNERS = {
    ("objective.parts", 10_000): {"data.batch_size": 10_000},
    ("data.binarization", "static"): {"model.likelihood": "bernoulli"},
    ("data.binarization", "dynamic"): {"model.likelihood": "bernoulli"},
    ("model.likelihood", "bernoulli"): {"data.binarization": "dynamic"},
    ("objective.gradient", "doubly_reparameterized"): {"objective.name": "iwae"},
    ("objective.name", "vq"): {"model.family": "vq"},
    ("model.family", "vq"): {"objective.name": "vq"},
    ("model.family", "hierarchical"): {"model.network": "resnet"},
    ("model.code_prior", "transformer"): {"model.family": "vq", "objective.name": "vq"},
    ("transfer.freeze", ("decoder",)): {"transfer.source": "somewhere"},
    ("model.regions", 255): {"objective.name": "segmentation"},
    ("objective.name", "segmentation"): {"model.regions": 2},
    ("optimizer.weight_decay", 1.0): {"optimizer.name": "adamw"},
    ("optimizer.warmup_steps", 999_999_999): {"training.steps": 1_000_000_000},
}
"""What else must be set for a value that is allowed only beside it."""

VOLUMES = {"data.name": "volumes", "data.path": "somewhere"}
"""What must be set for a field of volumes."""


class Names(tuple):
    """Stands for the kind of a field that is a list of names."""


class Reals(tuple):
    """Stands for the kind of a field that is a list of numbers."""


class Leaf(NamedTuple):
    """A declared field that is no section."""

    name: str
    kind: type
    optional: bool
    limits: Mapping[str, Any]


def _leaves() -> Iterator[Leaf]:
    for prefix, section in [("", Config), *((f"{f.name}.", type(f.default)) for f in dataclasses.fields(Config))]:
        for field in dataclasses.fields(section) if dataclasses.is_dataclass(section) else ():
            if dataclasses.is_dataclass(field.default):
                continue
            hint = typing.get_type_hints(section)[field.name]
            optional = isinstance(hint, types.UnionType)
            kind = typing.get_args(hint)[0] if optional else hint
            kind = {tuple[str, ...]: Names, tuple[float, ...]: Reals}.get(kind) or typing.get_origin(kind) or kind
            yield Leaf(prefix + field.name, kind, optional, field.metadata)


LEAVES = list(_leaves())

WRONG_TYPES: dict[type, list[Any]] = {
    int: [1.5, 2.0, "3", True, [3], {}, 1j],
    float: ["0.1", True, [0.1], {}, 1j],
    bool: [1, 0.0, "true", [True]],
    str: [3, 0.5, True, ["adam"], {}],
    Names: [28, "encoder", (1,), {}, math.nan],
    tuple: [28, 2.5, "28", [], (), (28.0, 28.0), (True, True), ("28", "28"), {}],
    Reals: [28, 2.5, "28", [], (), (True, True), ("28", "28"), {}],
}


def _outside(leaf: Leaf) -> list[Any]:
    """The nearest values beyond each limit, and those that are no number at all."""
    step = (lambda limit, towards: math.nextafter(limit, towards)) if leaf.kind is float else _next_int
    low, high, above, below = (leaf.limits[name] for name in ("low", "high", "above", "below"))
    beyond = [step(low, -math.inf)] if low is not None else []
    beyond += [step(high, math.inf)] if high is not None else []
    beyond += [limit for limit in (above, below) if limit is not None]
    if leaf.kind is int:
        beyond += [-(10**400), 10**400]
    return [(8, value) for value in beyond] if leaf.kind in (tuple, Reals) else beyond


def _next_int(limit: float, towards: float) -> int:
    return int(limit) + (1 if towards > 0 else -1)


def _refused() -> Iterator[Any]:
    for leaf in LEAVES:
        values = _outside(leaf) + WRONG_TYPES[leaf.kind] + ([] if leaf.optional else [None])
        if leaf.kind in (int, float, tuple, Reals):
            values += [math.nan, math.inf, -math.inf]
        if leaf.limits["choices"]:
            wrong = ["", "unknown", leaf.limits["choices"][0].upper()]
            values += [(leaf.limits["choices"][0], name) for name in wrong] if leaf.kind is Names else wrong
        for value in values:
            yield pytest.param(leaf, value, id=f"{leaf.name}={value!r:.20}")


def _accepted() -> Iterator[Any]:
    for leaf in LEAVES:
        low, high, above, below = (leaf.limits[name] for name in ("low", "high", "above", "below"))
        values: list[Any] = [limit for limit in (low, high) if limit is not None]
        values += [math.nextafter(above, math.inf)] if above is not None else []
        values += [math.nextafter(below, -math.inf)] if below is not None else []
        if leaf.name == "optimizer.warmup_steps":  # fewer than training.steps, which has the same limit
            values[-1] -= 1
        if leaf.kind in (tuple, Reals):
            values = [(value, value) for value in values]
        if leaf.name == "data.window":  # the second is a width, which is never negative
            values = [(value, 1) for value, _ in values]
        if leaf.name == "data.slice_range":  # the first is below the last
            values = [(low, high)]
        choices = list(leaf.limits["choices"] or ())
        if leaf.kind is Names:
            choices = [(), *((choice,) for choice in choices if leaf.name != "transfer.freeze" or choice == "decoder")]
        values += choices + ([True, False] if leaf.kind is bool else [])
        values += [None] if leaf.optional else []
        for value in values:
            yield pytest.param(leaf, value, id=f"{leaf.name}={value!r}")


def _values(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names as nested sections."""
    values: dict[str, Any] = {}
    for name, value in settings.items():
        section, _, last = name.rpartition(".")
        (values.setdefault(section, {}) if section else values)[last] = value
    return values


def _get(config: Config, name: str) -> Any:
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value


def _numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?", text)]


# --- single fields


def test_every_section_is_walked():
    assert len(LEAVES) > 40
    assert {leaf.name.rpartition(".")[0] for leaf in LEAVES} == {
        "", "data", "augment", "model", "objective", "transfer", "optimizer", "training", "evaluation", "anomaly",
    }  # fmt: skip


def test_every_number_is_limited_on_both_sides():
    for leaf in LEAVES:
        if leaf.kind in (int, float, tuple, Reals):
            sides = [leaf.limits["low"] is not None or leaf.limits["above"] is not None]
            sides += [leaf.limits["high"] is not None or leaf.limits["below"] is not None]
            assert all(sides), leaf.name


@pytest.mark.parametrize(("leaf", "value"), list(_refused()))
def test_a_field_refuses(leaf, value):
    with pytest.raises(ConfigError) as error:
        from_dict(_values({leaf.name: value}))
    message = str(error.value)
    assert message.startswith(f"{leaf.name}={value!r}:")
    told = message.removeprefix(f"{leaf.name}={value!r}:")
    assert "\n" not in message
    assert all(choice in told for choice in leaf.limits["choices"] or ())
    for side in ("low", "high", "above", "below"):
        if leaf.limits[side] is not None:
            assert any(math.isclose(number, leaf.limits[side], rel_tol=1e-5) for number in _numbers(told)), side
    if leaf.kind is bool:
        assert "true or false" in told


@pytest.mark.parametrize(("leaf", "value"), list(_accepted()))
def test_a_field_accepts_its_limits(leaf, value):
    partners = PARTNERS.get((leaf.name, value), {}) | (VOLUMES if leaf.limits["meaning"].startswith("volumes") else {})
    found = _get(from_dict(_values({leaf.name: value} | partners)), leaf.name)
    assert found == value
    assert found is None or type(found) is (tuple if leaf.kind in (Names, Reals) else leaf.kind)


@pytest.mark.parametrize(
    ("name", "value"),
    [("slice_axis", 0), ("slice_content", 0.1), ("window", (40, 400)), ("slice_range", (0.1, 0.9)), ("spacing", (1.0, 1.0)),
     ("block", 3), ("normalize", "dataset")],
)  # fmt: skip
def test_fields_of_volumes_are_refused_where_there_are_none(name, value):
    for other in ({}, {"data.name": "image_folder", "data.path": "p"}, {"data.name": "arrays", "data.path": "p"}):
        with pytest.raises(ConfigError, match=rf"data\.{name}=.*: is of volumes .*, and data\.name is .* Leave it out"):
            from_dict(_values({f"data.{name}": value} | other))
    assert getattr(from_dict(_values({f"data.{name}": value} | VOLUMES)).data, name) == value
    manifest = VOLUMES | {"data.name": "manifest"}  # its table says what there is
    assert getattr(from_dict(_values({f"data.{name}": value} | manifest)).data, name) == value


def test_every_field_of_volumes_is_known_as_one():
    told = {leaf.name.partition(".")[2] for leaf in LEAVES if leaf.limits["meaning"].startswith("volumes")}
    assert told == set(configuration._OF_VOLUMES)


def test_a_whole_number_serves_where_a_fraction_may_stand():
    rate = from_dict({"optimizer": {"learning_rate": 1}}).optimizer.learning_rate
    assert (rate, type(rate)) == (1.0, float)


# --- unknown names


@pytest.mark.parametrize(
    ("values", "start", "hint"),
    [
        ({"sede": 1}, "sede: ", "seed"),
        ({"optimiser": {}}, "optimiser: ", "optimizer"),
        ({"optimizer": {"learning_rat": 1e-3}}, "optimizer.learning_rat: ", "optimizer.learning_rate"),
        ({"training": {"qqq": 1}}, "training.qqq: ", "checkpoint_every"),
        ({"qqq": {"qqq": 1}}, "qqq: ", "objective"),
        ({"data": {1: 2}}, "data.1: ", "batch_size"),
    ],
)
def test_an_unknown_name_is_refused_with_a_hint(values, start, hint):
    with pytest.raises(ConfigError) as error:
        from_dict(values)
    assert str(error.value).startswith(start)
    assert hint in str(error.value)


@pytest.mark.parametrize("value", [5, None, "data", [1]])
def test_a_section_is_no_value(value):
    with pytest.raises(ConfigError, match=re.escape(f"data={value!r}: expected a section")):
        from_dict({"data": value})


# --- fields against one another


@pytest.mark.parametrize(
    ("settings", "start", "named"),
    [
        ({"model.likelihood": "bernoulli"}, "model.likelihood='bernoulli'", "data.binarization"),
        ({"data.binarization": "dynamic"}, "model.likelihood='gaussian'", "data.binarization='dynamic'"),
        (
            {"data.binarization": "static", "model.likelihood": "discretized_logistic"},
            "model.likelihood='discretized_logistic'",
            "data.binarization='static'",
        ),
        (
            {"data.binarization": "static", "model.likelihood": "bernoulli", "augment.rotate": 5.0},
            "data.binarization='static'",
            "augment",
        ),
        ({"optimizer.warmup_steps": 100, "training.steps": 100}, "optimizer.warmup_steps=100", "training.steps=100"),
        ({"optimizer.weight_decay": 0.1}, "optimizer.weight_decay=0.1", "adamw"),
        ({"optimizer.weight_decay": 0.1, "optimizer.name": "sgd"}, "optimizer.weight_decay=0.1", "'sgd'"),
        ({"data.name": "idx"}, "data.path=None", "'idx'"),
        ({"data.name": "medmnist"}, "data.path=None", "'medmnist'"),
        ({"data.name": "image_folder"}, "data.path=None", "'image_folder'"),
        ({"data.name": "mnist"}, "data.name='mnist'", "mnist5k, idx, medmnist, image_folder"),
        (
            {"model.network": "transformer", "model.patch_size": 5, "data.image_size": (28, 42)},
            "model.patch_size=5",
            "28 x 42. The nearest is model.patch_size=7",
        ),
        ({"model.network": "transformer", "model.norm": "layer"}, "model.norm='layer'", "model.norm='none'"),
        ({"model.network": "mlp", "model.remat": True}, "model.remat=True", "model.remat=False"),
        ({"data.resident": True, "augment.rotate": 5.0}, "data.resident=True contradicts augment", "data.resident=False"),
        ({"model.network": "transformer", "model.width": 10}, "model.width=10", "model.heads=4, such as 8"),
        ({"objective.name": "iwae", "objective.free_bits": 1.0}, "objective.free_bits=1.0", 'objective.name="elbo"'),
        ({"objective.gradient": "doubly_reparameterized"}, "objective.gradient='doubly", 'objective.name="iwae"'),
        ({"objective.parts": 3}, "objective.parts=3", "data.batch_size=128, such as 1"),
        ({"objective.parts": 12}, "objective.parts=12", "such as 4"),
        ({"objective.parts": 2, "objective.free_bits": 1.0}, "objective.parts=2", "whole batch"),
        ({"objective.parts": 2, "objective.name": "vq", "model.family": "vq"}, "objective.parts=2", "'vq' takes a batch whole"),
        ({"objective.name": "vq", "objective.free_bits": 1.0, "model.family": "vq"}, "objective.free_bits=1.0", "'vq'"),
        ({"objective.name": "vae_gan", "objective.samples": 2}, "objective.samples=2", "objective.samples=1"),
        ({"objective.name": "vae_gan", "model.family": "hierarchical", "model.network": "resnet"}, "objective.name", "'elbo'"),
        (
            {"objective.name": "vae_gan", "model.likelihood": "bernoulli", "data.binarization": "dynamic"},
            "objective.name='vae_gan'",
            "model.likelihood='gaussian'",
        ),
        ({"objective.name": "vq"}, "objective.name='vq'", "model.family='vq'"),
        ({"model.family": "vq"}, "objective.name='elbo'", "objective.name='vq'"),
        ({"model.family": "vq", "model.network": "mlp"}, "model.network='mlp'", "cnn or resnet"),
        ({"model.family": "hierarchical"}, "model.network='cnn'", "model.network='resnet'"),
        (
            {"model.family": "hierarchical", "model.network": "resnet", "model.prior": "mixture"},
            "model.prior='mixture'",
            "'standard_normal'",
        ),
        (
            {"model.family": "hierarchical", "model.network": "resnet", "model.posterior": "iaf"},
            "model.posterior='iaf'",
            "'gaussian'",
        ),
        ({"model.posterior": "iaf", "model.prior": "vamp"}, "model.prior='vamp'", "model.posterior='iaf'"),
        (
            {"objective.name": "vae_gan", "transfer.source": "somewhere", "transfer.freeze": ("decoder",)},
            "transfer.freeze=('decoder',)",
            "objective.name='elbo'",
        ),
        (
            {
                "model.family": "vq",
                "transfer.source": "somewhere",
                "transfer.freeze": ("encoder", "decoder", "codebook"),
            },
            "objective.name='elbo'",
            "model.code_prior='transformer'",
        ),
        ({"model.code_prior": "transformer"}, "model.code_prior='transformer'", "'uniform'"),
        ({"model.conditional": True, "model.prior": "vamp"}, "model.prior='vamp'", "model.prior='mixture'"),
        ({"model.conditional": True, "model.family": "vq", "objective.name": "vq"}, "model.conditional=True", "'transformer'"),
        (
            {"objective.name": "iwae", "objective.gradient": "doubly_reparameterized", "model.posterior": "iaf"},
            "objective.gradient=",
            "model.posterior='iaf'",
        ),
        (
            {"objective.name": "iwae", "objective.gradient": "doubly_reparameterized", "model.prior": "vamp"},
            "objective.gradient=",
            "model.prior='vamp'",
        ),
        ({"transfer.freeze": ("encoder",)}, "transfer.freeze=('encoder',)", "transfer.source"),
        (
            {"transfer.freeze": ("prior",), "transfer.source": "somewhere"},
            "transfer.freeze=('prior',)",
            "prior would stay random",
        ),
        (
            {
                "model.family": "vq",
                "objective.name": "vq",
                "transfer.source": "somewhere",
                "transfer.freeze": ("codebook",),
            },
            "transfer.freeze=('codebook',)",
            "objective.name='elbo'",
        ),
        ({"data.image_size": (28,)}, "data.image_size=(28,)", "(height, width)"),
        ({"data.image_size": (28, 28, 1)}, "data.image_size=(28, 28, 1)", "(height, width)"),
    ],
)
def test_contradictions_are_refused(settings, start, named):
    with pytest.raises(ConfigError) as error:
        from_dict(_values(settings))
    assert str(error.value).startswith(start)
    assert named in str(error.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer.warmup_steps": 99, "training.steps": 100},
        {"optimizer.weight_decay": 0.1, "optimizer.name": "lion"},
        {"data.binarization": "dynamic", "model.likelihood": "bernoulli", "augment.rotate": 5.0},
        {"data.name": "idx", "data.path": "somewhere"},
        {"data.name": "tfds:mnist"},
        {"model.network": "transformer", "model.patch_size": 7, "data.image_size": (28, 42)},
        {"model.network": "cnn", "model.patch_size": 5, "data.image_size": (28, 42)},
        {"objective.name": "iwae", "objective.samples": 50, "objective.gradient": "doubly_reparameterized"},
        {"objective.name": "iwae", "objective.gradient": "doubly_reparameterized", "model.prior": "mixture"},
        {
            "model.family": "vq",
            "model.code_prior": "transformer",
            "model.conditional": True,
            "transfer.source": "somewhere",
            "transfer.freeze": ("encoder", "decoder", "codebook"),
        },
    ],
)
def test_what_fits_together_is_accepted(settings):
    from_dict(_values(settings))


# --- round trips


def test_json_text_gives_the_same_configuration_back():
    settings = {
        "data.name": "image_folder", "data.path": "über/images", "data.image_size": (32, 48), "model.hidden": (8, 4, 2),
        "augment.flip_horizontal": True, "optimizer.learning_rate": 1 / 3, "seed": 7,
    }  # fmt: skip
    config = from_dict(_values(settings))
    again = from_dict(json.loads(json.dumps(to_dict(config))))
    assert again == config
    assert hash(again) == hash(config)
    assert all(_get(again, name) == value for name, value in settings.items())


def test_nothing_stated_is_the_default():
    assert from_dict({}) == from_dict(configuration.default_config().to_dict()) == Config()


def test_differences_name_the_fields_that_differ():
    old = from_dict({})
    new = from_dict(_values({"seed": 3, "model.hidden": (8,), "data.path": "x"}))
    assert configuration.differences(old, old) == []
    assert configuration.differences(old, new) == ["seed: 0 -> 3", "data.path: None -> 'x'", "model.hidden: [256] -> [8]"]


def test_the_description_names_every_field_with_its_meaning_and_limits():
    lines = configuration.describe().splitlines()
    for leaf in LEAVES:
        (position,) = [number for number, line in enumerate(lines) if line.startswith(f"  {leaf.name}=")]
        assert leaf.limits["meaning"] in lines[position + 1]
        assert all(choice in lines[position + 1] for choice in leaf.limits["choices"] or ())
        for side in ("low", "high", "above", "below"):
            if leaf.limits[side] is not None:
                assert any(math.isclose(number, leaf.limits[side], rel_tol=1e-5) for number in _numbers(lines[position + 1]))


# --- files


def _file(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


PYTHON = "from vaejax.config import default_config\ndef get_config():\n    config = default_config()\n"


def test_a_python_file_states_what_differs(tmp_path):
    path = _file(tmp_path / "a.py", PYTHON + "    config.model.hidden = (8, 4)\n    config.seed = 5\n    return config\n")
    assert load(path) == from_dict({"seed": 5, "model": {"hidden": (8, 4)}})


def test_a_json_file_states_what_differs(tmp_path):
    path = _file(tmp_path / "a.json", '{"seed": 5, "model": {"hidden": [8, 4]}}')
    assert load(path) == load(str(path)) == from_dict({"seed": 5, "model": {"hidden": (8, 4)}})


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.json", '{"seed": 5', "not valid JSON"),
        ("a.json", "[1, 2]", "expected a JSON object, found list"),
        ("a.yaml", "seed: 5", "expected a .py or .json file, found '.yaml'"),
        ("a", "seed: 5", "expected a .py or .json file, found 'no suffix'"),
        ("a.py", "1 / 0", "ZeroDivisionError: division by zero"),
        ("a.py", "def get_config(:", "SyntaxError"),
        ("a.py", "import no_such_module", "no_such_module"),
        ("a.py", "raise ValueError('first\\nsecond')", "ValueError: first second"),
        ("a.py", "x = 1", "get_config"),
        ("a.py", "def get_config():\n    return 3", "to_dict"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, name, text, told):
    path = _file(tmp_path / name, text)
    with pytest.raises(ConfigError) as error:
        load(path)
    assert str(error.value).startswith(f"--config={path}: ")
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"gone\.py: no such file"):
        load(tmp_path / "gone.py")
    with pytest.raises(ConfigError, match="no such file"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("config.optimizer.learning_rate = float('nan')", "optimizer.learning_rate=nan: expected 0 < value <= 10"),
        ("config.optimizer.lr = 0.1", "optimizer.lr: no such field"),
        ("config.training.steps = '9'", "training.steps='9': expected a whole number"),
    ],
)
def test_a_python_file_is_checked_like_all_else(tmp_path, line, told):
    with pytest.raises(ConfigError) as error:
        load(_file(tmp_path / "a.py", f"{PYTHON}    {line}\n    return config\n"))
    assert str(error.value).startswith(told)


def test_json_is_read_and_never_run(tmp_path):
    code = f"import pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).touch()\n{PYTHON}    return config\n"
    with pytest.raises(ConfigError, match="not valid JSON"):
        load(_file(tmp_path / "a.json", code))
    assert not (tmp_path / "ran").exists()
    load(_file(tmp_path / "a.py", code))
    assert (tmp_path / "ran").exists()


# --- overrides


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("data.batch_size=64", "data.batch_size", 64),
        ("optimizer.learning_rate=3e-4", "optimizer.learning_rate", 3e-4),
        ("optimizer.learning_rate=1", "optimizer.learning_rate", 1.0),
        ("model.hidden=(8, 4)", "model.hidden", (8, 4)),
        ("model.hidden=[8]", "model.hidden", (8,)),
        ("model.hidden=8,4", "model.hidden", (8, 4)),
        ("model.activation=tanh", "model.activation", "tanh"),
        ("model.activation='tanh'", "model.activation", "tanh"),
        ("data.path=a=b/c d", "data.path", "a=b/c d"),
        ("augment.flip_vertical=true", "augment.flip_vertical", True),
        ("augment.flip_vertical=True", "augment.flip_vertical", True),
        ("augment.flip_vertical=FALSE", "augment.flip_vertical", False),
        ("data.channels=none", "data.channels", None),
        ("data.binarization=none", "data.binarization", "none"),
        ("model.norm='none'", "model.norm", "none"),
        ("data.channels=None", "data.channels", None),
        ("data.channels=null", "data.channels", None),
        ("seed=9", "seed", 9),
    ],
)
def test_an_override_in_one_word_or_two(text, name, value):
    one = load(None, [f"--config.{text}"])
    two = load(None, [f"--config.{text.partition('=')[0]}", text.partition("=")[2]])
    assert one == two
    assert _get(one, name) == value


def test_overrides_come_after_the_file_and_the_last_one_holds(tmp_path):
    path = _file(tmp_path / "a.json", '{"seed": 1, "training": {"steps": 10}}')
    config = load(path, ["--config.seed=2", "--config.optimizer.warmup_steps", "3", "--config.seed=4"])
    assert config == from_dict({"seed": 4, "training": {"steps": 10}, "optimizer": {"warmup_steps": 3}})


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--config.optimizer.learning_rate=nan"], "optimizer.learning_rate=nan: expected 0 < value <= 10."),
        (["--config.optimizer.learning_rate", "nan"], "optimizer.learning_rate=nan: expected 0 < value <= 10."),
        (["--config.augment.rotate=-inf"], "augment.rotate=-inf: expected 0 <= value <= 180."),
        (["--config.augment.flip_vertical=-true"], "augment.flip_vertical='-true': expected true or false"),
        (["--config.augment.flip_vertical=yes"], "augment.flip_vertical='yes': expected true or false"),
        (["--config.seed={[]: 1}"], "seed='{[]: 1}': expected a whole number"),
        (["--config.seed=" + "9" * 400], "seed=999"),
        (["--config.data={1: 2}"], "data.1: no such field"),
        (["--config.data.batch_size.x=1"], "--config.data.batch_size.x: batch_size is a value, not a section."),
        (["--config.seed.x=1"], "--config.seed.x: seed is a value, not a section."),
        (["--config.data=5"], "data=5: expected a section"),
        (["--config.data.bath_size=5"], "data.bath_size: no such field. Did you mean data.batch_size?"),
        (["--config.seed"], "--config.seed: expected a value"),
        (["--config."], "--config.: unknown argument"),
        (["--learning_rate=0.1"], "--learning_rate: unknown argument. Fields are set as --config.section.field=value."),
        (["stray"], "stray: unknown argument"),
    ],
)
def test_an_override_that_cannot_be_used_is_named(arguments, told):
    with pytest.raises(ConfigError) as error:
        load(None, arguments)
    assert str(error.value).startswith(told)


# --- names that other rooms give a meaning


def _choices(name: str) -> tuple[str, ...]:
    (leaf,) = [leaf for leaf in LEAVES if leaf.name == name]
    return tuple(leaf.limits["choices"])


def test_activations_are_those_of_the_networks():
    from vaejax.networks.activations import ACTIVATIONS

    assert tuple(ACTIVATIONS) == configuration.ACTIVATIONS == _choices("model.activation")


def test_optimizers_and_schedules_are_those_of_the_optimizers():
    from vaejax import optimizers

    assert tuple(optimizers._RULES) == _choices("optimizer.name")
    for name in _choices("optimizer.schedule"):
        optimizers.schedule(dataclasses.replace(Config().optimizer, schedule=name), steps=10)


def test_sources_are_those_of_the_data_sets():
    from vaejax.datasets import SOURCES

    assert set(SOURCES) == {*configuration._SOURCES, "tfds"}


# --- configs/


def test_the_quickstart_is_what_no_file_means():
    assert load(None) == load(CONFIGS[0].with_name("quickstart.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_shipped_configuration_loads_and_states_its_command(path):
    load(path)
    head = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    assert re.search(rf"^ *python train\.py .*--config=configs/{re.escape(path.name)}( |$)", head, re.MULTILINE)


def test_a_section_made_by_hand_is_checked_too():
    with pytest.raises(ConfigError, match=r"^model\.latent_size=-1: expected 1 <= value <= 65536"):
        configuration.ModelConfig(latent_size=-1)
    assert type(configuration.OptimizerConfig(learning_rate=1).learning_rate) is float


def test_a_huge_whole_number_is_out_of_range_of_a_float():
    with pytest.raises(ConfigError, match=r"^optimizer\.learning_rate=1000"):
        configuration.OptimizerConfig(learning_rate=10**400)
