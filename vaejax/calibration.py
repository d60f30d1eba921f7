"""From the scores of normal images to p-values and a threshold with a promised share of false alarms; nothing is fitted.

Split conformal prediction (Vovk et al. 2005; Bates et al. 2023, section 2): where a new normal image and those of the
calibration are exchangeable, and their scores are of weights that saw none of them, it is flagged with probability alpha at
most, whatever the score. That is a mean over calibrations; `expected_flags` says how far one may be from it.

Images of one patient are not exchangeable with those of others, patients are (Dunn et al. 2023; Lee et al. 2023). So where
patients are known, a patient is what is calibrated and flagged: its score is that of its strangest image (`of_groups`), and a
normal patient has any image flagged with probability alpha at most. That holds for patients with as many images as those of the
calibration; more images are more often beyond the threshold.
"""

import math

import numpy as np
from jaxtyping import Float, Int

from vaejax.errors import DataError


def require(n: int, alpha: float, what: str = "images") -> None:
    """Raises DataError where n normal images (or patients) are too few to promise a share `alpha` of false alarms.

    They are enough where n >= 1/alpha - 1.
    """
    if not _allowed(n, alpha):
        least = next(size for size in range(math.ceil(1.0 / alpha) - 2, 10**9) if _allowed(size, alpha))
        raise DataError(
            f"anomaly.alpha={alpha:g}: expected at least {least} calibration {what} to promise so few false alarms, found {n}. "
            f"Set more apart (data.calibration_fraction), or ask for --alpha={math.ceil(1e4 / (n + 1)) / 1e4:g}."
        )


def of_groups(scores: Float[np.ndarray, " n"], groups: Int[np.ndarray, " n"]) -> Float[np.ndarray, " g"]:
    """The largest score of each group, such as a patient's images, in the order of the groups' numbers."""
    numbers, place = np.unique(groups, return_inverse=True)
    largest = np.full(len(numbers), -np.inf)
    np.maximum.at(largest, place, scores)
    return largest


def p_values(calibration: Float[np.ndarray, " n"], scores: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    """Share of normal images at least as strange as each, itself counted: (1 + #{calibration >= score}) / (n + 1)."""
    below = np.searchsorted(np.sort(calibration), scores, side="left")
    return (1.0 + len(calibration) - below) / (len(calibration) + 1.0)


def threshold(calibration: Float[np.ndarray, " n"], alpha: float) -> float:
    """The score above which the p-value is at most `alpha`: that of the floor(alpha (n + 1))-th strangest normal image.

    Raises:
        DataError: too few images for `alpha`.
    """
    require(len(calibration), alpha)
    return float(np.sort(calibration)[-_allowed(len(calibration), alpha)])


def expected_flags(n: int, m: int, alpha: float, level: float = 0.95) -> tuple[int, int]:
    """Central interval of how many of m new normal images are flagged after a calibration with n: a beta-binomial.

    All n + m are to be exchangeable: images of which no two are of one patient, else patients. The share above the k-th largest
    of n scores is Beta(k, n + 1 - k) where scores have no ties; with ties it is less.
    """
    from scipy import stats  # slow to import

    k = _allowed(n, alpha)
    low, high = stats.betabinom(m, k, n + 1 - k).interval(level)
    return int(low), int(high)


def _allowed(n: int, alpha: float) -> int:
    """How many of n + 1 exchangeable images may be flagged; the small number is for alpha = 0.29, n = 99."""
    return math.floor(alpha * (n + 1) + 1e-9)
