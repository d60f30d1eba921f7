"""Train steps on an accelerator, small and large batches in float32 and bfloat16, against PyTorch's best mode and the aims.

    python benchmarks/accelerator.py --network=resnet --dtypes bfloat16 --batches 256     # a few minutes
    python benchmarks/accelerator.py --network=cnn                                        # two batches, two precisions

What it needs is what `train_step.py` needs; its images are random and made here. Beside the plain step there are vaejax's other
modes: several steps a call, and images on the device. The best of vaejax's is set against the best of PyTorch's. Most of the
time goes into compiling, in a process a side: one network, batch and precision at a time stays well below ten minutes.
"""

import argparse
from collections.abc import Iterator, Sequence

from sides import Ratio, circumstances, ratios
from train_step import NETWORKS
from train_step import compare as compare_steps

AIMS = {256: 1.5, 4_096: 1.1}
"""How many times PyTorch's speed, by the batch."""
SHARE = 0.4
"""The part of the measured ceiling of matrix products that a ResNet in bfloat16 should reach."""
DTYPES = ("float32", "bfloat16")
AT_A_TIME = 20
"""Steps a call."""


def compare(
    network: str, dtypes: Sequence[str], batches: Sequence[int], rounds: int, steps: int, at_a_time: int = AT_A_TIME
) -> Iterator[Ratio]:
    """A row a batch and precision, and of a ResNet in bfloat16 one for its share of the ceiling."""
    for batch in batches:
        for dtype in dtypes:
            ratio, share = compare_steps(network, dtype, batch, rounds, steps, at_a_time, AIMS.get(batch))
            yield ratio
            if (network, dtype) == ("resnet", "bfloat16"):
                yield Ratio(ratio.what, share, "the measured ceiling", SHARE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, default="resnet", help="what is trained; default: %(default)s")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES, help="inside the networks; default: both")
    parser.add_argument("--batches", nargs="+", type=int, default=tuple(AIMS), help="images a step; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=9, help="turns of every side; default: %(default)s")
    parser.add_argument("--steps", type=int, default=100, help="timed steps a turn; default: %(default)s")
    parser.add_argument("--steps-per-call", type=int, default=AT_A_TIME, help="default: %(default)s")
    given = parser.parse_args()

    where, rows = circumstances(["jax", "flax", "optax", "torch"]), []
    for row in compare(given.network, given.dtypes, given.batches, given.rounds, given.steps, given.steps_per_call):
        rows.append(row)
        print(f"\n{ratios([row])}\n", flush=True)  # so that what was measured stays, should a later one fail
    print(f"{ratios(rows)}\n\n{where}")


if __name__ == "__main__":
    main()
