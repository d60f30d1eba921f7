"""How much of the label is in the latents: classifiers fitted to some images, chosen on others, measured on a third part."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from vaejax import resampling
from vaejax.progress import track

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Inverse strengths of the L2 penalty that the linear probe is chosen from."""

LEAVES = (1, 3, 10)
"""Fewest images in a leaf that the forest is chosen from."""

TREES = 300

DRAWS = 1_000
"""Resamples behind an interval."""


class Labelled(NamedTuple):
    """Rows of numbers with labels; examples of one group (a patient) are no independent ones."""

    rows: Float[np.ndarray, "n d"]
    labels: Int[np.ndarray, " n"]
    groups: Int[np.ndarray, " n"]


class Probe(NamedTuple):
    """A fitted classifier of rows."""

    probabilities: Callable[[Float[np.ndarray, "n d"]], Float[np.ndarray, "n classes"]]
    setting: float
    """The chosen one of `STRENGTHS`, or of `LEAVES`."""


def linear(train: Labelled, val: Labelled, classes: int) -> Probe:
    """Logistic regression on standardised rows, its penalty chosen on `val`."""
    from sklearn.linear_model import LogisticRegression  # slow to import
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def build(strength: float) -> Any:
        return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2_000))

    return _chosen(build, STRENGTHS, train, val, classes)


def forest(train: Labelled, val: Labelled, classes: int) -> Probe:
    """A random forest, the size of its leaves chosen on `val`."""
    from sklearn.ensemble import RandomForestClassifier

    def build(leaf: float) -> Any:
        return RandomForestClassifier(TREES, min_samples_leaf=int(leaf), random_state=0)

    return _chosen(build, LEAVES, train, val, classes)


PROBES = {"linear": linear, "forest": forest}
"""By name."""


def measure(probe: Probe, test: Labelled) -> dict[str, Any]:
    """`{"n", "groups", "setting", name: {"value", "low", "high"}}`, the bounds of a 95 % bootstrap over groups.

    `accuracy`; `balanced_accuracy`, the mean over labels of the share that is right; and `auc`, the area under the ROC curve
    of a label against all others, a mean over labels. Where `test` has one label alone there is none, and `undefined` says so.
    """
    from sklearn.metrics import roc_auc_score

    chances, labels = probe.probabilities(test.rows), test.labels
    right = chances.argmax(axis=1) == labels

    def balanced(rows: Int[np.ndarray, " n"]) -> float:
        return float(np.mean([right[rows][labels[rows] == label].mean() for label in np.unique(labels[rows])]))

    def area(rows: Int[np.ndarray, " n"]) -> float:
        present = np.unique(labels[rows])
        if len(present) == 1:
            return np.nan
        return float(np.mean([roc_auc_score(labels[rows] == label, chances[rows, label]) for label in present]))

    statistics = {"accuracy": lambda rows: float(right[rows].mean()), "balanced_accuracy": balanced, "auc": area}
    several = len(np.unique(labels)) > 1
    measured: dict[str, Any] = {
        name: resampling.estimate(statistic, test.groups, DRAWS) if several or name != "auc" else None
        for name, statistic in statistics.items()
    }
    why = {} if several else {"undefined": {"auc": "the test images are all of one label"}}
    return {"n": len(labels), "groups": len(np.unique(test.groups)), "setting": probe.setting} | measured | why


def _chosen(build: Callable[[float], Any], settings: tuple[float, ...], train: Labelled, val: Labelled, classes: int) -> Probe:
    """The setting of least squared error of the probabilities on `val` (Brier 1950)."""

    def fitted(setting: float) -> Probe:
        classifier = build(setting).fit(train.rows, train.labels)

        def probabilities(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n classes"]:
            chances = np.zeros((len(rows), classes))  # a label that `train` lacks has none
            chances[:, classifier.classes_] = classifier.predict_proba(rows)
            return chances

        return Probe(probabilities, setting)

    def error(probe: Probe) -> float:
        return float(((probe.probabilities(val.rows) - np.eye(classes)[val.labels]) ** 2).sum(axis=1).mean())

    return min((fitted(setting) for setting in track(settings, "fitting a probe", len(settings))), key=error)
