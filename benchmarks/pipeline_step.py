"""What the real pipeline costs a training step: against the same step on one batch that is in memory.

    python benchmarks/pipeline_step.py --rounds=15 --steps=40

The CNN is the quickstart's; the MLP is that of `configs/mnist_mlp.py` (784-512-512-40, Bernoulli). Both read mnist5k, which
brings its images (`pip install 'vaejax[examples]'`), and both rotate, zoom and crop. The MLP's images are binarised anew in
every step: that is the pipeline's work, so the side in memory has one batch that was binarised before. All else is what
`vaejax.experiment.train` does in a step, reading the report of the step before included.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
from sides import Side, circumstances, interleave, table

from vaejax import config as configuration
from vaejax import experiment, objectives, optimizers, runs, training
from vaejax.batches import Batch
from vaejax.runs import Run

CONFIGS = Path(__file__).parents[1] / "configs"
MODELS = {"CNN": ("quickstart.py", 1.1), "MLP": ("mnist_mlp.py", 1.3)}
"""Configuration, and the largest ratio aimed at."""

OVERRIDES = ["data.name=mnist5k", "augment.rotate=10.0", "augment.zoom=0.1", "augment.crop=0.1"]


def side(name: str, run: Run, batch: Callable[[], Batch]) -> Side:
    """The training loop of a run, with batches from anywhere."""
    config = run.config
    objective = objectives.elbo(run.model, config.objective, optimizers.build(config.optimizer, config.training.steps))
    state, noise = training.init(run.model, objective, jax.random.key(0)), jax.random.key(1)
    step = training.train_step(objective, config.training.ema_decay)

    def go(steps: int) -> None:
        nonlocal state
        unread = None
        for number in range(steps):
            rows = batch()
            state, report = step(state, training.place(rows), noise)
            if unread:
                training.check_finite(*unread)
            unread = (report, rows["index"], number)
        if unread:
            training.check_finite(*unread)
        jax.block_until_ready(state)

    return Side(name, go)


def sides(name: str, batch_size: int, folder: Path) -> list[Side]:
    """A model fed by the pipeline, and fed by memory."""
    overrides = [f"--config.{override}" for override in (*OVERRIDES, f"data.batch_size={batch_size}")]
    run = runs.create(str(folder / name), configuration.load(CONFIGS / MODELS[name][0], overrides))
    stream = experiment.training_batches(run, 0)
    first = next(stream)
    one = {**training.place(first), "index": first["index"]}  # the host reads the index, in the loop too
    return [side(f"{name}, pipeline", run, lambda: next(stream)), side(f"{name}, memory", run, lambda: one)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="turns of every side")
    parser.add_argument("--steps", type=int, default=40, help="timed steps a turn")
    parser.add_argument("--batch", type=int, default=128, help="images a step")
    arguments = parser.parse_args()

    where = circumstances(["jax", "flax", "optax", "tensorflow-cpu"])
    with tempfile.TemporaryDirectory() as folder:
        compared = [side for name in MODELS for side in sides(name, arguments.batch, Path(folder))]
        times = interleave(compared, arguments.rounds, arguments.steps)
    print(table(times, arguments.batch), "\n")
    for name, (_, aim) in MODELS.items():
        ratio = times[f"{name}, pipeline"].median / times[f"{name}, memory"].median
        print(f"{name}: pipeline / memory, time a step: {ratio:.2f} (aim: at most {aim})")
    print(where)


if __name__ == "__main__":
    main()
