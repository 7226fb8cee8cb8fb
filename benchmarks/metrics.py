"""The figures of docs/metrics.md: seconds of intervals and assignments, guessed names, sure levels on the field guide.

python benchmarks/metrics.py                                  # everything that needs no data
python benchmarks/metrics.py --data DIR --name-encoder MODEL  # the guessed names too, where DIR holds rar-memory/
"""

from __future__ import annotations

import argparse
import ast
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import rarvision as rv
from rarvision.embedded import weights_path
from rarvision.encoders import open_name_encoder
from rarvision.metrics import (
    bootstrap_interval,
    cluster_hits,
    clustering_accuracy,
    mean_per_class_interval,
    name_similarities,
    paired_test,
)

IMAGES = 10_000
GUESSED = (("cub200", "birds"), ("pets37", "pets"))


def timed(what: str, compute: Callable[[], Any]) -> None:
    started = time.perf_counter()
    compute()
    print(f"{time.perf_counter() - started:7.3f} s  {what}")


def seconds() -> None:
    rng = np.random.default_rng(0)
    right, other = rng.random(IMAGES) < 0.7, rng.random(IMAGES) < 0.72
    real, another = rng.random(IMAGES), rng.random(IMAGES)
    labels = [f"c{i % 200}" for i in range(IMAGES)]
    clustering_accuracy(["a"], ["a"])  # loads scipy
    print(f"10,000 resamples of {IMAGES:,} images:")
    timed("interval of right and wrong", lambda: bootstrap_interval(right))
    timed("interval of real values", lambda: bootstrap_interval(real))
    timed("interval of the mean over 200 classes", lambda: mean_per_class_interval(right, labels))
    timed("paired test of right and wrong", lambda: paired_test(right, other))
    timed("paired test of real values", lambda: paired_test(real, another))
    for categories, images in ((200, 5_794), (1_000, 50_000), (13_204, 220_429)):
        truth = rng.integers(0, categories, images)
        guess = np.where(rng.random(images) < 0.5, truth, rng.integers(0, categories * 3 // 2, images))
        pair = [f"p{i}" for i in guess], [f"c{i}" for i in truth]
        timed(f"cACC of {categories:,} categories, {images:,} images", lambda pair=pair: clustering_accuracy(*pair))


def guessed_names(data: Path, spec: str) -> None:
    for name, kind in GUESSED:
        lines = (data / "rar-memory" / name / f"paired_data_{kind}.txt").read_text(encoding="utf-8").splitlines()
        pairs = [line.split(" [", 1) for line in lines if line.strip()]
        labels = [key.rpartition("_")[0] for key, _ in pairs]
        first = [ast.literal_eval("[" + names)[0] for _, names in pairs]
        hits = cluster_hits(first, labels)[0]
        same = np.mean([a.lower() == b.lower() for a, b in zip(first, labels, strict=True)])
        print(f"{name}: {len(labels)} images, top-1 {same:.1%}, cACC {hits.mean():.1%} {bootstrap_interval(hits)}")
        for encoder in (open_name_encoder("spelling"), open_name_encoder(spec)):
            alike = name_similarities(first, labels, encoder.encode([*first, *labels]))
            print(f"  sACC {100 * alike.mean():.1f} {bootstrap_interval(alike)} by {encoder.name}")


def sure_levels() -> None:
    tree, encoder = rv.field_guide_taxonomy(), rv.TransformersEncoder(weights_path("clip-32"))
    for domain in ("birds", "aircraft"):
        guide = rv.FieldGuide(domain, categories=200, seed=0)
        with tempfile.TemporaryDirectory() as folder, rv.LocalMemory.create(folder + "/m", encoder=encoder) as memory:
            memory.add(guide.few_shot(shots=4))
            rv.fit_recognizer(rv.Recognizer(memory, taxonomy=tree))
            report = rv.evaluate(rv.Recognizer(memory, taxonomy=tree, sure=True), guide.queries(1_000))
            print(report.to_markdown())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder with rar-memory/, see the authors' repository")
    parser.add_argument("--name-encoder", default="spelling", help="hub name or folder of a sentence encoder")
    given = parser.parse_args()
    seconds()
    if given.data:
        guessed_names(given.data, given.name_encoder)
    sure_levels()


if __name__ == "__main__":
    main()
