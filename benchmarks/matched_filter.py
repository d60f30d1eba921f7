"""How much of the planted lesions a matched filter finds: it is told their mean shape, neither contrast nor sign.

    python benchmarks/matched_filter.py FOLDER FILE    # hippocampus volumes and X-rays, as `anomaly.py lesions` has them

Were normal images Gaussian, the likeliest centre of a blob s would be where (s' C^-1 (x - m))^2 / (s' C^-1 s) is largest (Kay
1998, volume II, section 4.4). C is that of probabilistic PCA on the training images (Tipping and Bishop 1999). A reference for
what may be asked for, and no bound. Beside it what marking the whole body is worth, which knows nothing of lesions.
"""

import argparse
from pathlib import Path

import lesions
import numpy as np
from anomaly import bodies, tell
from jaxtyping import Float
from scipy import ndimage
from sklearn.decomposition import PCA
from sklearn.metrics import average_precision_score

from vaejax import evaluation, resampling

HALF = 8
"""Pixels from the centre of a filter to its edge."""


def blob(side: int) -> Float[np.ndarray, "f f"]:
    """A disc of the mean semi-axis, with the edge of a planted one."""
    radius = sum(lesions.RADII) / 2 * side
    distance = np.hypot(*np.mgrid[-HALF : HALF + 1, -HALF : HALF + 1])
    return 1.0 / (1.0 + np.exp(np.clip((distance - radius) / 0.5, -50.0, 50.0)))


def matched(train: Float[np.ndarray, "n h w"], images: Float[np.ndarray, "m h w"], components: int) -> np.ndarray:
    """The filter's map of every image."""
    shape, filtering = images.shape[1:], blob(min(images.shape[1:]))
    rows = np.float64(train.reshape(len(train), -1))
    pca = PCA(components, random_state=0).fit(rows)
    noise = evaluation.noise_variance(pca, rows)
    weights = 1.0 / noise - 1.0 / pca.explained_variance_
    flat = images.reshape(len(images), -1) - pca.mean_
    white = flat / noise - (flat @ pca.components_.T * weights) @ pca.components_
    answers = ndimage.convolve(white.reshape(images.shape), filtering[np.newaxis], mode="constant")
    at_places = ndimage.convolve(pca.components_.reshape(-1, *shape), filtering[np.newaxis], mode="constant")
    energy = ndimage.convolve(np.ones(shape), filtering**2, mode="constant") / noise
    return answers**2 / (energy - (at_places**2 * weights[:, np.newaxis, np.newaxis]).sum(axis=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--components", nargs="+", type=int, default=[32, 100, 150])
    arguments = parser.parse_args()
    for name, images, patients, (train, val, _, test) in bodies(arguments.folder, arguments.file, 0):
        for contrast in lesions.CONTRASTS:
            changed, masks = lesions.plant_all(images[test, ..., 0], contrast)
            body = np.float64([lesions.body(image) for image in changed])
            maps = {f"matched, {k}": matched(images[np.r_[train, val], ..., 0], changed, k) for k in arguments.components}
            for kind, found in ({"body": body} | maps).items():

                def precision(rows: np.ndarray, found: np.ndarray = found, masks: np.ndarray = masks) -> float:
                    return average_precision_score(masks[rows].ravel(), found[rows].ravel())

                tell(data=name, contrast=contrast, map=kind, ap=resampling.estimate(precision, patients[test], 100))


if __name__ == "__main__":
    main()
