"""Fitting the demonstration's calibration, on outcomes made up so that the answer is known."""

import math
import random

import numpy as np
import pytest

from rarvision.embedded.calibrate import SCORING, Outcome, fit, generated_accuracy, log_likelihood, unknown_odds
from rarvision.types import Ranking


def _outcome(similarities, truth, scores):
    order = tuple(sorted(range(len(scores)), key=lambda i: -scores[i]))
    scored = {
        s: Ranking(strategy=s, order=order, log_scores=tuple(scores), status="ranked", raw="", reason=None)
        for s in SCORING
    }
    listed = Ranking(strategy="generate", order=order, log_scores=None, status="ranked", raw="", reason=None)
    return Outcome(similarities=similarities, truth=truth, rankings={**scored, "generate": listed})


def _world(n, *, ranker_knows, retrieval_knows):
    rng = random.Random(0)
    found = []
    for _ in range(n):
        truth = rng.randrange(5)
        similarities = [0.8 + 0.05 * rng.random() for _ in range(5)]
        scores = [rng.gauss(0, 1) for _ in range(5)]
        if retrieval_knows:
            similarities[truth] += 0.1
        if ranker_knows:
            scores[truth] += 6
        found.append(_outcome(similarities, truth, scores))
    return found


def test_the_one_that_knows_is_trusted():
    by_ranker = fit(_world(150, ranker_knows=True, retrieval_knows=False))
    by_retrieval = fit(_world(150, ranker_knows=False, retrieval_knows=True))
    assert by_ranker.fitted
    assert by_retrieval.fitted
    assert by_ranker.prior_temperature > by_retrieval.prior_temperature
    assert by_ranker.ranker_temperature < by_retrieval.ranker_temperature


def test_what_is_fitted_is_the_likeliest_of_its_neighbours():
    found = _world(100, ranker_knows=True, retrieval_knows=True)
    best = fit(found)
    worse = type(best)(prior_temperature=0.2, ranker_temperature=2.0)
    assert log_likelihood(found, best) > log_likelihood(found, worse)


def test_a_fallback_leaves_retrieval_s_order():
    outcome = _outcome([0.9, 0.5, 0.4], 0, [0.0, 5.0, 1.0])
    assert generated_accuracy([outcome], 0.5, 3.0) == 0.0
    generated = outcome.rankings["generate"]
    fallen = Ranking(strategy="generate", order=generated.order, log_scores=None, status="fallback", raw="", reason="?")
    replaced = Outcome(similarities=outcome.similarities, truth=0, rankings={**outcome.rankings, "generate": fallen})
    assert generated_accuracy([replaced], 0.5, 3.0) == 1.0


@pytest.mark.parametrize(("start", "slope"), [(14.0, -20.0), (3.0, -6.0)])
def test_the_odds_of_not_retrieved_are_those_that_made_them(start, slope):
    rng, found = np.random.default_rng(0), []
    for best in rng.uniform(0.4, 1.0, 6000):
        missed = rng.random() < 1 / (1 + math.exp(-(start + slope * best)))
        margin = rng.uniform(0, 0.2)
        found.append(_outcome([best, best - margin], -1 if missed else 0, [0.0, 0.0]))
    intercept, similarity, margin_slope = unknown_odds(found)
    predicted = 1 / (1 + np.exp(-(intercept + similarity * 0.5 + margin_slope * 0.1)))
    assert predicted == pytest.approx(1 / (1 + math.exp(-(start + slope * 0.5))), abs=0.06)
    assert similarity == pytest.approx(slope, rel=0.4)
    assert abs(margin_slope) < 3
