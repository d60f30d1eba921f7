"""The program: `vaejax VERB ...`, and `python train.py`, which is its verb `train`."""

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from vaejax import config as configuration
from vaejax import startup, verbs
from vaejax.errors import Terminated, VaejaxError
from vaejax.interruption import at_once

SIGTERM_EXIT = 143
SIGINT_EXIT = 130
ERROR_EXIT = 1
JAX_NOTE = "JAX has removed its internal frames"
"""Part of what JAX notes on errors that come from inside of what it compiles: of tracebacks, which nobody is shown."""


def program(*verb: str) -> int:
    """The process that a shell starts, whose arguments come after `verb`: `main` with memory as it should be."""
    startup.in_huge_pages()
    return main([*verb, *sys.argv[1:]])


def main(arguments: Sequence[str]) -> int:
    """Runs a command line; returns its exit status: 0, 1 after a user's error, 130 after Ctrl-C, 143 after SIGTERM."""
    startup.set_environment()
    parser = _parser()
    known, unknown = parser.parse_known_args(arguments)
    if unknown and known.verb not in ("train", "prepare", "inspect"):
        parser.error(f"unknown arguments: {' '.join(unknown)}")
    if needless := _of_no_files(known):
        parser.error(f"{known.verb}: {needless}")
    try:
        with at_once():
            known.run(known, unknown)
    except KeyboardInterrupt:
        print("vaejax: interrupted; the same command goes on from the newest checkpoint.", file=sys.stderr)
        return SIGINT_EXIT
    except (VaejaxError, Terminated) as error:
        for message in (str(error), *(note for note in getattr(error, "__notes__", ()) if JAX_NOTE not in note)):
            print(f"vaejax: {message}", file=sys.stderr)
        return SIGTERM_EXIT if isinstance(error, Terminated) else _fail()
    return 0


def _of_no_files(known: argparse.Namespace) -> str | None:
    """Why what is said of files means nothing, where none are given."""
    files = "near" if known.verb == "sample" else "input"
    if getattr(known, files, None):
        return None
    if getattr(known, "identify", False):
        return f"--identify goes with --{files}: images of a run have no patient to keep. Leave it out."
    if known.verb == "anomaly" and known.output:
        return "--output goes with --input: what is found in a split is written to the run directory. Leave it out."
    return None


def _fail() -> int:
    """The status after an error. One of several processes ends at once: waiting for the others, it would keep them waiting."""
    jax = sys.modules.get("jax")
    if jax and jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ERROR_EXIT)
    return ERROR_EXIT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vaejax", description="Variational autoencoders for medical images. Research use only.", allow_abbrev=False
    )
    to = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_images(to)
    _add_training(to)
    _add_evaluation(to)
    _add_generation(to)
    _add_reconstruction(to)
    _add_understanding(to)
    _add_masks(to)
    return parser


def _add_images(to: Any) -> None:
    """What is done to files before any training."""
    inspect = _verb(
        to,
        verbs.inspect,
        "vaejax inspect scans --output=inspections/scans --config.data.slice_axis=1",
        "Fields of the section data can be set as --config.data.field=value; `vaejax train --help` lists them.",
    )
    inspect.add_argument(
        "data", metavar="DATA", nargs="?", help="a folder, an .npz or .npy file, a manifest, or a configuration (.py, .json)"
    )
    inspect.add_argument("--output", metavar="DIR", default="inspection", help="where the files go; default: %(default)s")
    inspect.add_argument("--seed", type=_seed, default=0, help="which examples are shown; default: %(default)s")
    inspect.add_argument(
        "--minutes", type=_minutes, default=15.0, help="what a suggested training may take on this machine; default: 15"
    )

    deidentify = _verb(
        to,
        verbs.deidentify,
        "vaejax deidentify scans shared --key-file=secret.txt --box=US:0,0,40,640 --on-error=skip",
        "The key may also be in the environment variable VAEJAX_KEY; it makes the new names, and is neither kept nor shown.",
    )
    deidentify.add_argument("source", metavar="IN", help="a folder, of any depth")
    deidentify.add_argument("target", metavar="OUT", help="a folder that is not there yet; OUT-names.json leads back: keep it")
    deidentify.add_argument("--key-file", metavar="FILE", help="a secret of at least 16 bytes, always the same one")
    deidentify.add_argument(
        "--box",
        metavar="[KIND:]ROW,COLUMN,HEIGHT,WIDTH",
        action="append",
        default=[],
        help="pixels to blank, of all images or those of a KIND: a modality, or PICTURE for PNG, JPEG and TIFF; "
        "KIND:none where there is no text; may be given several times",
    )
    deidentify.add_argument(
        "--on-error", choices=("stop", "skip"), default="stop", help="at what cannot be shared; default: %(default)s"
    )


def _add_training(to: Any) -> None:
    prepare = _verb(
        to,
        verbs.prepare,
        "vaejax prepare --config=configs/hippocampus.py --workdir=runs/hippocampus --config.data.workers=0",
        "Fields are set as for `vaejax train`.",
    )
    prepare.add_argument(
        "--runner", choices=("processes", "beam"), default="processes", help="what starts the workers; default: %(default)s"
    )

    train = _verb(
        to,
        verbs.train,
        "vaejax train --config=configs/quickstart.py --workdir=runs/quickstart --config.optimizer.learning_rate=3e-4",
        "Every field can be set as --config.section.field=value:\n" + configuration.describe(),
    )
    _several(train)
    for verb in (prepare, train):
        verb.add_argument(
            "--config", metavar="FILE", help="a .py file with get_config(), or a .json file; default: the quickstart"
        )
        verb.add_argument("--workdir", metavar="DIR", default="runs/quickstart", help="the run directory; default: %(default)s")


def _add_evaluation(to: Any) -> None:
    """What a run is worth, in numbers and on a page."""
    evaluate = _run_verb(to, verbs.evaluate, "vaejax evaluate runs/quickstart --samples=5000")
    _of_split(evaluate)
    evaluate.add_argument("--samples", type=_positive, help="importance samples an image; default: as configured")
    evaluate.add_argument("--draw", type=_seed, help="seed of binarisation and samples; default: as configured")
    _several(evaluate)

    frechet = _run_verb(
        to,
        verbs.frechet,
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

    anomaly = _run_verb(
        to,
        verbs.anomaly,
        "vaejax anomaly runs/hand --best --alpha=0.01 --input=scans --output=results",
    )
    anomaly.add_argument("--alpha", type=_share, help="promised share of false alarms; default: as configured")
    _of_files(anomaly, "maps and p-values of theirs")
    anomaly.add_argument("--output", metavar="DIR", help="with --input: where the files go; default: in the run directory")
    _run_verb(to, verbs.report, "vaejax report runs/quickstart --best")


def _add_generation(to: Any) -> None:
    sample = _run_verb(to, verbs.sample, "vaejax sample runs/quickstart --near=scan.nii.gz --n=4 --temperature=2")
    sample.add_argument("--n", type=_positive, help="images; default: 100, or 4 near an image")
    sample.add_argument(
        "--near",
        metavar="PATH",
        help="a file, or a folder of such: images near theirs, from their posterior, in their own geometry",
    )
    sample.add_argument(
        "--format",
        choices=("png", "nifti", "dicom"),
        default="png",
        help="what the images are written as, beside a PNG grid and an NPZ; near an image, as it is; default: %(default)s",
    )
    _identifying(sample)
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
    _writing(sample)


def _add_reconstruction(to: Any) -> None:
    """Images through the model: there and back, from one to another, or in part."""
    reconstruct = _run_verb(
        to,
        verbs.reconstruct,
        "vaejax reconstruct runs/quickstart --split=val",
    )
    _of_files(reconstruct, "their reconstructions")
    interpolate = _run_verb(to, verbs.interpolate, "vaejax interpolate runs/quickstart --n=8 --steps=12")
    interpolate.add_argument("--steps", type=_at_least_two, default=10, help="images on a line; default: %(default)s")
    _of_split(interpolate).add_argument(
        "--input",
        metavar=("FIRST", "SECOND"),
        nargs=2,
        help="two files (or folders, each of a DICOM series): the line between them, of volumes between their middle slices",
    )
    inpaint = _run_verb(
        to,
        verbs.inpaint,
        "vaejax inpaint runs/quickstart --mask=square:12 --n=5 --draws=4",
    )
    inpaint.add_argument(
        "--mask",
        default="lower-half",
        help="missing pixels: lower-half, square:SIDE in the middle, or a PNG, white where they are; with --input, a file like "
        "that one, not 0 where they are; default: %(default)s",
    )
    _of_files(inpaint, "their images completed, and how uncertain,")
    inpaint.add_argument("--draws", type=_at_least_two, default=8, help="of each image, at least 2; default: %(default)s")
    for verb in (reconstruct, interpolate, inpaint):
        verb.add_argument("--n", type=_positive, default=10, help="images, or lines; default: %(default)s")
        _writing(verb)


def _add_understanding(to: Any) -> None:
    """What the latents hold."""
    embed = _run_verb(
        to,
        verbs.embed,
        "vaejax embed runs/mednist --split=test --map=tsne",
    )
    _of_split(embed).add_argument("--input", metavar="PATH", help=f"{_PATH}: their table instead of that of a split")
    embed.add_argument("--map", choices=("pca", "tsne"), default="pca", help="how it is laid out; default: %(default)s")
    explain = _run_verb(
        to,
        verbs.explain,
        "vaejax explain runs/mednist --from=HeadCT --to=CXR --n=5",
    )
    explain.add_argument("--from", dest="first", required=True, metavar="LABEL", help="the label of the images")
    explain.add_argument("--to", dest="second", required=True, metavar="LABEL", help="the label that they are moved towards")
    explain.add_argument("--n", type=_positive, default=5, help="images; default: %(default)s")
    _of_files(explain, "their images moved, and what changes,")
    explain.add_argument("--steps", type=_at_least_two, default=6, help="images on a walk; default: %(default)s")
    for verb in (embed, explain):
        _writing(verb)


def _add_masks(to: Any) -> None:
    segment = _run_verb(
        to,
        verbs.segment,
        "vaejax segment runs/hippocampus_segmentation --best",
    )
    segment.add_argument("--n", type=_positive, default=10, help="images in the picture; default: %(default)s")
    _of_files(segment, "their masks")
    _writing(segment)


def _of_split(verb: argparse.ArgumentParser) -> Any:
    """Whose images; what else says so goes into the group that is given back, since one alone can."""
    group = verb.add_mutually_exclusive_group()
    group.add_argument("--split", choices=("train", "val", "test"), default="test", help="default: %(default)s")
    return group


_PATH = "a PNG, JPEG, TIFF, NPY or NIfTI file, or a folder with such or DICOM series"


def _of_files(verb: argparse.ArgumentParser, what: str) -> None:
    """For verbs that take a split's images, or files from anywhere."""
    images, meaning = _of_split(verb), f"{_PATH}: {what} in their own geometry, instead of those of a split"
    images.add_argument("--input", metavar="PATH", help=meaning)
    _identifying(verb)


def _identifying(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--identify", action="store_true", help="DICOM results keep the patient and study of their source; default: nameless"
    )


def _writing(verb: argparse.ArgumentParser) -> None:
    """For verbs that draw at random, and write files."""
    verb.add_argument("--seed", type=_seed, default=0, help="which are drawn; default: %(default)s")
    verb.add_argument("--output", metavar="DIR", help="where the files go; default: in the run directory")


def _verb(to: Any, run: Callable, example: str, epilog: str = "") -> argparse.ArgumentParser:
    """A verb of the name of the function that runs it, whose docstring says what it is for."""
    purpose = " ".join((run.__doc__ or "").split())
    verb = to.add_parser(
        run.__name__,
        help=f"{purpose[:1].lower()}{purpose[1:].rstrip('.')}",
        description=f"{purpose}\n\nExample: {example}",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verb.set_defaults(run=run)
    return verb


def _run_verb(to: Any, run: Callable, example: str) -> argparse.ArgumentParser:
    """A verb about a trained run, which it takes first."""
    verb = _verb(to, run, example)
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


def _at_least_two(text: str) -> int:
    """A count of draws that are to differ, or of steps that are to move."""
    return int(_ranged(text, int, 2, 10_000))


def _seed(text: str) -> int:
    """What seeds random numbers."""
    return int(_ranged(text, int, 0, 2**31 - 1))


def _minutes(text: str) -> float:
    """A time."""
    return _ranged(text, float, 0.1, 1e5)


def _temperature(text: str) -> float:
    """A scale."""
    return _ranged(text, float, 0, 1_000)


def _share(text: str) -> float:
    """A share that is neither none nor all."""
    return _ranged(text, float, 1e-6, 1.0 - 1e-6)


def _ranged(text: str, kind: type, low: float, high: float) -> float:
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"expected {low} <= value <= {high}, found {text!r}")
    return value
