"""Starting a run from the averaged weights of another one, part by part."""

import hashlib
from typing import Any

import jax

from vaejax import checkpoints, runs, storage, training
from vaejax.checkpoints import Restored
from vaejax.config import TransferConfig
from vaejax.errors import TrainingError
from vaejax.models import Params
from vaejax.progress import console
from vaejax.runs import Outline, Run


def take_over(run: Run, ours: Params) -> Params:
    """The initial weights `ours`, with the parts that `transfer.parts` names from the newest step of `transfer.source`.

    Writes `source.json`: the source's step, the sha256 of its manifest, and what begins anew: leaves of another
    shape, and parts that `transfer.parts` leaves out.

    Raises:
        TrainingError: the source is no run, has no checkpoint, or has weights of another shape and `transfer.mismatch` says
            to stop.
        CheckpointError: the source's checkpoints are damaged.
    """
    config = run.config.transfer
    assert config.source is not None  # the caller has looked
    if set(ours) <= set(config.freeze):
        raise TrainingError(
            f"transfer.freeze={config.freeze!r}: these are all parts of the model, and nothing is left to train."
        )
    source = runs.outline(config.source)
    _require_same_labels(source, run)
    restored = _restore(source)
    theirs = restored.state.ema if source.config.training.ema_decay else restored.state.params
    params, fresh = _merged(ours, theirs, config, source, run)
    anew = [*fresh, *(part for part in ours if part not in config.parts)]
    record = {"step": restored.step, "sha256": _sha256(source, restored.step), "parts": list(config.parts), "fresh": anew}
    runs.write_json(run.directory / "source.json", record)
    started = f"starting from step {restored.step} of {config.source}"
    console.print(started + (f"; begins anew: {', '.join(anew)}" if anew else ""))
    return params


def _require_same_labels(source: Outline, run: Run) -> None:
    """A conditional model knows labels by number: their names must agree."""
    if not (source.model.classes and run.model.classes):
        return
    theirs, ours = source.label_names or [], list(run.data.label_names or ())
    if theirs != ours:
        raise TrainingError(
            f"transfer.source={source.directory}: its labels are {', '.join(theirs)}, these are {', '.join(ours)}. "
            "A conditional model can be taken over by images with the same labels in the same order."
        )


def _restore(source: Outline) -> Restored:
    abstract = training.abstract(source.model, training.objective_of(source.model, source.config))
    restored = checkpoints.restore(source.checkpoints, source.fingerprint, abstract)
    if restored is None:
        raise TrainingError(f"transfer.source={source.directory}: no checkpoint yet. Train that run first.")
    for note in restored.notes:
        console.print(f"damaged checkpoint: {note}")
    return restored


def _merged(
    ours: Params, theirs: Params, config: TransferConfig, source: Outline, run: Run
) -> tuple[dict[str, Any], list[str]]:
    """The parameters, and the names of the leaves that could not be taken over."""
    parts = [part for part in config.parts if part in ours]
    lacking = [part for part in parts if part not in theirs]
    if lacking:
        raise TrainingError(
            f"transfer.parts={config.parts!r}: {source.directory} has no {', '.join(lacking)}. Leave it out, or choose "
            "a source with the same model.family, model.prior and model.likelihood."
        )
    merged, fresh, different = dict(ours), [], []
    for part in parts:
        there, (here, arranged) = dict(_named(theirs[part])), jax.tree_util.tree_flatten_with_path(ours[part])
        leaves = []
        for path, leaf in here:
            name = jax.tree_util.keystr(path)
            found = there.pop(name, None)
            fits = found is not None and found.shape == leaf.shape
            leaves.append(jax.device_put(found, leaf.sharding) if fits else leaf)
            if not fits:
                fresh.append(part + name)
                different.append(f"{part}{name}: {None if found is None else found.shape} there, {leaf.shape} here")
        different += [f"{part}{name}: {leaf.shape} there, None here" for name, leaf in there.items()]
        merged[part] = jax.tree_util.tree_unflatten(arranged, leaves)
    frozen = [name for name in fresh if name.startswith(config.freeze)]
    if different and (config.mismatch == "stop" or frozen):
        raise TrainingError(_mismatch(different, frozen, source, run))
    return merged, fresh


def _named(part: Params) -> list[tuple[str, jax.Array]]:
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(part)]


def _mismatch(different: list[str], frozen: list[str], source: Outline, run: Run) -> str:
    there, here = source.model.image_shape, run.model.image_shape
    images = f"Its images are {there}, these are {here} (height, width, channels). " if there != here else ""
    size = f"data.image_size={there[:2]} with data.channels={there[2]}, or " if there != here else "the source's model.*, or "
    anew = "" if frozen else 'transfer.mismatch="fresh" to start these weights anew, or '
    return (
        f"transfer.source={source.directory}: weights of another shape:\n  "
        + "\n  ".join(different[:5])
        + (f"\n  and {len(different) - 5} more" if len(different) > 5 else "")
        + f"\n{images}Choose {size}{anew}leave the part out of transfer.parts."
    )


def _sha256(source: Outline, step: int) -> str:
    """Of the step's manifest, which holds the sha256 of every file of it."""
    with storage.explained(source.checkpoints):
        return hashlib.sha256((source.checkpoints / str(step) / checkpoints.MANIFEST).read_bytes()).hexdigest()
