"""Update rules and step-size schedules by name (optax)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from vaejax.config import OptimizerConfig

_RULES = {
    "adam": lambda schedule, decay: optax.adam(schedule),
    "adamw": lambda schedule, decay: optax.adamw(schedule, weight_decay=decay),
    "adamax": lambda schedule, decay: optax.adamax(schedule),
    "lion": lambda schedule, decay: optax.lion(schedule, weight_decay=decay),
    "sgd": lambda schedule, decay: optax.sgd(schedule, momentum=0.9, nesterov=True),
}


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Step size by step: linear warm-up to `learning_rate`, then held or brought to 0 at `steps`."""
    remaining = max(steps - config.warmup_steps, 1)
    after = {
        "constant": optax.constant_schedule(config.learning_rate),
        "linear": optax.linear_schedule(config.learning_rate, 0.0, remaining),
        "cosine": optax.cosine_decay_schedule(config.learning_rate, remaining),
    }[config.schedule]
    warmup = optax.linear_schedule(0.0, config.learning_rate, max(config.warmup_steps, 1))
    return optax.join_schedules([warmup, after], [config.warmup_steps])


def build(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clipping by global norm, then the update rule; large gradients are skipped where a limit is set."""
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    rule = optax.chain(clip, _RULES[config.name](schedule(config, steps), config.weight_decay))
    return skipping(rule, config.skip_norm) if config.skip_norm else rule


class Skipping(NamedTuple):
    """The state of `skipping`."""

    skipped: Int[Array, ""]
    """Updates skipped so far."""
    inner: PyTree


def skipping(inner: optax.GradientTransformation, largest: float) -> optax.GradientTransformation:
    """`inner`, but a gradient whose norm is larger than `largest` changes nothing and is counted (Child 2021, section 4.3)."""

    def init(params: PyTree) -> Skipping:
        return Skipping(jnp.int32(0), inner.init(params))

    def update(gradient: PyTree, state: Skipping, params: PyTree = None) -> tuple[PyTree, Skipping]:
        skip = optax.tree.norm(gradient) > largest
        change, moved = inner.update(gradient, state.inner, params)
        change = jax.tree.map(lambda leaf: jnp.where(skip, jnp.zeros_like(leaf), leaf), change)
        stayed = jax.tree.map(lambda old, new: jnp.where(skip, old, new), state.inner, moved)
        return change, Skipping(state.skipped + skip, stayed)

    return optax.GradientTransformation(init, update)
