"""From the scores of normal images to p-values and a threshold with a promised share of false alarms; nothing is fitted.

Split conformal prediction (Vovk et al. 2005; Bates et al. 2023, section 2): where a new normal image and those of the
calibration are exchangeable, and their scores are of weights that saw none of them, it is flagged with probability alpha at
most, whatever the score. That is a mean over calibrations; `expected_flags` says how far one may be from it.
"""

import math

import numpy as np
from jaxtyping import Float

from vaejax.errors import DataError


def require(n: int, alpha: float) -> None:
    """Raises DataError where n normal images are too few to promise a share `alpha` of false alarms: n >= 1/alpha - 1."""
    if not _allowed(n, alpha):
        least = next(size for size in range(math.ceil(1.0 / alpha) - 2, 10**9) if _allowed(size, alpha))
        raise DataError(
            f"anomaly.alpha={alpha:g}: expected at least {least} calibration images to promise so few false alarms, found {n}. "
            f"Set more apart (data.calibration_fraction), or ask for --alpha={math.ceil(1e4 / (n + 1)) / 1e4:g}."
        )


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

    The share above the k-th largest of n scores is Beta(k, n + 1 - k) where scores have no ties; with ties it is less.
    """
    from scipy import stats  # slow to import

    k = _allowed(n, alpha)
    low, high = stats.betabinom(m, k, n + 1 - k).interval(level)
    return int(low), int(high)


def _allowed(n: int, alpha: float) -> int:
    """How many of n + 1 exchangeable images may be flagged; the small number is for alpha = 0.29, n = 99."""
    return math.floor(alpha * (n + 1) + 1e-9)
