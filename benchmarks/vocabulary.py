"""Thousands of category names as a memory of texts against plain loops: ``python benchmarks/vocabulary.py``.

On the embedded encoder, one thread, medians of seconds in one run:

- the plain loop: the model's own tokenizer and the model, name by name;
- `rarvision.detection.add_vocabulary` into a new memory, with the cache of text vectors empty, and filled;
- searching the names for regions: the plain loop over regions (all similarities, sorted) beside `Retriever` and
  `Memory.nearest`, all with the 5 best names of each region.

``--vocabulary FILE`` takes an official file, such as V3Det's list of 13,204 names; without it as many are made up.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from encoding import medians, on_threads
from transformers import AutoTokenizer, CLIPModel

from rarvision.detection import Category, Vocabulary, add_vocabulary, read_vocabulary
from rarvision.embedded import weights_path
from rarvision.encoders import TransformersEncoder
from rarvision.memory import LocalMemory
from rarvision.retrieval import Retriever

TEMPLATE = "a photo of a {}."
K = 5


def made_up(count: int) -> Vocabulary:
    """Names of one to three words, as detection vocabularies have them."""
    generator = np.random.default_rng(0)
    parts = [generator.integers(0, 2_000, generator.integers(1, 4)) for _ in range(count)]
    return Vocabulary(
        Category(id=i, name="_".join([*(f"word{part}" for part in words), f"kind{i}"])) for i, words in enumerate(parts)
    )


def plain_loop(model: CLIPModel, tokenizer: AutoTokenizer, names: Sequence[str]) -> np.ndarray:
    """What everybody writes first."""
    rows = []
    with torch.inference_mode():
        for name in names:
            tokens = tokenizer([TEMPLATE.replace("{}", name)], truncation=True, return_tensors="pt")
            rows.append(model.get_text_features(**tokens).pooler_output[0].numpy())
    array = np.stack(rows)
    return array / np.linalg.norm(array, axis=1, keepdims=True)


def plain_search(texts: np.ndarray, regions: np.ndarray) -> list[np.ndarray]:
    return [np.argsort(-(texts @ region), kind="stable")[:K] for region in regions]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=Path, metavar="FILE")
    parser.add_argument("--names", type=int, default=13_204, help="made up, without --vocabulary")
    parser.add_argument("--regions", type=int, default=1_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    on_threads(1)
    vocabulary = read_vocabulary(options.vocabulary) if options.vocabulary else made_up(options.names)
    folder = Path(weights_path("clip-16"))
    encoder = TransformersEncoder(folder, device="cpu")
    _ = encoder.fingerprint  # a hash of the weights, once for each model
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    regions = np.random.default_rng(1).normal(size=(options.regions, encoder.dim)).astype(np.float32)
    regions /= np.linalg.norm(regions, axis=1, keepdims=True)
    numbers = itertools.count()
    with tempfile.TemporaryDirectory() as scratch:

        def fill(cache: Path) -> LocalMemory:
            memory = LocalMemory.create(Path(scratch) / f"memory {next(numbers)}", encoder=encoder)
            add_vocabulary(memory, vocabulary, templates=[TEMPLATE], cache=cache)
            return memory

        kept = Path(scratch) / "kept"
        memory = fill(kept)
        texts = plain_loop(model, tokenizer, vocabulary.names)
        stored = memory.vectors(memory.table("text")[0])
        retriever = Retriever(memory, k=K, source="text")
        best = np.sort(regions @ texts.T, axis=1)[:, ::-1][:, :K]
        found = np.array([[each.similarity for each in row] for row in retriever.retrieve(regions)])
        nearest = memory.nearest(regions, K).similarities
        ways = {
            "plain loop, name by name": lambda: plain_loop(model, tokenizer, vocabulary.names),
            "add_vocabulary, cache empty": lambda: fill(Path(scratch) / f"cache {next(numbers)}").close(),
            "add_vocabulary, cache filled": lambda: fill(kept).close(),
            "plain search, region by region": lambda: plain_search(texts, regions),
            "Retriever": lambda: retriever.retrieve(regions),
            "Memory.nearest": lambda: memory.nearest(regions, K),
        }
        clock, processor = medians(ways, options.repeats)
    results = {
        "names": len(vocabulary),
        "regions": options.regions,
        "lowest cosine": float((texts * stored).sum(axis=1).min()),
        "largest difference of the 5 best similarities": float(np.abs(found - best).max()),
        "recall@5 of Memory.nearest": float((nearest >= best[:, -1:] - 1e-6).mean()),
        "seconds, clock": clock,
        "seconds, processor": processor,
        "times the plain loop, processor": {
            way: processor["plain loop, name by name"] / processor[way]
            for way in ("add_vocabulary, cache empty", "add_vocabulary, cache filled")
        },
        "times the plain search, processor": {
            way: processor["plain search, region by region"] / processor[way] for way in ("Retriever", "Memory.nearest")
        },
    }
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
