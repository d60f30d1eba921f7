"""A configuration for images that were inspected: conservative, and every choice said with the numbers that it stands on."""

import dataclasses
import json
import math
import os
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from vaejax import models, training
from vaejax.batches import batch_of
from vaejax.config import Config, DataConfig, from_dict
from vaejax.errors import DataError

LARGEST = {"cpu": 64, "gpu": 128, "tpu": 128}
"""The longest side, pixels, of suggested images."""

STEPS_SHARE, EVALUATION_SHARE = 0.75, 0.15
"""Of the time: for training steps, and for importance sampling; the rest is for validation, checkpoints and the report."""

DECODING = 0.25
"""What decoding an image costs, of its share of a training step."""

EPOCHS, EPOCHS_OF_SLICES, LEAST = 100, 10, 200
"""Passes over the images at most, since more would learn them by heart: soon where they are slices of few patients (of 88
patients' hippocampus, the validation loss rose after nine passes); and steps at least."""

TIMED = 5
"""Steps whose median duration counts, after two that compile."""


class Choice(NamedTuple):
    """A field by its dotted name, its value, and why."""

    field: str
    value: Any
    why: str


def suggest(facts: dict[str, Any], data: DataConfig, minutes: float) -> list[Choice]:
    """The fields to set, for `minutes` on this machine; a few training steps are timed.

    Args:
        facts: of an inspection.
        data: the source; fields of it that differ from their defaults stay as they are.
        minutes: from the start of the training to its report.

    Raises:
        DataError: the images cannot be brought to one kind, or are too few to be split.
    """
    _require_one_kind(facts)
    asked = _asked(data, facts)
    given = {choice.field for choice in asked}
    found = [
        choice for choice in _of_images(facts, data) + _of_model(facts, data) + _of_changes(facts) if choice.field not in given
    ]
    return asked + found + _of_time(facts, asked + found, minutes)


def configuration(choices: list[Choice]) -> Config:
    """The configuration that choices make.

    Raises:
        ConfigError: they contradict one another.
    """
    values: dict[str, Any] = {}
    for field, value, _ in choices:
        section, name = field.split(".")
        values.setdefault(section, {})[name] = value
    return from_dict(values)


def text(choices: list[Choice], facts: dict[str, Any]) -> str:
    """A configuration file."""
    lines = [
        f'"""Suggested by `vaejax inspect` for {facts["images"]:,} images: a start, to be looked at and changed.',
        "",
        "    python train.py --config=config.py --workdir=runs/first",
        '"""',
        "",
        "from ml_collections import ConfigDict",
        "",
        "from vaejax.config import default_config",
        "",
        "",
        "def get_config() -> ConfigDict:",
        '    """The defaults, with what the images ask for."""',
        "    config = default_config()",
    ]
    for field, value, why in choices:
        literal = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
        lines += [f"    # {why}"] * bool(why) + [f"    config.{field} = {literal}"]
    return "\n".join([*lines, "    return config", ""])


def _require_one_kind(facts: dict[str, Any]) -> None:
    if facts["problem"]:
        raise DataError(f"no configuration: {facts['problem']}")
    if len(facts["dtypes"]) > 1:
        raise DataError(f"no configuration: images of several depths ({', '.join(facts['dtypes'])}). Bring them to one.")
    if len(facts["channels"]) > 1 and not {"1", "3"} >= set(facts["channels"]):
        raise DataError(f"no configuration: images of {' and '.join(facts['channels'])} channels. Bring them to one number.")


def _asked(data: DataConfig, facts: dict[str, Any]) -> list[Choice]:
    """The source, and what else of the data was asked for."""
    choices = [Choice("data.name", data.name, f"found: {facts['why']}")]
    for field in dataclasses.fields(data):
        value = getattr(data, field.name)
        if field.name == "path" and value is not None:
            choices.append(Choice("data.path", str(Path(value).resolve()), "what was inspected"))
        elif field.name not in ("name", "path") and value != field.default:
            choices.append(Choice(f"data.{field.name}", value, "as asked"))
    return choices


def _of_images(facts: dict[str, Any], data: DataConfig) -> list[Choice]:
    """Size, channels, splits."""
    choices = [Choice("data.image_size", *_size(facts["sizes"]))]
    if len(facts["sizes"]) > 1:
        choices.append(Choice("data.resize", "pad", "nothing is cut away and proportions stay; what is left over is black"))
    found = max(facts["channels"], key=lambda number: facts["channels"][number])
    if facts["grey"] and "3" in facts["channels"]:
        choices.append(Choice("data.channels", 1, "all channels of an image are equal: grey images stored in colour"))
    elif len(facts["channels"]) > 1:
        choices.append(Choice("data.channels", 3, f"{facts['channels'][found]:,} images have {found}, others differ"))
    else:
        choices.append(Choice("data.channels", int(found), "as all images have"))
    if facts["unreadable"]:
        choices.append(Choice("data.on_error", "skip", f"{facts['unreadable']:,} are unreadable; a run lists them"))
    if data.name == "volumes" and facts["empty"] > facts["images"] / 100:
        why = f"{facts['empty']:,} of {facts['images']:,} slices have less content"
        choices.append(Choice("data.slice_content", 0.05, why))
    if facts["validation_fraction"]:
        sizes = ", ".join(
            f"{split} {part['images']:,}" + (f" of {part['patients']} patients" if part["patients"] is not None else "")
            for split, part in facts["splits"].items()
        )
        choices.append(Choice("data.validation_fraction", facts["validation_fraction"], f"splits: {sizes}"))
    return choices


def _size(sizes: list[list[int]]) -> tuple[tuple[int, int], str]:
    """Near the median; the longer side at most as this platform can learn from in minutes."""
    largest = LARGEST.get(jax.default_backend(), 64)
    height, width = (_median([(size[axis], size[-1]) for size in sizes]) for axis in (0, 1))
    seen = f"the median is {height} x {width}" if len(sizes) > 1 else f"all images have {height} x {width}"
    if len(sizes) == 1 and max(height, width) <= largest and height % 4 == width % 4 == 0:
        return (height, width), seen
    scale = min(1.0, largest / max(height, width))
    taken = tuple(min(max(4 * round(side * scale / 4), 8), largest) for side in (height, width))
    less = f", and here at most {largest}: larger ones take long" if scale < 1 else ""
    return (taken[0], taken[1]), f"{seen}; the nearest multiples of 4, which can be halved twice{less}"


def _median(counted: list[tuple[int, int]]) -> int:
    values, counts = np.array(sorted(counted)).T
    return int(values[np.searchsorted(counts.cumsum(), counts.sum() / 2)])


def _of_model(facts: dict[str, Any], data: DataConfig) -> list[Choice]:
    """Likelihood, latents, network."""
    n, side = _training_images(facts), min(data.image_size or _size(facts["sizes"])[0])
    dtype, halvings = next(iter(facts["dtypes"])), max(round(math.log2(side / 8)), 1)
    if facts["binary"]:
        choices = [
            Choice("data.binarization", "dynamic", "all pixels are black or white; what scaling makes grey is drawn anew"),
            Choice("model.likelihood", "bernoulli", "for images of 0 and 1"),
        ]
    elif facts["on_bytes"]:
        choices = [
            Choice("model.likelihood", "discretized_logistic", f"{dtype} images on a grid of 256 grey levels"),
            Choice("model.levels", 256, ""),
            Choice("model.scale", "pixel", "edges are less certain than flat parts"),
        ]
    else:
        choices = [
            Choice("model.likelihood", "gaussian", f"{dtype} images off the grid of 256 grey levels; its scale is learned")
        ]
    latents = min(max(2 ** int(math.log2(max(math.sqrt(n) / 2, 1))), 8), 64)
    features = (32, *[64] * (halvings - 1))
    return [
        *choices,
        Choice("model.latent_size", latents, f"a power of two near half the root of {n:,} training images, from 8 to 64"),
        Choice("model.network", "cnn", f"halves the image until its shorter side, {side}, is near 8"),
        Choice("model.features", features, ""),
    ]


def _training_images(facts: dict[str, Any]) -> int:
    """Those left after what is mostly empty is left out."""
    empty = facts["empty"] if facts["source"] == "volumes" and facts["empty"] > facts["images"] / 100 else 0
    return max(round(facts["splits"]["train"]["images"] * (1 - empty / facts["images"])), 1)


def _of_changes(facts: dict[str, Any]) -> list[Choice]:
    """Augmentation."""
    n = _training_images(facts)
    if n >= 10_000:
        return []
    why = f"{n:,} training images are few: small changes that anatomy allows; no mirroring, since sides differ"
    choices = [Choice("augment.rotate", 5.0, why), Choice("augment.zoom", 0.05, "")]
    return choices if facts["binary"] else [*choices, Choice("augment.brightness", 0.05, "scanners and exposures differ")]


def _of_time(facts: dict[str, Any], choices: list[Choice], minutes: float) -> list[Choice]:
    """Batch, steps, evaluation: what fits in the time, as measured."""
    n, devices = _training_images(facts), jax.device_count()
    taken = {choice.field: choice.value for choice in choices}
    batch = taken.get("data.batch_size") or _batch_size(n, devices)
    channels = taken["data.channels"]
    config = configuration([*choices, Choice("data.batch_size", batch, "")])
    seconds = seconds_a_step(config, (*taken["data.image_size"], channels))
    passes = EPOCHS_OF_SLICES if _are_slices(facts["splits"]["train"]) else EPOCHS
    fitting, most = int(60 * minutes * STEPS_SHARE / seconds), max(passes * n // batch, LEAST)
    steps = max(_rounded(min(fitting, most)), 10)
    where = f"{os.cpu_count()} cores" if jax.default_backend() == "cpu" else f"{devices} x {jax.devices()[0].device_kind}"
    limit = "" if fitting <= most else f"; more than {passes} passes over the images would learn them by heart"
    why = (
        f"a step took {1000 * seconds:.0f} ms here ({where}): {fitting:,} take {STEPS_SHARE:.0%} of {minutes:g} minutes{limit}"
    )
    test = facts["splits"]["test"]["images"]
    samples = int(60 * minutes * EVALUATION_SHARE / (seconds / batch * DECODING * max(test, 1)))
    samples = min(max(samples, 10), 100)
    told = f"importance samples of {test:,} test images, about {samples * test * DECODING * seconds / batch:.0f} s"
    timed = [] if "data.batch_size" in taken else [Choice("data.batch_size", batch, f"of {n:,} training images")]
    return [
        *timed,
        Choice("optimizer.warmup_steps", min(200, steps // 10), "a tenth of the steps, at most 200"),
        Choice("training.steps", steps, why),
        Choice("training.checkpoint_every", max(steps // 4, 1), "four checkpoints"),
        Choice("training.log_every", max(steps // 50, 1), "fifty points a curve"),
        Choice("evaluation.samples", samples, told),
    ]


def _are_slices(train: dict[str, Any]) -> bool:
    """Whether images are few patients' many, which are alike."""
    return bool(train["patients"]) and train["images"] >= 5 * train["patients"]


def _batch_size(n: int, devices: int) -> int:
    """A power of two, so that an epoch has ten batches or more, and the devices share it."""
    largest = 128 if n >= 10_000 else 64
    batch = min(max(2 ** int(math.log2(max(n / 10, 1))), 8), largest, n)
    return max(batch // devices, 1) * devices


def _rounded(number: int) -> int:
    """Down to two digits."""
    unit = 10 ** max(len(str(number)) - 2, 0)
    return number // unit * unit


def seconds_a_step(config: Config, image_shape: tuple[int, int, int]) -> float:
    """The median duration of a training step of random images, compiled before."""
    model = models.build(config.model, image_shape)
    objective = training.objective_of(model, config)
    state = training.init(model, objective, jax.random.key(0))
    step = training.train_step(objective, config.training.ema_decay)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 2, (config.data.batch_size, *image_shape)).astype(np.float32)
    batch, noise, seconds = training.place(batch_of(images)), jax.random.key(1), []
    for _ in range(TIMED + 2):
        since = time.perf_counter()
        state, report = step(state, batch, noise)
        jax.block_until_ready(report.loss)
        seconds.append(time.perf_counter() - since)
    return statistics.median(seconds[2:])
