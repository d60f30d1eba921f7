"""From a run directory to trained weights: images, model, objective and steps put together, watched, and saved."""

import itertools
import math
import time
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float32, Int

from vaejax import batches as batching
from vaejax import checkpoints, hosts, keys, optimizers, resident, training, transfer
from vaejax.batches import Batch
from vaejax.checkpoints import Writer
from vaejax.errors import CheckpointError, DataError, Terminated, TrainingError, VaejaxError
from vaejax.interruption import Interruption
from vaejax.journal import Journal
from vaejax.models import Params
from vaejax.objectives import Objective
from vaejax.progress import bar, console
from vaejax.runs import Run
from vaejax.training import TrainState

STUCK = 100
"""Updates skipped one after the other, after which a training stops."""


class Trained(NamedTuple):
    """The weights of a run at a step."""

    step: int
    params: Params
    """The averaged weights, for evaluation."""


def train(run: Run, interruption: Interruption) -> None:
    """Trains a run to `training.steps`, from its newest whole checkpoint where there is one.

    Raises:
        TrainingError: a term is not finite, or a step does not fit in memory.
        CheckpointError: a checkpoint cannot be written, or there are some but none can be used.
        Terminated: a stop was asked for; the step in flight is saved.
    """
    objective = training.objective_of(run.model, run.config)
    restored = checkpoints.restore(run.checkpoints, run.fingerprint, training.abstract(run.model, objective))
    _tell(restored.notes if restored else [])
    state = restored.state if restored else _initial(run, objective)
    done = int(state.step)
    if done >= run.config.training.steps:
        return
    if restored:
        console.print(f"going on from step {done}")
    with (
        Writer(run.checkpoints, run.fingerprint) as writer,
        Journal(run.directory, done) as journal,
        training.explain_out_of_memory("data.batch_size", run.config.data.batch_size),
    ):
        _loop(run, objective, state, writer, journal, interruption)


def restore(run: Run, best: bool = False) -> Trained:
    """The averaged weights of a run's newest whole checkpoint, or of the one with the lowest validation loss.

    Raises:
        CheckpointError: there is none, or none can be used.
    """
    abstract = training.abstract(run.model, training.objective_of(run.model, run.config))
    restored = checkpoints.restore(run.checkpoints, run.fingerprint, abstract, best=best)
    if restored is None:
        raise CheckpointError(f"{run.checkpoints}: no checkpoint yet. Train the run first.")
    _tell(restored.notes)
    return Trained(restored.step, restored.state.ema if run.config.training.ema_decay else restored.state.params)


def training_batches(run: Run, first_step: int) -> Iterator[Batch]:
    """The training batches of a run from `first_step` on, or this process's rows of them: shuffled, augmented, binarised."""
    data, split, share = run.config.data, run.data.splits["train"], hosts.share(run.config.data.batch_size)
    if data.resident:
        grey = batching.training(split, run.data.white, data.batch_size, grid(run), run.config.seed, first_step, share)
    else:
        from vaejax import pipeline  # brings TensorFlow, which evaluation has no use for

        grey = pipeline.training_batches(
            split, run.data.white, data.batch_size, run.config.augment, grid(run), run.config.seed, first_step, share
        )
    if data.binarization == "dynamic":
        return batching.binarized(grey, keys.stream(_key(run), "binarization"), first_step)
    return _fixed(run, grey, "train", draw=0)


def evaluation_batches(run: Run, split: str, batch_size: int, draw: int = 0, share: slice = slice(None)) -> Iterator[Batch]:
    """One pass over a split, in order, or the rows `share` of each batch.

    Where images are binarised, `draw` is the seed of one fixed draw an image.
    """
    grey = batching.evaluation(run.data.splits[split], run.data.white, batch_size, grid(run), share)
    return _fixed(run, grey, split, draw)


def rows(run: Run, split: str, index: Int[np.ndarray, " b"], draw: int = 0) -> Batch:
    """Chosen images of a split, as evaluation sees them."""
    (batch,) = _fixed(run, iter([batching.of_rows(run.data.splits[split], run.data.white, index, grid(run))]), split, draw)
    return batch


def outside(run: Run, images: Float32[np.ndarray, "b h w c"], index: Int[np.ndarray, " b"]) -> Batch:
    """Images of no split, in [0, 1], as evaluation sees those of one; `index` tells their draws where they are binarised."""
    grey = batching.batch_of(batching.quantize(images, grid(run)), index)
    (batch,) = _fixed(run, iter([grey]), "no split", draw=0)
    return batch


def grid(run: Run) -> int | None:
    """Grey levels that images are rounded to before the model sees them; None where the likelihood is a density."""
    return run.model.levels if run.config.data.binarization == "none" else None


def _fixed(run: Run, batches: Iterator[Batch], split: str, draw: int) -> Iterator[Batch]:
    if run.config.data.binarization == "none":
        return batches
    return batching.binarized(batches, _drawing(split, draw))


def _drawing(split: str, draw: int) -> jax.Array:
    """The key of one fixed draw an image."""
    return keys.stream(jax.random.key(draw), f"binarization of {split}")


def _calls(run: Run, first_step: int) -> Iterator[Batch]:
    """The training batches from `first_step` to the last on the devices, those of a call of the step at a time."""
    turns, data = _turns(run, first_step), run.config.data
    if not data.resident:
        batches = training_batches(run, first_step)
        for count in turns:
            yield training.place(next(batches) if count == 1 else batching.stacked(list(itertools.islice(batches, count))))
        return
    own, fixed = keys.stream(_key(run), "binarization"), _drawing("train", draw=0)
    binarize: dict[str, resident.Binarize] = {
        "none": lambda step, images, index: images,
        "static": lambda step, images, index: batching.bernoulli(fixed, None, images, index),
        "dynamic": lambda step, images, index: batching.bernoulli(own, step, images, index),
    }
    yield from resident.training_batches(
        run.data.splits["train"],
        run.data.white,
        data.batch_size,
        grid(run),
        run.config.seed,
        first_step,
        turns,
        hosts.share(data.batch_size),
        binarize[data.binarization],
    )


def _turns(run: Run, number: int) -> Iterator[int]:
    """How many steps each call takes: as configured, or a single one where something is due before so many are done."""
    settings = run.config.training
    while number < settings.steps:
        due = min(settings.steps, *((number // period + 1) * period for period in _periods(run)))
        count = settings.steps_per_call if number + settings.steps_per_call <= due else 1
        yield count
        number += count


class Due(NamedTuple):
    """What is to be done after a step."""

    log: bool
    validate: bool
    save: bool
    last: bool


def _due(run: Run, number: int) -> Due:
    last = number == run.config.training.steps
    log, validate, save = (number % period == 0 or last for period in _periods(run))
    return Due(log, validate, save, last)


def _periods(run: Run) -> tuple[int, int, int]:
    """Steps between lines of the journal, validations and checkpoints."""
    settings, epoch = run.config.training, run.data.splits["train"].n // run.config.data.batch_size
    return settings.log_every, max(epoch, 1), settings.checkpoint_every


def _loop(
    run: Run, objective: Objective, state: TrainState, writer: Writer, journal: Journal, interruption: Interruption
) -> None:
    """Calls of one or several steps, and between them what is due: a line in the journal, a validation, a checkpoint, a stop.

    What a call tells is read when the next one is under way, and before anything is saved. Of several processes, all take the
    same turns, and stop together when one of them is asked to.
    """
    hosts.require_parts(run.config.data.batch_size, run.config.objective.parts)
    step, noise = training.train_step(objective, run.config.training.ema_decay), keys.stream(_key(run), "noise")
    evaluate, best = training.eval_step(run.model, run.config.objective), _best_loss(run)
    read: list[dict[str, float]] = []
    number, unread, since, moved = int(state.step), None, time.perf_counter(), (0, int(state.step))
    batches = _fitting(run, step, state, noise)
    with bar("training", run.config.training.steps, number) as show:
        for batch in batches:
            asked = hosts.anybody(lambda: interruption.requested)
            state, report = step(state, batch, noise)
            read += training.check_finite(*unread) if unread else []
            unread = (report, batch["index"], number + 1)
            number += math.prod(batch["index"].shape[:-1])
            due, stop = _due(run, number), asked()
            if any(due) or stop:
                read += training.check_finite(*unread)
                unread = None
            if due.log:
                means = _means(read, tuple(report.gauges))
                moved = _moved(run, number, means, moved)
                speed = len(read) * run.config.data.batch_size / (time.perf_counter() - since)
                show(number, _logged(run, journal, number, means, speed, (*report.terms, *report.gauges)))
                read, since = [], time.perf_counter()
            metrics = _validate(run, evaluate, state.ema, interruption) if due.validate and not stop else {}
            stop = stop or (due.validate and not metrics)  # asked for during the validation
            if metrics:
                journal.write(number, "val", metrics)
            if due.save or stop or metrics.get("loss", math.inf) < best:
                best = min(best, metrics.get("loss", math.inf))
                journal.flush()
                writer.save(number, state, metrics)
            if stop and not due.last:
                writer.wait()  # so that what is told below is true
                raise Terminated(f"stopped by SIGTERM at step {number}, which is saved; the same command goes on from there.")


def _fitting(run: Run, step: training.TrainStep, state: TrainState, noise: jax.Array) -> Iterator[Batch]:
    """The batches of all calls, after a look whether the first of them fits in memory."""
    number = int(state.step)
    batches = _calls(run, number)
    try:
        first = next(batches)
        training.require_memory(step, state, first, noise, run.config.data.batch_size)
    except (DataError, TrainingError):
        if number == 0:
            _forget(run)
        raise
    return itertools.chain([first], batches)


def _means(read: list[dict[str, float]], gauges: tuple[str, ...]) -> dict[str, float]:
    """Of what steps told; of a gauge, what it stands at."""
    means = {name: float(np.mean([values[name] for values in read])) for name in read[0]}
    return means | {name: read[-1][name] for name in gauges}


def _logged(run: Run, journal: Journal, number: int, means: dict[str, float], speed: float, told: tuple[str, ...]) -> str:
    """Writes a line of the journal, and says it in words, with the means that are `told`."""
    step = number - int(means.get("skipped", 0))  # skipped steps do not count in the schedule
    rate = float(optimizers.schedule(run.config.optimizer, run.config.training.steps)(step))
    journal.write(number, "train", means | {"learning_rate": rate, "images_per_second": speed})
    return f"{speed:.0f} images/s " + " ".join(f"{name} {means[name]:.4g}" for name in ("loss", *told))


def _moved(run: Run, number: int, means: dict[str, float], before: tuple[int, int]) -> tuple[int, int]:
    """How many updates were not skipped, and by which step.

    Raises:
        TrainingError: none was for long. The weights stay what they are, and so will the gradient.
    """
    updates = number - int(means.get("skipped", 0))
    if updates > before[0]:
        return updates, number
    if number - before[1] >= STUCK:
        raise TrainingError(
            f"optimizer.skip_norm={run.config.optimizer.skip_norm:g}: all updates since step {before[1]} were skipped; the "
            f"gradient's norm is {means['gradient_norm']:.3g}. Choose a larger optimizer.skip_norm, in another --workdir."
        )
    return before


def _validate(run: Run, evaluate: training.EvalStep, params: Params, interruption: Interruption) -> dict[str, float]:
    """Means over the validation split, nats an image; {} where a stop is asked for meanwhile."""
    key = keys.stream(jax.random.key(0), "posterior of val")
    sums: dict[str, float] = {}
    size = run.config.data.batch_size  # what a training step fits in, this does
    for batch in evaluation_batches(run, "val", size, share=hosts.share(size)):
        asked, placed = hosts.anybody(lambda: interruption.requested), training.place(batch)
        if asked():
            return {}
        mask = hosts.gathered(placed["mask"])
        for name, values in evaluate(params, placed, key).items():
            sums[name] = sums.get(name, 0.0) + float(hosts.gathered(values)[mask].sum(dtype=np.float64))
    return {name: total / run.data.splits["val"].n for name, total in sums.items()}


def _best_loss(run: Run) -> float:
    whole = checkpoints.steps(run.checkpoints, run.fingerprint).whole
    best = checkpoints.best_step(whole)
    return hosts.of_first(math.inf if best is None else whole[best].metrics["loss"])


def _initial(run: Run, objective: Objective) -> TrainState:
    """The state before the first step, with what is taken over from another run."""
    key = keys.stream(_key(run), "init")
    if run.config.transfer.source is None:
        return training.init(run.model, objective, key)
    try:
        return training.init(run.model, objective, key, lambda params: transfer.take_over(run, params))
    except VaejaxError:
        _forget(run)
        raise


def _forget(run: Run) -> None:
    """Nothing has begun: the mended command may use the folder."""
    for name in ("config.json", "data.json") if hosts.first() else ():
        (run.directory / name).unlink(missing_ok=True)


def _key(run: Run) -> jax.Array:
    return jax.random.key(run.config.seed)


def _tell(notes: list[str]) -> None:
    for note in notes:
        console.print(f"damaged checkpoint: {note}")
