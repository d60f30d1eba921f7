"""Several processes, one run: how they meet, which rows each of them holds, and what only the first of them does.

Every process runs the same program on the same configuration. It reads its own rows of each batch; weights are the same in
all; files of a run, and words to a person, come from the first. One process alone is the same with nobody to wait for.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, PyTree, Shaped

from vaejax.errors import TrainingError

HEARTBEAT = 30
"""Seconds without a sign of life after which a process counts as lost, and the others end."""


PATIENCE = 3_600
"""Seconds that a process which is done waits for the others: the first one has a report to draw."""

LOSS = ("Gloo", "UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED", "Connection", "heartbeat", "NCCL")
"""Words by which a collective operation, or the service that watches the processes, tells that one is gone."""


def join(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Meets the other processes; before anything is computed.

    Args:
        coordinator: `host:port` of the first process. With None, all three are found out from SLURM, Open MPI, Kubernetes
            or a Cloud TPU.
        processes: how many there are.
        process: the number of this one, from 0.

    Raises:
        TrainingError: they could not meet.
    """
    try:
        jax.distributed.initialize(
            coordinator, processes, process, heartbeat_timeout_seconds=HEARTBEAT, shutdown_timeout_seconds=PATIENCE
        )
    except (RuntimeError, ValueError) as error:
        raise TrainingError(
            f"--coordinator={coordinator} --processes={processes} --process={process}: the processes could not meet: {error} "
            "Expected the same host:port and number of processes in all, and a number of its own, from 0, in each."
        ) from error


@contextlib.contextmanager
def explain_loss() -> Iterator[None]:
    """Says in words what the others are told by their devices when a process is gone.

    Raises:
        TrainingError: another process was lost.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        if jax.process_count() == 1 or not any(word in str(error) for word in LOSS):
            raise
        raise TrainingError(
            f"another of the {jax.process_count()} processes was lost: {str(error).splitlines()[0]}. "
            "Start all of them again: the same command goes on from the newest whole checkpoint."
        ) from error


def first() -> bool:
    """Whether this process speaks and writes for all."""
    return jax.process_index() == 0


def wait(place: str) -> None:
    """Until all processes are at this place, by name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(place)


@contextlib.contextmanager
def first_before_others(place: str) -> Iterator[None]:
    """The block in the first process, then in the others: what it makes on disk, they find."""
    if not first():
        wait(place)
    try:
        yield
    finally:  # what is wrong, each process says itself
        if first():
            wait(place)


def share(batch_size: int) -> slice:
    """The rows of a batch that this process holds.

    Raises:
        TrainingError: where they do not divide among all devices, with the nearest sizes that do.
    """
    require_shares(batch_size)
    rows = batch_size // jax.process_count()
    return slice(jax.process_index() * rows, (jax.process_index() + 1) * rows)


def require_parts(batch_size: int, parts: int) -> None:
    """Raises TrainingError where the parts of a batch do not divide among all devices."""
    devices = jax.device_count()
    if batch_size % (parts * devices):
        raise TrainingError(
            f"objective.parts={parts}: expected data.batch_size={batch_size} to be a multiple of {parts} parts times {devices} "
            f"devices. Choose data.batch_size={-(-batch_size // (parts * devices)) * parts * devices}, or other parts."
        )


def require_shares(batch_size: int) -> None:
    """Raises TrainingError where a batch does not divide among all devices, with the nearest sizes that do."""
    devices = jax.device_count()
    if batch_size % devices:
        below = batch_size // devices * devices
        sizes = " or ".join(str(size) for size in (below, below + devices) if size)
        raise TrainingError(f"data.batch_size={batch_size}: expected a multiple of the {devices} devices; choose {sizes}.")


def least(number: float) -> float:
    """The smallest of what the processes say: what all of them have."""
    return float(number) if jax.process_count() == 1 else float(multihost_utils.process_allgather(np.float64(number)).min())


def of_first(number: float) -> float:
    """What the first process says, in all of them."""
    return number if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(np.asarray(number)).item()


def gathered(values: Shaped[Array, "b ..."]) -> Shaped[np.ndarray, "b ..."]:
    """All rows of what is divided among processes, in every one of them."""
    if jax.process_count() == 1:
        return np.asarray(values)
    return np.asarray(multihost_utils.process_allgather(values, tiled=True))


def own(values: Shaped[Array, "*k b"]) -> Shaped[np.ndarray, "*k n"]:
    """The rows, along the last axis, that this process holds."""
    shards = sorted(values.addressable_shards, key=lambda shard: shard.index[-1].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards], axis=-1)


def divided(rows: PyTree, before: int = 0) -> PyTree:
    """Rows, an axis after `before` others, on the devices, divided among them; of several processes, each gives its own."""
    if jax.process_count() == 1:
        return jax.device_put(rows, by_rows(before))
    return jax.tree.map(functools.partial(jax.make_array_from_process_local_data, by_rows(before)), rows)


def everywhere(array: Shaped[np.ndarray, "..."]) -> Shaped[Array, "..."]:
    """An array that all processes have, whole on every device."""
    return jax.make_array_from_callback(array.shape, replicated(), lambda part: array[part])


def local(tree: PyTree) -> PyTree:
    """What all processes hold alike, as arrays that one of them may compute with alone."""
    return tree if jax.process_count() == 1 else jax.tree.map(np.asarray, tree)


def anybody(flag: Callable[[], bool]) -> Callable[[], bool]:
    """Whether the flag is up in any process: raised now, read later, so that no step waits for the answer.

    All processes must ask in the same order. One process alone reads its flag when it is asked.
    """
    if jax.process_count() == 1:
        return flag
    rows = np.full(jax.local_device_count(), flag())
    asked = _any(jax.make_array_from_process_local_data(by_rows(), rows))
    return lambda: bool(asked)


@functools.cache
def mesh() -> Mesh:
    """All devices of all processes along one axis, `"data"`."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def by_rows(before: int = 0) -> NamedSharding:
    """The axis after `before` others divided among the devices."""
    return NamedSharding(mesh(), PartitionSpec(*[None] * before, "data"))


def replicated() -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh(), PartitionSpec())


@jax.jit
def _any(flags: Bool[Array, " devices"]) -> Bool[Array, ""]:
    return jax.lax.with_sharding_constraint(flags.any(), replicated())
