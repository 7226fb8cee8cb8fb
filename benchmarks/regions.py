"""Encoding the regions of photographs against the plain loop: ``python benchmarks/regions.py``.

Writes 640 x 480 JPEGs with ten boxes each to a temporary folder and compares, interleaved in one run,
medians of boxes/s on the embedded encoder:

- the plain loop, box by box: open, blur all of the image, paste the box back, cut the padded square out, the
  model's own processor, the model;
- `rarvision.iter_crops` with `Encoder.prepare`, in batches across images;
- the same without the model, on both sides: what the crops themselves cost.

It also prints the lowest cosine between the vectors of both ways.
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
from encoding import Plain, medians, on_threads, write_photographs
from PIL import Image, ImageFilter

from rarvision.embedded import weights_path
from rarvision.encoders import TransformersEncoder
from rarvision.regions import CropRule, iter_crops
from rarvision.types import Sample

SIZE = (640, 480)
RULE = CropRule()


def samples_of(paths: Sequence[Path], boxes: int) -> list[Sample]:
    """Boxes of whole pixels and even sides, half of them small, as in LVIS."""
    generator = np.random.default_rng(0)
    found = []
    for path in paths:
        for number in range(boxes):
            sides = 2 * generator.integers(5, 20 if number % 2 else 100, 2)
            left, upper = (int(generator.integers(0, limit - side)) for limit, side in zip(SIZE, sides, strict=True))
            box = (left, upper, left + int(sides[0]), upper + int(sides[1]))
            found.append(Sample(source=f"{path.name} {number}", image=path, box_xyxy=box))
    return found


def plain_crop(sample: Sample) -> Image.Image:
    """What everybody writes first."""
    image = Image.open(sample.image).convert("RGB")
    box = tuple(int(edge) for edge in sample.box_xyxy)
    blurred = image.filter(ImageFilter.GaussianBlur(RULE.blur.sigma(image.size)))
    blurred.paste(image.crop(box), box[:2])
    left, upper, right, lower = (round(edge) for edge in RULE.window(box, image.size))
    square = Image.new("RGB", (right - left, lower - upper), RULE.padding)
    square.paste(blurred, (-left, -upper))
    return square


def plainly(plain: Plain, samples: Sequence[Sample]) -> np.ndarray:
    rows = []
    with torch.inference_mode():
        for sample in samples:
            inputs = plain.processor(images=plain_crop(sample), return_tensors="pt")
            rows.append(plain.model.get_image_features(**inputs).pooler_output[0].numpy())
    array = np.stack(rows)
    return array / np.linalg.norm(array, axis=1, keepdims=True)


def streamed(encoder: TransformersEncoder, samples: Sequence[Sample]) -> np.ndarray:
    stream = iter_crops(samples, RULE, prepare=encoder.prepare, overlap=encoder.overlaps)
    rows = []
    while batch := list(itertools.islice(stream, encoder.batch_size)):
        rows.append(encoder.encode_prepared([prepared for _, prepared in batch]))
    return np.concatenate(rows)


def crops_alone(encoder: TransformersEncoder, samples: Sequence[Sample]) -> int:
    return sum(1 for _ in iter_crops(samples, RULE, prepare=encoder.prepare))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--boxes", type=int, default=10, help="of each image")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    options = parser.parse_args()
    results: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        samples = samples_of(write_photographs(Path(folder) / "jpegs", options.images, size=SIZE), options.boxes)
        model = Path(weights_path("clip-16"))
        plain, encoder = Plain(model), TransformersEncoder(model, device="cpu")
        cosines = (plainly(plain, samples) * streamed(encoder, samples)).sum(axis=1)
        results["lowest cosine"] = float(cosines.min())
        ways = {
            "plain loop": lambda: plainly(plain, samples),
            "iter_crops": lambda: streamed(encoder, samples),
            "plain loop, no model": lambda: [plain.processor(images=plain_crop(s)) for s in samples],
            "iter_crops, no model": lambda: crops_alone(encoder, samples),
        }
        for threads in options.threads:
            on_threads(threads)
            for kind, seconds in zip(("clock", "processor"), medians(ways, options.repeats), strict=True):
                rates = {way: len(samples) / value for way, value in seconds.items()}
                results[f"boxes/s, {threads} threads, {kind}"] = rates
                results[f"times the plain loop, {threads} threads, {kind}"] = {
                    "with the model": rates["iter_crops"] / rates["plain loop"],
                    "without": rates["iter_crops, no model"] / rates["plain loop, no model"],
                }
    print(json.dumps(results, indent=1))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
