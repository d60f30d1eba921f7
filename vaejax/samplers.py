"""Where a run's latents come from: its own prior, or a mixture fitted to the posterior of its training images."""

import jax
import numpy as np
from jaxtyping import Float

from vaejax import experiment, keys
from vaejax.applications.generation import Sampler, fit_mixture, sampler_of
from vaejax.errors import DataError, FamilyError
from vaejax.models import Params, condition_of
from vaejax.progress import console
from vaejax.runs import Run

SAMPLERS = ("prior", "mixture")
"""The choices of `--sampler`."""

COMPONENTS = 10
"""Gaussians in a fitted mixture, unless asked otherwise."""

MOST = 60_000
"""Training images that a mixture is fitted to, at most; beyond it, evenly spaced ones."""


def check(run: Run, name: str, components: int = COMPONENTS) -> None:
    """Raises where a run has no such sampler: FamilyError for its family, DataError for too few images."""
    if name == "prior":
        return
    if not run.model.vector or run.model.classes:
        reason = f"the latents of model.family={run.config.model.family!r} are none"
        raise FamilyError(
            f"--sampler={name}: a mixture is fitted to one vector an image, and knows no label; "
            f"{reason if not run.model.vector else 'the run is conditional'}. Choose --sampler=prior."
        )
    if run.data.splits["train"].n < components:
        raise DataError(
            f"--sampler={name}: {components} Gaussians are fitted to the training images, and there are "
            f"{run.data.splits['train'].n}. Choose --sampler=prior."
        )


def build(run: Run, params: Params, name: str, components: int = COMPONENTS) -> Sampler | None:
    """The sampler of a name; None stands for the model's own prior.

    Raises:
        FamilyError: a mixture is asked for, and the latents are not one vector of reals, or depend on a label.
        DataError: fewer training images than components.
    """
    check(run, name, components)
    if name == "prior":
        return None
    latents = posterior_draws(run, params)
    console.print(f"fitting {components} Gaussians to the posterior of {len(latents)} training images")
    return sampler_of(fit_mixture(latents, components))


def posterior_draws(run: Run, params: Params) -> Float[np.ndarray, "n d"]:
    """One draw from the posterior of each training image, or of those evenly spaced."""
    key = keys.stream(jax.random.key(0), "posterior of train")
    infer = jax.jit(lambda images, index, told: run.model.infer(params, images, keys.of_examples(key, index), 1, told).latents)
    size = run.data.splits["train"].n
    found, rows, stride = [], min(run.config.evaluation.batch_size, size), -(-size // MOST)
    for batch in experiment.evaluation_batches(run, "train", rows):
        drawn = infer(batch["image"], batch["index"], condition_of(run.model, batch))[0]
        found.append(np.asarray(drawn)[batch["mask"] & (batch["index"] % stride == 0)])
    return np.concatenate(found)
