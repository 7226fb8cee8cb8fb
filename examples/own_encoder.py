"""An encoder of one's own: two methods and three properties; the base does batching, normalising and checks.

This one compares colour histograms. It knows no words, so its memories hold images only.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import rarvision as rv
from rarvision.errors import EncoderError


class ColourHistogram(rv.Encoder):
    """4 x 4 x 4 colour bins."""

    name = "colour histogram"
    dim = 64
    fingerprint = "colour-histogram:1"  # to be changed when the vectors change

    def _encode_images(self, images: list[Image.Image]) -> np.ndarray:
        return np.stack([self._histogram(np.asarray(image)) for image in images])

    def _encode_texts(self, texts: list[str]) -> np.ndarray:
        raise EncoderError(f"colour histograms know no words, got {texts[:1]}; use images")

    def _histogram(self, pixels: np.ndarray) -> np.ndarray:
        bins = (pixels // 64).reshape(-1, 3) @ np.array([16, 4, 1])
        return np.bincount(bins, minlength=64).astype(np.float32)

    def probe(self) -> np.ndarray:
        """What tells this encoder from others; by default it takes images and words."""
        return self.encode_images([Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")])


def main() -> None:
    guide = rv.FieldGuide("butterflies", categories=10)
    with tempfile.TemporaryDirectory() as scratch:
        with rv.LocalMemory.create(Path(scratch) / "memory", encoder=ColourHistogram()) as memory:
            memory.add(guide.few_shot(shots=8))
        with rv.LocalMemory.open(Path(scratch) / "memory", encoder=ColourHistogram()) as memory:
            report = rv.evaluate(rv.Recognizer(memory, k=5), guide.queries(50))
    print(f"top-1 {report.top1:.0%}, recall@5 {report.recall[5]:.0%}; by chance 10% and 50%")


if __name__ == "__main__":
    main()
