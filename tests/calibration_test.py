"""Promised rates are kept: exactly where scores are exchangeable, against closed forms, and refused where they cannot be."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from vaejax import calibration, resampling
from vaejax.errors import DataError

NUMBERS = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=30)


@given(NUMBERS, NUMBERS)
def test_p_values_count_the_normal_images_at_least_as_strange(normal, scores):
    normal, scores = np.array(normal), np.array(scores)
    expected = [(1 + (normal >= score).sum()) / (len(normal) + 1) for score in scores]
    np.testing.assert_allclose(calibration.p_values(normal, scores), expected)


@settings(max_examples=300)
@given(st.lists(st.integers(-9, 9).map(float), min_size=4, max_size=60), NUMBERS, st.sampled_from((0.05, 0.1, 0.2, 0.29)))
def test_above_the_threshold_is_where_the_p_value_is_at_most_alpha(normal, scores, alpha):
    normal, scores = np.array(normal), np.array(scores)
    if len(normal) < 1 / alpha - 1 - 1e-9:
        with pytest.raises(DataError, match="calibration images"):
            calibration.threshold(normal, alpha)
    else:
        flagged = scores > calibration.threshold(normal, alpha)
        np.testing.assert_array_equal(flagged, calibration.p_values(normal, scores) <= alpha + 1e-9)


@pytest.mark.parametrize(("alpha", "least"), [(0.05, 19), (0.01, 99), (0.1, 9), (0.3, 3), (0.001, 999)])
def test_too_few_images_are_refused_with_how_many_are_needed(alpha, least):
    calibration.require(least, alpha)
    with pytest.raises(DataError, match=rf"anomaly.alpha={alpha:g}: expected at least {least} .* found {least - 1}"):
        calibration.require(least - 1, alpha)


@given(st.integers(1, 400))
def test_the_rate_that_is_suggested_can_be_kept(n):
    with pytest.raises(DataError) as refused:
        calibration.require(n, 1e-6)
    calibration.require(n, float(str(refused.value).rsplit("=", 1)[1].rstrip(".")))


@pytest.mark.parametrize(("n", "alpha"), [(19, 0.05), (50, 0.05), (99, 0.01), (40, 0.2)])
def test_a_new_normal_image_is_flagged_as_often_as_promised(n, alpha):
    draws, random = 20_000, np.random.default_rng(0)
    flagged = 0
    for _ in range(draws // 100):
        scores = random.gumbel(size=(100, n + 1))
        flagged += sum(row[-1] > calibration.threshold(row[:-1], alpha) for row in scores)
    expected = math.floor(alpha * (n + 1) + 1e-9) / (n + 1)
    assert expected <= alpha
    assert stats.binomtest(flagged, draws, expected).pvalue > 1e-3


def test_flags_of_many_images_after_one_calibration_are_beta_binomial():
    n, m, alpha, random = 60, 80, 0.1, np.random.default_rng(1)
    counts = [int((random.normal(size=m) > calibration.threshold(random.normal(size=n), alpha)).sum()) for _ in range(4_000)]
    low, high = calibration.expected_flags(n, m, alpha)
    inside = np.mean([low <= count <= high for count in counts])
    k = 6
    mass = stats.betabinom(m, k, n + 1 - k).pmf(np.arange(low, high + 1)).sum()
    assert mass >= 0.95
    assert abs(inside - mass) < 4 * math.sqrt(mass * (1 - mass) / len(counts))


def of_patients(random: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of 1 to 8 images of each of n patients, who differ more than their images, and whose each is."""
    patients = np.repeat(np.arange(n), random.integers(1, 9, n))
    return random.normal(size=n)[patients] + 0.5 * random.normal(size=len(patients)), patients


def test_a_group_has_the_score_of_its_strangest_image():
    scores, groups = np.array([0.5, 2.0, -1.0, 3.0, -7.0]), np.array([4, 9, 4, 9, -2])
    np.testing.assert_array_equal(calibration.of_groups(scores, groups), [-7.0, 0.5, 3.0])


def test_a_new_normal_patient_is_flagged_as_often_as_promised_whatever_binds_its_images():
    n, m, alpha, random = 40, 30, 0.1, np.random.default_rng(2)
    counts, by_image = [], []
    for _ in range(2_000):
        normal, new = of_patients(random, n), of_patients(random, m)
        limit = calibration.threshold(calibration.of_groups(*normal), alpha)
        counts.append(int((calibration.of_groups(*new) > limit).sum()))
        flags = int((new[0] > calibration.threshold(normal[0], alpha)).sum())
        low, high = calibration.expected_flags(len(normal[0]), len(new[0]), alpha)
        by_image.append(low <= flags <= high)
    low, high = calibration.expected_flags(n, m, alpha)
    k = 4
    assert abs(np.mean(counts) / m - k / (n + 1)) < 4 * stats.betabinom(m, k, n + 1 - k).std() / m / math.sqrt(len(counts))
    mass = stats.betabinom(m, k, n + 1 - k).pmf(np.arange(low, high + 1)).sum()
    assert abs(np.mean([low <= count <= high for count in counts]) - mass) < 4 * math.sqrt(mass * (1 - mass) / len(counts))
    assert np.mean(by_image) < 0.9  # as if images of a patient were independent


def test_too_few_patients_are_called_patients():
    with pytest.raises(DataError, match=r"at least 19 calibration patients .* found 18"):
        calibration.require(18, 0.05, "patients")


# --- intervals


def test_the_interval_of_a_mean_is_that_of_the_central_limit():
    values = np.random.default_rng(2).normal(3.0, 2.0, 400)
    low, high = resampling.interval(lambda rows: values[rows].mean(), np.arange(400))
    width = stats.norm.ppf(0.975) * values.std() / 20
    np.testing.assert_allclose([low, high], [values.mean() - width, values.mean() + width], atol=0.12 * width)


def test_images_of_a_patient_are_drawn_together():
    values = np.repeat(np.random.default_rng(3).normal(size=50), 8)
    patients = np.random.default_rng(4).permutation(np.repeat(np.arange(50), 8))
    values = values[np.argsort(np.argsort(patients, kind="stable"), kind="stable")]
    seen = []
    alone = resampling.interval(lambda rows: values[rows].mean(), np.arange(400))
    together = resampling.interval(lambda rows: seen.append(np.bincount(patients[rows])) or values[rows].mean(), patients)
    assert all((counts % 8 == 0).all() and counts.sum() == 400 for counts in seen)
    ratio = (together[1] - together[0]) / (alone[1] - alone[0])
    assert math.sqrt(8) * 0.8 < ratio < math.sqrt(8) * 1.2


def test_one_seed_draws_the_same_rows_and_resamples_without_a_value_are_left_out():
    random = np.random.default_rng(5)
    truth, scores = np.arange(12) < 2, random.normal(size=12)

    def statistic(rows: np.ndarray) -> float:
        return float(roc_auc_score(truth[rows], scores[rows])) if 0 < truth[rows].sum() < len(rows) else math.nan

    first = resampling.interval(statistic, np.arange(12), 200)
    assert first == resampling.interval(statistic, np.arange(12), 200)
    assert first != resampling.interval(statistic, np.arange(12), 200, seed=1)
    assert 0.0 <= first[0] <= statistic(np.arange(12)) <= first[1] <= 1.0
