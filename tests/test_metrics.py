"""Metrics against independent rewrites."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rarvision.errors import InputError, OptionError
from rarvision.metrics import (
    bootstrap_interval,
    expected_calibration_error,
    mean_per_class_accuracy,
    recall_at_k,
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
