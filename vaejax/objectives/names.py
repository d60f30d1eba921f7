"""From the configuration to an objective, and to what the best checkpoint is chosen by."""

import optax
from jaxtyping import Array, Float

from vaejax import distributions as dist
from vaejax.config import ObjectiveConfig
from vaejax.models import Inference, Model
from vaejax.objectives.adversarial import vae_gan
from vaejax.objectives.evidence import elbo
from vaejax.objectives.importance import iwae, log_mean_exp
from vaejax.objectives.objective import Objective, Terms, elbo_terms
from vaejax.objectives.quantized import vq
from vaejax.objectives.segmentation import segmentation

OBJECTIVES = {"elbo": elbo, "iwae": iwae, "vq": vq, "vae_gan": vae_gan, "segmentation": segmentation}
"""The choices of `objective.name`."""


def build(
    model: Model, config: ObjectiveConfig, optimizer: optax.GradientTransformation, frozen: tuple[str, ...] = ()
) -> Objective:
    """The objective that a configuration names; `frozen` parts of the parameters stay as they are."""
    return OBJECTIVES[config.name](model, config, optimizer, frozen)


def validation_terms(inference: Inference, images: Float[Array, "b ..."], config: ObjectiveConfig) -> Terms:
    """The terms of the ELBO, and under "loss" the negative bound that `config` names, beta and free bits left out.

    An adversarial objective has no bound of its own: its "loss" is the ELBO's.
    """
    terms = elbo_terms(inference, images)
    if config.name != "iwae":
        return {"loss": terms["distortion"] + terms["rate"]} | terms
    return {"loss": -log_mean_exp(dist.log_prob(inference.likelihood, images) - inference.log_ratio)} | terms
