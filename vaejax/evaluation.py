"""A run directory -> `evaluation.json`: what a model is worth on images that it has not seen, beside a linear floor.

    {"split", "step", "samples", "draw", "metrics": {name: {"mean", "sem", "n", "unit"}},
     "undefined": {name: why}, "baselines": {"pca": {name: {...}}}, "outside": {"images", "of"}}

Likelihoods are in nats an image and of the images as the model sees them; those of a conditional model are given the label.
`outside` counts images unlike all that were trained on (see `inspection.outside`); null where a run knows nothing of that.
Everything drawn is fixed by (draw, index), so that the same weights give the same file.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key
from sklearn.decomposition import PCA

from vaejax import batches as batching
from vaejax import distributions as dist
from vaejax import experiment, hosts, inspection, keys, memory, metrics, runs, training
from vaejax.applications.reconstruction import encode, reconstruct
from vaejax.models import Condition, Model, Params, condition_of, flat
from vaejax.progress import bar, console
from vaejax.runs import Run

PIXELS_AT_A_TIME = {"cpu": 2**21, "gpu": 2**24, "tpu": 2**24}
"""Decoded pixels held at once while importance sampling, where memory allows. On a CPU more are not faster."""

BYTES_A_PIXEL = 1_024
"""What a decoded pixel takes inside of a decoder, generously: eight arrays of 32 channels."""

PCA_NUMBERS = 2**28
"""Training pixels that the linear floor is fitted on at most (1 GiB); beyond it, images evenly spaced."""


TOLD_OUTSIDE = 0.01
"""The share of images outside of what was trained on, above which a person is told."""


_UNITS = {
    "elbo": "nats per image",
    "distortion": "nats per image",
    "rate": "nats per image",
    "nll": "nats per image",
    "bits_per_dim": "bits per pixel and channel",
    "mse": "squared image range",
    "psnr": "dB",
    "ssim": "1",
}


def evaluate(
    run: Run,
    split: str = "test",
    best: bool = False,
    samples: int | None = None,
    draw: int | None = None,
) -> dict[str, Any]:
    """Evaluates a run's averaged weights and writes `evaluation.json`.

    Args:
        run: an open run.
        split: "train", "val" or "test".
        best: take the checkpoint of lowest validation loss instead of the newest.
        samples: importance samples an image; None: as configured.
        draw: seed of binarisation and samples; None: as configured.

    Returns:
        What was written.

    Raises:
        CheckpointError: nothing to evaluate.
    """
    settings = run.config.evaluation
    samples = (samples or settings.samples) if run.model.random else 1
    draw = settings.draw if draw is None else draw
    trained = experiment.restore(run, best)
    with training.explain_out_of_memory("evaluation.batch_size", settings.batch_size):
        values = per_example(run, trained.params, split, samples, draw)
    result = {
        "split": split,
        "step": trained.step,
        "samples": samples,
        "draw": draw,
        "metrics": _summaries(values, run),
        "undefined": _undefined(run),
        "baselines": {"pca": _pca(run, run.model.vector, split, draw)} if run.model.vector and hosts.first() else {},
        "outside": _outside(run, split),
    }
    runs.write_json(run.directory / "evaluation.json", result)
    return result


def _outside(run: Run, split: str) -> dict[str, int] | None:
    """How many images are unlike those trained on; more than one in a hundred are told of."""
    seen = runs.ranges_of(run)
    if not seen or not hosts.first():
        return None
    stored = batching.evaluation(run.data.splits[split], run.data.white, _rows(run, split), None)
    found = inspection.count_outside(seen, (batch["image"][batch["mask"]] for batch in stored))
    if found["images"] > TOLD_OUTSIDE * found["of"]:
        console.print(
            f"warning: {found['images']:,} of {found['of']:,} images of the split {split!r} are darker, brighter, flatter or "
            "rougher than all that was trained on; what is measured of them may mean little."
        )
    return found


def per_example(run: Run, params: Params, split: str, samples: int, draw: int) -> dict[str, Float[np.ndarray, "n ..."]]:
    """Every metric that the model defines, one value an example of the split, and its posterior means in rows under "mean"."""
    split_size, model = run.data.splits[split].n, run.model
    samples = samples if model.random else 1
    rows = _rows(run, split)
    reconstructed, sampled = jax.jit(functools.partial(_reconstructed, model)), jax.jit(functools.partial(_sampled, model))
    key = keys.stream(jax.random.key(draw), f"posterior of {split}")
    chunk = max(pixels_at_a_time() // (rows * math.prod(model.image_shape)), 1)
    collected: dict[str, list[np.ndarray]] = {}
    with bar(f"evaluating {split}", split_size) as show:
        for count, batch in enumerate(experiment.evaluation_batches(run, split, rows, draw, hosts.share(rows))):
            placed = training.place(batch)
            mask = hosts.gathered(placed["mask"])
            condition = condition_of(model, placed)
            restored = reconstructed(params, placed["image"], condition)
            parts = []
            for start in range(0, samples, chunk):
                numbers = jnp.arange(start, min(start + chunk, samples))
                drawn = sampled(params, placed["image"], key, placed["index"], numbers, condition)
                parts.append((len(numbers), drawn))
            for name, value in ({name: hosts.gathered(value) for name, value in restored.items()} | _merged(parts)).items():
                collected.setdefault(name, []).append(value[mask])
            show(min((count + 1) * rows, split_size), "")
    values = {name: np.concatenate(value) for name, value in collected.items()}
    if model.levels is not None:
        nats = values["nll"] if model.random else -values["elbo"]
        values["bits_per_dim"] = metrics.bits_per_dim(nats, math.prod(model.image_shape))
    return {name: value for name, value in values.items() if name not in _undefined(run)}


def pixels_at_a_time() -> int:
    """As many as serve the platform; a half, a quarter, ... of them where memory is too short for that, in any process."""
    pixels, left = PIXELS_AT_A_TIME.get(jax.default_backend(), 2**21), memory.available()
    while left is not None and pixels > 1 and pixels * BYTES_A_PIXEL > left:
        pixels //= 2
    return int(hosts.least(pixels))


class Sampled(NamedTuple):
    """What a chunk of importance samples adds up to, each `[b]`, nats an image."""

    log_weight: Float[Array, " b"]
    """log of the summed weights p(x, z) / q(z|x)."""
    distortion: Float[Array, " b"]
    """Summed over the samples."""
    rate: Float[Array, " b"]
    """KL, a mean over the samples."""


def _sampled(
    model: Model,
    params: Params,
    images: Float[Array, "b ..."],
    key: Key[Array, ""],
    index: Int[Array, " b"],
    numbers: Int[Array, " k"],
    condition: Condition,
) -> Sampled:
    inference = model.infer(params, images, keys.of_examples(key, index), numbers, condition)
    log_likelihood = dist.log_prob(inference.likelihood, images)
    log_weight = jax.nn.logsumexp(log_likelihood - inference.log_ratio, axis=0)
    return Sampled(log_weight, -log_likelihood.sum(axis=0), jnp.stack(inference.kl).sum(axis=0))


def _merged(parts: list[tuple[int, Sampled]]) -> dict[str, Float[np.ndarray, " b"]]:
    """Chunks to the evidence bound and the importance-sampled likelihood (Burda et al. 2016, eq. 8), in float64."""
    samples = sum(count for count, _ in parts)
    log_weights = np.stack([np.float64(hosts.gathered(part.log_weight)) for _, part in parts])
    distortion = np.sum([np.float64(hosts.gathered(part.distortion)) for _, part in parts], axis=0) / samples
    rate = np.sum([count * np.float64(hosts.gathered(part.rate)) for count, part in parts], axis=0) / samples
    nll = math.log(samples) - np.logaddexp.reduce(log_weights, axis=0)
    return {"elbo": -distortion - rate, "distortion": distortion, "rate": rate, "nll": nll}


def _reconstructed(
    model: Model, params: Params, images: Float[Array, "b ..."], condition: Condition
) -> dict[str, Float[Array, "b ..."]]:
    mean = encode(model, params, images, condition)
    return {"mean": flat(mean)} | _errors(images, reconstruct(model, params, images, condition))


def _errors(images: Float[Array, "b ..."], others: Float[Array, "b ..."]) -> dict[str, Float[Array, " b"]]:
    """Distances between images, one value an example."""
    values = {"mse": metrics.mse(images, others), "psnr": metrics.psnr(images, others)}
    return values | {"ssim": metrics.ssim(images, others)} if metrics.has_ssim(images.shape[1:]) else values


def training_rows(run: Run, draw: int) -> Float[np.ndarray, "n d"]:
    """The training images as rows, or `PCA_NUMBERS` of their pixels, evenly spaced images; `draw` as for `evaluate`."""
    most = max(PCA_NUMBERS // math.prod(run.model.image_shape), 1)
    stride = -(-run.data.splits["train"].n // most)
    return np.concatenate([images.reshape(len(images), -1) for images in _images(run, "train", draw, stride)])


def floor(train: Float[np.ndarray, "n d"], latents: int) -> Callable[[Float[np.ndarray, "b ..."]], Float[np.ndarray, "b ..."]]:
    """The linear floor: images from as many principal components of the training images as there are latents, in [0, 1]."""
    pca = PCA(min(latents, *train.shape), svd_solver="auto", random_state=0).fit(train)

    def restored(images: Float[np.ndarray, "b ..."]) -> Float[np.ndarray, "b ..."]:
        flat = images.reshape(len(images), -1)
        return np.clip(pca.inverse_transform(pca.transform(flat)), 0.0, 1.0).astype(np.float32).reshape(images.shape)

    return restored


def noise_variance(pca: PCA, rows: Float[np.ndarray, "n d"]) -> float:
    """Of probabilistic PCA: the mean variance of the directions left out (Tipping and Bishop 1999, eq. 8).

    scikit-learn's divides by the images, where those are fewer than the directions.

    Args:
        pca: fitted to `rows`.
        rows: images as vectors; their variances are taken a part at a time, in float64.
    """
    total = sum(float(part.var(axis=0, ddof=1, dtype=np.float64).sum()) for part in np.array_split(rows, 64, axis=1))
    kept = pca.explained_variance_.astype(np.float64)
    return (total - float(kept.sum())) / (rows.shape[1] - len(kept))


def _pca(run: Run, latents: int, split: str, draw: int) -> dict[str, Any]:
    """What the `floor` is worth.

    Where images are of grey levels, the bits/dim are those of probabilistic PCA.
    """
    train, errors = training_rows(run, draw), jax.jit(_errors)
    restored = floor(train, latents)
    collected: dict[str, list[np.ndarray]] = {}
    for images in _images(run, split, draw):
        for name, value in errors(images, restored(images)).items():
            collected.setdefault(name, []).append(np.asarray(value))
    levels = experiment.grid(run)
    if levels and len(train) > latents + 2:  # else nothing would be left for the noise
        probabilistic = _ppca(train, latents, levels, draw)
        collected["bits_per_dim"] = [probabilistic(images) for images in _images(run, split, draw)]
    return {name: _summary(name, np.concatenate(values)) for name, values in collected.items()}


def _ppca(
    train: Float[np.ndarray, "n d"], latents: int, levels: int, draw: int
) -> Callable[[Float[np.ndarray, "b ..."]], Float[np.ndarray, " b"]]:
    """Bits a pixel and channel of images by probabilistic PCA (Tipping and Bishop 1999), fitted by maximum likelihood.

    A density becomes a bound on the probability of grey levels by spreading each evenly over its step (Theis et al. 2016,
    eq. 3): the floor is at most this.
    """
    rng, step = np.random.default_rng(draw), np.float32(1.0 / (levels - 1))

    def spread(flat: Float[np.ndarray, "b d"]) -> Float[np.ndarray, "b d"]:
        return flat + step * (rng.random(flat.shape, np.float32) - np.float32(0.5))

    wide = spread(train)
    n, dimensions = wide.shape
    pca = PCA(min(latents, n - 2, dimensions - 1), svd_solver="auto", random_state=0).fit(wide)
    variances, noise = pca.explained_variance_.astype(np.float64), noise_variance(pca, wide)
    log_determinant = np.log(variances).sum() + (dimensions - len(variances)) * math.log(noise)

    def bits(images: Float[np.ndarray, "b ..."]) -> Float[np.ndarray, " b"]:
        centred = spread(images.reshape(len(images), -1)).astype(np.float64) - pca.mean_
        along = centred @ pca.components_.T
        distance = ((centred**2).sum(axis=1) - (along**2 * (1.0 - noise / variances)).sum(axis=1)) / noise
        nats = 0.5 * (dimensions * math.log(2.0 * math.pi) + log_determinant + distance) - dimensions * math.log(step)
        return metrics.bits_per_dim(nats, dimensions)

    return bits


def _images(run: Run, split: str, draw: int, stride: int = 1) -> Iterator[Float[np.ndarray, "b ..."]]:
    """The images of a split, or those whose index divides by `stride`."""
    for batch in experiment.evaluation_batches(run, split, _rows(run, split), draw):
        yield np.asarray(batch["image"])[batch["mask"] & (batch["index"] % stride == 0)]


def _rows(run: Run, split: str) -> int:
    """Images at a time: as configured, no more than there are, rounded up to share among the devices."""
    rows, devices = min(run.config.evaluation.batch_size, run.data.splits[split].n), jax.device_count()
    return -(-rows // devices) * devices


def _summaries(values: dict[str, Float[np.ndarray, "n ..."]], run: Run) -> dict[str, Any]:
    return {name: _summary(name, values[name]) for name in _UNITS if name in values} | _use_of_latents(values["mean"], run)


def _use_of_latents(means: Float[np.ndarray, "n d"], run: Run) -> dict[str, Any]:
    """How many latents tell images apart, or how many codes occur."""

    def entry(value: float, unit: str) -> dict[str, Any]:
        return {"mean": value, "sem": None, "n": len(means), "unit": unit}

    if run.model.random:
        return {"active_units": entry(metrics.active_units(means), f"of {means.shape[-1]} latents")}
    counts, unit = np.bincount(means.ravel()), f"of {run.config.model.codes} codes"
    return {
        "codes_used": entry(int((counts > 0).sum()), unit),
        "code_perplexity": entry(metrics.perplexity(counts), unit),
    }


def _undefined(run: Run) -> dict[str, str]:
    """What this model has no value for, and why."""
    undefined: dict[str, str] = {}
    model = run.model
    if run.config.objective.name == "vae_gan":
        reason = "trained against a discriminator, the likelihood is no longer fitted to the images"
        undefined |= dict.fromkeys(("elbo", "nll", "bits_per_dim"), reason)
    if not model.random:
        undefined["nll"] = "the posterior is a point, so that the ELBO is log p(image|codes) + log p(codes), all that is known"
        undefined["active_units"] = "the latents are codes"
    if not model.vector:
        undefined["pca"] = "the latents are not one vector, so that there is no number of components to compare with"
    if model.levels is None:
        undefined["bits_per_dim"] = "the likelihood is a density, not a distribution over grey levels"
    if not metrics.has_ssim(model.image_shape):
        undefined["ssim"] = f"images are smaller than the window of {metrics.SSIM_WINDOW} pixels"
    return undefined


def _summary(name: str, values: Float[np.ndarray, " n"]) -> dict[str, Any]:
    entry = metrics.summary(values, _UNITS[name])
    return entry | {"capped": int((values >= metrics.PSNR_CAP).sum())} if name == "psnr" else entry
