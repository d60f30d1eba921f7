"""All benchmarks one after the other, on a machine that does nothing else, and one table of ratios at the end.

    make bench MNIST=FOLDER IMAGES=FOLDER
    python benchmarks/bench.py --mnist=FOLDER --images=FOLDER
    python benchmarks/bench.py                        # train steps only: no files needed

About half an hour on two cores.
"""

import argparse
import functools
from collections.abc import Callable, Iterator

from sides import Ratio, circumstances, ratios

ROUNDS, STEPS = 9, {"mlp": 200, "cnn": 20, "resnet": 3}
"""Turns of every side; steps a turn, about a second and a half of them."""
BATCH = 128
"""Images a step on a CPU."""


def train_steps() -> Iterator[Ratio]:
    import accelerator
    import jax
    import train_step

    for network, steps in STEPS.items():
        if jax.default_backend() == "cpu":
            yield train_step.compare(network, "float32", BATCH, ROUNDS, steps).ratio
        else:
            yield from accelerator.compare(network, accelerator.DTYPES, tuple(accelerator.AIMS), ROUNDS, steps)


def with_mnist(folder: str) -> Iterator[Ratio]:
    import likelihood
    import time_to_bound as bound

    yield likelihood.compare(folder, samples=5_000, images=250, rounds=3)
    yield from bound.compare(folder, bound.BOUND, rounds=3, patience=600.0, programs=list(bound.PROGRAMS))


def with_images(folder: str) -> Iterator[Ratio]:
    import epoch

    yield epoch.compare(folder, batch_size=128, rounds=ROUNDS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--mnist", default="", help="folder of the MNIST IDX files; without it no likelihood, no time to a bound"
    )
    parser.add_argument("--images", default="", help="folder of grey images, a sub-folder a class; without it no epoch")
    given = parser.parse_args()

    where = circumstances(["jax", "flax", "optax", "torch"])
    parts: list[Callable[[], Iterator[Ratio]]] = [train_steps]
    parts += [functools.partial(with_mnist, given.mnist)] if given.mnist else []
    parts += [functools.partial(with_images, given.images)] if given.images else []
    rows = []
    for part in parts:
        for row in part():
            print(f"\n{ratios([row])}\n", flush=True)  # so that what was measured stays, should a later one fail
            rows.append(row)
    print(f"\n{ratios(rows)}\n\n{where}")


if __name__ == "__main__":
    main()
