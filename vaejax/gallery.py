"""What a trained run can show, as files: a PNG grid to look at and an NPZ of the same images to work with."""

from pathlib import Path

import numpy as np
from etils import epath
from jaxtyping import Bool, Int

from vaejax import experiment, report, samplers
from vaejax.applications import inpainting
from vaejax.datasets import image as files
from vaejax.errors import DataError, FamilyError
from vaejax.runs import Run

COLUMNS = 10
"""Images in a row of a grid of samples."""


def sample(
    run: Run,
    output: epath.Path,
    best: bool,
    n: int,
    seed: int,
    temperature: float,
    label: str | None = None,
    sampler: str = "prior",
) -> None:
    """Writes samples.png and samples.npz (`images` [n, h, w, c]): expected images of draws from the prior, or a mixture.

    Of a conditional model, all have the label asked for, or each the next one; `label` [n] is then in the file too.
    """
    trained, labels = experiment.restore(run, best), _labels(run, label, n)
    drawing = samplers.build(run, trained.params, sampler)
    images = report.draw_samples(run.model, trained.params, seed, n, temperature, labels, drawing)
    white = np.ones((-n % COLUMNS, *images.shape[1:]), np.float32)
    rows = np.concatenate([images, white]).reshape(-1, COLUMNS, *images.shape[1:])
    arrays = {"images": images} if labels is None else {"images": images, "label": labels}
    report.save(output, "samples", rows if n > COLUMNS else images[np.newaxis], arrays)


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
    if run.config.objective.name == "vae_gan":
        raise FamilyError(
            "inpaint: trained against a discriminator, the likelihood is no longer fitted to the images, so that it does not "
            "say what a missing pixel may be. Choose a run with objective.name='elbo' or 'iwae'."
        )
    missing = _missing(mask, run.model.image_shape)
    trained, batch = experiment.restore(run, best), experiment.rows(run, split, _choose(run, split, n, seed))
    images = np.asarray(batch["image"])
    found = report.draw_inpainted(run.model, trained.params, batch, missing, seed, draws)
    seen = np.where(missing[..., np.newaxis], np.float32(0.5), images)
    columns = np.concatenate([[images, seen], found.draws, [found.mean, 2.0 * found.sd]])
    arrays = {"images": images, "missing": missing, "index": np.asarray(batch["index"])} | found._asdict()
    report.save(output, "inpainted", np.moveaxis(columns, 0, 1), arrays)
    return found


def _missing(mask: str, image_shape: tuple[int, ...]) -> Bool[np.ndarray, "h w"]:
    """Missing pixels by the name of a region, or the bright ones of an image file."""
    if not Path(mask).suffix:
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
    names = run.data.label_names or ()
    if label not in names:
        raise DataError(f"--label={label}: expected one of {', '.join(names)}.")
    return np.full(n, names.index(label))
