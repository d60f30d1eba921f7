"""What the real pipeline costs a training step: against the same step on one batch that is in memory.

    python benchmarks/pipeline_step.py --rounds=15 --steps=40

The CNN is the quickstart's; the MLP is that of `configs/mnist_mlp.py` (784-512-512-40, Bernoulli). Both read mnist5k, which
brings its images (`pip install 'vaejax[examples]'`), and both rotate, zoom and crop. The MLP's images are binarised anew in
every step: that is the pipeline's work, so the side in memory has one batch that was binarised before. All else is what
`vaejax.experiment.train` does in a step, reading the report of the step before included.
"""

import argparse
import functools
import itertools
import tempfile
from pathlib import Path

import jax
from sides import Run, Side, circumstances, interleave, table

from vaejax import config_file, experiment, objectives, optimizers, runs, training

CONFIGS = Path(__file__).parents[1] / "configs"
MODELS = {"CNN": ("quickstart.py", 1.1), "MLP": ("mnist_mlp.py", 1.3)}
"""Configuration, and the largest ratio aimed at."""

OVERRIDES = ["data.name=mnist5k", "augment.rotate=10.0", "augment.zoom=0.1", "augment.crop=0.1"]


def steps_of(name: str, from_pipeline: bool, batch_size: int, folder: Path) -> Run:
    """The training loop of a model, with batches from the pipeline, or its first one again and again."""
    overrides = [f"--config.{override}" for override in (*OVERRIDES, f"data.batch_size={batch_size}")]
    run = runs.create(str(folder / name), config_file.load(CONFIGS / MODELS[name][0], overrides))
    objective = objectives.elbo(
        run.model, run.config.objective, optimizers.build(run.config.optimizer, run.config.training.steps)
    )
    state, noise = training.init(run.model, objective, jax.random.key(0)), jax.random.key(1)
    step, batches = training.train_step(objective, run.config.training.ema_decay), experiment.training_batches(run, 0)
    if not from_pipeline:
        first = next(batches)
        batches = itertools.repeat({**training.place(first), "index": first["index"]})  # the host reads the index too

    def go(steps: int) -> None:
        nonlocal state
        unread = None
        for number, batch in enumerate(itertools.islice(batches, steps)):
            state, report = step(state, training.place(batch), noise)
            if unread:
                training.check_finite(*unread)
            unread = (report, batch["index"], number)
        jax.block_until_ready(state)

    return go


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="turns of every side")
    parser.add_argument("--steps", type=int, default=40, help="timed steps a turn")
    parser.add_argument("--batch", type=int, default=128, help="images a step")
    arguments = parser.parse_args()

    where = circumstances(["jax", "flax", "optax", "tensorflow-cpu"])
    with tempfile.TemporaryDirectory() as folder:
        compared = [
            Side(
                f"{name}, {source}",
                functools.partial(steps_of, name, source == "pipeline", arguments.batch, Path(folder)),
                huge_pages=True,
            )
            for name in MODELS
            for source in ("pipeline", "memory")
        ]
        times = interleave(compared, arguments.rounds, arguments.steps)
    print(table(times, arguments.batch), "\n")
    for name, (_, aim) in MODELS.items():
        ratio = times[f"{name}, pipeline"].median / times[f"{name}, memory"].median
        print(f"{name}: pipeline / memory, time a step: {ratio:.2f} (aim: at most {aim})")
    print(where)


if __name__ == "__main__":
    main()
