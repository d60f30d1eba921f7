"""Which anomaly score, and which model: AUROC of all on data apart from what `anomaly.py` tests on.

    python benchmarks/anomaly_choose.py DATA
    python benchmarks/anomaly_choose.py DATA --problems stretch --model augmented

Of MedNIST the training and validation folders alone, in two ways: the validation folder as a test, and stretches. The files of
a folder follow each other as slices of a scan and scans of a scanner do; so a model of the first 350, tested on the last 100 of
500 with the other classes' last 100, meets other scans, most likely, as any model that is put to use. Then PneumoniaMNIST,
BreastMNIST, and digits of MNIST.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from anomaly import CANDIDATES, CLASSES, auroc, fit, mednist, scores, tell, unit
from jaxtyping import Bool, Float

from vaejax import screening
from vaejax.config import DataConfig
from vaejax.datasets import idx
from vaejax.datasets.source import Examples


class Problem(NamedTuple):
    """Normal images, and others among which the strange ones are known."""

    name: str
    train: Float[np.ndarray, "n h w 1"]
    val: Float[np.ndarray, "m h w 1"]
    test: Float[np.ndarray, "k h w 1"]
    truth: Bool[np.ndarray, " k"]
    """Whether each of the test is strange."""


def problems(data: Path, side: int) -> Iterator[Problem]:
    """All, the ones of a kind together; what they are named by starts with the kind."""
    images = mednist(data / "mednist", side)
    for name in CLASSES:
        others = [each for each in CLASSES if each != name]
        every = images["train"][name]
        most = every[np.random.default_rng(0).permutation(500)[:400]]
        yield problem(f"mednist {name}", most, 50, images["val"][name], [images["val"][other] for other in others])
        first, last = every[:350], [images["train"][other][400:] for other in others]  # 50 between, for the scan that goes on
        yield problem(f"stretch {name}", first, 50, every[400:], last)
    for file, normal, apart, splits in (("pneumoniamnist_rebuilt", 0, 100, ("test",)), ("breastmnist", 1, 50, ("val", "test"))):
        with np.load(data / "medmnist" / f"{file}.npz") as arrays:
            own = unit(arrays["train_images"][arrays["train_labels"].ravel() == normal])
            test, labels = (np.concatenate([arrays[f"{split}_{kind}"] for split in splits]) for kind in ("images", "labels"))
        is_normal = labels.ravel() == normal
        yield problem(file, own, apart, unit(test)[is_normal], [unit(test)[~is_normal]])
    digits = idx.source(DataConfig(name="idx", path=str(data / "mnist"))).open()
    for digit in (2, 4, 5, 8, 9):
        of_digits = [of_label(digits["test"], other, 100) for other in range(10)]
        yield problem(f"mnist {digit}", of_label(digits["train"], digit, 500), 100, of_digits.pop(digit), of_digits)


def of_label(examples: Examples, label: int, n: int) -> Float[np.ndarray, "n h w 1"]:
    """The first images of a label."""
    return unit(np.stack([examples.read(i)[..., 0] for i in np.flatnonzero(examples.labels == label)[:n]]))


def problem(name: str, own: np.ndarray, apart: int, normal: np.ndarray, strange: list[np.ndarray]) -> Problem:
    """A model of `own` but for `apart` of them, drawn at random, which choose the checkpoint."""
    val, train = np.split(own[np.random.default_rng(0).permutation(len(own))], [apart])
    test = np.concatenate([normal, *strange])
    return Problem(name, train, val, test, np.arange(len(test)) >= len(normal))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder that holds mednist, medmnist and mnist")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--side", type=int, default=32, help="of MedNIST's images, pixels")
    parser.add_argument("--model", choices=CANDIDATES, default="plain")
    parser.add_argument("--problems", nargs="+", default=("",), help="starts of names, as printed")
    parser.add_argument("--scores", nargs="+", default=[name for name in screening.SCORES if name != "restoration"])
    arguments = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {}
    for each in problems(arguments.data, arguments.side):
        if each.name.startswith(tuple(arguments.problems)):
            fitted = fit(CANDIDATES[arguments.model], each.train, each.val, arguments.seed)
            values = {name: scores(fitted, each.test, name).value for name in arguments.scores}
            rows = found.setdefault(each.name.split()[0], [])
            rows.append({name: auroc(each.truth, value) for name, value in values.items()})
            tell(model=arguments.model, problem=each.name, train=len(each.train), loss=fitted.loss, **rows[-1])
    for kind, rows in found.items():
        of_kind = {name: [row[name] for row in rows] for name in arguments.scores}
        tell(kind=kind, mean={k: float(np.mean(v)) for k, v in of_kind.items()}, least={k: min(v) for k, v in of_kind.items()})


if __name__ == "__main__":
    main()
