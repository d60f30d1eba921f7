"""Intervals of what is computed from many images: the bootstrap, whole patients at a time."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Int


def interval(
    statistic: Callable[[Int[np.ndarray, " rows"]], float],
    groups: Int[np.ndarray, " n"],
    draws: int = 1_000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Central percentile interval of a statistic of rows (Efron and Tibshirani 1993, chapter 13).

    Args:
        statistic: rows, some of them repeated -> a number; NaN where it is not defined, as that of one class alone.
        groups: rows of one number, such as a patient's, are drawn together, as often as there are groups.
        draws: resamples; those without a value are left out.
        level: probability inside.
        seed: of the draws; the same seed draws the same rows, so that a difference of two statistics is paired.
    """
    members = np.split(np.argsort(groups, kind="stable"), np.cumsum(np.unique(groups, return_counts=True)[1])[:-1])
    random = np.random.default_rng(seed)
    values = []
    for _ in range(draws):
        chosen = random.integers(len(members), size=len(members))
        values.append(statistic(np.concatenate([members[number] for number in chosen])))
    low, high = np.nanquantile(values, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return float(low), float(high)


def drawn(groups: Int[np.ndarray, " n"], draws: int = 1_000, seed: int = 0) -> Int[np.ndarray, "draws g"]:
    """How often each group, in the order of its number, is in each resample of `interval`: for what is summed over groups."""
    random, n = np.random.default_rng(seed), len(np.unique(groups))
    return np.stack([np.bincount(random.integers(n, size=n), minlength=n) for _ in range(draws)])


def estimate(
    statistic: Callable[[Int[np.ndarray, " rows"]], float], groups: Int[np.ndarray, " n"], draws: int = 1_000
) -> dict[str, float]:
    """The statistic of all rows, and the `interval` around it: `{"value", "low", "high"}`."""
    low, high = interval(statistic, groups, draws)
    return {"value": statistic(np.arange(len(groups))), "low": low, "high": high}
