"""The program: `vaejax VERB ...`, and `python train.py`, which is its verb `train`."""

import argparse
import hashlib
import math
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow is imported anywhere: its start-up notes help nobody

from vaejax import config as configuration
from vaejax import config_file
from vaejax.errors import Terminated, TrainingError, VaejaxError
from vaejax.interruption import at_once, on_sigterm

SIGTERM_EXIT = 143
SIGINT_EXIT = 130
ERROR_EXIT = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line; returns its exit status: 0, 1 after a user's error, 130 after Ctrl-C, 143 after SIGTERM."""
    _keep_compiled_programs()
    parser = _parser()
    known, unknown = parser.parse_known_args(sys.argv[1:] if arguments is None else arguments)
    if unknown and known.verb not in ("train", "prepare"):
        parser.error(f"unknown arguments: {' '.join(unknown)}")
    try:
        with at_once():
            known.run(known, unknown)
    except KeyboardInterrupt:
        print("vaejax: interrupted; the same command goes on from the newest checkpoint.", file=sys.stderr)
        return SIGINT_EXIT
    except (VaejaxError, Terminated) as error:
        for message in (str(error), *getattr(error, "__notes__", ())):
            print(f"vaejax: {message}", file=sys.stderr)
        return SIGTERM_EXIT if isinstance(error, Terminated) else _fail()
    return 0


def _fail() -> int:
    """The status after an error. One of several processes ends at once: waiting for the others, it would keep them waiting."""
    jax = sys.modules.get("jax")
    if jax and jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ERROR_EXIT)
    return ERROR_EXIT


def _keep_compiled_programs() -> None:
    """Lets JAX keep what it compiles for the next command, unless the environment says where, or nowhere ("").

    A program may use whatever the processor has that it was compiled on, so the folder is named by the processor: a home is
    often shared by many machines.
    """
    processor = Path("/proc/cpuinfo")
    lines = processor.read_text().splitlines() if processor.exists() else [platform.processor(), platform.machine()]
    able = next((line for line in lines if line.startswith(("flags", "Features"))), " ".join(lines[:2]))
    home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))  # noqa: PTH111  # a user may have no home
    folder = home / "vaejax" / f"compiled-{hashlib.sha256(able.encode()).hexdigest()[:16]}"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vaejax", description="Variational autoencoders for medical images. Research use only.", allow_abbrev=False
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    train = _verb(
        verbs,
        "train",
        _train,
        "train a model, evaluate it and draw its report; the same command goes on where a run stopped",
        "vaejax train --config=configs/quickstart.py --workdir=runs/quickstart --config.optimizer.learning_rate=3e-4",
        "Every field can be set as --config.section.field=value:\n" + configuration.describe(),
    )
    _several(train)

    prepare = _verb(
        verbs,
        "prepare",
        _prepare,
        "prepare the images that a training would prepare, and no more; the same command goes on where it stopped",
        "vaejax prepare --config=configs/hippocampus.py --workdir=runs/hippocampus --config.data.workers=0",
        "Fields are set as for `vaejax train`.",
    )
    prepare.add_argument(
        "--runner", choices=("processes", "beam"), default="processes", help="what starts the workers; default: %(default)s"
    )
    for verb in (train, prepare):
        verb.add_argument(
            "--config", metavar="FILE", help="a .py file with get_config(), or a .json file; default: the quickstart"
        )
        verb.add_argument("--workdir", metavar="DIR", default="runs/quickstart", help="the run directory; default: %(default)s")

    evaluate = _run_verb(
        verbs, "evaluate", _evaluate, "compute evaluation.json", "vaejax evaluate runs/quickstart --samples=5000"
    )
    evaluate.add_argument("--split", choices=("train", "val", "test"), default="test", help="default: %(default)s")
    evaluate.add_argument("--samples", type=_positive, help="importance samples an image; default: as configured")
    evaluate.add_argument("--draw", type=_seed, help="seed of binarisation and samples; default: as configured")
    _several(evaluate)

    sample = _run_verb(verbs, "sample", _sample, "draw images from the prior", "vaejax sample runs/quickstart --n=100 --seed=1")
    sample.add_argument("--n", type=_positive, default=100, help="images; default: %(default)s")
    sample.add_argument(
        "--temperature",
        type=_temperature,
        default=1.0,
        help="scale of the spread of what is drawn; of codes, what their logits are divided by; default: 1",
    )

    sample.add_argument(
        "--sampler",
        choices=("prior", "mixture"),
        default="prior",
        help="where latents come from: the model's prior, or Gaussians fitted to the training images' posterior",
    )
    sample.add_argument("--label", help="of a conditional model: the label of all images; default: every label in turn")

    reconstruct = _run_verb(
        verbs,
        "reconstruct",
        _reconstruct,
        "images beside their reconstructions",
        "vaejax reconstruct runs/quickstart --split=val",
    )
    reconstruct.add_argument(
        "--input",
        metavar="PATH",
        help="a PNG, JPEG or NIfTI file, or a folder with such or DICOM series: their reconstructions, in their own geometry, "
        "instead of those of a split",
    )
    reconstruct.add_argument(
        "--identify", action="store_true", help="DICOM results keep the patient and study of their source; default: nameless"
    )
    interpolate = _run_verb(
        verbs, "interpolate", _interpolate, "lines between images", "vaejax interpolate runs/quickstart --n=8 --steps=12"
    )
    interpolate.add_argument("--steps", type=_positive, default=10, help="images on a line; default: %(default)s")
    for verb in (reconstruct, interpolate):
        verb.add_argument("--split", choices=("train", "val", "test"), default="test", help="default: %(default)s")
        verb.add_argument("--n", type=_positive, default=10, help="images, or lines; default: %(default)s")
    for verb in (sample, reconstruct, interpolate):
        verb.add_argument("--seed", type=_seed, default=0, help="which are drawn; default: %(default)s")
        verb.add_argument("--output", metavar="DIR", help="where NAME.png and NAME.npz go; default: in the run directory")

    frechet = _run_verb(
        verbs,
        "frechet",
        _frechet,
        "Frechet distance between samples and test images, on the features of a classifier trained on the same images",
        "vaejax frechet runs/mnist --n=10000 --seeds=5",
    )
    frechet.add_argument("--n", type=_positive, default=500, help="samples, and test images; default: %(default)s")
    frechet.add_argument("--seeds", type=_positive, default=5, help="how often, with other samples; default: %(default)s")
    frechet.add_argument(
        "--sampler",
        choices=("prior", "mixture", "both"),
        default="prior",
        help="where latents come from (see `vaejax sample --help`); default: %(default)s",
    )

    _run_verb(verbs, "report", _report, "draw report/index.html", "vaejax report runs/quickstart --best")
    return parser


def _verb(verbs: Any, name: str, run: Callable, purpose: str, example: str, epilog: str = "") -> argparse.ArgumentParser:
    verb = verbs.add_parser(
        name,
        help=purpose,
        description=f"{purpose[0].upper()}{purpose[1:]}.\n\nExample: {example}",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verb.set_defaults(run=run)
    return verb


def _run_verb(verbs: Any, name: str, run: Callable, purpose: str, example: str) -> argparse.ArgumentParser:
    """A verb about a trained run, which it takes first."""
    verb = _verb(verbs, name, run, purpose, example)
    verb.add_argument("directory", metavar="RUN", help="the directory of a run")
    verb.add_argument("--best", action="store_true", help="the checkpoint of lowest validation loss; default: the last")
    return verb


def _several(verb: argparse.ArgumentParser) -> None:
    """How a verb that many processes can share is told of the others."""
    group = verb.add_argument_group("several processes, each started with this same command")
    group.add_argument(
        "--distributed", action="store_true", help="find the others through SLURM, Open MPI, Kubernetes or a Cloud TPU"
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="or say where the first process listens,")
    group.add_argument("--processes", type=_positive, metavar="N", help="how many there are,")
    group.add_argument("--process", type=_seed, metavar="I", help="and the number of this one, from 0")


def _positive(text: str) -> int:
    """A count."""
    return int(_ranged(text, int, 1, 1_000_000_000))


def _seed(text: str) -> int:
    """What seeds random numbers."""
    return int(_ranged(text, int, 0, 2**31 - 1))


def _temperature(text: str) -> float:
    """A scale."""
    return _ranged(text, float, 0, 1_000)


def _ranged(text: str, kind: type, low: float, high: float) -> float:
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"expected {low} <= value <= {high}, found {text!r}")
    return value


def _train(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    config = config_file.load(arguments.config, overrides)  # before anything slow is imported

    from vaejax import experiment, hosts, runs

    _join(arguments)
    with hosts.explain_loss():
        run = runs.create(arguments.workdir, config)
        with on_sigterm() as interruption:
            experiment.train(run, interruption)

        from vaejax import evaluation, report  # two seconds that the first step need not wait for

        _show(evaluation.evaluate(run))
        _say(f"report: {report.write(run)}")


def _prepare(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    config = config_file.load(arguments.config, overrides)

    from etils import epath

    from vaejax import datasets, runs

    cache = runs.cache_of(epath.Path(arguments.workdir), config)
    data = datasets.load(config.data, cache, datasets.DRIVERS[arguments.runner])
    counts = ", ".join(f"{split.n} {name}" for name, split in data.splits.items())
    left_out = f"; {len(data.skipped)} files left out" if data.skipped else ""
    print(f"prepared in {cache}: {counts} images of {data.image_shape}{left_out}; fingerprint {data.fingerprint[:16]}")


def _evaluate(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    from vaejax import evaluation, hosts, runs

    _join(arguments)
    with hosts.explain_loss():
        run = runs.load(arguments.directory)
        _show(evaluation.evaluate(run, arguments.split, arguments.best, arguments.samples, arguments.draw))


def _frechet(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    from vaejax import frechet, runs

    names = ("prior", "mixture") if arguments.sampler == "both" else (arguments.sampler,)
    result = frechet.measure(runs.load(arguments.directory), arguments.n, arguments.seeds, names, arguments.best)
    accuracy = f"the classifier has {100 * result['classifier']['accuracy']:.1f} % of the test images right"
    print(f"Frechet distances, squared feature units. As many training images: {result['floor']:.4g} ({accuracy})")
    for name in names:
        agreeing = result["agreement"].get(name)
        told = f"; {100 * agreeing['mean']:.2f} % have the label asked for" if agreeing else ""
        print(f"samples from the {name}: {_number(result['samplers'][name])}{told}")


def _report(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    from vaejax import report, runs

    print(f"report: {report.write(runs.load(arguments.directory), arguments.best)}")


def _sample(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    from vaejax import gallery

    run, output = _open(arguments)
    how = (arguments.seed, arguments.temperature, arguments.label, arguments.sampler)
    gallery.sample(run, output, arguments.best, arguments.n, *how)
    print(f"written: {output / 'samples.png'}, samples.npz")


def _reconstruct(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    from vaejax import gallery

    run, output = _open(arguments)
    if arguments.input:
        ids = gallery.reconstruct_studies(run, output, arguments.best, arguments.input, arguments.identify)
        print(f"written: {len(ids)} studies in {output}; studies.json there says which is which")
        return
    gallery.reconstruct(run, output, arguments.best, arguments.split, arguments.n, arguments.seed)
    print(f"written: {output / 'reconstructions.png'}, reconstructions.npz")


def _interpolate(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    from vaejax import gallery

    run, output = _open(arguments)
    gallery.interpolate(run, output, arguments.best, arguments.split, arguments.n, arguments.seed, arguments.steps)
    print(f"written: {output / 'interpolations.png'}, interpolations.npz")


def _open(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """The run, and the folder where its pictures go."""
    from etils import epath

    from vaejax import runs

    run = runs.load(arguments.directory)
    return run, epath.Path(arguments.output) if arguments.output else run.directory / "gallery"


def _join(arguments: argparse.Namespace) -> None:
    """Meets the other processes, where there are some; only the first of them speaks."""
    given = (arguments.coordinator, arguments.processes, arguments.process)
    if not arguments.distributed and given == (None, None, None):
        return
    if not arguments.distributed and None in given:
        raise TrainingError(
            "--coordinator, --processes and --process go together. Give all three, or --distributed where SLURM, Open MPI, "
            "Kubernetes or a Cloud TPU knows them."
        )
    from vaejax import hosts
    from vaejax.progress import console

    hosts.join(*given)
    console.quiet = not hosts.first()


def _say(text: str) -> None:
    from vaejax import hosts

    if hosts.first():
        print(text)


def _show(result: dict[str, Any]) -> None:
    """Prints an evaluation as a table, the linear floor beside it."""
    from rich.console import Console
    from rich.table import Table

    from vaejax import hosts

    table = Table("metric", "vaejax", "PCA", "unit", title=f"{result['split']} split at step {result['step']}")
    for name, value in result["metrics"].items():
        floor = result["baselines"].get("pca", {}).get(name)
        table.add_row(name, _number(value), _number(floor) if floor else "", value["unit"])
    Console(quiet=not hosts.first()).print(table)


def _number(value: dict[str, Any]) -> str:
    return f"{value['mean']:.4g}" + (f" ± {value['sem']:.2g}" if value["sem"] is not None else "")
