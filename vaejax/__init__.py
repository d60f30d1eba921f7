"""Variational autoencoders for medical images in JAX. Research use only.

    import vaejax

    model = vaejax.build(vaejax.ModelConfig(network="cnn", latent_size=16), image_shape=(28, 28, 1))

The names below are loaded when they are first used, so that `import vaejax` is quick and brings nothing that is not needed:
no TensorFlow, no Orbax, no matplotlib.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vaejax.applications.generation import sample
    from vaejax.applications.reconstruction import encode, interpolate, reconstruct
    from vaejax.batches import batch_of
    from vaejax.config import Config, ModelConfig, ObjectiveConfig, OptimizerConfig, default_config
    from vaejax.errors import VaejaxError
    from vaejax.models.families import build
    from vaejax.models.model import Inference, Model
    from vaejax.objectives.evidence import elbo
    from vaejax.objectives.importance import iwae
    from vaejax.objectives.objective import Objective
    from vaejax.training import TrainState, eval_step, init, train_step

_HOMES = {
    "sample": "applications.generation",
    "encode": "applications.reconstruction",
    "interpolate": "applications.reconstruction",
    "reconstruct": "applications.reconstruction",
    "batch_of": "batches",
    "Config": "config",
    "ModelConfig": "config",
    "ObjectiveConfig": "config",
    "OptimizerConfig": "config",
    "default_config": "config",
    "VaejaxError": "errors",
    "Inference": "models.model",
    "Model": "models.model",
    "build": "models.families",
    "Objective": "objectives.objective",
    "elbo": "objectives.evidence",
    "iwae": "objectives.importance",
    "TrainState": "training",
    "eval_step": "training",
    "init": "training",
    "train_step": "training",
}

__version__ = "0.1.0"
__all__ = [
    "Config",
    "Inference",
    "Model",
    "ModelConfig",
    "Objective",
    "ObjectiveConfig",
    "OptimizerConfig",
    "TrainState",
    "VaejaxError",
    "batch_of",
    "build",
    "default_config",
    "elbo",
    "encode",
    "eval_step",
    "init",
    "interpolate",
    "iwae",
    "reconstruct",
    "sample",
    "train_step",
]


def __getattr__(name: str) -> Any:
    """Loads a public name from the module where it lives."""
    if name not in _HOMES:
        raise AttributeError(f"module 'vaejax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"vaejax.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
