"""Fits the demonstration's calibration: ``python -m rarvision.embedded.calibrate``.

On validation categories of the trained domains. The two temperatures are those of a grid that make the true names
likeliest (mean log-probability over domains and over the strategies that give scores); the decay is that of a grid
under which `generate` answers best; the odds of "not retrieved" are a logistic regression on retrieval's best
similarity and its margin.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rarvision.calibration import Calibration, mix, order_log_scores, prior_log_scores, ranker_log_scores
from rarvision.chat import LocalChat
from rarvision.datasets.fieldguide import DOMAINS, HELD_OUT_DOMAIN, FieldGuide
from rarvision.demo import field_guide_memory
from rarvision.embedded import weights_path
from rarvision.encoders import TransformersEncoder
from rarvision.images import load_image
from rarvision.ranking import Ranker
from rarvision.retrieval import Retriever
from rarvision.types import Ranking

__all__ = ["main"]

SCORING = ("likelihood", "choice", "pointwise")
PRIOR_TEMPERATURES = (0.01, 0.02, 0.05, 0.1, 0.2)
RANKER_TEMPERATURES = (0.5, 0.7, 1.0, 1.4, 2.0)
DECAYS = (1.0, 2.0, 3.0, 5.0)
_RIDGE = 1e-4
_SEED = 11


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What was retrieved for one query, where the truth stands in it (-1: nowhere), and each strategy's ranking."""

    similarities: list[float]
    truth: int
    rankings: dict[str, Ranking]


def outcomes(domain: str, queries: int) -> list[Outcome]:
    """Retrieve and rank for queries of a domain's validation categories, four images each in the memory."""
    encoder = TransformersEncoder(weights_path("clip-16"))
    chat = LocalChat(weights_path("mllm"), batch_size=32)
    guide = FieldGuide(domain, split="validation", categories=200, seed=_SEED)
    samples = list(guide.queries(queries, seed=_SEED))
    images = [load_image(sample.image) for sample in samples]
    with (
        tempfile.TemporaryDirectory() as scratch,
        field_guide_memory(Path(scratch) / "memory", guide, encoder, shots=4, seed=_SEED) as memory,
    ):
        found = Retriever(memory, k=5).retrieve(encoder.encode_images(images))
    names = [[candidate.category for candidate in candidates] for candidates in found]
    ranked = {s: Ranker(chat, strategy=s).rank_batch(images, names) for s in (*SCORING, "generate")}  # type: ignore[arg-type]  # the literals of Strategy
    return [
        Outcome(
            similarities=[candidate.similarity for candidate in candidates],
            truth=shown.index(str(sample.label)) if sample.label in shown else -1,
            rankings={strategy: rankings[i] for strategy, rankings in ranked.items()},
        )
        for i, (candidates, shown, sample) in enumerate(zip(found, names, samples, strict=True))
    ]


def log_likelihood(found: list[Outcome], tried: Calibration) -> float:
    """Mean log-probability of the true name, where it was retrieved, over the strategies that give scores."""
    values = [
        mix(
            prior_log_scores(outcome.similarities, tried.prior_temperature),
            ranker_log_scores(outcome.rankings[s].order, outcome.rankings[s].log_scores, tried),
            1.0,
        )[outcome.truth]
        for outcome in found
        if outcome.truth >= 0
        for s in SCORING
    ]
    return float(np.mean(values))


def generated_accuracy(found: list[Outcome], prior_temperature: float, decay: float) -> float:
    """Share of right answers of `generate` with its order turned into scores by this decay."""
    hits = []
    for outcome in found:
        prior = prior_log_scores(outcome.similarities, prior_temperature)
        ranking = outcome.rankings["generate"]
        mixed = prior if ranking.status == "fallback" else mix(prior, order_log_scores(ranking.order, decay), 1.0)
        hits.append(int(np.argmax(mixed)) == outcome.truth)
    return float(np.mean(hits))


def unknown_odds(found: list[Outcome]) -> np.ndarray:
    """Intercept and slopes (best similarity, margin) of "not retrieved", by ridge-stabilised Newton steps."""
    ordered = np.sort(np.array([outcome.similarities for outcome in found]), axis=1)[:, ::-1]
    x = np.stack([np.ones(len(found)), ordered[:, 0], ordered[:, 0] - ordered[:, 1]], 1)
    missed = np.array([outcome.truth < 0 for outcome in found], dtype=float)
    weights = np.zeros(3)
    for _ in range(50):
        p = 1 / (1 + np.exp(-x @ weights))
        gradient = x.T @ (p - missed) / len(x) + _RIDGE * weights
        hessian = (x * (p * (1 - p))[:, None]).T @ x / len(x) + _RIDGE * np.eye(3)
        weights -= np.linalg.solve(hessian, gradient)
    return weights


def fit(found: list[Outcome]) -> Calibration:
    """The calibration of these outcomes."""
    grid = [
        Calibration(prior_temperature=prior, ranker_temperature=ranker)
        for prior, ranker in itertools.product(PRIOR_TEMPERATURES, RANKER_TEMPERATURES)
    ]
    best = max(grid, key=lambda tried: log_likelihood(found, tried))
    decay = max(DECAYS, key=lambda tried: generated_accuracy(found, best.prior_temperature, tried))
    intercept, similarity, margin = (round(float(value), 2) for value in unknown_odds(found))
    return Calibration(
        prior_temperature=best.prior_temperature,
        ranker_temperature=best.ranker_temperature,
        order_decay=decay,
        unknown_intercept=intercept,
        unknown_similarity=similarity,
        unknown_margin=margin,
        fitted=True,
    )


def main() -> None:
    """Fit and print."""
    trained = [domain for domain in DOMAINS if domain != HELD_OUT_DOMAIN]
    parser = argparse.ArgumentParser(prog="python -m rarvision.embedded.calibrate", description=__doc__)
    parser.add_argument("--domains", nargs="+", default=trained, choices=list(DOMAINS))
    parser.add_argument("--queries", type=int, default=300, help="of each domain")
    options = parser.parse_args()
    found = []
    for domain in options.domains:
        part = outcomes(domain, options.queries)
        found += part
        print(f"{domain}: retrieved {100 * np.mean([o.truth >= 0 for o in part]):.1f} %", flush=True)
    print(fit(found))


if __name__ == "__main__":
    main()
