"""What showing the candidates adds to their names, and what it costs: ``python benchmarks/showing.py``.

On the field guide with the embedded models: the same images are asked about with names alone, after a structured
example in words, after a worked example from the memory, with exemplar images, with descriptions, and with both. Once
the categories are called by their names, which the MLLM can read off an image; once by plates (``Q7``) that tell
nothing, as part numbers do. Accuracy with 95 % bootstrap intervals over images; milliseconds of the processor, on one
thread.

    python benchmarks/showing.py --json showing.json --write docs/ranking.md     # the table of the docs
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from asking import Meter, ask, cell, world, write_section

from rarvision.chat import LocalChat
from rarvision.embedded import weights_path
from rarvision.encoders import TransformersEncoder
from rarvision.pipeline import Recognizer
from rarvision.ranking import Ranker
from rarvision.retrieval import Retriever

FORMS: dict[str, dict[str, Any]] = {
    "names alone": {},
    "example in words": {"prompt": "in-context"},
    "worked example": {"worked_example": True},
    "1 exemplar": {"exemplars": 1},
    "2 exemplars": {"exemplars": 2},
    "descriptions": {"descriptions": True},
    "1 exemplar, descriptions": {"exemplars": 1, "descriptions": True},
}
"""Options of the ranker."""
TELLING = {"names": True, "plates": False}


def possible(strategy: str, form: str, called: str) -> bool:
    """Whether there is such a question: only lists have an example in words, names describe themselves."""
    if form == "example in words":
        return strategy in ("generate", "likelihood")
    return called == "plates" or "descriptions" not in form


def measure(options: argparse.Namespace, known: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ask everything that ``known`` does not hold; it grows, and is written as it does."""
    encoder = TransformersEncoder(weights_path("clip-16"))
    meter = Meter(LocalChat(weights_path("mllm"), batch_size=16))
    done = {(r["domain"], r["seed"], r["called"], r["strategy"], r["form"]) for r in known}
    for domain in options.domains:
        for seed in options.seeds:
            for called, telling in TELLING.items():
                with world(domain, seed, encoder=encoder, queries=options.queries, telling=telling) as guide:
                    # plates say nothing to the encoder either: what retrieval knows of texts are the descriptions
                    retriever = Retriever(guide.memory, k=options.k)
                    for strategy in options.strategies:
                        for form, given in FORMS.items():
                            key = (domain, seed, called, strategy, form)
                            if key in done or not possible(strategy, form, called):
                                continue
                            ranker = Ranker(meter, strategy=strategy, **given)
                            recognizer = Recognizer(guide.memory, ranker=ranker, retriever=retriever, fit=None)
                            found = ask(recognizer, meter, guide.samples).to_dict()
                            names = ("domain", "seed", "called", "strategy", "form")
                            known.append({**dict(zip(names, key, strict=True)), **found})
                            print(*key, f"{100 * np.mean([b == '1' for b in found['alone']]):.1f}", flush=True)
                            if options.json:
                                options.json.write_text(json.dumps(known, indent=1))
    return known


def table(results: list[dict[str, Any]], called: str) -> str:
    """Markdown: the ranker's own answer by strategy, pooled over domains and seeds, and the costs."""
    mine = [r for r in results if r["called"] == called]
    strategies = list(dict.fromkeys(r["strategy"] for r in mine))
    head = ["shown", *strategies, "tokens an image", "ms an image"]
    lines = [f"| {' | '.join(head)} |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for form in FORMS:
        rows = {s: [r for r in mine if r["strategy"] == s and r["form"] == form] for s in strategies}
        if not any(rows.values()):
            continue
        cells = [cell("".join(r["alone"] for r in rows[s])) if rows[s] else "" for s in strategies]
        costs = [
            " / ".join(f"{np.mean([r[key] for r in rows[s]]):.0f}" if rows[s] else "-" for s in strategies)
            for key in ("tokens", "ms")
        ]
        lines.append(f"| {form} | {' | '.join([*cells, *costs])} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domains", nargs="+", default=["birds", "aircraft"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--queries", type=int, default=100, help="images of each domain and seed")
    parser.add_argument("--strategies", nargs="+", default=["generate", "choice", "likelihood", "pointwise"])
    parser.add_argument("--k", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="kept as it grows; what it has is not asked again")
    parser.add_argument("--write", type=Path, metavar="FILE", help="a page with the lines that mark where it goes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    known = json.loads(options.json.read_text()) if options.json and options.json.is_file() else []
    results = measure(options, known)
    texts = []
    for called in TELLING:
        for domain in options.domains:
            rows = [r for r in results if r["domain"] == domain]
            texts.append(f"Called by their {called}, {domain}:\n\n{table(rows, called)}")
    text = "\n\n".join(texts)
    print(f"\n{text}")
    if options.write:
        write_section(options.write, "showing", text)


if __name__ == "__main__":
    main()
