"""Anomalies on real images: ranking, calibration, planted lesions; vaejax's one fixed score beside PCA.

    python benchmarks/anomaly.py mednist FOLDER        # six classes, each in turn the normal one
    python benchmarks/anomaly.py xray FILE.npz         # Shenzhen: normal -> tuberculosis, five splits
    python benchmarks/anomaly.py lesions FOLDER FILE --model dense_augmented    # hippocampus volumes and X-rays, pixels
    python benchmarks/anomaly.py calibration DATA      # false alarms: images of PneumoniaMNIST, patients of the hippocampus
    python benchmarks/anomaly.py stream                # images a second and peak memory of scores with maps

Every model is trained on normal images alone, for a fixed number of steps; the weights kept are those of the lowest validation
loss, on other normal images, among every hundredth step. Thresholds come from a third set. The score, one for all, was chosen
by `anomaly_choose.py` on other images than those tested here, but for the shuffle of MedNIST, which mixes them. Results are
printed as JSON lines; whatever is random is named by its seed.
"""

import argparse
import functools
import json
import math
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import lesions
import numpy as np
from jaxtyping import Float, Int
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from vaejax import batch_of, batches, calibration, evaluation, models, resampling, training
from vaejax.applications import anomaly, segmentation
from vaejax.config import AnomalyConfig, Config, from_dict
from vaejax.keys import of_examples, stream
from vaejax.objectives import Objective

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
    """One for all data sets: convolutions, a Gaussian with one learned scale."""
    defaults: dict[str, dict[str, Any]] = {
        "data": {"batch_size": 64},
        "model": {"features": (32, 64), "hidden": (256,), "latent_size": latents},
        "optimizer": {"warmup_steps": 100},
        "training": {"steps": 700, "ema_decay": 0.99},
    }
    return from_dict({name: defaults.get(name, {}) | sections.get(name, {}) for name in defaults | sections})


def changes(config: Config) -> Callable[[np.ndarray, tuple[int, int]], np.ndarray]:
    """What `augment.*` asks for, of a batch and a seed; the images as they are where it is off."""
    if not config.augment.active:
        return lambda images, seed: images
    from vaejax import augment

    return lambda images, seed: augment.augment(images, seed, config.augment).numpy()


@functools.cache
def built(config: Config, image_shape: tuple[int, ...]) -> tuple[models.Model, Objective, Callable, Callable]:
    """A model, its objective, and the compiled steps: once for all that is trained like it."""
    model = models.build(config.model, image_shape)
    objective = training.objective_of(model, config)
    return (
        model,
        objective,
        training.train_step(objective, config.training.ema_decay),
        training.eval_step(model, config.objective),
    )


def fit(config: Config, train: Float[np.ndarray, "n h w c"], val: Float[np.ndarray, "m h w c"], seed: int = 0) -> Fitted:
    """Trains on arrays."""
    model, objective, step, look = built(config, train.shape[1:])
    key = jax.random.key(seed)
    state, noise = training.init(model, objective, stream(key, "init")), stream(key, "noise")
    change, random, best = changes(config), np.random.default_rng(seed), (math.inf, None)
    train, val = (batches.quantize(images, model.levels) for images in (train, val))
    size = min(config.data.batch_size, len(train))
    for number in range(1, config.training.steps + 1):
        rows = random.choice(len(train), size, replace=False)
        state, _ = step(state, training.place(batch_of(change(train[rows], (seed, number)), rows)), noise)
        if number % 100 == 0 or number == config.training.steps:
            loss = float(np.mean(look(state.ema, batch_of(val), jax.random.key(0))["loss"]))
            if loss < best[0]:
                best = (loss, jax.tree.map(np.asarray, state.ema))
    return Fitted(model, best[1], best[0])


@functools.cache
def scoring(model: models.Model, name: str, settings: AnomalyConfig) -> Callable[..., anomaly.Scores]:
    """(params, images, index) -> scores, compiled once for all weights of a model."""
    return jax.jit(lambda params, x, index: anomaly.score(model, params, x, of_examples(KEY, index), name, settings))


def scores(
    fitted: Fitted, images: Float[np.ndarray, "n h w c"], name: str, settings: AnomalyConfig = SETTINGS
) -> anomaly.Scores:
    """Of arrays, a few at a time."""
    look, images, parts = scoring(fitted.model, name, settings), batches.quantize(images, fitted.model.levels), []
    for start in range(0, len(images), ROWS):
        index = np.minimum(np.arange(start, start + ROWS), len(images) - 1)
        found = look(fitted.params, images[index], index)
        parts.append(jax.tree.map(lambda leaf: np.asarray(leaf)[: len(images) - start], found))  # noqa: B023  # used at once
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


KEY = jax.random.key(0)


def floor(train: Float[np.ndarray, "n h w c"], latents: int = 32) -> Callable[[np.ndarray], anomaly.Scores]:
    """Images -> squared errors, a mean and a map, of what so many principal components make of them."""
    restored = evaluation.floor(train.reshape(len(train), -1), latents)

    def scores(images: Float[np.ndarray, "n h w c"]) -> anomaly.Scores:
        errors = ((images - restored(images)) ** 2).mean(axis=-1)
        return anomaly.Scores(errors.mean(axis=(1, 2)), errors)

    return scores


def auroc(truth: np.ndarray, values: np.ndarray) -> float:
    return float(roc_auc_score(truth, values)) if truth.any() and not truth.all() else math.nan


def compare(truth: np.ndarray, ours: np.ndarray, others: dict[str, np.ndarray], groups: np.ndarray) -> dict[str, Any]:
    """Our AUROC with its interval, and the paired intervals of ours minus each other's."""

    def difference(other: np.ndarray, rows: Int[np.ndarray, " rows"]) -> float:
        return auroc(truth[rows], ours[rows]) - auroc(truth[rows], other[rows])

    result: dict[str, Any] = {"auroc": auroc(truth, ours)}
    result["interval"] = resampling.interval(lambda rows: auroc(truth[rows], ours[rows]), groups, 300)
    for name, other in others.items():
        interval = resampling.interval(functools.partial(difference, other), groups, 300)
        result[name] = {"auroc": auroc(truth, other), "difference": interval}
    return result


def unit(images: Any) -> Float[np.ndarray, "*n h w 1"]:
    """Of 0 to 255, as of 0 to 1, with a channel."""
    return np.float32(images)[..., np.newaxis] / 255


def mednist(folder: Path, side: int) -> dict[str, dict[str, Float[np.ndarray, "n h w 1"]]]:
    """Split -> class -> images."""

    def read(path: Path) -> np.ndarray:
        image = Image.open(path).convert("L")
        return unit(image if side == 64 else image.resize((side, side), Image.Resampling.BOX))

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


def dense(steps: int = 600, **sections: dict[str, Any]) -> Config:
    """No convolutions, for X-rays and planted lesions: few images, all in one place."""
    return configuration(model={"network": "mlp"}, training={"steps": steps, "ema_decay": 0.99}, **sections)


CHANGES = {"crop": 0.15, "brightness": 0.05, "contrast": 0.2}
CANDIDATES = {
    "plain": configuration(),
    "augmented": configuration(augment=CHANGES),
    "small": configuration(8),
    "dense": dense(),
    "dense_augmented": dense(2_000, augment=CHANGES),
}


def run_mednist(arguments: argparse.Namespace) -> None:
    images, found = mednist(arguments.paths[0], arguments.side), []
    for normal in arguments.classes:
        began = time.perf_counter()
        train, val, calibrating, test = dealt(images, normal, arguments.seed, arguments.as_given)
        fitted = fit(configuration(), train, val, arguments.seed)
        test = np.concatenate([test, *(images["test"][name] for name in CLASSES if name != normal)])
        truth = np.arange(len(test)) >= 150
        values = {name: scores(fitted, test, name).value for name in arguments.scores}
        others = {name: values[name] for name in arguments.scores[1:]} | {"pca": floor(train)(test).value}
        result = compare(truth, values[arguments.scores[0]], others, np.arange(len(test)))
        flags = flagged(scores(fitted, calibrating, arguments.scores[0]).value, values[arguments.scores[0]][~truth])
        found.append(result["auroc"])
        tell(normal=normal, seed=arguments.seed, loss=fitted.loss, seconds=time.perf_counter() - began, flagged=flags, **result)
    tell(mean=float(np.mean(found)), least=float(np.min(found)))


def flagged(calibrating: Float[np.ndarray, " n"], normal: Float[np.ndarray, " m"]) -> dict[str, Any]:
    """New normal images flagged at the promised rates, and the 95 % interval of what is to be expected."""
    found: dict[str, Any] = {}
    for alpha in (0.05, 0.01):
        if len(calibrating) < round(1 / alpha) - 1:
            found[str(alpha)] = f"no promise: {len(calibrating)} to calibrate with"
        else:
            count = int((normal > calibration.threshold(calibrating, alpha)).sum())
            expected = calibration.expected_flags(len(calibrating), len(normal), alpha)
            found[str(alpha)] = {"flagged": count, "of": len(normal), "after": len(calibrating), "expected": expected}
    return found


def strangest(
    fitted: Fitted, images: Float[np.ndarray, "n h w 1"], name: str, patients: Int[np.ndarray, " n"]
) -> Float[np.ndarray, " patients"]:
    """The largest score of each patient's images."""
    return calibration.of_groups(scores(fitted, images, name).value, patients)


def xray(file: Path, crop: bool) -> tuple[Float[np.ndarray, "n 64 64 1"], Int[np.ndarray, " n"]]:
    """Shenzhen radiographs, whole or cut to the box of the lungs (its masks), and 1 for tuberculosis."""
    with np.load(file) as arrays:
        images, masks, labels = (arrays[name] for name in ("images", "masks", "labels"))
    found = []
    for image, mask in zip(images, masks > 0, strict=True):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) if crop else None
        found.append(Image.fromarray(image).resize((64, 64), Image.Resampling.BILINEAR, box=box))
    return unit(np.stack([np.asarray(image) for image in found])), labels.ravel().astype(int)


def hippocampus(folder: Path) -> tuple[Float[np.ndarray, "n 64 64 1"], Int[np.ndarray, " n"]]:
    """The five middle slices of each volume, its 99.5th percentile as white, in the middle of 64x64; the volume of each."""
    import nibabel

    found, patients = [], []
    for number, path in enumerate(sorted((folder / "images").glob("*.nii*"))):
        volume = np.float32(nibabel.load(path).get_fdata())
        volume = np.clip(volume / np.percentile(volume, 99.5), 0.0, 1.0)
        for place in range(volume.shape[2] // 2 - 2, volume.shape[2] // 2 + 3):
            image = volume[:64, :64, place]
            above, left = (64 - image.shape[0]) // 2, (64 - image.shape[1]) // 2
            below, right = 64 - image.shape[0] - above, 64 - image.shape[1] - left
            found.append(np.pad(image, ((above, below), (left, right))))
            patients.append(number)
    return np.stack(found)[..., np.newaxis], np.array(patients)


def shares(n: int, seed: int) -> list[Int[np.ndarray, " m"]]:
    """60 % for training (a sixth of it for validation), 15 % for calibration, 25 % for the test."""
    return np.split(np.random.default_rng(seed).permutation(n), [round(share * n) for share in (0.5, 0.6, 0.75)])


def run_xray(arguments: argparse.Namespace) -> None:
    (images, labels), (whole, _) = (xray(arguments.paths[0], crop) for crop in (True, False))
    normal, sick = np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)
    for seed in range(arguments.seed, arguments.seed + arguments.splits):
        train, val, calibrating, test = (normal[part] for part in shares(len(normal), seed))
        fitted = fit(CANDIDATES["dense"], images[train], images[val], seed)
        rows, truth = np.r_[test, sick], np.arange(len(test) + len(sick)) >= len(test)
        values = {name: scores(fitted, images[rows], name).value for name in arguments.scores}
        others = {name: values[name] for name in arguments.scores[1:]}
        fit_on = np.r_[train, val]
        for name, pixels in (("pca", images), ("pca, whole images", whole)):
            others[name] = floor(pixels[fit_on])(pixels[rows]).value
        result = compare(truth, values[arguments.scores[0]], others, np.arange(len(rows)))
        chosen = scores(fitted, images[calibrating], arguments.scores[0]).value
        tell(seed=seed, loss=fitted.loss, flagged=flagged(chosen, values[arguments.scores[0]][~truth]), **result)


def bodies(folder: Path, file: Path, seed: int) -> Iterator[tuple[str, np.ndarray, np.ndarray, list[np.ndarray]]]:
    """What lesions are planted in: a name, images, the patient of each, and the rows of the four shares of patients."""
    slices, volumes = hippocampus(folder)
    radiographs, labels = xray(file, crop=True)
    radiographs = radiographs[labels == 0]
    for name, images, patients in (("hippocampus", slices, volumes), ("xray", radiographs, np.arange(len(radiographs)))):
        parts = [np.flatnonzero(np.isin(patients, part)) for part in shares(patients.max() + 1, seed)]
        yield name, images, patients, parts


def run_lesions(arguments: argparse.Namespace) -> None:
    for name, images, patients, parts in bodies(*arguments.paths, arguments.seed):
        train, val, calibrating, test = (images[part] for part in parts)
        planted = parts[2 if arguments.apart else 3]
        fitted, linear = fit(CANDIDATES[arguments.model], train, val, arguments.seed), floor(np.concatenate([train, val]))
        score, usual = arguments.scores[0], scores(fitted, val, SETTINGS.map).map.mean(axis=0)
        flags = flagged(*(strangest(fitted, images[part], score, patients[part]) for part in parts[2:]))
        tell(data=name, loss=fitted.loss, flagged=flags, test=len(test))

        def maps(images: Float[np.ndarray, "n h w 1"]) -> list[np.ndarray]:
            ours = anomaly.relative(scores(fitted, images, SETTINGS.map).map, usual)  # noqa: B023  # used at once
            return [np.asarray(ours), linear(images).map]  # noqa: B023

        limits = [quantiles(each) for each in maps(calibrating)]
        for contrast in lesions.CONTRASTS:
            changed, masks = lesions.plant_all(images[planted, ..., 0], contrast, seed=int(arguments.apart))
            found = maps(changed[..., np.newaxis])
            tell(data=name, contrast=contrast, **pixels(found, masks, limits, patients[planted], contrast == 0.10))


def quantiles(maps: Float[np.ndarray, "n h w"]) -> float:
    """Mean over normal images of what 99 % of their pixels stay below."""
    return float(np.quantile(maps, 1.0 - SETTINGS.pixels, axis=(1, 2)).mean())


def pixels(
    maps: list[np.ndarray], masks: np.ndarray, limits: list[float], groups: np.ndarray, intervals: bool
) -> dict[str, Any]:
    """Pixel AP and Dice of our maps and PCA's, pixels of all images together, and the paired interval of the difference."""

    def precision(rows: Int[np.ndarray, " rows"]) -> list[float]:
        return [average_precision_score(masks[rows].ravel(), each[rows].ravel()) for each in maps]

    def difference(rows: Int[np.ndarray, " rows"]) -> float:
        ours, linear = precision(rows)
        return ours - linear

    ap = precision(np.arange(len(masks)))
    dice = [segmentation.dice(each > limit, masks) for each, limit in zip(maps, limits, strict=True)]
    result = {"ap": ap[0], "pca_ap": ap[1], "dice": dice[0], "pca_dice": dice[1], "share": float(masks.mean())}
    return result | ({"difference": resampling.interval(difference, groups, 100)} if intervals else {})


def run_calibration(arguments: argparse.Namespace) -> None:
    """Flags where nothing is strange and all were dealt at random: whether thresholds keep what they promise there, no more."""
    with np.load(arguments.paths[0] / "medmnist" / "pneumoniamnist_rebuilt.npz") as arrays:
        healthy = unit(arrays["train_images"][arrays["train_labels"].ravel() == 0])
    slices, volumes = hippocampus(arguments.paths[0] / "hippocampus_msd")
    for name, images, patients, model in (
        ("pneumonia", healthy, np.arange(len(healthy)), "plain"),
        ("hippocampus", slices, volumes, "dense"),
    ):
        order = np.random.default_rng(arguments.seed).permutation(patients.max() + 1)
        dealt_out = np.split(order, [round(share * len(order)) for share in (0.4, 0.5, 0.75)])
        parts = [np.flatnonzero(np.isin(patients, part)) for part in dealt_out]
        fitted = fit(CANDIDATES[model], images[parts[0]], images[parts[1]], arguments.seed)
        flags = flagged(*(strangest(fitted, images[part], arguments.scores[0], patients[part]) for part in parts[2:]))
        tell(data=name, loss=fitted.loss, flagged=flags)


def run_stream(arguments: argparse.Namespace) -> None:
    """Scores and maps of more and more images, the maps written as they come. The peak is of all scores so far."""
    model = models.build(configuration().model, (64, 64, 1))
    fitted = Fitted(model, jax.jit(model.init)(jax.random.key(0)), math.nan)
    images, index = np.random.default_rng(0).random((ROWS, 64, 64, 1), np.float32), np.arange(ROWS)
    for name in arguments.scores:
        look = scoring(model, name, SETTINGS)
        jax.block_until_ready(look(fitted.params, images, index))
        for n in (1_000, 3_000, 9_000):
            began = time.perf_counter()
            with tempfile.TemporaryFile() as file:
                for start in range(0, n, ROWS):
                    file.write(np.asarray(look(fitted.params, images, index).map)[: n - start].tobytes())
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
            tell(score=name, images=n, per_second=n / (time.perf_counter() - began), peak_mebibytes=peak)


def tell(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("mednist", "xray", "lesions", "calibration", "stream"))
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--as-given", action="store_true", help="MedNIST: the folders as they are")
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--classes", nargs="+", default=CLASSES)
    parser.add_argument("--model", choices=CANDIDATES, default="plain", help="lesions: of the candidates")
    parser.add_argument("--apart", action="store_true", help="lesions: others, in the calibration images, for choosing")
    parser.add_argument("--scores", nargs="+", default=["ssim_and_error", "two_scale_ssim", "ssim", "likelihood", "error"])
    arguments = parser.parse_args()
    runs = {
        "mednist": run_mednist,
        "xray": run_xray,
        "lesions": run_lesions,
        "calibration": run_calibration,
        "stream": run_stream,
    }
    runs[arguments.what](arguments)


if __name__ == "__main__":
    main()
