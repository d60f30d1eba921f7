"""Training: the state, and pure jitted steps over a `"data"` mesh that take any batch of the contract.

All randomness of a step follows from (key, step, index), so that a run that was stopped and resumed has the bits of one that
was not.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from vaejax import hosts, memory, objectives, optimizers
from vaejax.batches import Batch
from vaejax.config import Config, ObjectiveConfig
from vaejax.errors import TrainingError
from vaejax.keys import of_examples, stream
from vaejax.models import Model, Params, condition_of
from vaejax.objectives import Objective, Terms, masked_mean, segmentation_terms, validation_terms


class TrainState(NamedTuple):
    """All that a step changes; donated to the next one."""

    step: Int[Array, ""]
    """Steps done."""
    params: Params
    ema: Params
    """Exponential moving average of `params`: the weights that are evaluated."""
    objective: PyTree
    """The objective's own state, optimisers included."""


class Report(NamedTuple):
    """What a step tells."""

    loss: Float[Array, ""]
    """What the step minimised, nats an image."""
    terms: Terms
    """Per example, nats an image."""
    means: Terms
    """The terms' means over the batch, `[]`."""
    gradient_norm: Float[Array, ""]
    gauges: dict[str, Float[Array, ""]]
    """What stands after the step and is no mean over it (see `objectives.Update`)."""


TrainStep = Callable[[TrainState, Batch, Key[Array, ""]], tuple[TrainState, Report]]
EvalStep = Callable[[Params, Batch, Key[Array, ""]], Terms]


def objective_of(model: Model, config: Config) -> Objective:
    """What a configuration minimises, with its optimiser and its frozen parts."""
    optimizer = optimizers.build(config.optimizer, config.training.steps)
    return objectives.build(model, config.objective, optimizer, config.transfer.freeze)


def init(
    model: Model, objective: Objective, key: Key[Array, ""], begin: Callable[[Params], Params] = lambda params: params
) -> TrainState:
    """The state before the first step, on every device of the mesh.

    Args:
        model: what is trained.
        objective: what is minimised.
        key: of the initial weights and of the objective's own.
        begin: what to make of the initial weights, such as to take over another run's; not traced.
    """
    params = begin(jax.jit(model.init, out_shardings=hosts.replicated())(key))

    def build(params: Params, key: Key[Array, ""]) -> TrainState:
        return TrainState(
            jnp.int32(0), params, jax.tree.map(jnp.copy, params), objective.init(params, stream(key, "objective"))
        )

    return jax.jit(build, out_shardings=hosts.replicated())(params, key)


def abstract(model: Model, objective: Objective) -> TrainState:
    """Shapes, types and shardings of a state, to restore one into."""
    shapes = jax.eval_shape(functools.partial(init, model, objective), jax.random.key(0))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=hosts.replicated()), shapes)


def train_step(objective: Objective, ema_decay: float) -> TrainStep:
    """A jitted function (state, batch, key) -> (state, report); the given state's buffers are reused.

    Given several batches, stacked along a first axis, it takes a step for each, and stacks what they tell.

    The decay of the average grows from 0.1 to `ema_decay` over the first steps, so that the initial weights are soon forgotten.
    """

    def step(state: TrainState, batch: Batch, key: Key[Array, ""]) -> tuple[TrainState, Report]:
        key = jax.random.fold_in(key, state.step)
        update = objective.update(state.params, state.objective, batch, key, state.step)
        decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
        ema = jax.tree.map(lambda old, new: old + (1.0 - decay) * (new - old), state.ema, update.params)
        means = {name: masked_mean(values, batch["mask"]) for name, values in update.terms.items()}
        report = Report(update.loss, update.terms, means, update.gradient_norm, update.gauges)
        return TrainState(state.step + 1, update.params, ema, update.state), report

    def steps(state: TrainState, batch: Batch, key: Key[Array, ""]) -> tuple[TrainState, Report]:
        if batch["index"].ndim == 1:
            return step(state, batch, key)
        return jax.lax.scan(lambda state, one: step(state, one, key), state, batch)

    return jax.jit(steps, donate_argnums=0)


def eval_step(model: Model, config: ObjectiveConfig) -> EvalStep:
    """A jitted function (params, batch, key) -> `objectives.validation_terms`; draws depend on (key, index) alone.

    Of a segmenter it is `objectives.segmentation_terms`, and their sum under "loss".
    """

    def step(params: Params, batch: Batch, key: Key[Array, ""]) -> Terms:
        if model.segment is not None:
            terms = segmentation_terms(model.segment(params, batch["image"]), batch["segmentation"])
            return {"loss": jnp.stack(list(terms.values())).sum(axis=0)} | terms
        example_keys, condition = of_examples(key, batch["index"]), condition_of(model, batch)
        inference = model.infer(params, batch["image"], example_keys, config.samples, condition)
        return validation_terms(inference, batch["image"], config)

    return jax.jit(step)


def place(batch: Batch) -> Batch:
    """Puts a batch, or several that are stacked, on the devices, the rows divided among them; each process gives its own.

    Raises:
        TrainingError: where they do not divide, with the nearest sizes that do.
    """
    *before, rows = np.shape(batch["index"])
    hosts.require_shares(rows * jax.process_count())
    return hosts.divided(dict(batch), len(before))


def require_memory(step: TrainStep, state: TrainState, batch: Batch, key: Key[Array, ""], rows: int) -> None:
    """Compiles a jitted step for a batch of `rows`, which its first call then need not, and sees whether it fits.

    Raises:
        TrainingError: where a step needs more memory than is left in any process, with a batch size that should fit.
    """
    needs = step.lower(state, batch, key).compile().memory_analysis()  # type: ignore[attr-defined]  # it is jitted
    known = memory.available()
    left = hosts.least(math.inf if known is None else known)  # so that all processes refuse, or none
    asked = 0 if needs is None else needs.temp_size_in_bytes + max(needs.output_size_in_bytes - needs.alias_size_in_bytes, 0)
    if asked > left:
        raise TrainingError(
            f"data.batch_size={rows}: a step needs {asked / 2**30:.2g} GiB of memory, and {left / 2**30:.2g} are left. "
            + _instead("data.batch_size", int(rows * left / asked))
        )


def _instead(field: str, rows: int) -> str:
    """What to try in place of a batch that does not fit: at most `rows`, shared by the devices."""
    fits = max(rows // jax.device_count(), 1) * jax.device_count()
    parts = ", or more objective.parts, for the same batch in less memory" if field == "data.batch_size" else ""
    return f"Try {field}={fits}{parts}."


@contextlib.contextmanager
def explain_out_of_memory(field: str, rows: int) -> Iterator[None]:
    """Turns the device's "out of memory" into the batch size to try.

    Raises:
        TrainingError: naming `field` and a value of half of `rows`, a multiple of the devices.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "out of memory" not in str(error).lower():
            raise
        raise TrainingError(f"{field}={rows}: does not fit in the device's memory. {_instead(field, rows // 2)}") from error


def check_finite(report: Report, index: Int[Array, "*k b"], step: int) -> list[dict[str, float]]:
    """Each step's loss, the means of its terms, the norm of its gradient, and its gauges.

    Args:
        report: of one step, or of several that are stacked.
        index: of their images.
        step: the number of the first.

    Raises:
        TrainingError: where a term is not finite, naming the term, the step and the images.
    """
    scalars = {"loss": report.loss, "gradient_norm": report.gradient_norm} | report.gauges
    told = {name: np.atleast_1d(value) for name, value in (report.means | scalars).items()}
    for place in range(len(told["loss"])):
        for name, values in told.items():
            if not math.isfinite(values[place]):
                rows = np.atleast_2d(hosts.own(index))[place]
                terms = np.atleast_2d(hosts.own(report.terms[name]))[place] if name in report.terms else None
                raise TrainingError(_not_finite(name, step + place, rows, terms))
    return [{name: float(values[place]) for name, values in told.items()} for place in range(len(told["loss"]))]


def _not_finite(term: str, step: int, index: Int[np.ndarray, " b"], values: Float[np.ndarray, " b"] | None) -> str:
    """Which images it is, or of which batch where it is no term of a single one."""
    bad = index if values is None else index[~np.isfinite(values)]
    named = ", ".join(str(i) for i in bad[:10])
    if values is None:
        where = f"in the batch of training images {named}, ... (by index)"
    elif len(bad):
        where = f"for training images {named}{f' and {len(bad) - 10} more' if len(bad) > 10 else ''} (by index)"
    else:
        where = "for images that another process holds"
    return (
        f"step {step}: {term} is not finite {where}. Nothing of this step was saved. Look at those images; "
        "lower optimizer.learning_rate or optimizer.clip_norm, or lengthen optimizer.warmup_steps, in another --workdir."
    )
