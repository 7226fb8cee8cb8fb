"""Baselines are presets of one path: the nearest image, fused retrieval, and ranking, on the same images."""

from __future__ import annotations

import tempfile
from pathlib import Path

import rarvision as rv


def main(*, categories: int = 40, queries: int = 20) -> None:
    guide = rv.FieldGuide("flowers", categories=categories, seed=3)
    with tempfile.TemporaryDirectory() as scratch:
        encoder = rv.TransformersEncoder(rv.weights_path("clip-16"))
        with rv.LocalMemory.create(Path(scratch) / "flowers.memory", encoder=encoder) as memory:
            memory.add(guide.few_shot(shots=4))
            memory.add_texts(guide.names, templates=["a photo of a {}."])
            chat = rv.LocalChat(rv.weights_path("mllm"))
            paths = {
                "CLIP + kNN": rv.Recognizer(
                    memory, retriever=rv.Retriever(memory, source="image", aggregate="nearest")
                ),
                "fused retrieval": rv.Recognizer(memory),
                "RAR, option letters": rv.Recognizer(memory, ranker=rv.Ranker(chat, strategy="choice")),
                "RAR, as in the paper": rv.Recognizer(
                    memory, ranker=rv.Ranker(chat, strategy="generate"), ranker_weight="replace"
                ),
            }
            for name, recognizer in paths.items():
                report = rv.evaluate(recognizer, guide.queries(queries))
                print(
                    f"{name:22} top-1 {report.top1:6.1%}   recall@5 {report.recall[5]:6.1%}   "
                    f"repaired {report.repaired_rate:4.0%}   fell back {report.fallback_rate:4.0%}"
                )


if __name__ == "__main__":
    main()
