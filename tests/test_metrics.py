"""Metrics against independent rewrites."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rarvision.errors import InputError, OptionError
from rarvision.metrics import (
    area_under_roc,
    bootstrap_interval,
    brier_score,
    expected_calibration_error,
    false_positive_rate_at,
    mean_per_class_accuracy,
    recall_at_k,
    risk_coverage,
    topk_accuracy,
)

LABELS = st.sampled_from("abc")
CASES = st.lists(st.tuples(st.lists(LABELS, max_size=4), LABELS), min_size=1, max_size=30)


@settings(deadline=None)
@given(CASES, st.integers(1, 5))
def test_topk_counts_hits(cases, k):
    ranked, labels = zip(*cases, strict=True)
    hits = 0
    for names, label in cases:
        for place, name in enumerate(names):
            if name == label and place < k:
                hits += 1
                break
    assert topk_accuracy(ranked, labels, k=k) == pytest.approx(hits / len(cases))
    assert recall_at_k(ranked, labels, k=k) == topk_accuracy(ranked, labels, k=k)


@settings(deadline=None)
@given(CASES)
def test_mean_per_class(cases):
    predicted = [names[0] if names else None for names, _ in cases]
    labels = np.array([label for _, label in cases])
    expected = np.mean([np.mean([p == c for p, t in zip(predicted, labels, strict=True) if t == c])
                        for c in np.unique(labels)])  # fmt: skip
    assert mean_per_class_accuracy(predicted, labels.tolist()) == pytest.approx(expected)


def test_repeats_take_places():
    assert recall_at_k([["a", "a", "b"]], ["b"], k=2) == 0.0


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=50), st.integers(1, 20))
def test_calibration_error(pairs, bins):
    total = 0.0
    for b in range(bins):
        inside = [(p, c) for p, c in pairs if min(int(p * bins), bins - 1) == b]
        if inside:
            confidence = math.fsum(p for p, _ in inside) / len(inside)
            accuracy = sum(c for _, c in inside) / len(inside)
            total += len(inside) / len(pairs) * abs(confidence - accuracy)
    stated, right = zip(*pairs, strict=True)
    assert expected_calibration_error(stated, right, bins=bins) == pytest.approx(total, abs=1e-9)


def test_bootstrap_is_what_resampling_gives():
    values = [1.0] * 70 + [0.0] * 30
    low, high = bootstrap_interval(values, resamples=4000, seed=1)
    rng = np.random.default_rng(7)
    means = [rng.choice(values, len(values)).mean() for _ in range(4000)]
    assert (low, high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.015)
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)


def test_bootstrap_of_real_values_and_of_constants():
    values = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    low, high = bootstrap_interval(values, confidence=0.9)
    error = 1.645 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - error, values.mean() + error), abs=0.04)
    assert bootstrap_interval([1.0, 1.0]) == pytest.approx((1.0, 1.0))


def test_bad_input():
    with pytest.raises(InputError, match="2 and 1"):
        topk_accuracy([["a"], ["b"]], ["a"])
    with pytest.raises(InputError, match="at least one"):
        mean_per_class_accuracy([], [])
    with pytest.raises(InputError, match="at least one"):
        bootstrap_interval([])
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        expected_calibration_error([1.5], [True])
    with pytest.raises(OptionError):
        topk_accuracy([["a"]], ["a"], k=0)
    with pytest.raises(OptionError):
        bootstrap_interval([1.0], confidence=1.0)
    with pytest.raises(OptionError):
        expected_calibration_error([0.5], [True], bins=0)


def slow_auroc(values, positive):
    highs, lows = ([v for v, p in zip(values, positive, strict=True) if bool(p) is wanted] for wanted in (True, False))
    pairs = [(a, b) for a in highs for b in lows]
    return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)


@pytest.mark.parametrize("levels", [3, 10, 1_000])
def test_area_under_roc_agrees_with_all_pairs(levels):
    rng = np.random.default_rng(levels)
    for _ in range(20):
        values = rng.integers(0, levels, 40) / levels
        positive = rng.random(40) < 0.3
        positive[:2] = True, False
        assert area_under_roc(values, positive) == pytest.approx(slow_auroc(values, positive))
    assert math.isnan(area_under_roc([1.0, 2.0], [True, True]))


def test_false_positive_rate_by_hand():
    values, positive = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4], [True, False, True, False, True, False]
    assert false_positive_rate_at(values, positive, true_positive_rate=0.3) == 0.0
    assert false_positive_rate_at(values, positive, true_positive_rate=0.6) == pytest.approx(1 / 3)
    assert false_positive_rate_at(values, positive) == pytest.approx(2 / 3)
    assert false_positive_rate_at([0.5, 0.5], [True, False]) == 1.0, "ties are taken together"
    assert math.isnan(false_positive_rate_at([0.5], [True]))
    with pytest.raises(OptionError):
        false_positive_rate_at(values, positive, true_positive_rate=0.0)


def test_risk_and_coverage_by_hand():
    coverage, risk = risk_coverage([0.9, 0.5, 0.5, 0.1], [True, True, False, False])
    np.testing.assert_allclose(coverage, [0.25, 0.75, 1.0])
    np.testing.assert_allclose(risk, [0.0, 1 / 3, 0.5])


def test_brier_score_by_hand():
    assert brier_score([1.0, 0.5, 0.0], [True, True, True]) == pytest.approx(1.25 / 3)
