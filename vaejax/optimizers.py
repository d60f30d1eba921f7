"""Update rules and step-size schedules by name (optax)."""

import optax

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
    """Clipping by global norm, then the update rule."""
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    return optax.chain(clip, _RULES[config.name](schedule(config, steps), config.weight_decay))
