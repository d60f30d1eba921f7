"""Objectives: what is minimised, one file each."""

from vaejax.objectives.adversarial import vae_gan
from vaejax.objectives.evidence import elbo
from vaejax.objectives.importance import iwae
from vaejax.objectives.names import build, validation_terms
from vaejax.objectives.objective import Objective, Terms, Update, elbo_terms, masked_mean
from vaejax.objectives.quantized import vq
from vaejax.objectives.segmentation import segmentation, segmentation_terms

__all__ = [
    "Objective",
    "Terms",
    "Update",
    "build",
    "elbo",
    "elbo_terms",
    "iwae",
    "masked_mean",
    "segmentation",
    "segmentation_terms",
    "vae_gan",
    "validation_terms",
    "vq",
]
