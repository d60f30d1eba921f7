"""Anomalies on real images: ranking, calibration, planted lesions; vaejax's one fixed score beside PCA, and beside peers.

    python benchmarks/anomaly.py mednist FOLDER        # six classes, each in turn the normal one
    python benchmarks/anomaly.py xray FILE.npz         # Shenzhen: normal -> tuberculosis, five splits
    python benchmarks/anomaly.py lesions FOLDER FILE   # hippocampus volumes and X-rays, pixels
    python benchmarks/anomaly.py stream                # images a second and peak memory of scores with maps

Every model is trained on normal images alone, for a fixed number of steps; the weights kept are those of the lowest validation
loss, on other normal images, among every hundredth step. Thresholds come from a third set. The score was fixed before: the
likelihood. Results are printed as JSON lines; whatever is random is named by its seed.
"""

import argparse
import functools
import json
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from vaejax import batch_of, batches, calibration, models, resampling, training
from vaejax.applications import anomaly
from vaejax.config import AnomalyConfig, Config, from_dict
from vaejax.keys import of_examples, stream

CLASSES = ("AbdomenCT", "BreastMRI", "CXR", "ChestCT", "Hand", "HeadCT")
SETTINGS = AnomalyConfig(samples=8)
ROWS = 32


class Fitted(NamedTuple):
    """A model and its weights."""

    model: models.Model
    params: Any
    loss: float
    """Lowest validation loss, nats an image."""


def configuration(latents: int = 32, **sections: dict[str, Any]) -> Config:
    """One for all data sets: two dense layers a side, grey levels, a scale for every pixel."""
    model = {
        "network": "mlp",
        "hidden": (256,),
        "latent_size": latents,
        "likelihood": "discretized_logistic",
        "scale": "pixel",
    }
    defaults = {"model": model, "optimizer": {"warmup_steps": 100}, "training": {"steps": 1_000, "ema_decay": 0.99}}
    return from_dict({name: defaults.get(name, {}) | sections.get(name, {}) for name in defaults | sections})


def fit(config: Config, train: Float[np.ndarray, "n h w c"], val: Float[np.ndarray, "m h w c"], seed: int = 0) -> Fitted:
    """Trains on arrays."""
    model = models.build(config.model, train.shape[1:])
    objective = training.objective_of(model, config)
    key = jax.random.key(seed)
    state = training.init(model, objective, stream(key, "init"))
    step, look = training.train_step(objective, config.training.ema_decay), training.eval_step(model, config.objective)
    random, noise, best = np.random.default_rng(seed), stream(key, "noise"), (math.inf, None)
    train, val = (batches.quantize(images, model.levels) for images in (train, val))
    size = min(config.data.batch_size, len(train))
    for number in range(1, config.training.steps + 1):
        rows = random.choice(len(train), size, replace=False)
        state, _ = step(state, training.place(batch_of(train[rows], rows)), noise)
        if number % 100 == 0 or number == config.training.steps:
            loss = float(np.mean(look(state.ema, batch_of(val), jax.random.key(0))["loss"]))
            if loss < best[0]:
                best = (loss, jax.tree.map(np.asarray, state.ema))
    return Fitted(model, best[1], best[0])


def scores(
    fitted: Fitted, images: Float[np.ndarray, "n h w c"], name: str, settings: AnomalyConfig = SETTINGS
) -> anomaly.Scores:
    """Of arrays, a few at a time."""
    look = jax.jit(lambda x, index: anomaly.score(fitted.model, fitted.params, x, of_examples(KEY, index), name, settings))
    images, parts = batches.quantize(images, fitted.model.levels), []
    for start in range(0, len(images), ROWS):
        index = np.minimum(np.arange(start, start + ROWS), len(images) - 1)
        found = look(images[index], index)
        parts.append(jax.tree.map(lambda leaf: np.asarray(leaf)[: len(images) - start], found))  # noqa: B023  # used at once
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


KEY = jax.random.key(0)


class Floor(NamedTuple):
    """Principal components of the training images."""

    pca: PCA

    def scores(self, images: Float[np.ndarray, "n h w c"]) -> anomaly.Scores:
        """Squared reconstruction errors."""
        flat = images.reshape(len(images), -1)
        restored = np.clip(self.pca.inverse_transform(self.pca.transform(flat)), 0.0, 1.0)
        errors = ((flat - restored) ** 2).reshape(images.shape).mean(axis=-1)
        return anomaly.Scores(errors.mean(axis=(1, 2)), errors)


def floor(train: Float[np.ndarray, "n h w c"], latents: int) -> Floor:
    """As many components as the model has latents."""
    return Floor(PCA(min(latents, len(train) - 1), random_state=0).fit(train.reshape(len(train), -1)))


def auroc(truth: np.ndarray, values: np.ndarray) -> float:
    return float(roc_auc_score(truth, values)) if truth.any() and not truth.all() else math.nan


def compare(truth: np.ndarray, ours: np.ndarray, others: dict[str, np.ndarray], groups: np.ndarray) -> dict[str, Any]:
    """Our AUROC with its interval, and the paired intervals of ours minus each other's."""

    def difference(other: np.ndarray, rows: Int[np.ndarray, " rows"]) -> float:
        return auroc(truth[rows], ours[rows]) - auroc(truth[rows], other[rows])

    result: dict[str, Any] = {"auroc": auroc(truth, ours)}
    result["interval"] = resampling.interval(lambda rows: auroc(truth[rows], ours[rows]), groups, 500)
    for name, other in others.items():
        interval = resampling.interval(functools.partial(difference, other), groups, 500)
        result[name] = {"auroc": auroc(truth, other), "difference": interval}
    return result


def mednist(folder: Path, side: int) -> dict[str, dict[str, Float[np.ndarray, "n h w 1"]]]:
    """Split -> class -> images."""

    def read(path: Path) -> np.ndarray:
        image = Image.open(path).convert("L")
        return np.float32(image if side == 64 else image.resize((side, side), Image.Resampling.BOX))[..., np.newaxis] / 255

    return {
        split: {name: np.stack([read(path) for path in sorted((folder / split / name).iterdir())]) for name in CLASSES}
        for split in ("train", "val", "test")
    }


def dealt(images: dict[str, dict[str, np.ndarray]], normal: str, seed: int, as_given: bool) -> tuple[np.ndarray, ...]:
    """Normal images for training, validation, calibration and test.

    The folders hold stretches of a sequence in which neighbours look alike (slices of the same unnamed patients), so that what
    is set apart from one is not exchangeable with another. By default all 700 are shuffled; `as_given`, the folders stay.
    """
    random, own = np.random.default_rng(seed), [images[split][normal] for split in ("train", "val", "test")]
    if as_given:
        train, val, test = own
        order = random.permutation(len(train))
        return train[order[100:]], val, train[order[:100]], test
    everything = np.concatenate(own)
    return tuple(np.split(everything[random.permutation(len(everything))], [400, 450, 550]))


def run_mednist(arguments: argparse.Namespace) -> None:
    images, found = mednist(arguments.paths[0], arguments.side), []
    for normal in arguments.classes:
        began = time.perf_counter()
        train, val, calibrating, test = dealt(images, normal, arguments.seed, arguments.as_given)
        fitted = fit(configuration(), train, val, arguments.seed)
        test = np.concatenate([test, *(images["test"][name] for name in CLASSES if name != normal)])
        truth = np.arange(len(test)) >= 150
        values = {name: scores(fitted, test, name).value for name in arguments.scores}
        others = {name: values[name] for name in arguments.scores[1:]} | {"pca": floor(train, 32).scores(test).value}
        result = compare(truth, values[SETTINGS.score], others, np.arange(len(test)))
        flags = flagged(scores(fitted, calibrating, SETTINGS.score).value, values[SETTINGS.score][~truth])
        found.append(result["auroc"])
        tell(normal=normal, seed=arguments.seed, loss=fitted.loss, seconds=time.perf_counter() - began, flagged=flags, **result)
    tell(mean=float(np.mean(found)), least=float(np.min(found)))


def flagged(calibrating: Float[np.ndarray, " n"], normal: Float[np.ndarray, " m"]) -> dict[str, Any]:
    """New normal images flagged at the promised rates, and the 95 % interval of what is to be expected."""
    found = {}
    for alpha in (0.05, 0.01):
        if len(calibrating) >= round(1 / alpha) - 1:
            count = int((normal > calibration.threshold(calibrating, alpha)).sum())
            expected = calibration.expected_flags(len(calibrating), len(normal), alpha)
            found[str(alpha)] = {"flagged": count, "of": len(normal), "after": len(calibrating), "expected": expected}
    return found


def tell(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("mednist",))
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--as-given", action="store_true", help="MedNIST: the folders as they are")
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--classes", nargs="+", default=CLASSES)
    parser.add_argument("--scores", nargs="+", default=["likelihood", "error", "ssim", "rate"])
    arguments = parser.parse_args()
    {"mednist": run_mednist}[arguments.what](arguments)


if __name__ == "__main__":
    main()
