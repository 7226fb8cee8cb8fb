"""Intervals and paired tests against plain loops and exact fractions."""

from __future__ import annotations

import math
import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rarvision.errors import InputError, OptionError
from rarvision.metrics import (
    bootstrap_interval,
    mcnemar_exact,
    mean_per_class_accuracy,
    mean_per_class_interval,
    paired_test,
)


def plain_interval(statistic, n, *, resamples=3000, seed=5):
    rng = np.random.default_rng(seed)
    found = [statistic(rng.integers(0, n, n)) for _ in range(resamples)]
    return np.quantile(found, [0.025, 0.975])


@pytest.mark.parametrize("real", [False, True])
def test_interval_of_a_mean(real):
    rng = np.random.default_rng(0)
    values = rng.normal(2.0, 1.0, 300) if real else (rng.random(300) < 0.8).astype(float)
    expected = plain_interval(lambda places: values[places].mean(), 300)
    assert bootstrap_interval(values) == pytest.approx(expected, abs=0.012)


@pytest.mark.parametrize("real", [False, True])
def test_interval_over_seeds_and_images(real):
    rng = np.random.default_rng(1)
    shift = rng.normal(0, 0.1, (6, 1))
    values = rng.normal(0.6 + shift, 0.3, (6, 200)) if real else (rng.random((6, 200)) < 0.6 + shift).astype(float)
    draw = np.random.default_rng(9)
    expected = plain_interval(lambda places: values[draw.integers(0, 6, 6)][:, places].mean(), 200)
    assert bootstrap_interval(values) == pytest.approx(expected, abs=0.012)
    over_images = bootstrap_interval(values.mean(axis=0))
    low, high = bootstrap_interval(values)
    assert low < over_images[0] < over_images[1] < high, "seeds that differ widen it"
    assert bootstrap_interval(values[:1]) == bootstrap_interval(values[0])


def test_interval_of_the_mean_per_class():
    rng = np.random.default_rng(2)
    labels = np.array([f"c{i}" for i in (rng.random(240) ** 2 * 12).astype(int)])
    correct = rng.random(240) < np.array([int(label[1:]) for label in labels]) / 12

    def statistic(places):
        return mean_per_class_accuracy(np.where(correct[places], labels[places], "").tolist(), labels[places].tolist())

    low, high = mean_per_class_interval(correct, labels.tolist())
    assert (low, high) == pytest.approx(plain_interval(statistic, 240), abs=0.012)


def exact_mcnemar(b, c):
    total = sum(math.comb(b + c, i) for i in range(min(b, c) + 1))
    return float(min(Fraction(1), 2 * Fraction(total, 2 ** (b + c))))


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_agrees_with_exact_fractions(b, c):
    assert mcnemar_exact(b, c) == pytest.approx(exact_mcnemar(b, c), rel=1e-9)
    assert mcnemar_exact(b, c) == mcnemar_exact(c, b)


def test_paired_test_by_a_plain_loop():
    rng = np.random.default_rng(3)
    first = rng.random(250) < 0.7
    second = np.where(rng.random(250) < 0.2, rng.random(250) < 0.9, first)
    test = paired_test(first, second)
    difference = second.astype(float) - first
    expected = plain_interval(lambda places: difference[places].mean(), 250)
    assert test.interval == pytest.approx(expected, abs=0.01)
    assert test.difference == pytest.approx(difference.mean())
    assert (test.only_first, test.only_second) == (int((first & ~second).sum()), int((second & ~first).sum()))
    assert test.p_mcnemar == pytest.approx(exact_mcnemar(test.only_first, test.only_second))
    draws = np.array([rng.choice(difference, 250).mean() for _ in range(4000)])
    assert test.p_bootstrap == pytest.approx(2 * min((draws <= 0).mean(), (draws >= 0).mean()), abs=0.01)
    reverse = paired_test(second, first)
    assert reverse.difference == -test.difference
    assert reverse.p_mcnemar == test.p_mcnemar


def test_equal_rows_and_what_is_not_right_or_wrong():
    test = paired_test([1, 0, 1], [1, 0, 1])
    assert (test.difference, test.interval, test.p_bootstrap, test.p_mcnemar) == (0.0, (0.0, 0.0), 1.0, 1.0)
    real = paired_test([0.2, 0.5, 0.9, 0.1], [0.3, 0.6, 1.0, 0.2], resamples=99)
    assert (real.only_first, real.only_second, real.p_mcnemar) == (None, None, None)
    assert real.p_bootstrap == pytest.approx(2 / 100), "what 99 resamples can tell, not 0"
    seeds = paired_test([[1, 0], [1, 0]], [[1, 1], [1, 1]])
    assert (seeds.seeds, seeds.n, seeds.p_mcnemar) == (2, 2, None)


def test_p_values_are_uniform_where_there_is_no_difference():
    rng = np.random.default_rng(4)
    p = [paired_test(rng.random(400) < 0.5, rng.random(400) < 0.5, resamples=500).p_bootstrap for _ in range(300)]
    assert np.mean(np.array(p) < 0.1) == pytest.approx(0.1, abs=0.05)
    assert np.mean(p) == pytest.approx(0.5, abs=0.07)


def test_ten_thousand_resamples_of_ten_thousand_images_take_seconds():
    rng = np.random.default_rng(0)
    first, second = rng.random(10_000), rng.random(10_000)
    started = time.process_time()
    paired_test(first, second)
    paired_test(first < 0.5, second < 0.5)
    mean_per_class_interval(first < 0.5, [f"c{i % 200}" for i in range(10_000)])
    assert time.process_time() - started < 30


def test_bad_input():
    with pytest.raises(InputError, match=r"\(1, 2\) and \(1, 3\)"):
        paired_test([1, 0], [1, 0, 1])
    with pytest.raises(InputError, match="finite"):
        bootstrap_interval([1.0, math.nan])
    with pytest.raises(InputError, match=r"\(1, 1, 1\)"):
        bootstrap_interval([[[1.0]]])
    with pytest.raises(InputError, match="at least one"):
        paired_test([], [])
    with pytest.raises(InputError, match="-1"):
        mcnemar_exact(-1, 2)
    with pytest.raises(OptionError, match="resamples"):
        paired_test([1], [1], resamples=0)
    with pytest.raises(OptionError, match="confidence"):
        paired_test([1], [1], confidence=1.0)
    with pytest.raises(OptionError, match="confidence"):
        mean_per_class_interval([True], ["a"], confidence=0.0)
