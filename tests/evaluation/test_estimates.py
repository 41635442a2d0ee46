"""Standard errors beside a bootstrap, and paired tests on differences that are known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_rel

from decaylaws.errors import InvalidValueError
from decaylaws.evaluation import Verdict, holm, paired_test, ratio_estimate


def documents(count: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Nats and tokens of documents whose loss depends on their length."""
    rng = np.random.default_rng(seed)
    tokens = rng.lognormal(5, 1, count).round() + 1
    return tokens * (2.5 + 0.3 * rng.normal(size=count) - 0.05 * np.log(tokens)), tokens


def bootstrap_error(x: np.ndarray, y: np.ndarray, clusters: np.ndarray, draws: int = 4000) -> float:
    """Standard deviation of the ratio over resampled clusters, written out."""
    rng = np.random.default_rng(1)
    labels = np.unique(clusters)
    sums = np.array([[x[clusters == c].sum(), y[clusters == c].sum()] for c in labels])
    picks = rng.integers(0, len(labels), (draws, len(labels)))
    totals = sums[picks].sum(axis=1)
    return float(np.std(totals[:, 0] / totals[:, 1]))


def test_the_standard_error_matches_a_bootstrap_over_documents() -> None:
    nats, tokens = documents()
    estimate = ratio_estimate(nats, tokens)
    assert estimate.value == pytest.approx(nats.sum() / tokens.sum())
    assert estimate.standard_error == pytest.approx(
        bootstrap_error(nats, tokens, np.arange(len(nats))), rel=0.1
    )


def test_the_standard_error_of_clusters_matches_a_bootstrap_over_clusters() -> None:
    rng = np.random.default_rng(3)
    clusters = np.repeat(np.arange(120), 5)
    correct = (rng.normal(size=120)[clusters] + 0.5 * rng.normal(size=600) > 0.2).astype(float)
    estimate = ratio_estimate(correct, clusters=clusters)
    ones = np.ones_like(correct)
    assert estimate.standard_error == pytest.approx(bootstrap_error(correct, ones, clusters), rel=0.1)
    assert estimate.standard_error > 1.5 * ratio_estimate(correct).standard_error
    assert (estimate.num_documents, estimate.num_clusters) == (600, 120)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    nats, tokens = documents(50_000, seed=5)
    truth = nats.sum() / tokens.sum()
    rng = np.random.default_rng(6)
    held = 0
    for _ in range(400):
        rows = rng.integers(0, len(nats), 150)
        estimate = ratio_estimate(nats[rows], tokens[rows], level=0.9)
        held += estimate.lower <= truth <= estimate.upper
    assert 0.84 <= held / 400 <= 0.95


def test_a_mean_has_the_usual_standard_error() -> None:
    values = np.random.default_rng(0).normal(size=40)
    assert ratio_estimate(values).standard_error == pytest.approx(values.std(ddof=1) / np.sqrt(40))
    assert np.isnan(ratio_estimate([1.0]).standard_error)


def test_impossible_figures_are_named() -> None:
    with pytest.raises(InvalidValueError, match=r"numerator\[1\]"):
        ratio_estimate([1.0, np.nan])
    with pytest.raises(InvalidValueError, match="positive sum"):
        ratio_estimate([], [])
    with pytest.raises(InvalidValueError, match="level"):
        ratio_estimate([1.0, 2.0], level=95)
    with pytest.raises(InvalidValueError, match="clusters"):
        ratio_estimate([1.0, 2.0], clusters=["a"])
    with pytest.raises(InvalidValueError, match="same documents"):
        paired_test([1.0, 2.0], [1.0])


def test_a_paired_test_of_nothing_is_named() -> None:
    with pytest.raises(InvalidValueError, match="positive sum"):
        paired_test([1.0, 2.0], [1.0, 3.0], [0.0, 0.0])
    with pytest.raises(InvalidValueError, match="num_resamples"):
        paired_test([1.0, 2.0], [1.0, 3.0], num_resamples=0)


def test_pairing_sees_a_difference_that_separate_errors_hide() -> None:
    nats, tokens = documents()
    rng = np.random.default_rng(2)
    better = nats - 0.01 * tokens * (1 + 0.5 * rng.normal(size=len(nats)))
    test = paired_test(nats, better, tokens)
    assert test.verdict is Verdict.SECOND_BETTER
    assert abs(test.difference) < 2 * ratio_estimate(nats, tokens).standard_error
    assert test.lower < test.difference < test.upper < 0
    assert paired_test(better, nats, tokens).verdict is Verdict.FIRST_BETTER
    assert paired_test(nats, better, tokens, higher_is_better=True).verdict is Verdict.FIRST_BETTER


def test_students_p_is_that_of_scipy_and_the_permutation_agrees() -> None:
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=80), rng.normal(size=80) * 0.3 + 0.1
    test = paired_test(a, b)
    expected = ttest_rel(b, a).pvalue
    assert test.p_student == pytest.approx(expected)
    assert test.p_permutation == pytest.approx(expected, abs=0.03)
    assert test.standard_error == pytest.approx(np.std(b - a, ddof=1) / np.sqrt(80))
    assert (test.upper - test.lower) / 2 == pytest.approx(1.96 * test.standard_error, rel=0.1)


def test_without_a_difference_the_verdict_is_rarely_one() -> None:
    rng = np.random.default_rng(7)
    wrong = 0
    for seed in range(60):
        base = rng.normal(size=60)
        noise = rng.normal(size=(2, 60)) * 0.2
        test = paired_test(base + noise[0], base + noise[1], num_resamples=499, seed=seed)
        wrong += test.verdict is not Verdict.NOT_ENOUGH_EVIDENCE
    assert wrong <= 8


def test_the_detectable_difference_is_found_about_four_times_in_five() -> None:
    rng = np.random.default_rng(8)
    step = paired_test(np.zeros(100), rng.normal(size=100), num_resamples=99).detectable
    found = 0
    for seed in range(60):
        test = paired_test(np.zeros(100), rng.normal(size=100) + step, num_resamples=499, seed=seed)
        found += test.verdict is Verdict.SECOND_BETTER or test.verdict is Verdict.FIRST_BETTER
    assert 0.6 <= found / 60 <= 0.95


@pytest.mark.parametrize("values", [[0.0, 0.0, 0.0], [1.0], [1.0, 1.0, 1.0, 1.0]])
def test_few_or_equal_documents_are_not_enough_evidence(values: list[float]) -> None:
    test = paired_test(np.zeros(len(values)), values)
    assert test.verdict is Verdict.NOT_ENOUGH_EVIDENCE


def test_holm_steps_down() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9]) == [0.9]
