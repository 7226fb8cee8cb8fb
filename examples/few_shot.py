"""A few images of each category, from folders, and new images recognised: with the embedded models, offline."""

from __future__ import annotations

import tempfile
from pathlib import Path

import rarvision as rv


def write_images(folder: Path) -> None:
    """Put some drawn birds where your photographs would be: ``train/CATEGORY/IMAGE.png`` and ``new/IMAGE.png``."""
    guide = rv.FieldGuide("birds", categories=20, seed=1)
    for place, samples in ((folder / "train", guide.few_shot(shots=4)), (folder / "new", guide.queries(5))):
        for number, sample in enumerate(samples):
            path = place / str(sample.label) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            rv.load_image(sample.image).save(path)


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_images(folder)

        encoder = rv.TransformersEncoder(rv.weights_path("clip-16"))  # or "openai/clip-vit-base-patch16"
        train = rv.ImageFolder(folder / "train")
        with rv.LocalMemory.create(folder / "birds.memory", encoder=encoder) as memory:
            memory.add(train)
            memory.add_texts(train.categories, templates=["a photo of a {}."])

            ranker = rv.Ranker(rv.LocalChat(rv.weights_path("mllm")), strategy="likelihood")
            recognizer = rv.Recognizer(memory, ranker=ranker, k=5)
            for outcome in recognizer.iter_recognize(rv.iter_image_paths([folder / "new"])):
                if isinstance(outcome, rv.RecognitionFailure):
                    print(f"{outcome.source}: {outcome.error}")
                    continue
                truth = Path(outcome.source).parent.name
                print(f"{truth:60} -> {outcome.label} ({outcome.probability:.0%})")


if __name__ == "__main__":
    main()
