"""The mix of retrieval and ranker, and its limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rarvision.calibration import (
    Calibration,
    check_weight,
    log_softmax,
    mix,
    order_log_scores,
    prior_log_scores,
    ranker_log_scores,
    unknown_probability,
)
from rarvision.errors import OptionError

SCORES = st.lists(st.floats(-50, 50), min_size=1, max_size=8)


@settings(deadline=None)
@given(SCORES)
def test_log_softmax_is_a_distribution_in_the_same_order(scores):
    log_probs = log_softmax(np.array(scores))
    assert np.exp(log_probs).sum() == pytest.approx(1)
    assert log_probs == pytest.approx([s - math.log(math.fsum(math.exp(t - s) for t in scores)) - s for s in scores])


def test_log_softmax_of_extremes():
    assert log_softmax(np.array([1e6, 0.0])) == pytest.approx([0.0, -1e6])
    assert log_softmax(np.array([0.0, -np.inf]))[1] == -np.inf
    assert log_softmax(np.array([])).shape == (0,)


def test_prior_by_hand():
    odds = np.exp(prior_log_scores([0.8, 0.7], 0.1))
    assert odds == pytest.approx([math.e / (1 + math.e), 1 / (1 + math.e)])


def test_the_first_place_of_an_order_counts_most():
    odds = np.exp(order_log_scores([2, 0, 1, 3], math.log(2)))
    assert odds / odds[2] == pytest.approx([2**-1, 2**-1.05, 1, 2**-1.1])
    assert odds.sum() == pytest.approx(1)


def test_a_list_that_is_often_right_and_else_tells_nothing_is_trusted():
    """By its likelihood: right in 84 of 100, and where not, the true name is anywhere behind."""
    prior = np.log([0.35, 0.25, 0.2, 0.1, 0.1])

    def log_loss(weight):
        ranker = weight * order_log_scores([1, 0, 2, 3, 4], 3.0)
        log_probs = prior + ranker - np.log(np.exp(prior + ranker).sum())
        return -(0.84 * log_probs[1] + 0.16 * log_probs[[0, 2, 3, 4]].mean())

    best = min(np.linspace(0, 2, 201), key=log_loss)
    assert np.argmax(prior + best * order_log_scores([1, 0, 2, 3, 4], 3.0)) == 1
    assert best > 0.5


def test_ranker_scores_take_temperature_and_unreported_ones_a_floor():
    calibration = Calibration(ranker_temperature=2.0, order_decay=1.0)
    scores = ranker_log_scores([0, 1, 2], [-1.0, -3.0, -math.inf], calibration)
    assert scores[0] - scores[1] == pytest.approx(1.0)
    assert scores[1] - scores[2] == pytest.approx(0.5)
    assert ranker_log_scores([1, 0], None, calibration) == pytest.approx(order_log_scores([1, 0], 1.0))
    assert ranker_log_scores([0, 1], [-math.inf] * 2, calibration) == pytest.approx([-math.log(2)] * 2)


@settings(deadline=None)
@given(st.data())
def test_limits_of_the_weight(data):
    n = data.draw(st.integers(1, 6))
    prior = log_softmax(np.array(data.draw(st.lists(st.floats(-5, 5), min_size=n, max_size=n))))
    ranker = log_softmax(np.array(data.draw(st.lists(st.floats(-5, 5), min_size=n, max_size=n))))
    assert mix(prior, ranker, 0) == pytest.approx(prior)
    assert mix(prior, ranker, "replace") == pytest.approx(ranker)
    product = np.exp(prior) * np.exp(ranker)
    assert np.exp(mix(prior, ranker, 1.0)) == pytest.approx(product / product.sum())
    # a growing weight approaches the ranker's own order
    gaps = np.diff(np.sort(ranker))
    if n == 1 or gaps.min() > 0.1:
        assert mix(prior, ranker, 1e4).argmax() == ranker.argmax()


def test_the_prior_decides_where_the_ranker_is_flat():
    flat = log_softmax(np.zeros(3))
    prior = prior_log_scores([0.1, 0.3, 0.2], 0.02)
    assert mix(prior, flat, 3.0) == pytest.approx(prior)


def test_unknown_falls_with_similarity_and_margin():
    calibration = Calibration()
    base = unknown_probability([0.5, 0.5], calibration)
    assert 0 < unknown_probability([0.9, 0.9], calibration) < base < 1
    assert unknown_probability([0.5, 0.3], calibration) < base
    assert unknown_probability([0.3, 0.5], calibration) == unknown_probability([0.5, 0.3], calibration)
    assert unknown_probability([], calibration) == 1.0
    assert unknown_probability([0.5], calibration) == pytest.approx(base)
    by_hand = Calibration(unknown_intercept=1.0, unknown_similarity=-2.0, unknown_margin=-3.0)
    assert unknown_probability([0.7, 0.5], by_hand) == pytest.approx(1 / (1 + math.exp(-(1 - 1.4 - 0.6))))
    extreme = Calibration(unknown_intercept=-1e4)
    assert unknown_probability([0.5], extreme) == 0.0


@pytest.mark.parametrize("name", ["prior_temperature", "ranker_temperature", "order_decay"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_parameters_are_checked(name, value):
    with pytest.raises(OptionError, match=name):
        Calibration(**{name: value})


@pytest.mark.parametrize("weight", [-0.1, math.nan, math.inf, "sum"])
def test_weights_are_checked(weight):
    with pytest.raises(OptionError, match="ranker_weight"):
        check_weight(weight)


def test_lengths_must_agree():
    with pytest.raises(OptionError, match="same candidates"):
        mix(np.zeros(2), np.zeros(3), 1.0)
