"""Does it matter what the ranker was tuned on? ``python benchmarks/tuning_source.py`` (the question of Table 5).

The embedded MLLM is tuned on ranking examples of one domain of the field guide (training categories), once a domain,
and ranks test categories of all of them, beside the untuned one and the one that is shown a worked example from the
memory. The ranker alone answers, retrieval proposes five names; 95 % bootstrap intervals over images.

    python benchmarks/tuning_source.py --json source.json --write docs/ranking.md      # the tables of the docs
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from asking import Meter, ask, cell, percent, world, write_section

from rarvision.chat import LocalChat
from rarvision.datasets.fieldguide import DOMAINS, FieldGuide
from rarvision.embedded import weights_path
from rarvision.encoders import TransformersEncoder
from rarvision.pipeline import Recognizer
from rarvision.ranking import Ranker
from rarvision.retrieval import Retriever
from rarvision.tuning import build_tuning_data, recipe, train

UNTUNED, IN_CONTEXT = "untuned", "worked example"


def adapter(source: str, options: argparse.Namespace, encoder: TransformersEncoder) -> Path:
    """Make the examples of a domain and train on them; what is there already is not made again."""
    folder = options.runs / source
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / "tuning.jsonl"
    guide = FieldGuide(source, split="train", categories=200, images_per_category=10, seed=100)
    build_tuning_data(guide, manifest, encoder=encoder, fill=True, max_windows=options.windows)
    chosen = recipe("lora", objective=options.objective, learning_rate=options.lr, batch_size=16, rank=32, alpha=64)
    return train(manifest, model=weights_path("mllm"), out=folder / options.objective, recipe=chosen).result


def measure(options: argparse.Namespace, known: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rank with every ranker that ``known`` does not hold; it grows, and is written as it does."""
    encoder = TransformersEncoder(weights_path("clip-16"))
    for ranked_by in [UNTUNED, IN_CONTEXT, *options.sources]:
        done = {(r["ranker"], r["target"], r["seed"], r["strategy"]) for r in known}
        wanted = [
            (target, seed, strategy)
            for target in options.targets
            for seed in options.seeds
            for strategy in options.strategies
        ]
        if all((ranked_by, *key) in done for key in wanted):
            continue
        tuned = None if ranked_by in (UNTUNED, IN_CONTEXT) else adapter(ranked_by, options, encoder)
        meter = Meter(LocalChat(weights_path("mllm"), adapter=tuned, batch_size=16))
        for target in options.targets:
            for seed in options.seeds:
                with world(target, seed, encoder=encoder, queries=options.queries) as guide:
                    retriever = Retriever(guide.memory, k=5)
                    for strategy in options.strategies:
                        if (ranked_by, target, seed, strategy) in done:
                            continue
                        ranker = Ranker(meter, strategy=strategy, worked_example=ranked_by == IN_CONTEXT)
                        recognizer = Recognizer(guide.memory, ranker=ranker, retriever=retriever, fit=None)
                        found = ask(recognizer, meter, guide.samples).to_dict()
                        key = {"ranker": ranked_by, "target": target, "seed": seed, "strategy": strategy}
                        known.append({**key, **found})
                        print(*key.values(), f"{percent(found['alone'])[0]:.1f}", flush=True)
                        if options.json:
                            options.json.write_text(json.dumps(known, indent=1))
    return known


def table(results: list[dict[str, Any]], strategy: str) -> str:
    """Markdown: a row a ranker, a column a domain; top-1 of the ranker alone, percent."""
    mine = [r for r in results if r["strategy"] == strategy]
    targets = list(dict.fromkeys(r["target"] for r in mine))
    lines = [f"| `{strategy}`, tuned on | {' | '.join(targets)} |", "|---" + "|---:" * len(targets) + "|"]
    for ranked_by in dict.fromkeys(r["ranker"] for r in mine):
        bits = ["".join(r["alone"] for r in mine if (r["ranker"], r["target"]) == (ranked_by, t)) for t in targets]
        name = {UNTUNED: "nothing", IN_CONTEXT: "nothing, with a worked example"}.get(ranked_by, ranked_by)
        lines.append(f"| {name} | {' | '.join(map(cell, bits))} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", nargs="+", default=list(DOMAINS), choices=list(DOMAINS))
    parser.add_argument("--targets", nargs="+", default=list(DOMAINS), choices=list(DOMAINS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--queries", type=int, default=100, help="images of each target and seed")
    parser.add_argument("--strategies", nargs="+", default=["generate", "choice", "likelihood", "pointwise"])
    parser.add_argument("--objective", default="generate", choices=["generate", "choice", "likelihood"])
    parser.add_argument("--windows", type=int, default=2, help="ranking examples of an image")
    parser.add_argument("--lr", type=float, default=2e-4, help="learning rate, at its peak")
    parser.add_argument("--runs", type=Path, metavar="DIR", help="keep examples and adapters here")
    parser.add_argument("--json", type=Path, metavar="FILE", help="kept as it grows; what it has is not asked again")
    parser.add_argument("--write", type=Path, metavar="FILE", help="a page with the lines that mark where it goes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    known = json.loads(options.json.read_text()) if options.json and options.json.is_file() else []
    with tempfile.TemporaryDirectory() as scratch:
        options.runs = options.runs or Path(scratch)
        results = measure(options, known)
    text = "\n\n".join(table(results, strategy) for strategy in options.strategies)
    print(f"\n{text}")
    if options.write:
        write_section(options.write, "tuning source", text)


if __name__ == "__main__":
    main()
