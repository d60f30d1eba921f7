"""Models: pure functions behind one interface, one file a family."""

from vaejax.models.families import build
from vaejax.models.model import (
    CODEBOOK,
    DECODER,
    ENCODER,
    Condition,
    Inference,
    Latents,
    Model,
    Params,
    condition_of,
    flat,
    weights_of,
)

__all__ = [
    "CODEBOOK",
    "DECODER",
    "ENCODER",
    "Condition",
    "Inference",
    "Latents",
    "Model",
    "Params",
    "build",
    "condition_of",
    "flat",
    "weights_of",
]
