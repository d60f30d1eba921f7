"""Pictures, tables and one self-contained HTML page a run; the only room that draws."""

import base64
import datetime
import importlib.metadata
import io
import json
import platform
from typing import Any

import jax
import jax.numpy as jnp
import jinja2
import matplotlib
import numpy as np
from etils import epath
from jaxtyping import Bool, Float, Int
from matplotlib.figure import Figure
from PIL import Image

from vaejax import config as configuration
from vaejax import experiment, hosts, journal, keys, latents, runs, storage
from vaejax.applications import generation, inpainting, reconstruction
from vaejax.batches import Batch
from vaejax.datasets import Split
from vaejax.models import Model, condition_of
from vaejax.progress import bar
from vaejax.runs import Run

PICTURE_SIDE = 64
"""Pixels that a side of a small image is enlarged to, at least, in a grid."""

MAP_POINTS = 2_000
"""Images shown in the map of the latent space, at most."""

IMAGES_AT_A_TIME = 10
"""Images whose chains run together: always so many, as rounding that differs between sizes is enough to part chains."""

_COMMON = ("step", "split", "loss", "distortion", "rate", "gradient_norm", "learning_rate", "images_per_second")
"""What every training writes into its journal."""

_CURVES = (
    "Nats per image. Loss: in training what is minimised, but for an adversarial term; in validation the negative bound. "
    "Distortion and rate are the two terms of the ELBO."
)

_PACKAGES = ("vaejax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "dm-pix", "numpy")


def write(run: Run, best: bool = False) -> epath.Path:
    """Draws a run's report and returns the path of `report/index.html`. Of several processes, which all call, the first draws.

    Raises:
        CheckpointError: there is nothing to report on.
    """
    trained = experiment.restore(run, best)
    page = run.directory / "report" / "index.html"
    if not hosts.first():
        return page
    params = hosts.local(trained.params)
    evaluation_file = run.directory / "evaluation.json"
    values = {
        "title": f"vaejax: {run.directory.name}",
        "step": trained.step,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "data": runs.read_json(run.directory / "data.json"),
        "evaluation": runs.read_json(evaluation_file) if storage.exists(evaluation_file) else None,
        "pictures": _pictures(run, params),
        "frechet": runs.read_json(run.directory / "frechet.json") if storage.exists(run.directory / "frechet.json") else None,
        "anomaly": _anomaly(run),
        "config": _public_config(run),
        "versions": _versions(),
    }
    storage.make_folder(page.parent)
    write_page(page, "report.html", values)
    return page


def write_page(page: epath.Path, template: str, values: dict[str, Any]) -> None:
    """Writes an HTML page that needs no other file."""
    environment = jinja2.Environment(autoescape=True, loader=jinja2.PackageLoader("vaejax", "templates"))
    now = datetime.datetime.now(tz=datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    runs.write_text(page, environment.get_template(template).render(values | {"date": now}))


def grid(images: Float[np.ndarray, "r c h w ch"]) -> Image.Image:
    """Rows and columns of images in [0, 1], what is `shown` of them, on white; small ones are enlarged without blurring."""
    images = shown(images)
    rows, columns, height, width, channels = images.shape
    scale = max(PICTURE_SIDE // max(height, width), 1)
    tiles = np.uint8(np.round(np.clip(images, 0.0, 1.0) * 255.0)).repeat(scale, axis=2).repeat(scale, axis=3)
    gap = 2
    canvas = np.full((rows * (height * scale + gap) + gap, columns * (width * scale + gap) + gap, channels), 255, np.uint8)
    for row in range(rows):
        for column in range(columns):
            y, x = gap + row * (height * scale + gap), gap + column * (width * scale + gap)
            canvas[y : y + height * scale, x : x + width * scale] = tiles[row, column]
    return Image.fromarray(canvas[..., 0] if channels == 1 else canvas, {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels])


def save(directory: epath.Path, name: str, images: Float[np.ndarray, "r c h w ch"], arrays: dict[str, np.ndarray]) -> None:
    """Writes a grid of images as NAME.png, and arrays as NAME.npz."""
    save_picture(directory, name, grid(images))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    runs.write_bytes(directory / f"{name}.npz", buffer.getvalue())


def rgb(images: Float[np.ndarray, "*n h w c"]) -> Float[np.ndarray, "*n h w 3"]:
    """Grey images (and theirs with transparency) in three equal channels, colour images as they are, to stand beside others.

    Of a block of slices, the middle one.
    """
    return images[..., :3] if images.shape[-1] in (3, 4) else shown(images)[..., :1].repeat(3, axis=-1)


def shown(images: Float[np.ndarray, "*n h w c"]) -> Float[np.ndarray, "*n h w ch"]:
    """What a picture has place for: up to 4 channels are grey, colour and alpha; of more, a block of slices, the middle one."""
    return images if images.shape[-1] <= 4 else images[..., images.shape[-1] // 2 :][..., :1]


def grey(images: Float[np.ndarray, "*n h w c"]) -> Float[np.ndarray, "*n h w 3"]:
    """Images without their colours, to draw on in colour."""
    return rgb(images).mean(axis=-1, keepdims=True).repeat(3, axis=-1)


def differences(changes: Float[np.ndarray, "*n h w c"], full: float) -> Float[np.ndarray, "*n h w 3"]:
    """Changes of images in colour, a mean over channels: white for none, red for brighter, blue for darker by `full`."""
    share = np.clip(changes.mean(axis=-1) / max(full, 1e-12), -1.0, 1.0)
    return matplotlib.colormaps["RdBu_r"](0.5 + 0.5 * share)[..., :3]


def coloured(images: Float[np.ndarray, "n h w c"], classes: Int[np.ndarray, "n h w"]) -> Float[np.ndarray, "n h w 3"]:
    """Images with a colour over every pixel of a class, but 0."""
    over = matplotlib.colormaps["tab10"]((classes - 1) % 10)[..., :3]
    return np.where((classes > 0)[..., np.newaxis], 0.5 * rgb(images) + 0.5 * over, rgb(images))


def save_picture(directory: epath.Path, name: str, picture: Image.Image | Figure) -> None:
    """Writes a picture as NAME.png."""
    storage.make_folder(directory)
    runs.write_bytes(directory / f"{name}.png", _png(picture))


def pairs(above: Float[np.ndarray, "n h w c"], below: Float[np.ndarray, "n h w c"]) -> Float[np.ndarray, "r c h w ch"]:
    """Up to ten columns of pairs, the first array's images above the second's; what does not fill a row is left out."""
    columns = min(10, len(above))
    starts = range(0, len(above) // columns * columns, columns)
    return np.stack([part[start : start + columns] for start in starts for part in (above, below)])


def _pictures(run: Run, params: Any) -> list[dict[str, str]]:
    """Title, caption and data URL of every picture of the page, in reading order."""
    size = run.data.splits["test"].n
    chosen = np.linspace(0, size - 1, min(size, 20)).astype(int)  # evenly spaced: splits may be sorted by label
    batch = experiment.rows(run, "test", chosen)
    half = min(len(chosen) // 2, 5)
    first, second = experiment.rows(run, "test", chosen[:half]), experiment.rows(run, "test", chosen[half : 2 * half])
    labels = np.arange(50) % run.model.classes if run.model.classes else None
    samples = draw_samples(run.model, params, 0, 50, 1.0, labels).reshape(5, 10, *run.model.image_shape)
    augmented, originals = _augmented(run)
    drawn: list[tuple[str, str, Image.Image | Figure]] = [
        ("Training", _CURVES, _curves(run)),
        *_gauges(run),
        (
            "Reconstructions",
            "Test images, each above its reconstruction from the posterior mean.",
            grid(pairs(np.asarray(batch["image"]), draw_reconstructions(run.model, params, batch))),
        ),
        (
            "Samples",
            "Expected images of draws from the prior" + (", by label in turn." if labels is not None else "."),
            grid(samples),
        ),
        *_of_latents(run, params, first, second),
        (
            "What the network sees",
            "Training images as stored, each above its form in the first batch.",
            grid(pairs(originals, augmented)),
        ),
    ]
    return [{"title": title, "caption": caption, "url": url(image)} for title, caption, image in drawn]


def _of_latents(run: Run, params: Any, first: Batch, second: Batch) -> list[tuple[str, str, Image.Image | Figure]]:
    """What can be drawn of latents that are numbers."""
    if not run.model.random:
        return []
    return [
        (
            "Interpolation",
            "Straight lines between the posterior means of two test images (left and right).",
            grid(draw_lines(run.model, params, first, second, 10)),
        ),
        ("Latent space", "Posterior means of test images: the two directions of largest variance.", _latent_map(run, params)),
    ]


def draw_samples(
    model: Model,
    params: Any,
    seed: int,
    n: int,
    temperature: float,
    labels: Int[np.ndarray, " n"] | None,
    sampler: generation.Sampler | None = None,
) -> Float[np.ndarray, "n h w c"]:
    """Expected images of draws from the prior, or from a sampler."""
    key = keys.stream(jax.random.key(seed), "samples")
    condition = None if labels is None else jnp.asarray(labels)
    draw = jax.jit(lambda params: generation.sample(model, params, key, n, temperature, condition, sampler))
    return np.asarray(draw(params))


def draw_reconstructions(model: Model, params: Any, batch: Batch) -> Float[np.ndarray, "b h w c"]:
    """Images at the posterior means of a batch."""
    images, condition = jnp.asarray(batch["image"]), condition_of(model, batch)
    return np.asarray(jax.jit(lambda params: reconstruction.reconstruct(model, params, images, condition))(params))


def draw_lines(model: Model, params: Any, first: Batch, second: Batch, steps: int) -> Float[np.ndarray, "b s h w c"]:
    """Images on the lines from the first batch's posterior means to the second's."""
    images = [jnp.asarray(batch["image"]) for batch in (first, second)]
    conditions = (condition_of(model, first), condition_of(model, second))
    lines = jax.jit(lambda params: reconstruction.interpolate(model, params, images[0], images[1], steps, conditions))
    return np.asarray(lines(params))


def overlay(images: Float[np.ndarray, "n h w c"], maps: Float[np.ndarray, "n h w"], low: float) -> Float[np.ndarray, "n h w 3"]:
    """Maps in red over grey images: nothing up to `low`, all red at the largest value of all maps."""
    share = np.clip((maps - low) / max(float(maps.max()) - low, 1e-12), 0.0, 1.0)[..., np.newaxis]
    return grey(images) * (1.0 - share) + share * np.array([1.0, 0.0, 0.0], np.float32)


def _anomaly(run: Run) -> dict[str, Any] | None:
    """What `vaejax anomaly` found, with pictures of the ends of its ranking; None where it has not looked yet."""
    file = run.directory / "anomaly.json"
    if not storage.exists(file):
        return None
    found, drawn = runs.read_json(file), []
    with storage.reading(run.directory / "anomaly_maps.npy") as kept:
        maps = np.load(kept, mmap_mode="r")
        chosen = {title: (index, np.asarray(maps[index])) for title, index in found["cases"].items()}
    for title, (index, values) in chosen.items():
        images = np.asarray(experiment.rows(run, found["split"], np.asarray(index))["image"])
        marked = overlay(images, values, found["calibration"]["pixel_threshold"])
        caption = "; ".join(str(number) for number in index)
        drawn.append({"title": title.capitalize(), "caption": caption, "url": url(grid(pairs(grey(images), marked)))})
    return found | {"pictures": drawn}


def draw_inpainted(
    model: Model, params: Any, batch: Batch, missing: Bool[np.ndarray, "*b h w"], seed: int, draws: int
) -> inpainting.Inpainted:
    """The images of a batch, of all of which the same pixels are missing, or each its own; `IMAGES_AT_A_TIME`, for memory."""
    index, n = jnp.asarray(batch["index"]), len(batch["index"])
    key, found = keys.stream(jax.random.key(seed), "missing pixels"), []
    with bar("inpainting", n) as show:
        for start in range(0, n, IMAGES_AT_A_TIME):
            rows = np.minimum(np.arange(start, start + IMAGES_AT_A_TIME), n - 1)
            images, condition = jnp.asarray(batch["image"])[rows], condition_of(model, batch)
            where = jnp.broadcast_to(
                (missing[rows] if missing.ndim == 3 else missing)[..., np.newaxis], (*images.shape[:-1], 1)
            )
            told = None if condition is None else condition[rows]
            part = inpainting.inpaint(model, params, images, where, keys.of_examples(key, index[rows]), told, draws)
            found.append(part)
            show(min(start + IMAGES_AT_A_TIME, n), "")
    draws_of, *others = ([part[i] for part in found] for i in range(len(found[0])))
    joined = (np.concatenate(draws_of, axis=1)[:, :n], *(np.concatenate(other)[:n] for other in others))
    return inpainting.Inpainted(*joined)


def _augmented(run: Run) -> tuple[Float[np.ndarray, "n h w c"], Float[np.ndarray, "n h w c"]]:
    """The first images of the first training batch, as the network sees them and as stored."""
    batch = next(experiment.training_batches(run, 0))
    rows = slice(0, min(20, len(batch["index"])))
    split: Split = run.data.splits["train"]
    stored = split.read(np.asarray(batch["index"])[rows])["image"]
    return np.asarray(batch["image"])[rows], np.asarray(stored, np.float32) / run.data.white


def _curves(run: Run) -> Figure:
    rows = journal.read(run.directory)
    figure = Figure(figsize=(10, 3), layout="constrained")
    for axes, name in zip(figure.subplots(1, 3), ("loss", "distortion", "rate"), strict=True):
        for split, colour in (("train", "tab:gray"), ("val", "tab:blue")):
            points = [(row["step"], row[name]) for row in rows if row["split"] == split]
            if points:
                axes.plot(*zip(*points, strict=True), color=colour, label=split, linewidth=1.2)
        later = [row[name] for row in rows if row["step"] > 0.05 * rows[-1]["step"]]
        if later:  # the first steps would flatten all the rest
            low, high = min(later), max(later)
            axes.set_ylim(low - 0.05 * (high - low) - 1e-9, high + 0.05 * (high - low) + 1e-9)
        axes.set(title=name, xlabel="step", ylabel="nats per image")
        axes.legend()
    return figure


def _gauges(run: Run) -> list[tuple[str, str, Figure]]:
    """What a training counts beside its terms, such as skipped updates or codes in use."""
    rows = [row for row in journal.read(run.directory) if row["split"] == "train"]
    names = [name for name in (rows[0] if rows else ()) if name not in _COMMON]
    if not names:
        return []
    figure = Figure(figsize=(10, 2.6 * -(-len(names) // 3)), layout="constrained")
    for axes, name in zip(figure.subplots(-(-len(names) // 3), 3, squeeze=False).flat, names, strict=False):
        axes.plot([row["step"] for row in rows], [row[name] for row in rows], color="tab:gray", linewidth=1.2)
        axes.set(title=name.replace("_", " "), xlabel="step")
    for axes in figure.axes[len(names) :]:
        axes.remove()
    return [("Beside the ELBO", "Further terms of the loss, and what is counted.", figure)]


def latent_map(plane: latents.Plane, labels: Int[np.ndarray, " n"] | None, names: tuple[str, ...] | None) -> Figure:
    """Points of a plane, coloured by label where there are labels."""
    points = plane.points
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    labels = np.zeros(len(points), int) if labels is None else labels
    for number in np.unique(labels):
        chosen = points[labels == number]
        name = names[number] if names else None
        axes.scatter(chosen[:, 0], chosen[:, -1], s=6, color=matplotlib.colormaps["tab20"](int(number) % 20), label=name)
    if names:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=3, title="label")
    axes.set(xlabel=plane.axes[0], ylabel=plane.axes[1])
    return figure


def _latent_map(run: Run, params: Any) -> Figure:
    seen = latents.of_split(run, params, "test", MAP_POINTS)
    return latent_map(latents.plane(seen.rows), seen.labels, run.data.label_names)


def _public_config(run: Run) -> str:
    """The configuration without the paths, which can carry names; `config.json` has them."""
    values = configuration.to_dict(run.config)
    for section, name in (("data", "path"), ("data", "masks"), ("data", "cache"), ("transfer", "source")):
        if values[section][name] is not None:
            values[section][name] = "(in config.json)"
    return json.dumps(values, indent=2)


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in _PACKAGES}
    return versions | {"device": f"{jax.device_count()} x {jax.devices()[0].device_kind}"}


def url(picture: Image.Image | Figure) -> str:
    """The picture itself, as a PNG, in place of an address."""
    return "data:image/png;base64," + base64.b64encode(_png(picture)).decode()


def _png(picture: Image.Image | Figure) -> bytes:
    buffer = io.BytesIO()
    if isinstance(picture, Figure):
        picture.savefig(buffer, format="png", dpi=110)
    else:
        picture.save(buffer, "PNG")
    return buffer.getvalue()
