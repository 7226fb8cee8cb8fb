"""Recognition from names alone, without a single example image (zero-shot): with the embedded CLIP, offline."""

from __future__ import annotations

import tempfile
from pathlib import Path

import rarvision as rv


def main() -> None:
    guide = rv.FieldGuide("fish", categories=50)
    with tempfile.TemporaryDirectory() as scratch:
        encoder = rv.TransformersEncoder(rv.weights_path("clip-16"))
        with rv.LocalMemory.create(Path(scratch) / "fish.memory", encoder=encoder) as memory:
            memory.add_texts(guide.names, templates=["a photo of a {}."])
            report = rv.evaluate(rv.Recognizer(memory, k=5), guide.queries(50))
    print(report.to_markdown())


if __name__ == "__main__":
    main()
