"""What fitting on the memory is worth: mix, calibration, gate and "unknown", on the field guide.

    python benchmarks/fitting.py                                   # two settings, a few minutes
    python benchmarks/fitting.py --domains birds aircraft --shots 1 2 4 8 16 --strategies choice likelihood generate \
        random --seeds 0 1 2 --queries 1000 --json fitting.json    # the table of docs/ranking.md

For each domain, number of shots, strategy and seed: a memory of test categories, which no training has seen; everything
is fitted on it alone (`fit_recognizer`), and measured on other images. ``random`` is a ranker that answers at random.
Each query is asked once; the variants are different readings of the same answers. A third more queries belong to
categories that the memory does not hold. Settings that the JSON file holds already are not measured again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image

from rarvision.calibration import Calibration, RankerFit
from rarvision.chat import LocalChat
from rarvision.datasets.fieldguide import FieldGuide
from rarvision.demo import field_guide_memory
from rarvision.embedded import weights_path
from rarvision.encoders import TransformersEncoder
from rarvision.fitting import fit_recognizer
from rarvision.judging import Judge
from rarvision.metrics import area_under_roc, brier_score, expected_calibration_error, false_positive_rate_at
from rarvision.pipeline import Recognizer
from rarvision.ranking import BaseRanker, Ranker
from rarvision.types import Prediction, Ranking, Sample

COLUMNS = ("retrieval", "ranker", "default mix", "fitted mix", "gated")
FOREIGN = 1 / 3  # foreign queries, beside the known ones
TARGETS = (0.9, 0.95, 0.98, 0.99, 0.995, 1.0)
"""Shares of the ranker's gain that the gate is asked to keep: points of its curve."""


class RandomRanker(BaseRanker):
    """Answers at random, and surely: the same for the same image."""

    name = "random"

    def _rank_distinct(self, images: Sequence[Image], names: Sequence[tuple[str, ...]]) -> list[Ranking]:
        rankings = []
        for image, candidates in zip(images, names, strict=True):
            rng = np.random.default_rng(zlib.crc32(image.tobytes()))
            scores = 3.0 * rng.standard_normal(len(candidates))
            order = tuple(int(i) for i in np.argsort(-scores))
            rankings.append(Ranking(order=order, log_scores=tuple(scores.tolist()), strategy="random"))
        return rankings


def measure(
    encoder: TransformersEncoder,
    ranker: BaseRanker,
    options: argparse.Namespace,
    *,
    domain: str,
    shots: int,
    seed: int,
) -> dict[str, Any]:
    """One setting: accuracies in percent, and what they rest on."""
    guide = FieldGuide(domain, categories=options.categories, seed=seed)
    few = guide.few_shot(shots=shots, seed=seed)
    by_source = {item.source: row for row, item in enumerate(few.items)}
    asked = [*guide.queries(options.queries, seed=seed)]
    unknown = FieldGuide(domain, categories=2 * options.categories, seed=seed + 1_000)
    strangers = [s for s in unknown.queries(8 * options.queries, seed=seed) if s.label not in set(guide.names)]
    strangers = strangers[: round(FOREIGN / (1 - FOREIGN) * options.queries)]
    with (
        tempfile.TemporaryDirectory() as scratch,
        field_guide_memory(Path(scratch) / "memory", guide, encoder, shots=shots, seed=seed) as memory,
    ):
        fit = fit_recognizer(
            Recognizer(memory, ranker=ranker, k=options.k),
            images=options.images,
            seed=seed,
            target=options.target,
            open_image=lambda entry: few[by_source[entry.source]].image,
        )
        recognizer = Recognizer(memory, ranker=ranker, k=options.k, fit=None, calibration=Calibration())
        known = answers(recognizer, asked)
        foreign = answers(recognizer, strangers)
        found = judged(recognizer, fit, known, foreign, [s.label for s in asked])
    return {
        "domain": domain,
        "shots": shots,
        "seed": seed,
        "strategy": ranker.strategy,
        "status": fit.mix.status,
        **found,
    }


def answers(recognizer: Recognizer, samples: Sequence[Sample]) -> list[Prediction]:
    """What retrieval and the ranker say."""
    return [p for p in recognizer.recognize_batch(samples) if isinstance(p, Prediction)]


def judged(
    recognizer: Recognizer,
    fit: RankerFit,
    known: Sequence[Prediction],
    foreign: Sequence[Prediction],
    labels: Sequence[str | None],
) -> dict[str, Any]:
    """Every reading of the same answers."""
    memory, settings = recognizer.memory, recognizer.settings
    common: dict[str, Any] = {"fit": None, "gate": None, "reject": False, "ranker_weight": None, "calibration": None}
    judges = {
        "default mix": Judge(memory, settings, **common),
        "fitted mix": Judge(memory, settings, **{**common, "fit": fit}),
        "ranker": Judge(memory, settings, **{**common, "ranker_weight": "replace"}),
    }
    if fit.gate is not None:
        judges["gated"] = Judge(memory, settings, **{**common, "fit": fit, "gate": True})
    readings: dict[str, list[Prediction]] = {"retrieval": [again(judges["fitted mix"], p, alone=True) for p in known]}
    for name, judge in judges.items():
        readings[name] = [again(judge, p, gated=name == "gated") for p in known]
    curve = []
    for target in TARGETS if fit.gate is not None else ():
        judge = Judge(memory, settings, **{**common, "fit": fit, "gate": target})
        read = [again(judge, p, gated=True) for p in known]
        calls = np.mean([p.ranking is not None and p.ranking.status != "skipped" for p in read])
        right = np.mean([p.label == t for p, t in zip(read, labels, strict=True)])
        curve.append({"target": target, "calls": float(calls), "accuracy": 100 * float(right)})
    accuracy = {n: 100 * np.mean([p.label == t for p, t in zip(r, labels, strict=True)]) for n, r in readings.items()}
    asked = [p.ranking is not None and p.ranking.status != "skipped" for p in readings.get("gated", [])]
    found: dict[str, Any] = {
        "accuracy": {n: float(v) for n, v in accuracy.items()},
        "weight": fit.mixed.ranker_weight,
        "call_rate": float(np.mean(asked)) if asked else None,
        "gate_reason": fit.gate_reason,
        "curve": curve,
        "recall": 100 * float(np.mean([t in p.retrieved for p, t in zip(known, labels, strict=True)])),
    }
    for name in ("default mix", "fitted mix", "retrieval"):
        stated = np.array([p.probability for p in readings[name]])
        right = np.array([p.label == t for p, t in zip(readings[name], labels, strict=True)])
        judge = judges.get(name, judges["fitted mix"])
        alone = name == "retrieval"
        outside = [again(judge, p, alone=alone).unknown_probability for p in foreign]
        inside = [p.unknown_probability for p in readings[name]]
        flags = [False] * len(inside) + [True] * len(outside)
        accepted = np.array(inside) <= np.quantile(inside, 0.95)
        limit = (fit.alone if alone else fit.mixed).reject_above
        found[name] = {
            "ece": expected_calibration_error(stated, right),
            "brier": brier_score(stated, right),
            "auroc_right": area_under_roc(stated, right),
            "auroc_foreign": area_under_roc([*inside, *outside], flags),
            # positives are the known: 95 % of them are accepted, and this share of the foreign ones with them
            "fpr95": false_positive_rate_at([-v for v in (*inside, *outside)], [not f for f in flags]),
            "top1_accepted": 100 * float(right[accepted].mean()),
            # by the threshold that was fitted on the memory
            "known_accepted": None if limit is None else 100 * float((np.array(inside) <= limit).mean()),
            "foreign_accepted": None if limit is None else 100 * float((np.array(outside) <= limit).mean()),
        }
    return found


def again(judge: Judge, prediction: Prediction, *, alone: bool = False, gated: bool = False) -> Prediction:
    """The same answers, judged anew."""
    similarity = {candidate.category: candidate for candidate in prediction.candidates}
    candidates = [similarity[name] for name in prediction.retrieved]
    ranking = None if alone else prediction.ranking
    if gated and ranking is not None:
        ranking = judge.skip(candidates, ranking.strategy) or ranking
    return judge.predict(prediction.source, candidates, ranking, retrieval_ms=0.0, ranking_ms=0.0)


def table(results: Sequence[dict[str, Any]]) -> str:
    """Means over seeds, in percent, with the standard error of "fitted minus better of the two"."""
    head = ["domain", "shots", "strategy", "status", *COLUMNS, "fitted - better", "calls %", "gain kept %"]
    head += ["ECE before", "after", "AUROC unknown", "FPR95 %"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    keys = dict.fromkeys((r["domain"], r["shots"], r["strategy"]) for r in results)
    for key in keys:
        rows = [r for r in results if (r["domain"], r["shots"], r["strategy"]) == key]
        acc = {n: [r["accuracy"].get(n, r["accuracy"]["fitted mix"]) for r in rows] for n in COLUMNS}
        over = [r["accuracy"]["fitted mix"] - max(r["accuracy"]["retrieval"], r["accuracy"]["ranker"]) for r in rows]
        gain = np.mean(acc["fitted mix"]) - np.mean(acc["retrieval"])
        kept = f"{100 * (np.mean(acc['gated']) - np.mean(acc['retrieval'])) / gain:.0f}" if gain > 0.5 else ""
        calls = [100 * (1.0 if r["call_rate"] is None else r["call_rate"]) for r in rows]
        cells = [*map(str, key), "/".join(dict.fromkeys(r["status"] for r in rows))]
        cells += [f"{np.mean(acc[n]):.1f}" for n in COLUMNS]
        cells += [f"{np.mean(over):+.1f}", f"{np.mean(calls):.0f}", kept]
        cells += [f"{np.mean([r[n]['ece'] for r in rows]):.3f}" for n in ("default mix", "fitted mix")]
        cells += [f"{np.mean([r['fitted mix']['auroc_foreign'] for r in rows]):.3f}"]
        cells += [f"{100 * np.mean([r['fitted mix']['fpr95'] for r in rows]):.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def curve_table(results: Sequence[dict[str, Any]]) -> str:
    """What the gate keeps of the gain, and of the calls, by what it was asked to keep; pooled over all settings."""
    lines = ["| asked to keep | gain kept % | calls % |", "|---:|---:|---:|"]
    gated = [r for r in results if r.get("curve")]
    for at, target in enumerate(TARGETS if gated else ()):
        before = np.mean([r["accuracy"]["retrieval"] for r in gated])
        gain = np.mean([r["accuracy"]["fitted mix"] for r in gated]) - before
        kept = (np.mean([r["curve"][at]["accuracy"] for r in gated]) - before) / gain
        calls = np.mean([r["curve"][at]["calls"] for r in gated])
        lines.append(f"| {target:.1%} | {100 * kept:.1f} | {100 * calls:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domains", nargs="+", default=["birds"])
    parser.add_argument("--shots", type=int, nargs="+", default=[4])
    parser.add_argument("--strategies", nargs="+", default=["choice", "random"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--categories", type=int, default=200)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--images", type=int, default=400, help="of the memory, to fit on")
    parser.add_argument("--k", type=int, default=5)
    parser.add_argument("--target", type=float, default=0.99, help="share of the gain that the gate is to keep")
    parser.add_argument("--encoder", default="clip-16", choices=["clip-16", "clip-32"])
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    results: list[dict[str, Any]] = (
        json.loads(options.json.read_text()) if options.json and options.json.exists() else []
    )
    asked = {name: getattr(options, name) for name in ("categories", "queries", "images", "k", "target", "encoder")}
    if any(r["asked"] != asked for r in results):
        parser.error(f"{options.json} holds results of other settings; give another file")
    done = {(r["domain"], r["shots"], r["strategy"], r["seed"]) for r in results}
    encoder = TransformersEncoder(weights_path(options.encoder))
    chat = LocalChat(weights_path("mllm"), batch_size=32)
    for strategy in options.strategies:
        ranker = RandomRanker() if strategy == "random" else Ranker(chat, strategy=strategy)
        for domain in options.domains:
            for shots in options.shots:
                for seed in options.seeds:
                    if (domain, shots, ranker.strategy, seed) in done:
                        continue
                    found = measure(encoder, ranker, options, domain=domain, shots=shots, seed=seed)
                    results.append({**found, "asked": asked})
                    print(json.dumps(results[-1]), flush=True)
                    if options.json:
                        options.json.write_text(json.dumps(results, indent=1))
    print("\n" + table(results))
    for strategy in options.strategies:
        print(f"\nThe gate, {strategy}:\n\n" + curve_table([r for r in results if r["strategy"] == strategy]))


if __name__ == "__main__":
    main()
