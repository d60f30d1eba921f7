"""The train step of a VAE in vaejax and in PyTorch: the very same network, weights and work.

    python -m venv bench-env
    bench-env/bin/pip install -r benchmarks/requirements.txt -e .
    bench-env/bin/python benchmarks/train_step.py --network=cnn --rounds=15 --steps=20

A step is: noise, forward, negative ELBO, gradient, clipping by global norm, Adam, moving average of the weights; on one batch
that is in memory. Loss and gradients are compared in full float32 before the clock runs, which must agree, and then in the
precision asked for: what rounding makes of them is told.
It runs on the GPU where there is one, and needs neither TensorFlow nor Orbax nor matplotlib; vaejax's modules that it imports
need jaxtyping, ml_collections, etils, pillow and rich beside JAX, Flax and Optax.
"""

import argparse
import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import ceiling
import jax
import numpy as np
import optax
import torch
from sides import Ratio, Run, Side, circumstances, interleave, ratios, table
from torch_vae import Shape, load, to_torch, to_torch_images

from vaejax import batches, keys, models, objectives, optimizers, resident, training
from vaejax import distributions as dist
from vaejax.config import ModelConfig, ObjectiveConfig, OptimizerConfig
from vaejax.datasets import Split


class Network(NamedTuple):
    """What is trained, and how much faster than PyTorch's best mode it should be."""

    config: ModelConfig
    shape: Shape
    aim: float


NETWORKS = {
    "mlp": Network(ModelConfig(network="mlp", latent_size=40, hidden=(512, 512), likelihood="bernoulli"), (28, 28, 1), 1.3),
    "cnn": Network(ModelConfig(), (28, 28, 1), 1.0),
    "resnet": Network(ModelConfig(network="resnet", features=(32, 64, 64), blocks=1), (64, 64, 1), 1.0),
}
OBJECTIVE, OPTIMIZER = ObjectiveConfig(), OptimizerConfig(schedule="constant")
EMA_DECAY = 0.999
RESIDENT = 16_384
"""Images on the device, at least: an epoch is put in order on the host."""
TOLERANCE = 1e-4
"""Largest difference in float32 of the loss, and of a gradient in its Euclidean norm, relative to vaejax's."""


class Ours(NamedTuple):
    """A way to run vaejax."""

    at_a_time: int = 1
    """`training.steps_per_call`."""
    resident: bool = False
    """`data.resident`: every step has a batch of its own, of bytes on the device. Else one batch serves all."""


def our_modes(at_a_time: int) -> dict[str, Ours]:
    """All that vaejax offers for so many steps a call; with one, the plain step alone."""
    if at_a_time == 1:
        return {"vaejax": Ours()}
    told = f"{at_a_time} steps a call"
    return {
        "vaejax": Ours(),
        f"vaejax, {told}": Ours(at_a_time),
        "vaejax, resident": Ours(resident=True),
        f"vaejax, resident, {told}": Ours(at_a_time, resident=True),
    }


class Compared(NamedTuple):
    """What came of it."""

    ratio: Ratio
    share: float
    """Of the ceiling of matrix products, of vaejax's best mode."""


class Mode(NamedTuple):
    """A way to run PyTorch."""

    memory_format: torch.memory_format = torch.contiguous_format
    fused: bool = True
    """Whether Adam is."""
    compiled: str | None = None
    """The mode of `torch.compile` for the loss."""
    huge_pages: bool = False
    """Whether its user has set what vaejax's command sets on its own; it matters on a CPU."""


def modes(network: str) -> dict[str, Mode]:
    """All that PyTorch offers; a memory format matters to convolutions alone, CUDA graphs to a GPU."""
    found = {"PyTorch eager": Mode(fused=False)}
    formats = {"": torch.contiguous_format}
    if network == "mlp":
        found["PyTorch fused Adam"] = Mode()
    else:
        formats["channels_last, "] = torch.channels_last
        found["PyTorch channels_last, fused Adam"] = Mode(torch.channels_last)
    compilations = {"compile": "default"} | ({"compile, CUDA graphs": "reduce-overhead"} if torch.cuda.is_available() else {})
    for told, compiled in compilations.items():
        for name, memory_format in formats.items():
            found[f"PyTorch {told}, {name}fused Adam"] = Mode(memory_format, compiled=compiled)
    if not torch.cuda.is_available():
        found |= {f"{name}, huge pages": mode._replace(huge_pages=True) for name, mode in found.items() if mode.fused}
    return found


def check_agreement(config: ModelConfig, shape: Shape, params: Any, batch: batches.Batch) -> str:
    """Compares loss and gradients, given the same noise; exits where they differ by more than `TOLERANCE` in float32."""
    key = jax.random.key(1)
    keep_gradient = optax.GradientTransformation(lambda params: params, lambda gradient, state, params: (gradient, gradient))
    with jax.default_matmul_precision("highest"):
        ours = jax.jit(objectives.elbo(models.build(config, shape), OBJECTIVE, keep_gradient).update)(
            params, params, batch, key, 0
        )
    sample_keys = keys.of_samples(keys.of_examples(key, batch["index"]), np.arange(1))
    noise = dist.standard_normal(config.latent_size).sample(sample_keys)[0]
    vae = load(to_torch(params, config, shape), config, shape)  # on the CPU, where float32 is no less
    loss = vae(torch.tensor(to_torch_images(batch["image"])), torch.tensor(np.array(noise)))
    loss.backward()

    theirs = {name: parameter.grad.numpy() for name, parameter in vae.named_parameters()}
    norm = np.linalg.norm
    gradients = to_torch(ours.state, config, shape)
    differences = {name: float(norm(theirs[name] - g) / norm(g)) for name, g in gradients.items()}
    differences["loss"] = abs(loss.item() / float(ours.loss) - 1.0)
    worst = max(differences, key=differences.__getitem__)
    told = (
        f"Agreement, {config.dtype}: loss {loss.item():.3f} nats; largest relative difference {differences[worst]:.1e}, "
        f"of {worst}, over the loss and {len(theirs)} gradients"
    )
    if config.dtype == "float32" and not differences[worst] <= TOLERANCE:
        raise SystemExit(f"{told}: expected at most {TOLERANCE:g}. The two networks are not the same.")
    return told


def first_state(config: ModelConfig, shape: Shape) -> tuple[training.TrainState, training.TrainStep]:
    model = models.build(config, shape)
    objective = objectives.elbo(model, OBJECTIVE, optimizers.build(OPTIMIZER, steps=1_000_000))
    return training.init(model, objective, jax.random.key(0)), training.train_step(objective, EMA_DECAY)


def vaejax_steps(mode: Ours, config: ModelConfig, shape: Shape, batch: batches.Batch) -> Run:
    state, step = first_state(config, shape)
    key, following = jax.random.key(1), _following(mode, batch)

    def run(steps: int) -> None:
        nonlocal state
        for count in (*[mode.at_a_time] * (steps // mode.at_a_time), *[1] * (steps % mode.at_a_time)):
            state, _ = step(state, following(count), key)
        jax.block_until_ready(state)

    return run


def _following(mode: Ours, batch: batches.Batch) -> Callable[[int], batches.Batch]:
    """What a call of so many steps is given: always the same, or the next of a small data set on the device."""
    if not mode.resident:
        several = training.place(batches.stacked([batch] * mode.at_a_time))
        return ({mode.at_a_time: several} | {1: training.place(batch)}).__getitem__
    rows = len(batch["index"])
    stored = np.tile(np.uint8(255 * batch["image"]), (-(-RESIDENT // rows), 1, 1, 1))
    turns: list[int] = []
    split = Split(len(stored), lambda index: {"image": stored[index]})
    following = resident.training_batches(split, 255.0, rows, None, 0, 0, iter(turns.pop, None))

    def take(count: int) -> batches.Batch:
        turns.append(count)
        return next(following)

    return take


def torch_steps(mode: Mode, config: ModelConfig, shape: Shape, weights: dict[str, np.ndarray], images: np.ndarray) -> Run:
    device = ceiling.choose_precision()
    vae = load(weights, config, shape).to(device, memory_format=mode.memory_format)
    placed = torch.tensor(images, device=device).contiguous(memory_format=mode.memory_format)
    parameters = list(vae.parameters())
    average = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.Adam(parameters, OPTIMIZER.learning_rate, fused=mode.fused)
    loss: Callable[..., torch.Tensor] = torch.compile(vae, mode=mode.compiled) if mode.compiled else vae

    def step() -> None:
        optimizer.zero_grad()
        loss(placed).backward()
        torch.nn.utils.clip_grad_norm_(parameters, OPTIMIZER.clip_norm)
        optimizer.step()
        torch._foreach_lerp_(average, [parameter.detach() for parameter in parameters], 1.0 - EMA_DECAY)

    def run(steps: int) -> None:
        for _ in range(steps):
            step()
        ceiling.wait()

    return run


def compare(
    network: str, dtype: str, batch_size: int, rounds: int, steps: int, at_a_time: int = 1, aim: float | None = None
) -> Compared:
    """Prints all there is to say, and returns the ratio of the best mode to PyTorch's best, whose aim is the network's own."""
    config, shape, own_aim = NETWORKS[network]
    grey = np.random.default_rng(0).uniform(size=(batch_size, *shape))
    batch = batches.batch_of(np.round(grey) if config.likelihood == "bernoulli" else grey)
    params = models.build(config, shape).init(jax.random.key(0))
    config = dataclasses.replace(config, dtype=dtype)
    agreements = [check_agreement(dataclasses.replace(config, dtype=d), shape, params, batch) for d in ("float32", dtype)]
    state, step = first_state(config, shape)
    work = ceiling.work_of(step, state, training.place(batch), jax.random.key(1))
    most = ceiling.measure(dtype)

    weights, images = to_torch(params, config, shape), to_torch_images(batch["image"])
    theirs = modes(network)
    sides = [
        Side(name, functools.partial(vaejax_steps, mode, config, shape, batch), huge_pages=True)
        for name, mode in our_modes(at_a_time).items()
    ]
    sides += [
        Side(name, functools.partial(torch_steps, mode, config, shape, weights, images), mode.huge_pages)
        for name, mode in theirs.items()
    ]
    times = interleave(sides, rounds, steps)

    def fastest(names: Iterable[str]) -> str:
        return min(names, key=lambda name: times[name].median)

    mine, best = fastest(our_modes(at_a_time)), fastest(theirs)
    unset = fastest(name for name, mode in theirs.items() if not mode.huge_pages)
    seconds = times[mine].median
    told = f"{mine}: {work.told(seconds, most)}"
    memory = f"peak memory {max(times[mine].memory):.0f} MiB, the peer's {max(times[best].memory):.0f}"
    what = f"train step, {network} {shape[0]}x{shape[1]}, batch {batch_size}, {dtype}, {jax.default_backend()}"
    print(f"{what}\n\n{table(times, batch_size)}\n\n{told}.")
    if unset != best:
        print(f"To {unset}, the fastest without huge pages: {times[unset].median / seconds:.2f}.")
    print(f"A step is {work.flops / 1e9:.2f} GFLOP and {work.traffic / 1e6:,.0f} MB.")
    print(f"Ceiling: {most.flops / 1e9:,.0f} GFLOP/s, {most.bandwidth / 1e9:.1f} GB/s.")
    print("\n".join(dict.fromkeys(agreements)))
    ratio = Ratio(what, times[best].median / seconds, best, own_aim if aim is None else aim, f"{told}; {memory}")
    return Compared(ratio, work.share(seconds, most))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, default="cnn", help="what is trained; default: %(default)s")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="inside the networks; default: %(default)s"
    )
    parser.add_argument("--batch", type=int, default=128, help="images a step; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=15, help="turns of every side; default: %(default)s")
    parser.add_argument("--steps", type=int, default=20, help="timed steps a turn; default: %(default)s")
    parser.add_argument(
        "--steps-per-call", type=int, default=1, help="beside the plain step, so many a call, and resident images"
    )
    given = parser.parse_args()

    where = circumstances(["jax", "flax", "optax", "torch"])
    compared = compare(given.network, given.dtype, given.batch, given.rounds, given.steps, given.steps_per_call)
    print("\n" + ratios([compared.ratio]))
    print(where)


if __name__ == "__main__":
    main()
