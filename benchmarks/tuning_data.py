"""Ranking examples counted beside the authors', and how long they and the search for look-alikes take.

``python benchmarks/tuning_data.py``: aircraft of the field guide, as many images and categories as the authors took
from FGVC-Aircraft; once as their code does it, once with disjoint halves, once with completed windows.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from rarvision.datasets import Dataset, FieldGuide
from rarvision.embedded import weights_path
from rarvision.encoders import TransformersEncoder
from rarvision.images import Picture, load_image, load_picture
from rarvision.memory import LocalMemory
from rarvision.retrieval import leave_one_out
from rarvision.tuning import build_tuning_data
from rarvision.tuning.looks import COLOUR_TOLERANCE, THRESHOLD, look_alikes, look_of

AUTHORS = {"images": 3_334, "categories": 100, "examples": 30_647}
"""What the authors' ``build_finetuning_data.ipynb`` prints for FGVC-Aircraft and CLIP ViT-B/16."""

MODES: dict[str, dict[str, Any]] = {
    "as the authors": {"paper_compat": True},
    "disjoint halves": {},
    "disjoint halves, completed": {"fill": True},
}


def aircraft(images: int, categories: int, split: Any, seed: int) -> Dataset:
    """So many images, spread over the categories as evenly as can be."""
    most = -(-images // categories)
    guide = FieldGuide("aircraft", split=split, categories=categories, images_per_category=most, seed=seed)
    order = sorted(range(len(guide)), key=lambda index: (index % most, index // most))
    return guide.select(sorted(order[:images]), name=guide.name)


def measure(guide: Dataset, encoder: TransformersEncoder, seed: int) -> dict[str, Any]:
    """Make the examples in every mode, and print a table."""
    found: dict[str, Any] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalMemory.create(Path(folder, "m"), encoder=encoder) as memory,
    ):
        started = time.process_time()
        memory.add(guide, batch_size=256)
        seconds = time.process_time() - started
        found["top1"] = leave_one_out(memory).top1
        print(
            f"{len(memory):,} images of {len(memory.categories())} categories, drawn and encoded in {seconds:.1f} s; "
            f"the nearest other image is of the same category for {found['top1']:.1%}\n\n"
            "| | examples | an image | examples by number of names | windows left out | s |\n"
            "|---|---:|---:|---|---|---:|"
        )
        for mode, more in MODES.items():
            started = time.process_time()
            report = build_tuning_data(memory, Path(folder, f"{mode}.jsonl"), seed=seed, **more)
            seconds = time.process_time() - started
            names = ", ".join(f"{count}: {n:,}" for count, n in report.names.items())
            left_out = ", ".join(f"{reason} {n:,}" for reason, n in report.left_out.items())
            each = report.examples / report.asked_images
            print(f"| {mode} | {report.examples:,} | {each:.1f} | {names} | {left_out} | {seconds:.1f} |", flush=True)
            found[mode] = report.to_dict() | {"seconds": seconds}
    return found


def jpeg(image: Image.Image, quality: int) -> Picture:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality)
    return load_picture(buffer.getvalue())


COPIES: dict[str, Callable[[Image.Image], Picture]] = {
    "half the size": lambda image: Picture.of(image.resize((image.width // 2, image.height // 2))),
    "JPEG of quality 50": lambda image: jpeg(image, 50),
    "half the size, JPEG of quality 20": lambda image: jpeg(image.resize((image.width // 2, image.height // 2)), 20),
    "2 % cut off at each edge": lambda image: Picture.of(image).cut(0.02, 0.02, 0.98, 0.98),
    "5 % cut off at each edge": lambda image: Picture.of(image).cut(0.05, 0.05, 0.95, 0.95),
    "5 % brighter": lambda image: Picture.of(ImageEnhance.Brightness(image).enhance(1.05)),
}


def measure_looks(guide: Dataset) -> dict[str, Any]:
    """How many pairs of different images are taken for the same, and how many copies are found."""
    images = [load_image(sample.image) for sample in guide]
    looks = np.stack([look_of(Picture.of(image)) for image in images])
    set_bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1)
    close = both = 0
    for row, own in enumerate(looks[:-1]):
        others = looks[row + 1 :]
        near = set_bits[others[:, :8] ^ own[:8]].sum(axis=1) <= THRESHOLD
        difference = (others[near, 8:].astype(np.float64) - own[8:]) ** 2
        close += int(near.sum())
        both += int((np.sqrt(difference.mean(axis=1)) <= COLOUR_TOLERANCE).sum())
    found: dict[str, Any] = {
        "pairs": len(images) * (len(images) - 1) // 2,
        "hash alone": close,
        "hash and colours": both,
    }
    print(f"{found['pairs']:,} pairs of different images: {close:,} pass the hash alone, {both:,} hash and colours")
    for name, change in COPIES.items():
        pairs = look_alikes(looks, np.stack([look_of(change(image)) for image in images]), threshold=THRESHOLD)
        found[name] = sum(own == copy for copy, own, _ in pairs) / len(images)
        print(f"copies found, {name}: {found[name]:.1%}", flush=True)
    return found


def main() -> None:
    """Measure and print; seconds are processor time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="clip-16", choices=["clip-16", "clip-32"])
    parser.add_argument("--images", type=int, default=AUTHORS["images"])
    parser.add_argument("--categories", type=int, default=AUTHORS["categories"])
    parser.add_argument("--splits", nargs="*", default=["test", "train"], choices=["train", "validation", "test"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--looks", type=int, default=10_000, help="images on each side of the search for look-alikes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all values here")
    options = parser.parse_args()
    encoder = TransformersEncoder(weights_path(options.encoder), device="cpu")
    results: dict[str, Any] = {"authors": AUTHORS}
    print(f"authors, FGVC-Aircraft: {AUTHORS['examples']:,} examples of {AUTHORS['images']:,} images")
    for split in options.splits:
        print(f"\n## {split} categories\n")
        guide = aircraft(options.images, options.categories, split, options.seed)
        results[split] = measure(guide, encoder, options.seed)
    print("\n## Look-alikes\n")
    results["looks"] = measure_looks(aircraft(options.images, options.categories, "test", options.seed))
    rng = np.random.default_rng(options.seed)
    first, second = (rng.integers(0, 256, (options.looks, 200), dtype=np.uint8) for _ in range(2))
    started = time.process_time()
    found = len(list(look_alikes(first, second, threshold=THRESHOLD)))
    seconds = results["look-alikes, s"] = time.process_time() - started
    print(f"look-alikes of {options.looks:,} among {options.looks:,}: {seconds:.2f} s, {found} found")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
