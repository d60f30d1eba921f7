"""What a trained run can show, as files: a PNG grid to look at and an NPZ of the same images to work with."""

import io
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Bool, Float, Float32, Int

from vaejax import experiment, latents, report, runs, samplers, segmentation, storage
from vaejax.applications import embedding, inpainting
from vaejax.datasets import image as files
from vaejax.datasets import stacks
from vaejax.datasets.source import NOTICE
from vaejax.errors import DataError, FamilyError
from vaejax.models import Latents, Params
from vaejax.runs import Run

COLUMNS = 10
"""Images in a row of a grid of samples."""


class Walks(NamedTuple):
    """Images moved towards another label."""

    images: Float32[np.ndarray, "n h w c"]
    walk: Float32[np.ndarray, "n steps h w c"]
    """From the reconstruction on."""
    amounts: Float32[np.ndarray, " steps"]
    probability: Float[np.ndarray, "n steps"]
    """Of the second of the two labels, by the linear probe."""

    def shown(self, known: dict[str, np.ndarray]) -> tuple[Float[np.ndarray, "r c h w 3"], dict[str, np.ndarray]]:
        """The picture, two rows an image: itself and its walk, and below what changes; and the arrays, with what is known."""
        changes = self.walk - self.walk[:, :1]
        above = np.concatenate([self.images[:, np.newaxis], self.walk], axis=1)
        below = np.concatenate([np.zeros_like(self.images)[:, np.newaxis], changes], axis=1)
        rows = np.stack([report.rgb(above), report.differences(below, float(np.abs(changes).max()))], axis=1)
        arrays = {"images": self.images, "walk": self.walk, "differences": changes, "amounts": self.amounts}
        return rows.reshape(-1, *rows.shape[2:]), arrays | {"probability": self.probability} | known


def sample(
    run: Run,
    output: epath.Path,
    best: bool,
    n: int,
    seed: int,
    temperature: float,
    label: str | None = None,
    sampler: str = "prior",
    form: str = "png",
) -> None:
    """Writes samples.png and samples.npz (`images` [n, h, w, c]): expected images of draws from the prior, or a mixture.

    Of a conditional model, all have the label asked for, or each the next one; `label` [n] is then in the file too.
    With "nifti", also samples.nii.gz, a slice each, 1 mm a pixel; with "dicom", a series in the folder samples.

    Raises:
        DataError: no such label, or NIfTI of images in colour.
        StorageError: NIfTI or DICOM in a cloud store.
    """
    if form != "png":
        storage.require_disk("the folder of results", output, "NIfTI and DICOM files are written to a disk. Choose an --output")
    trained, labels = experiment.restore(run, best), _labels(run, label, n)
    drawing = samplers.build(run, trained.params, sampler)
    images = report.draw_samples(run.model, trained.params, seed, n, temperature, labels, drawing)
    white = np.ones((-n % COLUMNS, *images.shape[1:]), np.float32)
    rows = np.concatenate([images, white]).reshape(-1, COLUMNS, *images.shape[1:])
    arrays = {"images": images} if labels is None else {"images": images, "label": labels}
    report.save(output, "samples", rows if n > COLUMNS else images[np.newaxis], arrays)
    if form != "png":
        block = run.config.data.block
        _write_made(output, images[..., block // 2 :][..., :1] if block > 1 else report.shown(images), form)


def _write_made(output: epath.Path, images: Float32[np.ndarray, "n h w ch"], form: str) -> None:
    """Images that have no source, in a format that viewers of medical images open."""
    stacks.require_libraries(f"--format={form}")
    from vaejax.datasets import nifti, series

    grey, folder = images.shape[-1] <= 2, Path(output)
    if form == "dicom":
        series.save_made(
            folder / "samples", images[..., 0] if grey else np.rint(255 * images[..., :3]).astype(np.uint8), "sample"
        )
        return
    if not grey:
        raise DataError("--format=nifti: the images are in colour, which viewers of NIfTI do not expect. Choose dicom, or png.")
    voxels = np.moveaxis(images[..., 0].swapaxes(1, 2)[:, ::-1, ::-1], 0, 2)  # as `stacks` cuts axial slices
    nifti.save(folder / "samples.nii.gz", voxels, np.eye(4), note=f"sample: {NOTICE}")


def reconstruct(run: Run, output: epath.Path, best: bool, split: str, n: int, seed: int) -> None:
    """Writes reconstructions.png (images above their reconstructions) and .npz (`images`, `reconstructions`, `index`)."""
    trained, batch = experiment.restore(run, best), experiment.rows(run, split, _choose(run, split, n, seed))
    images, restored = np.asarray(batch["image"]), report.draw_reconstructions(run.model, trained.params, batch)
    arrays = {"images": images, "reconstructions": restored, "index": np.asarray(batch["index"])}
    report.save(output, "reconstructions", report.pairs(images, restored), arrays)


def interpolate(run: Run, output: epath.Path, best: bool, split: str, n: int, seed: int, steps: int) -> None:
    """Writes interpolations.png (a line a row) and .npz (`images` [n, steps, h, w, c], `index` [n, 2] of the ends)."""
    trained, index = experiment.restore(run, best), _choose(run, split, 2 * n, seed)
    first, second = experiment.rows(run, split, index[:n]), experiment.rows(run, split, index[n:])
    lines = report.draw_lines(run.model, trained.params, first, second, steps)
    report.save(output, "interpolations", lines, {"images": lines, "index": index.reshape(2, n).T})


def embed(run: Run, output: epath.Path, best: bool, split: str, plane: str) -> dict[str, Any]:
    """Writes what `applications.embedding.embed` gives for a split: latents.csv and .parquet, map.png, and embedding.json.

    The table has `index`, `label` and `patient` where known, and a column a number. The map shows at most
    `report.MAP_POINTS` images. Where images have labels and the model is not told them, embedding.json has what probes for
    the label are worth on test images (see `applications.probes.measure`), and else why not; it is returned.
    """
    trained, names = experiment.restore(run, best), run.data.label_names
    seen = latents.of_split(run, trained.params, split)
    write_table(output, _known(seen, names), embedding.names(run.model, trained.params), seen.rows)
    shown = np.unique(np.linspace(0, len(seen.rows) - 1, min(report.MAP_POINTS, len(seen.rows))).astype(int))
    points = latents.plane(seen.rows[shown], plane)
    report.save_picture(output, "map", report.latent_map(points, None if seen.labels is None else seen.labels[shown], names))
    result = {"split": split, "step": trained.step, "n": len(seen.rows), "numbers": seen.rows.shape[1]}
    if not names:
        result["undefined"] = {"probes": "the images have no labels"}
    elif run.model.classes:
        result["undefined"] = {"probes": "the model is told the label, which its latents therefore need not hold"}
    else:
        measured = latents.measured(run, trained.params)
        why = {"undefined": {"probes": "the training images are all of one label"}}
        result |= {"probes": measured} if measured else why
    runs.write_json(output / "embedding.json", result)
    return result


def explain(
    run: Run, output: epath.Path, best: bool, split: str, ends: tuple[str, str], n: int, steps: int, seed: int
) -> list[float]:
    """Writes explanation.png and .npz: images of one label moved towards another, and what changes.

    The direction is the difference of the mean latents of the training images of the two labels; the last of `steps` images
    is moved by all of it. A row of the picture is an image and its walk from its reconstruction on; the row below, what
    differs from that reconstruction (red: brighter, blue: darker). The file has `images` [n], `walk` and `differences`
    [n, steps], `index` [n], `amounts` [steps], and `probability` [n, steps]: of the second of the two labels, by the linear
    probe.

    Returns:
        The mean probability at every step.

    Raises:
        DataError: no such label, twice the same, one that no training image has, or too few images of the first.
        FamilyError: see `applications.embedding.walk`.
    """
    params = experiment.restore(run, best).params
    way = direction(run, params, ends)
    index = _of_label(run, split, label_of(run, ends[0], "--from"), n, seed)
    found = walks(run, params, way, ends, np.asarray(experiment.rows(run, split, index)["image"]), steps)
    report.save(output, "explanation", *found.shown({"index": index}))
    return [float(value) for value in found.probability.mean(axis=0)]


def walks(
    run: Run, params: Params, way: Latents, ends: tuple[str, str], images: Float32[np.ndarray, "n h w c"], steps: int
) -> Walks:
    """Moves images by `direction` in `steps` equal steps, from none of it to all."""
    first, second = (label_of(run, end, name) for end, name in zip(ends, ("--from", "--to"), strict=True))
    n, amounts = len(images), np.linspace(0.0, 1.0, steps, dtype=np.float32)
    walk, rows = jax.jit(lambda images: embedding.walk(run.model, params, images, way, jnp.asarray(amounts)))(images)
    probe = latents.fitted_probes(run, params, ("linear",))["linear"]
    chances = probe.probabilities(np.asarray(rows).reshape(n * steps, -1)).reshape(n, steps, -1)
    probability = chances[..., second] / (chances[..., first] + chances[..., second])
    return Walks(images, np.asarray(walk), amounts, probability)


def segment(run: Run, output: epath.Path, best: bool, split: str, n: int, seed: int) -> dict[str, Any]:
    """Writes segmentation.json (see `vaejax.segmentation`), which is returned, segmentations.npz and segmentations.png.

    The file has `guess` and `segmentation` (as drawn) [images, h, w] of the whole split; the picture `n` images, below each the
    classes as drawn, and as guessed.

    Raises:
        FamilyError: the run is no segmenter.
        DataError: `n` is more than there are.
    """
    segmentation.require(run)
    trained = experiment.restore(run, best)
    drawn, index = segmentation.masks(run, trained.params, split), np.sort(_choose(run, split, n, seed))
    result = {"split": split, "step": trained.step} | segmentation.measure(drawn, run.config.model.regions)
    images = np.asarray(experiment.rows(run, split, index)["image"])
    rows = [report.rgb(images), *(report.coloured(images, classes[index]) for classes in (drawn.true, drawn.guess))]
    arrays = {"guess": drawn.guess.astype(np.uint8), "segmentation": drawn.true.astype(np.uint8)}
    report.save(output, "segmentations", np.stack(rows), arrays)
    runs.write_json(output / "segmentation.json", result)
    return result


def direction(run: Run, params: Params, labels: tuple[str, str]) -> Latents:
    """From the mean latents of the training images of one label to those of another.

    Raises:
        DataError: no such label, twice the same, or one that no training image has.
        FamilyError: see `applications.embedding.walk`.
    """
    first, second = (label_of(run, label, name) for label, name in zip(labels, ("--from", "--to"), strict=True))
    if first == second:
        raise DataError(f"--to={labels[1]}: expected another label than --from.")
    add = jax.jit(lambda images, weights: embedding.sums(run.model, params, images, weights))
    ends, total, counts = np.array([first, second]), None, np.zeros(2)
    for batch in experiment.evaluation_batches(run, "train", min(run.config.evaluation.batch_size, run.data.splits["train"].n)):
        weights = np.float32((batch["label"][:, np.newaxis] == ends) & batch["mask"][:, np.newaxis])
        found, counts = add(batch["image"], weights), counts + weights.sum(axis=0)
        total = found if total is None else jax.tree.map(jnp.add, total, found)
    if not counts.all():
        name = (run.data.label_names or ())[ends[counts.argmin()]]
        raise DataError(f"label {name}: no training image has it, so that there is no way to it. Train a run with such images.")
    return jax.tree.map(lambda leaf: leaf[1] / counts[1] - leaf[0] / counts[0], total)


def _of_label(run: Run, split: str, label: int, n: int, seed: int) -> Int[np.ndarray, " n"]:
    """The indices of `n` different images of a label."""
    labels = run.data.splits[split].columns["label"]
    found = np.flatnonzero(labels == label)
    if n > len(found):
        raise DataError(f"--n: {n} images of the label are needed, and the split {split!r} has {len(found)}. Ask for fewer.")
    return np.random.default_rng(seed).choice(found, n, replace=False)


def _known(seen: latents.Rows, names: tuple[str, ...] | None) -> dict[str, Any]:
    """What is known of the images of a split, as columns."""
    known: dict[str, Any] = {"index": seen.numbers.astype(np.int32)}
    if seen.labels is not None and names:
        known["label"] = [names[label] for label in seen.labels]
    if seen.patients is not None:
        known["patient"] = seen.patients
    return known


def write_table(output: epath.Path, known: dict[str, Any], columns: list[str], rows: Float[np.ndarray, "n d"]) -> None:
    """Writes latents.csv and latents.parquet: a row an image, what is known of it first, then its numbers."""
    import pyarrow as pa  # slow to import
    from pyarrow import csv, parquet

    table = pa.table(known | dict(zip(columns, rows.T, strict=True)))
    storage.make_folder(output)
    for suffix, write in (("csv", csv.write_csv), ("parquet", parquet.write_table)):
        buffer = io.BytesIO()
        write(table, buffer)
        runs.write_bytes(output / f"latents.{suffix}", buffer.getvalue())


def inpaint(
    run: Run, output: epath.Path, best: bool, split: str, n: int, seed: int, mask: str, draws: int
) -> inpainting.Inpainted:
    """Writes inpainted.png and .npz, and returns what is in them.

    A row of the picture: an image, what is seen of it (the rest is grey), draws, their mean, and the standard deviation, of
    which white is 0.5. The file has `images`, `missing`, `index`, and the fields of `Inpainted`.

    Raises:
        DataError: there is no such mask, or it does not fit the images.
        FamilyError: what the model says of pixels is no distribution of images, or its latents are codes.
    """
    require_likelihood(run)
    missing = _missing(mask, run.model.image_shape)
    trained, batch = experiment.restore(run, best), experiment.rows(run, split, _choose(run, split, n, seed))
    images = np.asarray(batch["image"])
    found = report.draw_inpainted(run.model, trained.params, batch, missing, seed, draws)
    seen = np.where(missing[..., np.newaxis], np.float32(0.5), images)
    columns = np.concatenate([[images, seen], found.draws, [found.mean, 2.0 * found.sd]])
    arrays = {"images": images, "missing": missing, "index": np.asarray(batch["index"])} | found._asdict()
    report.save(output, "inpainted", np.moveaxis(columns, 0, 1), arrays)
    return found


def require_likelihood(run: Run) -> None:
    """Raises FamilyError where a run's likelihood says nothing of missing pixels."""
    if run.config.objective.name == "vae_gan":
        raise FamilyError(
            "inpaint: trained against a discriminator, the likelihood is no longer fitted to the images, so that it does not "
            "say what a missing pixel may be. Choose a run with objective.name='elbo' or 'iwae'."
        )


def _missing(mask: str, image_shape: tuple[int, ...]) -> Bool[np.ndarray, "h w"]:
    """Missing pixels by the name of a region, or the bright ones of an image file."""
    if inpainting.is_region(mask) or not (Path(mask).suffix or Path(mask).exists()):
        return inpainting.region(mask, image_shape)
    try:
        pixels = files.decode(Path(mask))
        missing = files.to_channels(pixels, 1)[..., 0] > files.WHITE[pixels.dtype.name] / 2.0
    except DataError as error:
        raise DataError(f"--mask={mask}: {error}. Expected a PNG image, white where pixels are missing.") from error
    if missing.shape != image_shape[:2] or missing.all() or not missing.any():
        found = f"{missing.shape[0]} x {missing.shape[1]}, {int(missing.sum())} missing"
        size = f"{image_shape[0]} x {image_shape[1]} pixels, white where they are missing and black where not"
        raise DataError(f"--mask={mask}: expected {size}, found {found}. Draw it at the size of the run's images.")
    return missing


def _choose(run: Run, split: str, n: int, seed: int) -> Int[np.ndarray, " n"]:
    """The indices of `n` different images of a split."""
    size = run.data.splits[split].n
    if n > size:
        raise DataError(f"--n: {n} images are needed, and the split {split!r} has {size}. Ask for fewer.")
    return np.random.default_rng(seed).choice(size, n, replace=False)


def _labels(run: Run, label: str | None, n: int) -> Int[np.ndarray, " n"] | None:
    if run.model.classes is None:
        if label is not None:
            raise DataError(f"--label={label}: the run is not conditional. Train one with model.conditional=True.")
        return None
    if label is None:
        return np.arange(n) % run.model.classes
    return np.full(n, label_of(run, label, "--label"))


def label_of(run: Run, label: str, argument: str) -> int:
    """The number of a label, which an argument names. Raises DataError where there is none of that name."""
    names = run.data.label_names or ()
    if label not in names:
        expected = f"expected one of {', '.join(names)}" if names else "the images have no labels"
        raise DataError(f"{argument}={label}: {expected}.")
    return names.index(label)
